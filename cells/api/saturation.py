"""How full a process is: the lag of its event loop and its share of one core, for Prometheus and for heartbeats.

A process near one core, or with a lag of tens of milliseconds, is what limits the gateway (USE: saturation).
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Gauge

INTERVAL_MS: Final = 500


class Saturation:
    """Looks at this process twice a second; costs some tens of microseconds each time."""

    def __init__(
        self, part: str, registry: CollectorRegistry, turned: Callable[[float], None] = lambda _: None
    ) -> None:
        self._lag = Gauge(
            f"bulkhead_{part}_loop_lag_seconds_max",
            "How late the event loop came round, at its worst within the last second.",
            registry=registry,
        )
        self._cpu = Gauge(
            f"bulkhead_{part}_cpu_cores_max", "Share of one core used during the last second.", registry=registry
        )
        self._turned = turned
        self._worst_seconds = 0.0
        self._last_seconds = 0.0
        self.late_ms = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._looked = time.monotonic()
        self._used = time.process_time()

    def start(self) -> None:
        """Begin to look."""
        self._due = time.monotonic()
        self._look()

    def stop(self) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        now = time.monotonic()
        self._turned(now)
        late_seconds = now - self._due
        self._worst_seconds = max(self._worst_seconds, late_seconds)
        # What lasted over two looks: one pause (a stopped process, a collection of garbage) is over when it is seen.
        self.late_ms = min(self._last_seconds, late_seconds) * 1_000
        self._last_seconds = late_seconds
        if now - self._looked >= 1:
            self._lag.set(self._worst_seconds)
            self._worst_seconds = 0.0
            used = time.process_time()
            self._cpu.set((used - self._used) / (now - self._looked))
            self._looked, self._used = now, used
        self._due = now + INTERVAL_MS / 1_000
        self._timer = asyncio.get_running_loop().call_later(INTERVAL_MS / 1_000, self._look)
