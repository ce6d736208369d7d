"""Keys that were not good, left for the audit log: each is counted, and no flood of them fills memory or disk."""

from pathlib import Path

import orjson
import pytest

from router import limits
from router.failed_keys import FailedKeys


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json"))


def kept(folder: Path) -> list[list[object]]:
    return [row for file in files_in(folder) for row in orjson.loads(file.read_bytes())["rows"]]


async def test_what_is_alike_is_a_line_of_a_file(tmp_path: Path) -> None:
    folder, failed = tmp_path / "failed_keys", FailedKeys()
    await failed.keep(folder)
    assert not folder.exists(), "nothing is written where nothing came"
    for _ in range(3):
        failed.note("192.0.2.1", "acme", "unknown_key")
    failed.note("192.0.2.1", None, "no_key")
    await failed.keep(folder)
    assert kept(folder) == [["192.0.2.1", "acme", "unknown_key", 3], ["192.0.2.1", None, "no_key", 1]]
    assert folder.stat().st_mode & 0o777 == 0o700
    await failed.keep(folder)
    assert len(list(folder.iterdir())) == 1


async def test_a_flood_that_nobody_takes_is_counted_within_bounds(tmp_path: Path) -> None:
    failed, sent = FailedKeys(), 0
    for _ in range(limits.FAILED_KEYS_FILES_MAX + 3):
        for _ in range(limits.FAILED_KEYS_ROWS_MAX + 50):
            failed.note(f"2001:db8::{sent:x}", "acme", "unknown_key")
            sent += 1
        await failed.keep(tmp_path)
        assert len(failed._counts) <= limits.FAILED_KEYS_ROWS_MAX + 1
    files = files_in(tmp_path)
    assert len(files) == limits.FAILED_KEYS_FILES_MAX
    assert max(file.stat().st_size for file in files) <= 200 * (limits.FAILED_KEYS_ROWS_MAX + 1)
    for file in files[3:]:
        file.unlink()
    assert sum(failed._counts.values()) == 3 * (limits.FAILED_KEYS_ROWS_MAX + 50), "what found no room is counted on"
    await failed.keep(tmp_path)
    assert failed._counts == {}


async def test_a_disk_that_is_full_loses_no_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = FailedKeys()
    failed.note("192.0.2.1", None, "no_key")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("router.failed_keys.write_atomically", full)
        await failed.keep(tmp_path)
    failed.note("192.0.2.1", None, "no_key")
    await failed.keep(tmp_path)
    assert kept(tmp_path) == [["192.0.2.1", None, "no_key", 2]]
