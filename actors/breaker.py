"""A circuit breaker, as pure state: after enough failures in a row nothing new is tried for a while, then a few probes.

Closed: all may go. Open: nothing, until BREAKER_OPEN_MS have passed. Half-open: BREAKER_PROBES at a time; one success
closes it, one failure opens it again.
"""

from collections.abc import Set as AbstractSet

from actors import limits
from actors.bulkheads import ALL_ON, Bulkhead


class Breaker:
    """One partner's breaker towards one acquirer. Time is an argument, monotonic, in milliseconds."""

    def __init__(self, bulkheads_off: AbstractSet[Bulkhead] = ALL_ON) -> None:
        self._is_off = Bulkhead.BREAKER in bulkheads_off
        self._failures = 0
        self._opened_ms: int | None = None
        self._probes = 0

    def state(self, now_ms: int) -> str:
        """Give closed, open or half_open."""
        if self._opened_ms is None or self._is_off:
            return "closed"
        return "open" if now_ms - self._opened_ms < limits.BREAKER_OPEN_MS else "half_open"

    def allows(self, now_ms: int) -> bool:
        """Say whether a call may begin now."""
        state = self.state(now_ms)
        return state == "closed" or (state == "half_open" and self._probes < limits.BREAKER_PROBES)

    def begin(self, now_ms: int) -> None:
        """Take note that a call begins."""
        if self.state(now_ms) == "half_open":
            self._probes += 1

    def succeed(self) -> None:
        """Take note that the acquirer answered, whatever it said."""
        self._failures = 0
        self._opened_ms = None
        self._probes = 0

    def give_up(self) -> None:
        """Take note that a call ended without having told anything; a probe's place is free again."""
        self._probes = max(self._probes - 1, 0)

    def fail(self, now_ms: int) -> None:
        """Take note that no final answer came."""
        self._failures += 1
        if self.state(now_ms) == "half_open" or (
            self._opened_ms is None and self._failures >= limits.BREAKER_FAILURES_TO_OPEN
        ):
            self._opened_ms = now_ms
            self._probes = 0
