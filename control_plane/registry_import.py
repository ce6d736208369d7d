"""Brings the registry of before, an SQL file of its own (`registry.sqlite`), into the book. Nothing else reads that.

The book is whole once the row of its origin is there, which is written last. Until then every start writes the same
rows again: partners and keys never went away, and changes have their old numbers. Then the file is renamed.

Its tables, in their only version (PRAGMA user_version):

    partners    id, name, status, mode, cell, rate_per_second, rate_burst, in_flight_max, api_version,
                profile_version, created_at
    api_keys    id, partner_id, hash, hint, created_at, expires_at, revoked_at
    directory   only_row, version
    changes     sequence, at, who, what, partner_id, detail (JSON)
"""

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import structlog

from control_plane import limits, registry_codec, registry_keys
from control_plane.data_folder import timestamp
from control_plane.errors import FolderError
from control_plane.registry_draft import rows_of_change
from control_plane.registry_records import IMPORTED, Change, Key, Origin, Partner
from stores import contract
from stores.contract import Put, Store

log = structlog.get_logger()

VERSION: Final = 1
# What was not known then has its default.
_PARTNER_COLUMNS: Final = tuple(
    name for name in Partner.__dataclass_fields__ if name not in {"isolation", "acquirers", "currencies"}
)
_PARTNERS: Final = f"SELECT {', '.join(_PARTNER_COLUMNS)} FROM partners ORDER BY id"  # noqa: S608 - our own names
_KEYS: Final = f"SELECT {', '.join(Key.__dataclass_fields__)} FROM api_keys ORDER BY partner_id, id"  # noqa: S608
_DIRECTORY: Final = "SELECT version FROM directory"
_CHANGES: Final = "SELECT sequence, at, who, what, partner_id, detail FROM changes ORDER BY sequence"
# What FoundationDB counts for a row beside its value, a little on the safe side.
_ROW_BYTES: Final = 1_000


async def run(store: Store, file: Path, renamed: Path) -> None:
    """Import the file, unless that is done, and rename it. The store must be nobody else's.

    Raises StoreError, FolderError where the file can't be read.
    """
    (value,) = (await store.read([registry_keys.ORIGIN])).values
    origin = registry_codec.decode_origin(value)
    if origin is not None and origin.how != IMPORTED:
        log.warning("registry_of_before_ignored", file=str(file))  # this book never came from it
        return
    if origin is None:
        await store.acquire(0)
        count = 0
        try:
            with closing(_open(file)) as connection:
                _require_version(connection, file)
                for rows in _batches(_rows(connection)):
                    await store.commit([], rows)
                    count += len(rows)
                (mode,) = connection.execute("PRAGMA journal_mode = DELETE").fetchone()  # its log goes into the file
                if mode != "delete":
                    raise sqlite3.OperationalError(f"its log can't be ended, its mode stays {mode}")
        except (sqlite3.Error, ValueError) as error:
            raise FolderError(
                f"the registry of before can't be imported: {error}",
                where=str(file),
                hint="does another process use it? Else restore it from a backup; then `bulkhead up` again",
            ) from error
        done = registry_codec.encode_origin(Origin(IMPORTED, timestamp()))
        await store.commit([contract.Check(registry_keys.ORIGIN, None)], [Put(registry_keys.ORIGIN, done)])
        log.info("registry_imported", file=str(file), rows=count)
    _rename(file, renamed)


def _open(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{file.absolute().as_uri()}?mode=rw",
        uri=True,
        isolation_level=None,
        timeout=limits.REGISTRY_BUSY_TIMEOUT_MS / 1000,
    )


def _require_version(connection: sqlite3.Connection, file: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != VERSION:
        raise FolderError(
            f"the registry of before has version {version}, this Bulkhead knows {VERSION}",
            where=str(file),
            hint="run the version of Bulkhead that wrote it, or a newer one",
        )


def _rows(connection: sqlite3.Connection) -> Iterator[Put]:
    for fields in _each(connection, _PARTNERS):
        partner = Partner(*fields)
        yield Put(registry_keys.partner(partner.id), registry_codec.encode_partner(partner))
    for fields in _each(connection, _KEYS):
        key = Key(*fields)
        yield Put(registry_keys.key(key.partner_id, key.id), registry_codec.encode_key(key))
        yield Put(registry_keys.key_hash(key.hash), registry_codec.encode_key_hash(key))
    for (version,) in _each(connection, _DIRECTORY):
        yield Put(registry_keys.DIRECTORY, registry_codec.encode_directory_version(version))
    for sequence, at, who, what, partner_id, text in _each(connection, _CHANGES):
        yield from _fitting(Change(sequence, at, who, what, partner_id, json.loads(text)))


def _each(connection: sqlite3.Connection, sql: str) -> Iterator[tuple[Any, ...]]:
    cursor = connection.execute(sql)
    while rows := cursor.fetchmany(limits.IMPORT_ROWS):
        yield from rows


def _fitting(change: Change) -> list[Put]:
    """Give a change's rows; a detail that is larger than a store takes is named, and stays in the renamed file."""
    rows = rows_of_change(change)
    if len(rows[0].value) <= contract.STORE_VALUE_BYTES_MAX:
        return rows
    left_out = {"left_out": f"{len(rows[0].value)} bytes: change {change.sequence} in registry.sqlite.imported"}
    return rows_of_change(Change(change.sequence, change.at, change.who, change.what, change.partner_id, left_out))


def _batches(rows: Iterator[Put]) -> Iterator[list[Put]]:
    batch: list[Put] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row.value) + _ROW_BYTES
        if len(batch) >= limits.IMPORT_ROWS or size >= limits.IMPORT_COMMIT_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _rename(file: Path, renamed: Path) -> None:
    try:
        file.replace(renamed)
        descriptor = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise FolderError(
            f"the registry of before is imported, but can't be renamed: {error}", where=str(file), hint="mend that"
        ) from error
