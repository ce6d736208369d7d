"""Failed authentications, counted by client address: past the bound the answer is a 429 instead of a 401.

A good key is never turned away, whatever came from its address before: it is looked at first. So this tells a guesser,
and whoever watches, that guessing is noticed; what makes guessing hopeless is the length of the keys.
"""

import time
from collections.abc import Callable

from router import limits


class FailedAuthentications:
    """Counts failures in windows; the table is bounded, the address that came first gives its place."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._windows: dict[str, tuple[float, int]] = {}  # address -> end of the window, failures in it

    def __len__(self) -> int:
        return len(self._windows)

    def note(self, address: str) -> int | None:
        """Count one failure; give the time in ms until the window ends where there were too many, None otherwise."""
        now = self._now()
        ends, count = self._windows.get(address, (0.0, 0))
        if now >= ends:
            self._windows.pop(address, None)
            ends, count = now + limits.FAILED_AUTHENTICATIONS_WINDOW_MS / 1_000, 0
            if len(self._windows) >= limits.FAILED_AUTHENTICATION_ADDRESSES_MAX:
                del self._windows[next(iter(self._windows))]
        self._windows[address] = ends, count + 1
        return self.wait_ms(address) if count >= limits.FAILED_AUTHENTICATIONS_MAX else None

    def wait_ms(self, address: str) -> int | None:
        """Give the time in ms until the window ends where there were as many as may be; counts nothing."""
        ends, count = self._windows.get(address, (0.0, 0))
        if count < limits.FAILED_AUTHENTICATIONS_MAX:
            return None
        left_s = ends - self._now()
        return max(1, round(left_s * 1_000)) if left_s > 0 else None
