"""The environment of every process of a cell's Ray: a token, loopback only, and as little else as possible.

It has to be set before Ray is imported, so it imports Ray only where it is checked.
"""

from pathlib import Path
from typing import Final

from cells import limits

LOOPBACK: Final = "127.0.0.1"


class RayUnknownError(Exception):
    """This version of Ray is built otherwise than known, and would listen on an outside address, say."""


def ray_environment(token_file: Path) -> dict[str, str]:
    """Return the environment of every process of a cell's cluster."""
    return {
        # Whatever address is named, Ray puts the machine's outside address in its place and listens on all interfaces;
        # but not where it builds no clusters of several machines. A stranger who reaches a port of Ray ends it, with a
        # token or without: an empty stream to RaySyncer/StartSync aborts the GCS before it looks at the token.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token_file.read_text().strip(),
        # The GCS is started again when it dies (ray_gcs.py); its clients wait for it and end where it stays away.
        "RAY_gcs_rpc_server_reconnect_timeout_s": str(limits.GCS_RECONNECT_TIMEOUT_S),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_metrics_collection": "0",
        "RAY_enable_open_telemetry": "0",
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
        "RAY_memory_monitor_refresh_ms": "0",
        # Nothing of ours is placed by resources, kept in the object store or spilled: looked at now and then is enough.
        "RAY_raylet_report_resources_period_milliseconds": "2000",
        "RAY_gcs_pull_resource_loads_period_milliseconds": "10000",
        "RAY_report_worker_backlog_interval_ms": "10000",
        "RAY_object_manager_timer_freq_ms": "10000",
        "RAY_local_fs_monitor_interval_ms": "10000",
        "RAY_kill_idle_workers_interval_ms": "5000",
        "RAY_task_events_report_interval_ms": "0",
        "RAY_event_stats": "0",
        # 15 unless said, which is next to nothing beside a busy door; workers choose theirs (worker_limits.py).
        "RAY_worker_niceness": "0",
    }


def require_loopback() -> None:
    """Raise RayUnknownError where this process's Ray would not keep the loopback address. Imports Ray."""
    from ray._private import services  # noqa: PLC0415 - the environment comes first

    try:
        kept = services.resolve_ip_for_localhost(LOOPBACK)
    except AttributeError as error:
        raise RayUnknownError(f"this version of Ray is built otherwise than known: {error}") from error
    if kept != LOOPBACK:
        raise RayUnknownError(f"this version of Ray listens on {kept} where {LOOPBACK} is asked for")
