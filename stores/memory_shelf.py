"""A fake: the shelves of several cells over books in memory, for unit tests. Nothing in it survives.

All shelves over one `MemoryBooks` are places of one store, as directories of a FoundationDB cluster are.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from actors.errors import StoreExistsError, StoreMissingError, StoreUnavailableError
from actors.store import Key, Ownership
from stores import tuple_keys
from stores.health import Sample
from stores.memory_store import MemoryBook, MemoryStore

# Above every epoch that anybody takes: whoever has an erased book open can neither write nor own it any more.
_ERASED = Ownership(1 << 62, 1 << 62)


class MemoryBooks:
    """All books by their paths. `make` makes an empty one."""

    def __init__(self, make: Callable[[tuple[str, ...]], MemoryBook] = lambda _: MemoryBook()) -> None:
        self.make = make
        self.by_path: dict[tuple[str, ...], MemoryBook] = {}


class MemoryShelf:
    """See `stores.shelf.Shelf` for the contract."""

    def __init__(self, books: MemoryBooks, *path: str) -> None:
        self._books = books
        self._path = path

    async def create(self, *name: str) -> None:
        """Make an empty book."""
        path = (*self._path, *name)
        if path in self._books.by_path:
            raise StoreExistsError(f"{'/'.join(path)}: there is a book already")
        self._books.by_path[path] = self._books.make(path)

    async def open(self, *name: str) -> MemoryStore:
        """Open a book that exists."""
        path = (*self._path, *name)
        if path not in self._books.by_path:
            raise StoreMissingError(f"{'/'.join(path)}: there is no book")
        return MemoryStore(self._books.by_path[path], path)

    async def erase(self, *name: str) -> None:
        """Remove a book for good."""
        book = self._books.by_path.pop((*self._path, *name), None)
        if book is not None:
            book.ownership = _ERASED

    async def adopt(self, place: Mapping[str, Any], name: Sequence[str], *, seal: Key, sealed_by: bytes | None) -> None:
        """Take a book over from another shelf over the same books."""
        if place.get("store") != "fdb":
            raise StoreUnavailableError(f"{'/'.join(name)} of {dict(place)}: it is copied, not taken over")
        old, new = (*place["path"], *name), (*self._path, *name)
        books = self._books.by_path
        if old not in books:
            if new in books:
                return
            raise StoreMissingError(f"{'/'.join(old)}: there is no book")
        if new in books:
            raise StoreExistsError(f"{'/'.join(new)}: there is a book already")
        book = books[old]
        book.take_row(tuple_keys.encode(seal), sealed_by)
        # Another cell's doors count their own epochs.
        book.ownership = Ownership(book.ownership.epoch + 1, 0)
        # Who opened it under its old path must not own it again.
        book.home = new
        books[new] = books.pop(old)

    async def wait_answers(self) -> None:
        """Wait for nobody: memory is there."""

    async def names(self, folder: str) -> list[str]:
        """Give the last part of the names of all books in a folder of the shelf."""
        path = (*self._path, folder)
        return sorted(found[-1] for found in self._books.by_path if found[:-1] == path)

    async def health(self) -> tuple[Sample, ...]:
        """Tell nothing."""
        return ()
