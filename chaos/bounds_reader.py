"""Reads what `chaos/bounds.py` judges: workers' memory from the kernel, shares from status and the router's metrics.

Each has a thread of its own: a door that is stopped lets its status wait, and neither metrics nor safeguards may.
Changes nothing.
"""

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from chaos import limits
from chaos.bounds import Bound, Reading, room_of
from chaos.installation import Installation
from control_plane.errors import ControlPlaneError

_WORKERS = frozenset({"worker", "pool", "spare"})
_CELL_REQUESTS = "bulkhead_router_cell_requests_running"


class BoundsReader:
    """Reads twice a second from `start` to `stop`. `readings` holds the figures of these partners and their cells."""

    def __init__(self, gateway: Installation, partners: Collection[str]) -> None:
        self._gateway = gateway
        self._partners = frozenset(partners)
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._read_on, args=(read,), name="chaos-bounds", daemon=True)
            for read in (self._read_status, self._read_router)
        ]
        self._cells = 0
        self.readings: list[Reading] = []

    def start(self) -> None:
        """Begin. Raises ControlPlaneError."""
        self._read_status()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End; nothing where it never began."""
        self._over.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _read_on(self, read: Callable[[], None]) -> None:
        while not self._over.wait(limits.CHAOS_BOUNDS_LOOK_MS / 1_000):
            # What can't be asked now is asked at the next look: a fault may have taken it away.
            with contextlib.suppress(ControlPlaneError, httpx.HTTPError):
                read()

    def _read_status(self) -> None:
        status = self._gateway.status()
        self._cells = len(status["cells"])
        self.readings += of_status(status, self._partners, time.monotonic())

    def _read_router(self) -> None:
        text = httpx.get(self._gateway.metrics_url, trust_env=False, timeout=limits.CHAOS_WATCH_MS / 1_000).text
        self.readings += of_router(text, self._cells, time.monotonic())


def of_status(status: dict[str, Any], partners: Collection[str], at_s: float) -> list[Reading]:
    """Give what a status tells of partners' shares, and what the kernel tells of the workers that it names."""
    room = room_of(Bound.PARTNER_COMMANDS, 1)
    found = [
        Reading(at_s, Bound.PARTNER_COMMANDS, row["partner"], row["commands"], room, (row["partner"],))
        for row in status["partners"]
        if row["partner"] in partners and "commands" in row
    ]
    served: dict[str, list[str]] = defaultdict(list)
    for row in status["partners"]:
        served[row.get("worker") or ""].append(row["partner"])
    room = room_of(Bound.WORKER_MEMORY, 1)
    for row in status["processes"]:
        if row["role"] in _WORKERS and row["pid"]:
            with contextlib.suppress(psutil.Error):
                mebibytes = psutil.Process(row["pid"]).memory_info().rss / 2**20
                who = f"{row['process']} ({row['partner'] or row['role']}, pid {row['pid']})"
                theirs = tuple(served.get(row["process"], ()))
                found.append(Reading(at_s, Bound.WORKER_MEMORY, who, mebibytes, room, theirs))
    return found


def of_router(text: str, cells: int, at_s: float) -> Iterator[Reading]:
    """Give what a router's metrics tell of each cell's share."""
    room = room_of(Bound.CELL_REQUESTS, cells)
    for family in text_string_to_metric_families(text):
        if family.name == _CELL_REQUESTS:
            for sample in family.samples:
                yield Reading(at_s, Bound.CELL_REQUESTS, sample.labels["cell"], sample.value, room)
