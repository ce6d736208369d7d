"""Where a start finds the registry: its book is made at the first start, imported from the file of before, and opened.

Also looks whether FoundationDB's client and cluster files can be used, before any process is started that needs them.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import structlog

from control_plane import audit_head, audit_key, registry_import, registry_keys
from control_plane.audit_key import AuditKeyFiles
from control_plane.cell_rules import first_cells
from control_plane.data_folder import DataFolder, Instance, require_instance, timestamp
from control_plane.errors import FolderError, InputFileError, SettingsError
from control_plane.places import describe, place_of_cell, place_of_registry
from control_plane.registry import Registry
from control_plane.registry_errors import explain
from control_plane.registry_reading import read_cells, read_partners
from control_plane.registry_records import Cell, Partner
from control_plane.settings import Settings
from stores.contract import StoreClientError, StoreError, StoreExistsError
from stores.shelf import Shelf, open_shelf

log = structlog.get_logger()


async def open_registry(settings: Settings, folder: DataFolder, instance: Instance, *, first_start: bool) -> Registry:
    """Open the registry and own it. Its book is made only at a first start, or to import the file of before.

    Raises ControlPlaneError: it is missing or damaged, its store doesn't answer or can't be used at all.
    """
    place = place_of_registry(settings, folder, instance)
    where = describe(place, *registry_keys.BOOK)
    shelf = _shelf(place)
    # Only SQLite's installations are older than the book.
    has_file_of_before = settings.store == "sqlite" and folder.registry_file_of_before.exists()
    try:
        await shelf.wait_answers()
        if first_start or has_file_of_before:
            await _make(shelf, folder)
        store = await shelf.open(*registry_keys.BOOK)
        try:
            if has_file_of_before:
                await registry_import.run(store, folder.registry_file_of_before, folder.registry_file_imported)
            files = AuditKeyFiles.of(settings, folder)
            found = audit_key.read(files)
            key = found or audit_key.make()
            registry = await Registry.open(store, where, audit_key=key, new=first_start)
            await audit_key.seal(registry, files, key, is_new=found is None)
            await _keep_heads(registry, folder)
            if not registry.cells():  # also where the data is older than cells' rows
                await registry.write_cells(first_cells(settings, timestamp()))
        except BaseException:
            await store.close()
            raise
        else:
            return registry
    except StoreError as error:
        raise explain(error, where) from error


async def read_registered(settings: Settings, folder: DataFolder) -> list[Partner]:
    """Read all partners, whether a control plane runs or not. Raises ControlPlaneError."""
    return await read_partners(*_unowned(settings, folder))


async def read_registered_cells(settings: Settings, folder: DataFolder) -> list[Cell]:
    """Read all cells likewise, the removed ones too. Raises ControlPlaneError."""
    found = await read_cells(*_unowned(settings, folder))
    return found or first_cells(settings, timestamp())  # data that no `up` of this version has opened yet


def _unowned(settings: Settings, folder: DataFolder) -> tuple[Shelf, str]:
    place = place_of_registry(settings, folder, require_instance(folder))
    if settings.store == "sqlite" and folder.registry_file_of_before.exists() and not folder.registry_file.exists():
        raise FolderError(
            "the registry of partners is still that of a version before",
            where=str(folder.registry_file_of_before),
            hint="start it once with this version, which imports it: bulkhead up",
        )
    return _shelf(place), describe(place, *registry_keys.BOOK)


def require_clients(settings: Settings, folder: DataFolder, instance: Instance, cells: Iterable[Cell]) -> None:
    """Say it now where cells' stores can't be used, rather than by doors that end again and again.

    Raises SettingsError: FoundationDB's client library is missing or doesn't fit, or a cluster file is none.
    """
    if settings.store == "fdb":
        places = [place_of_cell(settings, folder, instance, cell) for cell in cells if cell.is_running]
        for place in {place["cluster_file"]: place for place in places}.values():
            _shelf(place)


async def _keep_heads(registry: Registry, folder: DataFolder) -> None:
    """Have the audit log's head kept in its file, unless that knows of an entry that is not there any more.

    Then the file stays as it is and tells on: `audit-log verify` shows it. Payments and partners don't suffer for it.
    """
    file = folder.audit_head_file
    try:
        kept = audit_head.read(file)
    except InputFileError as error:
        log.error("audit_head_unreadable", file=str(file), error=error.what)  # noqa: TRY400 - no bug of ours
        return
    if kept is not None and not await registry.holds(kept):
        log.error("audit_log_not_whole", file=str(file), entry=kept.sequence)
        return
    await registry.keep_heads(partial(audit_head.write, file))


async def _make(shelf: Shelf, folder: DataFolder) -> None:
    try:
        await shelf.create(*registry_keys.BOOK)
    except StoreExistsError:
        return  # a start before this one came so far
    if folder.registry_file.exists():
        try:
            folder.registry_file.chmod(0o600)
        except OSError as error:
            raise FolderError(
                f"the registry can't be kept to this user: {error}", where=str(folder.registry_file), hint="mend that"
            ) from error


def _shelf(place: Mapping[str, Any]) -> Shelf:
    try:
        return open_shelf(place)
    except StoreClientError as error:
        raise SettingsError(
            str(error),
            where=f"cluster_files and control_cluster_file in the settings: {place['cluster_file']}",
            hint='mend that, then `bulkhead up` again; store = "sqlite" with another data_folder needs no FoundationDB',
        ) from error
