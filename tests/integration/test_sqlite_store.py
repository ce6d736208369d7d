# ruff: noqa: ASYNC251 - nothing else runs in these event loops, so a test may block its own
"""What only a store in files can meet: processes that die or stop, disks that fill, locks, logs that grow."""

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from actors import limits as actor_limits
from actors.errors import CommitUnknownError, StoreUnavailableError
from actors.store import Check, Key, Ownership, Put, Range
from stores import limits
from stores.sqlite_store import SqliteStore
from tests.contract.stores import SqliteHarness
from tests.store_process import integrity, read_sequences, sequence_mutations

ROOT = Path(__file__).parents[2]
HOLDER = ("holder",)


@pytest.fixture
async def book(tmp_path: Path) -> Path:
    path = tmp_path / "partner.sqlite"
    await SqliteStore.create(path)
    return path


@contextlib.asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(path)
    try:
        yield store
    finally:
        await store.close()


@contextlib.contextmanager
def process(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.store_process", *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as started:
        try:
            yield started
        finally:
            if started.poll() is None:
                started.kill()


def next_line(writer: subprocess.Popen[str]) -> dict[str, Any]:
    assert writer.stdout is not None
    line = writer.stdout.readline()
    assert line, f"the process ended with {writer.wait()}"
    answer = json.loads(line)
    assert isinstance(answer, dict)
    return answer


def wait_stopped(writer: subprocess.Popen[str]) -> None:
    _, status = os.waitpid(writer.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), f"the process ended: {status}"


async def value(store: SqliteStore, key: Key) -> bytes | None:
    return (await store.read([key])).values[0]


def log_bytes(book: Path) -> int:
    return book.with_name(book.name + "-wal").stat().st_size


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# Processes that die or stop


async def test_every_acknowledged_commit_survives_sigkill_of_the_writer(book: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - a failing run shows its seed
    chance = random.Random(seed)
    acknowledged = -1
    for number in range(4):
        with process("commit", book) as writer:
            for _ in range(chance.randrange(1, 400)):
                acknowledged = next_line(writer)["committed"]
            time.sleep(chance.random() * 0.002)  # so that it dies anywhere within a commit
            writer.kill()
            assert writer.stdout is not None
            for line in writer.stdout:
                acknowledged = json.loads(line)["committed"]
            writer.wait()
        async with opened(book) as store:
            found = await read_sequences(store)
            assert found[: acknowledged + 1] == list(range(acknowledged + 1))
            assert len(found) <= acknowledged + 2, "at most one commit was written and not acknowledged"
            assert (await store.acquire(1)).epoch == 2 * (number + 1)
        assert integrity(book) == "ok"


async def test_a_writer_stopped_inside_its_transaction_holds_up_a_takeover_for_a_bounded_time(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STORE_LOCK_WAIT_MS", 300)
    with process("stop-inside", book) as zombie:
        wait_stopped(zombie)
        async with opened(book) as successor:
            started = time.monotonic()
            with pytest.raises(StoreUnavailableError):
                await successor.acquire(1)
            assert 0.25 < time.monotonic() - started < 2
            assert await value(successor, ("zombie",)) is None, "reads need no lock"
            zombie.kill()
            zombie.wait()
            assert await successor.acquire(1) == Ownership(2, 1)
            assert await value(successor, ("zombie",)) is None
            await successor.commit([], [Put(HOLDER, b"successor")])


async def test_a_takeover_that_waits_goes_on_when_the_stopped_writer_is_killed(book: Path) -> None:
    with process("stop-inside", book) as zombie:
        wait_stopped(zombie)
        async with opened(book) as successor:
            takeover = asyncio.create_task(successor.acquire(1))
            await asyncio.sleep(0.05)  # until it waits for the lock; where it doesn't yet, nothing is lost
            assert not takeover.done()
            zombie.kill()
            zombie.wait()
            assert await takeover == Ownership(2, 1)


async def test_a_writer_stopped_before_its_transaction_is_fenced_when_it_goes_on(book: Path) -> None:
    with process("stop-before", book) as zombie:
        wait_stopped(zombie)
        async with opened(book) as successor:
            await successor.acquire(1)
            await successor.commit([], [Put(HOLDER, b"successor")])
            zombie.send_signal(signal.SIGCONT)
            assert next_line(zombie) == {"outcome": "FencedError"}
            assert await value(successor, ("zombie",)) is None
            await successor.commit([Check(HOLDER, b"successor")], [Put(HOLDER, b"again")])


# Disks


def test_a_full_disk_loses_nothing_and_damages_nothing(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    script = (
        f"mount -t tmpfs -o size=2m none {mount} && "
        f'{sys.executable} -c "from stores.sqlite_file import create; from pathlib import Path; '
        f"create(Path('{mount}/partner.sqlite'))\" && "
        f"exec {sys.executable} -m tests.store_process fill-disk {mount}/partner.sqlite"
    )
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], check=False).returncode != 0:
        pytest.skip("no mount namespace may be made here; the test with a limited file size stands in")
    done = subprocess.run([*unshare, "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    full, afterwards = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert full["acknowledged"] > 3
    assert (full["lost"], full["invented"]) == ([], [])
    assert set(full["errors"]) <= {"StoreUnavailableError", "CommitUnknownError"}
    assert full["integrity"] == afterwards["integrity"] == "ok"


def test_an_error_of_the_commit_itself_is_unknown_and_acquire_settles_it(tmp_path: Path) -> None:
    path = tmp_path / "partner.sqlite"
    asyncio.run(SqliteStore.create(path))
    with process("limit-file-size", path) as writer:
        limited = next_line(writer)
        assert limited["errors"][0] == "CommitUnknownError"
        assert (limited["acknowledged"] > 3, limited["unknown"]) == (True, 1)
        assert next_line(writer) == {"lost": [], "invented": [], "integrity": "ok"}
        assert writer.wait() == 0


class FailingFile(apsw.VFSFile):
    """A log whose fsync fails while the test wants it to."""

    def __init__(self, disk: "FailingDisk", name: Any, flags: list[int]) -> None:
        super().__init__(disk.base_name, name, flags)
        self._disk = disk
        self._is_log = bool(flags[0] & apsw.SQLITE_OPEN_WAL)

    def xSync(self, flags: int) -> None:  # noqa: N802 - SQLite's name
        super().xSync(flags)
        if self._is_log:
            self._disk.log_syncs += 1
        if self._is_log and self._disk.failing:
            raise apsw.IOError("fsync failed")


class FailingDisk(apsw.VFS):
    def __init__(self) -> None:
        self.failing = False
        self.log_syncs = 0
        self.base_name = apsw.vfs_names()[0]
        super().__init__("failing", self.base_name)

    def xOpen(self, name: Any, flags: list[int]) -> FailingFile:  # noqa: N802
        return FailingFile(self, name, flags)


@pytest.fixture
def failing_disk() -> Iterator[FailingDisk]:
    disk = FailingDisk()
    apsw.set_default_vfs("failing")
    yield disk
    apsw.set_default_vfs(disk.base_name)
    disk.unregister()


async def test_each_commit_syncs_the_log_before_it_is_acknowledged(book: Path, failing_disk: FailingDisk) -> None:
    async with opened(book) as store:
        await store.acquire(1)
        for number in range(5):
            before = failing_disk.log_syncs
            await store.commit([], [Put(("n", number), b"")])
            assert failing_disk.log_syncs == before + 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # apsw reports what xSync raises
async def test_a_failed_fsync_is_unknown_and_no_later_commit_stands_on_it(
    book: Path, failing_disk: FailingDisk
) -> None:
    async with opened(book) as store:
        await store.acquire(1)
        await store.commit([], [Put(HOLDER, b"before")])
        failing_disk.failing = True
        with pytest.raises(CommitUnknownError):
            await store.commit([], [Put(HOLDER, b"unknown")])
        with pytest.raises(StoreUnavailableError):
            await store.commit([], [Put(HOLDER, b"after")])
        with pytest.raises(StoreUnavailableError):
            await store.acquire(1)
        failing_disk.failing = False
        await store.acquire(1)
        seen = await value(store, HOLDER)
        assert seen in (b"before", b"unknown")
        await store.commit([Check(HOLDER, seen)], [Put(HOLDER, b"after")])
    async with opened(book) as store:
        assert await value(store, HOLDER) == b"after"
    assert integrity(book) == "ok"


# Time


async def test_a_commit_that_is_late_before_its_transaction_never_takes_place(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(book) as store:
        await store.acquire(1)
        held = SqliteHarness(book).hold(store, "before")
        await held.reached.wait()
        monkeypatch.setattr(actor_limits, "COMMIT_TIMEOUT_MS", 30)
        with pytest.raises(StoreUnavailableError):
            await store.commit([], [Put(HOLDER, b"late")])
        held.resume()
        monkeypatch.undo()
        await store.commit([Check(HOLDER, None)], [Put(HOLDER, b"next")])


async def test_a_takeover_that_is_late_waiting_for_the_lock_never_takes_place(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(book) as owner, opened(book) as successor:
        await owner.acquire(1)
        held = SqliteHarness(book).hold(owner, "inside")
        commit = asyncio.create_task(owner.commit([], [Put(HOLDER, b"1")]))
        await held.reached.wait()
        monkeypatch.setattr(actor_limits, "COMMIT_TIMEOUT_MS", 30)
        with pytest.raises(StoreUnavailableError):
            await successor.acquire(1)
        monkeypatch.undo()
        held.resume()
        await commit
        await successor._writer.thread.run(lambda _: None, actor_limits.COMMIT_TIMEOUT_MS)
        await owner.commit([Check(HOLDER, b"1")], [Put(HOLDER, b"2")])


async def test_commits_queued_behind_an_unknown_one_are_refused(book: Path) -> None:
    async with opened(book) as store:
        await store.acquire(1)
        SqliteHarness(book).lose_answer(store, written=False)
        commits = [store.commit([], [Put(("n", number), b"")]) for number in range(4)]
        results = await asyncio.gather(*commits, return_exceptions=True)
        assert [type(result) for result in results] == [CommitUnknownError, *[StoreUnavailableError] * 3]
        await store.acquire(1)
        assert (await store.read([], [Range(("n",), ("o",), 10)])).ranges == ((),)


async def test_a_commit_queued_behind_one_that_became_unknown_by_time_is_refused(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(book) as store:
        await store.acquire(1)
        held = SqliteHarness(book).hold(store, "inside")
        monkeypatch.setattr(actor_limits, "COMMIT_TIMEOUT_MS", 100)
        late = asyncio.create_task(store.commit([], [Put(HOLDER, b"late")]))
        await held.reached.wait()
        monkeypatch.undo()
        queued = asyncio.create_task(store.commit([], [Put(HOLDER, b"queued")]))
        with pytest.raises(CommitUnknownError):
            await late
        held.resume()
        with pytest.raises(StoreUnavailableError):
            await queued
        await store.acquire(1)
        assert await value(store, HOLDER) == b"late"


async def test_acquire_waits_for_a_commit_that_was_late_inside(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(book) as store:
        await store.acquire(1)
        held = SqliteHarness(book).hold(store, "inside")
        monkeypatch.setattr(actor_limits, "COMMIT_TIMEOUT_MS", 30)
        with pytest.raises(CommitUnknownError):
            await store.commit([], [Put(HOLDER, b"late")])
        with pytest.raises(StoreUnavailableError):
            await store.acquire(1)
        monkeypatch.undo()
        acquire = asyncio.create_task(store.acquire(1))
        await asyncio.sleep(0)
        assert await value(store, HOLDER) is None
        held.resume()
        assert (await acquire).epoch == 2
        assert await value(store, HOLDER) == b"late"
        await store.commit([Check(HOLDER, b"late")], [Put(HOLDER, b"next")])


async def test_a_read_is_stopped_when_its_time_is_up(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(book) as store:
        await store.acquire(1)
        await store.commit([], [Put(("n", number), b"") for number in range(1_000)])
        everything = Range(("n",), ("o",), 1_000)
        monkeypatch.setattr(actor_limits, "STORE_TRANSACTION_MS_MAX", 20)
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError):
            await store.read([], [everything] * limits.STORE_READ_RANGES_MAX)
        monkeypatch.undo()
        assert len((await store.read([], [everything])).ranges[0]) == 1_000
        assert time.monotonic() - started < 1, "the thread was not held up by what nobody waits for"


async def test_calls_past_the_queue_are_refused_at_once(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STORE_CALLS_PENDING_MAX", 3)
    async with opened(book) as store:
        await store.acquire(1)
        held = SqliteHarness(book).hold(store, "before")
        await held.reached.wait()
        commits = [asyncio.create_task(store.commit([], [Put(("n", number), b"")])) for number in range(5)]
        done, waiting = await asyncio.wait(commits, return_when=asyncio.FIRST_COMPLETED)
        assert (len(done), len(waiting)) == (2, 3)
        held.resume()
        results = await asyncio.gather(*commits, return_exceptions=True)
        assert [type(result) for result in results] == [type(None)] * 3 + [StoreUnavailableError] * 2


# The log


async def test_checkpoints_bound_the_log_under_commits_without_a_pause(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CHECKPOINT_LOG_PAGES", 50)
    monkeypatch.setattr(limits, "CHECKPOINT_LOG_PAGES_BLOCKING", 200)
    largest = 0
    async with opened(book) as store:
        await store.acquire(1)
        await read_sequences(store)
        files = open_files()
        for sequence in range(400):
            await store.commit([], sequence_mutations(sequence))
            largest = max(largest, log_bytes(book))
        assert await read_sequences(store) == list(range(400))
        assert open_files() <= files + 3, "a checkpoint gives back what it opens"
    # How far it grows while a checkpoint is at work depends on the disk; all that was written is 4,000 pages and more.
    assert largest < 2_000 * 4_120
    assert not book.with_name(book.name + "-wal").exists(), "the last to close leaves no log"


async def test_a_checkpoint_beside_the_writer_is_enough_where_commits_leave_it_a_moment(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CHECKPOINT_LOG_PAGES", 50)
    async with opened(book) as store:
        await store.acquire(1)
        for sequence in range(100):
            await store.commit([], sequence_mutations(sequence))
            await store._checkpointer.thread.run(lambda _: None, limits.STORE_CLOSE_TIMEOUT_MS)
        assert log_bytes(book) < 100 * 4_120


async def test_a_long_reader_stops_no_commit_and_the_log_starts_over_after_it(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CHECKPOINT_LOG_PAGES", 50)
    monkeypatch.setattr(limits, "CHECKPOINT_LOG_PAGES_BLOCKING", 200)
    monkeypatch.setattr(limits, "CHECKPOINT_LOCK_WAIT_MS", 10)
    monkeypatch.setattr(limits, "CHECKPOINT_LOG_BYTES_KEPT", 400 * 4_120)
    async with opened(book) as store:
        await store.acquire(1)
        await store.commit([], sequence_mutations(0))
        with process("read", book) as reader:
            next_line(reader)
            for sequence in range(1, 150):
                await store.commit([], sequence_mutations(sequence))
            grown = log_bytes(book)
            assert grown > 500 * 4_120, "the reader holds the log"
        for sequence in range(150, 300):
            await store.commit([], sequence_mutations(sequence))
        assert log_bytes(book) < grown / 2
        assert await read_sequences(store) == list(range(300))


# What is given back


async def test_a_closed_store_leaves_no_thread_and_no_open_file(book: Path) -> None:
    files, threads = open_files(), set(threading.enumerate())
    for _ in range(3):
        async with opened(book) as store:
            await store.acquire(1)
            await store.commit([], [Put(HOLDER, b"x")])
            await value(store, HOLDER)
            store._checkpointer.checkpoint(lambda: None)
    own = [thread for thread in set(threading.enumerate()) - threads if book.name in thread.name]
    for thread in own:
        thread.join(5)
        assert not thread.is_alive()
    assert open_files() <= files
