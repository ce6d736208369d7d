"""Whether partners' workers fit into this machine's memory, before it is too late to ask."""

from pathlib import Path
from typing import Final

import psutil

from control_plane import limits
from control_plane.errors import RefusedError
from control_plane.process_table import find_marked

_CGROUP: Final = Path("/sys/fs/cgroup")


def available_bytes(cgroup: Path = _CGROUP) -> int:
    """Give what can still be used without swapping: of the machine, or of the container where that is less."""
    available: int = psutil.virtual_memory().available
    try:
        limit = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
        inside = dict(line.split() for line in (cgroup / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return available  # no cgroup of version 2: the machine's own figure counts
    if limit == "max":
        return available
    reclaimable = int(inside.get("inactive_file", 0))
    return min(available, max(int(limit) - used + reclaimable, 0))


def bytes_of_instance(instance_id: str) -> int:
    """Give what an installation's processes use by themselves: it needn't fit a second time."""
    total = 0
    for handle in find_marked(instance_id):
        try:
            total += psutil.Process(handle.pid).memory_full_info().uss
        except psutil.Error:
            continue  # it ended meanwhile
        finally:
            handle.close()
    return total


def require_room(*, dedicated: int, pooled: int, spares: int, cells: int, available: int) -> None:
    """Refuse to start what would not fit. `available` counts what our running processes hold. Raises RefusedError."""
    pools = 0 if not pooled else -(-pooled // limits.POOL_PARTNERS_MAX) + cells - 1  # the last of a cell is not full
    needed = (
        (dedicated + min(pools, pooled) + spares) * limits.WORKER_MEMORY_BYTES
        + pooled * limits.POOLED_PARTNER_MEMORY_BYTES
        + cells * limits.CELL_MEMORY_BYTES
    )
    if needed > available:
        raise RefusedError(
            f"{dedicated} partners with a dedicated worker each, {pooled} pooled ones, {spares} spares and {cells} "
            f"cells need about {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are available",
            where="this machine",
            hint="run on a larger machine, or with fewer cells and spares, or pool quiet partners where there is room: "
            "bulkhead partner pool",
        )


def require_room_for_more(dedicated: int, pooled: int, available: int) -> None:
    """Refuse more partners whose workers, or shares of some, would not fit. Raises RefusedError."""
    pools = pooled // limits.POOL_PARTNERS_MAX  # the first may find its place in one that is there
    needed = (dedicated + pools) * limits.WORKER_MEMORY_BYTES + pooled * limits.POOLED_PARTNER_MEMORY_BYTES
    if available < needed:
        raise RefusedError(
            f"{dedicated} more dedicated partners and {pooled} pooled ones need about {needed / 1e6:.0f} MB of memory, "
            f"{available / 1e6:.0f} MB are available",
            where="this machine",
            hint="run on a larger machine, or pool partners: bulkhead partner pool",
        )
