"""Whose commands made a worker grow: counted by the worker, judged by its door when the worker holds too much.

What is decided when a worker is ended says little: a slow leak is found between two of its commands, or
under somebody else's. So each partner's batches are weighed, and the heaviest partner stands in the worker's mark.
"""

import contextlib
from collections.abc import Callable, Iterator

from cells import limits
from cells.poison import Growth, Mark


class GrowthLedger:
    """The worker's side: by how much the process grew while each partner's batches were decided."""

    def __init__(self, resident_bytes: Callable[[], int], tell: Callable[[Growth], None]) -> None:
        self._resident_bytes = resident_bytes
        self._tell = tell
        self._grown: dict[str, int] = {}

    @contextlib.contextmanager
    def weighed(self, partner_id: str) -> Iterator[None]:
        """Count to the partner by how much the process grows meanwhile. Nothing else may run in it."""
        before = self._resident_bytes()
        try:
            yield
        finally:
            grown = self._resident_bytes() - before
            if grown:
                self._grown[partner_id] = self._grown.get(partner_id, 0) + grown
                self._tell_heaviest()

    def forget(self, partner_id: str) -> None:
        """Let go of a partner that went elsewhere."""
        if self._grown.pop(partner_id, None) is not None:
            self._tell_heaviest()

    def _tell_heaviest(self) -> None:
        heaviest = max(self._grown, key=self._grown.__getitem__, default="")
        self._tell(Growth(heaviest, max(self._grown.get(heaviest, 0), 0)))


def accused(executing: Mark | None, growth: Growth | None) -> Mark | None:
    """Give who is to be held to account for a worker that held too much: a partner, and its command if it was that.

    Nobody's where nothing is known. Who grew little is accused only where there is no better suspect: what follows at
    the first time is a worker of its own for a while, which harms no innocent.
    """
    grown = None if growth is None else Mark("", growth.partner_id)
    if growth is not None and growth.resident_bytes >= limits.WORKER_GROWTH_SUSPECT_BYTES:
        return grown
    return executing or grown
