"""The store for many machines: a book is a directory in a FoundationDB cluster, behind the contract of `actors.store`.

fdb_cluster.py has the client and the directories. docs/keyspace.md has the keys.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgpack

from actors.errors import (
    CommitUnknownError,
    ConflictError,
    FencedError,
    StoreError,
    StoreLimitError,
    StoreMissingError,
    StoreUnavailableError,
)
from actors.store import Check, Entry, Key, Mutation, Ownership, Range, Snapshot
from stores import fdb_errors, limits, tuple_keys
from stores.fdb_cluster import (
    HOME,
    OWNERSHIP,
    RECORD_VERSION,
    Cluster,
    TransactionError,
    decode_ownership,
    encode_ownership,
)
from stores.fdb_errors import Verdict
from stores.requests import EncodedCommit, EncodedRange, encode_commit, encode_read

_RECEIPT: Final = b"\x00\x15\x01"  # (None, 1)


class FdbStore:
    """A book in a FoundationDB cluster. Safe for one event loop; see `actors.store.Store` for the contract."""

    def __init__(self, cluster: Cluster, name: str, prefix: bytes) -> None:
        self._cluster = cluster
        self._name = name
        self._prefix = prefix
        self._ownership_key = prefix + OWNERSHIP
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
            value, home = await self._cluster.wait(
                transaction, transaction.get(self._ownership_key), transaction.get(self._prefix + HOME)
            )
            held = self._decode_ownership(value.value)
            if home.value is not None and home.value != self._name.encode():
                raise FencedError(f"{self._name}: the book is {home.value.decode()} now")
            if door_epoch < held.door_epoch:
                raise FencedError(f"{self._name}: door {held.door_epoch} was here, newer than {door_epoch}")
            ownership = Ownership(max(held.epoch, above) + 1, door_epoch)
            transaction.set(self._ownership_key, encode_ownership(ownership))
            await self._send(transaction)
            return ownership

        for transaction in self._attempts():
            try:
                ownership = await acquire(transaction)
            except TransactionError as error:
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
            except TransactionError as error:
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
        receipt = msgpack.packb([RECORD_VERSION, epoch, self._commits])
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
            except TransactionError as error:
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
            except TransactionError as error:
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

    async def _judge(self, error: TransactionError, what: str) -> None:
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
        return decode_ownership(value, self._name)


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
        """Give all rows. Raises TransactionError."""
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


def _compare(request: EncodedCommit, values: Sequence[Any]) -> None:
    for (key, expected), value in zip(request.checks, values, strict=True):
        if value.value != expected:
            raise ConflictError(f"{tuple_keys.decode(key)!r} is not what it was")
