"""A partner's book on its way into this cell, in a worker: batches of rows are written as they come, each once.

How far it is stands in the book itself and is written with each batch, so that whoever goes on after a crash goes on
where it was: a batch that comes twice is written once, one that is out of its turn is refused. No actor serves such a
book; the cell's own book says when it is a partner's.
"""

import asyncio

from actors import keyspace
from actors.store import Check, Clear, Entry, Key, Mutation, Put, Range, Store
from cells import limits
from cells.api import moves
from cells.api.moves import Arrival, Batch
from cells.leaving import CopyLostError, fitting
from stores import tuple_keys
from stores.shelf import Shelf


class Arriving:
    """One arriving book, open for writing. Owned under the door's epoch, as any partner's book is."""

    def __init__(self, store: Store, arrival: Arrival | None, stored: bytes | None) -> None:
        """Not for callers: use `open`."""
        self._store = store
        self._arrival = arrival
        self._stored = stored
        self._lock = asyncio.Lock()

    @classmethod
    async def open(cls, shelf: Shelf, partner_id: str, batch: Batch, door_epoch: int) -> "Arriving":
        """Own the book, above the epoch that its old cell seals it with. Raises StoreError, MessageError."""
        store = await shelf.open("partners", partner_id)
        try:
            await store.acquire(door_epoch, above=batch.epoch + 1)
            (stored,) = (await store.read([keyspace.ARRIVAL])).values
            arrival = None if stored is None else moves.decode_arrival(stored)
        except BaseException:
            await store.close()
            raise
        return cls(store, arrival, stored)

    async def take(self, data: bytes, batch: Batch) -> Arrival:
        """Write a batch, unless it is written already; give how far the copy is. Raises CopyLostError, StoreError."""
        async with self._lock:
            arrival = self._arrival or Arrival(batch.move_id, batch.epoch)
            if (batch.move_id, batch.epoch) != (arrival.move_id, arrival.epoch):
                raise CopyLostError("the book here is of another copy")
            if batch.number < arrival.batches:
                return arrival
            if batch.number > arrival.batches or arrival.is_complete:
                raise CopyLostError(f"batch {arrival.batches} comes next, not {batch.number}")
            keys = [tuple_keys.decode(key) for key, _ in batch.rows]
            held = (await self._store.read(keys)).values
            content, rows = arrival.content, arrival.rows
            mutations: list[Mutation] = []
            for (encoded, value), key, old in zip(batch.rows, keys, held, strict=True):
                if old is not None:
                    content, rows = moves.add_content(content, encoded, old, sign=-1), rows - 1
                if value is not None:
                    content, rows = moves.add_content(content, encoded, value), rows + 1
                mutations.append(Clear(key) if value is None else Put(key, value))
            arrival = Arrival(
                arrival.move_id,
                arrival.epoch,
                arrival.batches + 1,
                moves.next_stream(arrival.stream, data),
                content,
                rows,
                batch.sequence,
            )
            stored = moves.encode_arrival(arrival)
            await self._store.commit(
                [Check(keyspace.ARRIVAL, self._stored)], [*mutations, Put(keyspace.ARRIVAL, stored)]
            )
            self._arrival, self._stored = arrival, stored
            return arrival

    async def close(self) -> None:
        """Close the book."""
        async with self._lock:
            await self._store.close()


async def read_arrival(shelf: Shelf, partner_id: str) -> Arrival | None:
    """Read how far a book that came from another cell is; None where it never came. Raises StoreError, MessageError."""
    store = await shelf.open("partners", partner_id)
    try:
        (stored,) = (await store.read([keyspace.ARRIVAL])).values
    finally:
        await store.close()
    return None if stored is None else moves.decode_arrival(stored)


async def sum_rows(store: Store, after: Key | None) -> tuple[bytes, int, Key | None]:
    """Sum up some rows of a book that nobody writes: their content, how many, and where to go on (None: the end)."""
    begin: Key = ("",) if after is None else after
    (page,) = (await store.read([], [Range(begin, (keyspace.LAST,), limits.COPY_ROWS_MAX)])).ranges
    taken: list[Entry] = fitting(page)
    content, rows = moves.NO_STREAM, 0
    for row in taken:
        if row.key not in (keyspace.MOVED, keyspace.ARRIVAL):
            content, rows = moves.add_content(content, tuple_keys.encode(row.key), row.value), rows + 1
    is_end = len(taken) == len(page) < limits.COPY_ROWS_MAX
    return content, rows, None if is_end else (*taken[-1].key, "")
