"""The control plane's own data: partners, hashes of keys, cells, the directory's version, who changed what and when.

All but the changes is held in memory, so reading it asks nobody and goes on while the store is away. A write is one
commit of the store; memory follows it. One control plane owns the book, by the store's epoch and a row that names it:
one that was taken over can't write any more. No key, only its hash, is ever in it. Keys: registry_keys.py.
"""

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import structlog

from control_plane import limits, registry_codec, registry_keys
from control_plane.api_keys import ApiKey
from control_plane.data_folder import timestamp
from control_plane.errors import (
    FolderError,
    NotFoundError,
    RefusedError,
    RegistryError,
    RegistryLostError,
    RegistryUnknownError,
)
from control_plane.move_record import Move
from control_plane.registry_errors import AGAIN, explain, lost, not_whole
from control_plane.registry_records import ISOLATIONS, NEW, Cell, Change, Key, Origin, Owner, Partner
from stores import contract
from stores.contract import (
    Check,
    CommitUnknownError,
    ConflictError,
    Entry,
    FencedError,
    Put,
    Range,
    Store,
    StoreCorruptError,
    StoreError,
)
from stores.shelf import Shelf

log = structlog.get_logger()

_T = TypeVar("_T")


@dataclass(slots=True)
class _Held:
    """What is in memory. Keys are by partner, then by id."""

    owner: Owner | None = None
    directory_version: int = 0
    last_change: int = 0
    partners: dict[str, Partner] = field(default_factory=dict)
    cells: dict[str, Cell] = field(default_factory=dict)
    keys: dict[str, dict[str, Key]] = field(default_factory=dict)
    moves: dict[str, Move] = field(default_factory=dict)


class _Draft:
    """One write in the making: its rows (None: none is left), what must be so for it, and what it does to memory."""

    def __init__(self, last_change: int) -> None:
        self.rows: dict[contract.Key, bytes | None] = {}
        self.checks: list[Check] = []
        self._last_change = last_change
        self._effects: list[Callable[[_Held], None]] = []

    def put_partner(self, partner: Partner, *, new: bool = False) -> None:
        key = registry_keys.partner(partner.id)
        if new:
            self.checks.append(Check(key, None))
        self.rows[key] = registry_codec.encode_partner(partner)
        self._effects.append(lambda held: held.partners.update({partner.id: partner}))

    def put_cell(self, cell: Cell) -> None:
        self.rows[registry_keys.cell(cell.name)] = registry_codec.encode_cell(cell)
        self._effects.append(lambda held: held.cells.update({cell.name: cell}))

    def put_key(self, key: Key, *, new: bool = False) -> None:
        place = registry_keys.key(key.partner_id, key.id)
        self.rows[place] = registry_codec.encode_key(key)
        if new:
            named = registry_keys.key_hash(key.hash)
            self.checks += [Check(place, None), Check(named, None)]
            self.rows[named] = registry_codec.encode_key_hash(key)
        self._effects.append(lambda held: held.keys.setdefault(key.partner_id, {}).update({key.id: key}))

    def forget_key(self, key: Key) -> None:
        self.rows[registry_keys.key(key.partner_id, key.id)] = None
        self.rows[registry_keys.key_hash(key.hash)] = None
        self._effects.append(lambda held: held.keys[key.partner_id].__delitem__(key.id))

    def put_move(self, move: Move, *, new: bool = False) -> None:
        key = registry_keys.move(move.partner_id)
        if new:
            self.checks.append(Check(key, None))
        self.rows[key] = registry_codec.encode_move(move)
        self._effects.append(lambda held: held.moves.update({move.partner_id: move}))

    def forget_move(self, partner_id: str) -> None:
        self.rows[registry_keys.move(partner_id)] = None
        self._effects.append(lambda held: held.moves.__delitem__(partner_id))

    def put_directory_version(self, version: int) -> None:
        self.rows[registry_keys.DIRECTORY] = registry_codec.encode_directory_version(version)
        self._effects.append(lambda held: setattr(held, "directory_version", version))

    def note(self, who: str, what: str, partner_id: str | None, detail: dict[str, Any]) -> None:
        """Append a change. It carries the next number and nothing may be there: whose memory is old conflicts."""
        self._last_change = sequence = self._last_change + 1
        change = Change(sequence, timestamp(), who, what, partner_id, detail)
        self.checks.append(Check(registry_keys.change(sequence), None))
        self.rows |= {put.key: put.value for put in rows_of_change(change)}
        self._effects.append(lambda held: setattr(held, "last_change", sequence))

    def mutations(self) -> list[contract.Mutation]:
        return [contract.Clear(key) if value is None else Put(key, value) for key, value in self.rows.items()]

    def apply(self, held: _Held) -> None:
        for effect in self._effects:
            effect(held)


class Registry:
    """Belongs to one event loop. Reading is from memory; each write is one commit, durable before it returns.

    Every write may raise RegistryError (nothing was changed), RegistryUnknownError (it may have been), FolderError
    (the book is gone or damaged) and RegistryLostError (another control plane owns it; `lost` is set from then on).
    """

    def __init__(self, store: Store, where: str, owner: Owner, held: _Held) -> None:
        self._store = store
        self._where = where
        self._owner = owner
        self._held = held
        self._lock = asyncio.Lock()
        self._in_doubt = False  # a commit's outcome is not known, so memory may be behind
        self.lost: RegistryLostError | None = None

    @classmethod
    async def open(cls, store: Store, where: str, *, new: bool = False) -> "Registry":
        """Own the book from now on and read it. `new`: it was made at this first start. Raises ControlPlaneError.

        An older control plane that still runs is fenced: its next write fails, and it ends.
        """
        owner = Owner(secrets.token_hex(8), f"pid {os.getpid()} on {socket.gethostname()}", timestamp())
        try:
            await store.acquire(0)
            (value,) = (await store.read([registry_keys.ORIGIN])).values
            rows = [Put(registry_keys.OWNER, registry_codec.encode_owner(owner))]
            if registry_codec.decode_origin(value) is None:
                if not new:
                    raise not_whole(where)
                rows.append(Put(registry_keys.ORIGIN, registry_codec.encode_origin(Origin(NEW, timestamp()))))
            await store.commit([Check(registry_keys.ORIGIN, value)], rows)
            return cls(store, where, owner, await _load(store, where))
        except StoreError as error:
            raise explain(error, where) from error

    async def close(self) -> None:
        """Close the book."""
        await self._store.close()

    # Reading.

    def partners(self) -> list[Partner]:
        """Give all partners by id."""
        return [self._held.partners[partner_id] for partner_id in sorted(self._held.partners)]

    def partner(self, partner_id: str) -> Partner:
        """Give one partner. Raises NotFoundError."""
        found = self._held.partners.get(partner_id)
        if found is None:
            raise NotFoundError(
                f"there is no partner {partner_id!r}", where=self._where, hint="see them all: bulkhead partner list"
            )
        return found

    def cells(self) -> list[Cell]:
        """Give all cells in the order in which they came, the removed ones too."""
        return sorted(self._held.cells.values(), key=lambda cell: cell.slot)

    def cell(self, name: str) -> Cell:
        """Give one cell. Raises NotFoundError."""
        found = self._held.cells.get(name)
        if found is None:
            raise NotFoundError(f"there is no cell {name!r}", where=self._where, hint="see them: bulkhead cell list")
        return found

    def keys(self, partner_id: str) -> list[Key]:
        """Give a partner's keys, oldest first, the revoked and expired ones too."""
        return sorted(self._held.keys.get(partner_id, {}).values(), key=lambda key: (key.created_at, key.id))

    def all_keys(self) -> list[Key]:
        """Give all partners' keys, oldest first, the revoked and expired ones too."""
        return [key for partner_id in sorted(self._held.keys) for key in self.keys(partner_id)]

    def moves(self) -> list[Move]:
        """Give the moves that did not end, by partner."""
        return [self._held.moves[partner_id] for partner_id in sorted(self._held.moves)]

    def move(self, partner_id: str) -> Move | None:
        """Give the move that a partner is on; None where it is on none."""
        return self._held.moves.get(partner_id)

    def directory_version(self) -> int:
        """Give the newest version that was taken for a directory."""
        return self._held.directory_version

    async def changes(self, partner_id: str) -> list[Change]:
        """Give the newest changes to a partner, newest first, read from the store now. Raises ControlPlaneError."""
        asked = registry_keys.newest_changes_of(partner_id, limits.HISTORY_ROWS_SHOWN_MAX)
        try:
            (index,) = (await self._store.read([], [asked])).ranges
            found = await self._store.read([registry_keys.change(int(entry.key[-1])) for entry in index])
            if None in found.values:
                raise StoreCorruptError(f"a change to {partner_id!r} is gone")
            return [registry_codec.decode_change(value) for value in found.values if value is not None]
        except StoreError as error:
            raise explain(error, self._where) from error

    async def read_rows(
        self, of: Callable[[contract.Key | None, int], Range], at_most: int, *keys: contract.Key
    ) -> tuple[list[bytes | None], list[Entry]]:
        """Give single rows' values and all rows of a kind that are not held in memory. Raises ControlPlaneError."""
        try:
            values = (await self._store.read(list(keys))).values
            return list(values), [entry async for entry in _rows(self._store, of, at_most, self._where)]
        except StoreError as error:
            raise explain(error, self._where) from error

    # Writing.

    async def begin_onboarding(self, partner: Partner, who: str) -> Partner:
        """Write down a partner to be onboarded; give what is there already under its id, if anything is."""
        assert partner.status == "onboarding"
        async with self._writing() as draft:
            if partner.id not in self._held.partners:
                count = len(self._held.partners)
                if count >= limits.PARTNERS_MAX:
                    raise RefusedError(f"there are {count} partners already, the most that one installation takes")
                draft.put_partner(partner, new=True)
                detail = {
                    "cell": partner.cell,
                    "mode": partner.mode,
                    "name": partner.name,
                    "isolation": partner.isolation,
                }
                draft.note(who, "partner_onboarding", partner.id, detail)
        return self.partner(partner.id)

    async def activate(self, partner_id: str, who: str) -> Partner:
        """Write down that the partner's book is made: it is never onboarded again. Doing it again changes nothing."""
        async with self._writing() as draft:
            found = self.partner(partner_id)
            if found.status == "onboarding":
                draft.put_partner(replace(found, status="active"))
                draft.note(who, "partner_active", partner_id, {})
        return self.partner(partner_id)

    async def set_status(self, partner_id: str, status: str, who: str) -> Partner:
        """Suspend or resume a partner; nothing changes where it is so already."""
        assert status in {"active", "suspended"}
        async with self._writing() as draft:
            found = self.partner(partner_id)
            if found.status not in {status, "onboarding"}:
                draft.put_partner(replace(found, status=status, profile_version=found.profile_version + 1))
                draft.note(who, f"partner_{status}", partner_id, {})
        return self.partner(partner_id)

    async def set_limits(self, partner_id: str, changed: dict[str, int], who: str) -> Partner:
        """Set some of rate_per_second, rate_burst and in_flight_max."""
        assert changed.keys() <= {"rate_per_second", "rate_burst", "in_flight_max"}
        async with self._writing() as draft:
            found = self.partner(partner_id)
            detail = {name: [getattr(found, name), value] for name, value in changed.items()}
            detail = {name: pair for name, pair in detail.items() if pair[0] != pair[1]}
            if detail:
                version = found.profile_version + 1
                draft.put_partner(
                    replace(
                        found,
                        rate_per_second=changed.get("rate_per_second", found.rate_per_second),
                        rate_burst=changed.get("rate_burst", found.rate_burst),
                        in_flight_max=changed.get("in_flight_max", found.in_flight_max),
                        profile_version=version,
                    )
                )
                draft.note(who, "partner_limits", partner_id, detail)
        return self.partner(partner_id)

    async def set_isolation(self, partner_id: str, isolation: str, who: str) -> Partner:
        """Give a partner a worker of its own (`dedicated`) or a share of one (`pooled`)."""
        assert isolation in ISOLATIONS
        async with self._writing() as draft:
            found = self.partner(partner_id)
            if found.isolation != isolation:
                draft.put_partner(replace(found, isolation=isolation, profile_version=found.profile_version + 1))
                draft.note(who, f"partner_{isolation}", partner_id, {})
        return self.partner(partner_id)

    async def set_acquirers(self, partner_id: str, acquirers: tuple[str, ...], who: str) -> Partner:
        """Set which acquirers a partner's new payments go to; nothing changes where it is so already."""
        async with self._writing() as draft:
            found = self.partner(partner_id)
            if found.acquirers != acquirers:
                version = found.profile_version + 1
                draft.put_partner(replace(found, acquirers=acquirers, profile_version=version))
                detail = {"acquirers": [list(found.acquirers), list(acquirers)]}
                draft.note(who, "partner_acquirers", partner_id, detail)
        return self.partner(partner_id)

    async def raise_profile_version(self, partner_id: str, above: int) -> Partner:
        """Make the partner's profile newer than one that its door has seen already."""
        async with self._writing() as draft:
            found = self.partner(partner_id)
            draft.put_partner(replace(found, profile_version=max(found.profile_version, above) + 1))
        return self.partner(partner_id)

    async def add_key(self, partner_id: str, key: ApiKey, who: str, *, others_end_at: datetime | None = None) -> None:
        """Keep a new key's hash; the partner's other good keys end at `others_end_at`, if that is sooner.

        Past KEYS_KEPT_PER_PARTNER_MAX the oldest that ended are forgotten; the changes still tell of them.
        """
        now = datetime.now(UTC)
        async with self._writing() as draft:
            self.partner(partner_id)
            kept = self.keys(partner_id)
            good = [old for old in kept if old.is_good(now)]
            if len(good) >= limits.KEYS_PER_PARTNER_MAX:
                raise RefusedError(
                    f"{partner_id} has {len(good)} keys that are still good, the most that a partner may have",
                    hint=f"revoke one: bulkhead partner revoke-key {partner_id} {good[0].id}",
                )
            detail = {"key": key.id, "hint": key.hint}
            if others_end_at is not None:
                detail["others_end_at"] = timestamp(others_end_at)
                for old in good:
                    if old.expires_at is None or datetime.fromisoformat(old.expires_at) > others_end_at:
                        draft.put_key(replace(old, expires_at=timestamp(others_end_at)))
            surplus = len(kept) + 1 - limits.KEYS_KEPT_PER_PARTNER_MAX
            for old in [old for old in kept if old not in good][: max(surplus, 0)]:
                draft.forget_key(old)
            draft.put_key(Key(key.id, partner_id, key.hash, key.hint, timestamp(now), None, None), new=True)
            draft.note(who, "key_added", partner_id, detail)

    async def revoke_key(self, partner_id: str, key_id: str, who: str) -> Key:
        """End a key now; revoking it again changes nothing. Raises NotFoundError."""
        async with self._writing() as draft:
            found = self._held.keys.get(partner_id, {}).get(key_id)
            if found is None:
                raise NotFoundError(
                    f"{partner_id} has no key {key_id!r}", hint=f"see its keys: bulkhead partner show {partner_id}"
                )
            if found.revoked_at is None:
                draft.put_key(replace(found, revoked_at=timestamp()))
                draft.note(who, "key_revoked", partner_id, {"key": key_id})
        return self._held.keys[partner_id][key_id]

    async def write_cells(self, cells: Sequence[Cell], /, who: str = "", what: str = "", **detail: Any) -> None:
        """Write cells as they are to be from now on, new ones too; `what` happened is noted where it is said."""
        async with self._writing() as draft:
            for cell in cells:
                draft.put_cell(cell)
            if what:
                draft.note(who, what, None, detail)

    async def write_rows(
        self, rows: Mapping[contract.Key, bytes | None], who: str = "", what: str = "", **detail: Any
    ) -> None:
        """Write rows that this does not hold in memory (None: none is left); `what` is noted where it is said."""
        async with self._writing() as draft:
            draft.rows |= rows
            if what:
                draft.note(who, what, None, detail)

    async def begin_move(self, move: Move) -> Move:
        """Write down that a partner is to go to another cell, before anything is done."""
        async with self._writing() as draft:
            self.partner(move.partner_id)
            draft.put_move(move, new=True)
            detail = {"move": move.id, "from": move.source, "to": move.target}
            draft.note(move.who, "partner_move_begun", move.partner_id, detail)
        return move

    async def put_move(self, move: Move) -> Move:
        """Write down how far a move is."""
        async with self._writing() as draft:
            draft.put_move(move)
        return move

    async def partner_moved(self, move: Move) -> Move:
        """Write down, in one commit, that a partner lives in its new cell and that its old book is to be cleared."""
        async with self._writing() as draft:
            draft.put_partner(replace(self.partner(move.partner_id), cell=move.target))
            draft.put_move(move)
        return move

    async def end_move(self, move: Move, what: str) -> Move:
        """Write down that a move has ended, and how."""
        async with self._writing() as draft:
            draft.forget_move(move.partner_id)
            draft.note(move.who, what, move.partner_id, move.described())
        return move

    async def note(self, who: str, what: str, partner_id: str | None, detail: dict[str, Any]) -> None:
        """Write down something that was done elsewhere, such as in a partner's book."""
        async with self._writing() as draft:
            draft.note(who, what, partner_id, detail)

    async def take_directory_version(self, above: int) -> int:
        """Take the next version for a directory, larger than `above` and than any taken before."""
        async with self._writing() as draft:
            version = max(self._held.directory_version, above) + 1
            draft.put_directory_version(version)
        return version

    async def refresh(self) -> None:
        """Find out whether this still owns the book, and read it again where memory may be behind.

        Raises ControlPlaneError where that can't be found out now.
        """
        async with self._lock:
            try:
                await self._require_ours()
                if self._in_doubt:
                    await self._read_again()
            except StoreError as error:
                raise explain(error, self._where) from error

    # Inside.

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[_Draft]:
        """Give a draft to fill; it is committed afterwards, unless it is empty or something was raised."""
        async with self._lock:
            if self.lost is not None:
                raise self.lost
            if self._in_doubt:
                try:
                    await self._read_again()
                except StoreError as error:
                    raise explain(error, self._where) from error
            draft = _Draft(self._held.last_change)
            yield draft
            if draft.rows:
                await self._commit(draft)

    async def _commit(self, draft: _Draft) -> None:
        self._in_doubt = True  # until its end is known; also where this task is canceled
        try:
            await self._store.commit(draft.checks, draft.mutations())
        except (ConflictError, CommitUnknownError, FencedError) as error:
            await self._find_out(draft, error)
        except StoreError as error:
            self._in_doubt = False  # of all others nothing was written
            log.warning("registry_not_written", error=str(error))
            raise explain(error, self._where) from error
        else:
            draft.apply(self._held)
            self._in_doubt = False

    async def _find_out(self, draft: _Draft, error: StoreError) -> None:
        """Own the book again, after which the commit can't take place any more, and look what became of it."""
        log.warning("registry_commit_in_doubt", error=str(error))
        try:
            await self._read_again()
            found = (await self._store.read(list(draft.rows))).values
        except StoreError as second:
            if isinstance(error, CommitUnknownError):
                raise RegistryUnknownError(
                    f"whether it was written down is not known: {error}; {second}",
                    where=self._where,
                    hint="see how it is with `bulkhead partner show`, then ask again",
                ) from second
            raise explain(second, self._where) from second
        if isinstance(error, CommitUnknownError) and list(found) == list(draft.rows.values()):
            return
        raise RegistryError(f"nothing was changed: {error}", where=self._where, hint=AGAIN) from error

    async def _read_again(self) -> None:
        """Own the book again and read it. Raises StoreError, RegistryLostError."""
        await self._require_ours()  # before: to take it from another would end that one
        await self._store.acquire(0)
        held = await _load(self._store, self._where)
        self._require_owner(held.owner)
        self._held = held
        self._in_doubt = False

    async def _require_ours(self) -> None:
        if self.lost is not None:
            raise self.lost
        (value,) = (await self._store.read([registry_keys.OWNER])).values
        self._require_owner(registry_codec.decode_owner(value))

    def _require_owner(self, found: Owner | None) -> None:
        if found == self._owner:
            return
        self.lost = lost(found, self._where)
        log.error("registry_lost", to="nobody" if found is None else found.name)
        raise self.lost


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
            return [decode(entry) async for entry in _rows(store, of, at_most, where)]
        finally:
            await store.close()
    except StoreError as error:
        raise explain(error, where) from error


def end_of_grace(grace_s: int) -> datetime:
    """Give when an old key ends that is replaced now."""
    return datetime.now(UTC) + timedelta(seconds=grace_s)


def rows_of_change(change: Change) -> list[Put]:
    """Give a change's row and, where it is of a partner, its index row."""
    rows = [Put(registry_keys.change(change.sequence), registry_codec.encode_change(change))]
    if change.partner_id is not None:
        rows.append(Put(registry_keys.change_of(change.partner_id, change.sequence), registry_codec.PRESENT))
    return rows


async def _load(store: Store, where: str) -> _Held:
    """Read everything but the changes, a page at a time."""
    found = await store.read([registry_keys.OWNER, registry_keys.DIRECTORY], [registry_keys.newest_change()])
    held = _Held(
        owner=registry_codec.decode_owner(found.values[0]),
        directory_version=registry_codec.decode_directory_version(found.values[1]),
        last_change=sum(int(entry.key[-1]) for entry in found.ranges[0]),
    )
    async for entry in _rows(store, registry_keys.partners, limits.PARTNERS_MAX, where):
        partner = registry_codec.decode_partner(entry)
        held.partners[partner.id] = partner
    async for entry in _rows(store, registry_keys.cells, limits.CELLS_EVER_MAX, where):
        cell = registry_codec.decode_cell(entry)
        held.cells[cell.name] = cell
    async for entry in _rows(store, registry_keys.keys, limits.KEYS_MAX, where):
        key = registry_codec.decode_key(entry)
        if key.partner_id not in held.partners:
            raise StoreCorruptError(f"key {key.id!r} is of no partner")
        held.keys.setdefault(key.partner_id, {})[key.id] = key
    async for entry in _rows(store, registry_keys.moves, limits.PARTNERS_MAX, where):
        move = registry_codec.decode_move(entry)
        held.moves[move.partner_id] = move
    return held


async def _rows(
    store: Store, of: Callable[[contract.Key | None, int], Range], at_most: int, where: str
) -> AsyncIterator[Entry]:
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
