"""The store for many machines: a book is a directory in a FoundationDB cluster, behind the contract of `actors.store`.

The only file that imports the client (`fdb.tuple` needs none). Its futures are bridged to asyncio: the client's one
network thread wakes the event loop, and no call has a thread of its own. docs/keyspace.md has the keys.
"""

import asyncio
import contextlib
import ctypes
import re
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Any, Final, TypeVar

import msgpack
import orjson
import structlog

from actors import limits as actor_limits
from actors.errors import (
    CommitUnknownError,
    ConflictError,
    FencedError,
    StoreClientError,
    StoreCorruptError,
    StoreError,
    StoreExistsError,
    StoreLimitError,
    StoreMissingError,
    StoreUnavailableError,
)
from actors.store import Check, Entry, Key, Mutation, Ownership, Range, Snapshot
from stores import fdb_errors, limits, tuple_keys
from stores.fdb_errors import Verdict
from stores.requests import EncodedCommit, EncodedRange, encode_commit, encode_read

log = structlog.get_logger()

T = TypeVar("T")

API_VERSION: Final = 710
# What the directory layer calls a directory of ours; it refuses to open one of another kind.
LAYER: Final = b"bulkhead.book"
_RECORD_VERSION: Final = 1
# The store's own rows. A key of the contract never begins with NULL, the tuple encoding's first byte of these.
_OWNERSHIP: Final = b"\x00\x14"  # (None, 0)
_RECEIPT: Final = b"\x00\x15\x01"  # (None, 1)
# https://apple.github.io/foundationdb/mr-status.html
_STATUS: Final = b"\xff\xff/status/json"
_LIBRARY: Final = "libfdb_c.so"
_CLUSTER_FILE_LINE: Final = re.compile(r"[A-Za-z0-9_]+:[A-Za-z0-9]+@[^@\s]+:\d+(:tls)?(,[^@\s]+:\d+(:tls)?)*", re.ASCII)


class _TransactionError(Exception):
    """The client's error of one transaction."""

    def __init__(self, error: Any, *, committing: bool) -> None:
        self.code = int(error.code)
        super().__init__(f"{error.description.decode()} ({self.code})")
        self.verdict = fdb_errors.of_commit(self.code) if committing else fdb_errors.of_read(self.code)


# The client


def load_client() -> Any:
    """Give the binding with its API version chosen. Raises StoreClientError, in one line that says what to install."""
    import fdb  # noqa: PLC0415 - its C library is loaded by choosing the version

    binding = distribution_version("foundationdb")
    try:
        fdb.api_version(API_VERSION)
    except RuntimeError as error:
        raise StoreClientError(_misfit(binding, str(error))) from error
    except Exception as error:
        # The binding raises a plain Exception where it finds no library, an AttributeError where it is of another kind.
        raise StoreClientError(
            f"FoundationDB's client library {_LIBRARY} can't be loaded ({error}): install the package "
            f"foundationdb-clients of version {_minor(binding)}, which the Python binding {binding} goes with, "
            f"or add the folder of {_LIBRARY} to LD_LIBRARY_PATH"
        ) from error
    return fdb


def _misfit(binding: str, said: str) -> str:
    library: str | None = None
    with contextlib.suppress(OSError, AttributeError):
        newest = int(ctypes.CDLL(_LIBRARY).fdb_get_max_api_version())
        library = f"{newest // 100}.{newest // 10 % 10}"
    if library is None:
        return f"FoundationDB's Python binding {binding} and its client library don't fit: {said}"
    if newest < API_VERSION:
        return f"FoundationDB's client library is {library}; Bulkhead needs 7.1 or newer: install foundationdb-clients"
    return (
        f"FoundationDB's Python binding {binding} doesn't take the client library {library}: "
        f"pip install 'foundationdb=={library}.*', or install foundationdb-clients of version {_minor(binding)}"
    )


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def read_cluster_file(path: Path) -> str:
    """Give what a cluster file says, `description:id@host:port,…`. Raises StoreClientError.

    https://apple.github.io/foundationdb/administration.html#cluster-file-format
    """
    try:
        with path.open("rb") as file:
            raw = file.read(limits.FDB_CLUSTER_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise StoreClientError(
            f"FoundationDB's cluster file {path} can't be read ({error.strerror}): copy it from a server of the "
            "cluster, where it is /etc/foundationdb/fdb.cluster"
        ) from error
    lines = [line.strip() for line in raw.decode(errors="replace").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if len(lines) != 1 or not _CLUSTER_FILE_LINE.fullmatch(lines[0]):
        raise StoreClientError(
            f"{path} is no FoundationDB cluster file: it should hold one line such as name:id@127.0.0.1:4500. "
            "Copy it from a server of the cluster, where it is /etc/foundationdb/fdb.cluster"
        )
    return lines[0]


async def _ready(*futures: Any) -> None:
    """Wait until all the client's futures are ready.

    Each callback makes the network thread wait for Python's lock, so one future is waited for at a time: the others,
    which went out with it, have mostly come when it has.
    """
    loop = asyncio.get_running_loop()
    for future in futures:
        if future.is_ready():
            continue
        waiter = loop.create_future()

        def wake(waiter: asyncio.Future[None] = waiter) -> None:
            if not waiter.done():
                waiter.set_result(None)

        def on_ready(_: Any, wake: Callable[[], None] = wake) -> None:
            # In the network thread, or at once in this one.
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(wake)

        future.on_ready(on_ready)
        await waiter


class Cluster:
    """A FoundationDB cluster, and whether it answers. Belongs to one event loop."""

    def __init__(self, cluster_file: Path) -> None:
        """Connect in the background. Raises StoreClientError."""
        self.fdb = load_client()
        read_cluster_file(cluster_file)
        self._file = cluster_file
        try:
            self.database = self.fdb.open(str(cluster_file))  # starts the network thread, once a process
        except self.fdb.FDBError as error:
            raise StoreClientError(f"FoundationDB's cluster file {cluster_file} can't be used: {error}") from error
        options = self.database.options
        options.set_transaction_timeout(limits.FDB_TRANSACTION_TIMEOUT_MS)
        options.set_transaction_size_limit(actor_limits.STORE_TRANSACTION_BYTES_MAX)
        self._silent_since: float | None = None
        self._probing: asyncio.Task[None] | None = None

    def __str__(self) -> str:
        return f"FoundationDB ({self._file})"

    def require_reachable(self) -> None:
        """Raise StoreUnavailableError at once while the cluster is known not to answer."""
        if self._silent_since is not None:
            silent_s = time.monotonic() - self._silent_since
            raise StoreUnavailableError(f"{self} has not answered for {silent_s:.0f} s; it is asked again and again")

    def timed_out(self) -> None:
        """Take note that a transaction got no answer in time: from now on calls fail at once, until one does."""
        if self._silent_since is None:
            self._silent_since = time.monotonic()
            log.warning("cluster_silent", cluster_file=str(self._file))
            self._probing = asyncio.create_task(self._probe_until_it_answers(), name="probe-cluster")

    async def wait_answers(self) -> None:
        """Wait until the cluster answers, FDB_CONNECT_TIMEOUT_MS at most. Raises StoreUnavailableError."""
        deadline = time.monotonic() + limits.FDB_CONNECT_TIMEOUT_MS / 1_000
        while not await self._answers():
            if time.monotonic() >= deadline:
                raise StoreUnavailableError(
                    f"{self} doesn't answer: is fdbserver running, and is this the file of the right cluster?"
                )

    async def _probe_until_it_answers(self) -> None:
        assert self._silent_since is not None
        try:
            while not await self._answers():  # noqa: ASYNC110 - nobody could tell
                await asyncio.sleep(limits.FDB_PROBE_DELAY_MS / 1_000)
            silent_s = time.monotonic() - self._silent_since
            log.info("cluster_answers_again", cluster_file=str(self._file), silent_s=silent_s)
        finally:
            # Also where a probe failed as none should: the next call finds out for itself.
            self._silent_since = None

    async def _answers(self) -> bool:
        transaction = self.database.create_transaction()
        transaction.options.set_timeout(limits.FDB_PROBE_TIMEOUT_MS)
        try:
            await self.wait(transaction, transaction.get_read_version())
        except _TransactionError as error:
            return error.code != fdb_errors.TIMED_OUT  # a cluster that says no answers, too
        return True

    async def wait(self, transaction: Any, *futures: Any, committing: bool = False) -> list[Any]:
        """Wait for futures of a transaction and give their results. Raises _TransactionError for the first failure."""
        try:
            await _ready(*futures)
        except asyncio.CancelledError:
            transaction.cancel()
            raise
        try:
            return [future.wait() for future in futures]  # they are ready: nothing is waited for
        except self.fdb.FDBError as error:
            raise _TransactionError(error, committing=committing) from error

    async def status(self) -> dict[str, Any]:
        """Give the cluster's machine-readable status. Raises StoreUnavailableError.

        The client makes it, of what servers tell, and tells also whom it doesn't reach. Parsing takes some ms a MB.
        """
        transaction = self.database.create_transaction()
        transaction.options.set_timeout(limits.FDB_STATUS_TIMEOUT_MS)
        try:
            (value,) = await self.wait(transaction, transaction.get(_STATUS))
        except _TransactionError as error:
            raise StoreUnavailableError(f"{self} doesn't tell its status: {error}") from error
        told = value.value
        if told is None or len(told) > limits.FDB_STATUS_BYTES_MAX:
            size = "no" if told is None else len(told)
            raise StoreUnavailableError(f"{self}: a status of {size} bytes can't be used")
        try:
            status = orjson.loads(told)
        except ValueError as error:
            raise StoreUnavailableError(f"{self}: its status is no JSON: {error}") from error
        if not isinstance(status, dict):
            raise StoreUnavailableError(f"{self}: its status is no JSON object")
        return status

    # Directories (https://apple.github.io/foundationdb/developer-guide.html#directories)

    async def make_directory(self, path: tuple[str, ...]) -> None:
        """Make a book's directory with its ownership, in one transaction. Raises StoreExistsError and others."""

        def make(tr: Any) -> None:  # the binding looks for a parameter of this name
            if self.fdb.directory.exists(tr, path):
                raise StoreExistsError(f"{'/'.join(path)} in {self}: there is a book already")
            book = self.fdb.directory.create(tr, path, layer=LAYER)
            tr.set(book.key() + _OWNERSHIP, _encode_ownership(Ownership(0, 0)))

        await self._in_thread(make)

    async def open_directory(self, path: tuple[str, ...]) -> bytes:
        """Give the prefix of a book's keys. Raises StoreMissingError and others."""

        def look(tr: Any) -> bytes:
            if not self.fdb.directory.exists(tr, path):
                raise StoreMissingError(f"{'/'.join(path)} in {self}: there is no book")
            return bytes(self.fdb.directory.open(tr, path, layer=LAYER).key())

        return await self._in_thread(look)

    async def remove_directory(self, path: tuple[str, ...]) -> None:
        """Remove a book's directory with all its rows, in one transaction. Raises StoreError."""

        def remove(tr: Any) -> None:
            self.fdb.directory.remove_if_exists(tr, path)

        await self._in_thread(remove)

    async def adopt_directory(
        self, old: tuple[str, ...], new: tuple[str, ...], seal: Key, sealed_by: bytes | None
    ) -> None:
        """Give a book another path and fence its owner, in one transaction. Raises StoreError."""

        def adopt(tr: Any) -> None:
            directory = self.fdb.directory
            if not directory.exists(tr, old):
                if directory.exists(tr, new):
                    return  # it was done before, and its answer lost
                raise StoreMissingError(f"{'/'.join(old)} in {self}: there is no book")
            if directory.exists(tr, new):
                raise StoreExistsError(f"{'/'.join(new)} in {self}: there is a book already")
            prefix = bytes(directory.open(tr, old, layer=LAYER).key())
            held = _decode_ownership(bytes(tr[prefix + _OWNERSHIP]), "/".join(old))
            row = prefix + tuple_keys.encode(seal)
            if sealed_by is not None and bytes(tr[row]) != sealed_by:
                raise FencedError(f"{'/'.join(old)} in {self}: it is not sealed for this")
            del tr[row]
            # Another cell's doors count their own epochs. Commits under way conflict with the changed row.
            tr.set(prefix + _OWNERSHIP, _encode_ownership(Ownership(held.epoch + 1, 0)))
            directory.create_or_open(tr, new[:-1])
            directory.move(tr, old, new)

        await self._in_thread(adopt)

    def is_of(self, cluster_file: Path) -> bool:
        """Say whether a cluster file names this cluster, whichever of its servers it lists."""
        try:
            named, own = read_cluster_file(cluster_file), read_cluster_file(self._file)
        except StoreClientError:
            return False
        return named.partition("@")[0] == own.partition("@")[0]

    async def list_directory(self, path: tuple[str, ...]) -> list[str]:
        """Give the names in a directory, in order; none where it doesn't exist. Raises StoreError."""

        def look(tr: Any) -> list[str]:
            if not self.fdb.directory.exists(tr, path):
                return []
            return sorted(self.fdb.directory.list(tr, path))

        return await self._in_thread(look)

    async def _in_thread(self, work: Callable[[Any], T]) -> T:
        """Do a transaction of the directory layer, which blocks, in a thread; at onboarding and at takeovers only."""
        self.require_reachable()
        try:
            return await asyncio.to_thread(self.fdb.transactional(work), self.database)
        except self.fdb.FDBError as error:
            if error.code == fdb_errors.TIMED_OUT:
                self.timed_out()
            raise StoreUnavailableError(f"{self}: {error}") from error
        except ValueError as error:
            # What the directory layer says of a directory of another kind or version.
            raise StoreCorruptError(f"{self}: {error}") from error


class FdbStore:
    """A book in a FoundationDB cluster. Safe for one event loop; see `actors.store.Store` for the contract."""

    def __init__(self, cluster: Cluster, name: str, prefix: bytes) -> None:
        self._cluster = cluster
        self._name = name
        self._prefix = prefix
        self._ownership_key = prefix + _OWNERSHIP
        # The epoch that this store owns; None before acquire and after a commit whose outcome is unknown.
        self._epoch: int | None = None
        # A version at which that was so, and when it was new.
        self._version: int | None = None
        self._version_at = 0.0
        # When the cluster was asked for a new version last, and gave one.
        self._leave_at = 0.0
        # One commit at a time, as on SQLite: an actor has no more, and so one receipt is enough.
        self._committing = asyncio.Lock()
        self._pending = 0
        self._commits = 0
        self._closed = False

    @staticmethod
    async def create(cluster: Cluster, path: tuple[str, ...]) -> None:
        """Make an empty book, durably: at onboarding only.

        Raises StoreExistsError where one is, StoreUnavailableError, StoreCorruptError.
        """
        await cluster.make_directory(path)

    @staticmethod
    async def open(cluster: Cluster, path: tuple[str, ...]) -> "FdbStore":
        """Open a book that exists. Raises StoreMissingError, StoreCorruptError, StoreUnavailableError."""
        return FdbStore(cluster, "/".join(path), await cluster.open_directory(path))

    async def acquire(self, door_epoch: int, above: int = 0) -> Ownership:
        """Raise the epoch and own the partner from now on; see the contract.

        What this store still has under way can't commit afterwards: each commit conflicts with a changed epoch.
        """
        self._begin()
        self._epoch = None

        async def acquire(transaction: Any) -> Ownership:
            (value,) = await self._cluster.wait(transaction, transaction.get(self._ownership_key))
            held = self._decode_ownership(value.value)
            if door_epoch < held.door_epoch:
                raise FencedError(f"{self._name}: door {held.door_epoch} was here, newer than {door_epoch}")
            ownership = Ownership(max(held.epoch, above) + 1, door_epoch)
            transaction.set(self._ownership_key, _encode_ownership(ownership))
            await self._send(transaction)
            return ownership

        for transaction in self._attempts():
            try:
                ownership = await acquire(transaction)
            except _TransactionError as error:
                # Also where it is unknown whether an epoch was taken: one more is as good.
                if error.verdict is Verdict.SETTLED:
                    continue
                await self._judge(error, "ownership may have been taken; take it again")
            else:
                self._epoch = ownership.epoch
                return ownership
        raise self._too_long()

    async def read(self, keys: Sequence[Key], ranges: Sequence[Range] = ()) -> Snapshot:
        """Read committed rows at one moment; see the contract."""
        request = encode_read(keys, ranges)
        self._begin()
        for transaction in self._attempts():
            snapshot = transaction.snapshot  # nothing is written, so nothing has to conflict
            try:
                values = [snapshot.get(self._prefix + key) for key in request.keys]
                pages = [_Page(self._cluster, transaction, self._prefix, asked) for asked in request.ranges]
                if values:
                    values = await self._cluster.wait(transaction, *values)
                rows = [await page.rows() for page in pages]
                return Snapshot(tuple(value.value for value in values), tuple(rows))
            except _TransactionError as error:
                await self._judge(error, "it was a read")
        raise self._too_long()

    async def commit(self, checks: Sequence[Check], mutations: Sequence[Mutation]) -> None:
        """Write all or nothing, durably; see the contract. Takes at most FDB_CALL_TIMEOUT_MS and a transaction's time.

        A canceled commit counts as unknown, too.
        """
        request = encode_commit(checks, mutations)
        self._begin()
        epoch = self._epoch
        if epoch is None:
            raise StoreUnavailableError("not acquired since it was opened or lost sight of a commit")
        if self._pending >= limits.STORE_CALLS_PENDING_MAX:
            raise StoreUnavailableError(f"{self._name}: {self._pending} commits wait already; nothing was written")
        self._pending += 1
        try:
            async with self._committing:
                await self._commit(epoch, request)
        except (CommitUnknownError, asyncio.CancelledError):
            if self._epoch == epoch:
                self._epoch = None
            raise
        finally:
            self._pending -= 1

    async def close(self) -> None:
        """Close the store; connections are the cluster's. Calling it twice is no error."""
        self._closed = True

    # Inside

    async def _commit(self, epoch: int, request: EncodedCommit) -> None:
        self._commits += 1
        receipt = msgpack.packb([_RECORD_VERSION, epoch, self._commits])
        receipt_key = self._prefix + _RECEIPT
        version = self._known_version(request)
        for transaction in self._attempts():
            if self._epoch != epoch:
                raise StoreUnavailableError("this ownership has ended meanwhile; nothing was written")
            try:
                if version is None:
                    await self._verify(transaction, epoch, request)
                else:
                    since, version = version, None  # a next attempt asks for a new one
                    await self._verify_since(transaction, since, request)
                if not request.writes:
                    return
                for key, value in request.writes.items():
                    if value is None:
                        transaction.clear(self._prefix + key)
                    else:
                        transaction.set(self._prefix + key, value)
                transaction.set(receipt_key, receipt)
                await self._send(transaction)
            except _TransactionError as error:
                if error.verdict is not Verdict.SETTLED:
                    await self._judge(error, "nothing was written")
                elif await self._was_written(receipt_key, receipt):
                    return
            else:
                return
        raise self._too_long()

    async def _verify(self, transaction: Any, epoch: int, request: EncodedCommit) -> None:
        """Read all that the commit depends on, at a new version and with conflicts: what changes later undoes it."""
        asked_at = time.monotonic()
        reads = [transaction.get(self._prefix + key) for key, _ in request.checks]
        ownership, *values = await self._cluster.wait(transaction, transaction.get(self._ownership_key), *reads)
        self._leave_at = asked_at
        stored = self._decode_ownership(ownership.value)
        if stored.epoch != epoch:
            raise FencedError(f"{self._name}: epoch {stored.epoch} owns it, not {epoch}")
        _compare(request, values)

    async def _verify_since(self, transaction: Any, version: int, request: EncodedCommit) -> None:
        """Look as of a version at which the epoch was ours; that it is unchanged since, the commit itself finds out."""
        transaction.set_read_version(version)
        transaction.add_read_conflict_key(self._ownership_key)
        if request.checks:
            reads = [transaction.get(self._prefix + key) for key, _ in request.checks]
            _compare(request, await self._cluster.wait(transaction, *reads))

    async def _send(self, transaction: Any) -> None:
        await self._cluster.wait(transaction, transaction.commit(), committing=True)
        version = transaction.get_committed_version()
        if self._version is None or version > self._version:
            self._version, self._version_at = version, time.monotonic()

    async def _was_written(self, receipt_key: bytes, receipt: bytes) -> bool:
        """Find out by its receipt what became of a commit that can't take place any more. Raises CommitUnknownError."""
        for transaction in self._attempts():
            try:
                (value,) = await self._cluster.wait(transaction, transaction.get(receipt_key))
            except _TransactionError as error:
                try:
                    await self._judge(error, "")
                except StoreUnavailableError as unavailable:
                    raise CommitUnknownError(f"{self._name}: its receipt can't be read: {error}") from unavailable
            else:
                return bool(value.value == receipt)
        raise CommitUnknownError(f"{self._name}: its receipt can't be read in time")

    def _attempts(self) -> Iterator[Any]:
        """Give transactions, each with what it may take, while there is time."""
        deadline = time.monotonic() + limits.FDB_CALL_TIMEOUT_MS / 1_000
        while time.monotonic() < deadline:
            yield self._cluster.database.create_transaction()

    async def _judge(self, error: _TransactionError, what: str) -> None:
        """Return where the next attempt may pass, after the pause that the cluster wants. Raises StoreError."""
        if error.code == fdb_errors.TIMED_OUT:
            self._cluster.timed_out()
        match error.verdict:
            case Verdict.AGAIN:
                return
            case Verdict.BUSY:
                await asyncio.sleep(limits.FDB_BUSY_DELAY_MS / 1_000)
            case Verdict.LIMIT:
                raise StoreLimitError(f"{self._name}: {error}; nothing was written") from error
            case Verdict.REFUSED:
                raise StoreUnavailableError(f"{self._cluster}: {error}; {what}") from error
            case _:
                raise CommitUnknownError(f"{self._name}: {error}") from error

    def _too_long(self) -> StoreError:
        return StoreUnavailableError(
            f"{self._cluster} is behind: no transaction passed within {limits.FDB_CALL_TIMEOUT_MS} ms"
        )

    def _known_version(self, request: EncodedCommit) -> int | None:
        """Give a version to base a commit on; None where a new one is to be asked for.

        To ask for one is to ask the cluster for leave, which is how it slows its clients down (Ratekeeper). What begins
        something has checks, and asks now and then; what ends something never waits for that.
        """
        now = time.monotonic()
        if not request.writes or (now - self._version_at) * 1_000 > limits.FDB_VERSION_AGE_MS_MAX:
            return None
        if request.checks and (now - self._leave_at) * 1_000 > limits.FDB_LEAVE_MS_MAX:
            return None
        return self._version

    def _begin(self) -> None:
        if self._closed:
            raise StoreUnavailableError("the store is closed")
        self._cluster.require_reachable()

    def _decode_ownership(self, value: bytes | None) -> Ownership:
        if value is None:
            raise StoreMissingError(f"{self._name} in {self._cluster}: the book is gone")
        return _decode_ownership(value, self._name)


def _decode_ownership(value: bytes, name: str) -> Ownership:
    try:
        version, epoch, door_epoch = msgpack.unpackb(value)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise StoreCorruptError(f"{name}: who owns it can't be read: {error}") from error
    if version != _RECORD_VERSION or not isinstance(epoch, int) or not isinstance(door_epoch, int):
        raise StoreCorruptError(f"{name}: who owns it is of a version that is not known here")
    return Ownership(epoch, door_epoch)


class _Page:
    """One range of a read, asked for at once; the cluster may answer it in several parts."""

    def __init__(self, cluster: Cluster, transaction: Any, prefix: bytes, asked: EncodedRange) -> None:
        self._cluster = cluster
        self._transaction = transaction
        self._prefix = prefix
        self._begin, self._end = prefix + asked.begin, prefix + asked.end
        self._left = asked.limit
        self._reverse = asked.reverse
        self._future = None if self._begin >= self._end else self._ask()

    async def rows(self) -> tuple[Entry, ...]:
        """Give all rows. Raises _TransactionError."""
        found: list[Entry] = []
        while self._future is not None:
            ((rows, count, more),) = await self._cluster.wait(self._transaction, self._future)
            found += [Entry(tuple_keys.decode(row.key[len(self._prefix) :]), row.value) for row in rows]
            self._left -= count
            if not (more and count and self._left):
                break
            if self._reverse:
                self._end = rows[-1].key
            else:
                self._begin = rows[-1].key + b"\x00"
            self._future = self._ask()
        return tuple(found)

    def _ask(self) -> Any:
        fdb = self._cluster.fdb
        first = fdb.KeySelector.first_greater_or_equal
        # The binding's public way would wait for later parts in this thread.
        return self._transaction.snapshot._get_range(  # noqa: SLF001
            first(self._begin), first(self._end), self._left, fdb.StreamingMode.exact, 1, self._reverse
        )


def _encode_ownership(ownership: Ownership) -> bytes:
    return bytes(msgpack.packb([_RECORD_VERSION, ownership.epoch, ownership.door_epoch]))


def _compare(request: EncodedCommit, values: Sequence[Any]) -> None:
    for (key, expected), value in zip(request.checks, values, strict=True):
        if value.value != expected:
            raise ConflictError(f"{tuple_keys.decode(key)!r} is not what it was")
