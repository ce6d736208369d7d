"""What only the FoundationDB store can meet, on a server of the test's own: killed, stopped, locked, full, wrong.

The contract's own suite (tests/contract) runs over it, too. Skipped, in words, where there is no fdbserver.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Any

import pytest

from actors.errors import (
    CommitUnknownError,
    ConflictError,
    FencedError,
    StoreClientError,
    StoreError,
    StoreExistsError,
    StoreLimitError,
    StoreMissingError,
    StoreUnavailableError,
)
from actors.store import Check, Put, Range
from chaos.fdb_server import FdbServer
from stores import limits
from stores.fdb_cluster import Cluster
from stores.fdb_shelf import FdbShelf
from stores.fdb_store import FdbStore
from tests.contract.stores import FdbHarness
from tests.eventually import eventually, eventually_true

HOLDER = ("holder",)
LOCK_KEY = b"\xff\xff/management/db_locked"

needs_server = pytest.mark.skipif(
    shutil.which("fdbserver") is None or shutil.which("fdbcli") is None,
    reason="no FoundationDB server: fdbserver and fdbcli are not on the PATH",
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FdbServer]:
    made = FdbServer(tmp_path / "fdb")
    made.start()
    yield made
    made.end()


@pytest.fixture
async def harness(server: FdbServer) -> FdbHarness:
    made = FdbHarness(Cluster(server.cluster_file))
    await made.cluster.wait_answers()
    await FdbStore.create(made.cluster, made.path)
    return made


@pytest.fixture
async def store(harness: FdbHarness) -> AsyncIterator[FdbStore]:
    opened = await harness.open()
    await opened.acquire(1)
    yield opened
    await opened.close()


async def held(store: FdbStore) -> bytes | None:
    return (await store.read([HOLDER])).values[0]


async def committed_in_the_end(store: FdbStore, value: bytes, timeout_s: float = 30) -> None:
    """Own the book anew and commit, again and again until it is done."""
    until = time.monotonic() + timeout_s
    while True:
        try:
            await store.acquire(1)
            await store.commit([], [Put(HOLDER, value)])
        except (CommitUnknownError, StoreUnavailableError):
            assert time.monotonic() < until, "the cluster never came back for this store"
            await asyncio.sleep(0.05)
        else:
            return


# What a commit may meet


@needs_server
@pytest.mark.parametrize("written", [True, False])
async def test_an_unknown_result_is_settled_by_the_receipt(harness: FdbHarness, store: FdbStore, written: bool) -> None:
    await store.commit([], [Put(HOLDER, b"before")])
    harness.fail_next(store, 1_021, written=written)
    await store.commit([Check(HOLDER, b"before")], [Put(HOLDER, b"after")])
    assert await held(store) == b"after"
    assert (await store.acquire(1)).epoch == 2, "nothing had to be acquired for it"


@needs_server
async def test_an_unknown_result_that_another_owner_overtook_is_fenced(harness: FdbHarness, store: FdbStore) -> None:
    harness.fail_next(store, 1_021, written=False)
    successor = await harness.open()
    await successor.acquire(1)
    with pytest.raises(FencedError):
        await store.commit([], [Put(HOLDER, b"zombie")])
    assert await held(successor) is None


@needs_server
@pytest.mark.parametrize("code", [1_020, 1_007, 1_009, 1_037, 1_213])
async def test_what_was_not_written_is_tried_again(harness: FdbHarness, store: FdbStore, code: int) -> None:
    harness.fail_next(store, code, written=False)
    await store.commit([], [Put(HOLDER, b"x")])
    assert await held(store) == b"x"


@needs_server
@pytest.mark.parametrize("code", [1_031, 1_039, 4_100])
async def test_what_may_still_be_written_waits_for_a_new_epoch(harness: FdbHarness, store: FdbStore, code: int) -> None:
    harness.fail_next(store, code, written=False)
    with pytest.raises(CommitUnknownError):
        await store.commit([], [Put(HOLDER, b"x")])
    with pytest.raises(StoreUnavailableError):
        await store.commit([], [Put(HOLDER, b"y")])
    await committed_in_the_end(store, b"z")
    assert await held(store) == b"z"


@needs_server
async def test_a_transaction_that_the_cluster_finds_too_large_is_refused(
    harness: FdbHarness, store: FdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.cluster.database.options.set_transaction_size_limit(10_000)
    try:
        with pytest.raises(StoreLimitError, match="2101"):
            await store.commit([], [Put((number,), b"x" * 1_000) for number in range(20)])
    finally:
        harness.cluster.database.options.set_transaction_size_limit(10_000_000)
    await store.commit([], [Put(HOLDER, b"the next one fits")])
    assert (await store.read([], [Range((0,), (100,), 100)])).ranges == ((),)


@needs_server
async def test_a_base_older_than_the_cluster_remembers_is_looked_up_anew(
    store: FdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.commit([], [Put(HOLDER, b"1")])
    monkeypatch.setattr(limits, "FDB_VERSION_AGE_MS_MAX", 60_000)
    await asyncio.sleep(6)  # longer than FoundationDB remembers: 1007
    await store.commit([], [Put(HOLDER, b"2")])
    assert await held(store) == b"2"


@needs_server
async def test_what_begins_something_asks_the_cluster_for_leave_now_and_then(
    store: FdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    verify = store._verify

    async def counted(*arguments: Any) -> None:
        asked.append(time.monotonic())
        await verify(*arguments)

    monkeypatch.setattr(store, "_verify", counted)
    began = time.monotonic()
    number = 0
    while time.monotonic() - began < 2:
        await store.commit([Check((number,), None)], [Put((number,), b"")])
        number += 1
    times = (time.monotonic() - began) * 1_000 / limits.FDB_LEAVE_MS_MAX
    assert times / 2 < len(asked) < min(number, times + 2)
    count = len(asked)
    await asyncio.sleep(2 * limits.FDB_LEAVE_MS_MAX / 1_000)
    await store.commit([], [Put(("ends",), b"")])
    assert len(asked) == count, "what ends something does not ask"
    for key in (0, 1):
        with pytest.raises(ConflictError):
            await store.commit([Check((key,), None)], [Put((key,), b"again")])
        assert len(asked) == count + 1, "also where it does not ask, what is checked is looked at"


@needs_server
async def test_no_call_has_a_thread_of_its_own(store: FdbStore) -> None:
    await held(store)
    before = threading.active_count()
    await asyncio.gather(*(held(store) for _ in range(100)), *(store.commit([], [Put(HOLDER, b"")]) for _ in range(50)))
    assert threading.active_count() == before
    assert sum(thread.name.startswith("NetworkThread") or "Network" in type(thread).__name__
               for thread in threading.enumerate()) == 1  # fmt: skip


# A server in trouble


async def _write_until_told(store: FdbStore, acknowledged: list[int], stop: asyncio.Event) -> None:
    """Write 1, 2, 3, … each under a check that the one before is there; after an unknown one, look which it was."""
    number = 0
    acquired = True
    while not stop.is_set():
        try:
            if not acquired:
                await store.acquire(1)
                acquired = True
                value = await held(store)
                found = 0 if value is None else int(value)
                assert found in {number, number + 1}, f"{found} is there, {number} was acknowledged last"
                number = found
            expected = None if number == 0 else b"%d" % number
            await store.commit([Check(HOLDER, expected)], [Put(HOLDER, b"%d" % (number + 1))])
        except CommitUnknownError:
            acquired = False
        except StoreUnavailableError:
            await asyncio.sleep(0.01)
        else:
            number += 1
            acknowledged.append(number)


@needs_server
@pytest.mark.parametrize("trouble", ["killed", "stopped"])
async def test_a_server_that_is_killed_or_stopped_under_load_loses_and_doubles_nothing(
    server: FdbServer, harness: FdbHarness, store: FdbStore, trouble: str
) -> None:
    acknowledged: list[int] = []
    stop = asyncio.Event()
    writing = asyncio.create_task(_write_until_told(store, acknowledged, stop))
    for _ in range(3):
        before = len(acknowledged)
        await eventually(lambda: len(acknowledged) > before + 20, within_s=60)  # noqa: B023 - awaited at once
        if trouble == "killed":
            server.kill()
            await asyncio.sleep(1)
            await asyncio.to_thread(server.start)
        else:
            server.stop()
            await asyncio.sleep(5)
            server.continue_()
    before = len(acknowledged)
    await eventually(lambda: len(acknowledged) > before + 20, within_s=60)
    stop.set()
    await writing
    assert acknowledged == sorted(set(acknowledged))
    value = await held(store)
    assert value is not None
    assert int(value) >= acknowledged[-1]


@needs_server
async def test_while_the_cluster_is_silent_calls_fail_at_once_and_then_pass_by_themselves(
    server: FdbServer, harness: FdbHarness, store: FdbStore
) -> None:
    server.stop()
    try:
        with pytest.raises(StoreError):
            await store.commit([Check(HOLDER, None)], [Put(HOLDER, b"x")])
        began = time.monotonic()
        for call in (store.read([HOLDER]), store.acquire(1), harness.open()):
            with pytest.raises(StoreUnavailableError, match="has not answered for"):
                await call
        assert time.monotonic() - began < 1, "what is known not to answer is not waited for"
    finally:
        server.continue_()
    await committed_in_the_end(store, b"back")
    assert await held(store) == b"back"


@needs_server
async def test_a_commit_that_was_on_its_way_when_the_server_stopped_never_comes_after_a_new_epoch(
    server: FdbServer, harness: FdbHarness, store: FdbStore
) -> None:
    """The late transaction of 1031: it may be written when the server goes on, but not behind an acquire."""
    await store.commit([], [Put(HOLDER, b"before")])
    server.stop()
    commits = [asyncio.create_task(store.commit([], [Put(("late", n), b"")])) for n in range(8)]
    results = await asyncio.gather(*commits, return_exceptions=True)
    assert all(isinstance(result, StoreError) for result in results)
    server.continue_()
    await committed_in_the_end(store, b"after")
    first = (await store.read([], [Range(("late",), ("latf",), 100)])).ranges
    await asyncio.sleep(3)
    assert (await store.read([], [Range(("late",), ("latf",), 100)])).ranges == first, "it came late"


def _set_lock(cluster: Cluster, *, locked: bool) -> None:
    """Lock or unlock the database, as `fdbcli` does (special keys, management module)."""
    transaction = cluster.database.create_transaction()
    transaction.options.set_special_key_space_enable_writes()
    transaction.options.set_lock_aware()
    if locked:
        transaction.set(LOCK_KEY, b"0" * 31 + b"1")
    else:
        transaction.clear(LOCK_KEY)
    transaction.commit().wait()


@needs_server
async def test_a_locked_database_is_unavailable_until_it_is_unlocked(harness: FdbHarness, store: FdbStore) -> None:
    await asyncio.to_thread(_set_lock, harness.cluster, locked=True)
    for call in (
        store.commit([], [Put(HOLDER, b"x")]),
        store.read([HOLDER]),
        store.acquire(1),
    ):
        with pytest.raises(StoreUnavailableError, match="1038"):
            await call
    await asyncio.to_thread(_set_lock, harness.cluster, locked=False)
    await committed_in_the_end(store, b"unlocked")
    assert await held(store) == b"unlocked"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 GiB where the server keeps its data; in memory, so that it is known to be small."""
    folder = tmp_path / "fdb" / "data"
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1g", "none", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@needs_server
@pytest.mark.timeout(240)
async def test_a_server_whose_disk_is_full_is_unavailable_until_there_is_room(
    small_disk: Path, server: FdbServer, harness: FdbHarness, store: FdbStore
) -> None:
    acknowledged: list[int] = []
    stop = asyncio.Event()
    writing = asyncio.create_task(_write_until_told(store, acknowledged, stop))
    await eventually(lambda: len(acknowledged) > 20, within_s=60)
    # Less than the 100 MB at which Ratekeeper lets nothing begin, and enough for the server to go on in.
    filler = small_disk / "filler"
    await asyncio.to_thread(_fill, filler, leave_bytes=90_000_000)

    async def is_refused() -> bool:
        before = len(acknowledged)
        await asyncio.sleep(3)
        return len(acknowledged) == before

    await eventually_true(is_refused, within_s=90)
    with pytest.raises(StoreUnavailableError):
        await store.read([HOLDER])
    filler.unlink()
    before = len(acknowledged)
    await eventually(lambda: len(acknowledged) > before + 20, within_s=90)
    stop.set()
    await writing
    value = await held(store)
    assert value is not None
    assert int(value) >= acknowledged[-1]


def _fill(file: Path, leave_bytes: int) -> None:
    size = shutil.disk_usage(file.parent).free - leave_bytes
    with file.open("wb") as opened:
        os.posix_fallocate(opened.fileno(), 0, size)


# What it tells of itself


async def _told(shelf: FdbShelf) -> dict[str, float]:
    return {sample.name: sample.value for sample in await shelf.health() if not sample.labels}


@needs_server
async def test_it_tells_how_it_is_and_whether_it_is_there(server: FdbServer, harness: FdbHarness) -> None:
    shelf = FdbShelf(harness.cluster, ("bulkhead", "test"))

    async def tells(name: str, value: float | None = None) -> bool:
        found = (await _told(shelf)).get(name)
        return found is not None and value in (None, found)

    status = await harness.cluster.status()
    assert status["cluster"]["configuration"]["redundancy_mode"] == "single"
    # Of a cluster that is new some numbers are not there yet, and none is made up.
    await eventually_true(lambda: tells("fdb_transactions_per_second_limit"), 60)
    await eventually_true(lambda: tells("fdb_free_disk_share_min"), 60)
    well = await _told(shelf)
    assert well["fdb_reachable"] == well["fdb_available"] == well["fdb_cluster_file_current"] == 1
    assert well["fdb_locked"] == well["fdb_zone_failures_tolerated"] == 0
    assert well["fdb_transactions_per_second_limit"] > 0
    assert 0 < well["fdb_free_disk_share_min"] < 1
    await asyncio.to_thread(_set_lock, harness.cluster, locked=True)
    assert await tells("fdb_locked", 1)
    await asyncio.to_thread(_set_lock, harness.cluster, locked=False)
    server.kill()
    gone = await _told(shelf)
    # Where nobody answers at all the client still says so itself; it makes up no numbers of the cluster's.
    assert gone["fdb_reachable"] == gone.get("fdb_available", 0) == 0
    assert "fdb_locked" not in gone
    server.start()
    await eventually_true(lambda: tells("fdb_available", 1), 60)


# Clients and files


@needs_server
async def test_a_cluster_file_of_another_cluster_is_silence_and_says_what_to_look_at(
    server: FdbServer, tmp_path: Path
) -> None:
    line = server.cluster_file.read_text().strip()
    description, _, rest = line.partition(":")
    wrong = tmp_path / "wrong.cluster"
    wrong.write_text(f"{description}:otherid@{rest.partition('@')[2]}\n")
    with pytest.raises(StoreUnavailableError, match="is fdbserver running, and is this the file of the right cluster"):
        await Cluster(wrong).wait_answers()


@needs_server
async def test_a_book_is_made_once_and_never_by_opening_it(server: FdbServer) -> None:
    shelf = FdbShelf.connect(server.cluster_file, ("bulkhead", "test"))
    await shelf.cluster.wait_answers()
    assert await shelf.names("partners") == []
    with pytest.raises(StoreMissingError):
        await shelf.open("partners", "acme")
    made = await asyncio.gather(*(shelf.create("partners", "acme") for _ in range(5)), return_exceptions=True)
    assert sum(result is None for result in made) == 1
    assert all(result is None or isinstance(result, StoreExistsError) for result in made)
    await shelf.create("partners", "beta")
    assert await shelf.names("partners") == ["acme", "beta"]
    acme = await shelf.open("partners", "acme")
    beta = await shelf.open("partners", "beta")
    await acme.acquire(1)
    await beta.acquire(1)
    await acme.commit([], [Put(HOLDER, b"acme")])
    assert await held(beta) is None, "books share nothing"


def test_a_missing_client_library_is_one_line_that_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "fdb.cluster").write_text("test:id@127.0.0.1:1\n")
    environment = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    if "libfdb_c" in subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=False).stdout:
        pytest.skip("the client library is installed for the whole machine")
    code = (
        "from stores.shelf import open_shelf\n"
        "from actors.errors import StoreClientError\n"
        "try:\n"
        f"    open_shelf({{'store': 'fdb', 'cluster_file': {str(tmp_path / 'fdb.cluster')!r}, 'path': ['x']}})\n"
        "except StoreClientError as error:\n"
        "    print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    (line,) = ran.stdout.splitlines()
    assert "libfdb_c.so can't be loaded" in line
    minor = ".".join(distribution_version("foundationdb").split(".")[:2])
    assert f"install the package foundationdb-clients of version {minor}" in line


@needs_server
def test_a_file_that_is_none_is_told_before_anything_is_connected(tmp_path: Path) -> None:
    (tmp_path / "fdb.cluster").write_text("no cluster file\n")
    with pytest.raises(StoreClientError, match="is no FoundationDB cluster file"):
        Cluster(tmp_path / "fdb.cluster")
