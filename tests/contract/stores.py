"""The stores that the contract suite runs over, each with the means to hold a commit up or to lose its answer.

A store of another kind joins as one more harness; its tests are the same.
"""

import asyncio
import contextlib
import os
import secrets
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import apsw
import pytest

from actors.errors import StoreUnavailableError
from actors.store import Store
from stores.fdb_cluster import Cluster, TransactionError
from stores.fdb_store import FdbStore
from stores.memory_store import Fault, MemoryBook, MemoryStore
from stores.sqlite_store import SqliteStore

Place = Literal["before", "inside", "after"]


CLUSTER_FILE_VARIABLE = "BULKHEAD_TEST_FDB_CLUSTER_FILE"


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


class HeldCommit:
    """Holds a commit's coroutine where it is called from."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._resumed = asyncio.Event()

    async def hold(self) -> None:
        self.reached.set()
        await asyncio.wait_for(self._resumed.wait(), 30)

    def resume(self) -> None:
        self._resumed.set()


class FdbHarness:
    """A book of its own in the cluster that is named for tests, and removed at the end."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.path = ("bulkhead-tests", secrets.token_hex(8))

    async def open(self) -> FdbStore:
        return await FdbStore.open(self.cluster, self.path)

    def hold(self, store: Store, place: Place) -> HeldCommit:
        assert isinstance(store, FdbStore)
        held = HeldCommit()

        async def before(commit: Callable[..., Awaitable[None]], *arguments: Any) -> None:
            await held.hold()
            await commit(*arguments)

        async def after(send: Callable[..., Awaitable[None]], *arguments: Any) -> None:
            await send(*arguments)
            await held.hold()

        if place == "before":
            self._next(store, "_commit", before)
        else:
            self._next(store, "_send", before if place == "inside" else after)
        return held

    def lose_answer(self, store: Store, *, written: bool) -> None:
        assert isinstance(store, FdbStore)
        self.fail_next(store, 1_039, written=written)

    def fail_next(self, store: FdbStore, code: int, *, written: bool) -> None:
        """Have the next commit end with an error of the client's, though it was written, or was not."""

        async def lose(send: Callable[..., Awaitable[None]], *arguments: Any) -> None:
            if written:
                await send(*arguments)
            raise TransactionError(self.cluster.fdb.FDBError(code), committing=True)

        self._next(store, "_send", lose)

    def _next(self, store: FdbStore, name: str, instead: Callable[..., Awaitable[None]]) -> None:
        method = getattr(store, name)

        async def once(*arguments: Any) -> None:
            delattr(store, name)  # the class's own is what is called next
            await instead(method, *arguments)

        setattr(store, name, once)


def cluster_file() -> Path | None:
    """Give the cluster file of the FoundationDB that tests may use."""
    named = os.environ.get(CLUSTER_FILE_VARIABLE)
    return Path(named) if named else None


async def _remove_directory(cluster: Cluster, path: tuple[str, ...]) -> None:
    def remove(tr: Any) -> None:
        cluster.fdb.directory.remove_if_exists(tr, path)

    for _ in range(20):
        try:
            await cluster._in_thread(remove)
        except StoreUnavailableError:
            await asyncio.sleep(0.5)
        else:
            return
    raise AssertionError(f"{path} could not be removed from the cluster")


@contextlib.asynccontextmanager
async def harness(kind: str, folder: Path) -> AsyncIterator[Harness]:
    if kind == "memory":
        yield MemoryHarness()
    elif kind == "sqlite":
        path = folder / "partner.sqlite"
        await SqliteStore.create(path)
        yield SqliteHarness(path)
    else:
        file = cluster_file()
        assert file is not None
        made = FdbHarness(Cluster(file))
        await FdbStore.create(made.cluster, made.path)
        try:
            yield made
        finally:
            await _remove_directory(made.cluster, made.path)


needs_cluster = pytest.mark.skipif(
    cluster_file() is None, reason=f"no FoundationDB cluster: set {CLUSTER_FILE_VARIABLE}"
)
KINDS = ("memory", "sqlite", pytest.param("fdb", marks=needs_cluster))
