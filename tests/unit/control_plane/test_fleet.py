"""Cells that come and go, over stand-in doors: what is refused, and that steps resume from their row after a crash."""

import asyncio
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from control_plane import data_folder, limits
from control_plane.data_folder import DataFolder, prepare_cell
from control_plane.errors import ControlPlaneError, FolderError, NotFoundError, RefusedError
from control_plane.fleet import Fleet, Ground, NewCell
from control_plane.publishing import cells_of_directory
from control_plane.registry import Registry
from control_plane.registry_records import Cell, Partner
from router import directory, directory_file
from tests.stand_in_door import Installation, StandInDoor
from tests.unit.control_plane.test_partners import wanted

ROUTER = "router-0"


class Supervised:
    """A stand-in for the supervisor: a cell's process is a door, up at once."""

    def __init__(self) -> None:
        self.running: set[str] = set()

    def add(self, specs: list[str]) -> None:
        self.running.update(specs)

    async def remove(self, cell: str) -> None:
        self.running.discard(cell)


class Ship:
    """An installation with a fleet that can be made anew, as after a crash."""

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        self.supervised = Supervised()
        self.now = 0.0
        self.router_follows = True

    async def fleet(self) -> Fleet:
        partners, registry, doors, publisher = await self.installation.control_plane()
        self.partners, self.registry, self.publisher = partners, registry, publisher
        folder = self.installation.folder
        kept = folder.router_folder(ROUTER) / directory_file.LAST_KNOWN_GOOD
        publisher._kept_files = {ROUTER: kept}
        publish = publisher.publish

        async def publish_and_take() -> int:
            version = await publish()
            if self.router_follows:
                directory_file.write_atomically(kept, folder.directory_file.read_bytes())
            return version

        publisher.publish = publish_and_take  # type: ignore[method-assign]
        ground = Ground(self.installation.settings, folder, lambda cell: [cell.name], lambda: None, lambda _: True)  # type: ignore[list-item, return-value]
        return Fleet(ground, registry, publisher, doors, self.supervised, monotonic=lambda: self.now)  # type: ignore[arg-type]

    def published(self) -> directory.Directory:
        return self.installation.directory()

    async def open_door(self, cell: str, *, workers: Sequence[str] = ("w0",)) -> StandInDoor:
        """Have the door of a cell answer, on a port that is free for sure."""
        prepare_cell(self.installation.folder, cell, may_make=True)
        door = StandInDoor(cell)
        door.workers = list(workers)
        port = await self.installation.open_door(door, 0)
        row = replace(self.registry.cell(cell), door_port=port, advertised_port=port)
        await Registry.write_cells(self.registry, [row])
        return door


@pytest.fixture
def ship(installation: Installation) -> Ship:
    return Ship(installation)


def new(name: str | None = None, weight: float = 1.0, cluster_file: str = "") -> NewCell:
    return NewCell(name, weight, cluster_file)


async def add(ship: Ship, fleet: Fleet, name: str | None = None) -> Cell:
    """Add a cell whose door answers."""
    added = (await fleet.add(new(name), "ann", dry_run=False))["cell"]["name"]
    assert ship.registry.cell(added).state == "adding"
    await ship.open_door(added)
    await until(ship, fleet, added, "active")
    assert added in ship.supervised.running
    return ship.registry.cell(added)


async def until(ship: Ship, fleet: Fleet, cell: str, state: str) -> None:
    for _ in range(100):
        await fleet.converge()
        if ship.registry.cell(cell).state == state:
            return
        ship.now += 1
        await asyncio.sleep(0.01)  # a connection to a door takes a moment
    pytest.fail(f"{cell} is {ship.registry.cell(cell).state}: {fleet.show()}")


def homes(ship: Ship) -> dict[str, str]:
    held = ship.published()
    return {name: held.cell_of(name).name for name in held.partners}  # type: ignore[union-attr]


async def test_a_cell_is_added_and_moves_nobody(ship: Ship) -> None:
    fleet = await ship.fleet()
    for number in range(30):
        await ship.partners.create(replace(wanted(), id=f"p{number}"), "ann")
    before = homes(ship)
    cell = await add(ship, fleet)
    assert (cell.name, cell.slot, cell.state) == ("cell-2", 2, "active")
    assert homes(ship) == before, "nobody moves by itself"
    pinned = [name for name, partner in ship.published().partners.items() if partner.cell is not None]
    assert pinned, "some of thirty belong to the third cell"
    assert all(directory.rendezvous(name, ship.published().cells.values()) == "cell-2" for name in pinned)
    fresh = next(name for name in (f"q{n}" for n in range(99)) if ship.publisher.place(name) == "cell-2")
    assert (await ship.partners.create(replace(wanted(), id=fresh), "ann")).partner.cell == "cell-2"
    assert homes(ship)[fresh] == "cell-2"
    folder = ship.installation.folder
    assert folder.cell_folder("cell-2").is_dir()
    assert folder.router_key_file("cell-2").exists()


async def test_a_cell_takes_nobody_before_a_worker_of_it_is_ready(ship: Ship) -> None:
    fleet = await ship.fleet()
    added = (await fleet.add(new(), "ann", dry_run=False))["cell"]["name"]
    door = await ship.open_door(added, workers=[])
    for _ in range(20):
        await fleet.converge()
        await asyncio.sleep(0.01)
    assert ship.registry.cell(added).state == "adding"
    assert fleet.show()[-1]["waits_for"] == "its first worker is starting"
    door.workers = ["w0"]
    await until(ship, fleet, added, "active")


async def test_a_cell_takes_nobody_before_routers_know_it(ship: Ship, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DIRECTORY_TAKEN_TIMEOUT_MS", 10)
    fleet = await ship.fleet()
    for number in range(30):
        await ship.partners.create(replace(wanted(), id=f"p{number}"), "ann")
    ship.router_follows = False
    added = (await fleet.add(new(), "ann", dry_run=False))["cell"]["name"]
    await ship.open_door(added)
    await until(ship, fleet, added, "joining")
    await fleet.converge()
    assert fleet.show()[-1]["waits_for"] == "router-0 does not know it yet"
    told = ship.published()
    assert told.cells[added].weight == 0, "routers are told where it is, and nobody belongs there"
    assert added not in {ship.publisher.place(f"q{number}") for number in range(99)}
    for change in (fleet.drain(added, "ann", dry_run=False), fleet.set_weight(added, 2, "ann", dry_run=False)):
        with pytest.raises(RefusedError, match="cell-2 is joining"):
            await change
    await fleet.drain("cell-0", "ann", dry_run=False)
    with pytest.raises(RefusedError, match="the last cell that takes partners"):
        await fleet.drain("cell-1", "ann", dry_run=False)
    ship.router_follows = True
    await ship.publisher.publish()
    await until(ship, fleet, added, "active")
    assert ship.published().cells[added].weight == 1
    assert ship.published().version > told.version
    assert added in {ship.publisher.place(f"q{number}") for number in range(99)}


async def test_a_router_that_hears_of_nothing_holds_a_new_cell_up_only_so_long(
    ship: Ship, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DIRECTORY_TAKEN_TIMEOUT_MS", 10)
    fleet = await ship.fleet()
    ship.router_follows = False
    added = (await fleet.add(new(), "ann", dry_run=False))["cell"]["name"]
    await ship.open_door(added)
    await until(ship, fleet, added, "joining")
    ship.now += limits.CELL_JOIN_MS_MAX / 1_000 - 1
    await fleet.converge()
    assert ship.registry.cell(added).state == "joining"
    ship.now += 1
    await fleet.converge()
    assert ship.registry.cell(added).state == "active"


async def test_a_cell_that_joins_is_taken_back(ship: Ship, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DIRECTORY_TAKEN_TIMEOUT_MS", 10)
    fleet = await ship.fleet()
    ship.router_follows = False
    added = (await fleet.add(new(), "ann", dry_run=False))["cell"]["name"]
    await ship.open_door(added)
    await until(ship, fleet, added, "joining")
    await fleet.remove(added, "ann", dry_run=False)
    ship.router_follows = True
    await until(ship, fleet, added, "removed")
    assert added not in ship.published().cells


async def test_a_dry_run_changes_nothing(ship: Ship) -> None:
    fleet = await ship.fleet()
    await ship.partners.create(wanted(), "ann")
    rows = ship.registry.cells()
    for said in (
        await fleet.add(new(), "ann", dry_run=True),
        await fleet.drain("cell-0", "ann", dry_run=True),
        await fleet.set_weight("cell-0", 3, "ann", dry_run=True),
    ):
        assert said["dry_run"]
        assert said["changes"]
        assert said["partners"] == 1
    assert ship.registry.cells() == rows
    assert not ship.installation.folder.cell_folder("cell-2").exists()


async def test_ports_of_an_added_cell_are_nobody_elses(ship: Ship) -> None:
    fleet = await ship.fleet()
    first, second = await add(ship, fleet), await add(ship, fleet)
    taken = [port for cell in ship.registry.cells() for port in (cell.door_port, cell.metrics_port, cell.ray_port)]
    assert len(set(taken)) == len(taken)
    settings = ship.installation.settings
    assert {settings.http_port, settings.acquirer_port}.isdisjoint(taken)
    assert (first.name, second.name) == ("cell-2", "cell-3")


async def test_a_drained_cell_gets_no_new_partner_and_keeps_its_own(ship: Ship) -> None:
    fleet = await ship.fleet()
    there = next(name for name in (f"p{n}" for n in range(99)) if ship.publisher.place(name) == "cell-0")
    await ship.partners.create(replace(wanted(), id=there), "ann")
    assert (await fleet.drain("cell-0", "ann", dry_run=False))["partners_there"] == 1
    await ship.publisher.publish()
    assert homes(ship)[there] == "cell-0"
    assert {ship.publisher.place(f"q{n}") for n in range(50)} == {"cell-1"}
    assert not (await fleet.drain("cell-0", "ann", dry_run=False))["changes"]
    with pytest.raises(RefusedError, match=r"1 partners are in cell-0 still, .* first"):
        await fleet.remove("cell-0", "ann", dry_run=False)
    await fleet.set_weight("cell-0", 1, "ann", dry_run=False)
    assert ship.registry.cell("cell-0").state == "active", "a weight takes it back"


async def test_the_last_cell_that_takes_partners_stays(ship: Ship) -> None:
    fleet = await ship.fleet()
    await fleet.drain("cell-0", "ann", dry_run=False)
    for refused in (
        lambda: fleet.drain("cell-1", "ann", dry_run=False),
        lambda: fleet.set_weight("cell-1", 0, "ann", dry_run=False),
    ):
        with pytest.raises(RefusedError, match="the last cell that takes partners"):
            await refused()


async def test_a_removed_cell_s_folder_is_kept_aside(ship: Ship) -> None:
    fleet = await ship.fleet()
    await ship.publisher.publish()
    folder = ship.installation.folder
    (folder.cell_folder("cell-0") / "cell.sqlite").write_bytes(b"a book")
    with pytest.raises(RefusedError, match="only a drained cell is removed"):
        await fleet.remove("cell-0", "ann", dry_run=False)
    await fleet.drain("cell-0", "ann", dry_run=False)
    await fleet.remove("cell-0", "ann", dry_run=False)
    ship.supervised.running.add("cell-0")
    await fleet.converge()
    assert set(ship.published().cells) == {"cell-1"}
    assert ship.supervised.running == {"cell-0"}, "what was sent there is served out"
    ship.now += limits.CELL_REMOVE_GRACE_MS / 1000
    await fleet.converge()
    assert ship.registry.cell("cell-0").state == "removed"
    assert ship.supervised.running == set()
    assert (folder.removed_cell_folder("cell-0") / "cell.sqlite").read_bytes() == b"a book"
    assert not folder.cell_folder("cell-0").exists()
    with pytest.raises(RefusedError, match="its name is not used again"):
        await fleet.add(new("cell-0"), "ann", dry_run=False)
    assert (await fleet.add(new(), "ann", dry_run=False))["cell"]["name"] == "cell-2"


async def test_a_cell_is_kept_while_a_router_may_send_there(ship: Ship) -> None:
    fleet = await ship.fleet()
    await ship.publisher.publish()
    await fleet.drain("cell-0", "ann", dry_run=False)
    await fleet.remove("cell-0", "ann", dry_run=False)
    ship.router_follows = False
    for _ in range(2):
        await fleet.converge()
        ship.now += 3_600
    assert ship.registry.cell("cell-0").state == "removing"
    assert fleet.show()[0]["waits_for"] == "router-0 may still send commands there"
    ship.router_follows = True
    await until(ship, fleet, "cell-0", "removed")


async def test_a_partner_that_comes_while_its_cell_is_removed_keeps_it(ship: Ship) -> None:
    fleet = await ship.fleet()
    there = next(name for name in (f"p{n}" for n in range(99)) if ship.publisher.place(name) == "cell-0")
    await fleet.drain("cell-0", "ann", dry_run=False)
    await fleet.remove("cell-0", "ann", dry_run=False)
    row = Partner(there, "P", "onboarding", "test", "cell-0", 1, 1, 1, "2026-11-22", 1, "now")
    await ship.registry.begin_onboarding(row, "ann")
    await fleet.converge()
    assert ship.registry.cell("cell-0").state == "draining"
    assert "cell-0" in {cell.name for cell in cells_of_directory(ship.registry.cells())}


async def test_a_cell_that_a_partner_moves_to_or_from_is_kept(ship: Ship) -> None:
    fleet = await ship.fleet()
    await fleet.drain("cell-0", "ann", dry_run=False)
    fleet._moving = lambda: ["cell-0"]
    with pytest.raises(RefusedError, match="on its way to or from"):
        await fleet.remove("cell-0", "ann", dry_run=False)


async def test_one_that_never_answers_is_taken_back(ship: Ship) -> None:
    fleet = await ship.fleet()
    await fleet.add(new("late"), "ann", dry_run=False)
    await fleet.converge()
    assert fleet.show()[2]["waits_for"] is not None
    await ship.publisher.publish()
    assert "late" not in ship.published().cells
    await fleet.remove("late", "ann", dry_run=False)
    await until(ship, fleet, "late", "removed")
    assert ship.supervised.running == set()


@pytest.mark.parametrize(
    ("wanted_cell", "why"),
    [
        (new("cell-1"), "is there already"),
        (new("Cell_9"), "no name of a cell"),
        (new(cluster_file="/a"), "the store here is SQLite"),
    ],
)
async def test_what_can_t_be_a_cell_is_refused(ship: Ship, wanted_cell: NewCell, why: str) -> None:
    fleet = await ship.fleet()
    with pytest.raises(RefusedError, match=why):
        await fleet.add(wanted_cell, "ann", dry_run=False)
    assert len(ship.registry.cells()) == 2


async def test_a_cell_that_is_not_there_is_not_found(ship: Ship) -> None:
    fleet = await ship.fleet()
    for change in (fleet.drain, fleet.remove):
        with pytest.raises(NotFoundError, match="no cell 'cell-9'"):
            await change("cell-9", "ann", dry_run=False)


class Crash(BaseException):
    """The control plane is killed here."""


def crash_at(owner: Any, name: str, call: int, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill the control plane at this call of a function, before it does anything or right after."""
    real: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def count() -> bool:
        nonlocal calls
        calls += 1
        if calls == call and when == "before":
            raise Crash
        return calls == call

    async def asynchronous(*arguments: Any, **named: Any) -> Any:
        is_last = count()
        result = await real(*arguments, **named)
        if is_last:
            raise Crash
        return result

    def plain(*arguments: Any, **named: Any) -> Any:
        is_last = count()
        result = real(*arguments, **named)
        if is_last:
            raise Crash
        return result

    monkeypatch.setattr(owner, name, asynchronous if inspect.iscoroutinefunction(real) else plain)


STEPS = [
    # adding, joining, active, draining, removing, removed
    *(("registry", "write_cells", row) for row in range(1, 7)),
    *(("publisher", "publish", number) for number in (1, 2, 3)),
    ("supervised", "add", 1),
    ("supervised", "remove", 1),
    ("data_folder", "prepare_cell", 1),
    ("data_folder", "set_aside", 1),
]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("part", "name", "call"), STEPS)
async def test_add_and_remove_resume_after_a_crash_at_any_step(
    ship: Ship, part: str, name: str, call: int, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = await ship.fleet()
    await ship.publisher.publish()
    with monkeypatch.context() as patched:
        crash_at(data_folder if part == "data_folder" else getattr(ship, part), name, call, when, patched)
        with pytest.raises(Crash):
            await _add_and_remove(ship, fleet)
    fleet = await ship.fleet()
    await _add_and_remove(ship, fleet)
    states = {cell.name: cell.state for cell in ship.registry.cells()}
    assert states == {"cell-0": "active", "cell-1": "active", "cell-2": "removed"}
    assert set(ship.published().cells) == {"cell-0", "cell-1"}
    assert ship.installation.folder.removed_cell_folder("cell-2").is_dir()
    assert ship.supervised.running == set()


async def _add_and_remove(ship: Ship, fleet: Fleet) -> None:
    """Do what an operator would who says it again after a crash."""
    found = {cell.name: cell.state for cell in ship.registry.cells()}.get("cell-2")
    if found is None:
        await fleet.add(new("cell-2"), "ann", dry_run=False)
    if found in {None, "adding", "joining"}:
        if "cell-2" not in {server.cell for server in ship.installation.opened}:
            await ship.open_door("cell-2")
        await until(ship, fleet, "cell-2", "active")
    if ship.registry.cell("cell-2").state == "active":
        await fleet.drain("cell-2", "ann", dry_run=False)
    await fleet.remove("cell-2", "ann", dry_run=False)
    await until(ship, fleet, "cell-2", "removed")
    await fleet.converge()


def test_a_folder_that_can_t_be_set_aside_is_explained(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    folder.cell_folder("cell-0").mkdir(parents=True)
    (tmp_path / "removed").write_text("in the way")
    with pytest.raises(FolderError, match="can't be set aside") as raised:
        data_folder.set_aside(folder, "cell-0")
    assert isinstance(raised.value, ControlPlaneError)
    assert str(folder.removed_cell_folder("cell-0")) in raised.value.hint
