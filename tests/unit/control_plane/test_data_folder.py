import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from cells.api.frames import role_key
from control_plane import data_folder
from control_plane.data_folder import DataFolder, Instance
from control_plane.errors import FolderError
from control_plane.settings import Settings


def first_start(root: Path, cells: int = 2) -> Instance:
    folder = DataFolder(root)
    with data_folder.locked(folder):
        instance = data_folder.prepare(folder, Settings(data_folder=root, cells=cells))
        for cell in range(cells):
            data_folder.prepare_cell(folder, f"cell-{cell}", may_make=not folder.instance_file.exists())
        data_folder.finish_first_start(folder, instance)
    return instance


def test_secrets_are_made_once_for_this_user_only(tmp_path: Path) -> None:
    root = tmp_path / "data"
    first_start(root)
    files = [path for path in (root / "secrets").rglob("*") if path.is_file()]
    secrets = {path.name: path.read_bytes() for path in files}
    assert set(secrets) == {
        "api_key_pepper",
        "acquirer.notifications.key",
        "redis.key",
        "directory.key",
        "directory.pub",
        *(f"cell-{index}.{kind}" for index in (0, 1) for kind in ("secret", "router.key", "ray_token")),
    }
    assert len(secrets["api_key_pepper"]) == len(secrets["cell-0.secret"]) == 32
    assert secrets["cell-0.secret"] != secrets["cell-1.secret"]
    assert secrets["cell-0.router.key"] == role_key(secrets["cell-0.secret"], "router")
    assert len(bytes.fromhex(secrets["cell-0.ray_token"].decode())) == 32
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert stat.S_IMODE((root / "secrets").stat().st_mode) == 0o700
    # In a folder that nobody else can pass, the group's right is nobody's.
    assert {stat.S_IMODE(path.stat().st_mode) for path in files if path.parent == root / "secrets"} == {0o600}
    first_start(root)
    assert secrets == {path.name: path.read_bytes() for path in files}


def test_a_folder_of_before_there_were_signed_directories_gets_a_pair_and_its_public_half_is_made_again(
    tmp_path: Path,
) -> None:
    root = tmp_path / "data"
    folder = DataFolder(root)
    first_start(root)
    folder.directory_key_file.unlink()
    with pytest.raises(FolderError, match=r"directory\.key is missing"):
        first_start(root)
    folder.directory_public_key_file.unlink()  # as in a folder of before
    first_start(root)
    private, public = folder.directory_key_file.read_bytes(), folder.directory_public_key_file.read_bytes()
    assert data_folder.read_directory_key(folder).public_key().public_bytes_raw() == public != private
    folder.directory_public_key_file.write_bytes(b"?")
    first_start(root)
    assert (folder.directory_key_file.read_bytes(), folder.directory_public_key_file.read_bytes()) == (private, public)


@pytest.mark.parametrize("name", ["acquirer.notifications.key", "redis.key"])
def test_a_folder_of_before_there_was_its_like_gets_a_key(tmp_path: Path, name: str) -> None:
    root = tmp_path / "data"
    file = DataFolder(root).secrets / name
    first_start(root)
    before = file.read_bytes()
    file.unlink()
    first_start(root)
    assert len(file.read_bytes()) == 32
    assert file.read_bytes() != before
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_another_number_of_cells_on_old_data_is_refused(tmp_path: Path) -> None:
    first_start(tmp_path / "data", cells=2)
    with pytest.raises(FolderError, match=r"made with 2 cells, the settings say 3.*come and go by command"):
        first_start(tmp_path / "data", cells=3)


@pytest.mark.parametrize("name", ["api_key_pepper", "cell-1.secret", "cell-0.ray_token"])
def test_a_lost_secret_is_never_made_anew(tmp_path: Path, name: str) -> None:
    root = tmp_path / "data"
    first_start(root)
    (root / "secrets" / name).unlink()
    with pytest.raises(FolderError, match="is missing") as raised:
        first_start(root)
    assert "backup" in raised.value.hint
    assert not (root / "secrets" / name).exists()


@pytest.mark.parametrize("name", ["api_key_pepper", "directory.key", "cell-1.secret", "cell-0.ray_token"])
@pytest.mark.parametrize("damage", [b"", b"half", b"\xff" * 64, b"x" * 65])
def test_a_damaged_secret_is_never_used(tmp_path: Path, name: str, damage: bytes) -> None:
    root = tmp_path / "data"
    first_start(root)
    (root / "secrets" / name).write_bytes(damage)
    with pytest.raises(FolderError, match="is damaged") as raised:
        first_start(root)
    assert raised.value.where == str(root / "secrets" / name)
    assert (root / "secrets" / name).read_bytes() == damage


@pytest.mark.parametrize(
    "damage",
    [b"", b"\xff", b"[]", b"{}", b'{"format": 1}', b"[" * 100_000, b'{"format": 1, "seed": "", "cells": Infinity}'],
)
def test_a_damaged_instance_file_is_explained(tmp_path: Path, damage: bytes) -> None:
    root = tmp_path / "data"
    first_start(root)
    (root / "instance.json").write_bytes(damage)
    with pytest.raises(FolderError, match="can't be read") as raised:
        first_start(root)
    assert "backup" in raised.value.hint


def test_a_first_start_that_crashed_goes_on(tmp_path: Path) -> None:
    root = tmp_path / "data"
    folder = DataFolder(root)
    with data_folder.locked(folder):
        data_folder.prepare(folder, Settings(data_folder=root, cells=2))
        data_folder.prepare_cell(folder, "cell-1", may_make=True)
    pepper = folder.pepper_file.read_bytes()
    folder.ray_token_file("cell-1").unlink()  # as if the crash had come before it
    first_start(root)
    assert folder.pepper_file.read_bytes() == pepper
    assert folder.ray_token_file("cell-1").exists()


def test_a_second_one_is_kept_out(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    with (
        data_folder.locked(folder),
        pytest.raises(FolderError, match="another `bulkhead up` uses this data folder"),
        data_folder.locked(folder),
    ):
        pytest.fail("two hold the lock")
    with data_folder.locked(folder):
        assert folder.lock_file.exists()


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(FolderError, match=r"holds other things already, such as 'holiday\.jpg'"):
        first_start(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_copied_folder_is_another_installation(tmp_path: Path) -> None:
    original = first_start(tmp_path / "data")
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    assert data_folder.read_instance(DataFolder(tmp_path / "data")) == original
    copied = data_folder.read_instance(DataFolder(tmp_path / "copy"))
    assert copied is not None
    assert copied.id != original.id


@pytest.mark.parametrize("content", ["", "{}", '{"format": 9, "seed": "s", "cells": 1, "created_at": ""}', "[1]"])
def test_a_damaged_instance_is_not_taken_for_a_first_start(tmp_path: Path, content: str) -> None:
    first_start(tmp_path / "data")
    (tmp_path / "data" / "instance.json").write_text(content)
    with pytest.raises(FolderError):
        first_start(tmp_path / "data")


def test_the_holder_of_the_lock_is_named(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    first_start(folder.root)
    record = {"pid": os.getpid(), "started_at": "2026-11-22T12:00:00.000Z"}
    (folder.run / "control_plane.json").write_text(json.dumps(record))
    with data_folder.locked(folder), pytest.raises(FolderError, match=f"pid {os.getpid()}"), data_folder.locked(folder):
        pytest.fail("two hold the lock")
