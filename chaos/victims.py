"""Which processes a fault strikes, found by what `bulkhead status` tells. Signals nobody."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import psutil

from chaos.faults import Target
from chaos.installation import GatewayError, worker_pid

_ROLES: Final = {Target.HEAD: "ray", Target.CONTROL_PLANE: "control"}
_OF_RAY: Final = {Target.GCS: "gcs_server", Target.RAYLET: "raylet"}


def find(
    status: Mapping[str, Any],
    target: Target,
    *,
    cell: str | None = None,
    partner: str | None = None,
    pid_of_server: int | None = None,
) -> list[psutil.Process]:
    """Find the processes to be struck; there is at least one. `pid_of_server`: FoundationDB's. Raises GatewayError."""
    rows: Sequence[Mapping[str, Any]] = status["processes"]
    match target:
        case Target.WORKER:
            pid = worker_pid(status, partner)
            found = [] if pid is None else [psutil.Process(pid)]
        case Target.FDB_SERVER:
            found = [] if pid_of_server is None else [psutil.Process(pid_of_server)]
        case Target.CELL:
            of_cell = list(_of_role(rows, {"ray", "door"}, cell))
            found = [*of_cell, *(below for one in of_cell for below in one.children(recursive=True))]
        case Target.GCS | Target.RAYLET:
            heads = _of_role(rows, {"ray"}, cell)
            found = [child for head in heads for child in head.children() if child.name() == _OF_RAY[target]]
        case (
            Target.ROUTER | Target.CONTROL_PLANE | Target.ACQUIRER | Target.REDIS
        ):  # of no cell, whatever else the fault strikes
            found = list(_of_role(rows, {_ROLES.get(target, target.value)}, None))[:1]
        case _:
            found = list(_of_role(rows, {_ROLES.get(target, target.value)}, cell))[:1]
    if not found:
        where = partner or cell
        raise GatewayError(f"there is no {target} to strike{f' ({where})' if where else ''}")
    return found


def _of_role(rows: Sequence[Mapping[str, Any]], roles: set[str], cell: str | None) -> Iterator[psutil.Process]:
    for row in rows:
        if row["role"] in roles and row["pid"] and cell in {None, row["cell"]}:
            with contextlib.suppress(psutil.NoSuchProcess):
                yield psutil.Process(row["pid"])
