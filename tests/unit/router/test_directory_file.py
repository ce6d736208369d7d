"""The directory's files: whole or not at all, never older, and enough to start from when the published one is gone."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from router import directory, directory_file, directory_signature, limits
from router.directory import Directory, DirectoryError, Payload
from router.directory_file import DirectoryWatcher

KEY = Ed25519PrivateKey.generate()


def raw(version: int, *, port: int = 8101) -> bytes:
    cells = [{"name": "cell-0", "host": "127.0.0.1", "port": port}]
    return directory_signature.sign(KEY, directory.encode(version, Payload.model_validate({"cells": cells})))


class Site:
    """A published file and a router's own folder, with a clock that only the test moves."""

    def __init__(self, folder: Path) -> None:
        self.published = folder / "directory" / "directory.json"
        self.own = folder / "routers" / "router-0"
        self.now = 1_000.0
        self.taken: list[int] = []

    async def _changed(self, held: Directory) -> None:
        self.taken.append(held.version)

    def publish(self, data: bytes) -> None:
        directory_file.write_atomically(self.published, data)

    async def start(self) -> DirectoryWatcher:
        watcher = DirectoryWatcher(self.published, self.own, KEY.public_key(), self._changed, lambda: self.now)
        await watcher.load()
        return watcher

    def kept_version(self) -> int:
        return directory_file.read(self.own / "directory.json", KEY.public_key())[1].version


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def version_of(watcher: DirectoryWatcher) -> int | None:
    return None if watcher.current is None else watcher.current.version


async def test_it_starts_with_what_is_published_and_keeps_it(site: Site) -> None:
    site.publish(raw(3))
    watcher = await site.start()
    assert version_of(watcher) == 3
    assert site.kept_version() == 3
    assert (site.own / "directory.json").read_bytes() == site.published.read_bytes()


async def test_it_takes_what_is_new(site: Site) -> None:
    site.publish(raw(3))
    watcher = await site.start()
    for version in (4, 9):
        site.publish(raw(version))
        await watcher.poll()
        assert version_of(watcher) == version
        assert site.kept_version() == version
    assert site.taken == [3, 4, 9]


async def test_it_waits_for_a_first_directory(site: Site) -> None:
    watcher = await site.start()
    await watcher.poll()
    assert watcher.current is None
    site.publish(raw(1))
    await watcher.poll()
    assert version_of(watcher) == 1


async def test_it_starts_from_what_it_kept(site: Site) -> None:
    site.publish(raw(5))
    await site.start()
    site.published.unlink()
    watcher = await site.start()
    assert version_of(watcher) == 5


async def test_an_older_one_is_never_taken(site: Site) -> None:
    site.publish(raw(5))
    watcher = await site.start()
    site.publish(raw(4))
    await watcher.poll()
    assert version_of(watcher) == 5
    again = await site.start()
    assert version_of(again) == 5
    assert site.kept_version() == 5


async def test_the_same_version_with_other_words_is_never_taken(site: Site) -> None:
    site.publish(raw(5))
    watcher = await site.start()
    site.publish(raw(5, port=9999))
    await watcher.poll()
    assert watcher.current is not None
    assert watcher.current.cells["cell-0"].port == 8101
    assert watcher.rejected == 1


@pytest.mark.parametrize("garbage", [b"", b"{}", raw(9)[:-20], raw(9).replace(b"8101", b"8102")])
async def test_a_corrupt_one_is_never_taken_and_the_next_good_one_is(site: Site, garbage: bytes) -> None:
    site.publish(raw(5))
    watcher = await site.start()
    site.publish(garbage)
    await watcher.poll()
    await watcher.poll()
    assert version_of(watcher) == 5
    assert watcher.rejected == 1  # looked at once, not at every poll
    site.publish(raw(6))
    await watcher.poll()
    assert version_of(watcher) == 6


async def test_a_corrupt_copy_of_its_own_does_not_stop_it(site: Site) -> None:
    site.publish(raw(5))
    await site.start()
    (site.own / "directory.json").write_bytes(b"\0" * 100)
    watcher = await site.start()
    assert version_of(watcher) == 5
    assert site.kept_version() == 5


@pytest.mark.parametrize("in_place", ["folder", "pipe", "socket", "giant", "link to nothing"])
async def test_what_is_no_file_is_never_taken_and_nothing_waits_for_it(site: Site, in_place: str) -> None:
    site.publish(raw(5))
    watcher = await site.start()
    site.published.unlink()
    with contextlib.ExitStack() as stack:
        if in_place == "folder":
            site.published.mkdir()
        elif in_place == "pipe":
            os.mkfifo(site.published)
        elif in_place == "socket":
            stack.enter_context(socket.socket(socket.AF_UNIX)).bind(str(site.published))
        elif in_place == "giant":
            with site.published.open("wb") as file:
                file.truncate(limits.DIRECTORY_BYTES_MAX + 1)
        else:
            site.published.symlink_to(site.published.with_name("nothing"))
        async with asyncio.timeout(5):
            await watcher.poll()
            assert version_of(watcher) == 5
            # A router that starts now starts from what it kept.
            assert version_of(await site.start()) == 5
    site.published.rmdir() if in_place == "folder" else site.published.unlink()
    site.publish(raw(6))
    await watcher.poll()
    assert version_of(watcher) == 6


async def test_both_corrupt_is_no_directory(site: Site) -> None:
    site.publish(b"?")
    site.own.mkdir(parents=True)
    (site.own / "directory.json").write_bytes(b"?")
    watcher = await site.start()
    assert watcher.current is None


async def test_a_copy_that_can_t_be_written_is_tried_again_later(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.publish(raw(5))
    watcher = await site.start()
    write, attempts = directory_file.write_atomically, []

    def full(path: Path, data: bytes) -> None:
        attempts.append(path)
        raise OSError(28, "No space left on device")

    site.publish(raw(6))
    monkeypatch.setattr(directory_file, "write_atomically", full)
    await watcher.poll()
    await watcher.poll()
    assert version_of(watcher) == 6, "the router serves on"
    assert len(attempts) == 1
    monkeypatch.setattr(directory_file, "write_atomically", write)
    site.now += limits.DIRECTORY_KEEP_RETRY_MS / 1000
    await watcher.poll()
    assert site.kept_version() == 6


async def test_its_age_is_that_of_the_last_look_that_was_well(site: Site) -> None:
    site.publish(raw(5))
    watcher = await site.start()
    site.now += 7
    assert watcher.age_s == 7
    await watcher.poll()
    assert watcher.age_s == 0
    site.publish(b"?")
    await watcher.poll()
    site.now += 3
    await watcher.poll()
    assert watcher.age_s == 3
    site.published.unlink()
    await watcher.poll()
    site.now += 1
    await watcher.poll()
    assert watcher.age_s == 4


@contextlib.asynccontextmanager
async def watched(site: Site, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DirectoryWatcher]:
    """A watcher that looks when it is asked to, and otherwise once an hour."""
    monkeypatch.setattr(limits, "DIRECTORY_POLL_MS", 3_600_000)
    watcher = await site.start()
    watching = asyncio.create_task(watcher.watch())
    try:
        async with asyncio.timeout(30):
            yield watcher
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


@pytest.mark.parametrize("version", [4, 0], ids=["this version", "any newer one"])
async def test_who_waits_for_a_directory_has_it_looked_for_at_once(
    site: Site, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    site.publish(raw(3))
    async with watched(site, monkeypatch) as watcher:
        await asyncio.sleep(0)  # it waits for its next look by now
        site.publish(raw(4))
        await asyncio.gather(*(watcher.wait_in_use(version, 3_600_000) for _ in range(100)))
    assert site.taken == [3, 4], "they shared one look"


async def test_who_waits_for_a_directory_gets_it_by_redis_too(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.publish(raw(3))
    async with watched(site, monkeypatch) as watcher:
        waiting = asyncio.create_task(watcher.wait_in_use(5, 3_600_000))
        await watcher.offer(raw(4))
        await asyncio.sleep(0)
        assert not waiting.done(), "that was not new enough"
        await watcher.offer(raw(6))
        await waiting


async def test_a_directory_is_waited_for_until_it_is_in_use(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.publish(raw(3))
    async with watched(site, monkeypatch) as watcher:
        begun, going_on = asyncio.Event(), asyncio.Event()

        async def slowly(held: Directory) -> None:
            begun.set()
            await going_on.wait()

        watcher._on_change = slowly
        offering = asyncio.create_task(watcher.offer(raw(4)))
        waiting = asyncio.create_task(watcher.wait_in_use(4, 3_600_000))
        await begun.wait()
        assert version_of(watcher) == 4
        assert not waiting.done(), "its cells are not connected to yet"
        going_on.set()
        await asyncio.gather(offering, waiting)


async def test_a_directory_that_does_not_come_is_waited_for_only_so_long(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.publish(raw(3))
    async with watched(site, monkeypatch) as watcher:
        await watcher.wait_in_use(3, 3_600_000)
        await watcher.wait_in_use(4, 1)
        await watcher.wait_in_use(0, 1)
    assert version_of(watcher) == 3


def test_a_write_that_fails_leaves_the_old_file(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.publish(raw(1))

    def broken(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"):
        site.publish(raw(2))
    assert directory_file.read(site.published, KEY.public_key())[1].version == 1
    assert list(site.published.parent.iterdir()) == [site.published]


def test_a_write_is_for_its_owner_only(site: Site) -> None:
    site.publish(raw(1))
    assert site.published.stat().st_mode & 0o777 == 0o600


def test_a_file_larger_than_allowed_is_not_read_whole(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.publish(raw(1))
    monkeypatch.setattr(limits, "DIRECTORY_BYTES_MAX", 50)
    with pytest.raises(DirectoryError, match="more than 50"):
        directory_file.read(site.published, KEY.public_key())
