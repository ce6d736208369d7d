import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from control_plane import api_keys, limits
from control_plane.errors import FolderError, NotFoundError, RefusedError
from control_plane.registry import Partner, Registry, read_partners

PEPPER = b"p" * 32


def partner(partner_id: str = "acme", **fields: object) -> Partner:
    known: dict[str, object] = {
        "id": partner_id,
        "name": "Acme",
        "status": "onboarding",
        "mode": "test",
        "cell": "cell-0",
        "rate_per_second": 50,
        "rate_burst": 100,
        "in_flight_max": 256,
        "api_version": "2026-11-22",
        "profile_version": 1,
        "created_at": "2026-11-22T12:00:00.000Z",
    }
    return Partner(**{**known, **fields})  # type: ignore[arg-type]


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    made = Registry(tmp_path / "registry.sqlite", create=True)
    yield made
    made.close()


def onboarded(registry: Registry, partner_id: str = "acme") -> Partner:
    registry.begin_onboarding(partner(partner_id), "ann")
    return registry.activate(partner_id, "ann")


def test_a_missing_file_never_becomes_an_empty_registry(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="can't be opened") as raised:
        Registry(tmp_path / "registry.sqlite", create=False)
    assert "backup" in raised.value.hint
    assert not (tmp_path / "registry.sqlite").exists()


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "registry.sqlite").write_bytes(b"no database at all, but long enough to be looked at" * 20)
    with pytest.raises(FolderError):
        Registry(tmp_path / "registry.sqlite", create=False)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "registry.sqlite"
    Registry(path, create=True).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(FolderError, match="version 99"):
        Registry(path, create=False)


def test_it_is_durable_and_for_this_user_only(tmp_path: Path) -> None:
    path = tmp_path / "registry.sqlite"
    registry = Registry(path, create=True)
    onboarded(registry)
    registry.close()
    again = Registry(path, create=False)
    assert again.partner("acme").status == "active"
    again.close()
    assert path.stat().st_mode & 0o777 == 0o600
    assert [found.id for found in read_partners(path)] == ["acme"]


def test_onboarding_gives_what_is_there_already(registry: Registry) -> None:
    registry.begin_onboarding(partner(name="first"), "ann")
    assert registry.begin_onboarding(partner(name="second"), "ann").name == "first"
    assert registry.activate("acme", "ann").status == "active"
    with pytest.raises(AssertionError):
        registry.activate("acme", "ann")


def test_a_change_of_the_profile_raises_its_version_and_no_change_does_not(registry: Registry) -> None:
    onboarded(registry)
    assert registry.set_limits("acme", {"rate_per_second": 5}, "ann").profile_version == 2
    assert registry.set_limits("acme", {"rate_per_second": 5}, "ann").profile_version == 2
    assert registry.set_status("acme", "suspended", "ann").profile_version == 3
    assert registry.set_status("acme", "suspended", "ann").profile_version == 3
    assert registry.set_status("acme", "active", "ann").status == "active"
    assert registry.raise_profile_version("acme", 40).profile_version == 41


def test_an_onboarding_partner_is_not_activated_by_resuming_it(registry: Registry) -> None:
    registry.begin_onboarding(partner(), "ann")
    assert registry.set_status("acme", "active", "ann").status == "onboarding"


def test_rotation_ends_the_older_keys_but_never_prolongs_one(registry: Registry) -> None:
    onboarded(registry)
    first, second, third = (api_keys.make(PEPPER, "test", "acme") for _ in range(3))
    now = datetime.now(UTC)
    registry.add_key("acme", first, "ann")
    registry.add_key("acme", second, "ann", others_end_at=now + timedelta(hours=1))
    registry.add_key("acme", third, "ann", others_end_at=now + timedelta(hours=24))
    ends = {key.id: key.expires_at for key in registry.keys("acme")}
    assert ends[third.id] is None
    assert ends[first.id] is not None
    assert datetime.fromisoformat(ends[first.id] or "") < now + timedelta(hours=2)
    assert datetime.fromisoformat(ends[second.id] or "") > now + timedelta(hours=23)


def test_keys_are_kept_as_hashes_only(tmp_path: Path) -> None:
    path = tmp_path / "registry.sqlite"
    registry = Registry(path, create=True)
    onboarded(registry)
    key = api_keys.make(PEPPER, "test", "acme")
    registry.add_key("acme", key, "ann")
    registry.close()
    stored = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert key.hash.encode() in stored
    assert key.text.encode() not in stored
    assert key.text[-43:].encode() not in stored


def test_a_partner_has_a_bounded_number_of_keys(registry: Registry) -> None:
    onboarded(registry)
    for _ in range(limits.KEYS_PER_PARTNER_MAX):
        registry.add_key("acme", api_keys.make(PEPPER, "test", "acme"), "ann")
    with pytest.raises(RefusedError, match="the most that a partner may have") as raised:
        registry.add_key("acme", api_keys.make(PEPPER, "test", "acme"), "ann")
    oldest = registry.keys("acme")[0]
    assert oldest.id in raised.value.hint
    assert not registry.revoke_key("acme", oldest.id, "ann").is_good(datetime.now(UTC))
    registry.add_key("acme", api_keys.make(PEPPER, "test", "acme"), "ann")


def test_only_its_own_keys_can_be_revoked(registry: Registry) -> None:
    onboarded(registry)
    onboarded(registry, "other")
    key = api_keys.make(PEPPER, "test", "other")
    registry.add_key("other", key, "ann")
    with pytest.raises(NotFoundError):
        registry.revoke_key("acme", key.id, "ann")
    assert registry.keys("other")[0].revoked_at is None


def test_every_change_is_written_down_with_who_and_never_rewritten(registry: Registry, tmp_path: Path) -> None:
    onboarded(registry)
    registry.set_limits("acme", {"rate_burst": 7}, "ben")
    registry.set_status("acme", "suspended", "cleo")
    registry.note("dan", "operation_resolved", "acme", {"operation": "op_1"})
    assert [(change.who, change.what) for change in registry.changes("acme")] == [
        ("dan", "operation_resolved"),
        ("cleo", "partner_suspended"),
        ("ben", "partner_limits"),
        ("ann", "partner_active"),
        ("ann", "partner_onboarding"),
    ]
    assert registry.changes("acme")[2].detail == {"rate_burst": [100, 7]}
    other = sqlite3.connect(tmp_path / "registry.sqlite")
    for sql in ("UPDATE changes SET who = 'nobody'", "DELETE FROM changes"):
        with pytest.raises(sqlite3.IntegrityError, match="only appended"):
            other.execute(sql)
    other.close()


def test_a_failed_transaction_leaves_nothing(registry: Registry) -> None:
    onboarded(registry)
    key = api_keys.make(PEPPER, "test", "acme")
    registry.add_key("acme", key, "ann")
    before = registry.changes("acme")
    with pytest.raises(sqlite3.IntegrityError):
        registry.add_key("acme", key, "ann", others_end_at=datetime.now(UTC))
    assert registry.changes("acme") == before
    assert registry.keys("acme")[0].expires_at is None
    registry.set_limits("acme", {"rate_burst": 8}, "ann")  # and it goes on


def test_directory_versions_only_rise(registry: Registry) -> None:
    assert [registry.take_directory_version(0) for _ in range(3)] == [1, 2, 3]
    assert registry.take_directory_version(above=10) == 11
    assert registry.take_directory_version(above=5) == 12


def test_a_partner_that_is_not_there_is_named(registry: Registry) -> None:
    with pytest.raises(NotFoundError, match="there is no partner 'acme'"):
        registry.partner("acme")
