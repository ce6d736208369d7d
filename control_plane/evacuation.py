"""Partners of a dead cell, taken over by the others: only where the cells share a FoundationDB cluster.

All moves are written down in one commit, then begun; so an evacuation that is interrupted goes on by itself. Whoever
owned a partner in the cell is fenced by the move (move_record.py, `evacuate`), also where it is not dead after all.
Partners that the cell was about to take over are its, too: a third cell takes them over in its place.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from control_plane import limits
from control_plane.doors import Doors
from control_plane.errors import ControlPlaneError, RefusedError
from control_plane.fleet import Fleet
from control_plane.move_record import Move, burials_of, is_untold, verdict, way_between
from control_plane.moves import Moves
from control_plane.publishing import cells_of_directory
from control_plane.registry import Registry
from control_plane.registry_records import Partner
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

        `partners` are those of `targets`, also where their moves were begun before; `begun` counts those of now.
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
        others = await self._others(cell)
        targets, moves = self._plan(cell, others, who)
        if not dry_run:
            if self._registry.cell(cell).weight > 0:
                await self._fleet.drain(cell, who, dry_run=False)
            # Nothing that goes on under the rows of before writes over those that follow.
            await self._moves.halt(move.partner_id for move in moves)
            moves = await self._registry.begin_evacuation(cell, lambda: self._plan(cell, others, who)[1], who)
            targets = self._plan(cell, others, who)[0]
            await self._moves.resume()
        return {"cell": cell, "partners": len(targets), "targets": targets, "begun": len(moves), "dry_run": dry_run}

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
            if is_due and answering and self._has_anybody(name):
                await self._evacuate_silent(name)

    # Inside

    async def _evacuate_silent(self, cell: str) -> None:
        try:
            found = await self.evacuate(cell, "evacuation", force=False, dry_run=False)
        except ControlPlaneError as error:
            log.warning("cell_not_evacuated", cell=cell, error=error.what)
        else:
            log.error("cell_evacuated", cell=cell, partners=found["begun"], after_s=self._after_s)

    def _has_anybody(self, cell: str) -> bool:
        """Say whether an evacuation of the cell would begin anything."""
        return any(verdict(self._registry.move(one.id), one.cell, cell) != "leave" for one in self._movable())

    def _movable(self) -> list[Partner]:
        return [one for one in self._registry.partners() if one.status not in {"onboarding", "erasing"}]

    async def _answers(self, cell: str) -> bool:
        try:
            await self._doors.cell_status(cell)
        except ControlPlaneError:
            return False
        return True

    async def _others(self, cell: str) -> list[directory.Cell]:
        """Give the cells that may take the cell's partners over: they share its cluster, have a weight, and answer."""
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
        answer = await asyncio.gather(*(self._answers(other.name) for other in others))
        return [other for other, answers in zip(others, answer, strict=True) if answers]

    def _plan(self, cell: str, others: Sequence[directory.Cell], who: str) -> tuple[dict[str, str], Sequence[Move]]:
        """Give who is on the way from the cell to where, once the moves are written down that are given, too."""
        targets: dict[str, str] = {}
        moves: list[Move] = []
        for partner in self._movable():
            held = self._registry.move(partner.id)
            match verdict(held, partner.cell, cell):
                case "leave":
                    if held is not None and held.way == "evacuate" and cell in held.left:
                        targets[partner.id] = held.target
                    continue
                case "fence":
                    assert held is not None
                    move = held.as_evacuation()
                case "redirect":
                    assert held is not None
                    move = self._moves.new_evacuation(partner.id, self._target(partner.id, others), who)
                    move = move.in_place_of(held)
                case "begin":
                    move = self._moves.new_evacuation(partner.id, self._target(partner.id, others), who)
            targets[partner.id] = move.target
            moves.append(move)
        return targets, moves

    def _target(self, partner_id: str, others: Sequence[directory.Cell]) -> str:
        """Give where a partner goes: by the hash, but to no cell that knows old news of it, or that is to be told."""
        untold = self._registry.burials_of(partner_id)
        held = self._registry.move(partner_id)
        left: tuple[str, ...] = ()
        if held is not None and held.has_arrived:
            untold += burials_of(held)  # they are no rows yet
        elif held is not None:
            left = held.left
        fit = [
            other
            for other in others
            if other.name not in left and not any(is_untold(burial, other.name) for burial in untold)
        ]
        to = directory.rendezvous(partner_id, fit)
        if to is None:
            raise RefusedError(
                f"no other cell can open the book of {partner_id}",
                hint="evacuation is for cells that share a FoundationDB cluster; one must have a weight and answer",
            )
        return to
