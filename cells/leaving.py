"""A partner's book on its way out of this cell, in its worker: batches of rows, the end of writing, the seal.

The copy is bound to the epoch under which it began. Whatever takes the partner over ends it, and it begins anew; so a
batch, a seal or a whole control plane that comes late finds nothing to do harm to. docs/protocol.md has the steps.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog

from actors import codec, keyspace
from actors.errors import CommitUnknownError, FencedError, StoreError
from actors.partner import PartnerActor
from actors.rules import Standing
from actors.store import Entry, Key, Put, Range
from cells import limits
from cells.api import moves
from cells.api.moves import Batch, Receipt
from stores import tuple_keys
from stores.tracked_store import TrackedStore

log = structlog.get_logger()

# What a cell writes about the move itself stays behind.
_NOT_COPIED: Final = frozenset({keyspace.MOVED, keyspace.ARRIVAL})
_ALL: Final = (("",), (keyspace.LAST,))


class CopyLostError(Exception):
    """This copy can't go on; it says why. A new one may."""


class Leaving:
    """One copy of one partner's book, from its first batch to the seal."""

    def __init__(self, move_id: str, actor: PartnerActor, store: TrackedStore, door_epoch: int) -> None:
        self.move_id = move_id
        self.actor = actor
        self.epoch = actor.epoch
        self._store = store
        self._door_epoch = door_epoch
        self._lock = asyncio.Lock()
        self._after: Key | None = _ALL[0]  # None: every row was sent once
        self._number = 0
        self._last = b""
        self._stream = moves.NO_STREAM
        self._sequence: int | None = None  # of the book when it was quiesced
        self._sealed_epoch = 0
        self._is_over = False
        store.track()

    async def batch(self, number: int) -> bytes:
        """Give the batch of that number: the next one, or the last one again. Raises CopyLostError, StoreError."""
        async with self._lock:
            if number == self._number - 1:
                return self._last
            if number != self._number:
                raise CopyLostError(f"batch {self._number} comes next, not {number}")
            self._require_going_on()
            rows = await (self._changed() if self._after is None else self._next_rows(self._after))
            is_scanned, changed = self._after is None, self._store.changed
            is_last = self._sequence is not None and is_scanned and not changed
            batch = Batch(
                self.move_id,
                self.epoch,
                number,
                tuple(rows),
                is_scanned,
                changed,
                self._sequence if is_last else None,
            )
            self._last = moves.encode_batch(batch)
            self._stream = moves.next_stream(self._stream, self._last)
            self._number += 1
            return self._last

    async def quiesce(self) -> None:
        """End all writing: what is not in the book by now never will be. Raises CopyLostError, StoreError.

        Open operations stay open in the book, and the next owner resumes them.
        """
        async with self._lock:
            if self._sequence is not None:
                return
            self._require_going_on()
            self._store.keep_open()
            await self.actor.stop("it moves to another cell")
            # A commit that was under way when its actor stopped may yet be written, until a new epoch is taken.
            self._sealed_epoch = (await self._store.acquire(self._door_epoch)).epoch
            if self._sealed_epoch != self.epoch + 1:
                raise CopyLostError("somebody else owned the book meanwhile, and may have written")
            (head,) = (await self._store.read([keyspace.HEAD])).values
            self._sequence = (Standing() if head is None else codec.decode_standing(head)).sequence

    async def seal(self, to: str, token: str, batches: int, stream: bytes, directory_version: int) -> bytes:
        """Seal the book for the cell that holds all of it, and give the receipt. From now on only forward.

        `directory_version`: a router that does not know that cell needs it, or a newer one.
        Raises CopyLostError where the target holds something else, StoreError; of CommitUnknownError the next to open
        the book finds out.
        """
        async with self._lock:
            if self._sequence is None or self._is_over:
                raise CopyLostError("it is not quiesced")
            is_copied = self._after is None and not self._store.changed
            # Where nothing was copied the target takes the book itself over.
            if (batches, stream) != (self._number, self._stream) or not (is_copied or not self._number):
                raise CopyLostError(f"the target has {batches} batches, {self._number} were sent")
            receipt = moves.encode_receipt(
                Receipt(self.move_id, to, token, self._sealed_epoch, self._sequence, batches, stream, directory_version)
            )
            self._is_over = True
            try:
                await self._store.commit([], [Put(keyspace.MOVED, receipt)])
            except (CommitUnknownError, FencedError) as error:
                log.warning("seal_not_known", move_id=self.move_id, error=str(error))
                raise
            finally:
                await self._store.release()
            return receipt

    async def end(self) -> None:
        """Copy nothing more. Where it was quiesced, the partner is served again once it is assigned."""
        self._is_over = True
        async with self._lock:
            await self._store.release()

    def _require_going_on(self) -> None:
        if self._is_over:
            raise CopyLostError("it was ended")
        if self.actor.epoch != self.epoch:
            raise CopyLostError(f"the partner's epoch is {self.actor.epoch}, the copy is of {self.epoch}")
        if not self._store.is_tracked:
            raise CopyLostError("more changed than can be remembered")

    async def _next_rows(self, after: Key) -> list[tuple[bytes, bytes | None]]:
        (page,) = (await self._store.read([], [Range(after, _ALL[1], limits.COPY_ROWS_MAX)])).ranges
        taken = fitting(page)
        # A longer key stands right behind the one that it goes on from.
        self._after = None if len(taken) == len(page) < limits.COPY_ROWS_MAX else (*taken[-1].key, "")
        return [(tuple_keys.encode(row.key), row.value) for row in taken if row.key not in _NOT_COPIED]

    async def _changed(self) -> list[tuple[bytes, bytes | None]]:
        keys = self._store.take_changed(limits.COPY_ROWS_MAX)
        if not keys:
            return []
        try:
            values = (await self._store.read(keys)).values
        except StoreError:
            self._store.note(keys)
            raise
        count = len(fitting([Entry(key, value or b"") for key, value in zip(keys, values, strict=True)]))
        self._store.note(keys[count:])
        return [
            (tuple_keys.encode(key), value)
            for key, value in zip(keys[:count], values[:count], strict=True)
            if key not in _NOT_COPIED
        ]


def fitting(rows: Sequence[Entry]) -> list[Entry]:
    """Give the first rows, as many as one batch takes: at least one, where there is one."""
    taken: list[Entry] = []
    size = 0
    for row in rows:
        size += sum(len(part) if isinstance(part, str | bytes) else 9 for part in row.key) + len(row.value)
        if taken and size > limits.COPY_BYTES_MAX:
            break
        taken.append(row)
    return taken
