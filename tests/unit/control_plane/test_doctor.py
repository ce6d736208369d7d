import asyncio
import json
import os
from pathlib import Path

import pytest

from control_plane import data_folder, doctor, listening
from control_plane.data_folder import DataFolder
from control_plane.doctor import Finding
from control_plane.errors import FolderError
from control_plane.listening import Listener, Seen
from control_plane.process_table import boot_id, read_start_ticks
from control_plane.settings import Settings
from control_plane.users import Users


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    made = DataFolder(tmp_path / "data")
    settings = Settings(data_folder=made.root, cells=1)
    with data_folder.locked(made):
        data_folder.finish_first_start(made, data_folder.prepare(made, settings))
    return made


def examined(folder: DataFolder) -> list[Finding]:
    return asyncio.run(doctor.examine(Settings(data_folder=folder.root, cells=1), folder))


def test_an_installation_that_is_as_it_should_be(folder: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.opening, "read_registered_cells", no_cells)
    findings = examined(folder)
    assert [(finding.check, finding.ok) for finding in findings] == [("listening", True), ("permissions", True)]


async def no_cells(_settings: Settings, _folder: DataFolder) -> list[object]:
    return []


def test_what_listens_beyond_the_settings_and_what_can_t_be_seen_is_told(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen((Listener("cell-0.ray", 12, "0.0.0.0", 8301),), 2, ("router-0 (pid 13)",))
    monkeypatch.setattr(listening, "read_listeners", lambda *_: seen)
    told = [finding for finding in examined(folder) if not finding.ok and "can't be read" not in finding.what]
    assert [finding.what for finding in told] == [
        "cell-0.ray (pid 12) listens on 0.0.0.0:8301: the settings say nothing of that",
        "router-0 (pid 13) can't be looked at",
    ]
    assert all(finding.hint for finding in told)


@pytest.mark.parametrize("name", [".", "secrets", "secrets/api_key_pepper"])
def test_what_is_open_to_others_is_told(folder: DataFolder, name: str) -> None:
    path = folder.root / name
    path.chmod(path.stat().st_mode | 0o044)
    (told,) = doctor.check_permissions(folder, Users(None))
    assert not told.ok
    assert Path(told.where) == path


@pytest.mark.parametrize(
    ("first_uid", "name", "mode", "is_ok"),
    [
        (os.getgid(), "", 0o711, True),
        (os.getgid(), "", 0o755, False),
        (os.getgid(), "secrets/api_key_pepper", 0o640, True),
        (os.getgid(), "secrets/api_key_pepper", 0o660, False),
        (os.getgid(), "secrets/api_key_pepper", 0o644, False),
        (os.getgid() + 1, "secrets/api_key_pepper", 0o640, False),
    ],
)
def test_a_group_of_the_installation_may_read_what_is_its_own(
    folder: DataFolder, first_uid: int, name: str, mode: int, *, is_ok: bool
) -> None:
    (folder.root / name).chmod(mode)
    assert [one.ok for one in doctor.check_permissions(folder, Users(first_uid))] == [is_ok]


def test_a_folder_without_an_installation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FolderError):
        examined(DataFolder(tmp_path))


@pytest.mark.parametrize(("changed", "found"), [({}, True), ({"start_time": 1}, False), ({"boot_id": "other"}, False)])
def test_the_control_plane_is_known_by_more_than_its_pid(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch, changed: dict[str, object], *, found: bool
) -> None:
    record = {"pid": os.getpid(), "start_time": read_start_ticks(os.getpid()), "boot_id": boot_id()} | changed
    folder.control_record_file.write_text(json.dumps(record))
    asked: list[int | None] = []

    def read(_instance: str, pid: int | None) -> Seen:
        asked.append(pid)
        return Seen((), 0, ())

    monkeypatch.setattr(listening, "read_listeners", read)
    examined(folder)
    assert asked == [os.getpid() if found else None]
