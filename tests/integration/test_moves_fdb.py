"""Partners move between cells that share a FoundationDB cluster: nothing is copied, and a dead cell is evacuated."""

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.errors import FencedError, StoreUnavailableError
from cells import limits as cell_limits
from cells.api.messages import Answer, Method, RefusalCode
from control_plane import limits, registry_moves
from control_plane.burials import Burials
from control_plane.errors import DoorError, RefusedError
from stores.fdb_cluster import Cluster
from stores.shelf import open_shelf
from tests.contract.stores import _remove_directory, cluster_file, needs_cluster
from tests.stand_in_cluster import StandInCluster, WorkerMaker
from tests.unit.cells.open_cell import code
from tests.unit.cells.two_cells import PARTNER, Installed, installed_at

pytestmark = needs_cluster


@pytest.fixture
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[StandInCluster]]:
    maker = WorkerMaker(tmp_path_factory.mktemp("maker") / "errors.log")
    made = [StandInCluster(maker) for _ in range(3)]
    yield made
    for cluster in made:
        cluster.end()
    maker.end()


@pytest.fixture
async def shared(tmp_path: Path, clusters: list[StandInCluster]) -> AsyncIterator[Installed]:
    file = cluster_file()
    assert file is not None
    root = ("bulkhead-tests", secrets.token_hex(8))
    places: dict[str, dict[str, Any]] = {
        name: {"store": "fdb", "cluster_file": str(file), "path": [*root, "cells", name]}
        for name in ("cell-0", "cell-1", "cell-2")
    }
    async with installed_at(tmp_path, clusters, places) as made:
        yield made
    await _remove_directory(Cluster(file), root)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOVE_RETRY_DELAY_MS_MIN", 10)
    monkeypatch.setattr(cell_limits, "QUIESCE_LEASE_MS", 1_000)


async def test_nothing_is_copied_and_everything_is_there(shared: Installed) -> None:
    await shared.onboard()
    for number in range(3):
        await shared.write(shared.source, f"c{number}")
    before = await shared.payments(shared.source)
    first = (await shared.source.partner(PARTNER))["epoch"]
    ended = await shared.moves.move(PARTNER, "cell-1", "ann")
    print(f"pause {ended.pause_ms} ms")  # noqa: T201
    assert ended.way == "hand_over"
    assert not {Method.COPY_ROWS, Method.TAKE_ROWS, Method.ERASE_MOVED} & set(shared.doors.asked)
    assert await shared.payments(shared.target) == before
    assert (await shared.target.partner(PARTNER))["epoch"] > first
    assert code(await shared.write(shared.source, "late")) is RefusalCode.PARTNER_MOVED
    await shared.moves.move(PARTNER, "cell-0", "ann")
    assert await shared.payments(shared.source) == before


@pytest.mark.parametrize("step", [Method.BEGIN_ARRIVAL, Method.QUIESCE, Method.SEAL])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_the_control_plane_dies_at_a_step(shared: Installed, step: str, when: str) -> None:
    await shared.onboard()
    await shared.write(shared.source, "c1")

    async def die() -> None:
        raise asyncio.CancelledError

    getattr(shared.doors, when)[step] = die
    task = await shared.moves.start(PARTNER, "cell-1", "ann")
    await asyncio.wait([task])
    shared.again()
    await shared.moves.resume()
    await asyncio.wait_for(asyncio.gather(*shared.moves._tasks.values()), 30)
    assert shared.registry.partner(PARTNER).cell == "cell-1"
    assert len(await shared.payments(shared.target)) == 1


@pytest.mark.parametrize("when", ["before", "after"])
async def test_the_targets_door_dies_as_it_takes_the_book_over(shared: Installed, when: str) -> None:
    await shared.onboard()
    await shared.write(shared.source, "c1")

    async def die() -> None:
        await shared.target.close()
        await shared.target.open(1)

    getattr(shared.doors, when)[Method.OPEN_ARRIVAL] = die
    await asyncio.wait_for(shared.moves.move(PARTNER, "cell-1", "ann"), 30)
    assert len(await shared.payments(shared.target)) == 1


async def evacuate(shared: Installed) -> None:
    """As control_plane/evacuation.py does it, without the other cells' weights."""
    await shared.moves.halt([PARTNER])
    held = shared.registry.move(PARTNER)
    move = shared.moves.new_evacuation(PARTNER, "cell-1", "ann") if held is None else held.as_evacuation()
    await registry_moves.begin_evacuation(shared.registry, "cell-0", lambda: [move], "ann")
    await shared.moves.resume()
    await asyncio.gather(*shared.moves._tasks.values())


async def tell(shared: Installed) -> None:
    """Tell dead cells, once, what they missed."""
    burials = Burials(shared.registry, shared.moves._doors)
    await burials.tell()
    await asyncio.gather(*burials._telling.values())


async def test_a_dead_cells_partner_is_taken_over_and_its_zombie_is_fenced(shared: Installed) -> None:
    await shared.onboard()
    await shared.write(shared.source, "c1")
    pid = shared.source.link(PARTNER).endpoint.pid
    os.kill(pid, signal.SIGSTOP)  # the cell is dead for all that can be told from outside
    await shared.source.close()
    shared.doors.dead.add("cell-0")
    await asyncio.wait_for(evacuate(shared), 30)
    await tell(shared)
    assert [burial.cell for burial in shared.registry.burials()] == ["cell-0"]
    with pytest.raises(RefusedError, match="cell-0 was not told yet"):
        await shared.moves.move(PARTNER, "cell-0", "ann")
    assert len(await shared.payments(shared.target)) == 1
    assert isinstance(await shared.write(shared.target, "c2"), Answer)
    os.kill(pid, signal.SIGCONT)
    await shared.source.open(1)  # it is back, and believes that the partner is its own
    shared.doors.dead.clear()
    await tell(shared)
    assert not shared.registry.burials()
    assert code(await shared.write(shared.source, "c3")) is RefusalCode.PARTNER_MOVED
    assert len(await shared.payments(shared.target)) == 2


async def test_a_living_cell_that_is_evacuated_all_the_same_writes_nothing_more(shared: Installed) -> None:
    await shared.onboard()
    await shared.write(shared.source, "c1")
    await asyncio.wait_for(evacuate(shared), 30)
    assert not isinstance(await shared.write(shared.source, "c2"), Answer)
    assert len(await shared.payments(shared.target)) == 1
    await tell(shared)
    assert code(await shared.write(shared.source, "c3")) is RefusalCode.PARTNER_MOVED


@pytest.mark.parametrize("step", [Method.QUIESCE, Method.SEAL, Method.OPEN_ARRIVAL])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("is_halted", [True, False])
async def test_a_cell_dies_as_its_partner_leaves_and_is_evacuated(
    shared: Installed, step: str, when: str, is_halted: bool
) -> None:
    await shared.onboard()
    await shared.write(shared.source, "c1")

    async def die() -> None:
        shared.doors.dead.add("cell-0")
        raise DoorError("as the test ordered")

    getattr(shared.doors, when)[step] = die
    leaving = await shared.moves.start(PARTNER, "cell-1", "ann")
    await asyncio.sleep(0.5)
    assert not leaving.done()
    if is_halted:  # as control_plane/evacuation.py does it; what goes on all the same finds out by the row
        await shared.moves.halt([PARTNER])
    held = shared.registry.move(PARTNER)
    assert held is not None
    await registry_moves.begin_evacuation(shared.registry, "cell-0", lambda: [held.as_evacuation()], "ann")
    await shared.moves.resume()
    moving = asyncio.gather(*shared.moves._tasks.values())
    for _ in range(500):
        if shared.registry.partner(PARTNER).cell == "cell-1":
            break
        await asyncio.sleep(0.02)
    assert len(await shared.payments(shared.target)) == 1
    shared.doors.dead.clear()
    await asyncio.wait_for(moving, 30)
    await tell(shared)
    assert code(await shared.write(shared.source, "c2")) is RefusalCode.PARTNER_MOVED


async def test_who_opened_a_book_before_it_was_taken_over_never_owns_it_again(shared: Installed) -> None:
    await shared.onboard()
    zombie = await open_shelf(shared.places["cell-0"]).open("partners", PARTNER)
    await shared.moves.move(PARTNER, "cell-1", "ann")
    with pytest.raises(FencedError):
        await zombie.acquire(1_000)
    assert len(await shared.payments(shared.target)) == 0
    await shared.moves.move(PARTNER, "cell-0", "ann")
    assert len(await shared.payments(shared.source)) == 0


async def test_a_living_cell_that_is_told_stops_the_partners_actor(shared: Installed) -> None:
    await shared.onboard()
    link = shared.source.link(PARTNER)
    await asyncio.wait_for(evacuate(shared), 30)
    await tell(shared)
    assert await shared.source.door._ownership._hosted(link) == []


async def test_who_was_taken_over_goes_back_once_its_first_cell_was_told(shared: Installed) -> None:
    await shared.onboard()
    await shared.write(shared.source, "c1")
    await asyncio.wait_for(evacuate(shared), 30)
    await tell(shared)
    await tell(shared)
    await asyncio.wait_for(shared.moves.move(PARTNER, "cell-0", "ann"), 30)
    assert len(await shared.payments(shared.source)) == 1
    assert isinstance(await shared.write(shared.source, "c2"), Answer)


@pytest.mark.parametrize("is_stopped", [True, False], ids=["stopped", "silent"])
@pytest.mark.parametrize(
    ("when", "step"),
    [
        ("before", Method.BEGIN_ARRIVAL),
        ("before", Method.OPEN_ARRIVAL),
        ("after", "adopt"),
        ("after", Method.OPEN_ARRIVAL),
    ],
)
async def test_the_cell_that_takes_over_dies_too_and_a_third_one_takes_its_place(
    shared: Installed, monkeypatch: pytest.MonkeyPatch, when: str, step: str, is_stopped: bool
) -> None:
    await shared.onboard()
    await shared.write(shared.source, "c1")
    first, second, third = (shared.cells[name] for name in ("cell-0", "cell-1", "cell-2"))
    died = asyncio.Event()

    async def die() -> None:
        shared.doors.dead.add("cell-1")
        died.set()
        raise DoorError("as the test ordered")

    if step == "adopt":
        adopt = second._shelf.adopt

        async def adopt_and_die(*args: Any, **kwargs: Any) -> None:
            await adopt(*args, **kwargs)
            if died.is_set():
                return
            shared.doors.dead.add("cell-1")
            died.set()
            raise StoreUnavailableError("as the test ordered")

        monkeypatch.setattr(second._shelf, "adopt", adopt_and_die)
    else:
        getattr(shared.doors, when)[step] = die
    await first.close()
    shared.doors.dead.add("cell-0")
    move = shared.moves.new_evacuation(PARTNER, "cell-1", "ann")
    await registry_moves.begin_evacuation(shared.registry, "cell-0", lambda: [move], "ann")
    await shared.moves.resume()
    await asyncio.wait_for(died.wait(), 30)
    await asyncio.sleep(0.5)
    if is_stopped:
        await second.close()

    await shared.moves.halt([PARTNER])
    held = shared.registry.move(PARTNER)
    assert held is not None
    replacing = shared.moves.new_evacuation(PARTNER, "cell-2", "ann").in_place_of(held)
    await registry_moves.begin_evacuation(shared.registry, "cell-1", lambda: [replacing], "ann")
    await shared.moves.resume()
    await asyncio.wait_for(asyncio.gather(*shared.moves._tasks.values()), 30)
    assert shared.registry.partner(PARTNER).cell == "cell-2"
    assert len(await shared.payments(third)) == 1
    assert isinstance(await shared.write(third, "c2"), Answer)
    if not is_stopped:
        assert not isinstance(await shared.write(second, "c3"), Answer)

    await first.open(1)
    if is_stopped:
        await second.open(1)
    shared.doors.dead.clear()
    await tell(shared)
    assert not shared.registry.burials()
    for cell in (first, second):
        assert code(await shared.write(cell, "c4")) is RefusalCode.PARTNER_MOVED
    for name in ("cell-0", "cell-1"):
        await asyncio.wait_for(shared.moves.move(PARTNER, name, "ann"), 30)
        assert len(await shared.payments(shared.cells[name])) == 2
