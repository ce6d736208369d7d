"""A FoundationDB cluster: the client, whether it answers, its status, and the directories that books are.

The only file that imports the client (`fdb.tuple` needs none). Its futures are bridged to asyncio: the client's one
network thread wakes the event loop, and no call has a thread of its own. What is in a book is in fdb_store.py.
"""

import asyncio
import contextlib
import ctypes
import re
import time
from collections.abc import Callable
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Any, Final, TypeVar

import msgpack
import orjson
import structlog

from actors import limits as actor_limits
from actors.errors import (
    FencedError,
    StoreClientError,
    StoreCorruptError,
    StoreExistsError,
    StoreMissingError,
    StoreUnavailableError,
)
from actors.store import Key, Ownership
from stores import fdb_errors, limits, tuple_keys

log = structlog.get_logger()

T = TypeVar("T")

API_VERSION: Final = 710
# What the directory layer calls a directory of ours; it refuses to open one of another kind.
LAYER: Final = b"bulkhead.book"
RECORD_VERSION: Final = 1
# The store's own rows. A key of the contract never begins with NULL, the tuple encoding's first byte of these.
OWNERSHIP: Final = b"\x00\x14"  # (None, 0)
HOME: Final = b"\x00\x15\x02"  # (None, 2): the path that a book was given last; none: the one that it was made under
# https://apple.github.io/foundationdb/mr-status.html
_STATUS: Final = b"\xff\xff/status/json"
_LIBRARY: Final = "libfdb_c.so"
_CLUSTER_FILE_LINE: Final = re.compile(r"[A-Za-z0-9_]+:[A-Za-z0-9]+@[^@\s]+:\d+(:tls)?(,[^@\s]+:\d+(:tls)?)*", re.ASCII)


class TransactionError(Exception):
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
        except TransactionError as error:
            return error.code != fdb_errors.TIMED_OUT  # a cluster that says no answers, too
        return True

    async def wait(self, transaction: Any, *futures: Any, committing: bool = False) -> list[Any]:
        """Wait for futures of a transaction and give their results. Raises TransactionError for the first failure."""
        try:
            await _ready(*futures)
        except asyncio.CancelledError:
            transaction.cancel()
            raise
        try:
            return [future.wait() for future in futures]  # they are ready: nothing is waited for
        except self.fdb.FDBError as error:
            raise TransactionError(error, committing=committing) from error

    async def status(self) -> dict[str, Any]:
        """Give the cluster's machine-readable status. Raises StoreUnavailableError.

        The client makes it, of what servers tell, and tells also whom it doesn't reach. Parsing takes some ms a MB.
        """
        transaction = self.database.create_transaction()
        transaction.options.set_timeout(limits.FDB_STATUS_TIMEOUT_MS)
        try:
            (value,) = await self.wait(transaction, transaction.get(_STATUS))
        except TransactionError as error:
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
            tr.set(book.key() + OWNERSHIP, encode_ownership(Ownership(0, 0)))

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
        """Give a book another path, fence its owner and take its seal off, in one transaction. Raises StoreError."""

        def adopt(tr: Any) -> None:
            directory = self.fdb.directory
            if not directory.exists(tr, old):
                if directory.exists(tr, new):
                    return  # it was done before, and its answer lost
                raise StoreMissingError(f"{'/'.join(old)} in {self}: there is no book")
            if directory.exists(tr, new):
                raise StoreExistsError(f"{'/'.join(new)} in {self}: there is a book already")
            prefix = bytes(directory.open(tr, old, layer=LAYER).key())
            held = decode_ownership(bytes(tr[prefix + OWNERSHIP]), "/".join(old))
            row = prefix + tuple_keys.encode(seal)
            if sealed_by is not None and tr[row].wait() != sealed_by:  # None where there is no such row
                raise FencedError(f"{'/'.join(old)} in {self}: it is not sealed for this")
            del tr[row]
            # Another cell's doors count their own epochs. Commits under way conflict with the changed row.
            tr.set(prefix + OWNERSHIP, encode_ownership(Ownership(held.epoch + 1, 0)))
            # Who opened it under its old path must not own it again: their door counts other epochs than ours.
            tr.set(prefix + HOME, "/".join(new).encode())
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


def encode_ownership(ownership: Ownership) -> bytes:
    """Give the bytes of who owns a book."""
    return bytes(msgpack.packb([RECORD_VERSION, ownership.epoch, ownership.door_epoch]))


def decode_ownership(value: bytes, name: str) -> Ownership:
    """Read who owns a book; `name` is for the error. Raises StoreCorruptError."""
    try:
        version, epoch, door_epoch = msgpack.unpackb(value)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise StoreCorruptError(f"{name}: who owns it can't be read: {error}") from error
    if version != RECORD_VERSION or not isinstance(epoch, int) or not isinstance(door_epoch, int):
        raise StoreCorruptError(f"{name}: who owns it is of a version that is not known here")
    return Ownership(epoch, door_epoch)
