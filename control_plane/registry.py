"""The control plane's own store: partners, hashes of their keys, the directory's version, who changed what and when.

One SQLite file, written by the one process that holds the data folder's lock. No key, only its hash, is ever in it.
"""

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from control_plane import limits
from control_plane.api_keys import ApiKey
from control_plane.data_folder import timestamp
from control_plane.errors import FolderError, NotFoundError, RefusedError

# Each entry brings the file from the version before it (its index) to the next, in one transaction.
_MIGRATIONS: Final = (
    """
    CREATE TABLE partners (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('onboarding', 'active', 'suspended')),
        mode TEXT NOT NULL CHECK (mode IN ('test', 'live')),
        cell TEXT NOT NULL,
        rate_per_second INTEGER NOT NULL,
        rate_burst INTEGER NOT NULL,
        in_flight_max INTEGER NOT NULL,
        api_version TEXT NOT NULL,
        profile_version INTEGER NOT NULL,
        created_at TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE api_keys (
        id TEXT PRIMARY KEY,
        partner_id TEXT NOT NULL REFERENCES partners (id),
        hash TEXT NOT NULL UNIQUE,
        hint TEXT NOT NULL,
        created_at TEXT NOT NULL,
        expires_at TEXT,
        revoked_at TEXT
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX api_keys_of_partner ON api_keys (partner_id, created_at);
    CREATE TABLE directory (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), version INTEGER NOT NULL) STRICT;
    INSERT INTO directory VALUES (1, 0);
    CREATE TABLE changes (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        at TEXT NOT NULL,
        who TEXT NOT NULL,
        what TEXT NOT NULL,
        partner_id TEXT,
        detail TEXT NOT NULL
    ) STRICT;
    CREATE INDEX changes_of_partner ON changes (partner_id, sequence);
    CREATE TRIGGER changes_are_never_rewritten BEFORE UPDATE ON changes
        BEGIN SELECT RAISE(ABORT, 'changes are only appended'); END;
    CREATE TRIGGER changes_are_never_removed BEFORE DELETE ON changes
        BEGIN SELECT RAISE(ABORT, 'changes are only appended'); END;
    """,
)


@dataclass(frozen=True, slots=True)
class Partner:
    """One partner as the operators know it. Status: onboarding, active, suspended."""

    id: str
    name: str
    status: str
    mode: str
    cell: str  # where its book was made
    rate_per_second: int
    rate_burst: int
    in_flight_max: int
    api_version: str  # a date, pinned at onboarding
    profile_version: int
    created_at: str


@dataclass(frozen=True, slots=True)
class Key:
    """What is kept of an API key. Times are RFC 3339."""

    id: str
    partner_id: str
    hash: str
    hint: str
    created_at: str
    expires_at: str | None
    revoked_at: str | None

    def is_good(self, now: datetime) -> bool:
        """Whether it still opens the door."""
        return self.revoked_at is None and (self.expires_at is None or datetime.fromisoformat(self.expires_at) > now)


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the operators' log."""

    sequence: int
    at: str
    who: str
    what: str
    partner_id: str | None
    detail: dict[str, Any]


class Registry:
    """Safe for several threads; each method is one transaction, on disk before it returns."""

    def __init__(self, path: Path, *, create: bool) -> None:
        """Open the file; a missing one is made only where `create`, for it must never become an empty one."""
        self._path = path
        self._lock = threading.Lock()
        try:
            self._connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
                timeout=limits.REGISTRY_BUSY_TIMEOUT_MS / 1000,
            )
            self._connection.row_factory = sqlite3.Row
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                self._connection.execute(f"PRAGMA {pragma}")
            path.chmod(0o600)
            self._migrate()
        except sqlite3.Error as error:
            raise FolderError(
                f"the registry of partners can't be opened: {error}",
                where=str(path),
                hint="restore it from a backup; it is never made anew, for routers would then turn all partners away",
            ) from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    # Reading.

    def partners(self) -> list[Partner]:
        """Give all partners by id."""
        return [_to_partner(row) for row in self._read("SELECT * FROM partners ORDER BY id")]

    def partner(self, partner_id: str) -> Partner:
        """Give one partner. Raises NotFoundError."""
        rows = self._read("SELECT * FROM partners WHERE id = ?", partner_id)
        if not rows:
            raise NotFoundError(
                f"there is no partner {partner_id!r}",
                where=str(self._path),
                hint="see them all: bulkhead partner list",
            )
        return _to_partner(rows[0])

    def keys(self, partner_id: str) -> list[Key]:
        """Give a partner's keys, oldest first, the revoked and expired ones too."""
        sql = "SELECT * FROM api_keys WHERE partner_id = ? ORDER BY created_at, id"
        return [_to_key(row) for row in self._read(sql, partner_id)]

    def all_keys(self) -> list[Key]:
        """Give all partners' keys, oldest first, the revoked and expired ones too."""
        return [_to_key(row) for row in self._read("SELECT * FROM api_keys ORDER BY partner_id, created_at, id")]

    def changes(self, partner_id: str) -> list[Change]:
        """Give the newest changes to a partner, newest first."""
        sql = "SELECT * FROM changes WHERE partner_id = ? ORDER BY sequence DESC LIMIT ?"
        return [
            Change(row["sequence"], row["at"], row["who"], row["what"], row["partner_id"], json.loads(row["detail"]))
            for row in self._read(sql, partner_id, limits.HISTORY_ROWS_SHOWN_MAX)
        ]

    def directory_version(self) -> int:
        """Give the newest version that was taken for a directory."""
        return int(self._read("SELECT version FROM directory")[0][0])

    # Writing.

    def begin_onboarding(self, partner: Partner, who: str) -> Partner:
        """Write down a partner to be onboarded; give what is there already under its id, if anything is."""
        assert partner.status == "onboarding"
        with self._transaction() as connection:
            row = connection.execute("SELECT * FROM partners WHERE id = ?", (partner.id,)).fetchone()
            if row is not None:
                return _to_partner(row)
            (count,) = connection.execute("SELECT count(*) FROM partners").fetchone()
            if count >= limits.PARTNERS_MAX:
                raise RefusedError(f"there are {count} partners already, the most that one installation takes")
            connection.execute(
                "INSERT INTO partners VALUES (:id, :name, :status, :mode, :cell, :rate_per_second, :rate_burst,"
                " :in_flight_max, :api_version, :profile_version, :created_at)",
                {name: getattr(partner, name) for name in Partner.__dataclass_fields__},
            )
            detail = {"cell": partner.cell, "mode": partner.mode, "name": partner.name}
            _note(connection, who, "partner_onboarding", partner.id, detail)
            return partner

    def activate(self, partner_id: str, who: str) -> Partner:
        """Write down that the partner's book is made: from now on it is never onboarded again."""
        with self._transaction() as connection:
            changed = connection.execute(
                "UPDATE partners SET status = 'active' WHERE id = ? AND status = 'onboarding'", (partner_id,)
            ).rowcount
            assert changed == 1, f"{partner_id} was not being onboarded"
            _note(connection, who, "partner_active", partner_id, {})
        return self.partner(partner_id)

    def set_status(self, partner_id: str, status: str, who: str) -> Partner:
        """Suspend or resume a partner; nothing changes where it is so already."""
        assert status in {"active", "suspended"}
        with self._transaction() as connection:
            changed = connection.execute(
                "UPDATE partners SET status = ?, profile_version = profile_version + 1"
                " WHERE id = ? AND status NOT IN (?, 'onboarding')",
                (status, partner_id, status),
            ).rowcount
            if changed:
                _note(connection, who, f"partner_{status}", partner_id, {})
        return self.partner(partner_id)

    def set_limits(self, partner_id: str, changed: dict[str, int], who: str) -> Partner:
        """Set some of rate_per_second, rate_burst and in_flight_max."""
        assert changed.keys() <= {"rate_per_second", "rate_burst", "in_flight_max"}
        before = self.partner(partner_id)
        detail = {name: [getattr(before, name), value] for name, value in changed.items()}
        detail = {name: pair for name, pair in detail.items() if pair[0] != pair[1]}
        if detail:
            assignments = ", ".join(f"{name} = :{name}" for name in detail)
            with self._transaction() as connection:
                connection.execute(
                    # The names were checked above.
                    f"UPDATE partners SET {assignments}, profile_version = profile_version + 1 WHERE id = :id",  # noqa: S608
                    {**changed, "id": partner_id},
                )
                _note(connection, who, "partner_limits", partner_id, detail)
        return self.partner(partner_id)

    def raise_profile_version(self, partner_id: str, above: int) -> Partner:
        """Make the partner's profile newer than one that its door has seen already."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE partners SET profile_version = max(profile_version, ?) + 1 WHERE id = ?", (above, partner_id)
            )
        return self.partner(partner_id)

    def add_key(self, partner_id: str, key: ApiKey, who: str, *, others_end_at: datetime | None = None) -> None:
        """Keep a new key's hash; the partner's other good keys end at `others_end_at`, if that is sooner."""
        now = datetime.now(UTC)
        with self._transaction() as connection:
            rows = connection.execute("SELECT * FROM api_keys WHERE partner_id = ?", (partner_id,)).fetchall()
            good = [kept for kept in map(_to_key, rows) if kept.is_good(now)]
            if len(good) >= limits.KEYS_PER_PARTNER_MAX:
                raise RefusedError(
                    f"{partner_id} has {len(good)} keys that are still good, the most that a partner may have",
                    hint=f"revoke one: bulkhead partner revoke-key {partner_id} {good[0].id}",
                )
            if others_end_at is not None:
                for old in good:
                    if old.expires_at is None or datetime.fromisoformat(old.expires_at) > others_end_at:
                        connection.execute(
                            "UPDATE api_keys SET expires_at = ? WHERE id = ?", (timestamp(others_end_at), old.id)
                        )
            connection.execute(
                "INSERT INTO api_keys VALUES (?, ?, ?, ?, ?, NULL, NULL)",
                (key.id, partner_id, key.hash, key.hint, timestamp(now)),
            )
            detail = {"key": key.id, "hint": key.hint}
            if others_end_at is not None:
                detail["others_end_at"] = timestamp(others_end_at)
            _note(connection, who, "key_added", partner_id, detail)

    def revoke_key(self, partner_id: str, key_id: str, who: str) -> Key:
        """End a key now; revoking it again changes nothing. Raises NotFoundError."""
        with self._transaction() as connection:
            changed = connection.execute(
                "UPDATE api_keys SET revoked_at = ? WHERE id = ? AND partner_id = ? AND revoked_at IS NULL",
                (timestamp(), key_id, partner_id),
            ).rowcount
            if changed:
                _note(connection, who, "key_revoked", partner_id, {"key": key_id})
        for key in self.keys(partner_id):
            if key.id == key_id:
                return key
        raise NotFoundError(
            f"{partner_id} has no key {key_id!r}", hint=f"see its keys: bulkhead partner show {partner_id}"
        )

    def note(self, who: str, what: str, partner_id: str | None, detail: dict[str, Any]) -> None:
        """Write down something that was done elsewhere, such as in a partner's book."""
        with self._transaction() as connection:
            _note(connection, who, what, partner_id, detail)

    def take_directory_version(self, above: int) -> int:
        """Take the next version for a directory, larger than `above` and than any taken before."""
        with self._transaction() as connection:
            connection.execute("UPDATE directory SET version = max(version, ?) + 1", (above,))
            (version,) = connection.execute("SELECT version FROM directory").fetchone()
            return int(version)

    # Inside.

    def _migrate(self) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > len(_MIGRATIONS):
            raise FolderError(
                f"the registry has version {version}, this Bulkhead knows {len(_MIGRATIONS)}",
                where=str(self._path),
                hint="run the version of Bulkhead that wrote it, or a newer one",
            )
        for index in range(version, len(_MIGRATIONS)):
            script = f"BEGIN IMMEDIATE; {_MIGRATIONS[index]}; PRAGMA user_version = {index + 1}; COMMIT;"
            self._connection.executescript(script)

    def _read(self, sql: str, *parameters: str | int) -> list[sqlite3.Row]:
        with self._lock:
            return self._connection.execute(sql, parameters).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


def read_partners(path: Path) -> list[Partner]:
    """Read the partners while another process may hold the registry. Raises FolderError."""
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=limits.REGISTRY_BUSY_TIMEOUT_MS / 1000
        )
        connection.row_factory = sqlite3.Row
        try:
            return [_to_partner(row) for row in connection.execute("SELECT * FROM partners ORDER BY id")]
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise FolderError(
            f"the registry of partners can't be read: {error}",
            where=str(path),
            hint="is this the data folder of a Bulkhead that has been started once?",
        ) from error


def _note(connection: sqlite3.Connection, who: str, what: str, partner_id: str | None, detail: dict[str, Any]) -> None:
    connection.execute(
        "INSERT INTO changes (at, who, what, partner_id, detail) VALUES (?, ?, ?, ?, ?)",
        (timestamp(), who, what, partner_id, json.dumps(detail)),
    )


def end_of_grace(grace_s: int) -> datetime:
    """Give when an old key ends that is replaced now."""
    return datetime.now(UTC) + timedelta(seconds=grace_s)


def _to_partner(row: sqlite3.Row) -> Partner:
    return Partner(**{name: row[name] for name in Partner.__dataclass_fields__})


def _to_key(row: sqlite3.Row) -> Key:
    return Key(**{name: row[name] for name in Key.__dataclass_fields__})
