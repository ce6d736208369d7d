"""Who is struck is found in the status by role, cell and partner; where there is nobody, that is told."""

import os
from typing import Any

import pytest

from chaos import victims
from chaos.faults import Target
from chaos.installation import GatewayError


def row(role: str, cell: str | None = None, pid: int | None = None, process: str = "") -> dict[str, Any]:
    return {"role": role, "cell": cell, "pid": pid, "process": process}


ME, PARENT = os.getpid(), os.getppid()
STATUS = {
    "processes": [
        row("control", pid=ME),
        row("door", "cell-0", pid=PARENT),
        row("door", "cell-1", pid=ME),
        row("pool", "cell-0", ME, "cell-0-w0"),
        row("worker", "cell-0", PARENT, "cell-0-w1"),
        row("router"),
    ],
    "partners": [
        {"partner": "bob", "worker": "cell-0-w0"},
        {"partner": "eve", "worker": "cell-0-w1"},
        {"partner": "ann", "worker": None},
    ],
}


@pytest.mark.parametrize(
    ("target", "where", "mine"),
    [
        (Target.WORKER, {"partner": "bob", "cell": "cell-0"}, True),
        (Target.WORKER, {"partner": "eve"}, False),
        (Target.DOOR, {"cell": "cell-1"}, True),
        (Target.CONTROL_PLANE, {}, True),
        (Target.CONTROL_PLANE, {"cell": "cell-0"}, True),  # of no cell: the fault's other blow strikes one
        (Target.FDB_SERVER, {"pid_of_server": ME}, True),
    ],
)
def test_who_is_struck(target: Target, where: dict[str, Any], mine: bool) -> None:
    assert [process.pid for process in victims.find(STATUS, target, **where)] == [ME if mine else PARENT]


@pytest.mark.parametrize(
    ("target", "where"),
    [
        (Target.WORKER, {"partner": "joe"}),
        (Target.WORKER, {"partner": "ann"}),  # it is being given one
        (Target.DOOR, {"cell": "cell-2"}),
        (Target.ROUTER, {}),  # it is being started
        (Target.FDB_SERVER, {}),
    ],
)
def test_nobody_to_strike(target: Target, where: dict[str, Any]) -> None:
    with pytest.raises(GatewayError, match=f"there is no {target} to strike"):
        victims.find(STATUS, target, **where)
