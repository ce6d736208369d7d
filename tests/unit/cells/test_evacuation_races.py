"""Evacuations beside each other, beside drains and rebalancings, amid moves, and while doors come back."""

import asyncio
from collections.abc import Iterator

import pytest

from cells.api.messages import Answer, Method
from control_plane import limits
from control_plane.door_moves import CopyLostError
from control_plane.errors import DoorError
from control_plane.rebalancer import Bounds
from tests.unit.actors.virtual_time import in_virtual_time
from tests.unit.cells.evacuated_cells import CELLS, HOME, PARTNER, Installation, installed
from tests.unit.cells.simulated_cells import on_virtual_time

NAMES = [f"p{number}" for number in range(9)]
FAST = Bounds(per_hour=limits.REBALANCE_MOVES_PER_HOUR_MAX)


@pytest.fixture(autouse=True, scope="module")
def _simulated() -> Iterator[None]:
    with on_virtual_time():
        yield


async def populated(ground: Installation) -> None:
    """Onboard partners, three in each cell, each with a payment."""
    for number, name in enumerate(NAMES):
        await ground.onboard(name, CELLS[number % 3])
        assert isinstance(await ground.pay(CELLS[number % 3], "c1", name), Answer)


async def served(ground: Installation, *partner_ids: str, payments: int = 1) -> dict[str, str]:
    """See that each partner is served by one cell, the registry's, with all that it had; give that cell."""
    await asyncio.sleep(2)
    homes = {}
    for name in partner_ids:
        home = homes[name] = ground.registry.partner(name).cell
        assert ground.registry.move(name) is None
        assert len(await ground.payments(home, name)) == payments
        assert list(ground.owners(name)) == [home]
        assert isinstance(await ground.pay(home, "last", name), Answer)
    return homes


@in_virtual_time
async def test_the_same_cell_twice_at_once_is_evacuated_once() -> None:
    async with installed() as ground:
        await populated(ground)
        await ground.die("cell-1", killed=True)
        first, second = await asyncio.gather(ground.evacuate("cell-1"), ground.evacuate("cell-1"))
        assert (first["begun"], second["begun"]) == (3, 0)
        assert first["targets"] == second["targets"]
        await ground.settled(*NAMES)
        homes = await served(ground, *NAMES)
        assert {name: homes[name] for name in first["targets"]} == first["targets"]


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "silent"])
@in_virtual_time
async def test_two_cells_at_once_go_to_the_third(killed: bool) -> None:
    async with installed() as ground:
        await populated(ground)
        for cell in ("cell-0", "cell-1"):
            await ground.die(cell, killed=killed)
        await asyncio.gather(ground.evacuate("cell-0"), ground.evacuate("cell-1"))
        await ground.settled(*NAMES)
        assert set((await served(ground, *NAMES)).values()) == {"cell-2"}
        for cell in ("cell-0", "cell-1"):
            await ground.come_back(cell)
        await ground.tell()
        assert not ground.registry.burials()


async def rebalanced(ground: Installation) -> None:
    """Go on with the run, and with others where it was stopped or left somebody out, until nobody is to be drained."""
    async with asyncio.timeout(3_600):
        while True:
            await ground.rebalancer.work()
            await ground.moves.resume()
            await asyncio.sleep(1)
            run = (await ground.rebalancer.status())["run"]
            if run["state"] == "running" or ground.registry.moves():
                continue
            if run["state"] == "done" and not (await ground.rebalancer.plan("drain", FAST)).moves:
                return
            await ground.rebalancer.apply("drain", FAST, "ann")


@pytest.mark.parametrize("dead", CELLS[:2], ids=["a target of it", "the drained one"])
@in_virtual_time
async def test_an_evacuation_beside_a_drain_and_its_rebalancing(dead: str) -> None:
    async with installed() as ground:
        await populated(ground)
        await ground.evacuation._fleet.drain("cell-1", "ann", dry_run=False)
        await ground.rebalancer.apply("drain", FAST, "ann")
        await ground.rebalancer.work()
        await asyncio.sleep(0.002)  # the moves are on their way
        assert ground.registry.moves()
        await ground.die(dead, killed=True)
        await ground.evacuate(dead)
        for _ in range(60):
            await ground.rebalancer.work()
            await ground.moves.resume()
            await asyncio.sleep(1)
        # Everybody is served, whether or not a move waits for the dead cell to forget it.
        for name in NAMES:
            home = ground.registry.partner(name).cell
            assert home != dead
            assert isinstance(await ground.pay(home, "c2", name), Answer)
            assert list(ground.owners(name)) == [home]
        await ground.come_back(dead)
        await ground.tell()
        assert not ground.registry.burials()
        await rebalanced(ground)
        homes = await served(ground, *NAMES, payments=2)
        assert set(homes.values()) == set(CELLS) - {"cell-1", dead}


# Where a hand-over to cell-1 is when a cell dies: its step, whether the partner is sealed by then, and the row's state.
STEPS = [
    ("before", Method.BEGIN_ARRIVAL, False, "copying"),
    ("after", Method.BEGIN_ARRIVAL, False, "copying"),
    ("before", Method.BEGIN_LEAVING, False, "copying"),
    ("after", Method.BEGIN_LEAVING, False, "copying"),
    ("before", Method.QUIESCE, False, "sealing"),
    ("after", Method.QUIESCE, False, "sealing"),
    ("before", Method.SEAL, False, "sealing"),
    ("after", Method.SEAL, True, "sealing"),
    ("before", Method.OPEN_ARRIVAL, True, "sealing"),
    ("after", Method.OPEN_ARRIVAL, True, "sealing"),
]


async def die_amid_a_move(ground: Installation, dead: str, when: str, step: str, state: str, *, killed: bool) -> None:
    """Have a cell die at a step of the partner's move to cell-1."""
    await ground.onboard()
    assert isinstance(await ground.pay(HOME, "c1"), Answer)
    died = asyncio.Event()

    async def die() -> None:
        found = ground.registry.move(PARTNER)
        assert found is not None
        assert found.state == state
        await ground.die(dead, killed=killed)
        died.set()
        raise DoorError("as the test ordered")

    getattr(ground.doors, when)[step] = die
    await ground.moves.start(PARTNER, "cell-1", "ann")
    async with asyncio.timeout(30):
        await died.wait()


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "silent"])
@pytest.mark.parametrize("waits_s", [0.0, 3.0])
@pytest.mark.parametrize(("when", "step", "_is_sealed", "state"), STEPS)
@in_virtual_time
async def test_the_source_dies_amid_a_move_and_is_evacuated(
    when: str, step: str, _is_sealed: bool, state: str, waits_s: float, killed: bool
) -> None:
    async with installed() as ground:
        await die_amid_a_move(ground, HOME, when, step, state, killed=killed)
        await asyncio.sleep(waits_s)
        await ground.evacuate(HOME)
        await ground.settled()
        assert (await served(ground, PARTNER))[PARTNER] in {"cell-1", "cell-2"}
        await ground.come_back(HOME)
        await ground.tell()
        assert not ground.registry.burials()
        assert list(ground.owners()) == [ground.registry.partner(PARTNER).cell]


@pytest.mark.parametrize("target_dies", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
@in_virtual_time
async def test_the_source_dies_as_its_move_is_taken_back_and_the_target_was_told_so(
    when: str, target_dies: bool
) -> None:
    async with installed() as ground:
        await ground.onboard()
        assert isinstance(await ground.pay(HOME, "c1"), Answer)
        reached = asyncio.Event()

        async def hang() -> None:
            reached.set()
            await asyncio.Event().wait()

        async def lose() -> None:
            ground.doors.before[Method.BEGIN_LEAVING] = lose
            raise CopyLostError("as the test ordered")

        ground.doors.before[Method.BEGIN_LEAVING] = lose
        getattr(ground.doors, when)[Method.END_ARRIVAL] = hang
        await ground.moves.start(PARTNER, "cell-1", "ann")
        async with asyncio.timeout(600):
            await reached.wait()
        held = ground.registry.move(PARTNER)
        assert held is not None
        assert held.state == "aborting"
        dead = [HOME, "cell-1"] if target_dies else [HOME]
        for cell in dead:
            await ground.die(cell, killed=True)
            await ground.evacuate(cell)
        await ground.settled()
        assert (await served(ground, PARTNER))[PARTNER] in {"cell-1", "cell-2"} - set(dead)
        for cell in dead:
            await ground.come_back(cell)
        await ground.tell()
        assert PARTNER not in ground.cells["cell-1"].door._arrivals.expected
        assert not ground.registry.burials()
        assert list(ground.owners()) == [ground.registry.partner(PARTNER).cell]


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "silent"])
@pytest.mark.parametrize("waits_s", [0.0, 3.0])
@pytest.mark.parametrize(("when", "step", "is_sealed", "state"), STEPS)
@in_virtual_time
async def test_the_target_dies_amid_a_move_and_is_evacuated(
    when: str, step: str, is_sealed: bool, state: str, waits_s: float, killed: bool
) -> None:
    async with installed() as ground:
        await die_amid_a_move(ground, "cell-1", when, step, state, killed=killed)
        await asyncio.sleep(waits_s)
        await ground.evacuate("cell-1")
        await asyncio.sleep(60)
        assert ground.registry.move(PARTNER) is None, "no move waits for the dead cell"
        home = ground.registry.partner(PARTNER).cell
        if home == HOME:
            assert not is_sealed, "it was taken back"
        else:
            # It was sealed, or about to be as the cell was evacuated: then it is not asked whether it was.
            assert home == "cell-2"
            assert is_sealed or (state, waits_s) == ("sealing", 0.0)
        assert "cell-1" in {burial.cell for burial in ground.registry.burials()}
        assert await served(ground, PARTNER) == {PARTNER: home}
        await ground.come_back("cell-1")
        await ground.tell()
        assert not ground.registry.burials()
        assert list(ground.owners()) == [home]
        # By now it may go there again.
        await ground.moves.move(PARTNER, "cell-1", "ann")
        assert await served(ground, PARTNER, payments=2) == {PARTNER: "cell-1"}


@pytest.mark.parametrize("state", ["clearing", "erasing"])
@in_virtual_time
async def test_the_target_dies_when_the_partner_has_just_come(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    async with installed() as ground:
        await ground.onboard()
        await ground.pay(HOME, "c1")
        step = {"clearing": "_compare", "erasing": "_erase"}[state]
        reached = asyncio.Event()

        async def hang(_move: object) -> None:
            reached.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(ground.moves, step, hang)
        await ground.moves.start(PARTNER, "cell-1", "ann")
        await reached.wait()
        monkeypatch.undo()
        await ground.die("cell-1", killed=True)
        await ground.evacuate("cell-1")
        await ground.settled()
        # The first cell gave it away by itself, so it may have it again.
        assert (await served(ground, PARTNER))[PARTNER] in {HOME, "cell-2"}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", [Method.BEGIN_ARRIVAL, Method.OPEN_ARRIVAL])
@in_virtual_time
async def test_the_dead_cells_door_comes_back_amid_its_evacuation(when: str, step: str) -> None:
    async with installed() as ground:
        await ground.onboard()
        await ground.pay(HOME, "c1")
        await ground.die(HOME, killed=True)

        async def come_back() -> None:
            await ground.come_back(HOME)
            await asyncio.sleep(0.5)  # it serves the partner again, where it still has the book

        getattr(ground.doors, when)[step] = come_back
        told = await ground.evacuate(HOME)
        await ground.settled()
        assert await served(ground, PARTNER) == told["targets"]
        await ground.tell()
        assert not ground.registry.burials()
        assert list(ground.owners()) == [told["targets"][PARTNER]]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", [Method.BEGIN_ARRIVAL, Method.OPEN_ARRIVAL])
@in_virtual_time
async def test_the_target_s_door_is_started_anew_amid_an_evacuation(when: str, step: str) -> None:
    async with installed() as ground:
        await ground.onboard()
        await ground.pay(HOME, "c1")
        await ground.die(HOME, killed=True)

        async def restart() -> None:
            move = ground.registry.move(PARTNER)
            assert move is not None
            ground.cells[move.target].kill_door(1.0)

        getattr(ground.doors, when)[step] = restart
        told = await ground.evacuate(HOME)
        await ground.settled()
        assert await served(ground, PARTNER) == told["targets"]


@in_virtual_time
async def test_the_second_dead_cell_comes_back_amid_the_takeover_by_the_third() -> None:
    async with installed() as ground:
        await ground.onboard()
        await ground.pay(HOME, "c1")
        await ground.die(HOME, killed=True)
        second = (await ground.evacuate(HOME))["targets"][PARTNER]
        await ground.die(second, killed=False)
        late = [request for cell, request in ground.doors.said if cell == second]

        async def come_back() -> None:
            await ground.come_back(second)
            for request in late:
                await ground.cells[second].handle(request)
            await asyncio.sleep(0.5)

        ground.doors.before[Method.OPEN_ARRIVAL] = come_back
        told = await ground.evacuate(second)
        await ground.settled()
        assert await served(ground, PARTNER) == told["targets"]


@in_virtual_time
async def test_who_waits_for_a_move_that_an_evacuation_replaces_is_told_so_by_its_end() -> None:
    async with installed() as ground:
        await ground.onboard()

        async def die() -> None:
            await ground.die("cell-1", killed=True)

        ground.doors.after[Method.SEAL] = die
        waiting = await ground.moves.start(PARTNER, "cell-1", "ann")
        await asyncio.sleep(1)
        await ground.evacuate("cell-1")
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        await ground.settled()
        assert ground.registry.partner(PARTNER).cell == "cell-2"


@in_virtual_time
async def test_an_abort_that_an_evacuation_overtakes_leaves_the_takeover_alone() -> None:
    async with installed() as ground:
        await die_amid_a_move(ground, HOME, "before", Method.BEGIN_LEAVING, "copying", killed=True)
        aborting = asyncio.create_task(ground.moves.abort(PARTNER, "ann"))
        await asyncio.gather(ground.evacuate(HOME), aborting, return_exceptions=True)
        await ground.settled()
        assert (await served(ground, PARTNER))[PARTNER] in {"cell-1", "cell-2"}
