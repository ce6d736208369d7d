"""FoundationDB's machine-readable status as the few numbers that tell whether it is well. Pure: JSON to samples.

Any field may be missing at any time (https://apple.github.io/foundationdb/mr-status.html): what is not there, or is of
another type, gives no sample. It never gives a zero.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from stores.health import Sample

# What a label may hold of a text that comes from the cluster.
_NAME: Final = re.compile(r"[a-z0-9_]{1,64}")
_NOT_LIMITED: Final = "workload"
_RECOVERED: Final = "fully_recovered"


def unreachable() -> list[Sample]:
    """Give what is known of a cluster that did not tell its status."""
    return [_reachable(reachable=False)]


def samples_of(status: Mapping[str, Any]) -> list[Sample]:
    """Give the samples of a status."""
    return list(_samples(status))


def _samples(status: Mapping[str, Any]) -> Iterator[Sample]:
    # The client made this status and says in it whom it reached: without a quorum there is no cluster's part.
    yield _reachable(reachable=_at(status, "client", "coordinators", "quorum_reachable") is not False)
    for name, meaning, path in _NUMBERS:
        value = _number(_at(status, *path))
        if value is not None:
            yield Sample(name, meaning, value)
    yield from _named(
        "fdb_limited",
        "1 while Ratekeeper holds transactions back, and for what; 0 under `workload`.",
        "reason",
        _at(status, "cluster", "qos", "performance_limited_by", "name"),
        lambda name: name != _NOT_LIMITED,
    )
    yield from _named(
        "fdb_recovered",
        "1 where the cluster's last recovery has come to its end, and where it stands else.",
        "state",
        _at(status, "cluster", "recovery_state", "name"),
        lambda name: name == _RECOVERED,
    )
    yield from _processes(status)


def _reachable(*, reachable: bool) -> Sample:
    return Sample("fdb_reachable", "Whether the cluster told its status at the last poll.", float(reachable))


# Booleans count as 0 and 1.
_NUMBERS: Final[tuple[tuple[str, str, tuple[str, ...]], ...]] = (
    ("fdb_available", "Whether the cluster takes transactions.", ("client", "database_status", "available")),
    (
        "fdb_cluster_file_current",
        "Whether the cluster file names the coordinators of now; 0: it can't be written.",
        ("client", "cluster_file", "up_to_date"),
    ),
    ("fdb_locked", "Whether the database is locked.", ("cluster", "database_lock_state", "locked")),
    (
        "fdb_transactions_per_second_limit",
        "What Ratekeeper lets begin a second, of all clients.",
        ("cluster", "qos", "transactions_per_second_limit"),
    ),
    (
        "fdb_storage_queue_bytes_max",
        "The longest queue of a storage server.",
        ("cluster", "qos", "worst_queue_bytes_storage_server"),
    ),
    (
        "fdb_storage_durability_lag_seconds_max",
        "How far the slowest storage server's disk is behind.",
        ("cluster", "qos", "worst_durability_lag_storage_server", "seconds"),
    ),
    (
        "fdb_log_queue_bytes_max",
        "The longest queue of a transaction log.",
        ("cluster", "qos", "worst_queue_bytes_log_server"),
    ),
    (
        "fdb_zone_failures_tolerated",
        "How many more zones may fail before the cluster stops.",
        ("cluster", "fault_tolerance", "max_zone_failures_without_losing_availability"),
    ),
    ("fdb_generation", "Rises with each recovery of the cluster.", ("cluster", "generation")),
)


def _named(name: str, meaning: str, label: str, told: Any, holds: Any) -> Iterator[Sample]:
    if isinstance(told, str) and _NAME.fullmatch(told):
        yield Sample(name, meaning, float(holds(told)), {label: told})


def _processes(status: Mapping[str, Any]) -> Iterator[Sample]:
    processes = _at(status, "cluster", "processes")
    if isinstance(processes, dict):
        known = [process for process in processes.values() if isinstance(process, dict)]
        for state, count in (
            ("known", len(known)),
            ("excluded", sum(process.get("excluded") is True for process in known)),
            ("degraded", sum(process.get("degraded") is True for process in known)),
            ("complaining", sum(bool(process.get("messages")) for process in known)),
        ):
            yield _processes_in(state, count)
        shares = [share for process in known if (share := _free_share(process)) is not None]
        if shares:
            yield Sample("fdb_free_disk_share_min", "The share that is free of the fullest disk.", min(shares))
    messages = _at(status, "cluster", "messages")
    if isinstance(messages, list):
        yield _processes_in("unreachable", sum(map(_unreachable_in, messages)))


def _processes_in(state: str, count: int) -> Sample:
    return Sample("fdb_processes", "Processes of the cluster.", float(count), {"state": state})


def _unreachable_in(message: Any) -> int:
    gone = message.get("unreachable_processes") if isinstance(message, dict) else None
    return len(gone) if isinstance(gone, list) else 0


def _free_share(process: Mapping[str, Any]) -> float | None:
    free, total = (_number(_at(process, "disk", name)) for name in ("free_bytes", "total_bytes"))
    return None if free is None or not total else free / total


def _at(value: Any, *path: str) -> Any:
    for name in path:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
