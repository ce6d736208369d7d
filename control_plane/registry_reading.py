"""Reads the registry's book: everything that is held in memory, or partners and cells alone without owning it."""

from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from control_plane import audit_chain, limits, registry_codec, registry_keys
from control_plane.audit_chain import Head
from control_plane.errors import FolderError
from control_plane.registry_draft import Held
from control_plane.registry_errors import explain, not_whole
from control_plane.registry_records import Cell, Partner
from stores import contract
from stores.contract import Entry, Range, Store, StoreCorruptError, StoreError
from stores.shelf import Shelf

_T = TypeVar("_T")


async def read_partners(shelf: Shelf, where: str) -> list[Partner]:
    """Read the partners without owning the registry, which a control plane may hold. Raises ControlPlaneError."""
    return await _read_unowned(shelf, registry_keys.partners, limits.PARTNERS_MAX, where, registry_codec.decode_partner)


async def read_cells(shelf: Shelf, where: str) -> list[Cell]:
    """Read the cells likewise, in the order in which they came. Raises ControlPlaneError."""
    cells = await _read_unowned(shelf, registry_keys.cells, limits.CELLS_EVER_MAX, where, registry_codec.decode_cell)
    return sorted(cells, key=lambda cell: cell.slot)


async def _read_unowned(
    shelf: Shelf,
    of: Callable[[contract.Key | None, int], Range],
    at_most: int,
    where: str,
    decode: Callable[[Entry], _T],
) -> list[_T]:
    try:
        store = await shelf.open(*registry_keys.BOOK)
        try:
            (value,) = (await store.read([registry_keys.ORIGIN])).values
            if registry_codec.decode_origin(value) is None:
                raise not_whole(where)
            return [decode(entry) async for entry in rows(store, of, at_most, where)]
        finally:
            await store.close()
    except StoreError as error:
        raise explain(error, where) from error


async def load(store: Store, where: str, audit_key: bytes) -> Held:
    """Read everything but the changes, a page at a time."""
    found = await store.read([registry_keys.OWNER, registry_keys.DIRECTORY], [registry_keys.newest_change()])
    held = Held(
        owner=registry_codec.decode_owner(found.values[0]),
        directory_version=registry_codec.decode_directory_version(found.values[1]),
    )
    for entry in found.ranges[0]:
        newest = registry_codec.decode_change(entry.value)
        held.head = Head(newest.sequence, audit_chain.digest(newest, audit_key))
        held.is_sealed = newest.keyed
    async for entry in rows(store, registry_keys.partners, limits.PARTNERS_MAX, where):
        partner = registry_codec.decode_partner(entry)
        held.partners[partner.id] = partner
    async for entry in rows(store, registry_keys.cells, limits.CELLS_EVER_MAX, where):
        cell = registry_codec.decode_cell(entry)
        held.cells[cell.name] = cell
    async for entry in rows(store, registry_keys.keys, limits.KEYS_MAX, where):
        key = registry_codec.decode_key(entry)
        if key.partner_id not in held.partners:
            raise StoreCorruptError(f"key {key.id!r} is of no partner")
        held.keys.setdefault(key.partner_id, {})[key.id] = key
    async for entry in rows(store, registry_keys.operators, limits.OPERATORS_MAX, where):
        operator = registry_codec.decode_operator(entry)
        held.operators[operator.id] = operator
    async for entry in rows(store, registry_keys.approvals, limits.APPROVALS_MAX, where):
        approval = registry_codec.decode_approval(entry)
        held.approvals[approval.id] = approval
    async for entry in rows(store, registry_keys.moves, limits.PARTNERS_MAX, where):
        move = registry_codec.decode_move(entry)
        held.moves[move.partner_id] = move
    async for entry in rows(store, registry_keys.burials, limits.BURIALS_MAX, where):
        burial = registry_codec.decode_burial(entry)
        held.burials[burial.cell, burial.partner_id] = burial
    async for entry in rows(store, registry_keys.notices, limits.NOTICES_MAX, where):
        notice = registry_codec.decode_notice(entry)
        held.notices.setdefault(notice.partner_id, {})[notice.sequence] = notice
    async for entry in rows(store, registry_keys.deletions, limits.DELETIONS_MAX, where):
        deletion = registry_codec.decode_deletion(entry)
        held.deletions[deletion.partner_id] = deletion
    return held


async def rows(
    store: Store, of: Callable[[contract.Key | None, int], Range], at_most: int, where: str
) -> AsyncIterator[Entry]:
    """Give all rows of a kind, a page at a time. Raises StoreError, FolderError where they are too many."""
    after: contract.Key | None = None
    count = 0
    while True:
        (page,) = (await store.read([], [of(after, limits.REGISTRY_PAGE_ROWS)])).ranges
        for entry in page:
            yield entry
        count += len(page)
        if count > at_most:
            raise FolderError(
                f"the registry holds more than the {at_most} rows of a kind that this version takes",
                where=where,
                hint="run the version of Bulkhead that wrote it, or a newer one",
            )
        if len(page) < limits.REGISTRY_PAGE_ROWS:
            return
        after = page[-1].key
