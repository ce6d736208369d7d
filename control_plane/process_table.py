"""Processes as Linux knows them: who is who, who is ours, and signals that can't hit anybody else.

A pid alone names nobody for long, so everything goes through pidfds (pidfd_open(2)), checked against the start time
and the marker in the environment that every process of an installation inherits: BULKHEAD_PROCESS=<instance>/<name>.
"""

import asyncio
import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from control_plane import limits

MARKER: Final = "BULKHEAD_PROCESS"
_PROC: Final = Path("/proc")
_STAT_BYTES_MAX: Final = 1_024


class ProcessHandle:
    """One process that was alive when this was made, held by a pidfd. Also for processes that are no children."""

    def __init__(self, pid: int, pidfd: int, start_ticks: int, child: "subprocess.Popen[bytes] | None" = None) -> None:
        self.pid = pid
        self.start_ticks = start_ticks
        self._pidfd = pidfd
        self._child = child
        self._stat = -1  # /proc/<pid>/stat, kept open once it is looked at: it is looked at often

    @classmethod
    def open(cls, pid: int) -> "ProcessHandle | None":
        """Take hold of a process; None where it is gone."""
        try:
            pidfd = os.pidfd_open(pid)
        except (ProcessLookupError, PermissionError, ValueError):
            return None
        ticks = read_start_ticks(pid)
        # Read after the pidfd was opened and before it ended: so the ticks are of the process that is held.
        if ticks is None or _has_ended(pidfd):
            os.close(pidfd)
            return None
        return cls(pid, pidfd, ticks)

    @classmethod
    def of_child(cls, child: "subprocess.Popen[bytes]") -> "ProcessHandle":
        """Take hold of a child, which may have ended already: it keeps its pid until it is reaped here."""
        return cls(child.pid, os.pidfd_open(child.pid), read_start_ticks(child.pid) or 0, child)

    @property
    def adopted(self) -> bool:
        """Whether an earlier supervisor started it."""
        return self._child is None

    def has_ended(self) -> bool:
        """Whether it is gone, or a zombie."""
        return self._pidfd < 0 or _has_ended(self._pidfd)

    def is_stopped(self) -> bool:
        """Whether a signal stopped it (SIGSTOP)."""
        if self.has_ended():
            return False
        try:
            if self._stat < 0:
                self._stat = os.open(_PROC / str(self.pid) / "stat", os.O_RDONLY | os.O_CLOEXEC)
            stat = os.pread(self._stat, _STAT_BYTES_MAX, 0)
        except OSError:
            return False
        return stat[stat.rindex(b")") + 2 :][:1] == b"T"

    def wanted_cpu_ms(self) -> float:
        """Return for how long its first thread, the event loop's, ran or waited for a core (/proc/<pid>/schedstat).

        Where the kernel does not count that it is always 0.
        """
        with contextlib.suppress(OSError, ValueError):
            ran_ns, waited_ns, _ = (_PROC / str(self.pid) / "schedstat").read_bytes().split()
            return (int(ran_ns) + int(waited_ns)) / 1_000_000
        return 0.0

    def children(self, names: tuple[str, ...]) -> "list[ProcessHandle]":
        """Take hold of its children that have one of these names (at most 15 characters, proc(5))."""
        found: list[ProcessHandle] = []
        for pid in _children(self.pid):
            handle = ProcessHandle.open(pid) if _read_name(pid) in names else None
            if handle is not None:
                found.append(handle)
        return found

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process and to no other; nothing where it has ended."""
        if self._pidfd < 0:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    async def wait_ended(self) -> int | None:
        """Wait for its end; give the exit code (negative: the signal), None where it was no child."""
        if self._pidfd < 0:
            return None
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        descriptor = os.dup(self._pidfd)  # a reader of its own, so that several may wait
        try:
            loop.add_reader(descriptor, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(descriptor)
        finally:
            os.close(descriptor)
        return self._child.wait() if self._child is not None else None

    async def ended_within(self, timeout_ms: int) -> bool:
        """Wait for its end, at most so long; say whether it has ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_ms / 1000):
                await self.wait_ended()
        return self.has_ended()

    def close(self) -> None:
        """Let go of a process that has ended, or that is none of our business."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        if self._stat >= 0:
            os.close(self._stat)
            self._stat = -1


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What a supervisor writes down of a process that it started, so that a later one can adopt it."""

    pid: int
    start_time: int  # clock ticks since boot, proc(5)
    boot_id: str
    fingerprint: str
    argv: list[str]
    started_at: str

    @classmethod
    def from_json(cls, fields: Any) -> "RunRecord | None":
        """Read a record; None where it isn't one."""
        try:
            return cls(
                pid=int(fields["pid"]),
                start_time=int(fields["start_time"]),
                boot_id=str(fields["boot_id"]),
                fingerprint=str(fields["fingerprint"]),
                argv=[str(argument) for argument in fields["argv"]],
                started_at=str(fields["started_at"]),
            )
        except (KeyError, TypeError, ValueError):
            return None


def find_recorded(record: RunRecord, marker: str) -> ProcessHandle | None:
    """Take hold of the very process of a record, if it is alive; never of one that got its pid later."""
    if record.boot_id != boot_id():
        return None
    handle = ProcessHandle.open(record.pid)
    if handle is None:
        return None
    if handle.start_ticks != record.start_time or read_marker(record.pid) != marker or handle.has_ended():
        handle.close()
        return None
    return handle


def find_marked(
    instance_id: str, name: str | None = None, except_names: frozenset[str] = frozenset()
) -> list[ProcessHandle]:
    """Take hold of all that carry the marker of an installation (of one `name`), and of all their descendants."""
    parents: dict[int, int] = {}
    marked: set[int] = set()
    for pid in _pids():
        stat = _read_stat(pid)
        if stat is None or stat[0] in {"Z", "X"}:
            continue
        parents[pid] = int(stat[1])
        instance, _, marked_name = (read_marker(pid) or "").partition("/")
        if instance == instance_id and name in {None, marked_name} and marked_name not in except_names:
            marked.add(pid)
    # A process may change its environment's memory or be given another one; its parent still tells whose it is.
    ours = {pid for pid in parents if any(ancestor in marked for ancestor in _line(pid, parents))}
    ours -= set(_line(os.getpid(), parents))  # never oneself, nor what started one
    return [handle for pid in ours if (handle := ProcessHandle.open(pid)) is not None]


def names_of_marked(instance_id: str) -> dict[int, str]:
    """Return the name of every process of an installation by its pid: its own mark's, else its nearest ancestor's."""
    parents: dict[int, int] = {}
    marked: dict[int, str] = {}
    for pid in _pids():
        stat = _read_stat(pid)
        if stat is None or stat[0] in {"Z", "X"}:
            continue
        parents[pid] = int(stat[1])
        instance, _, name = (read_marker(pid) or "").partition("/")
        if instance == instance_id:
            marked[pid] = name
    named = {pid: next((marked[one] for one in _line(pid, parents) if one in marked), "") for pid in parents}
    return {pid: name for pid, name in named.items() if name}


async def kill_all(instance_id: str, name: str | None = None, except_names: frozenset[str] = frozenset()) -> int:
    """SIGKILL what carries the marker, until nothing does; give how many there were.

    Rounds are bounded; one is repeated because a process may be starting others while it is looked for.
    """
    killed = 0
    for _ in range(limits.SWEEP_ROUNDS_MAX):
        # In a thread: a machine may run thousands of processes.
        handles = await asyncio.to_thread(find_marked, instance_id, name, except_names)
        if not handles:
            break
        for handle in handles:
            handle.signal(signal.SIGKILL)
        for handle in handles:
            killed += await handle.ended_within(limits.KILL_TIMEOUT_MS)
            handle.close()
    return killed


def read_marker(pid: int) -> str | None:
    """Read the marker from a process's environment; None where there is none or it may not be read."""
    prefix = MARKER.encode() + b"="
    try:
        environment = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return None
    for entry in environment.split(b"\0"):
        if entry.startswith(prefix):
            return entry[len(prefix) :].decode(errors="replace")
    return None


def read_start_ticks(pid: int) -> int | None:
    """Read when a process started, in clock ticks since boot."""
    fields = _read_stat(pid)
    return None if fields is None else int(fields[19])


@cache
def boot_id() -> str:
    """Give what names this boot of the machine."""
    return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _line(pid: int, parents: dict[int, int]) -> Iterator[int]:
    seen: set[int] = set()
    while pid in parents and pid not in seen:
        seen.add(pid)
        yield pid
        pid = parents[pid]


def _pids() -> Iterator[int]:
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            yield int(entry.name)


def _children(pid: int) -> Iterator[int]:
    """Name the children of all threads of a process; none where it has ended."""
    try:
        for task in (_PROC / str(pid) / "task").iterdir():
            yield from map(int, (task / "children").read_text(encoding="ascii").split())
    except OSError:
        return


def _read_name(pid: int) -> str:
    try:
        return (_PROC / str(pid) / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _read_stat(pid: int) -> list[str] | None:
    """Fields of /proc/<pid>/stat from the third (state) on; the second may hold spaces and brackets."""
    try:
        return (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
