"""Cells that come and go while the rest serves: each change is a row first, then idempotent steps that resume from it.

    add      registry: adding -> folder and secrets -> processes -> its door answers -> registry: joining
             -> a directory that has the cell with weight 0, until every router holds that or a newer one
             -> registry: active -> a directory with its weight that pins, by overrides, those it would re-home
    drain    registry: draining, weight 0 -> a directory by which new partners go elsewhere
    remove   registry: removing -> a directory without it, until every router holds that or a newer one
             -> processes stopped -> registry: removed -> its folder set aside; no data is ever deleted

`converge` takes the next step of each cell on its way. What a crash interrupts, the next `up` goes on with.
"""

import asyncio
import socket
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import structlog

from control_plane import cell_rules, data_folder, limits
from control_plane.data_folder import DataFolder, timestamp
from control_plane.doors import Doors, cell_addresses
from control_plane.errors import ControlPlaneError, RefusedError
from control_plane.processes import ProcessSpec
from control_plane.publishing import Publisher, cells_of_directory
from control_plane.registry import Registry
from control_plane.registry_records import Cell
from control_plane.settings import LOOPBACK, Settings
from control_plane.supervisor import Supervisor
from router import directory

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class NewCell:
    """A cell as an operator wants it."""

    name: str | None
    weight: float
    cluster_file: str


@dataclass(frozen=True, slots=True)
class Ground:
    """What cells stand on. `plan_cell` gives a cell's processes; `is_free` says whether nobody listens on a port."""

    settings: Settings
    folder: DataFolder
    plan_cell: Callable[[Cell], Sequence[ProcessSpec]]
    require_room: Callable[[], None]
    is_free: Callable[[int], bool]


class Fleet:
    """All changes to cells, one at a time. `moving` names the cells that a partner is on its way to or from."""

    def __init__(
        self,
        ground: Ground,
        registry: Registry,
        publisher: Publisher,
        doors: Doors,
        supervisor: Supervisor,
        *,
        moving: Callable[[], Collection[str]] = tuple,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ground = ground
        self._registry = registry
        self._publisher = publisher
        self._doors = doors
        self._supervisor = supervisor
        self._moving = moving
        self._monotonic = monotonic
        self._lock = asyncio.Lock()
        self._converging = asyncio.Lock()
        self._waits: dict[str, str] = {}  # what a cell on its way waits for, in words
        self._joins_since: dict[str, float] = {}
        self._left_at: dict[str, float] = {}  # since when no router is told of a cell

    def show(self) -> list[dict[str, Any]]:
        """Give all cells with how many partners are there, and what one on its way waits for."""
        partners: dict[str, int] = {}
        for partner in self._registry.partners():
            partners[partner.cell] = partners.get(partner.cell, 0) + 1
        untold: dict[str, int] = {}
        for burial in self._registry.burials():
            untold[burial.cell] = untold.get(burial.cell, 0) + 1
        waits = {name: f"it is to be told that {count} partners are in other cells" for name, count in untold.items()}
        waits |= self._waits
        return [
            {**asdict(cell), "partners": partners.get(cell.name, 0), "waits_for": waits.get(cell.name)}
            for cell in self._registry.cells()
        ]

    async def add(self, wanted: NewCell, who: str, *, dry_run: bool) -> dict[str, Any]:
        """Add a cell. It is written down when this returns; `converge` does the rest. Raises RefusedError."""
        async with self._lock:
            self._ground.require_room()
            cell = cell_rules.next_cell(
                self._ground.settings,
                self._registry.cells(),
                name=wanted.name,
                weight=wanted.weight,
                cluster_file=wanted.cluster_file,
                created_at=timestamp(),
                is_free=self._ground.is_free,
            )
            becomes = replace(cell, state="active")
            return await self._write(cell, who, "cell_adding", dry_run=dry_run, becomes=becomes)

    async def drain(self, name: str, who: str, *, dry_run: bool) -> dict[str, Any]:
        """Have new partners go elsewhere; those that are there stay until they are moved. Raises RefusedError."""
        async with self._lock:
            cell = cell_rules.drained(self._registry.cell(name), self._registry.cells())
            return await self._write(cell, who, "cell_draining", dry_run=dry_run)

    async def set_weight(self, name: str, weight: float, who: str, *, dry_run: bool) -> dict[str, Any]:
        """Change a cell's share of new partners; a drained one takes partners again. Raises RefusedError."""
        async with self._lock:
            cell = cell_rules.weighted(self._registry.cell(name), weight, self._registry.cells())
            return await self._write(cell, who, "cell_weight", dry_run=dry_run)

    async def remove(self, name: str, who: str, *, dry_run: bool) -> dict[str, Any]:
        """Remove a drained and empty cell, or one that never came to be ready. Raises RefusedError."""
        async with self._lock:
            cell = cell_rules.removing(self._registry.cell(name), self._partners_in(name))
            if name in self._moving():
                raise RefusedError(f"a partner is on its way to or from {name}", hint="wait until it has moved")
            return await self._write(cell, who, "cell_removing", dry_run=dry_run)

    async def converge(self) -> None:
        """Take the next step of each cell that is on its way. Raises nothing that a later round may mend."""
        async with self._converging:
            for cell in self._registry.cells():
                try:
                    await self._step(cell)
                except ControlPlaneError as error:
                    if self._waits.get(cell.name) != error.what:
                        log.warning("cell_step_failed", cell=cell.name, state=cell.state, error=error.what)
                    self._waits[cell.name] = error.what

    # Inside.

    async def _write(
        self, cell: Cell, who: str, what: str, *, dry_run: bool, becomes: Cell | None = None
    ) -> dict[str, Any]:
        """Write a cell down, unless it is so already; give it, and how many partners then belong elsewhere."""
        before = self._registry.cells()
        after = [other for other in before if other.name != cell.name] + [becomes or cell]
        told_before, told_after = cells_of_directory(before), cells_of_directory(after)
        partners = self._registry.partners()
        rehomed = sum(
            directory.rendezvous(partner.id, told_before) != directory.rendezvous(partner.id, told_after)
            for partner in partners
        )
        is_new = cell not in before
        if is_new and not dry_run:
            await self._registry.write_cells([cell], who, what, cell=cell.name, weight=cell.weight)
        return {
            "cell": asdict(cell),
            "changes": is_new,
            "dry_run": dry_run,
            "partners_there": sum(partner.cell == cell.name for partner in partners),
            "partners_rehomed": rehomed,
            "partners": len(partners),
        }

    async def _step(self, cell: Cell) -> None:
        match cell.state:
            case "adding":
                await self._make(cell)
            case "joining":
                await self._join(cell)
            case "removing":
                await self._end(cell)
            case "removed":
                data_folder.set_aside(self._ground.folder, cell.name)
                self._waits.pop(cell.name, None)
            case _:
                self._waits.pop(cell.name, None)

    async def _make(self, cell: Cell) -> None:
        data_folder.prepare_cell(self._ground.folder, cell.name, may_make=True)
        await self._doors.use(cell_addresses(self._registry.cells()))
        self._supervisor.add(self._ground.plan_cell(cell))
        self._waits.setdefault(cell.name, "its processes are starting")
        status = await self._doors.cell_status(cell.name)
        if status.cell != cell.name:
            raise RefusedError(
                f"{status.cell}'s door answers in place of {cell.name}'s", where=f"port {cell.door_port}"
            )
        if self._ground.settings.spares_per_cell and not any(worker.healthy for worker in status.workers):
            self._waits[cell.name] = "its first worker is starting"
            return
        async with self._lock:
            if self._registry.cell(cell.name).state != "adding":
                return  # it was taken back meanwhile
            cell = replace(cell, state="joining")
            await self._registry.write_cells([cell], "reconciler", "cell_joining", cell=cell.name)
        await self._join(cell)

    async def _join(self, cell: Cell) -> None:
        """Have routers told of a cell before partners go there; one that hears of nothing is waited for only so long.

        What such a router is asked later it follows by the tombstones, which name the directory that it needs.
        """
        version = await self._publisher.publish()
        since = self._joins_since.setdefault(cell.name, self._monotonic())
        behind = await self._publisher.wait_taken(version)
        if behind and (self._monotonic() - since) * 1000 < limits.CELL_JOIN_MS_MAX:
            self._waits[cell.name] = f"{', '.join(behind)} does not know it yet"
            return
        async with self._lock:
            if self._registry.cell(cell.name).state != "joining":
                return  # it was taken back meanwhile
            await self._registry.write_cells(
                [replace(cell, state="active")], "reconciler", "cell_active", cell=cell.name, weight=cell.weight
            )
        self._joins_since.pop(cell.name, None)
        self._waits.pop(cell.name, None)
        log.info("cell_added", cell=cell.name, routers_behind=behind)
        await self._publisher.publish()

    def _partners_in(self, cell: str) -> list[str]:
        return [partner.id for partner in self._registry.partners() if partner.cell == cell]

    async def _end(self, cell: Cell) -> None:
        if self._partners_in(cell.name):
            # It was being onboarded as the cell was drained and removed. Whoever asked is to ask again.
            log.warning("cell_not_removed", cell=cell.name, partners=len(self._partners_in(cell.name)))
            back = replace(cell, state="draining")
            await self._registry.write_cells([back], "reconciler", "cell_draining", cell=cell.name, weight=cell.weight)
            return
        version = await self._publisher.publish()
        behind = await self._publisher.wait_taken(version)
        if behind:
            self._left_at.pop(cell.name, None)
            self._waits[cell.name] = f"{', '.join(behind)} may still send commands there"
            return
        left_at = self._left_at.setdefault(cell.name, self._monotonic())
        if (self._monotonic() - left_at) * 1000 < limits.CELL_REMOVE_GRACE_MS:
            self._waits[cell.name] = "what was sent there is served out"
            return
        self._waits[cell.name] = "its processes are stopping"
        await self._supervisor.remove(cell.name)
        await self._registry.write_cells([replace(cell, state="removed")], "reconciler", "cell_removed", cell=cell.name)
        await self._doors.use(cell_addresses(self._registry.cells()))
        data_folder.set_aside(self._ground.folder, cell.name)
        self._left_at.pop(cell.name, None)
        self._waits.pop(cell.name, None)
        log.info("cell_removed", cell=cell.name)


def is_free(port: int) -> bool:
    """Say whether nobody listens on a port of this machine now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
