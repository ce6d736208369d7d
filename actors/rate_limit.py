"""GCRA, the generic cell rate algorithm (ITU-T I.371), as a pure function of one stored instant.

Its weakness: after a full burst the rate is smooth, so a partner that saved nothing waits one interval for each
payment. A stored instant later than now + burst is none that these limits could have left: a clock jumped back, or the
burst was made smaller. It counts as a burst but for one, so that one is let in, which stores a right one: nobody is
locked out.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Admitted:
    """One more is let in. Store `arrival_us`. `remaining` more would be let in now."""

    arrival_us: int
    remaining: int
    reset_us: int


@dataclass(frozen=True, slots=True)
class Limited:
    """Too many. Nothing changes; ask again in `retry_after_us`."""

    retry_after_us: int
    reset_us: int


def admit(arrival_us: int, now_us: int, per_second: int, burst: int) -> Admitted | Limited:
    """Decide on one more at `now_us`, where `arrival_us` is the theoretical arrival time stored last (0: none)."""
    interval_us = max(1_000_000 // per_second, 1)
    tolerance_us = burst * interval_us
    base_us = now_us + _waiting_us(arrival_us, now_us, tolerance_us, interval_us)
    next_us = base_us + interval_us
    excess_us = next_us - now_us - tolerance_us
    if excess_us > 0:
        return Limited(excess_us, base_us - now_us)
    return Admitted(next_us, -excess_us // interval_us, next_us - now_us)


def remaining(arrival_us: int, now_us: int, per_second: int, burst: int) -> tuple[int, int]:
    """Give how many would be let in now, and the microseconds until the whole burst is there again."""
    interval_us = max(1_000_000 // per_second, 1)
    tolerance_us = burst * interval_us
    waiting_us = _waiting_us(arrival_us, now_us, tolerance_us, interval_us)
    return (tolerance_us - waiting_us) // interval_us, waiting_us


def _waiting_us(arrival_us: int, now_us: int, tolerance_us: int, interval_us: int) -> int:
    waiting_us = max(arrival_us - now_us, 0)
    return waiting_us if waiting_us <= tolerance_us else tolerance_us - interval_us
