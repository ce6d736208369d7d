"""The door's side of partners that are deleted: their row goes first, then their worker lets go, then their book.

The control plane has written down before that the partner is erased, and asks again until it is told that it was done.
"""

import asyncio
import weakref

import structlog

from actors.errors import StoreError
from actors.store import Clear
from cells import door_answers
from cells.api.connection import Request
from cells.api.messages import RefusalCode
from cells.cell_book import CellBook
from cells.ownership import Ownership
from cells.seats import Seat
from cells.worker_moves import fields
from stores.shelf import Shelf

log = structlog.get_logger()


class Erasures:
    """Erases partners of this cell, for good."""

    def __init__(self, seats: dict[str, Seat], book: CellBook, shelf: Shelf, ownership: Ownership) -> None:
        self._seats = seats
        self._book = book
        self._shelf = shelf
        self._ownership = ownership
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def erase(self, request: Request) -> bytes:
        """Leave nothing of a partner; where nothing is, nothing is done. Raises MessageError."""
        (profile_version,) = fields(request, profile_version=int)
        partner_id = request.partner_id
        async with self._locks.setdefault(partner_id, asyncio.Lock()):
            seat = self._seats.get(partner_id)
            if seat is not None:
                # The control plane's word was that it takes nothing any more; a door that knows better says so.
                if seat.profile.status != "suspended" or seat.profile.version > profile_version:
                    detail = (
                        f"{partner_id} is {seat.profile.status} here, in version {seat.profile.version}: not erased."
                    )
                    return door_answers.refused(RefusalCode.PARTNER_UNAVAILABLE, detail)
                error = await self._book.write(Clear(("partner", partner_id)), Clear(("escalation", partner_id)))
                if error is not None:
                    return door_answers.refused(RefusalCode.PARTNER_UNAVAILABLE, f"{type(error).__name__}: {error}")
                await self._ownership.dismiss(seat)
            try:
                await self._shelf.erase("partners", partner_id)
            except StoreError as error:
                return door_answers.refused(RefusalCode.PARTNER_UNAVAILABLE, f"{type(error).__name__}: {error}")
        log.info("partner_erased", partner=partner_id, was_served=seat is not None)
        return door_answers.ok({})
