"""The contract of `actors.store.Store`, held against every store alike."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors import limits as actor_limits
from actors.errors import (
    CommitUnknownError,
    ConflictError,
    FencedError,
    StoreError,
    StoreLimitError,
    StoreUnavailableError,
)
from actors.store import Check, Clear, Entry, Key, Ownership, Part, Put, Range, Store
from stores import limits
from stores.requests import KEY_BYTES_MAX
from tests.contract import stores
from tests.contract.stores import Harness

HOLDER = ("holder",)
LARGE_VALUE = b"v" * actor_limits.STORE_VALUE_BYTES_MAX


@pytest.fixture(params=stores.KINDS)
async def harness(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Harness]:
    async with stores.harness(request.param, tmp_path) as made:
        yield made


@pytest.fixture
async def store(harness: Harness) -> AsyncIterator[Store]:
    opened = await harness.open()
    await opened.acquire(1)
    yield opened
    await opened.close()


@contextlib.asynccontextmanager
async def opened(harness: Harness) -> AsyncIterator[Store]:
    other = await harness.open()
    try:
        yield other
    finally:
        await other.close()


async def value(store: Store, key: Key) -> bytes | None:
    return (await store.read([key])).values[0]


# Reading and writing


async def test_what_was_committed_is_read_by_every_store_over_the_book(harness: Harness, store: Store) -> None:
    await store.commit([], [Put(("a", 1), b"one"), Put(("a", 2), b"")])
    async with opened(harness) as other:
        for reader in (store, other):
            snapshot = await reader.read([("a", 2), ("a", 1), ("a", 3)], [Range(("a",), ("b",), 10)])
            assert snapshot.values == (b"", b"one", None)
            assert snapshot.ranges == ((Entry(("a", 1), b"one"), Entry(("a", 2), b"")),)


async def test_a_put_replaces_a_clear_removes_and_the_last_mutation_of_a_key_counts(store: Store) -> None:
    await store.commit([], [Put(("a",), b"1"), Put(("b",), b"1"), Put(("c",), b"1")])
    await store.commit([], [Put(("a",), b"2"), Clear(("b",)), Clear(("never there",))])
    await store.commit([], [Clear(("c",)), Put(("c",), b"3"), Put(("d",), b"4"), Clear(("d",))])
    assert (await store.read([("a",), ("b",), ("c",), ("d",)])).values == (b"2", None, b"3", None)


async def test_an_empty_commit_and_an_empty_read_are_fine(store: Store) -> None:
    await store.commit([], [])
    snapshot = await store.read([])
    assert (snapshot.values, snapshot.ranges) == ((), ())


def rank(key: Key) -> tuple[tuple[int, bytes | int], ...]:
    """Say where a key stands: bytes before str before int, a prefix before what is longer."""

    def rank_part(part: Part) -> tuple[int, bytes | int]:
        if isinstance(part, bytes):
            return 0, part
        if isinstance(part, str):
            return 1, part.encode()
        return 2, part

    return tuple(map(rank_part, key))


part_strategy = st.one_of(
    st.text(max_size=4),
    st.sampled_from(["", "\0", "a", "a\0", "a\0b", "é", "\U0001f4b6"]),
    st.integers(min_value=-(2**70), max_value=2**70),
    st.sampled_from([0, -1, 1, 255, 256, -255, -256, 2**32, 2**63, 2**64, -(2**63), -(2**64)]),
    st.binary(max_size=4),
    st.sampled_from([b"", b"\0", b"\0\0", b"\0\xff", b"\xff", b"\xff\xff"]),
)
key_strategy = st.lists(part_strategy, min_size=1, max_size=3).map(tuple)
example_numbers = iter(range(1_000_000))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    rows=st.dictionaries(key_strategy, st.binary(max_size=8), max_size=12),
    begin=key_strategy,
    end=key_strategy,
    limit=st.integers(min_value=1, max_value=8),
    reverse=st.booleans(),
)
async def test_ranges_hold_against_a_sorted_model(
    store: Store, rows: dict[Key, bytes], begin: Key, end: Key, limit: int, reverse: bool
) -> None:
    prefix = ("example", next(example_numbers))
    await store.commit([], [Put(prefix + key, content) for key, content in rows.items()])
    asked = Range(prefix + begin, prefix + end, limit, reverse)
    everything = Range(prefix, ("example", prefix[1] + 1), 1_000)
    in_order = sorted(rows, key=rank)
    expected = [key for key in in_order if rank(begin) <= rank(key) < rank(end)]
    if reverse:
        expected.reverse()
    found, all_rows = (await store.read([], [asked, everything])).ranges
    assert list(found) == [Entry(prefix + key, rows[key]) for key in expected[:limit]]
    assert [row.key for row in all_rows] == [prefix + key for key in in_order]


async def test_a_snapshot_shows_one_moment_while_commits_overlap(store: Store) -> None:
    numbers = [b"%d" % number for number in range(30)]
    await store.commit([], [Put(("left",), numbers[0]), Put(("right", 1), numbers[0])])

    async def write() -> None:
        for number in numbers:
            await store.commit([], [Put(("left",), number), Put(("right", 1), number)])

    async def read() -> None:
        for _ in range(30):
            snapshot = await store.read([("left",)], [Range(("right",), ("s",), 1)])
            assert snapshot.values[0] == snapshot.ranges[0][0].value

    await asyncio.gather(write(), read(), read())
    assert await value(store, ("left",)) == numbers[-1]


# Atomicity and checks


async def test_a_failed_check_writes_nothing(store: Store) -> None:
    await store.commit([Check(("a",), None)], [Put(("a",), b"1")])
    for check in (Check(("a",), None), Check(("a",), b"2"), Check(("absent",), b"")):
        with pytest.raises(ConflictError):
            await store.commit([Check(("a",), b"1"), check], [Put(("a",), b"x"), Put(("b",), b"x"), Clear(("a",))])
    assert (await store.read([("a",), ("b",)])).values == (b"1", None)
    await store.commit([Check(("a",), b"1"), Check(("b",), None)], [Put(("a",), b"2")])
    assert await value(store, ("a",)) == b"2"


async def test_of_overlapping_commits_with_the_same_check_one_passes(store: Store) -> None:
    results = await asyncio.gather(
        *(store.commit([Check(HOLDER, None)], [Put(HOLDER, b"%d" % number)]) for number in range(10)),
        return_exceptions=True,
    )
    winners = [number for number, result in enumerate(results) if result is None]
    assert len(winners) == 1
    assert all(isinstance(result, ConflictError) for result in results if result is not None)
    assert await value(store, HOLDER) == b"%d" % winners[0]


# Limits


@pytest.mark.parametrize("mutation", [Put(("k" * actor_limits.STORE_KEY_BYTES_MAX,), b""), Clear((b"\0" * 5_000,))])
async def test_a_key_too_long_is_refused_and_nothing_is_written(store: Store, mutation: Put | Clear) -> None:
    with pytest.raises(StoreLimitError):
        await store.commit([], [Put(("a",), b"1"), mutation])
    with pytest.raises(StoreLimitError):
        await store.commit([Check(mutation.key, None)], [Put(("a",), b"1")])
    with pytest.raises(StoreLimitError):
        await store.read([mutation.key])
    with pytest.raises(StoreLimitError):
        await store.read([], [Range(("a",), mutation.key, 1)])
    assert await value(store, ("a",)) is None


async def test_the_longest_key_and_the_largest_value_fit(store: Store) -> None:
    longest = ("k" * (KEY_BYTES_MAX - 2),)  # a str takes a type byte and an end byte
    await store.commit([], [Put(longest, LARGE_VALUE)])
    assert await value(store, longest) == LARGE_VALUE
    with pytest.raises(StoreLimitError):
        await store.commit([], [Put((longest[0] + "k",), b"")])


async def test_a_value_too_large_is_refused_and_nothing_is_written(store: Store) -> None:
    with pytest.raises(StoreLimitError):
        await store.commit([], [Put(("a",), b"1"), Put(("b",), LARGE_VALUE + b"v")])
    assert await value(store, ("a",)) is None


async def test_a_transaction_too_large_is_refused_and_the_batch_limit_fits(store: Store) -> None:
    with pytest.raises(StoreLimitError):
        await store.commit([], [Put((number,), LARGE_VALUE) for number in range(100)])
    assert (await store.read([], [Range((0,), (1_000,), 10)])).ranges == ((),)
    largest_batch = actor_limits.BATCH_BYTES_MAX // actor_limits.STORE_VALUE_BYTES_MAX + 1
    await store.commit([], [Put((number,), LARGE_VALUE) for number in range(largest_batch)])
    assert len((await store.read([], [Range((0,), (1_000,), 100)])).ranges[0]) == largest_batch


@pytest.mark.parametrize("limit", [0, -1, actor_limits.STORE_RANGE_ROWS_MAX + 1])
async def test_a_range_has_between_one_row_and_the_limit(store: Store, limit: int) -> None:
    with pytest.raises(StoreLimitError):
        await store.read([], [Range(("a",), ("b",), limit)])


async def test_a_read_of_too_many_keys_or_ranges_is_refused(store: Store) -> None:
    with pytest.raises(StoreLimitError):
        await store.read([("a",)] * (limits.STORE_READ_KEYS_MAX + 1))
    with pytest.raises(StoreLimitError):
        await store.read([], [Range(("a",), ("b",), 1)] * (limits.STORE_READ_RANGES_MAX + 1))


# Ownership


async def test_each_acquire_raises_the_epoch_and_the_door_epoch_never_falls(harness: Harness, store: Store) -> None:
    assert await store.acquire(1) == Ownership(2, 1)
    async with opened(harness) as other:
        assert await other.acquire(5) == Ownership(3, 5)
        with pytest.raises(FencedError):
            await store.acquire(4)
        assert await store.acquire(5) == Ownership(4, 5)


async def test_an_epoch_can_be_taken_above_one_that_another_place_had(harness: Harness, store: Store) -> None:
    assert await store.acquire(1, above=41) == Ownership(42, 1)
    assert await store.acquire(1, above=7) == Ownership(43, 1)


async def test_a_refused_acquire_fences_nobody(harness: Harness, store: Store) -> None:
    await store.acquire(2)
    async with opened(harness) as late:
        with pytest.raises(FencedError):
            await late.acquire(1)
        await store.commit([], [Put(HOLDER, b"rightful")])
        with pytest.raises(StoreUnavailableError):
            await late.commit([], [Put(HOLDER, b"late")])
    assert await value(store, HOLDER) == b"rightful"


async def test_nothing_is_committed_before_acquire(harness: Harness) -> None:
    async with opened(harness) as other:
        with pytest.raises(StoreUnavailableError):
            await other.commit([], [Put(HOLDER, b"x")])
        assert await value(other, HOLDER) is None


async def test_the_second_acquire_fences_the_first(harness: Harness, store: Store) -> None:
    await store.commit([], [Put(HOLDER, b"first")])
    async with opened(harness) as successor:
        await successor.acquire(1)
        for _ in range(2):
            with pytest.raises(FencedError):
                await store.commit([], [Put(HOLDER, b"zombie")])
        await successor.commit([Check(HOLDER, b"first")], [Put(HOLDER, b"second")])
        assert await value(store, HOLDER) == b"second", "a zombie may read"


async def test_a_zombie_stopped_before_its_transaction_writes_nothing(harness: Harness, store: Store) -> None:
    async with opened(harness) as successor:
        held = harness.hold(store, "before")
        zombie = asyncio.create_task(store.commit([], [Put(HOLDER, b"zombie")]))
        await held.reached.wait()
        await successor.acquire(1)
        held.resume()
        with pytest.raises(FencedError):
            await zombie
        assert await value(successor, HOLDER) is None


async def test_a_zombie_stopped_inside_its_transaction_is_out_before_the_successor_is_in(
    harness: Harness, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either the successor can't take over meanwhile (a lock), or the zombie's transaction fails (optimistic)."""
    monkeypatch.setattr(limits, "STORE_LOCK_WAIT_MS", 100)
    async with opened(harness) as successor:
        held = harness.hold(store, "inside")
        zombie = asyncio.create_task(store.commit([], [Put(HOLDER, b"zombie")]))
        await held.reached.wait()
        try:
            await successor.acquire(1)
        except StoreUnavailableError:
            held.resume()
            await zombie
            await successor.acquire(1)
            expected: bytes | None = b"zombie"
        else:
            held.resume()
            with pytest.raises(FencedError):
                await zombie
            expected = None
        assert await value(successor, HOLDER) == expected
        with pytest.raises(FencedError):
            await store.commit([], [Put(HOLDER, b"zombie again")])
        await successor.commit([Check(HOLDER, expected)], [Put(HOLDER, b"successor")])
        assert await value(successor, HOLDER) == b"successor"


async def test_what_a_zombie_committed_before_it_was_stopped_stays(harness: Harness, store: Store) -> None:
    async with opened(harness) as successor:
        held = harness.hold(store, "after")
        zombie = asyncio.create_task(store.commit([], [Put(HOLDER, b"zombie")]))
        await held.reached.wait()
        await successor.acquire(1)
        assert await value(successor, HOLDER) == b"zombie"
        await successor.commit([], [Put(HOLDER, b"successor")])
        held.resume()
        await zombie
        with pytest.raises(FencedError):
            await store.commit([], [Put(HOLDER, b"zombie again")])
        assert await value(successor, HOLDER) == b"successor"


# The unknown


@pytest.mark.parametrize("written", [True, False])
async def test_after_an_unknown_commit_nothing_is_committed_until_acquire(
    harness: Harness, store: Store, written: bool
) -> None:
    await store.commit([], [Put(HOLDER, b"before")])
    harness.lose_answer(store, written=written)
    with pytest.raises(CommitUnknownError):
        await store.commit([], [Put(HOLDER, b"unknown")])
    for _ in range(2):
        with pytest.raises(StoreUnavailableError):
            await store.commit([], [Put(HOLDER, b"after")])
    assert await store.acquire(1) == Ownership(2, 1)
    expected = b"unknown" if written else b"before"
    assert await value(store, HOLDER) == expected
    await store.commit([Check(HOLDER, expected)], [Put(HOLDER, b"after")])
    assert await value(store, HOLDER) == b"after"


async def test_commits_behind_an_unknown_one_are_refused(harness: Harness, store: Store) -> None:
    harness.lose_answer(store, written=False)
    results = await asyncio.gather(
        *(store.commit([], [Put(("n", number), b"")]) for number in range(5)), return_exceptions=True
    )
    unknown = [number for number, result in enumerate(results) if isinstance(result, CommitUnknownError)]
    assert len(unknown) == 1
    await store.acquire(1)
    rows = {row.key for row in (await store.read([], [Range(("n",), ("o",), 10)])).ranges[0]}
    assert rows == {("n", number) for number, result in enumerate(results) if result is None}


@pytest.mark.parametrize("place", ["before", "inside", "after"])
async def test_a_canceled_commit_counts_as_unknown(harness: Harness, store: Store, place: stores.Place) -> None:
    held = harness.hold(store, place)
    commit = asyncio.create_task(store.commit([], [Put(HOLDER, b"canceled")]))
    await held.reached.wait()
    commit.cancel()
    with pytest.raises(asyncio.CancelledError):
        await commit
    held.resume()
    with pytest.raises(StoreUnavailableError):
        await store.commit([], [Put(HOLDER, b"next")])
    await store.acquire(1)
    after_acquire = await value(store, HOLDER)
    await store.commit([Check(HOLDER, after_acquire)], [Put(HOLDER, b"next")])
    assert await value(store, HOLDER) == b"next"
    assert place != "after" or after_acquire == b"canceled"


# The end


async def test_closing_twice_is_no_error_and_a_closed_store_refuses(harness: Harness, store: Store) -> None:
    await store.commit([], [Put(HOLDER, b"1")])
    await store.close()
    await store.close()
    with pytest.raises(StoreUnavailableError):
        await store.commit([], [Put(HOLDER, b"2")])
    with pytest.raises(StoreUnavailableError):
        await store.read([HOLDER])
    with pytest.raises(StoreUnavailableError):
        await store.acquire(1)
    async with opened(harness) as other:
        await other.acquire(1)
        assert await value(other, HOLDER) == b"1"


async def test_what_was_under_way_when_the_store_closes_is_answered(harness: Harness, store: Store) -> None:
    commits = [asyncio.create_task(store.commit([], [Put(("n", number), b"")])) for number in range(5)]
    await asyncio.sleep(0)
    await store.close()
    results = await asyncio.gather(*commits, return_exceptions=True)
    assert all(result is None or isinstance(result, StoreError) for result in results)
    async with opened(harness) as other:
        rows = {row.key for row in (await other.read([], [Range(("n",), ("o",), 10)])).ranges[0]}
    assert rows >= {("n", number) for number, result in enumerate(results) if result is None}
