"""A control group for each worker (cgroups(7), version 2), where whoever started the gateway handed groups over to it.

It has to be in a group whose parent is handed over and has no process of its own, as systemd makes it with
`Delegate=yes` and `DelegateSubgroup=`. Workers' groups stand beside it. Anywhere else worker_limits.py is all there is.
"""

import os
import time
from pathlib import Path
from typing import Final

import structlog

from cells import limits

log = structlog.get_logger()

_ROOT: Final = Path("/sys/fs/cgroup")
_OWN: Final = Path("/proc/self/cgroup")
_CONTROLLERS: Final = ("cpu", "memory", "pids")
_PREFIX: Final = "bulkhead-worker-"
# Its maker may not have entered a group that is younger.
_LEFT_AFTER_S: Final = 60


def join(name: str, *, with_memory: bool, threads: int, root: Path = _ROOT, own: Path = _OWN) -> Path | None:
    """Put this process into a group of its own; give it, or None where it can't have one. It never fails."""
    try:
        parent = _handed_over(root, own)
        if parent is None:
            return None
        _write(parent / "cgroup.subtree_control", " ".join(f"+{controller}" for controller in _CONTROLLERS))
        _sweep(parent)
        group = parent / f"{_PREFIX}{name}"
        group.mkdir()
        if with_memory:
            _write(group / "memory.max", str(limits.WORKER_GROUP_BYTES_MAX))
        _write(group / "cpu.weight", str(limits.WORKER_CPU_WEIGHT))
        _write(group / "pids.max", str(threads + limits.WORKER_GROUP_THREADS_MAX))
        _write(group / "cgroup.procs", str(os.getpid()))
    except OSError as error:
        log.warning("worker_has_no_cgroup", error=str(error))
        return None
    log.info("worker_in_cgroup", group=str(group))
    return group


def _handed_over(root: Path, own: Path) -> Path | None:
    """Give the group in which workers' groups may be made."""
    if not (root / "cgroup.controllers").is_file():
        return None  # version 1, or none
    lines = own.read_text(encoding="utf-8").splitlines()
    path = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    if not path or ".." in path:
        return None
    parent = (root / path).parent
    controllers = (parent / "cgroup.controllers").read_text(encoding="ascii").split()
    if not set(_CONTROLLERS) <= set(controllers) or not _is_ours(parent):
        return None
    return None if (parent / "cgroup.procs").read_text(encoding="ascii").strip() else parent


def _is_ours(group: Path) -> bool:
    """Say whether a group was handed over. Root may write to all of them, so for root systemd has to say it."""
    try:
        if os.getxattr(group, "user.delegate") == b"1":
            return True
    except OSError:  # systemd did not say anything
        pass
    return os.geteuid() != 0 and os.access(group / "cgroup.procs", os.W_OK)


def _sweep(parent: Path) -> None:
    """Take away the groups of workers that have ended; nobody else is there to do it."""
    for group in parent.glob(f"{_PREFIX}*"):
        try:
            is_left = "populated 0" in (group / "cgroup.events").read_text(encoding="ascii").splitlines()
            if is_left and time.time() - group.stat().st_mtime > _LEFT_AFTER_S:
                os.rmdir(group)  # noqa: PTH106 - as the kernel has it: with the files in it
        except OSError as error:  # another worker was faster, or it is in use again
            log.info("cgroup_not_removed", group=str(group), error=str(error))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="ascii")
