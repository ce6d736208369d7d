"""Partners of a dead cell, taken over by the others: only where the cells share a FoundationDB cluster.

All moves are written down in one commit, then begun; so an evacuation that is interrupted goes on by itself. Whoever
owned a partner in the cell is fenced by the move (move_record.py, `evacuate`), also where it is not dead after all.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from control_plane import limits
from control_plane.doors import Doors
from control_plane.errors import ControlPlaneError, RefusedError
from control_plane.fleet import Fleet
from control_plane.move_record import Move, way_between
from control_plane.moves import Moves
from control_plane.publishing import cells_of_directory
from control_plane.registry import Registry
from router import directory

log = structlog.get_logger()


class Evacuation:
    """Evacuates cells when an operator says so, or by itself where one is silent for `after_s` (0: never)."""

    def __init__(
        self,
        registry: Registry,
        fleet: Fleet,
        moves: Moves,
        doors: Doors,
        places: Callable[[], Mapping[str, Mapping[str, Any]]],
        *,
        after_s: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._fleet = fleet
        self._moves = moves
        self._doors = doors
        self._places = places
        self._after_s = after_s
        self._monotonic = monotonic
        self._lock = asyncio.Lock()
        self._silent_since: dict[str, float] = {}
        self._looked_at = monotonic()

    async def evacuate(self, cell: str, who: str, *, force: bool, dry_run: bool) -> dict[str, Any]:
        """Begin to take a cell's partners over; give who goes where. Raises NotFoundError, RefusedError.

        `force`: also where its door answers. That costs its partners errors until their moves are through.
        """
        async with self._lock:
            return await self._evacuate(cell, who, force=force, dry_run=dry_run)

    async def _evacuate(self, cell: str, who: str, *, force: bool, dry_run: bool) -> dict[str, Any]:
        self._registry.cell(cell)
        if not force and await self._answers(cell):
            raise RefusedError(
                f"{cell} answers",
                hint=f"move its partners without an error: bulkhead cell drain {cell}; bulkhead rebalance --by drain",
            )
        targets = self._targets(cell)
        if not dry_run:
            if self._registry.cell(cell).weight > 0:
                await self._fleet.drain(cell, who, dry_run=False)
            # Nothing that goes on under the rows of before writes over those that follow.
            await self._moves.halt(move.partner_id for move in self._planned(cell, targets, who))
            planned = self._planned(cell, targets, who)
            if planned:
                await self._registry.begin_evacuation(cell, planned, who)
            await self._moves.resume()
        return {"cell": cell, "partners": len(targets), "targets": targets, "dry_run": dry_run}

    async def watch(self) -> None:
        """Look once whether a cell has been silent for so long that it is evacuated."""
        if not self._after_s:
            return
        now = self._monotonic()
        if now - self._looked_at > limits.EVACUATION_LATE_MS / 1_000:
            self._silent_since.clear()  # it was this process that slept
        self._looked_at = now
        published = [cell.name for cell in self._registry.cells() if cell.is_published]
        answering = {name for name in published if await self._answers(name)}
        for name in published:
            if name in answering:
                self._silent_since.pop(name, None)
                continue
            since = self._silent_since.setdefault(name, self._monotonic())
            is_due = self._monotonic() - since >= self._after_s
            if is_due and answering and any(partner.cell == name for partner in self._registry.partners()):
                await self._evacuate_silent(name)

    # Inside

    async def _evacuate_silent(self, cell: str) -> None:
        try:
            found = await self.evacuate(cell, "evacuation", force=False, dry_run=False)
        except ControlPlaneError as error:
            log.warning("cell_not_evacuated", cell=cell, error=error.what)
        else:
            log.error("cell_evacuated", cell=cell, partners=found["partners"], after_s=self._after_s)

    async def _answers(self, cell: str) -> bool:
        try:
            await self._doors.cell_status(cell)
        except ControlPlaneError:
            return False
        return True

    def _targets(self, cell: str) -> dict[str, str]:
        """Give where each of the cell's partners goes: by the hash, among the cells that share its cluster."""
        places = self._places()
        if cell not in places:
            raise RefusedError(f"no router is told of {cell}: nobody is there")
        others = [
            other
            for other in cells_of_directory(self._registry.cells())
            if other.name != cell
            and other.name in places
            and way_between(places[cell], places[other.name]) == "hand_over"
        ]
        targets: dict[str, str] = {}
        for partner in self._registry.partners():
            if partner.cell != cell or partner.status in {"onboarding", "erasing"}:
                continue
            untold = self._untold(partner.id)
            to = directory.rendezvous(partner.id, [other for other in others if other.name not in untold])
            if to is None:
                raise RefusedError(
                    f"no other cell can open the book of {partner.id}",
                    where=cell,
                    hint="evacuation is for cells that share a FoundationDB cluster, and one of them needs a weight",
                )
            targets[partner.id] = to
        return targets

    def _untold(self, partner_id: str) -> set[str]:
        """Give the cells that still hold this partner for theirs: it was taken over from them while they were dead."""
        untold = {burial.cell for burial in self._registry.burials() if burial.partner_id == partner_id}
        held = self._registry.move(partner_id)
        return untold | {held.source} if held is not None and held.way == "evacuate" else untold

    def _planned(self, cell: str, targets: Mapping[str, str], who: str) -> list[Move]:
        """Give the moves to write down: new ones, and those from the cell that only it could have gone on with.

        A move that had brought the partner to this cell, and had only words to say, is over with the next one.
        """
        planned = []
        for partner_id, to in targets.items():
            if self._registry.partner(partner_id).cell != cell:
                continue  # it has left meanwhile
            held = self._registry.move(partner_id)
            if held is None or (held.target == cell and held.way != "copy" and held.state in {"clearing", "erasing"}):
                planned.append(self._moves.new_evacuation(partner_id, to, who))
            elif held.source == cell and held.way == "hand_over" and held.state in {"copying", "sealing", "aborting"}:
                planned.append(held.as_evacuation())
        return planned
