"""The stores that the contract suite runs over, each with the means to hold a commit up or to lose its answer.

A store of another kind joins as one more harness; its tests are the same.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal, Protocol

import apsw

from actors.store import Store
from stores.memory_store import Fault, MemoryBook, MemoryStore
from stores.sqlite_store import SqliteStore

Place = Literal["before", "inside", "after"]


class Held(Protocol):
    """A commit that is held up."""

    reached: asyncio.Event

    def resume(self) -> None: ...


class Harness(Protocol):
    """One partner's book, empty at first, and any number of stores over it."""

    async def open(self) -> Store: ...

    def hold(self, store: Store, place: Place) -> Held:
        """Hold the next commit of this store."""

    def lose_answer(self, store: Store, *, written: bool) -> None:
        """Make the next commit of this store end as unknown, though it was written, or was not."""


class MemoryHarness:
    def __init__(self) -> None:
        self.book = MemoryBook()

    async def open(self) -> Store:
        return MemoryStore(self.book)

    def hold(self, store: Store, place: Place) -> Held:
        return self.book.stop(place)

    def lose_answer(self, store: Store, *, written: bool) -> None:
        self.book.inject(Fault.UNKNOWN_WRITTEN if written else Fault.UNKNOWN_NOT_WRITTEN)


class HeldThread:
    """Blocks the writer's thread where it is called from."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._resumed = threading.Event()

    def block(self) -> None:
        self._loop.call_soon_threadsafe(self.reached.set)
        assert self._resumed.wait(30), "the test never resumed it"

    def resume(self) -> None:
        self._resumed.set()


class SqliteHarness:
    def __init__(self, path: Path) -> None:
        self.path = path

    async def open(self) -> SqliteStore:
        return await SqliteStore.open(self.path)

    def hold(self, store: Store, place: Place) -> HeldThread:
        assert isinstance(store, SqliteStore)
        writer = store._writer
        assert writer._opened is not None
        connection, _ = writer._opened
        held = HeldThread()
        if place == "before":
            writer.thread.post(held.block)
        elif place == "inside":

            def in_transaction() -> bool:
                connection.set_commit_hook(None)
                held.block()
                return False

            connection.set_commit_hook(in_transaction)
        else:

            def after_transaction(connection: apsw.Connection, database: str, pages: int) -> int:
                connection.set_wal_hook(writer._on_log_grown)
                held.block()
                return writer._on_log_grown(connection, database, pages)

            connection.set_wal_hook(after_transaction)
        return held

    def lose_answer(self, store: Store, *, written: bool) -> None:
        assert isinstance(store, SqliteStore)
        writer = store._writer
        assert writer._opened is not None
        connection, _ = writer._opened
        if written:

            def fail_after(connection: apsw.Connection, database: str, pages: int) -> int:
                connection.set_wal_hook(writer._on_log_grown)
                return apsw.SQLITE_IOERR_FSYNC

            connection.set_wal_hook(fail_after)
        else:

            def fail_before() -> bool:
                connection.set_commit_hook(None)
                return True

            connection.set_commit_hook(fail_before)


@contextlib.asynccontextmanager
async def harness(kind: str, folder: Path) -> AsyncIterator[Harness]:
    if kind == "memory":
        yield MemoryHarness()
        return
    path = folder / "partner.sqlite"
    await SqliteStore.create(path)
    yield SqliteHarness(path)


KINDS = ("memory", "sqlite")
