"""The fake's faults do what they say; its contract is held in tests/contract."""

import pytest

from actors.errors import (
    CommitUnknownError,
    ConflictError,
    StoreCorruptError,
    StoreError,
    StoreUnavailableError,
)
from actors.store import Check, Put
from stores.memory_store import Fault, MemoryBook, MemoryStore

HOLDER = ("holder",)


@pytest.fixture
def book() -> MemoryBook:
    return MemoryBook()


@pytest.fixture
async def store(book: MemoryBook) -> MemoryStore:
    opened = MemoryStore(book)
    await opened.acquire(1)
    return opened


async def value(store: MemoryStore) -> bytes | None:
    return (await store.read([HOLDER])).values[0]


@pytest.mark.parametrize(
    ("fault", "error", "written"),
    [
        (Fault.UNAVAILABLE, StoreUnavailableError, False),
        (Fault.CORRUPT, StoreCorruptError, False),
        (Fault.CONFLICT, ConflictError, False),
        (Fault.UNKNOWN_NOT_WRITTEN, CommitUnknownError, False),
        (Fault.UNKNOWN_WRITTEN, CommitUnknownError, True),
        (Fault.TIMEOUT, CommitUnknownError, False),
    ],
)
async def test_a_fault_hits_one_commit(
    book: MemoryBook, store: MemoryStore, fault: Fault, error: type[StoreError], written: bool
) -> None:
    book.inject(fault)
    with pytest.raises(error):
        await store.commit([], [Put(HOLDER, b"hit")])
    assert await value(store) == (b"hit" if written else None)
    await store.acquire(1)
    await store.commit([], [Put(HOLDER, b"next")])
    assert await value(store) == b"next"


async def test_faults_queue_up_and_are_counted_per_call(book: MemoryBook, store: MemoryStore) -> None:
    book.inject(Fault.CONFLICT)
    book.inject(Fault.UNAVAILABLE)
    book.inject(Fault.UNAVAILABLE, "read")
    book.inject(Fault.CORRUPT, "acquire")
    with pytest.raises(StoreUnavailableError):
        await store.read([HOLDER])
    with pytest.raises(ConflictError):
        await store.commit([], [Put(HOLDER, b"1")])
    with pytest.raises(StoreUnavailableError):
        await store.commit([], [Put(HOLDER, b"1")])
    with pytest.raises(StoreCorruptError):
        await store.acquire(1)
    assert await value(store) is None


async def test_a_commit_that_timed_out_may_take_place_late(book: MemoryBook, store: MemoryStore) -> None:
    book.inject(Fault.TIMEOUT)
    with pytest.raises(CommitUnknownError):
        await store.commit([Check(HOLDER, None)], [Put(HOLDER, b"late")])
    assert await value(store) is None
    assert book.deliver_late() == 1
    assert await value(store) == b"late"


async def test_after_acquire_a_commit_that_timed_out_takes_place_no_more(book: MemoryBook, store: MemoryStore) -> None:
    book.inject(Fault.TIMEOUT)
    with pytest.raises(CommitUnknownError):
        await store.commit([], [Put(HOLDER, b"late")])
    await store.acquire(1)
    assert book.deliver_late() == 0
    assert await value(store) is None
