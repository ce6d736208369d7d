"""The embedded store: one SQLite file per partner, behind the contract of `actors.store`.

One thread writes, one reads, one checkpoints; each has a connection of its own, and the event loop never blocks. How
the file is made and opened is in `sqlite_file.py`; what may be asked of a store in `store_requests.py`.
"""

import asyncio
import contextlib
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import apsw
import structlog

from actors import limits as actor_limits
from actors.errors import (
    CommitUnknownError,
    ConflictError,
    FencedError,
    StoreCorruptError,
    StoreError,
    StoreUnavailableError,
)
from actors.store import Check, Entry, Key, Mutation, Ownership, Range, Snapshot
from stores import limits, sqlite_file, tuple_keys
from stores.requests import EncodedCommit, EncodedRange, EncodedRead, encode_commit, encode_read
from stores.sqlite_file import Place
from stores.store_thread import Call, StoreThread

log = structlog.get_logger()

T = TypeVar("T")

_VALUE = "SELECT value, checksum FROM entry WHERE key = ?"
_ROWS = "SELECT key, value, checksum FROM entry WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"
_ROWS_REVERSED = "SELECT key, value, checksum FROM entry WHERE key >= ? AND key < ? ORDER BY key DESC LIMIT ?"
# Many rows a statement: each step of one lets go of Python's lock and waits for it again, under a busy event loop.
_PUTS = [
    f"INSERT INTO entry (key, value, checksum) VALUES (?, ?, ?){', (?, ?, ?)' * more} "  # noqa: S608 - constants only
    "ON CONFLICT (key) DO UPDATE SET value = excluded.value, checksum = excluded.checksum"
    for more in range(limits.STATEMENT_ROWS_MAX)
]
_CLEARS = [
    f"DELETE FROM entry WHERE key IN (?{', ?' * more})"  # noqa: S608 - constants only
    for more in range(limits.STATEMENT_ROWS_MAX)
]


class SqliteStore:
    """A partner's book in a file. Safe for one event loop; see `actors.store.Store` for the contract."""

    def __init__(self, writer: "_Writer", reader: "_Reader", checkpointer: "_Checkpointer") -> None:
        """Not for callers: use `open`."""
        self._writer = writer
        self._reader = reader
        self._checkpointer = checkpointer
        self._closing: asyncio.Task[None] | None = None
        # The epoch that this store owns; None before acquire and after a commit whose outcome is unknown.
        self._epoch: int | None = None

    @staticmethod
    async def create(path: Path) -> None:
        """Make an empty book, durably: at onboarding only.

        Raises StoreExistsError where one is, StoreUnavailableError, StoreCorruptError.
        """
        await asyncio.to_thread(sqlite_file.create, path)

    @staticmethod
    async def open(path: Path) -> "SqliteStore":
        """Open a book that exists. Raises StoreMissingError, StoreCorruptError, StoreUnavailableError."""
        checkpointer = _Checkpointer(path)
        store = SqliteStore(_Writer(path, checkpointer), _Reader(path), checkpointer)
        try:
            await store._writer.open()
        except BaseException:
            await store.close()
            raise
        return store

    async def acquire(self, door_epoch: int, above: int = 0) -> Ownership:
        """Raise the epoch and own the partner from now on; see the contract.

        Runs after whatever this store is still writing, so that afterwards none of it can commit any more.
        """
        self._refuse_closed()
        self._epoch = None
        ownership = await self._writer.acquire(door_epoch, above)
        self._epoch = ownership.epoch
        return ownership

    async def read(self, keys: Sequence[Key], ranges: Sequence[Range] = ()) -> Snapshot:
        """Read committed rows at one moment; see the contract. Takes at most STORE_TRANSACTION_MS_MAX."""
        self._refuse_closed()
        return await self._reader.read(encode_read(keys, ranges))

    async def commit(self, checks: Sequence[Check], mutations: Sequence[Mutation]) -> None:
        """Write all or nothing, durably; see the contract. Takes at most COMMIT_TIMEOUT_MS.

        A canceled commit counts as unknown, too.
        """
        self._refuse_closed()
        epoch = self._epoch
        request = encode_commit(checks, mutations)
        if epoch is None:
            raise StoreUnavailableError("not acquired since it was opened or lost sight of a commit")

        def work(call: Call[None]) -> None:
            if self._epoch != epoch:
                raise StoreUnavailableError("this ownership has ended meanwhile; nothing was written")
            self._writer.commit(epoch, request, call)

        try:
            await self._writer.thread.run(work, actor_limits.COMMIT_TIMEOUT_MS)
        except (CommitUnknownError, asyncio.CancelledError):
            if self._epoch == epoch:
                self._epoch = None
            raise

    async def close(self) -> None:
        """Finish what is being written and give back files and threads. Calling it twice is no error."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        # The writer is the last, because only a connection that can write leaves no log behind.
        for thread, work in (
            (self._reader.thread, self._reader.disconnect),
            (self._checkpointer.thread, lambda: None),
            (self._writer.thread, self._writer.disconnect),
        ):
            try:
                await thread.finish(work)
            except StoreError as error:
                log.warning("store_close_late", thread=thread.name, error=str(error))

    def _refuse_closed(self) -> None:
        if self._closing is not None:
            raise StoreUnavailableError("the store is closed")


class _Writer:
    """The writing connection. Everything but `open` and `acquire` runs in its thread."""

    def __init__(self, path: Path, checkpointer: "_Checkpointer") -> None:
        self.thread = StoreThread(f"writer of {path.name}")
        self._path = path
        self._checkpointer = checkpointer
        self._opened: tuple[apsw.Connection, Place] | None = None
        self._distrusted = False
        self._log_pages = 0
        self._checkpointing = False
        self._checkpoint_at_pages = limits.CHECKPOINT_LOG_PAGES

    async def open(self) -> None:
        await self.thread.run(lambda _: self._connect(), actor_limits.STORE_TRANSACTION_MS_MAX)

    async def acquire(self, door_epoch: int, above: int) -> Ownership:
        return await self.thread.run(
            lambda call: self._acquire(door_epoch, above, call), actor_limits.COMMIT_TIMEOUT_MS
        )

    def commit(self, epoch: int, request: EncodedCommit, call: Call[None]) -> None:
        """Do one transaction. Raises what the contract names."""
        if self._distrusted:
            raise StoreUnavailableError("an earlier commit is unknown; nothing was written")
        with self._transaction(call) as connection:
            stored = connection.execute("SELECT epoch FROM ownership").get
            if stored != epoch:
                raise FencedError(f"{self._path}: epoch {stored} owns it, not {epoch}")
            for key, expected in request.checks:
                if _value(connection, key) != expected:
                    raise ConflictError(f"{tuple_keys.decode(key)!r} is not what it was")
            puts: list[bytes | int] = []
            clears: list[bytes] = []
            for key, value in request.writes.items():
                if value is None:
                    clears.append(key)
                else:
                    puts += (key, value, _checksum(key, value))
            for start in range(0, len(puts), 3 * limits.STATEMENT_ROWS_MAX):
                some = puts[start : start + 3 * limits.STATEMENT_ROWS_MAX]
                connection.execute(_PUTS[len(some) // 3 - 1], some)
            for start in range(0, len(clears), limits.STATEMENT_ROWS_MAX):
                gone = clears[start : start + limits.STATEMENT_ROWS_MAX]
                connection.execute(_CLEARS[len(gone) - 1], gone)

    def disconnect(self) -> None:
        if self._opened is not None:
            connection, _ = self._opened
            self._opened = None
            sqlite_file.disconnect(connection)

    def _connect(self) -> tuple[apsw.Connection, Place]:
        if self._opened is None:
            opened = sqlite_file.connect(self._path, writable=True)
            opened[0].set_wal_hook(self._on_log_grown)
            self._opened = opened
        return self._opened

    def _acquire(self, door_epoch: int, above: int, call: Call[Ownership]) -> Ownership:
        if self._distrusted:
            # When an fsync has failed, the log may be whole in memory only, and no later fsync would tell.
            self._begin_log_anew(limits.STORE_LOCK_WAIT_MS)
            self._distrusted = False
        with self._transaction(call) as connection:
            epoch, newest_door_epoch = connection.execute("SELECT epoch, door_epoch FROM ownership").get
            if door_epoch < newest_door_epoch:
                raise FencedError(f"{self._path}: door {newest_door_epoch} was here, newer than {door_epoch}")
            owned = Ownership(max(epoch, above) + 1, door_epoch)
            connection.execute("UPDATE ownership SET epoch = ?, door_epoch = ?", (owned.epoch, door_epoch))
        return owned

    def _begin_log_anew(self, wait_ms: int) -> None:
        """Copy what is left of the log into the book, so that the next commit starts the log over."""
        connection, _ = self._connect()
        connection.set_busy_timeout(wait_ms)
        try:
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
        except apsw.Error as error:
            sqlite_file.raise_store_error(error, self._path)
        finally:
            connection.set_busy_timeout(limits.STORE_LOCK_WAIT_MS)

    def _on_checkpointed(self) -> None:
        """Do what a checkpoint beside the writer never gets to while commits follow each other without a pause."""
        self._checkpointing = False
        if self._log_pages < limits.CHECKPOINT_LOG_PAGES_BLOCKING:
            return
        try:
            self._begin_log_anew(limits.CHECKPOINT_LOCK_WAIT_MS)
        except StoreError as error:
            log.warning("store_checkpoint_failed", book=self._path.name, error=str(error))

    @contextlib.contextmanager
    def _transaction(self, call: Call[None] | Call[Ownership]) -> Iterator[apsw.Connection]:
        """Commit what is done inside, unless it raises or the caller has given up; then undo it."""
        connection, place = self._connect()
        try:
            connection.execute("BEGIN IMMEDIATE")
            place.verify()
            yield connection
            _claim(call)
        except BaseException as error:
            self._roll_back(connection)
            if isinstance(error, apsw.Error):
                sqlite_file.raise_store_error(error, self._path)
            raise
        try:
            connection.execute("COMMIT")
        except apsw.FullError as error:
            # The last frame in the log makes the transaction; frames that found no room end without it.
            self._roll_back(connection)
            raise StoreUnavailableError(f"{self._path}: {error}") from error
        except apsw.Error as error:
            self._distrusted = True
            self.disconnect()
            raise CommitUnknownError(f"{self._path}: {error}") from error
        self._checkpoint_if_due()

    def _roll_back(self, connection: apsw.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except apsw.Error as error:
            # A connection that is closed before its COMMIT has rolled back.
            log.warning("store_rollback_failed", error=str(error))
            self.disconnect()

    def _on_log_grown(self, _connection: apsw.Connection, _database: str, pages: int) -> int:
        if pages < self._log_pages:
            self._checkpoint_at_pages = limits.CHECKPOINT_LOG_PAGES
        self._log_pages = pages
        return apsw.SQLITE_OK

    def _checkpoint_if_due(self) -> None:
        if self._log_pages < self._checkpoint_at_pages or self._checkpointing:
            return
        self._checkpoint_at_pages = self._log_pages + limits.CHECKPOINT_LOG_PAGES
        self._checkpointing = True
        try:
            self._checkpointer.checkpoint(lambda: self.thread.post(self._on_checkpointed))
        except StoreUnavailableError as error:
            self._checkpointing = False
            log.warning("store_checkpoint_failed", book=self._path.name, error=str(error))


class _Reader:
    """The read-only connection. Everything but `read` runs in its thread."""

    def __init__(self, path: Path) -> None:
        self.thread = StoreThread(f"reader of {path.name}")
        self._path = path
        self._opened: tuple[apsw.Connection, Place] | None = None
        self._deadline = 0.0

    async def read(self, request: EncodedRead) -> Snapshot:
        return await self.thread.run(lambda _: self._read(request), actor_limits.STORE_TRANSACTION_MS_MAX)

    def disconnect(self) -> None:
        if self._opened is not None:
            connection, _ = self._opened
            self._opened = None
            sqlite_file.disconnect(connection)

    def _read(self, request: EncodedRead) -> Snapshot:
        self._deadline = time.monotonic() + actor_limits.STORE_TRANSACTION_MS_MAX / 1000
        connection, place = self._connect()
        try:
            connection.execute("BEGIN")
            place.verify()
            values = [_value(connection, key) for key in self._in_time(request.keys)]
            ranges = [_rows(connection, asked) for asked in self._in_time(request.ranges)]
            connection.execute("COMMIT")
        except BaseException as error:
            # Nothing is lost with a read-only connection, and a new one has no transaction left open.
            self.disconnect()
            if isinstance(error, apsw.Error):
                sqlite_file.raise_store_error(error, self._path)
            raise
        return Snapshot(tuple(values), tuple(ranges))

    def _connect(self) -> tuple[apsw.Connection, Place]:
        if self._opened is None:
            self._opened = sqlite_file.connect(self._path, writable=False)
        return self._opened

    def _in_time(self, asked: Iterable[T]) -> Iterator[T]:
        """Pass on what is asked while there is time. One key or range is small enough not to be interrupted."""
        for one in asked:
            if time.monotonic() > self._deadline:
                raise StoreUnavailableError(f"{self._path}: the read takes too long")
            yield one


class _Checkpointer:
    """Copies the log into the book, on a connection and in a thread of its own, off the payment's path."""

    def __init__(self, path: Path) -> None:
        self.thread = StoreThread(f"checkpointer of {path.name}")
        self._path = path

    def checkpoint(self, done: Callable[[], None]) -> None:
        """Copy as much as is possible beside the writer; `done` is called in this thread, also where it failed."""
        self.thread.post(lambda: self._checkpoint(done))

    def _checkpoint(self, done: Callable[[], None]) -> None:
        try:
            # Not kept open: with many partners in a process, files are scarcer than the moment it takes.
            connection, _ = sqlite_file.connect(self._path, writable=True)
            try:
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            finally:
                sqlite_file.disconnect(connection)
        except (apsw.Error, StoreError) as error:
            # The log keeps everything; the next checkpoint is asked for when it has grown again.
            log.warning("store_checkpoint_failed", book=self._path.name, error=str(error))
        finally:
            done()


def _claim(call: Call[None] | Call[Ownership]) -> None:
    if not call.claim():
        raise StoreUnavailableError("given up before its commit; nothing was written")


def _checksum(key: bytes, value: bytes) -> int:
    """Sum up a row. SQLite has no checksums of its own: a bit that flips on the disk must not become money."""
    return zlib.crc32(value, zlib.crc32(key))


def _value(connection: apsw.Connection, key: bytes) -> bytes | None:
    row = connection.execute(_VALUE, (key,)).get
    if row is None:
        return None
    value, checksum = row
    return _verified(key, value, checksum)


def _rows(connection: apsw.Connection, asked: EncodedRange) -> tuple[Entry, ...]:
    sql = _ROWS_REVERSED if asked.reverse else _ROWS
    return tuple(
        [
            Entry(tuple_keys.decode(key), _verified(key, value, checksum))
            for key, value, checksum in connection.execute(sql, (asked.begin, asked.end, asked.limit))
        ]
    )


def _verified(key: bytes, value: bytes, checksum: int) -> bytes:
    if checksum != _checksum(key, value):
        raise StoreCorruptError(f"the row under {key!r} is damaged")
    return value
