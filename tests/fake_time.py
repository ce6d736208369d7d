"""A wall clock that a test sets, for one process and its children: libfaketime (Debian's package faketime), preloaded.

Only the wall clock is moved, as by an operator or a broken NTP server: CLOCK_MONOTONIC is the kernel's. A time
namespace of Linux can't do this (it has no CLOCK_REALTIME), and setting the machine's clock would be everybody's.
Python's own time.sleep fails under libfaketime 0.9.10 (EINVAL), so Ray can't run under it; ours wait otherwise.
"""

from pathlib import Path
from typing import Final

import pytest

_LIBRARIES: Final = "/usr/lib/*-linux-gnu/faketime/libfaketimeMT.so.1"


class FakeTime:
    """The offset of a process's wall clock from the right time, read anew at each look at the clock."""

    def __init__(self, folder: Path) -> None:
        found = sorted(Path("/").glob(_LIBRARIES.lstrip("/")))
        if not found:
            pytest.skip("libfaketime is not installed; `make test` installs it on Debian and Ubuntu")
        self._file = folder / "faketime"
        self.set_offset_s(0)
        self.environment = {
            "LD_PRELOAD": str(found[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set_offset_s(self, seconds: int) -> None:
        """Let the clock jump. The file is replaced as a whole: half of it would be another time."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}")
        fresh.replace(self._file)
