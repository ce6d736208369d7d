"""Keeps the GCS of a cell's Ray running, inside `ray start`: one that dies is started again on what it had written.

Its clients (the raylet, the workers, the door) wait for it meanwhile, so that payments which need no new worker go on.
Ray itself would end the whole cluster. The last words of each that died are kept.
"""

import contextlib
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final

from cells import limits
from cells.api import limits as wire_limits
from cells.ray_environment import LOOPBACK, RayUnknownError

_LOOK_TIMEOUT_S: Final = 0.5


def keep_running(port: int, crash_logs: Path) -> None:
    """Have this process's `ray start` start its GCS again when it dies. Imports Ray; raises RayUnknownError."""
    from ray._private import node as ray_node  # noqa: PLC0415 - the environment comes first
    from ray._private import ray_constants  # noqa: PLC0415

    node_class: Any = ray_node.Node
    try:
        gcs, find_dead = ray_constants.PROCESS_TYPE_GCS_SERVER, node_class.dead_processes
        node_class.kill_gcs_server, node_class.start_gcs_server, node_class.get_logs_dir_path  # noqa: B018 - are they?
    except AttributeError as error:
        raise RayUnknownError(f"this version of Ray is built otherwise than known: {error}") from error
    patience = Patience(time.monotonic())

    # `ray start --block` asks once a second, and ends with all it started when any has died.
    def dead_processes(node: Any) -> list[Any]:
        dead = find_dead(node)
        of_gcs = [process for kind, process in dead if kind == gcs]
        if not of_gcs:
            if _listens(port):
                patience.heard(time.monotonic())
            return list(dead)
        kept = keep_words(Path(node.get_logs_dir_path()), crash_logs)
        ended = f"Ray's GCS ended with exit code {of_gcs[0].returncode}; its last words: {kept}"
        if len(dead) > len(of_gcs) or patience.is_over(time.monotonic()):
            sys.stderr.write(f"{ended}\n")
            return list(dead)
        sys.stderr.write(f"{ended}; it is started again\n")
        node.kill_gcs_server(check_alive=False)
        node.start_gcs_server()
        return []

    node_class.dead_processes = dead_processes


class Patience:
    """For how long a GCS is started again and again without ever being heard."""

    def __init__(self, now: float) -> None:
        self._heard = now

    def heard(self, now: float) -> None:
        """Note that it listens."""
        self._heard = now

    def is_over(self, now: float) -> bool:
        """Return whether it has not listened for so long that the whole cluster is to begin anew."""
        return (now - self._heard) * 1_000 > wire_limits.GCS_AWAY_MS_MAX


def keep_words(session_logs: Path, crash_logs: Path) -> str:
    """Move the last words of a GCS that died among those that are kept; return the file's name, or what went wrong."""
    words = [file for end in ("out", "err") for file in session_logs.glob(f"gcs_server*.{end}")]
    target = crash_logs.with_name(f"{crash_logs.name}-{time.time_ns() // 1_000_000}.log")
    try:
        crash_logs.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as kept:  # noqa: PTH123 - a descriptor
            for file in words:
                kept.write(f"{file.name}\n".encode() + _tail(file) + b"\n")
                file.unlink()  # each start writes files of its own
        for old in sorted(crash_logs.parent.glob(f"{crash_logs.name}-*.log"))[: -limits.GCS_CRASH_LOGS_MAX]:
            old.unlink()
    except OSError as error:
        return f"not kept, {error}"
    return str(target)


def _tail(file: Path) -> bytes:
    with file.open("rb") as opened:
        opened.seek(max(0, os.fstat(opened.fileno()).st_size - limits.GCS_CRASH_LOG_BYTES_MAX // 2))
        return opened.read(limits.GCS_CRASH_LOG_BYTES_MAX // 2)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=_LOOK_TIMEOUT_S):
        return True
    return False
