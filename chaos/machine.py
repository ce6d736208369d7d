"""The machine under an experiment: what it is, and how much of it went to programs that have no part in it."""

import contextlib
import os
import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import psutil


def describe() -> dict[str, Any]:
    """Name what the figures of a report depend on."""
    return {
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


@dataclass(frozen=True, slots=True)
class Reading:
    """CPU time spent up to a moment, in seconds: by all, and by each of our processes."""

    at_s: float
    all_s: float
    ours_s: dict[psutil.Process, float]


def read(ours: Iterable[psutil.Process]) -> Reading:
    """Read how much CPU time was spent so far. Our own process counts as ours."""
    times = psutil.cpu_times()
    spent: dict[psutil.Process, float] = {}
    for process in {*ours, psutil.Process()}:
        with contextlib.suppress(psutil.NoSuchProcess):
            used = process.cpu_times()
            spent[process] = used.user + used.system
    all_s = sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))
    return Reading(time.monotonic(), all_s, spent)


def others_cores(before: Reading, after: Reading) -> float:
    """Give how many cores others used between two readings. What ended in between counts as theirs, a little."""
    ours_s = sum(spent_s - before.ours_s.get(process, 0.0) for process, spent_s in after.ours_s.items())
    return max((after.all_s - before.all_s - ours_s) / (after.at_s - before.at_s), 0.0)
