"""Partners of a dead cell, taken over by the others: only where the cells share a FoundationDB cluster.

All moves are written down in one commit, then begun; so an evacuation that is interrupted goes on by itself. Whoever
owned a partner in the cell is fenced by the move (move_record.py, `evacuate`), also where it is not dead after all.
Partners that the cell was about to take over are its, too: a third cell takes them over in its place.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from control_plane import limits, registry_moves
from control_plane.doors import Doors
from control_plane.errors import ControlPlaneError, RefusedError
from control_plane.fleet import Fleet
from control_plane.move_record import Move, Verdict, burials_of, is_untold, verdict, way_between
from control_plane.moves import Moves
from control_plane.publishing import cells_of_directory
from control_plane.registry import Registry
from router import directory

log = structlog.get_logger()


# Of whom only its own cell can do what is next.
_STAYING: Final = {"onboarding": "it is still being onboarded", "erasing": "it is being erased"}


@dataclass(slots=True)
class _Plan:
    """Who is on the way to where, once `moves` are written down; who stays, and why; the first that was refused."""

    targets: dict[str, str] = field(default_factory=dict)
    staying: dict[str, str] = field(default_factory=dict)
    moves: list[Move] = field(default_factory=list)
    refused: RefusedError | None = None


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
        self._staying: dict[str, dict[str, str]] = {}  # what was last said of who could not be taken over
        self._looked_at = monotonic()

    async def evacuate(self, cell: str, who: str, *, force: bool, dry_run: bool) -> dict[str, Any]:
        """Begin to take a cell's partners over; give who goes where, and who stays and why.

        `partners` are those of `targets`, also where their moves were begun before; `begun` counts those of now. Raises
        NotFoundError, and RefusedError where nobody can be taken over.
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
        plan = self._plan(cell, others, who)
        if plan.refused is not None and not plan.targets:
            raise plan.refused
        if not dry_run:
            if self._registry.cell(cell).weight > 0:
                await self._fleet.drain(cell, who, dry_run=False)
            # Nothing that goes on under the rows of before writes over those that follow.
            await self._moves.halt(move.partner_id for move in plan.moves)

            def plan_again() -> list[Move]:
                nonlocal plan
                plan = self._plan(cell, others, who)
                return plan.moves

            await registry_moves.begin_evacuation(self._registry, cell, plan_again, who)
            await self._moves.resume()
        return {
            "cell": cell,
            "partners": len(plan.targets),
            "targets": plan.targets,
            "staying": plan.staying,
            "begun": len(plan.moves),
            "dry_run": dry_run,
        }

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
            found = {"begun": 0, "staying": {"all": error.what}}
        if found["begun"]:
            log.error("cell_evacuated", cell=cell, partners=found["begun"], after_s=self._after_s)
        if found["staying"] and found["staying"] != self._staying.get(cell):
            log.warning("partners_not_evacuated", cell=cell, staying=found["staying"])
        self._staying[cell] = found["staying"]

    def _has_anybody(self, cell: str) -> bool:
        """Say whether an evacuation of the cell would begin anything."""
        return any(
            verdict(self._registry.move(one.id), one.cell, cell) != "leave" and one.status not in _STAYING
            for one in self._registry.partners()
        )

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

    def _plan(self, cell: str, others: Sequence[directory.Cell], who: str) -> _Plan:
        plan = _Plan()
        for partner in self._registry.partners():
            held = self._registry.move(partner.id)
            what = verdict(held, partner.cell, cell)
            if what == "leave":
                if held is not None and held.way == "evacuate" and cell in held.left:
                    plan.targets[partner.id] = held.target
                elif partner.cell == cell:
                    plan.staying[partner.id] = f"its book is being copied, and only {cell} can go on with that"
            elif partner.status in _STAYING:
                plan.staying[partner.id] = _STAYING[partner.status]
            else:
                try:
                    move = self._move(partner.id, what, held, others, who)
                except RefusedError as error:
                    plan.staying[partner.id] = error.what
                    plan.refused = plan.refused or error
                else:
                    plan.targets[partner.id] = move.target
                    plan.moves.append(move)
        return plan

    def _move(
        self, partner_id: str, what: Verdict, held: Move | None, others: Sequence[directory.Cell], who: str
    ) -> Move:
        """Give the move to write down for a partner. Raises RefusedError where no cell can take it over."""
        if what == "fence":
            assert held is not None
            return self._moves.fence(held)
        move = self._moves.new_evacuation(partner_id, self._target(partner_id, others), who)
        if what == "redirect":
            assert held is not None
            return move.in_place_of(held)
        return move

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
