"""On which store an experiment or a measurement runs, and what that means for an acknowledged payment."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from chaos import fdb_server

SQLITE_DURABILITY: Final = "SQLite, WAL, synchronous=FULL: every commit is fsynced before it is answered"

NO_DISK_FIGURE: Final = "No bytes of disk a payment: FoundationDB's files grow ahead of what is in them."


@dataclass(frozen=True, slots=True)
class StoreChoice:
    """One kind of store (stores.shelf.KINDS); FoundationDB's with the cluster that all cells share."""

    kind: str = "sqlite"
    cluster_file: Path | None = None

    @property
    def up_arguments(self) -> list[str]:
        """Give what `bulkhead up` is told of it."""
        if self.kind == "sqlite":
            return []
        return ["--store", self.kind, "--cluster-files", str(self.cluster_file)]

    @property
    def arguments(self) -> list[str]:
        """Give what the programs here are told of it, which is nothing where it is the default."""
        if self.kind == "sqlite":
            return []
        return ["--store", self.kind, *(["--cluster-file", str(self.cluster_file)] if self.cluster_file else [])]

    def servers_here(self) -> list[psutil.Process]:
        """Find the server processes of its cluster that run on this machine."""
        return [] if self.cluster_file is None else fdb_server.servers_here(self.cluster_file)

    async def durability(self) -> str:
        """Say in words when a commit is acknowledged; FoundationDB's cluster is asked. Raises StoreError."""
        if self.kind == "sqlite":
            return SQLITE_DURABILITY
        assert self.cluster_file is not None
        # Its client is needed only where it is used.
        from stores.fdb_cluster import Cluster  # noqa: PLC0415

        cluster = Cluster(self.cluster_file)
        await cluster.wait_answers()
        return in_words(await cluster.status())


SQLITE: Final = StoreChoice()


def in_words(status: Mapping[str, Any]) -> str:
    """Say what a FoundationDB cluster's status tells of its durability.

    https://apple.github.io/foundationdb/mr-status.html
    """
    configuration = status.get("cluster", {}).get("configuration", {})
    redundancy = configuration.get("redundancy_mode", "unknown")
    engine = configuration.get("storage_engine", "unknown")
    return (
        f"FoundationDB, redundancy mode {redundancy}, storage engine {engine}: every commit is acknowledged by the "
        "transaction logs' fsync before it is answered"
    )
