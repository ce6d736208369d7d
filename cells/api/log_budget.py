"""Keeps a flood of one kind of event from flooding the log: so many lines a second, the rest counted."""

import time
from collections.abc import Callable

import structlog

from cells.api import limits


class LogBudget:
    """Writes at most LOG_LINES_PER_SECOND_MAX lines of an event a second; the next one tells how many it left out."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._log = structlog.get_logger()
        self._windows: dict[str, tuple[int, int, int]] = {}  # event -> second, lines, left out

    def warning(self, event: str, **fields: object) -> None:
        """Write the event, or count it; `exc_info=True` adds the exception that is being handled.

        The names of events are literals in our code, so their number is bounded.
        """
        second = int(self._now())
        window, lines, left_out = self._windows.get(event, (second, 0, 0))
        if window != second:
            window, lines = second, 0
        if lines >= limits.LOG_LINES_PER_SECOND_MAX:
            self._windows[event] = (window, lines, left_out + 1)
            return
        if left_out:
            fields["left_out"] = left_out
        self._windows[event] = (window, lines + 1, 0)
        self._log.warning(event, **fields)
