"""A cell's disk is that of all its workers, spares and pools, and of no other cell's."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chaos.cell_disk import CellDisk, worker_pids
from chaos.installation import GatewayError
from chaos.syscalls import DISK_FULL
from control_plane.data_folder import DataFolder

STATUS: dict[str, Any] = {
    "processes": [
        {"role": role, "cell": cell, "pid": pid}
        for role, cell, pid in (
            ("door", "cell-0", 1),
            ("worker", "cell-0", 2),
            ("spare", "cell-0", 3),
            ("pool", "cell-0", 4),
            ("spare", "cell-0", None),
            ("worker", "cell-1", 5),
            ("router", None, 6),
        )
    ]
}


def test_whose_calls_are_struck() -> None:
    assert worker_pids(STATUS, "cell-0") == [2, 3, 4]
    assert worker_pids(STATUS, "cell-2") == []


def test_a_cell_without_books_can_t_be_struck(tmp_path: Path) -> None:
    gateway: Any = SimpleNamespace(folder=DataFolder(tmp_path), status=lambda: STATUS)
    with pytest.raises(GatewayError, match="cell-0 has 0 books and 3 workers: there is nothing to strike"):
        CellDisk(gateway, "cell-0", DISK_FULL).start()
