"""The demo's drama, fixed in advance: which partner suffers what, and when. Pure; starts and sends nothing."""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from chaos import limits
from chaos.checker import Role

NAMES: Final = (
    *("acorn", "bakery", "cinema", "dairy", "ember", "florist", "garage", "harbour", "inkwell", "jewel", "kiosk"),
    *("laundry", "museum", "nursery", "orchard", "pharmacy", "quarry", "roastery", "stables", "tavern", "umbrella"),
    *("vineyard", "workshop", "yacht"),
)


def partner_names(count: int) -> list[str]:
    """Give so many partners' names."""
    return [NAMES[number] if number < len(NAMES) else f"shop_{number}" for number in range(count)]


@dataclass(frozen=True, slots=True)
class Timeline:
    """Moments in seconds after the load's begin. Trouble is staggered, and the end is calm again."""

    warm_s: float
    kill_s: float
    flood_s: float
    hang_s: float
    flood_end_s: float
    hang_end_s: float
    end_s: float

    @classmethod
    def of(cls, seconds: float) -> "Timeline":
        """Spread the drama over so many seconds: a third of calm, under a half of trouble, the rest calm."""
        return cls(
            limits.WARM_UP_MS / 1_000,
            seconds * 20 / 60,
            seconds * 26 / 60,
            seconds * 32 / 60,
            seconds * 41 / 60,
            seconds * 44 / 60,
            seconds,
        )

    def phase(self, at_s: float) -> str:
        """Name the phase of a moment."""
        if at_s < self.warm_s:
            return "warm-up"
        if at_s < self.kill_s:
            return "calm"
        return "trouble" if at_s < self.hang_end_s else "calm again"


@dataclass(frozen=True, slots=True)
class Cast:
    """Who plays what, and in which cell everybody lives."""

    cells: Mapping[str, str]  # partner -> cell
    killed: str
    flooding: str
    hanging: str

    def role(self, partner: str) -> Role:
        """Give a partner's part."""
        roles = {self.killed: Role.KILLED, self.flooding: Role.FLOODING, self.hanging: Role.HANGING}
        return roles.get(partner, Role.BYSTANDER)

    @property
    def bystanders(self) -> list[str]:
        """Everybody without a part of its own."""
        return [partner for partner in sorted(self.cells) if self.role(partner) is Role.BYSTANDER]

    @property
    def troubled_cells(self) -> set[str]:
        """The cells in which something goes wrong."""
        return {self.cells[partner] for partner in (self.killed, self.flooding, self.hanging)}


def choose(cells: Mapping[str, str], seed: int) -> Cast:
    """Choose the three at random, each in a cell of its own, where there are enough, and one cell left in peace."""
    dice = random.Random(seed)
    crowded = Counter(cells.values())
    # A victim with neighbours shows more.
    stages = sorted(crowded, key=lambda cell: (crowded[cell] < 2, dice.random()))
    stages = stages[: max(1, min(3, len(stages) - 1))]
    chosen: list[str] = []
    for number in range(3):
        stage = stages[number % len(stages)]
        free = sorted(partner for partner in cells if cells[partner] == stage and partner not in chosen)
        chosen.append(dice.choice(free or sorted(partner for partner in cells if partner not in chosen)))
    return Cast(dict(cells), *chosen)
