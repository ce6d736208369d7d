"""Tells cells that were dead which partners of theirs, or on the way there, are elsewhere. Moves don't wait for that.

Who is to be told what is in the registry (move_record.py, Burial), so it outlives this process; a cell is told as soon
as it answers, one partner after the other, and telling it again changes nothing.
"""

import asyncio

import structlog

from control_plane import registry_moves
from control_plane.door_moves import CopyLostError, DoorMoves
from control_plane.errors import ControlPlaneError, DoorError
from control_plane.move_record import Burial
from control_plane.registry import Registry

log = structlog.get_logger()


class Burials:
    """What dead cells are still to be told."""

    def __init__(self, registry: Registry, doors: DoorMoves) -> None:
        self._registry = registry
        self._doors = doors
        self._telling: dict[str, asyncio.Task[None]] = {}
        self._is_closed = False

    async def tell(self) -> None:
        """Begin to tell each cell that is not being told already: one that hangs holds up no other."""
        if self._is_closed:
            return
        for cell in {burial.cell for burial in self._registry.burials()}:
            task = self._telling.get(cell)
            if task is None or task.done():
                self._telling[cell] = asyncio.create_task(self._tell(cell), name=f"tell-{cell}")

    async def stop(self) -> None:
        """Leave the rest for the next start; nothing is begun any more."""
        self._is_closed = True
        for task in self._telling.values():
            task.cancel()
        await asyncio.gather(*self._telling.values(), return_exceptions=True)

    # Inside

    async def _tell(self, cell: str) -> None:
        told: list[Burial] = []
        try:
            try:
                for burial in [burial for burial in self._registry.burials() if burial.cell == cell]:
                    try:
                        if not self._is_over(burial):
                            await self._doors.bury_moved(burial)
                        told.append(burial)
                    except CopyLostError as error:
                        log.warning("cell_not_told", cell=cell, partner=burial.partner_id, error=error.what)
            finally:
                if told:
                    await registry_moves.forget_burials(self._registry, told)
                    log.info("cell_told", cell=cell, partners=len(told))
        except DoorError as error:
            log.debug("cell_not_told", cell=cell, error=error.what)  # it is still dead
        except ControlPlaneError as error:
            log.warning("cell_not_told", cell=cell, error=error.what)
        except Exception:
            log.exception("cell_not_told", cell=cell)  # a bug costs this round

    def _is_over(self, burial: Burial) -> bool:
        """Say whether there is nobody to tell, or nothing: the cell was removed, or the partner lives there again."""
        partner = self._registry.find(burial.partner_id)
        lives_there = partner is not None and partner.cell == burial.cell
        removed = {cell.name for cell in self._registry.cells() if cell.state == "removed"}
        return lives_there or burial.cell in removed
