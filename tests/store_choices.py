"""On which stores whole gateways are tested: SQLite always, FoundationDB where a cluster is named for tests."""

import secrets
from pathlib import Path
from typing import Any

import pytest

from chaos.fdb_server import missing_programs
from chaos.store_choice import SQLITE, StoreChoice
from tests.contract.stores import cluster_file, needs_cluster

on_either_store = pytest.mark.parametrize("kind", ["sqlite", pytest.param("fdb", marks=needs_cluster)])
needs_server = pytest.mark.skipif(
    missing_programs() is not None, reason="no FoundationDB server: fdbserver and fdbcli are not on the PATH"
)


def chosen(kind: str) -> StoreChoice:
    """Give the store of that kind that tests use."""
    return SQLITE if kind == "sqlite" else StoreChoice(kind, cluster_file())


def place_of(kind: str, folder: Path) -> dict[str, Any]:
    """Give a place for books of one test (stores.shelf), where none are yet."""
    if kind == "sqlite":
        return {"store": kind, "folder": str(folder)}
    return {"store": kind, "cluster_file": str(cluster_file()), "path": ["bulkhead-tests", secrets.token_hex(8)]}
