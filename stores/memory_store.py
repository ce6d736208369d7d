"""A fake: a store in memory for unit tests, with faults to order. Nothing in it survives, so no cell may use it.

Several `MemoryStore`s over one `MemoryBook` are the owners, rightful and former, of one partner. Transactions are
optimistic as FoundationDB's are: one that was stopped inside is checked again when it goes on.
"""

import asyncio
import bisect
import enum
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Literal

from actors.errors import (
    CommitUnknownError,
    ConflictError,
    FencedError,
    StoreCorruptError,
    StoreUnavailableError,
)
from actors.store import Check, Entry, Key, Mutation, Ownership, Range, Snapshot
from stores import tuple_keys
from stores.requests import EncodedCommit, EncodedRange, encode_commit, encode_read

CallName = Literal["acquire", "read", "commit"]
Place = Literal["before", "inside", "after"]


class Fault(enum.Enum):
    """What the next call meets. Only a commit can be in conflict or become unknown."""

    UNAVAILABLE = "nothing was done"
    CORRUPT = "nothing was done, and a person is needed"
    CONFLICT = "another transaction was first"
    UNKNOWN_WRITTEN = "the answer is lost, the commit took place"
    UNKNOWN_NOT_WRITTEN = "the answer is lost, the commit did not take place"
    TIMEOUT = "unknown, and it takes place when the test says `deliver_late`, unless somebody acquires before"


class Stop:
    """A commit held up: `reached` is set when it gets there, and it goes on after `resume`."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.reached = asyncio.Event()
        self._resumed = asyncio.Event()

    def resume(self) -> None:
        """Let the commit go on."""
        self._resumed.set()

    async def hold(self) -> None:
        """Wait for `resume`."""
        self.reached.set()
        await self._resumed.wait()


class MemoryBook:
    """One partner's rows and ownership, shared by the stores over it."""

    def __init__(self) -> None:
        self.ownership = Ownership(0, 0)
        # The path that it was given last, as a shelf takes books over; None: the one that it was made under.
        self.home: tuple[str, ...] | None = None
        self.commits = 0
        self.reads = 0
        self._keys: list[bytes] = []
        self._values: dict[bytes, bytes] = {}
        self._faults: defaultdict[CallName, deque[Fault]] = defaultdict(deque)
        self._stops: deque[Stop] = deque()
        self._late: list[tuple[int, EncodedCommit]] = []

    def inject(self, fault: Fault, call: CallName = "commit") -> None:
        """Let the next such call of any store meet `fault`; several queue up."""
        assert call == "commit" or fault in (Fault.UNAVAILABLE, Fault.CORRUPT)
        self._faults[call].append(fault)

    def stop(self, place: Place) -> Stop:
        """Hold the next commit of any store before, inside or after its transaction."""
        stop = Stop(place)
        self._stops.append(stop)
        return stop

    def deliver_late(self) -> int:
        """Let the commits that timed out take place where they still can; return how many did."""
        late, self._late = self._late, []
        delivered = 0
        for epoch, request in late:
            try:
                self._apply(epoch, request)
            except (FencedError, ConflictError):
                continue
            delivered += 1
        return delivered

    def take_row(self, key: bytes, value: bytes | None) -> None:
        """Remove a row that must have this value, or any where that is None, as a shelf does that takes a book over."""
        held = self._values.get(key)
        if value is not None and held != value:
            raise FencedError(f"{tuple_keys.decode(key)!r} is not what it is to be")
        if held is not None:
            del self._values[key]
            self._keys.remove(key)

    def _acquire(self, door_epoch: int, above: int) -> Ownership:
        if door_epoch < self.ownership.door_epoch:
            raise FencedError(f"door {self.ownership.door_epoch} was here, newer than {door_epoch}")
        self.ownership = Ownership(max(self.ownership.epoch, above) + 1, door_epoch)
        return self.ownership

    def _meet_fault(self, call: CallName) -> Fault | None:
        faults = self._faults[call]
        fault = faults.popleft() if faults else None
        if fault is Fault.UNAVAILABLE:
            raise StoreUnavailableError(fault.value)
        if fault is Fault.CORRUPT:
            raise StoreCorruptError(fault.value)
        if fault is Fault.CONFLICT:
            raise ConflictError(fault.value)
        return fault

    async def _transact(self, epoch: int, request: EncodedCommit) -> None:
        stop = self._stops.popleft() if self._stops else None
        if stop is not None and stop.place == "before":
            await stop.hold()
        fault = self._meet_fault("commit")
        if stop is not None and stop.place == "inside":
            self._check(epoch, request)
            await stop.hold()
        if fault is Fault.TIMEOUT:
            self._late.append((epoch, request))
        elif fault is not Fault.UNKNOWN_NOT_WRITTEN:
            self._apply(epoch, request)
        if fault is not None:
            raise CommitUnknownError(fault.value)
        if stop is not None and stop.place == "after":
            await stop.hold()

    def _check(self, epoch: int, request: EncodedCommit) -> None:
        if epoch != self.ownership.epoch:
            raise FencedError(f"epoch {self.ownership.epoch} owns it, not {epoch}")
        for key, expected in request.checks:
            if self._values.get(key) != expected:
                raise ConflictError(f"{tuple_keys.decode(key)!r} is not what it was")

    def _apply(self, epoch: int, request: EncodedCommit) -> None:
        self._check(epoch, request)
        for key, value in request.writes.items():
            if value is None:
                if self._values.pop(key, None) is not None:
                    del self._keys[bisect.bisect_left(self._keys, key)]
            else:
                if key not in self._values:
                    bisect.insort(self._keys, key)
                self._values[key] = value
        self.commits += 1

    def _rows(self, asked: EncodedRange) -> tuple[Entry, ...]:
        keys = self._keys[bisect.bisect_left(self._keys, asked.begin) : bisect.bisect_left(self._keys, asked.end)]
        if asked.reverse:
            keys.reverse()
        return tuple(Entry(tuple_keys.decode(key), self._values[key]) for key in keys[: asked.limit])


class MemoryStore:
    """One owner of a `MemoryBook`; see `actors.store.Store` for the contract."""

    def __init__(self, book: MemoryBook, path: tuple[str, ...] = ()) -> None:
        self._book = book
        self._path = path
        self._epoch: int | None = None
        self._closed = False

    async def acquire(self, door_epoch: int, above: int = 0) -> Ownership:
        """Raise the epoch and own the partner from now on."""
        await self._begin()
        self._epoch = None
        self._book._meet_fault("acquire")  # noqa: SLF001 - book and store are one fake
        if self._book.home not in (None, self._path):
            raise FencedError(f"{'/'.join(self._path)}: the book is {'/'.join(self._book.home or ())} now")
        ownership = self._book._acquire(door_epoch, above)  # noqa: SLF001
        self._epoch = ownership.epoch
        return ownership

    async def read(self, keys: Sequence[Key], ranges: Sequence[Range] = ()) -> Snapshot:
        """Read committed rows at one moment."""
        request = encode_read(keys, ranges)
        await self._begin()
        book = self._book
        book.reads += 1
        book._meet_fault("read")  # noqa: SLF001
        return Snapshot(
            tuple(book._values.get(key) for key in request.keys),  # noqa: SLF001
            tuple(book._rows(asked) for asked in request.ranges),  # noqa: SLF001
        )

    async def commit(self, checks: Sequence[Check], mutations: Sequence[Mutation]) -> None:
        """Write all or nothing."""
        request = encode_commit(checks, mutations)
        epoch = self._epoch
        await self._begin()
        if epoch is None or epoch != self._epoch:
            raise StoreUnavailableError("not acquired since it was opened or lost sight of a commit")
        try:
            await self._book._transact(epoch, request)  # noqa: SLF001
        except (CommitUnknownError, asyncio.CancelledError):
            if self._epoch == epoch:
                self._epoch = None
            raise

    async def close(self) -> None:
        """Close the store; the book stays. Calling it twice is no error."""
        self._closed = True

    async def _begin(self) -> None:
        if self._closed:
            raise StoreUnavailableError("the store is closed")
        # As with any store, others get their turn between the call and its answer.
        await asyncio.sleep(0)
