"""A launched process is another user without any rights, and reaches what it was shown and nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from control_plane import landlock, launch, users

UID = 1_900_000_000
pytestmark = pytest.mark.skipif(
    bool(users._lacking_rights(UID)) or os.geteuid() != 0, reason="only root may start processes of other users"
)
LOOKS = """
import json, os, resource, sys
def tried(work, *arguments):
    try:
        work(*arguments)
    except OSError as error:
        return error.strerror
    return "done"
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
json.dump({
    "ids": [*os.getresuid(), *os.getresgid()], "groups": os.getgroups(), "pid": os.getpid(), "cwd": os.getcwd(),
    "rights": {name: status[name].strip("0") for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")},
    "no_new": status["NoNewPrivs"], "core": resource.getrlimit(resource.RLIMIT_CORE),
    "listed": {path: sorted(os.listdir(path)) if os.access(path, os.R_OK) else None for path in sys.argv[1:]},
    "written": {path: tried(open, path + "/new", "w") for path in sys.argv[1:]},
    "root_again": tried(os.setuid, 0),
}, sys.stdout)
"""


def launched(order: launch.Order, *arguments: str, cwd: Path) -> tuple[int, dict[str, Any]]:
    command = (*users.launch_command(order), sys.executable, "-c", LOOKS, *arguments)
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=cwd) as process:
        assert process.stdout is not None
        said = process.stdout.read()
    return process.pid, json.loads(said)


@pytest.mark.parametrize("locked", [False, landlock.version() > 0])
def test_a_process_reaches_only_what_it_is_shown(tmp_path: Path, locked: bool) -> None:
    root = tmp_path / "nobody-else-passes"
    for name in ("own", "shown", "hidden"):
        (root / name).mkdir(parents=True)
        (root / name / "file").touch()
    os.chown(root / "own", UID, UID)
    root.chmod(0o700)
    own, shown, hidden = (str(root / name) for name in ("own", "shown", "hidden"))
    order = launch.Order(UID, users.code_paths(), (shown,), (own,), landlock=locked)
    pid, said = launched(order, own, shown, hidden, cwd=root / "own")
    assert said["ids"] == [UID] * 6
    assert said["groups"] == []
    assert said["rights"] == dict.fromkeys(said["rights"], "")
    assert said["no_new"] == "1"
    assert said["core"] == [launch.CORE_BYTES] * 2
    assert said["root_again"] == "Operation not permitted"
    assert (said["pid"], said["cwd"]) == (pid, own), "the process that was started, where it was started"
    assert said["listed"] == {own: ["file"], shown: ["file"], hidden: None}
    assert said["written"][own] == "done"
    assert said["written"][shown] in {"Read-only file system", "Permission denied"}
    assert said["written"][hidden] == "No such file or directory"
    assert (root / "own" / "new").stat().st_uid == UID
    assert sorted(path.name for path in root.iterdir()) == ["hidden", "own", "shown"], "nothing changed for others"


def test_folders_are_covered_where_a_user_can_t_pass(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    closed, own = tmp_path / "closed", tmp_path / "own"
    (closed / "deeper").mkdir(parents=True)
    (own / "deeper").mkdir(parents=True)
    closed.chmod(0o700)
    own.chmod(0o700)
    os.chown(own, UID, UID)
    above = launch.covers([str(tmp_path)], UID)
    found = launch.covers([str(path / "deeper" / "file") for path in (closed, own)], UID)
    assert found == (above or {str(closed)}), "the topmost one; what is the user's own it can pass"


def test_an_order_that_can_t_be_followed_starts_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "started"
    for order in ('{"user": 1}', "no JSON", *(launch.Order(uid).to_json() for uid in (-1, 0, 2**32 - 1, 2**32))):
        command = (sys.executable, "-I", "-S", launch.__file__, order, "/usr/bin/touch", str(marker))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == launch.EXIT_NOT_LAUNCHED
        assert done.stderr.startswith("control_plane.launch: ")
    assert not marker.exists()
