"""The cell's own book: which partners live here, with which profile, and what was decided about them for good.

Whoever holds its newest epoch is the cell's door. Only the door writes it.
"""

import contextlib
from collections.abc import AsyncIterator, Callable

import msgpack
import structlog

from actors.errors import CommitUnknownError, FencedError, StoreError, StoreExistsError, StoreMissingError
from actors.store import Clear, Entry, Key, Mutation, Put, Range, Store
from cells import door_answers, escalation
from cells.api import messages
from cells.api.messages import Profile
from cells.escalation import Escalation, EscalationError
from stores.shelf import Shelf

log = structlog.get_logger()

_PAGE_ROWS = 500


async def open_book(shelf: Shelf) -> Store:
    """Open the cell's own book; the first door of a cell makes it. A lost one is never made anew."""
    try:
        return await shelf.open("cell")
    except StoreMissingError as error:
        if await shelf.names("partners"):
            raise StoreMissingError(
                f"the cell has partners' books and lost its own; restore it from a backup: {error}"
            ) from error
    # Of two first doors one makes it; who comes second finds it.
    with contextlib.suppress(StoreExistsError):
        await shelf.create("cell")
    return await shelf.open("cell")


class CellBook:
    """The rows of the book. `on_superseded`: it is another door's, or only a new door can tell whose."""

    def __init__(self, cell: str, store: Store, on_superseded: Callable[[], None]) -> None:
        self.cell = cell
        self._store = store
        self._on_superseded = on_superseded
        self.door_epoch = 0

    async def own(self) -> None:
        """Be the cell's door from now on. Raises StoreError."""
        self.door_epoch = (await self._store.acquire(0)).epoch

    async def read(self) -> tuple[dict[str, Profile], dict[str, Escalation]]:
        """Read the partners, and what was decided about them. Raises StoreError."""
        profiles = {
            str(row.key[-1]): door_answers.kept_profile(str(row.key[-1]), row.value)
            async for row in self._rows("partner")
        }
        escalations = {str(row.key[-1]): _kept_escalation(row) async for row in self._rows("escalation")}
        return profiles, escalations

    async def read_moves(self) -> tuple[dict[str, bytes], dict[str, bytes], dict[str, bytes]]:
        """Read who left, who may come, and whose moves ended here, as departures.py and arrivals.py write them."""
        left = {str(row.key[-1]): row.value async for row in self._rows("moved")}
        expected = {str(row.key[-1]): row.value async for row in self._rows("arriving")}
        ended = {str(row.key[-1]): row.value async for row in self._rows("ended")}
        return left, expected, ended

    async def put_profile(self, profile: Profile) -> StoreError | None:
        """Keep a profile; give why it could not be kept."""
        return await self.write(Put(("partner", profile.partner_id), msgpack.packb(messages.encode_profile(profile))))

    async def put_escalation(self, partner_id: str, found: Escalation | None) -> StoreError | None:
        """Keep what was decided about a partner, or that nothing is any more; give why it could not be kept."""
        key = ("escalation", partner_id)
        return await self.write(Clear(key) if found is None else Put(key, escalation.encode(found)))

    async def write(self, *rows: Mutation) -> StoreError | None:
        """Write rows, all or none; end where the book is another door's, or where only a new door can tell."""
        try:
            await self._store.commit((), rows)
        except (FencedError, CommitUnknownError) as error:
            log.warning("door_superseded", error=f"{type(error).__name__}: {error}")
            self._on_superseded()
            return error
        except StoreError as error:
            log.warning("cell_book_not_written", error=f"{type(error).__name__}: {error}")
            return error
        return None

    async def _rows(self, kind: str) -> AsyncIterator[Entry]:
        begin: Key = (kind,)
        while True:
            rows = (await self._store.read((), [Range(begin, (kind, "\U0010ffff"), _PAGE_ROWS)])).ranges[0]
            for row in rows:
                yield row
            if len(rows) < _PAGE_ROWS:
                return
            begin = (*rows[-1].key, "")


def _kept_escalation(row: Entry) -> Escalation:
    """Read one. Of one that can't be read this much is sure: workers died of the partner, so it shares none."""
    try:
        return escalation.decode(row.value)
    except EscalationError as error:
        log.error("escalation_unreadable", partner=str(row.key[-1]), error=str(error))  # noqa: TRY400 - no bug of ours
        return Escalation(escalation.DEDICATED, 0, "what was decided about it can't be read")
