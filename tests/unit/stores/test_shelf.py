"""Which shelf a place has, and what is wrong with one that is none."""

from pathlib import Path
from typing import Any

import pytest

from actors.errors import StoreClientError, StoreExistsError, StoreMissingError
from stores.fdb_cluster import read_cluster_file
from stores.shelf import open_shelf
from stores.sqlite_shelf import SqliteShelf


@pytest.mark.parametrize(
    "place",
    [
        {},
        {"store": "sqlite"},
        {"store": "sqlite", "folder": 5},
        {"store": "fdb", "cluster_file": "x"},
        {"store": "fdb", "cluster_file": "x", "path": ["a", 1]},
        {"store": "memory", "folder": "x"},
    ],
)
def test_what_is_no_place_is_refused(place: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no place of books"):
        open_shelf(place)


async def test_books_are_made_once_and_found_by_name(tmp_path: Path) -> None:
    shelf = open_shelf({"store": "sqlite", "folder": str(tmp_path)})
    assert isinstance(shelf, SqliteShelf)
    assert await shelf.names("partners") == []
    for name in (("cell",), ("partners", "beta"), ("partners", "alpha")):
        with pytest.raises(StoreMissingError):
            await shelf.open(*name)
        await shelf.create(*name)
        with pytest.raises(StoreExistsError):
            await shelf.create(*name)
        store = await shelf.open(*name)
        await store.close()
    assert await shelf.names("partners") == ["alpha", "beta"]
    assert (tmp_path / "cell.sqlite").exists()


@pytest.mark.parametrize(
    "line", ["test:id@127.0.0.1:4500", "test:id@10.0.0.1:4500:tls,10.0.0.2:4500:tls", "a_b:1@db.example.com:4500"]
)
def test_a_cluster_file_has_one_line_beside_its_comments(tmp_path: Path, line: str) -> None:
    file = tmp_path / "fdb.cluster"
    file.write_text(f"# DO NOT EDIT!\n\n{line}\n")
    assert read_cluster_file(file) == line


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"# nothing\n",
        b"test:id\n",
        b"test@127.0.0.1:4500\n",
        b"test:id@127.0.0.1\n",
        b"test:id@127.0.0.1:4500\ntest:id@127.0.0.1:4501\n",
        b"\xff\xfe\x00",
        b"x" * 20_000,
    ],
)
def test_what_is_no_cluster_file_is_one_line_that_says_where_there_is_one(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "fdb.cluster"
    file.write_bytes(content)
    with pytest.raises(StoreClientError, match=r"fdb\.cluster is no FoundationDB cluster file") as raised:
        read_cluster_file(file)
    assert "\n" not in str(raised.value)


def test_a_cluster_file_that_is_missing_or_a_folder_is_named(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(StoreClientError, match=f"{path} can't be read \\({why}"):
            read_cluster_file(path)
