"""Makes system calls of a running process slow or fail, with strace's injection; the process itself is not changed.

strace attaches by ptrace(2). That needs CAP_SYS_PTRACE, or the same user where kernel.yama.ptrace_scope is 0; in a
container the capability and a seccomp profile that lets ptrace through. Where it is refused, that is said in words.

A tracer always ends: `timeout` (coreutils) ends it after `seconds_max`, also when the experiment was killed. However it
ends, the kernel lets the traced process go on. Being traced costs by itself, at each system call of all threads:
CONTROL attaches without any injection, so that an experiment can tell that cost from the fault's.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from chaos import limits

_WRITES: Final = "pwrite64,write,ftruncate,fallocate"
_SYNCS: Final = "fdatasync,fsync"


class SystemCallFaultError(Exception):
    """A process can't be traced."""


@dataclass(frozen=True, slots=True)
class SystemCallFault:
    """Which calls are struck, and how; `injection` is strace's, empty for none."""

    calls: str
    injection: str


CONTROL: Final = SystemCallFault(_SYNCS, "")
DISK_FULL: Final = SystemCallFault(_WRITES, "error=ENOSPC")
WRITES_FAIL: Final = SystemCallFault(_WRITES, "error=EIO")
SYNCS_FAIL: Final = SystemCallFault(_SYNCS, "error=EIO")


def slow_syncs(delay_ms: int) -> SystemCallFault:
    """Let each fsync begin so much later."""
    assert 0 < delay_ms <= limits.SYNC_DELAY_MS_MAX
    return SystemCallFault(_SYNCS, f"delay_enter={delay_ms * 1_000}")


class Tracer:
    """One fault on one process and its threads, for calls on `files` only where some are named. Use it by `with`."""

    def __init__(
        self, pid: int, fault: SystemCallFault, *, files: Sequence[Path] = (), seconds_max: int = limits.TRACED_S_MAX
    ) -> None:
        self._pid = pid
        self._fault = fault
        self._files = tuple(files)
        self._seconds_max = seconds_max
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def start(self) -> None:
        """Attach, and wait until all threads are traced. Raises SystemCallFaultError."""
        assert self._process is None, "it was started already"
        strace, timeout = shutil.which("strace"), shutil.which("timeout")
        if strace is None or timeout is None:
            raise SystemCallFaultError("strace is not installed; tools/setup-tests installs it on Debian and Ubuntu")
        tracer = tracer_of(self._pid)
        if tracer:
            raise SystemCallFaultError(f"process {self._pid} is traced by {tracer} already; a process has one tracer")
        command = [timeout, "--kill-after=2", str(self._seconds_max), strace, "-f", "-qq", "-o", "/dev/null"]
        command += ["-e", f"trace={self._fault.calls}"]
        if self._fault.injection:
            command += ["-e", f"inject={self._fault.calls}:{self._fault.injection}"]
        for file in self._files:
            command += ["-P", str(file)]
        command += ["-p", str(self._pid)]
        with tempfile.TemporaryFile() as told:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=told, stderr=told, start_new_session=True
            )
            try:
                self._wait_attached()
            except SystemCallFaultError as error:
                self.end()
                told.seek(0)
                words = told.read().decode(errors="replace").strip()
                raise SystemCallFaultError(f"{error}: {words}. {_permission()}") from error

    def end(self) -> None:
        """Detach; nothing where it ended. The process goes on, whatever its tracer was doing."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()  # `timeout` passes it on, and strace detaches
        try:
            process.wait(limits.TRACER_END_TIMEOUT_MS / 1_000)
        except subprocess.TimeoutExpired:
            for pid in (tracer_of(self._pid), process.pid):
                if pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, 9)
            process.wait()

    def _wait_attached(self) -> None:
        assert self._process is not None
        until = time.monotonic() + limits.TRACER_START_TIMEOUT_MS / 1_000
        while not all(_tracer(task) for task in _tasks(self._pid)):
            if self._process.poll() is not None:
                raise SystemCallFaultError(f"process {self._pid} can't be traced")
            if time.monotonic() > until:
                raise SystemCallFaultError(f"process {self._pid} was not traced in time")
            time.sleep(limits.POLL_INTERVAL_MS / 1_000)


def tracer_of(pid: int) -> int:
    """Give the pid of a process's tracer, 0 for none. Raises SystemCallFaultError where there is no such process."""
    try:
        return _tracer(Path(f"/proc/{pid}"))
    except FileNotFoundError as error:
        raise SystemCallFaultError(f"there is no process {pid}") from error


def store_files(book: Path) -> tuple[Path, ...]:
    """Give the files of a SQLite book that are written: itself and its log."""
    return book, book.with_name(book.name + "-wal")


def _tasks(pid: int) -> list[Path]:
    tasks = list(Path(f"/proc/{pid}/task").glob("[0-9]*"))
    if not tasks:
        raise SystemCallFaultError(f"there is no process {pid}")
    return tasks


def _tracer(task: Path) -> int:
    for line in (task / "status").read_text().splitlines():
        if line.startswith("TracerPid:"):
            return int(line.split()[1])
    raise AssertionError("Linux tells a tracer of each process")


def _permission() -> str:
    return (
        "Tracing needs CAP_SYS_PTRACE, or the same user and kernel.yama.ptrace_scope=0; "
        "a container needs `--cap-add=SYS_PTRACE`"
    )
