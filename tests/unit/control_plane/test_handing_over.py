"""Folders are their users' own, what is only read stays root's, and no link leads a change of owners elsewhere."""

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from control_plane.data_folder import DataFolder
from control_plane.errors import FolderError
from control_plane.handing_over import hand_over
from control_plane.processes import ProcessSpec

CELL, ROUTER, REDIS = 1_900_000_016, 1_900_000_000, 1_900_000_001
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root hands files over")


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path / "data")
    for path in (folder.root, folder.secrets, folder.run, folder.logs):
        path.mkdir(mode=0o700)
    return folder


def spec(folder: DataFolder, uid: int | None, owns: tuple[Path, ...], reads: tuple[Path, ...]) -> ProcessSpec:
    file = folder.run / "x.config.json"
    return ProcessSpec(
        "x", "door", None, 0, (), {}, file, {}, "127.0.0.1", 1, "same", owns=owns, reads=reads, uid=uid
    )  # fmt: skip


def owner(path: Path) -> tuple[int, int, str]:
    found = path.lstat()
    return found.st_uid, found.st_gid, oct(stat.S_IMODE(found.st_mode))


def test_a_folder_of_before_is_handed_over_with_all_that_is_in_it(folder: DataFolder) -> None:
    cell = folder.cell_folder("cell-0")
    (cell / "partners").mkdir(parents=True)
    (cell / "partners" / "acme.sqlite").touch(mode=0o600)
    secret = folder.cell_secret_file("cell-0")
    secret.touch(mode=0o600)
    door = spec(folder, CELL, (cell, folder.log_folder("cell-0.door")), (secret,))
    for _ in range(2):  # again at each start
        hand_over(folder, door, [door])
        assert owner(cell) == owner(cell / "partners") == owner(folder.log_folder("cell-0")) == (CELL, CELL, "0o700")
        assert owner(cell / "partners" / "acme.sqlite") == (CELL, CELL, "0o600")
        assert owner(secret) == (0, CELL, "0o640")
        for passed in (folder.root, folder.secrets, folder.run, folder.logs, cell.parent):
            assert owner(passed) == (0, 0, "0o711")


def test_what_two_users_read_is_the_firsts_and_the_others_group_s(folder: DataFolder) -> None:
    secret = folder.redis_secret_file
    secret.touch(mode=0o600)
    redis = spec(folder, REDIS, (folder.root / "redis",), (secret,))
    routers = [spec(folder, ROUTER, (folder.router_folder(f"router-{number}"),), (secret,)) for number in range(2)]
    hand_over(folder, routers[0], [redis, *routers])
    assert owner(secret) == (REDIS, ROUTER, "0o440")


def test_what_is_written_into_a_folder_that_is_read_is_the_reader_s_too(folder: DataFolder) -> None:
    read = folder.directory_file.parent
    read.mkdir()
    (read / "directory.json").touch(mode=0o600)
    router = spec(folder, ROUTER, (folder.router_folder("router-0"),), (read,))
    hand_over(folder, router, [router])
    assert owner(read) == (0, ROUTER, "0o2750")
    assert owner(read / "directory.json") == (0, ROUTER, "0o640")
    (read / "later").touch()
    assert (read / "later").lstat().st_gid == ROUTER


def test_links_out_of_an_owned_folder_are_not_followed(folder: DataFolder) -> None:
    outside = folder.root / "outside"
    (outside / "deeper").mkdir(parents=True)
    (outside / "file").touch()
    (outside / "named-twice").touch()
    cell = folder.cell_folder("cell-0")
    cell.mkdir(parents=True)
    (cell / "folder").symlink_to(outside)
    (cell / "link").symlink_to(outside / "file")
    (cell / "hard").hardlink_to(outside / "named-twice")
    os.mkfifo(cell / "pipe")  # opening it would wait for ever
    door = spec(folder, CELL, (cell,), ())
    hand_over(folder, door, [door])
    for path in (outside, outside / "deeper", outside / "file", outside / "named-twice"):
        assert owner(path)[:2] == (0, 0), path


def test_a_file_of_others_that_the_user_can_t_read_is_told(folder: DataFolder, tmp_path: Path) -> None:
    cluster_file = tmp_path / "fdb.cluster"
    cluster_file.touch(mode=0o600)
    door = replace(spec(folder, CELL, (folder.cell_folder("cell-0"),), ()), foreign=(cluster_file,))
    with pytest.raises(FolderError, match=rf"user {CELL} may not read it"):
        hand_over(folder, door, [door])
    cluster_file.chmod(0o644)
    hand_over(folder, door, [door])
    assert owner(cluster_file) == (0, 0, "0o644"), "it is not ours to hand over"


def test_without_users_nothing_changes_hands_but_folders_are_made(folder: DataFolder) -> None:
    cell = folder.cell_folder("cell-0")
    one = spec(folder, None, (cell,), (folder.redis_secret_file,))
    hand_over(folder, one, [one])
    assert owner(cell) == (0, 0, "0o700")
    assert owner(folder.root) == (0, 0, "0o700")
