"""Damaged books: nobody can open them, what the seed breaks is the same, and what is put back is whole."""

import hashlib
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from actors.errors import StoreError
from actors.store import Put
from chaos.files import Damage, FileFaultError, damage
from stores import sqlite_file
from stores.sqlite_store import SqliteStore


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


SURE = [kind for kind in Damage if kind is not Damage.LOG_TORN]


@pytest.fixture
async def book(tmp_path: Path) -> Path:
    path = tmp_path / "acme.sqlite"
    sqlite_file.create(path)
    store = await SqliteStore.open(path)
    await store.acquire(1)
    for number in range(40):
        await store.commit((), [Put(("row", number), b"x" * 1_000)])
    await store.close()
    return path


async def rows(path: Path) -> int:
    store = await SqliteStore.open(path)
    try:
        await store.acquire(2)
        found = await store.read([("row", number) for number in range(40)])
        return sum(value is not None for value in found.values)
    finally:
        await store.close()


@pytest.mark.parametrize("kind", SURE)
async def test_nobody_opens_it_and_put_back_it_is_whole(tmp_path: Path, book: Path, kind: Damage) -> None:
    damaged = damage(book, kind, seed=3, keep_in=tmp_path / "kept")
    with pytest.raises(StoreError):
        await rows(book)
    assert not damaged.took_commits()
    damaged.put_back()
    assert await rows(book) == 40


async def test_the_seed_says_what_breaks(tmp_path: Path, book: Path) -> None:
    found = []
    for number in range(2):
        damaged = damage(book, Damage.PAGES, seed=7, keep_in=tmp_path / f"kept{number}")
        found.append(sha256(book))
        damaged.put_back()
    assert found[0] == found[1]


async def test_a_torn_log_is_opened_and_what_is_written_then_is_not_thrown_away(tmp_path: Path, book: Path) -> None:
    connection, _ = sqlite_file.connect(book, writable=True)
    kept = tmp_path / "kept"
    with closing(connection):
        connection.execute("INSERT INTO entry VALUES (x'00', x'00', 0)")
        damaged = damage(book, Damage.LOG_TORN, seed=3, keep_in=kept)
        book.with_name("acme.sqlite-wal").write_bytes((kept / "acme.sqlite-wal").read_bytes() + b"more")
    assert damaged.took_commits()
    with pytest.raises(FileFaultError, match="was written to"):
        damaged.put_back()


async def test_its_owner_is_killed_before_it_can_write_more(
    tmp_path: Path, book: Path, sleeper: psutil.Process
) -> None:
    damage(book, Damage.DELETED, seed=1, keep_in=tmp_path / "kept", owner=sleeper)
    assert not sleeper.is_running()


async def test_a_copy_is_never_overwritten(tmp_path: Path, book: Path) -> None:
    damage(book, Damage.TRUNCATED, seed=1, keep_in=tmp_path / "kept")
    with pytest.raises(FileFaultError, match="not empty"):
        damage(book, Damage.TRUNCATED, seed=1, keep_in=tmp_path / "kept")
    with pytest.raises(FileFaultError, match="no book"):
        damage(tmp_path / "other", Damage.PAGES, seed=1, keep_in=tmp_path / "kept2")


@pytest.fixture
def sleeper() -> Iterator[psutil.Process]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield psutil.Process(process.pid)
        process.kill()
