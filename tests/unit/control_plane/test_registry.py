"""The registry over a store: the same suite in memory, where faults can be ordered, and in a real SQLite book."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from control_plane import api_keys, limits, registry_codec, registry_keys
from control_plane.audit_chain import Head
from control_plane.errors import (
    FolderError,
    NotFoundError,
    RefusedError,
    RegistryError,
    RegistryLostError,
    RegistryUnknownError,
)
from control_plane.registry import Registry
from control_plane.registry_reading import read_partners
from control_plane.registry_records import Partner
from stores.contract import Clear, Key, Put, Store, StoreMissingError
from stores.memory_store import Fault, MemoryBook, MemoryStore
from stores.sqlite_shelf import SqliteShelf

PEPPER = b"p" * 32


class Memory:
    """A shelf of one book in memory."""

    def __init__(self) -> None:
        self.book: MemoryBook | None = None

    async def create(self, *_: str) -> None:
        self.book = MemoryBook()

    async def open(self, *_: str) -> Store:
        if self.book is None:
            raise StoreMissingError("there is no book")
        return MemoryStore(self.book)

    async def wait_answers(self) -> None: ...

    async def names(self, _folder: str) -> list[str]:
        return []

    async def health(self) -> tuple[()]:
        return ()


Shelf = Memory | SqliteShelf


@pytest.fixture(params=["memory", "sqlite"])
async def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Shelf:
    made: Shelf = Memory() if request.param == "memory" else SqliteShelf(tmp_path)
    await made.create(*registry_keys.BOOK)
    return made


@asynccontextmanager
async def opened(shelf: Shelf, *, new: bool = False) -> AsyncIterator[Registry]:
    registry = await Registry.open(await shelf.open(*registry_keys.BOOK), "here", audit_key=b"k" * 32, new=new)
    try:
        yield registry
    finally:
        await registry.close()


@pytest.fixture
async def registry(shelf: Shelf) -> AsyncIterator[Registry]:
    async with opened(shelf, new=True) as made:
        yield made


async def write(shelf: Shelf, *rows: Put | Clear) -> None:
    """Change rows behind everybody's back."""
    store = await shelf.open(*registry_keys.BOOK)
    await store.acquire(0)
    await store.commit([], rows)
    await store.close()


async def read(shelf: Shelf, key: Key) -> bytes | None:
    store = await shelf.open(*registry_keys.BOOK)
    value = (await store.read([key])).values[0]
    await store.close()
    return value


def partner(partner_id: str = "acme", **fields: object) -> Partner:
    known: dict[str, object] = {
        "id": partner_id,
        "name": "Acme",
        "status": "onboarding",
        "mode": "test",
        "cell": "cell-0",
        "rate_per_second": 50,
        "rate_burst": 100,
        "in_flight_max": 256,
        "api_version": "2026-11-22",
        "profile_version": 1,
        "created_at": "2026-11-22T12:00:00.000Z",
    }
    return Partner(**{**known, **fields})  # type: ignore[arg-type]


async def onboarded(registry: Registry, partner_id: str = "acme") -> Partner:
    await registry.begin_onboarding(partner(partner_id), "ann")
    return await registry.activate(partner_id, "ann")


def stored_bytes(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir())


def a_key(partner_id: str = "acme") -> api_keys.ApiKey:
    return api_keys.make(PEPPER, "test", partner_id)


# What it keeps


async def test_what_was_written_is_there_after_the_next_start(shelf: Shelf) -> None:
    async with opened(shelf, new=True) as registry:
        await onboarded(registry)
        await registry.begin_onboarding(partner("beta", name="Bäta \U0001f4b6"), "ben")
        first, second = a_key(), a_key()
        await registry.add_key("acme", first, "ann")
        await registry.add_key("acme", second, "ann", others_end_at=datetime.now(UTC) + timedelta(hours=1))
        await registry.revoke_key("acme", second.id, "ann")
        await registry.take_directory_version(7)
        partners, keys, changes = registry.partners(), registry.all_keys(), await registry.changes("acme")
    async with opened(shelf) as again:
        assert again.partners() == partners == await read_partners(shelf, "here")
        assert again.all_keys() == keys
        assert again.directory_version() == 8
        assert await again.changes("acme") == changes
        await again.note("ann", "looked", "acme", {})
        assert [change.sequence for change in await again.changes("acme")] == [8, 7, 6, 5, 3, 2], (
            "the first seals the log"
        )


async def test_more_than_a_page_is_read(shelf: Shelf, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REGISTRY_PAGE_ROWS", 3)
    for index in range(6):
        await onboarded(registry, f"p{index}")
        await registry.add_key(f"p{index}", a_key(f"p{index}"), "ann")
    async with opened(shelf) as again:
        assert [found.id for found in again.partners()] == [f"p{index}" for index in range(6)]
        assert again.all_keys() == registry.all_keys()
    assert len(await read_partners(shelf, "here")) == 6


async def test_more_rows_than_this_version_takes_are_said(
    shelf: Shelf, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(3):
        await onboarded(registry, f"p{index}")
    monkeypatch.setattr(limits, "PARTNERS_MAX", 2)
    with pytest.raises(FolderError, match="more than the 2 rows"):
        await Registry.open(await shelf.open(*registry_keys.BOOK), "here", audit_key=b"k" * 32)


async def test_onboarding_gives_what_is_there_already(registry: Registry) -> None:
    await registry.begin_onboarding(partner(name="first"), "ann")
    assert (await registry.begin_onboarding(partner(name="second"), "ann")).name == "first"
    assert (await registry.activate("acme", "ann")).status == "active"


async def test_activating_again_changes_nothing(registry: Registry) -> None:
    await onboarded(registry)
    await registry.set_status("acme", "suspended", "ann")
    before = await registry.changes("acme")
    assert (await registry.activate("acme", "ann")).status == "suspended"
    assert await registry.changes("acme") == before


async def test_an_installation_takes_a_bounded_number_of_partners(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PARTNERS_MAX", 2)
    await registry.begin_onboarding(partner("a"), "ann")
    await registry.begin_onboarding(partner("b"), "ann")
    with pytest.raises(RefusedError, match="2 partners already"):
        await registry.begin_onboarding(partner("c"), "ann")
    assert (await registry.begin_onboarding(partner("b"), "ann")).id == "b"


async def test_a_change_of_the_profile_raises_its_version_and_no_change_does_not(registry: Registry) -> None:
    await onboarded(registry)
    assert (await registry.set_limits("acme", {"rate_per_second": 5}, "ann")).profile_version == 2
    assert (await registry.set_limits("acme", {"rate_per_second": 5}, "ann")).profile_version == 2
    assert (await registry.set_status("acme", "suspended", "ann")).profile_version == 3
    assert (await registry.set_status("acme", "suspended", "ann")).profile_version == 3
    assert (await registry.set_status("acme", "active", "ann")).status == "active"
    assert (await registry.raise_profile_version("acme", 40)).profile_version == 41


async def test_an_onboarding_partner_is_not_activated_by_resuming_it(registry: Registry) -> None:
    await registry.begin_onboarding(partner(), "ann")
    assert (await registry.set_status("acme", "active", "ann")).status == "onboarding"


async def test_a_status_that_is_none_is_never_written(registry: Registry) -> None:
    await onboarded(registry)
    with pytest.raises(AssertionError):
        await registry.set_status("acme", "gone", "ann")
    with pytest.raises(AssertionError):
        await registry.begin_onboarding(partner("beta", mode="prod"), "ann")


async def test_rotation_ends_the_older_keys_but_never_prolongs_one(registry: Registry) -> None:
    await onboarded(registry)
    first, second, third = (a_key() for _ in range(3))
    now = datetime.now(UTC)
    await registry.add_key("acme", first, "ann")
    await registry.add_key("acme", second, "ann", others_end_at=now + timedelta(hours=1))
    await registry.add_key("acme", third, "ann", others_end_at=now + timedelta(hours=24))
    ends = {key.id: key.expires_at for key in registry.keys("acme")}
    assert ends[third.id] is None
    assert ends[first.id] is not None
    assert datetime.fromisoformat(ends[first.id] or "") < now + timedelta(hours=2)
    assert datetime.fromisoformat(ends[second.id] or "") > now + timedelta(hours=23)


async def test_keys_are_kept_as_hashes_only(tmp_path: Path) -> None:
    shelf = SqliteShelf(tmp_path)
    await shelf.create(*registry_keys.BOOK)
    key = a_key()
    async with opened(shelf, new=True) as registry:
        await onboarded(registry)
        await registry.add_key("acme", key, "ann")
    stored = stored_bytes(tmp_path)
    assert key.hash.encode() in stored
    assert key.text.encode() not in stored
    assert key.text[-43:].encode() not in stored


async def test_a_partner_has_a_bounded_number_of_good_keys(registry: Registry) -> None:
    await onboarded(registry)
    for _ in range(limits.KEYS_PER_PARTNER_MAX):
        await registry.add_key("acme", a_key(), "ann")
    with pytest.raises(RefusedError, match="the most that a partner may have") as raised:
        await registry.add_key("acme", a_key(), "ann")
    oldest = registry.keys("acme")[0]
    assert oldest.id in raised.value.hint
    assert not (await registry.revoke_key("acme", oldest.id, "ann")).is_good(datetime.now(UTC))
    await registry.add_key("acme", a_key(), "ann")


async def test_of_keys_that_ended_the_newest_are_kept(
    shelf: Shelf, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "KEYS_KEPT_PER_PARTNER_MAX", 4)
    await onboarded(registry)
    made = [a_key() for _ in range(7)]
    for index, key in enumerate(made):
        await registry.add_key("acme", key, "ann")
        if index not in {1, 6}:
            await registry.revoke_key("acme", key.id, "ann")
        await asyncio.sleep(0.002)  # their age is told in milliseconds
    kept = [made[index].id for index in (1, 4, 5, 6)]
    assert sorted(key.id for key in registry.keys("acme")) == sorted(kept), "what is still good is never forgotten"
    assert await read(shelf, registry_keys.key_hash(made[0].hash)) is None
    async with opened(shelf) as again:
        assert again.keys("acme") == registry.keys("acme")


async def test_only_its_own_keys_can_be_revoked(registry: Registry) -> None:
    await onboarded(registry)
    await onboarded(registry, "other")
    key = a_key("other")
    await registry.add_key("other", key, "ann")
    with pytest.raises(NotFoundError):
        await registry.revoke_key("acme", key.id, "ann")
    assert registry.keys("other")[0].revoked_at is None


async def test_two_keys_never_have_one_hash(registry: Registry) -> None:
    await onboarded(registry)
    await onboarded(registry, "other")
    key = a_key()
    await registry.add_key("acme", key, "ann")
    before = await registry.changes("acme")
    for partner_id in ("acme", "other"):
        with pytest.raises(RegistryError, match="nothing was changed"):
            await registry.add_key(partner_id, key, "ann", others_end_at=datetime.now(UTC))
    assert await registry.changes("acme") == before
    assert registry.keys("acme")[0].expires_at is None
    assert registry.keys("other") == []
    await registry.set_limits("acme", {"rate_burst": 8}, "ann")  # and it goes on


async def test_every_change_is_written_down_with_who(registry: Registry) -> None:
    await onboarded(registry)
    await onboarded(registry, "other")
    await registry.set_limits("acme", {"rate_burst": 7}, "ben")
    await registry.set_status("acme", "suspended", "cleo")
    await registry.note("dan", "operation_resolved", "acme", {"operation": "op_1", "huge": 10**40})
    changes = await registry.changes("acme")
    assert [(change.who, change.what) for change in changes] == [
        ("dan", "operation_resolved"),
        ("cleo", "partner_suspended"),
        ("ben", "partner_limits"),
        ("ann", "partner_active"),
        ("ann", "partner_onboarding"),
    ]
    assert changes[2].detail == {"rate_burst": [100, 7]}
    assert changes[0].detail["huge"] == 10**40


async def test_only_the_newest_changes_are_given(registry: Registry) -> None:
    for index in range(limits.HISTORY_ROWS_SHOWN_MAX + 5):
        await registry.note("ann", "noted", "acme", {"index": index})
    changes = await registry.changes("acme")
    assert len(changes) == limits.HISTORY_ROWS_SHOWN_MAX
    assert changes[0].detail == {"index": limits.HISTORY_ROWS_SHOWN_MAX + 4}


async def test_a_change_is_never_written_over(shelf: Shelf, registry: Registry) -> None:
    await onboarded(registry)
    before = await read(shelf, registry_keys.change(2))
    registry._held.head = Head(1, registry._held.head.hash)  # a memory that is behind, whyever
    with pytest.raises(RegistryError, match="nothing was changed"):
        await registry.set_status("acme", "suspended", "ann")
    assert await read(shelf, registry_keys.change(2)) == before
    assert (await registry.set_status("acme", "suspended", "ann")).status == "suspended", "it was read again"


async def test_directory_versions_only_rise(registry: Registry) -> None:
    assert [await registry.take_directory_version(0) for _ in range(3)] == [1, 2, 3]
    assert await registry.take_directory_version(above=10) == 11
    assert await registry.take_directory_version(above=5) == 12


async def test_writes_at_once_follow_each_other(registry: Registry) -> None:
    await onboarded(registry)
    versions = await asyncio.gather(*(registry.take_directory_version(0) for _ in range(10)))
    assert sorted(versions) == list(range(1, 11))
    await asyncio.gather(*(registry.set_limits("acme", {"rate_burst": burst}, "ann") for burst in range(1, 6)))
    assert registry.partner("acme").profile_version == 6


async def test_a_partner_that_is_not_there_is_named(registry: Registry) -> None:
    with pytest.raises(NotFoundError, match="there is no partner 'acme'"):
        registry.partner("acme")
    with pytest.raises(NotFoundError):
        await registry.add_key("acme", a_key(), "ann")
    assert registry.keys("acme") == []
    assert await registry.changes("acme") == []


async def test_what_is_too_large_is_refused(registry: Registry) -> None:
    with pytest.raises(RefusedError, match="too large"):
        await registry.note("ann", "noted", None, {"text": "x" * 200_000})
    await registry.note("ann", "noted", None, {})


# Opening it


async def test_a_missing_book_never_becomes_an_empty_registry(tmp_path: Path) -> None:
    for shelf in (Memory(), SqliteShelf(tmp_path)):
        with pytest.raises(FolderError, match="there is no book") as raised:
            await read_partners(shelf, "here")
        assert "backup" in raised.value.hint
        assert raised.value.where == "here"
    assert stored_bytes(tmp_path) == b""


async def test_a_book_whose_making_was_interrupted_is_not_taken_for_a_whole_one(shelf: Shelf) -> None:
    await write(shelf, Put(registry_keys.partner("acme"), registry_codec.encode_partner(partner())))
    with pytest.raises(FolderError, match="not whole"):
        await Registry.open(await shelf.open(*registry_keys.BOOK), "here", audit_key=b"k" * 32)
    with pytest.raises(FolderError, match="not whole"):
        await read_partners(shelf, "here")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (registry_keys.partner("beta"), b"\xc1"),
        (registry_keys.partner("beta"), registry_codec.encode_partner(partner())),
        (registry_keys.key("beta", "key_1"), b"\x91\x63"),
        (registry_keys.DIRECTORY, b"\x92\x01\xa11"),
        (registry_keys.ORIGIN, b"\x93\x01\xa3odd\xa1x"),
        (registry_keys.OWNER, b""),
    ],
)
async def test_a_damaged_row_is_reported_and_never_guessed_at(
    shelf: Shelf, registry: Registry, key: Key, value: bytes
) -> None:
    await onboarded(registry)
    # What opening it would write is damaged after that.
    await write(shelf, Put(key, value))
    if key == registry_keys.OWNER:
        with pytest.raises(FolderError, match="can't be opened"):
            await registry.refresh()
        return
    with pytest.raises(FolderError, match="can't be opened") as raised:
        await Registry.open(await shelf.open(*registry_keys.BOOK), "here", audit_key=b"k" * 32)
    assert "backup" in raised.value.hint


async def test_a_key_of_no_partner_is_reported(shelf: Shelf, registry: Registry) -> None:
    await onboarded(registry)
    await registry.add_key("acme", a_key(), "ann")
    await write(shelf, Clear(registry_keys.partner("acme")))
    with pytest.raises(FolderError, match="is of no partner"):
        await Registry.open(await shelf.open(*registry_keys.BOOK), "here", audit_key=b"k" * 32)


# Two of them


async def test_one_that_was_taken_over_can_not_write_and_knows_it(shelf: Shelf, registry: Registry) -> None:
    await onboarded(registry)
    async with opened(shelf) as newer:
        with pytest.raises(RegistryLostError, match="another control plane took the registry over") as raised:
            await registry.set_status("acme", "suspended", "ann")
        assert "pid " in raised.value.what
        assert registry.lost is raised.value
        assert newer.partner("acme").status == "active"
        assert (await newer.set_status("acme", "suspended", "ann")).status == "suspended", "the newer one goes on"
        for _ in range(2):
            with pytest.raises(RegistryLostError):
                await registry.refresh()
            with pytest.raises(RegistryLostError):
                await registry.take_directory_version(0)
        await newer.take_directory_version(0)
        assert registry.partner("acme").status == "active", "what it knew last can still be read"


async def test_one_that_was_taken_over_finds_out_without_writing(shelf: Shelf, registry: Registry) -> None:
    await registry.refresh()
    async with opened(shelf):
        with pytest.raises(RegistryLostError):
            await registry.refresh()
    assert registry.lost is not None


async def test_a_stray_that_only_took_the_epoch_costs_one_refusal(shelf: Shelf, registry: Registry) -> None:
    await onboarded(registry)
    stray = await shelf.open(*registry_keys.BOOK)
    await stray.acquire(0)
    with pytest.raises(RegistryError, match="nothing was changed"):
        await registry.set_status("acme", "suspended", "ann")
    assert registry.lost is None
    assert (await registry.set_status("acme", "suspended", "ann")).status == "suspended"
    await stray.close()


# Faults


@pytest.fixture
async def memory() -> AsyncIterator[tuple[MemoryBook, Registry]]:
    shelf = Memory()
    await shelf.create()
    async with opened(shelf, new=True) as registry:
        await onboarded(registry)
        assert shelf.book is not None
        yield shelf.book, registry


async def as_written(book: MemoryBook) -> list[Partner]:
    shelf = Memory()
    shelf.book = book
    return await read_partners(shelf, "here")


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.UNAVAILABLE, RegistryError),
        (Fault.CONFLICT, RegistryError),
        (Fault.UNKNOWN_NOT_WRITTEN, RegistryError),
        (Fault.TIMEOUT, RegistryError),
        (Fault.CORRUPT, FolderError),
    ],
)
async def test_a_write_that_failed_changed_nothing_and_the_next_one_passes(
    memory: tuple[MemoryBook, Registry], fault: Fault, error: type[Exception]
) -> None:
    book, registry = memory
    before, changes = registry.partners(), await registry.changes("acme")
    book.inject(fault)
    with pytest.raises(error) as raised:
        await registry.set_status("acme", "suspended", "ann")
    assert raised.value.hint  # type: ignore[attr-defined]
    assert raised.value.exit_code == 2  # type: ignore[attr-defined]
    assert book.deliver_late() == 0, "what timed out can't be written any more"
    assert registry.partners() == before == await as_written(book)
    assert await registry.changes("acme") == changes
    assert (await registry.set_status("acme", "suspended", "ann")).profile_version == 2
    assert await as_written(book) == registry.partners()


async def test_a_write_whose_answer_was_lost_is_found_out_to_be_done(memory: tuple[MemoryBook, Registry]) -> None:
    book, registry = memory
    key = a_key()
    book.inject(Fault.UNKNOWN_WRITTEN)
    await registry.add_key("acme", key, "ann")
    assert [kept.id for kept in registry.keys("acme")] == [key.id]
    book.inject(Fault.UNKNOWN_WRITTEN)
    assert (await registry.set_status("acme", "suspended", "ann")).profile_version == 2
    assert [change.what for change in (await registry.changes("acme"))[:2]] == ["partner_suspended", "key_added"]


@pytest.mark.parametrize(
    ("fault", "status"), [(Fault.UNKNOWN_WRITTEN, "suspended"), (Fault.UNKNOWN_NOT_WRITTEN, "active")]
)
@pytest.mark.parametrize("call", ["acquire", "read"])
async def test_what_can_not_be_found_out_is_said_and_read_again_later(
    memory: tuple[MemoryBook, Registry], fault: Fault, status: str, call: str
) -> None:
    book, registry = memory
    book.inject(fault)
    book.inject(Fault.UNAVAILABLE, call)  # type: ignore[arg-type]
    with pytest.raises(RegistryUnknownError, match="is not known") as raised:
        await registry.set_status("acme", "suspended", "ann")
    assert "ask again" in raised.value.hint
    assert registry.partner("acme").status == "active", "reading goes on from what was known"
    await registry.refresh()
    assert registry.partner("acme").status == status
    assert (await registry.set_status("acme", "suspended", "ann")).profile_version == 2, "asking again does it once"


async def test_what_is_not_known_yet_keeps_the_next_write_waiting_for_it(memory: tuple[MemoryBook, Registry]) -> None:
    book, registry = memory
    book.inject(Fault.UNKNOWN_WRITTEN)
    book.inject(Fault.UNAVAILABLE, "acquire")
    book.inject(Fault.UNAVAILABLE, "acquire")
    with pytest.raises(RegistryUnknownError):
        await registry.set_status("acme", "suspended", "ann")
    with pytest.raises(RegistryError, match="can't be used"):
        await registry.set_limits("acme", {"rate_burst": 9}, "ann")
    assert (await registry.set_limits("acme", {"rate_burst": 9}, "ann")).profile_version == 3
    assert registry.partner("acme").status == "suspended"


async def test_a_canceled_write_is_read_again(memory: tuple[MemoryBook, Registry]) -> None:
    book, registry = memory
    stop = book.stop("after")
    task = asyncio.create_task(registry.set_status("acme", "suspended", "ann"))
    await stop.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert registry.partner("acme").status == "active", "its end is not known yet"
    assert (await registry.set_limits("acme", {"rate_burst": 9}, "ann")).status == "suspended"


async def test_a_zombie_that_was_held_inside_its_commit_writes_nothing(memory: tuple[MemoryBook, Registry]) -> None:
    book, registry = memory
    stop = book.stop("inside")
    task = asyncio.create_task(registry.set_status("acme", "suspended", "ann"))
    await stop.reached.wait()
    shelf = Memory()
    shelf.book = book
    async with opened(shelf) as newer:
        stop.resume()
        with pytest.raises(RegistryLostError):
            await task
        assert await as_written(book) == newer.partners() == [replace(partner(), status="active")]


async def test_reading_goes_on_while_the_store_is_away(memory: tuple[MemoryBook, Registry]) -> None:
    book, registry = memory
    for call in ("read", "read"):
        book.inject(Fault.UNAVAILABLE, call)  # type: ignore[arg-type]
    with pytest.raises(RegistryError):
        await registry.changes("acme")
    with pytest.raises(RegistryError):
        await registry.refresh()
    assert registry.partner("acme").status == "active"
    await registry.refresh()


@pytest.mark.parametrize(
    ("fault", "call", "error"),
    [
        (Fault.UNAVAILABLE, "acquire", RegistryError),
        (Fault.UNAVAILABLE, "read", RegistryError),
        (Fault.UNAVAILABLE, "commit", RegistryError),
        (Fault.CONFLICT, "commit", RegistryError),
        (Fault.UNKNOWN_WRITTEN, "commit", RegistryUnknownError),
        (Fault.CORRUPT, "read", FolderError),
    ],
)
async def test_a_start_that_meets_a_fault_says_so_and_the_next_one_goes_on(
    fault: Fault, call: str, error: type[Exception]
) -> None:
    shelf = Memory()
    await shelf.create()
    assert shelf.book is not None
    shelf.book.inject(fault, call)  # type: ignore[arg-type]
    with pytest.raises(error):
        await Registry.open(await shelf.open(), "here", audit_key=b"k" * 32, new=True)
    async with opened(shelf, new=True) as registry:
        await onboarded(registry)


async def test_of_two_that_start_at_once_one_owns_it(memory: tuple[MemoryBook, Registry]) -> None:
    book, _ = memory
    stop = book.stop("inside")
    first = asyncio.create_task(Registry.open(MemoryStore(book), "here", audit_key=b"k" * 32))
    await stop.reached.wait()
    second = await Registry.open(MemoryStore(book), "here", audit_key=b"k" * 32)
    stop.resume()
    with pytest.raises(RegistryLostError, match="at this moment"):
        await first
    await second.set_status("acme", "suspended", "ann")
