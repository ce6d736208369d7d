"""A shelf: where the books of one place stand, whatever store they are in. `open_shelf` alone switches between them.

A book's name is a path: ("cell",) is a cell's own, ("partners", "acme") a partner's, ("control",) the control plane's.
A book is made once, at onboarding; opening one never makes it, because a missing book must not become an empty one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from actors.store import Key, Store
from stores.health import Sample
from stores.sqlite_shelf import SqliteShelf

KINDS: Final = ("sqlite", "fdb")


class Shelf(Protocol):
    """The books of one place. Safe for one event loop."""

    async def create(self, *name: str) -> None:
        """Make an empty book, durably.

        Raises StoreExistsError where one is, StoreUnavailableError, StoreCorruptError.
        """

    async def open(self, *name: str) -> Store:
        """Open a book that exists. Raises StoreMissingError, StoreCorruptError, StoreUnavailableError."""

    async def erase(self, *name: str) -> None:
        """Remove a book for good: nobody who has it open can write to it any more. Where none is, none is removed.

        Raises StoreUnavailableError, StoreCorruptError.
        """

    async def adopt(self, place: Mapping[str, Any], name: Sequence[str], *, seal: Key, sealed_by: bytes | None) -> None:
        """Take a book over from another shelf of the same store: nothing is copied, and whoever owned it is fenced.

        `sealed_by`: what the row `seal` has to hold; None: it is taken as it is. Afterwards there is no such row. A
        book that was taken already is left alone. Raises StoreMissingError where there is none, FencedError where it
        is not sealed so, StoreUnavailableError where the two shelves share no store.
        """

    async def wait_answers(self) -> None:
        """Wait a moment for a place that is elsewhere to answer. Raises StoreUnavailableError."""

    async def names(self, folder: str) -> list[str]:
        """Give the last part of the names of all books in a folder of the shelf, in order. Raises StoreError."""

    async def health(self) -> Sequence[Sample]:
        """Tell how the place is, for dashboards; nothing where it has nothing to tell, ever. Takes seconds at most."""


def open_shelf(place: Mapping[str, Any]) -> Shelf:
    """Give the shelf at a place, as processes are told of it.

    {"store": "sqlite", "folder": …} or {"store": "fdb", "cluster_file": …, "path": […]}: the path is the shelf's
    directory in the cluster. Raises ValueError for what is no place, StoreClientError where FoundationDB's client
    library is missing or doesn't fit.
    """
    match place:
        case {"store": "sqlite", "folder": str(folder)}:
            return SqliteShelf(Path(folder))
        case {"store": "fdb", "cluster_file": str(cluster_file), "path": [*path]} if all(
            isinstance(part, str) for part in path
        ):
            # The client library is needed only where it is used.
            from stores.fdb_shelf import FdbShelf  # noqa: PLC0415

            return FdbShelf.connect(Path(cluster_file), tuple(path))
        case _:
            raise ValueError(f"no place of books: {dict(place)!r:.200}")
