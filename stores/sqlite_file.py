"""One partner's book as a SQLite file: how it is made, opened and known again. What is read and written is not here.

Closing any file descriptor of a database drops the process's POSIX locks on it, so nothing but this library opens a
book, and never with a second copy of SQLite (Python's own `sqlite3`) in the same process.
https://sqlite.org/howtocorrupt.html

The library is apsw because it carries its own SQLite. Before 3.51.3 a checkpoint beside a writer could corrupt
the file (https://sqlite.org/wal.html#walresetbug), and that is how the stores work here.
"""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import apsw
import structlog

from actors.errors import StoreCorruptError, StoreExistsError, StoreMissingError, StoreUnavailableError
from stores import limits

log = structlog.get_logger()

APPLICATION_ID = 0x42554C4B  # "BULK"
SCHEMA_VERSION = 1
# Of a file that is about to be unlinked: above all epochs that were ever taken.
SEALED_EPOCH = (1 << 62) - 1
# Rows stand in the order of their writing and only the small index is in the order of the keys. A commit of eight rows
# of 600 bytes then writes 11 pages; without row ids it is 18, because large rows in the middle make pages split.
_SCHEMA = """
BEGIN;
CREATE TABLE entry (
    key BLOB PRIMARY KEY NOT NULL, value BLOB NOT NULL, checksum INTEGER NOT NULL
) STRICT;
CREATE TABLE ownership (
    id INTEGER PRIMARY KEY CHECK (id = 1), epoch INTEGER NOT NULL, door_epoch INTEGER NOT NULL
) STRICT;
INSERT INTO ownership VALUES (1, 0, 0);
COMMIT;
PRAGMA journal_mode = WAL;
"""
_CORRUPT = (apsw.CorruptError, apsw.NotADBError, apsw.SQLError, apsw.SchemaChangeError, apsw.FormatError)
_UNAVAILABLE = (
    apsw.BusyError,
    apsw.CantOpenError,
    apsw.FullError,
    apsw.InterruptError,
    apsw.IOError,
    apsw.LockedError,
    apsw.NoMemError,
    apsw.PermissionsError,
    apsw.ProtocolError,
    apsw.ReadOnlyError,
)

assert tuple(map(int, apsw.sqlite_lib_version().split("."))) >= (3, 51, 3), "this SQLite has the WAL-reset bug"


def raise_store_error(error: apsw.Error, path: Path) -> NoReturn:
    """Raise what an error of SQLite means where nothing was committed; what is a bug of ours is raised as it is."""
    if isinstance(error, _CORRUPT):
        raise StoreCorruptError(f"{path}: {error}") from error
    if isinstance(error, _UNAVAILABLE):
        raise StoreUnavailableError(f"{path}: {error}") from error
    raise error


def create(path: Path) -> None:
    """Make an empty book, durably. Half a book never bears the name: what a crash leaves is swept by the next try.

    Raises StoreExistsError, StoreUnavailableError, and StoreCorruptError where a log without its book lies there.
    """
    unfinished = path.with_name(f"{path.name}.creating-{secrets.token_hex(8)}")
    try:
        _sweep(path)
        if os.path.lexists(path):
            raise StoreExistsError(f"{path}: there is a book already")
        if os.path.lexists(_log_path(path)):
            raise StoreCorruptError(f"{path}: a log without its book; it may hold the last payments")
        connection = apsw.Connection(
            str(unfinished), apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_EXCLUSIVE
        )
        try:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute(_SCHEMA)
        finally:
            connection.close()
        _sync(unfinished)
        # Unlike a rename, a link never replaces what came there in the meantime.
        os.link(unfinished, path)
        _sync(path.parent)
        unfinished.unlink(missing_ok=True)
    except FileExistsError as error:
        raise StoreExistsError(f"{path}: there is a book already") from error
    except OSError as error:
        raise StoreUnavailableError(f"{path}: {error}") from error
    except apsw.Error as error:
        raise_store_error(error, path)


def erase(path: Path) -> None:
    """Remove a book for good. Who has it open can't write to it any more: the file that is unlinked is sealed before.

    The book itself goes last, so that a crash in between leaves what the next try finds. Raises StoreUnavailableError,
    StoreCorruptError.
    """
    try:
        connection, _ = connect(path, writable=True)
    except StoreMissingError:
        return
    try:
        connection.execute("UPDATE ownership SET epoch = ?", (SEALED_EPOCH,))
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    except apsw.Error as error:
        raise_store_error(error, path)
    finally:
        disconnect(connection)
    try:
        for file in (_log_path(path), path.with_name(path.name + "-shm"), path):
            file.unlink(missing_ok=True)
        _sync(path.parent)
    except OSError as error:
        raise StoreUnavailableError(f"{path}: {error}") from error


def _sweep(path: Path) -> None:
    """Remove what crashed tries left; one that still runs fails at its link and may be repeated."""
    for entry in list(os.scandir(path.parent)):
        if entry.name.startswith(f"{path.name}.creating-"):
            Path(entry.path).unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _log_path(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a book lies and which files were opened there: writing to one that was replaced would be lost."""

    path: Path
    log_path: str
    book: tuple[int, int]
    log: tuple[int, int]

    def verify(self) -> None:
        """Hold the files against those that were opened. Raises StoreMissingError, StoreCorruptError."""
        if _identity(self.path) != self.book:
            raise StoreMissingError(f"{self.path}: the book that was opened is no longer there")
        if _identity(self.log_path) != self.log:
            raise StoreCorruptError(f"{self.path}: the log of the open book was taken away")


def _identity(path: Path | str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - a stat opens nothing, and this one is asked at each commit
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreUnavailableError(f"{path}: {error}") from error
    return status.st_dev, status.st_ino


def disconnect(connection: apsw.Connection) -> None:
    """Close a connection; an open transaction is rolled back. The last one that closes also tries a checkpoint."""
    try:
        connection.close(True)
    except apsw.Error as error:
        # What was committed is in the log, and the next to open the book reads it there.
        log.warning("store_close_failed", error=str(error))


def connect(path: Path, *, writable: bool) -> tuple[apsw.Connection, Place]:
    """Open a book that exists. Raises StoreMissingError, StoreCorruptError, StoreUnavailableError."""
    book = _identity(path)
    if book is None:
        raise StoreMissingError(f"{path}: there is no book")
    connection: apsw.Connection | None = None
    try:
        connection = apsw.Connection(str(path), apsw.SQLITE_OPEN_READWRITE if writable else apsw.SQLITE_OPEN_READONLY)
        _verify(connection, path)
        _configure(connection, writable=writable)
        place = Place(path, str(_log_path(path)), book, _identity(_log_path(path)) or (0, 0))
        place.verify()
    except BaseException as error:
        if connection is not None:
            disconnect(connection)
        if isinstance(error, apsw.Error):
            if isinstance(error, apsw.CantOpenError) and _identity(path) is None:
                raise StoreMissingError(f"{path}: there is no book") from error
            raise_store_error(error, path)
        raise
    return connection, place


def _verify(connection: apsw.Connection, path: Path) -> None:
    """Make sure that it is a book of ours before anything is written to it."""
    connection.set_busy_timeout(limits.STORE_LOCK_WAIT_MS)
    application_id = connection.execute("PRAGMA application_id").get
    version = connection.execute("PRAGMA user_version").get
    if application_id != APPLICATION_ID:
        raise StoreCorruptError(f"{path}: this is no book of ours (application id {application_id})")
    if version != SCHEMA_VERSION:
        raise StoreCorruptError(f"{path}: a book of version {version}; this program knows {SCHEMA_VERSION}")
    if connection.execute("SELECT count(*) FROM ownership").get != 1:
        raise StoreCorruptError(f"{path}: the book has no owner's row")


def _configure(connection: apsw.Connection, *, writable: bool) -> None:
    if writable and connection.execute("PRAGMA journal_mode = WAL").get != "wal":
        raise StoreUnavailableError("the file system does not allow a write-ahead log")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")  # checkpoints have a thread of their own
    connection.execute(f"PRAGMA journal_size_limit = {limits.CHECKPOINT_LOG_BYTES_KEPT}")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute(f"PRAGMA cache_size = -{limits.SQLITE_CACHE_KIB}")
    # The first read opens the log.
    connection.execute("SELECT epoch FROM ownership").fetchall()
