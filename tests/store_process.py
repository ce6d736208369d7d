"""A process that writes to a book, for tests that stop it, kill it or take its disk away.

python -m tests.store_process MODE BOOK: it writes a line per step, so that the test knows what was acknowledged.
"""

import asyncio
import json
import os
import resource
import signal
import sys
import threading
from pathlib import Path
from typing import NoReturn

import apsw

from actors.errors import CommitUnknownError, StoreError, StoreUnavailableError
from actors.store import Mutation, Put, Range
from stores import sqlite_file
from stores.sqlite_store import SqliteStore

VALUE_BYTES = 600
SIDE_ROWS = 7


def sequence_mutations(sequence: int) -> list[Mutation]:
    """Return what one commit writes: a row under its number, and as many rows elsewhere as a payment has."""
    side = [Put(("side", kind, (sequence * 7_919) % 10_007), os.urandom(VALUE_BYTES)) for kind in range(SIDE_ROWS)]
    return [Put(("sequence", sequence), b"%d" % sequence), *side]


async def read_sequences(store: SqliteStore) -> list[int]:
    """Return every number that was committed."""
    found: list[int] = []
    while True:
        begin = found[-1] + 1 if found else 0
        rows = (await store.read([], [Range(("sequence", begin), ("sequence", 2**40), 1_000)])).ranges[0]
        if not rows:
            return found
        for row in rows:
            number = row.key[1]
            assert isinstance(number, int)
            assert row.value == b"%d" % number
            found.append(number)


def integrity(path: Path) -> str:
    """Return what SQLite says about the whole book: "ok"."""
    connection, _ = sqlite_file.connect(path, writable=False)
    try:
        return str(connection.execute("PRAGMA integrity_check").get)
    finally:
        sqlite_file.disconnect(connection)


def _say(**fields: object) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


async def _open(path: Path) -> SqliteStore:
    store = await SqliteStore.open(path)
    await store.acquire(1)
    return store


async def commit_for_ever(path: Path) -> NoReturn:
    store = await _open(path)
    sequence = max(await read_sequences(store), default=-1)
    while True:
        sequence += 1
        await store.commit([], sequence_mutations(sequence))
        _say(committed=sequence)


async def _commit_and_say(store: SqliteStore) -> None:
    try:
        await store.commit([], [Put(("zombie",), b"was here")])
    except StoreError as error:
        _say(outcome=type(error).__name__)
    else:
        _say(outcome="committed")
    await store.close()


async def stop_before(path: Path) -> None:
    store = await _open(path)
    os.kill(os.getpid(), signal.SIGSTOP)
    await _commit_and_say(store)


async def stop_inside(path: Path) -> None:
    store = await _open(path)
    assert store._writer._opened is not None

    def stop() -> bool:
        # To this thread, which then goes no further; a signal to the process would stop it a moment later.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        return False

    store._writer._opened[0].set_commit_hook(stop)
    await _commit_and_say(store)


async def read_for_ever(path: Path) -> None:
    """Hold one read transaction open until the process is killed."""
    connection, _ = sqlite_file.connect(path, writable=False)
    connection.execute("BEGIN")
    rows = connection.execute("SELECT count(*) FROM entry").get
    _say(reading=rows)
    await asyncio.get_running_loop().create_future()


async def _fill(store: SqliteStore, refusals: int) -> tuple[list[int], set[int], list[str]]:
    """Commit until so many commits were refused. Return what was acknowledged, what is unknown, and the refusals."""
    acknowledged: list[int] = []
    unknown: set[int] = set()
    errors: list[str] = []
    sequence = max(await read_sequences(store), default=-1)
    while len(errors) < refusals:
        sequence += 1
        try:
            await store.commit([], sequence_mutations(sequence))
            acknowledged.append(sequence)
        except (StoreUnavailableError, CommitUnknownError) as error:
            errors.append(type(error).__name__)
            if isinstance(error, CommitUnknownError):
                unknown.add(sequence)
                try:
                    await store.acquire(1)
                except StoreError as again:
                    errors.append(type(again).__name__)
    return acknowledged, unknown, errors


async def _fill_then(store: SqliteStore, path: Path, *, more: bool) -> None:
    acknowledged, unknown, errors = await _fill(store, 4)
    found = set(await read_sequences(store))
    if more:
        await store.acquire(1)
        await store.commit([], [Put(("afterwards",), b"works")])
    await store.close()
    reopened = await SqliteStore.open(path)
    found_again = set(await read_sequences(reopened))
    await reopened.close()
    _say(
        acknowledged=len(acknowledged),
        lost=sorted(set(acknowledged) - found) + sorted(set(acknowledged) - found_again),
        invented=sorted(found_again - set(acknowledged) - unknown),
        errors=errors,
        integrity=integrity(path),
    )


async def fill_disk(path: Path) -> None:
    """Fill a small file system; say what is left of the book, once while it is full and once when there is room."""
    ballast = path.with_name("ballast")
    ballast.write_bytes(bytes(300_000))
    store = await _open(path)
    await _fill_then(store, path, more=False)
    ballast.unlink()
    store = await _open(path)
    await store.commit([], [Put(("afterwards",), b"works")])
    await store.close()
    _say(integrity=integrity(path))


async def limit_file_size(path: Path) -> None:
    """Let writes fail with EFBIG: not the disk is full, but an I/O error comes from the COMMIT itself."""
    store = await _open(path)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    acknowledged, unknown, errors = await _fill(store, 1)
    _say(acknowledged=len(acknowledged), unknown=len(unknown), errors=errors)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    await store.acquire(1)
    found = set(await read_sequences(store))
    await store.commit([], [Put(("afterwards",), b"works")])
    await store.close()
    _say(
        lost=sorted(set(acknowledged) - found),
        invented=sorted(found - set(acknowledged) - unknown),
        integrity=integrity(path),
    )


async def create_and_die(path: Path, step: str) -> None:
    """Make a book and die at a step of it."""

    def die(*_: object, **__: object) -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    if step == "half":
        apsw.connection_hooks.append(lambda connection: connection.set_commit_hook(die))
    elif step == "unnamed":
        os.link = die
    else:
        assert step == "two names"
        Path.unlink = die  # type: ignore[method-assign]
    await SqliteStore.create(path)


MODES = {
    "commit": commit_for_ever,
    "stop-before": stop_before,
    "stop-inside": stop_inside,
    "read": read_for_ever,
    "fill-disk": fill_disk,
    "limit-file-size": limit_file_size,
}

if __name__ == "__main__":
    mode, book = sys.argv[1], Path(sys.argv[2])
    if mode == "create":
        asyncio.run(create_and_die(book, sys.argv[3]))
    else:
        asyncio.run(MODES[mode](book))
