# ruff: noqa: ASYNC221, ASYNC240 - nothing else runs in these event loops, so a test may block its own
"""Books that are missing, half made, damaged or taken away: never an empty book, never wrong rows."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from actors.errors import (
    StoreCorruptError,
    StoreError,
    StoreExistsError,
    StoreMissingError,
    StoreUnavailableError,
)
from actors.store import Put, Range
from stores import sqlite_file
from stores.sqlite_store import SqliteStore

ROOT = Path(__file__).parents[2]
PAGE_BYTES = 4_096


@pytest.fixture
async def book(tmp_path: Path) -> Path:
    """Make a closed book of 400 rows, each recognisable in the file."""
    path = tmp_path / "partner.sqlite"
    await SqliteStore.create(path)
    store = await SqliteStore.open(path)
    await store.acquire(1)
    await store.commit([], [Put(("row", number), b"contents of %03d " % number * 30) for number in range(400)])
    await store.close()
    return path


async def read_all(path: Path) -> int:
    store = await SqliteStore.open(path)
    try:
        return len((await store.read([], [Range(("row",), ("s",), 1_000)])).ranges[0])
    finally:
        await store.close()


# Making books


async def test_a_book_is_made_once(book: Path) -> None:
    before = book.read_bytes()
    with pytest.raises(StoreExistsError):
        await SqliteStore.create(book)
    assert book.read_bytes() == before
    assert [entry.name for entry in book.parent.iterdir()] == [book.name]


async def test_of_creators_at_once_one_makes_the_book(tmp_path: Path) -> None:
    path = tmp_path / "partner.sqlite"
    results = await asyncio.gather(*(SqliteStore.create(path) for _ in range(6)), return_exceptions=True)
    assert results.count(None) <= 1
    # Those at work at the same moment may sweep each other's unfinished files; the next try then finds or makes it.
    assert all(isinstance(result, StoreExistsError | StoreUnavailableError) for result in results if result)
    if None not in results:
        await SqliteStore.create(path)
    assert await read_all(path) == 0


@pytest.mark.parametrize("step", ["half", "unnamed", "two names"])
async def test_a_creator_killed_on_the_way_leaves_no_book_or_a_whole_one(tmp_path: Path, step: str) -> None:
    path = tmp_path / "partner.sqlite"
    command = [sys.executable, "-m", "tests.store_process", "create", str(path), step]
    done = subprocess.run(command, cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert any(".creating-" in entry.name for entry in tmp_path.iterdir())
    if step == "two names":
        assert await read_all(path) == 0
        with pytest.raises(StoreExistsError):
            await SqliteStore.create(path)
    else:
        with pytest.raises(StoreMissingError):
            await SqliteStore.open(path)
        await SqliteStore.create(path)
    assert await read_all(path) == 0
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


async def test_a_log_without_its_book_is_never_given_a_new_book(tmp_path: Path) -> None:
    path = tmp_path / "partner.sqlite"
    path.with_name("partner.sqlite-wal").write_bytes(b"the last payments")
    with pytest.raises(StoreCorruptError):
        await SqliteStore.create(path)
    with pytest.raises(StoreMissingError):
        await SqliteStore.open(path)


async def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "partner.sqlite"
    with pytest.raises(StoreUnavailableError):
        await SqliteStore.create(path)
    with pytest.raises(StoreMissingError):
        await SqliteStore.open(path)


# Opening what is no book


async def test_a_missing_book_is_never_made_by_opening_it(tmp_path: Path) -> None:
    with pytest.raises(StoreMissingError):
        await SqliteStore.open(tmp_path / "partner.sqlite")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("contents", [b"", b"\0" * 8_192, b"garbage" * 5_000], ids=["empty", "zeros", "garbage"])
async def test_a_file_that_is_no_book_is_corrupt_and_stays_as_it_is(book: Path, contents: bytes) -> None:
    book.write_bytes(contents)
    with pytest.raises(StoreCorruptError):
        await SqliteStore.open(book)
    assert book.read_bytes() == contents


async def test_another_program_s_database_is_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "partner.sqlite"
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE entry (key, value, checksum)")
    connection.execute("CREATE TABLE ownership (id, epoch, door_epoch)")
    connection.execute("INSERT INTO ownership VALUES (1, 1, 1)")
    connection.execute(f"PRAGMA user_version = {sqlite_file.SCHEMA_VERSION}")
    connection.close()
    with pytest.raises(StoreCorruptError):
        await SqliteStore.open(path)


async def test_a_book_of_a_newer_version_is_not_touched(book: Path) -> None:
    connection = apsw.Connection(str(book))
    connection.execute(f"PRAGMA user_version = {sqlite_file.SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(StoreCorruptError, match="version"):
        await SqliteStore.open(book)


async def test_a_book_copied_without_its_log_mode_is_a_book(book: Path) -> None:
    connection = apsw.Connection(str(book))
    copy = book.with_name("copy.sqlite")
    connection.execute("VACUUM INTO ?", (str(copy),))
    connection.close()
    assert await read_all(copy) == 400


async def test_a_folder_in_place_of_a_book(tmp_path: Path) -> None:
    path = tmp_path / "partner.sqlite"
    path.mkdir()
    with pytest.raises(StoreUnavailableError):
        await SqliteStore.open(path)


# Damage


@pytest.mark.parametrize("pages", [1, 3, 20])
async def test_a_truncated_book_is_corrupt(book: Path, pages: int) -> None:
    assert book.stat().st_size > 20 * PAGE_BYTES
    os.truncate(book, pages * PAGE_BYTES - 100)
    with pytest.raises(StoreCorruptError):
        await read_all(book)


async def test_a_page_lost_in_the_middle_is_corrupt(book: Path) -> None:
    damaged = bytearray(book.read_bytes())
    place = damaged.index(b"contents of 200 ") // PAGE_BYTES * PAGE_BYTES
    damaged[place : place + PAGE_BYTES] = bytes(PAGE_BYTES)
    book.write_bytes(damaged)
    with pytest.raises(StoreCorruptError):
        await read_all(book)


async def test_a_bit_that_flipped_in_a_value_is_corrupt_and_spares_the_other_rows(book: Path) -> None:
    damaged = bytearray(book.read_bytes())
    damaged[damaged.index(b"contents of 200 ") + 40] ^= 1
    book.write_bytes(damaged)
    store = await SqliteStore.open(book)
    with pytest.raises(StoreCorruptError):
        await store.read([("row", 200)])
    with pytest.raises(StoreCorruptError):
        await store.read([], [Range(("row", 190), ("row", 210), 100)])
    assert (await store.read([("row", 20)])).values[0] is not None
    await store.close()


# Files taken away under an open store


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_book_taken_away_under_a_store_takes_no_commit(book: Path, replaced: bool) -> None:
    store = await SqliteStore.open(book)
    await store.acquire(1)
    await store.read([("row", 1)])
    book.rename(book.with_name("elsewhere"))
    if replaced:
        book.write_bytes(b"something else")
    for call in (store.commit([], [Put(("a",), b"")]), store.read([("row", 1)]), store.acquire(1)):
        with pytest.raises(StoreMissingError):
            await call
    if not replaced:
        with pytest.raises(StoreMissingError):
            await store.read([("row", 1)])
    await store.close()


async def test_a_log_taken_away_under_a_store_takes_no_commit(book: Path) -> None:
    store = await SqliteStore.open(book)
    await store.acquire(1)
    book.with_name(book.name + "-wal").unlink()
    with pytest.raises(StoreCorruptError):
        await store.commit([], [Put(("a",), b"")])
    with pytest.raises(StoreError):
        await store.acquire(1)
    await store.close()
