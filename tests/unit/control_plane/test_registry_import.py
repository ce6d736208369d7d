"""A registry of before, made with its own schema, on its way into the book; also where that is interrupted."""

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from control_plane import data_folder, limits, opening, registry_import
from control_plane.data_folder import DataFolder, Instance
from control_plane.errors import ControlPlaneError, FolderError
from control_plane.registry import Registry
from control_plane.registry_records import Key, Partner
from control_plane.settings import Settings
from stores.contract import CommitUnknownError, StoreUnavailableError
from stores.sqlite_store import SqliteStore

SCHEMA = """
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
    PRAGMA user_version = 1;
"""
AT = "2026-11-22T12:00:00.000Z"
PARTNERS = [
    Partner("acme", "Acmé", "active", "test", "cell-0", 50, 100, 256, "2026-11-22", 3, AT),
    Partner("beta", "Beta", "suspended", "live", "cell-1", 5, 10, 2, "2026-11-22", 9, AT),
    Partner("coming", "Coming", "onboarding", "test", "cell-0", 50, 100, 256, "2026-11-22", 1, AT),
]
KEYS = [
    Key("key_1", "acme", "a1" * 32, "aaaa", AT, "2026-11-23T12:00:00.000Z", None),
    Key("key_2", "acme", "a2" * 32, "bbbb", "2026-11-22T13:00:00.000Z", None, None),
    Key("key_3", "beta", "b1" * 32, "cccc", AT, None, "2026-11-22T14:00:00.000Z"),
]
CHANGES = 20


class Before:
    """A data folder as the version of before left it, killed: its registry's log is not in the file yet."""

    def __init__(self, root: Path) -> None:
        self.folder = DataFolder(root)
        self.settings = Settings(data_folder=root, cells=2)
        with data_folder.locked(self.folder):
            self.instance: Instance = data_folder.prepare(self.folder, self.settings)
            data_folder.finish_first_start(self.folder, self.instance)
        running = sqlite3.connect(root / "running.sqlite")
        running.execute("PRAGMA journal_mode = WAL")
        running.executescript(SCHEMA)
        for table, rows in (("partners", PARTNERS), ("api_keys", KEYS)):
            for row in rows:
                columns = [column[1] for column in running.execute(f"PRAGMA table_info({table})")]
                fields = [getattr(row, name) for name in list(row.__dataclass_fields__)[: len(columns)]]
                running.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(fields))})", fields)
        running.execute("UPDATE directory SET version = 41")
        for index in range(CHANGES):
            partner_id = (None, "acme", "beta")[index % 3]
            running.execute(
                "INSERT INTO changes (at, who, what, partner_id, detail) VALUES (?, 'ann', 'noted', ?, ?)",
                (AT, partner_id, json.dumps({"index": index})),
            )
        running.commit()
        for suffix in ("", "-wal"):
            (root / f"registry.sqlite{suffix}").write_bytes((root / f"running.sqlite{suffix}").read_bytes())
        running.close()
        (root / "running.sqlite").unlink()

    async def open(self) -> Registry:
        return await opening.open_registry(self.settings, self.folder, self.instance, first_start=False)


@pytest.fixture
def before(tmp_path: Path) -> Before:
    return Before(tmp_path / "data")


async def check_imported(before: Before) -> None:
    registry = await before.open()
    assert registry.partners() == PARTNERS
    assert registry.all_keys() == KEYS
    assert registry.directory_version() == 41
    assert [change.sequence for change in await registry.changes("acme")] == [20, 17, 14, 11, 8, 5, 2]
    assert (await registry.changes("beta"))[0].detail == {"index": 17}
    await registry.note("ann", "noted", "acme", {})
    assert (await registry.changes("acme"))[0].sequence == CHANGES + 2, "numbers go on where they were, after the seal"
    await registry.close()
    names = {path.name for path in before.folder.root.iterdir() if "sqlite" in path.name}
    assert names == {"control.sqlite", "registry.sqlite.imported"}


async def test_everything_is_imported_and_the_file_kept_under_another_name(before: Before) -> None:
    with pytest.raises(FolderError, match="still that of a version before") as raised:
        await opening.read_registered(before.settings, before.folder)
    assert "bulkhead up" in raised.value.hint
    await check_imported(before)
    with closing(sqlite3.connect(before.folder.registry_file_imported)) as kept:
        assert kept.execute("SELECT count(*) FROM changes").fetchone() == (CHANGES,), "its log is in the file"
    registry = await before.open()
    assert len(registry.partners()) == len(PARTNERS)
    await registry.close()


class Killed(BaseException):
    """The control plane dies here."""


@pytest.mark.parametrize("written", [True, False], ids=["written", "not written"])
@pytest.mark.parametrize("at", range(11))
async def test_an_import_that_was_killed_starts_over(
    before: Before, monkeypatch: pytest.MonkeyPatch, at: int, written: bool
) -> None:
    monkeypatch.setattr(limits, "IMPORT_ROWS", 5)
    commits = 0
    commit = SqliteStore.commit

    async def killing(store: SqliteStore, checks: Sequence[object], rows: Sequence[object]) -> None:
        nonlocal commits
        commits += 1
        if commits <= at or written:
            await commit(store, checks, rows)  # type: ignore[arg-type]
        if commits > at:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(SqliteStore, "commit", killing)
        with pytest.raises(Killed):
            await (await before.open()).close()
    imported = before.folder.registry_file_imported.exists()
    assert imported == (at >= 10), "9 commits of rows, the origin's, then the owner's"
    if not imported and not (at == 9 and written):
        with pytest.raises(FolderError, match="not whole"):
            await opening.read_registered(before.settings, before.folder)
    await check_imported(before)


async def test_one_that_was_killed_before_the_file_was_renamed_is_not_done_again(
    before: Before, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(registry_import, "_rename", kill)
        with pytest.raises(Killed):
            await before.open()
    assert before.folder.registry_file_of_before.exists()
    await check_imported(before)


@pytest.mark.parametrize("error", [StoreUnavailableError("full"), CommitUnknownError("lost")])
async def test_a_store_that_fails_meanwhile_is_said(
    before: Before, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(SqliteStore, "commit", fail)
        with pytest.raises(ControlPlaneError) as raised:
            await before.open()
    assert raised.value.hint
    assert raised.value.where.endswith("control.sqlite")
    await check_imported(before)


async def test_a_detail_that_is_too_large_is_left_out_and_named(before: Before) -> None:
    with closing(sqlite3.connect(before.folder.registry_file_of_before)) as connection, connection:
        connection.execute(
            "INSERT INTO changes (at, who, what, partner_id, detail) VALUES (?, 'ann', 'noted', 'acme', ?)",
            (AT, json.dumps({"text": "x" * 150_000})),
        )
    registry = await before.open()
    assert "change 21 in registry.sqlite.imported" in (await registry.changes("acme"))[0].detail["left_out"]
    await registry.close()


@pytest.mark.parametrize("damage", ["no database", "newer"])
async def test_a_file_that_can_not_be_read_is_said_and_stays(before: Before, damage: str) -> None:
    file = before.folder.registry_file_of_before
    if damage == "newer":
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("PRAGMA user_version = 99")
    else:
        file.with_name("registry.sqlite-wal").unlink()  # which would mend it
        file.write_bytes(b"no database at all, but long enough to be looked at" * 20)
    with pytest.raises(FolderError, match="registry of before") as raised:
        await before.open()
    assert raised.value.where == str(file)
    assert file.exists()
    with pytest.raises(FolderError):
        await before.open()


async def test_a_book_that_is_lost_after_an_import_is_not_imported_again(before: Before) -> None:
    await check_imported(before)
    before.folder.registry_file.unlink()
    with pytest.raises(FolderError, match="there is no book") as raised:
        await before.open()
    assert "backup" in raised.value.hint


async def test_a_file_that_appears_beside_a_book_of_its_own_is_left_alone(before: Before, tmp_path: Path) -> None:
    other = DataFolder(tmp_path / "other")
    settings = Settings(data_folder=other.root, cells=2)
    with data_folder.locked(other):
        instance = data_folder.prepare(other, settings)
        await (await opening.open_registry(settings, other, instance, first_start=True)).close()
        data_folder.finish_first_start(other, instance)
    other.registry_file_of_before.write_bytes(before.folder.registry_file_of_before.read_bytes())
    registry = await opening.open_registry(settings, other, instance, first_start=False)
    assert registry.partners() == []
    await registry.close()
    assert other.registry_file_of_before.exists()
