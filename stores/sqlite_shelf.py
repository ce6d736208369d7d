"""The shelf of the embedded store: a folder, in it one SQLite file for each book."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.errors import StoreUnavailableError
from actors.store import Key
from stores import sqlite_file
from stores.health import Sample
from stores.sqlite_store import SqliteStore


class SqliteShelf:
    """See `stores.shelf.Shelf` for the contract."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def create(self, *name: str) -> None:
        """Make an empty book, durably, and the folder that it lies in."""
        path = self._path(name)

        def make() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            sqlite_file.create(path)

        await asyncio.to_thread(make)

    async def open(self, *name: str) -> SqliteStore:
        """Open a book that exists."""
        return await SqliteStore.open(self._path(name))

    async def erase(self, *name: str) -> None:
        """Remove a book for good."""
        await asyncio.to_thread(sqlite_file.erase, self._path(name))

    async def adopt(self, place: Mapping[str, Any], name: Sequence[str], *, seal: Key, sealed_by: bytes | None) -> None:
        """Refuse: folders may lie on different machines, so between them books are copied."""
        detail = f"{'/'.join(name)} of {dict(place)}, {'taken' if sealed_by is None else f'sealed by {seal[0]!r}'}"
        raise StoreUnavailableError(f"{detail}: books in files are copied, not taken over")

    async def wait_answers(self) -> None:
        """Wait for nobody: a folder is there or isn't."""

    async def names(self, folder: str) -> list[str]:
        """Give the names of all books in a folder of the shelf."""
        return sorted(path.stem for path in (self._folder / folder).glob("*.sqlite"))

    async def health(self) -> tuple[Sample, ...]:
        """Tell nothing: how its disk is, the machine tells."""
        return ()

    def _path(self, name: tuple[str, ...]) -> Path:
        return self._folder.joinpath(*name[:-1], f"{name[-1]}.sqlite")
