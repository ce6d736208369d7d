"""A partner's time: as the wall clock says, but never backwards, and never standing still.

Between looks it advances with the monotonic clock, so a wall clock that jumps back stops nothing; a jump forward is
taken over, since it can't be told from a machine that slept. A committed floor carries it across restarts.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """Where time comes from."""

    def wall_ms(self) -> int:
        """Give Unix time in milliseconds."""

    def monotonic_ms(self) -> int:
        """Give milliseconds since some start, never backwards."""


class SystemClock:
    """The machine's clocks."""

    def wall_ms(self) -> int:
        """Give Unix time in milliseconds."""
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        """Give milliseconds since some start, never backwards."""
        return time.monotonic_ns() // 1_000_000


class PartnerTime:
    """The time that one partner's decisions use."""

    def __init__(self, clock: Clock, floor_ms: int) -> None:
        self._clock = clock
        self._now_ms = max(clock.wall_ms(), floor_ms)
        self._looked_ms = clock.monotonic_ms()

    def now_ms(self) -> int:
        """Give Unix time in milliseconds, at least as late as ever before."""
        looked_ms = self._clock.monotonic_ms()
        advanced_ms = self._now_ms + looked_ms - self._looked_ms
        self._looked_ms = looked_ms
        self._now_ms = max(self._clock.wall_ms(), advanced_ms)
        return self._now_ms
