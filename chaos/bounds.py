"""Bounds that a gateway keeps for itself, held against what it and the kernel tell while a fault lasts. Pure.

Clients see no memory and no share: a bulkhead that is missing may harm nobody yet, and is missing all the same. So each
bound is read beside the run (`chaos/bounds_reader.py`) and judged here.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cells import limits as cell_limits
from cells.api import limits as api_limits
from chaos import limits
from router import limits as router_limits


class Bound(StrEnum):
    """What is read, with its unit."""

    WORKER_MEMORY = "MiB in a worker"
    PARTNER_COMMANDS = "commands of a partner at its door"
    CELL_REQUESTS = "requests of a cell in a router"


@dataclass(frozen=True, slots=True)
class Reading:
    """One figure. `who`: a worker, a partner or a cell. `room`: how much there may be, `value`: how much there is.

    `partners`: whose requests it is of; none where it is a cell, whose partners the reader does not know.
    """

    at_s: float
    bound: Bound
    who: str
    value: float
    room: float
    partners: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Exceeded:
    """A bound that was not kept. It was first seen so at `until_s`, and still kept at `from_s`."""

    who: str
    detail: str
    partners: tuple[str, ...]
    from_s: float
    until_s: float


# A worker that took too much is found by its heartbeat; a share is decided before it is taken.
_LASTING_MS: Final = {
    Bound.WORKER_MEMORY: limits.GOAL_SILENT_FOUND_MS,
    Bound.PARTNER_COMMANDS: 0,
    Bound.CELL_REQUESTS: 0,
}


def room_of(bound: Bound, cells: int) -> float:
    """Give how much there may be, on a gateway of so many cells."""
    match bound:
        case Bound.WORKER_MEMORY:
            return cell_limits.WORKER_RESIDENT_BYTES_MAX / 2**20
        case Bound.PARTNER_COMMANDS:
            return api_limits.DOOR_PARTNER_COMMANDS_MAX
        case Bound.CELL_REQUESTS:
            return router_limits.REQUESTS_MAX // max(1, cells)


def judge(readings: Iterable[Reading], patience: float = 1.0) -> list[Exceeded]:
    """Find what was above its bound for longer than it takes to be found; one finding for each bound and owner."""
    of_each: dict[tuple[Bound, str], list[Reading]] = defaultdict(list)
    for reading in readings:
        of_each[reading.bound, reading.who].append(reading)
    found = []
    for (bound, who), rows in sorted(of_each.items()):
        rows.sort(key=lambda row: row.at_s)
        above = _longest_above(rows)
        if not above:
            continue
        lasted_ms = (above[-1].at_s - above[0].at_s) * 1_000
        if lasted_ms < _LASTING_MS[bound] * patience:
            continue
        most = max(above, key=lambda row: row.value - row.room)
        told = f"{most.value:.0f} {bound} where {most.room:.0f} are its room"
        told += f", for {lasted_ms / 1_000:.1f} s" if lasted_ms else ""
        until_s = above[0].at_s
        from_s = max((row.at_s for row in rows if row.at_s < until_s), default=until_s)
        found.append(Exceeded(who, told, most.partners, from_s, until_s))
    return found


def _longest_above(rows: list[Reading]) -> list[Reading]:
    """Give the longest row of readings without a pause that are above their room."""
    best: list[Reading] = []
    current: list[Reading] = []
    for row in rows:
        current = [*current, row] if row.value > row.room else []
        if current and (not best or current[-1].at_s - current[0].at_s > best[-1].at_s - best[0].at_s):
            best = current
    return best
