"""A wall clock that an experiment moves while its process runs: libfaketime (Debian's package faketime), preloaded.

Possible: our own processes whose waits are asyncio's, a worker and a router, started with `Clock.environment` by
whoever starts them; their wall clock then jumps by an hour and back, and CLOCK_MONOTONIC stays the kernel's. A process
that was started without can't be moved later. Not possible with libfaketime 0.9.10, tried on Python 3.11: a whole
gateway, or anything of Ray. With the monotonic clock left alone, time.sleep fails (clock_nanosleep: EINVAL), whatever
FAKETIME_FORCE_MONOTONIC_FIX says; with it faked too, time.sleep works, but a wait of 0.2 s on a threading.Condition had
not ended after 10 s. A time namespace of Linux has no CLOCK_REALTIME, and the machine's clock is everybody's.
"""

from pathlib import Path
from typing import Final

from chaos import limits

_LIBRARIES: Final = "usr/lib/*-linux-gnu/faketime/libfaketimeMT.so.1"


class ClockError(Exception):
    """No clock can be moved here."""


class Clock:
    """The offset of a process's wall clock from the right time, read anew at each look at the clock."""

    def __init__(self, folder: Path) -> None:
        """Begin with the right time. Raises ClockError where libfaketime is not installed."""
        found = sorted(Path("/").glob(_LIBRARIES))
        if not found:
            raise ClockError("libfaketime is not installed; tools/setup-tests installs it on Debian and Ubuntu")
        self._file = folder / "clock-offset"
        self.set_offset_s(0)
        self.environment = {
            "LD_PRELOAD": str(found[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set_offset_s(self, seconds: int) -> None:
        """Let the clock jump. The file is replaced as a whole: half of it would be another time."""
        assert abs(seconds) <= limits.CLOCK_OFFSET_S_MAX
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}")
        fresh.replace(self._file)
