"""What hostile code in a cell's process reaches: its own cell, and nothing of others, whoever `up` is.

The code runs as the cell's own processes are started: same user, same rules. A worker's rights are looked up in /proc.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chaos.gateway import Gateway
from control_plane import data_folder, landlock, launching, opening, processes, users
from control_plane.processes import ProcessSpec
from control_plane.settings import Settings

# Says what it could open, look into and signal, of all that is given as arguments.
HOSTILE = """
import ctypes, json, os, socket, sys
root, names, pids = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
def reached(work):
    try:
        return bool(work())
    except OSError:
        return False
def connect():
    with socket.socket(socket.AF_UNIX) as admin:
        admin.connect(root + "/control.sock")
    return True
libc = ctypes.CDLL(None, use_errno=True)
json.dump({
    "read": [name for name in names if reached(lambda: open(root + "/" + name, "rb"))],
    "written": [name for name in names if reached(lambda: open(root + "/" + name, "ab"))],
    "listed": [name for name in ("", "secrets", "cells/cell-1") if reached(lambda: [os.listdir(root + "/" + name)])],
    "environments": [pid for pid in pids if reached(lambda: open(f"/proc/{pid}/environ", "rb").read(1))],
    "memories": [pid for pid in pids if reached(lambda: open(f"/proc/{pid}/mem", "rb"))],
    "traced": [pid for pid in pids if libc.ptrace(16, pid, 0, 0) == 0],
    "signalled": [pid for pid in pids if reached(lambda: [os.kill(pid, 0)])],
    "admin": reached(connect),
    "root": reached(lambda: [os.setuid(0)]),
    "made": reached(lambda: open("/tmp/bulkhead-hostile", "x")),
}, sys.stdout)
"""
OWN = ("cells/cell-0/", "logs/cell-0/", "secrets/cell-0.", "run/cell-0.ray.config.json")


@pytest.mark.timeout(180)
async def test_hostile_code_reaches_its_own_cell_only(make_gateway: Callable[..., Gateway]) -> None:
    gateway = await asyncio.to_thread(make_gateway, 2)
    await asyncio.to_thread(gateway.create_partner, "acme")
    status = await asyncio.to_thread(gateway.wait_ready)
    pids = [row["pid"] for row in status["processes"] if row["cell"] != "cell-0" and row["pid"] is not None]
    cell, one_user = await _cell_of(gateway)
    is_locked = landlock.version() > 0
    if one_user:
        assert "ONE USER" in gateway.output.upper()
        if not is_locked:
            pytest.skip("neither users of their own nor Landlock can be had here")
    else:
        assert await asyncio.to_thread(_run, cell, gateway.folder.root, pids, is_locked=is_locked) == _own(gateway)
        for row in status["processes"]:
            if row["cell"] == "cell-0" and row["pid"] is not None:
                _require_no_rights(row["pid"], cell.uid)
    if is_locked:
        # Landlock alone, as where `up` is not root. From the socket of the admin API a key keeps, and from environments
        # what root has and others have not (CAP_PERFMON).
        alone = await asyncio.to_thread(_run, replace(cell, uid=None), gateway.folder.root, pids, is_locked=True)
        assert alone | {"admin": False, "root": False, "environments": []} == _own(gateway)


async def _cell_of(gateway: Gateway) -> tuple[ProcessSpec, bool]:
    """Return how cell-0's Ray is started, whose children workers are, and whether all processes are one user's."""
    settings = Settings(data_folder=gateway.folder.root, cells=2)
    instance = data_folder.read_instance(gateway.folder)
    assert instance is not None
    cells = await opening.read_registered_cells(settings, gateway.folder)
    planned = processes.plan(settings, gateway.folder, instance, cells, "", lambda _: "")
    found = users.find(settings, gateway.folder, instance)
    (ray,) = [spec for spec in planned if spec.name == "cell-0.ray"]
    return found.dressed(ray), found.first_uid is None


def _own(gateway: Gateway) -> dict[str, Any]:
    own = [name for name in _names(gateway.folder.root) if name.startswith(OWN)]
    return {
        "read": own,
        "written": [name for name in own if name.startswith(("cells/", "logs/"))],
        **{name: [] for name in ("listed", "environments", "memories", "traced", "signalled")},
        **dict.fromkeys(("admin", "root", "made"), False),
    }


def _names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def _run(cell: ProcessSpec, root: Path, pids: list[int], *, is_locked: bool) -> dict[str, Any]:
    arguments = (str(root), json.dumps(_names(root)), json.dumps(pids))
    hostile = replace(cell, argv=(sys.executable, "-P", "-c", HOSTILE, *arguments))
    done = subprocess.run(
        launching.command(hostile, landlock=is_locked),
        env=launching.environment(hostile, os.environ),
        capture_output=True,
        text=True,
        check=True,
        cwd=root / "cells" / "cell-0",
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _require_no_rights(pid: int, uid: int | None) -> None:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert status["Uid"].split() == [str(uid)] * 4, pid
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}, pid
    assert status["NoNewPrivs"] == "1", pid
