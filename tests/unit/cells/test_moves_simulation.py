"""A partner that moves there and back while messages get lost, doubled and late, and everything dies: a simulation.

Two cells and one partner, so that every message is likely to be met (simulated_installation.py). Hypothesis orders what
goes wrong.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cells import limits as cell_limits
from cells.api.messages import Method
from control_plane import limits, registry_moves
from control_plane.errors import ControlPlaneError
from control_plane.move_record import Move
from control_plane.moves import MoveAbortedError
from tests.unit.actors import virtual_time
from tests.unit.actors.scripted_acquirer import APPROVE, TIMEOUT_CHARGED, Step
from tests.unit.cells.simulated_cells import on_virtual_time
from tests.unit.cells.simulated_installation import (
    Place,
    Simulation,
    Trouble,
    Wish,
    messages_in_trouble,
    places,
    wishes,
    workers_in_trouble,
)

PARTNER = "alpha"
CELLS = ("cell-0", "cell-1")


@dataclass(frozen=True)
class Order:
    """What an operator does after a while."""

    after_s: float
    action: str  # move, abort, evacuate


ORDERS = st.lists(
    st.builds(
        Order,
        st.sampled_from([0.1, 0.5, 3.0, 12.0]),
        st.sampled_from(["move", "move", "move", "move", "abort", "evacuate"]),
    ),
    min_size=1,
    max_size=5,
)


class ThereAndBack(Simulation):
    """One run."""

    def __init__(
        self, troubles: dict[Place, Trouble], to_workers: dict[int, Trouble], acquirer: list[Step], *, shares: bool
    ) -> None:
        homes = {PARTNER: CELLS[0]}
        super().__init__(troubles, to_workers, acquirer, cells=CELLS, homes=homes, shares=shares)
        self.expected: set[str] = {CELLS[0]}

    async def operate(self, orders: list[Order]) -> None:
        for order in orders:
            await asyncio.sleep(order.after_s)
            await self.up.wait()
            home = self.registry.partner(PARTNER).cell
            other = CELLS[1 - CELLS.index(home)]
            # Until the answer is known it may be in either.
            self.expected = set(CELLS)
            work: Any = {
                "move": lambda target=other: self.moves.move(PARTNER, target, "ann"),
                "evacuate": lambda target=other: self._evacuate(target),
                "abort": lambda: self.moves.abort(PARTNER, "ann"),
            }[order.action]()
            asked = self.network.begin(work)
            await asyncio.wait({asked}, timeout=30)
            if not asked.done():
                continue
            error = asked.exception()
            if isinstance(error, MoveAbortedError):
                self.expected = {home}
            elif error is None and order.action != "abort":
                self.expected = {cast("Move", asked.result()).target}
            elif error is not None and not isinstance(error, ControlPlaneError):
                self.wrong.append(error)

    async def _evacuate(self, target: str) -> Move:
        """Take the partner over from its cell, though that may be alive."""
        if self.registry.move(PARTNER) is None:
            await registry_moves.begin_move(self.registry, self.moves.new_evacuation(PARTNER, target, "ann"))
        return await self.moves.move(PARTNER, target, "ann")

    async def check(self) -> None:
        assert self.registry.partner(PARTNER).cell in self.expected
        await super().check()


@pytest.fixture(autouse=True, scope="module")
def _simulated() -> Iterator[None]:
    with on_virtual_time() as patch:
        # Several batches of a book that is small.
        patch.setattr(cell_limits, "COPY_ROWS_MAX", 10)
        patch.setattr(limits, "MOVE_ROWS_LEFT_MAX", 4)
        yield


THERE_AND_BACK = [Order(0.1, "move"), Order(0.5, "move")]
PAYMENTS = [Wish(0.1, "pay", number % 2, 0) for number in range(8)]
LATE, LEAVING = Trouble("doubled", 1.5), Trouble("doubled", 0.7)


# What it found, or was made to find: a word of an earlier move comes late, when its partner left or is leaving again.
@example(troubles={0: LATE}, to_workers={}, orders=THERE_AND_BACK, wishes=PAYMENTS, acquirer=[], shares=False)
@example(troubles={0: LATE}, to_workers={}, orders=THERE_AND_BACK, wishes=PAYMENTS, acquirer=[], shares=True)
@example(
    troubles={0: LEAVING, (Method.OPEN_ARRIVAL, 1): Trouble("slow", 4.0)},
    to_workers={},
    orders=THERE_AND_BACK,
    wishes=PAYMENTS,
    acquirer=[],
    shares=True,
)
@given(
    troubles=st.dictionaries(places(50, 3), messages_in_trouble(CELLS, [PARTNER]), max_size=8),
    to_workers=st.dictionaries(st.integers(0, 60), workers_in_trouble(CELLS), max_size=4),
    orders=ORDERS,
    wishes=wishes(1, 25),
    acquirer=st.lists(st.sampled_from([APPROVE, TIMEOUT_CHARGED, Step(delay_ms=300)]), max_size=20),
    shares=st.booleans(),
)
def test_a_partner_on_the_move_in_trouble(
    troubles: dict[Place, Trouble],
    to_workers: dict[int, Trouble],
    orders: list[Order],
    wishes: list[Wish],
    acquirer: list[Step],
    shares: bool,
) -> None:
    async def run() -> None:
        simulation = ThereAndBack(troubles, to_workers, acquirer, shares=shares)
        await simulation.open()
        await asyncio.gather(simulation.operate(orders), simulation.wish(wishes))
        await simulation.calm_down()
        await simulation.check()

    virtual_time.run(run())
