"""What may become of cells, and what a new one gets: its name, slot and ports. Pure; fleet.py carries it out."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from control_plane import limits
from control_plane.errors import RefusedError
from control_plane.registry_records import Cell
from control_plane.settings import LOOPBACK, Settings

NAME: Final = "[a-z0-9-]{1,40}"


def first_cells(settings: Settings, created_at: str) -> list[Cell]:
    """Give the cells that the first start makes: those of the settings."""
    advertised = settings.door_advertised_port or settings.door_port
    return [
        Cell(
            name=name,
            slot=index,
            state="active",
            weight=1.0,
            host=LOOPBACK,
            door_port=settings.door_port + index,
            advertised_port=advertised + index,
            metrics_port=settings.metrics_port + index,
            ray_port=settings.ray_port + index,
            cluster_file=str(settings.cluster_file_of(name)) if len(settings.cluster_files) > 1 else "",
            created_at=created_at,
        )
        for index, name in enumerate(settings.cell_names)
    ]


def follow_settings(settings: Settings, cells: Sequence[Cell]) -> list[Cell]:
    """Give those cells of the first start that are to be where the settings say now, and are not yet.

    A later one keeps the ports that it was given. Raises RefusedError where the settings now want these.
    """
    wanted = {cell.name: cell for cell in first_cells(settings, "")}
    later = {
        port: cell.name for cell in cells if cell.name not in wanted and cell.is_running for port in ports_of(cell)
    }
    for first, count in settings.port_rows().values():
        for port in range(first, first + count):
            if port in later:
                raise RefusedError(
                    f"port {port} is that of {later[port]}, which was added",
                    where="the ports in the settings",
                    hint="leave the rows of ports where they were when it was added",
                )
    changed = []
    for cell in cells:
        now = wanted.get(cell.name)
        if now is None or not cell.is_running:
            continue
        moved = replace(now, state=cell.state, weight=cell.weight, slot=cell.slot, created_at=cell.created_at)
        if moved != cell:
            changed.append(moved)
    return changed


def next_cell(
    settings: Settings,
    cells: Sequence[Cell],
    *,
    name: str | None,
    weight: float,
    cluster_file: str,
    created_at: str,
    is_free: Callable[[int], bool],
) -> Cell:
    """Give a cell to add. `is_free` says whether nobody listens on a port now. Raises RefusedError."""
    running = sum(cell.is_running for cell in cells)
    if running >= limits.CELLS_MAX or len(cells) >= limits.CELLS_EVER_MAX:
        raise RefusedError(
            f"there are {running} cells, and were {len(cells)} in all: no more than {limits.CELLS_MAX} at once and "
            f"{limits.CELLS_EVER_MAX} in all are taken",
            hint="remove one, or start another installation",
        )
    slot = max((cell.slot for cell in cells), default=-1) + 1
    name = name or f"cell-{slot}"
    if re.fullmatch(NAME, name) is None:
        raise RefusedError(f"{name!r} is no name of a cell", hint="name it with at most 40 of a-z, 0-9 and -")
    for cell in cells:
        if cell.name == name:
            state = "is there already" if cell.is_running else "was removed; its name is not used again"
            raise RefusedError(f"{name} {state}", hint="choose another name, or none: one is made then")
    _require_cluster_file(settings, cluster_file)
    taken = {port for cell in cells if cell.is_running for port in ports_of(cell)}
    taken |= {port for first, count in settings.port_rows().values() for port in range(first, first + count)}
    ports = []
    for first in (settings.door_port, settings.metrics_port, settings.ray_port):
        ports.append(_next_port(first + settings.cells, taken, is_free))
        taken.add(ports[-1])
    door_port, metrics_port, ray_port = ports
    return Cell(
        name=name,
        slot=slot,
        state="adding",
        weight=weight,
        host=LOOPBACK,
        door_port=door_port,
        advertised_port=door_port,
        metrics_port=metrics_port,
        ray_port=ray_port,
        cluster_file=cluster_file,
        created_at=created_at,
    )


def drained(cell: Cell, cells: Sequence[Cell]) -> Cell:
    """Give the cell as it is to be once new partners go elsewhere. Raises RefusedError."""
    _require_in_use(cell)
    return _checked(replace(cell, state="draining", weight=0.0), cells)


def weighted(cell: Cell, weight: float, cells: Sequence[Cell]) -> Cell:
    """Give the cell with another weight; one that was drained takes partners again. Raises RefusedError."""
    _require_in_use(cell)
    state = "active" if weight > 0 else cell.state
    return _checked(replace(cell, state=state, weight=weight), cells)


def removing(cell: Cell, partners: Sequence[str]) -> Cell:
    """Give the cell on its way out; `partners` are those that are there. Raises RefusedError."""
    if cell.state in {"removing", "removed"}:
        return cell
    if cell.state == "active":
        raise RefusedError(
            f"{cell.name} takes partners: only a drained cell is removed", hint=f"bulkhead cell drain {cell.name}"
        )
    if partners:
        raise RefusedError(
            f"{len(partners)} partners are in {cell.name} still, {min(partners)!r} first",
            hint="move them away: bulkhead rebalance --apply, or bulkhead partner move",
        )
    return replace(cell, state="removing", weight=0.0)


def ports_of(cell: Cell) -> tuple[int, int, int]:
    """Give the ports on which its processes listen."""
    return cell.door_port, cell.metrics_port, cell.ray_port


def _require_in_use(cell: Cell) -> None:
    if not cell.is_in_use:
        raise RefusedError(f"{cell.name} is {cell.state}", hint="see the cells: bulkhead cell list")


def _checked(changed: Cell, cells: Sequence[Cell]) -> Cell:
    others = [cell for cell in cells if cell.name != changed.name]
    if not any(cell.is_in_use and cell.weight > 0 for cell in [*others, changed]):
        raise RefusedError(
            f"{changed.name} is the last cell that takes partners",
            hint="add another one first (bulkhead cell add), or give one a weight (bulkhead cell set-weight)",
        )
    return changed


def _require_cluster_file(settings: Settings, cluster_file: str) -> None:
    if settings.store == "sqlite" and cluster_file:
        raise RefusedError("a cluster file is FoundationDB's, and the store here is SQLite", where="--cluster-file")
    if len(settings.cluster_files) > 1 and not cluster_file:
        raise RefusedError(
            "each cell has a cluster of its own here, so the new one needs one, too",
            where="cluster_files in the settings",
            hint="name its cluster file: --cluster-file",
        )


def _next_port(first: int, taken: set[int], is_free: Callable[[int], bool]) -> int:
    for port in range(first, min(first + limits.CELL_PORTS_TRIED_MAX, 65_536)):
        if port not in taken and is_free(port):
            return port
    raise RefusedError(
        f"no port is free among the {limits.CELL_PORTS_TRIED_MAX} from {first} on",
        where="this machine",
        hint="see what listens there: ss -ltnp",
    )
