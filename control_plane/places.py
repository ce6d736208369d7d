"""Where the books of an installation stand: each cell's, and the control plane's own. Pure: nothing is opened here."""

from typing import Any, Final

from control_plane.data_folder import DataFolder, Instance
from control_plane.registry_records import Cell
from control_plane.settings import Settings

# The directory in a FoundationDB cluster below which each installation has its own.
ROOT: Final = "bulkhead"


def place_of_cell(settings: Settings, folder: DataFolder, instance: Instance, cell: Cell) -> dict[str, Any]:
    """Give where a cell's books stand (stores.shelf)."""
    if settings.store == "sqlite":
        return {"store": "sqlite", "folder": str(folder.cell_folder(cell.name))}
    return {
        "store": "fdb",
        "cluster_file": cell.cluster_file or str(settings.cluster_files[0]),
        "path": [ROOT, instance.data_id, "cells", cell.name],
    }


def place_of_registry(settings: Settings, folder: DataFolder, instance: Instance) -> dict[str, Any]:
    """Give where the control plane's own book stands (registry_keys.BOOK)."""
    if settings.store == "sqlite":
        return {"store": "sqlite", "folder": str(folder.root)}
    return {
        "store": "fdb",
        "cluster_file": str(settings.cluster_file_of_registry),
        "path": [ROOT, instance.data_id],
    }


def describe(place: dict[str, Any], *book: str) -> str:
    """Say where a book stands, for a person."""
    if place["store"] == "sqlite":
        return f"{'/'.join([place['folder'], *book])}.sqlite"
    return f"{'/'.join([*place['path'], *book])} in FoundationDB ({place['cluster_file']})"
