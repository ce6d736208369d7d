"""The shelf of FoundationDB: a directory in a cluster, in it a directory for each book. Moving one copies nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from actors.errors import StoreError, StoreUnavailableError
from actors.store import Key
from stores import fdb_status
from stores.fdb_cluster import Cluster
from stores.fdb_store import FdbStore
from stores.health import Sample

log = structlog.get_logger()


class FdbShelf:
    """See `stores.shelf.Shelf` for the contract."""

    def __init__(self, cluster: Cluster, path: tuple[str, ...]) -> None:
        self.cluster = cluster
        self._path = path

    @classmethod
    def connect(cls, cluster_file: Path, path: tuple[str, ...]) -> "FdbShelf":
        """Connect to the cluster in the background. Raises StoreClientError."""
        return cls(Cluster(cluster_file), path)

    async def create(self, *name: str) -> None:
        """Make an empty book, durably."""
        await FdbStore.create(self.cluster, (*self._path, *name))

    async def open(self, *name: str) -> FdbStore:
        """Open a book that exists."""
        return await FdbStore.open(self.cluster, (*self._path, *name))

    async def erase(self, *name: str) -> None:
        """Remove a book for good: what commits meanwhile conflicts with that its ownership is cleared."""
        await self.cluster.remove_directory((*self._path, *name))

    async def adopt(self, place: Mapping[str, Any], name: Sequence[str], *, seal: Key, sealed_by: bytes | None) -> None:
        """Take a book over from another shelf of this cluster: its directory gets another path, its rows stay."""
        match place:
            case {"store": "fdb", "cluster_file": str(file), "path": [*path]} if self.cluster.is_of(Path(file)):
                await self.cluster.adopt_directory((*map(str, path), *name), (*self._path, *name), seal, sealed_by)
            case _:
                raise StoreUnavailableError(f"{'/'.join(name)} of {dict(place)}: not in {self.cluster}")

    async def wait_answers(self) -> None:
        """Wait a moment for the cluster to answer."""
        await self.cluster.wait_answers()

    async def names(self, folder: str) -> list[str]:
        """Give the names of all books in a folder of the shelf."""
        return await self.cluster.list_directory((*self._path, folder))

    async def health(self) -> list[Sample]:
        """Tell the cluster's status, or that it did not tell it."""
        try:
            return fdb_status.samples_of(await self.cluster.status())
        except StoreError as error:
            log.warning("cluster_status_unknown", error=str(error))
            return fdb_status.unreachable()
