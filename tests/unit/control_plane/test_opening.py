"""Where the registry's book is, when it is made, and what is said where it can't be used."""

import stat
from pathlib import Path
from typing import Any

import pytest

from control_plane import data_folder, opening
from control_plane.cell_rules import first_cells
from control_plane.data_folder import DataFolder, Instance
from control_plane.errors import FolderError, RegistryError, SettingsError
from control_plane.places import describe, place_of_cell, place_of_registry
from control_plane.settings import Settings
from stores.contract import StoreClientError, StoreUnavailableError

INSTANCE = Instance("1" * 16, "5eed" * 8, 2, "sqlite", "now")


def prepared(root: Path) -> tuple[Settings, DataFolder, Instance]:
    folder, settings = DataFolder(root), Settings(data_folder=root, cells=2)
    with data_folder.locked(folder):
        return settings, folder, data_folder.prepare(folder, settings)


def in_fdb(root: Path, **files: Any) -> Settings:
    return Settings(data_folder=root, cells=2, store="fdb", **files)


async def test_the_book_is_made_at_the_first_start_only(tmp_path: Path) -> None:
    settings, folder, instance = prepared(tmp_path / "data")
    with pytest.raises(FolderError, match="can't be opened") as raised:
        await opening.open_registry(settings, folder, instance, first_start=False)
    assert "backup" in raised.value.hint
    assert raised.value.where == str(folder.registry_file)
    assert not folder.registry_file.exists()
    for _ in range(2):  # the second one as if the first had crashed before its end
        registry = await opening.open_registry(settings, folder, instance, first_start=True)
        await registry.close()
    assert stat.S_IMODE(folder.registry_file.stat().st_mode) == 0o600
    registry = await opening.open_registry(settings, folder, instance, first_start=False)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.root.glob("control.sqlite*")} == {0o600}
    await registry.close()


async def test_a_damaged_book_is_refused(tmp_path: Path) -> None:
    settings, folder, instance = prepared(tmp_path / "data")
    folder.registry_file.write_bytes(b"no database at all, but long enough to be looked at" * 20)
    for first_start in (True, False):
        with pytest.raises(FolderError, match="can't be opened"):
            await opening.open_registry(settings, folder, instance, first_start=first_start)


async def test_partners_are_read_while_somebody_owns_the_registry(tmp_path: Path) -> None:
    settings, folder, instance = prepared(tmp_path / "data")
    with pytest.raises(FolderError, match="no Bulkhead was ever started"):
        await opening.read_registered(settings, folder)
    registry = await opening.open_registry(settings, folder, instance, first_start=True)
    data_folder.finish_first_start(folder, instance)
    assert await opening.read_registered(settings, folder) == []
    await registry.note("ann", "goes on", None, {})
    await registry.close()


def test_places(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    place = place_of_registry(Settings(data_folder=tmp_path), folder, INSTANCE)
    assert place == {"store": "sqlite", "folder": str(tmp_path)}
    assert describe(place, "control") == str(folder.registry_file)
    settings = in_fdb(tmp_path, cluster_files=("/a", "/b"), control_cluster_file="/c")
    place = place_of_registry(settings, folder, INSTANCE)
    assert place == {"store": "fdb", "cluster_file": "/c", "path": ["bulkhead", "5eed" * 4]}
    assert describe(place, "control") == f"bulkhead/{'5eed' * 4}/control in FoundationDB (/c)"
    assert place_of_cell(settings, folder, INSTANCE, first_cells(settings, "now")[1])["path"][:2] == place["path"]


def require_clients(settings: Settings, folder: DataFolder) -> None:
    opening.require_clients(settings, folder, INSTANCE, first_cells(settings, "now"))


class Away:
    """A shelf whose place doesn't answer."""

    async def wait_answers(self) -> None:
        raise StoreUnavailableError("FoundationDB (/c) doesn't answer: is fdbserver running?")


async def test_a_cluster_that_does_not_answer_is_one_error_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "open_shelf", lambda _: Away())
    settings = in_fdb(tmp_path, cluster_files=("/c",))
    with pytest.raises(RegistryError, match="doesn't answer: is fdbserver running") as raised:
        await opening.open_registry(settings, DataFolder(tmp_path), INSTANCE, first_start=True)
    assert raised.value.where == f"bulkhead/{'5eed' * 4}/control in FoundationDB (/c)"
    assert raised.value.hint
    assert "\n" not in raised.value.what


async def test_a_client_or_cluster_file_that_does_not_fit_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def refuse(place: dict[str, Any]) -> None:
        asked.append(place["cluster_file"])
        if place["cluster_file"] == "/bad":
            raise StoreClientError("/bad is no FoundationDB cluster file: copy it from a server")

    monkeypatch.setattr(opening, "open_shelf", refuse)
    folder = DataFolder(tmp_path)
    require_clients(in_fdb(tmp_path, cluster_files=("/one",)), folder)
    assert asked == ["/one"], "a file is looked at once"
    settings = in_fdb(tmp_path, cluster_files=("/one", "/bad"), control_cluster_file="/bad")
    with pytest.raises(SettingsError, match="no FoundationDB cluster file") as raised:
        require_clients(settings, folder)
    assert raised.value.where.endswith("/bad")
    with pytest.raises(SettingsError, match="no FoundationDB cluster file"):
        await opening.open_registry(settings, folder, INSTANCE, first_start=True)
    asked.clear()
    require_clients(Settings(data_folder=tmp_path), folder)
    assert asked == []


def test_without_the_library_or_the_file_the_real_shelf_says_so(tmp_path: Path) -> None:
    settings = in_fdb(tmp_path, cluster_files=(tmp_path / "none.cluster",))
    with pytest.raises(SettingsError, match=r"FoundationDB's (client library|cluster file|Python binding)") as raised:
        require_clients(settings, DataFolder(tmp_path))
    assert "\n" not in raised.value.what
