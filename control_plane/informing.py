"""Tells partners, in their own journals, what operators changed: the registry's notices, through the cells' doors.

A notice that was delivered and not forgotten, because something died in between, is delivered again; the partner's
actor takes it once. A cell without an answer holds up no other, and a partner that is not served no other of its cell.
"""

import asyncio

import structlog

from control_plane import limits
from control_plane.doors import Doors
from control_plane.errors import ControlPlaneError, DoorError
from control_plane.notices import Notice
from control_plane.registry import Registry

log = structlog.get_logger()


class Informer:
    """What partners are still to be told."""

    def __init__(self, registry: Registry, doors: Doors) -> None:
        self._registry = registry
        self._doors = doors
        self._telling: dict[str, asyncio.Task[None]] = {}
        self._waiting: set[str] = set()  # partners whose cell did not take it, so that it is logged once
        self._is_closed = False

    async def tell(self) -> None:
        """Begin to tell the partners of each cell in which none is being told already."""
        if self._is_closed:
            return
        by_cell: dict[str, list[str]] = {}
        for partner_id in self._registry.partners_to_tell():
            partner = self._registry.find(partner_id)
            by_cell.setdefault("" if partner is None else partner.cell, []).append(partner_id)
        for cell, partner_ids in by_cell.items():
            task = self._telling.get(cell)
            if task is None or task.done():
                self._telling[cell] = asyncio.create_task(self._tell(partner_ids), name=f"inform-{cell}")

    async def stop(self) -> None:
        """Leave the rest for the next start; nothing is begun any more."""
        self._is_closed = True
        for task in self._telling.values():
            task.cancel()
        await asyncio.gather(*self._telling.values(), return_exceptions=True)

    async def _tell(self, partner_ids: list[str]) -> None:
        try:
            for partner_id in partner_ids:
                await self._tell_partner(partner_id)
        except ControlPlaneError as error:
            log.debug("partners_not_informed", error=error.what)

    async def _tell_partner(self, partner_id: str) -> None:
        """Deliver a partner's notices in their order. Raises ControlPlaneError where its whole cell is away."""
        told: list[Notice] = []
        try:
            for notice in self._registry.notices(partner_id)[: limits.NOTICES_AT_ONCE_MAX]:
                partner = self._registry.find(partner_id)
                if partner is not None and partner.status != "erasing":  # else nobody is there to read it
                    await self._doors.record_change(partner.cell, notice)
                told.append(notice)
            self._waiting.discard(partner_id)
        except ControlPlaneError as error:
            if partner_id not in self._waiting:
                self._waiting.add(partner_id)
                log.warning("partner_not_informed", partner=partner_id, error=error.what)
            if isinstance(error, DoorError):
                raise
        finally:
            if told:
                await self._forget(told)

    async def _forget(self, told: list[Notice]) -> None:
        async with self._registry.writing() as draft:
            for notice in told:
                draft.forget_notice(notice)
