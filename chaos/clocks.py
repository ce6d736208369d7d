"""A wall clock that an experiment moves while processes run that read it: a small library, preloaded (moved_clock.c).

Processes that are started with `Clock.environment`, and all that they start, Ray's workers too, see their wall clock
jump when `set_offset_s` says so; CLOCK_MONOTONIC stays the kernel's. A process that was started without can't be moved
later. libfaketime was tried first (0.9.10, Python 3.11): with the monotonic clock left alone time.sleep fails, with it
faked too waits do not end; Ray does not start with either. A time namespace of Linux has no CLOCK_REALTIME.
"""

import mmap
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Final

from chaos import limits

COMPILER: Final = "cc"
_SOURCE: Final = Path(__file__).with_name("moved_clock.c")
_OFFSET: Final = struct.Struct("=q")


class ClockError(Exception):
    """No clock can be moved here."""


class Clock:
    """The offset of these processes' wall clock from the right time, read anew at each look at the clock."""

    def __init__(self, folder: Path) -> None:
        """Begin with the right time. Raises ClockError where the library can't be made."""
        own = folder / "clock"  # all processes look at it, whoever's they are
        own.mkdir(mode=0o755, exist_ok=True)
        library = own / "libmoved_clock.so"
        _compile(library)
        self._file = own / "clock-offset"
        self._file.write_bytes(_OFFSET.pack(0))
        self.environment = {"LD_PRELOAD": str(library), "MOVED_CLOCK_FILE": str(self._file)}

    def set_offset_s(self, seconds: int) -> None:
        """Let the clock jump, for all of them at once."""
        assert abs(seconds) <= limits.CLOCK_OFFSET_S_MAX
        with self._file.open("r+b") as file, mmap.mmap(file.fileno(), _OFFSET.size) as mapped:
            mapped[:] = _OFFSET.pack(seconds)

    def moves(self, pid: int) -> bool:
        """Say whether a process reads this clock."""
        try:
            return str(self._file) in Path(f"/proc/{pid}/maps").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False


def _compile(library: Path) -> None:
    compiler = shutil.which(COMPILER)
    if compiler is None:
        raise ClockError(
            "there is no C compiler (cc) on PATH; gcc is one, on Debian and Ubuntu its package of that name"
        )
    command = [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-o", str(library), str(_SOURCE), "-ldl"]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=limits.COMMAND_TIMEOUT_MS / 1_000
    )
    if done.returncode != 0:
        raise ClockError(f"{_SOURCE} can't be compiled: {done.stderr.strip()[-1_000:]}")
