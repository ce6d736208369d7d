"""Who moves where so that partners are where they belong, and what that costs. Pure: rebalancer.py carries it out.

    by hash    everybody to the cell that weighted rendezvous hashing names: no override is left. Where one cell was
               added to N - 1, that is about 1/N of the partners, all of them to it; nobody else moves.
    by load    requests a second and bytes are evened out over the cells' weights, with few moves. Greedy, for the best
               plan is a packing problem: from the cell that is furthest above its share the move is taken that lowers
               the squared distance to the shares most, until each is within the tolerance or no move helps.
    drain      only those in cells that take no partners go, to where the hash names.

A plan moves nobody twice, and the plan of what it leads to is empty.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from control_plane import limits
from router import directory

By = Literal["hash", "load", "drain"]

# What of a partner counts, in this order.
_DIMENSIONS: Final = 2


@dataclass(frozen=True, slots=True)
class Resident:
    """A partner where it is, and what it weighs there."""

    id: str
    cell: str
    requests_per_second: float = 0.0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class PlannedMove:
    """One partner's way."""

    partner_id: str
    from_cell: str
    to_cell: str
    bytes: int


@dataclass(frozen=True, slots=True)
class CellLoad:
    """What is in a cell before and after. `share`: which part of all should be there, by its weight."""

    cell: str
    share: float
    partners: tuple[int, int]
    requests_per_second: tuple[float, float]
    bytes: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done, why it looks so, and what it costs. Pauses are expected ones, of each partner by itself.

    `id` names what is to be done, so that it can be asked for again.
    """

    id: str
    by: By
    moves: tuple[PlannedMove, ...]
    cells: tuple[CellLoad, ...]
    overrides: tuple[int, int]  # partners that are not where the hash puts them, before and after
    bytes: int
    pause_ms: int
    duration_s: int
    notes: tuple[str, ...] = ()


def plan(
    by: By,
    cells: Sequence[directory.Cell],
    residents: Sequence[Resident],
    *,
    moves_per_hour: int = limits.REBALANCE_MOVES_PER_HOUR_DEFAULT,
    pause_ms: int = limits.REBALANCE_PAUSE_MS_EXPECTED,
) -> Plan:
    """Give the plan. Partners of cells that are not among these are moved by all three."""
    assert any(cell.weight > 0 for cell in cells), "there is always a cell that takes partners"
    homes = {resident.id: _home(resident.id, cells) for resident in residents}
    notes: tuple[str, ...] = ()
    match by:
        case "hash":
            goals: Mapping[str, str] = homes
        case "drain":
            takes = {cell.name for cell in cells if cell.weight > 0}
            goals = {one.id: one.cell if one.cell in takes else homes[one.id] for one in residents}
        case "load":
            levelling = _Levelling(cells, residents)
            goals, notes = levelling.run(), levelling.notes
    moves = tuple(
        PlannedMove(one.id, one.cell, goals[one.id], one.bytes)
        for one in sorted(residents, key=lambda one: (one.bytes, one.id))  # what is quickly done, first
        if goals[one.id] != one.cell
    )
    return Plan(
        id=name_of(by, ((move.partner_id, move.from_cell, move.to_cell) for move in moves)),
        by=by,
        moves=moves,
        cells=_loads(cells, residents, goals),
        overrides=(
            sum(one.cell != homes[one.id] for one in residents),
            sum(goals[one.id] != homes[one.id] for one in residents),
        ),
        bytes=sum(move.bytes for move in moves),
        pause_ms=pause_ms,
        duration_s=max(len(moves) - 1, 0) // moves_per_hour * 3_600 + len(moves) * limits.REBALANCE_MOVE_S_EXPECTED,
        notes=notes,
    )


def name_of(by: str, moves: Iterable[tuple[str, str, str]]) -> str:
    """Give the id of a plan with these moves (partner, from, to), in whatever order: a hash, the same wherever."""
    text = json.dumps([by, sorted(moves)])
    return hashlib.sha256(text.encode()).hexdigest()[: limits.REBALANCE_PLAN_ID_CHARACTERS]


def _home(partner_id: str, cells: Sequence[directory.Cell]) -> str:
    home = directory.rendezvous(partner_id, cells)
    assert home is not None
    return home


def _loads(
    cells: Sequence[directory.Cell], residents: Sequence[Resident], goals: Mapping[str, str]
) -> tuple[CellLoad, ...]:
    total = sum(cell.weight for cell in cells)
    counts: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    sizes: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    rates: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for one in residents:
        for when, cell in enumerate((one.cell, goals[one.id])):
            counts[when][cell] += 1
            sizes[when][cell] += one.bytes
            rates[when][cell] = rates[when].get(cell, 0.0) + one.requests_per_second
    weights = {cell.name: cell.weight for cell in cells}
    names = [*weights, *sorted({one.cell for one in residents} - weights.keys())]
    return tuple(
        CellLoad(
            cell=name,
            share=weights.get(name, 0.0) / total,
            partners=(counts[0][name], counts[1][name]),
            requests_per_second=(rates[0].get(name, 0.0), rates[1].get(name, 0.0)),
            bytes=(sizes[0][name], sizes[1][name]),
        )
        for name in names
    )


@dataclass(slots=True)
class _Bin:
    """A cell that takes partners. `above`: by how much of all it has more than its share, in each dimension."""

    share: float
    above: list[float]
    residents: dict[str, tuple[float, float]] = field(default_factory=dict)

    def weigh(self) -> None:
        """Sum its residents up anew, exactly: what came and went leaves no trace that a choice depends on."""
        self.above = [
            math.fsum(parts[index] for parts in self.residents.values()) - self.share for index in range(_DIMENSIONS)
        ]

    def excess(self) -> float:
        """Give by which part of its share it is above it, where it is most."""
        return max(above / self.share for above in self.above)


class _Levelling:
    """Greedy levelling. A partner's parts are of all that there is, so that dimensions can be compared.

    The sum over cells of (part - share)^2 / share falls by each move taken, so none is taken back and it ends; which
    one is next depends on who is where alone, so where it ended it has nothing more to do.
    """

    def __init__(self, cells: Sequence[directory.Cell], residents: Iterable[Resident]) -> None:
        residents = sorted(residents, key=lambda one: one.id)
        totals = (sum(one.requests_per_second for one in residents), sum(one.bytes for one in residents))
        self.notes: tuple[str, ...] = ()
        unknown = [name for name, total in zip(("requests", "bytes"), totals, strict=True) if not total]
        if unknown:
            instead = "the number of partners" if len(unknown) == _DIMENSIONS else "the other alone"
            self.notes = (f"no {' and no '.join(unknown)} are known of any partner: {instead} is evened out",)
        self._parts = {one.id: _parts(one, totals, len(residents)) for one in residents}
        total = sum(cell.weight for cell in cells)
        self._bins = {
            cell.name: _Bin(cell.weight / total, [-cell.weight / total] * _DIMENSIONS)
            for cell in sorted(cells, key=lambda cell: cell.name)
            if cell.weight > 0
        }
        self._homeless = [one.id for one in residents if one.cell not in self._bins]
        for one in residents:
            if one.cell in self._bins:
                self._bins[one.cell].residents[one.id] = self._parts[one.id]
        for found in self._bins.values():
            found.weigh()

    def run(self) -> dict[str, str]:
        """Give each partner's cell."""
        for partner_id in sorted(self._homeless, key=lambda name: (-sum(self._parts[name]), name)):
            parts = self._parts[partner_id]
            self._put(partner_id, min(self._bins, key=lambda name: (_cost(parts, self._bins[name]), name)))
        while self._improve():
            pass
        return {partner_id: cell for cell, found in self._bins.items() for partner_id in found.residents}

    def _improve(self) -> bool:
        """Take the best move from the cell that is most above its share and can be helped; False: there is none."""
        hottest = sorted(self._bins, key=lambda name: (-self._bins[name].excess(), name))
        for source in hottest:
            if self._bins[source].excess() <= limits.REBALANCE_LOAD_TOLERANCE:
                return False
            # The coldest are the best targets; to look at all would take long with many cells.
            targets = [name for name in reversed(hottest) if name != source][: limits.REBALANCE_TARGETS_MAX]
            best = min(self._best(source, target) for target in targets) if targets else (0.0, "", "")
            if best[0] < -limits.REBALANCE_GAIN_MIN:
                self._take(best[1], source)
                self._put(best[1], best[2])
                return True
        return False

    def _best(self, source: str, target: str) -> tuple[float, str, str]:
        """Give what the best move between two cells changes, and whose it is. This is where the time goes."""
        here, there = self._bins[source], self._bins[target]
        square = 1 / here.share + 1 / there.share
        first, second = (
            2 * (above_there / there.share - above_here / here.share)
            for above_here, above_there in zip(here.above, there.above, strict=True)
        )
        change, partner_id = min(
            (square * (one * one + two * two) + first * one + second * two, partner_id)
            for partner_id, (one, two) in here.residents.items()
        )
        return change, partner_id, target

    def _put(self, partner_id: str, cell: str) -> None:
        found = self._bins[cell]
        found.residents[partner_id] = self._parts[partner_id]
        found.weigh()

    def _take(self, partner_id: str, cell: str) -> None:
        found = self._bins[cell]
        del found.residents[partner_id]
        found.weigh()


def _parts(one: Resident, totals: tuple[float, int], count: int) -> tuple[float, float]:
    if not any(totals):
        return 1 / count, 1 / count
    parts = [
        value / total if total else None
        for value, total in zip((one.requests_per_second, one.bytes), totals, strict=True)
    ]
    known = next(part for part in parts if part is not None)
    first, second = (known if part is None else part for part in parts)
    return first, second


def _cost(parts: tuple[float, float], found: _Bin) -> float:
    """Give by how much the squared distance to its share changes where a partner comes to a cell."""
    changes = (part * (part + 2 * above) for part, above in zip(parts, found.above, strict=True))
    return sum(changes) / found.share
