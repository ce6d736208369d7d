"""What this process holds: memory, threads, files. What it may hold is in worker_limits.py.

Memory and threads are read through files that stay open (proc(5), statm and stat), so that they can be told when no
further file can be opened.
"""

import os
import resource
from pathlib import Path
from typing import Final

_THREADS: Final = 17  # the field of stat, behind the name in parentheses
_RESIDENT_PAGES: Final = 1  # the field of statm
_STAT_BYTES_MAX: Final = 1_024
_PAGE_BYTES: Final = resource.getpagesize()


class ProcessUse:
    """What the process that made it holds. Each question costs some microseconds."""

    def __init__(self) -> None:
        self._stat = os.open("/proc/self/stat", os.O_RDONLY | os.O_CLOEXEC)
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Give back the files."""
        os.close(self._stat)
        os.close(self._statm)

    def resident_bytes(self) -> int:
        """Give what of the process is in memory."""
        return int(os.pread(self._statm, _STAT_BYTES_MAX, 0).split()[_RESIDENT_PAGES]) * _PAGE_BYTES

    def threads(self) -> int:
        """Give how many threads there are, Ray's included."""
        return int(os.pread(self._stat, _STAT_BYTES_MAX, 0).rpartition(b")")[2].split()[_THREADS])

    def is_out_of_files(self) -> bool:
        """Say whether no further file can be opened. It tries: to count them would need one."""
        try:
            os.close(os.dup(self._stat))
        except OSError:
            return True
        return False


def data_bytes() -> int:
    """Give what counts against RLIMIT_DATA: writable memory of its own, the stacks of its threads included."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name == "VmData":
            return int(value.split()[0]) * 1_024
    raise AssertionError("proc(5) has no VmData")


def open_files() -> int:
    """Count the files that are open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
