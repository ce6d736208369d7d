"""Three cells and several partners, moved, rebalanced, drained and evacuated while messages and processes fail.

The real rebalancer, moves and evacuation (simulated_installation.py). Hypothesis orders what operators do and what goes
wrong; HYPOTHESIS_PROFILE=thorough tries many more. In the end everything is rebalanced in peace, and everybody has to
be where the hash says.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cells import limits as cell_limits
from cells.api.messages import Method
from control_plane import limits
from control_plane.cell_rules import drained, weighted
from control_plane.errors import ControlPlaneError
from control_plane.evacuation import Evacuation
from control_plane.moves_mover import MovesMover
from control_plane.publishing import cells_of_directory
from control_plane.rebalancer import Answers, Bounds, Rebalancer
from control_plane.rebalancing import Resident
from control_plane.registry import Registry
from router import directory
from tests.unit.actors import virtual_time
from tests.unit.actors.scripted_acquirer import APPROVE, TIMEOUT_CHARGED, Step
from tests.unit.cells.simulated_cells import Life, on_virtual_time
from tests.unit.cells.simulated_installation import (
    Place,
    SimulatedDoors,
    Simulation,
    Trouble,
    Wish,
    messages_in_trouble,
    places,
    wishes,
    workers_in_trouble,
)

CELLS = ("cell-0", "cell-1", "cell-2")
PARTNERS = ("alpha", "beta", "gamma", "delta")
HOMES = {partner: CELLS[number % 3] for number, partner in enumerate(PARTNERS)}
BOUNDS = Bounds(at_once=2, per_hour=limits.REBALANCE_MOVES_PER_HOUR_MAX)
# More than a killed door is away, but for the one that is away the longest.
EVACUATE_AFTER_S = 6
CUT_OFF_S = 15


@dataclass(frozen=True)
class Order:
    """What an operator does after a while, or (`cut`) what befalls the way to a cell for as long as CUT_OFF_S."""

    after_s: float
    action: str  # move, abort, hash, load, drain, pause, end, drain_cell, weigh, evacuate, cut
    cell: int = 0
    partner: int = 0


# The more often one stands here, the more often it is tried.
ACTIONS = (
    *("move", "move", "abort"),
    *("hash", "hash", "load", "drain", "pause", "end"),
    *("drain_cell", "weigh", "evacuate", "evacuate", "cut"),
)
ORDERS = st.lists(
    st.builds(
        Order,
        st.sampled_from([0.1, 0.5, 3.0, 12.0]),
        st.sampled_from(ACTIONS),
        st.integers(0, len(CELLS) - 1),
        st.integers(0, len(PARTNERS) - 1),
    ),
    min_size=1,
    max_size=8,
)


class Fleet:
    """What evacuation and the operators here ask of the fleet."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def drain(self, name: str, who: str, *, dry_run: bool) -> None:
        assert not dry_run
        cell = drained(self._registry.cell(name), self._registry.cells())
        await self._registry.write_cells([cell], who, "cell_draining", cell=name)

    async def weigh(self, name: str) -> None:
        cell = weighted(self._registry.cell(name), 1.0, self._registry.cells())
        await self._registry.write_cells([cell], "ann", "cell_weight", cell=name)


class Rebalanced(Simulation):
    """One run."""

    def __init__(
        self, troubles: dict[Place, Trouble], to_workers: dict[int, Trouble], acquirer: list[Step], *, shares: bool
    ) -> None:
        super().__init__(troubles, to_workers, acquirer, cells=CELLS, homes=HOMES, shares=shares)
        self.rebalancer: Rebalancer
        self.evacuation: Evacuation
        self.fleet: Fleet

    def make_control_plane(self, life: Life) -> None:
        super().make_control_plane(life)
        loop = asyncio.get_running_loop()
        self.fleet = Fleet(self.registry)
        self.rebalancer = Rebalancer(
            self.registry,
            MovesMover(self.moves),
            self,
            now_ms=lambda: int(loop.time() * 1_000),
            monotonic_ms=lambda: int(loop.time() * 1_000),
        )
        self.evacuation = Evacuation(
            self.registry,
            self.fleet,  # type: ignore[arg-type]
            self.moves,
            SimulatedDoors(self, life),
            lambda: self.places,
            after_s=EVACUATE_AFTER_S,
            monotonic=loop.time,
        )
        self.ever.append((self.rebalancer, self.evacuation))

    async def look(self) -> None:
        await super().look()
        await self.rebalancer.work()
        if not self.calm:
            await self.evacuation.watch()

    # What the rebalancer sees

    async def answers(self) -> Answers:
        return Answers(0, 0)

    async def residents(self) -> list[Resident]:
        return [Resident(one.id, one.cell, 1.0 + len(one.id), 1_000) for one in self.registry.partners()]

    # What operators do

    async def operate(self, orders: list[Order]) -> None:
        for order in orders:
            await asyncio.sleep(order.after_s)
            await self.up.wait()
            asked = self.network.begin(self._act(order))
            await asyncio.wait({asked}, timeout=30)
            if asked.done() and not asked.cancelled():
                error = asked.exception()
                if error is not None and not isinstance(error, ControlPlaneError):
                    self.wrong.append(error)

    async def _act(self, order: Order) -> None:
        cell, partner = CELLS[order.cell], PARTNERS[order.partner]
        match order.action:
            case "move":
                await self.moves.move(partner, cell, "ann")
            case "abort":
                await self.moves.abort(partner, "ann")
            case "hash" | "load" | "drain":
                await self.rebalancer.apply(order.action, BOUNDS, "ann")
            case "pause":
                await self.rebalancer.pause("ann")
            case "end":
                await self.rebalancer.abort("ann")
            case "drain_cell":
                await self.fleet.drain(cell, "ann", dry_run=False)
            case "weigh":
                await self.fleet.weigh(cell)
            case "evacuate":
                await self.evacuation.evacuate(cell, "ann", force=True, dry_run=False)
            case "cut":
                self.cut_off.add(cell)
                asyncio.get_running_loop().call_later(CUT_OFF_S, self.cut_off.discard, cell)

    # The end

    async def rebalance_in_peace(self) -> None:
        """End what runs, and move everybody to where the hash says by now."""
        run = (await self.rebalancer.status())["run"]
        if run is not None and run["state"] in {"running", "paused", "stopped"}:
            await self.rebalancer.abort("ann")
        await self.rebalanced()
        await self.rebalancer.apply("hash", BOUNDS, "ann")
        await self.rebalanced()
        status = await self.rebalancer.status()
        assert status["run"]["state"] == "done", status
        assert status["counts"]["failed"] == status["counts"]["skipped"] == 0, status
        cells = cells_of_directory(self.registry.cells())
        assert {one.id: one.cell for one in self.registry.partners()} == {
            partner: directory.rendezvous(partner, cells) for partner in PARTNERS
        }

    async def rebalanced(self) -> None:
        """Wait until no run goes on, nor what it began."""
        loop = asyncio.get_running_loop()
        until = loop.time() + 3_600
        while True:
            status = await self.rebalancer.status()
            is_running = status["run"] is not None and status["run"]["state"] == "running"
            if not is_running and not status["counts"]["moving"]:
                break
            assert loop.time() < until, status
            await asyncio.sleep(1)
        await self.settled()


@pytest.fixture(autouse=True, scope="module")
def _simulated() -> Iterator[None]:
    with on_virtual_time() as patch:
        # Several batches of a book that is small.
        patch.setattr(cell_limits, "COPY_ROWS_MAX", 10)
        patch.setattr(limits, "MOVE_ROWS_LEFT_MAX", 4)
        yield


PAYMENTS = [Wish(0.1, "pay", number % 2, 0, number % len(PARTNERS)) for number in range(8)]


# The cells that take over die one after the other; everything at once.
@example(
    troubles={(Method.OPEN_ARRIVAL, 0): Trouble("dies", 9.0, "door 1", is_before=True)},
    to_workers={},
    orders=[Order(0.5, "evacuate", 0), Order(0.5, "evacuate", 1), Order(0.5, "evacuate", 2)],
    wishes=PAYMENTS,
    acquirer=[],
    shares=True,
)
@example(
    troubles={(Method.OPEN_ARRIVAL, 1): Trouble("dies", 9.0, "control"), 20: Trouble("doubled", 9.0)},
    to_workers={},
    orders=[Order(0.1, "drain_cell", 1), Order(0.1, "drain"), Order(0.1, "evacuate", 0), Order(12.0, "weigh", 0)],
    wishes=PAYMENTS,
    acquirer=[],
    shares=True,
)
@given(
    troubles=st.dictionaries(places(120, 8), messages_in_trouble(CELLS, PARTNERS), max_size=10),
    to_workers=st.dictionaries(st.integers(0, 100), workers_in_trouble(CELLS), max_size=5),
    orders=ORDERS,
    wishes=wishes(len(PARTNERS), 25),
    acquirer=st.lists(st.sampled_from([APPROVE, TIMEOUT_CHARGED, Step(delay_ms=300)]), max_size=20),
    shares=st.booleans(),
)
def test_partners_are_rebalanced_and_evacuated_in_trouble(
    troubles: dict[Place, Trouble],
    to_workers: dict[int, Trouble],
    orders: list[Order],
    wishes: list[Wish],
    acquirer: list[Step],
    shares: bool,
) -> None:
    async def run() -> None:
        simulation = Rebalanced(troubles, to_workers, acquirer, shares=shares)
        await simulation.open()
        await asyncio.gather(simulation.operate(orders), simulation.wish(wishes))
        await simulation.calm_down()
        await simulation.rebalance_in_peace()
        await simulation.check()

    virtual_time.run(run())
