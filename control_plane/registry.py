"""The control plane's own data: partners, hashes of their keys, the directory's version, who changed what and when.

All but the changes is held in memory, so reading it asks nobody and goes on while the store is away. A write is one
commit of the store; memory follows it. One control plane owns the book, by the store's epoch and a row that names it:
one that was taken over can't write any more. No key, only its hash, is ever in it. Keys: registry_keys.py.
"""

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import structlog

from control_plane import audit_chain, dry_run, limits, registry_codec, registry_keys
from control_plane.api_keys import ApiKey
from control_plane.approvals import Approval
from control_plane.audit_chain import Head
from control_plane.data_folder import timestamp
from control_plane.dry_run import DryRunDone
from control_plane.errors import (
    NotFoundError,
    RefusedError,
    RegistryError,
    RegistryLostError,
    RegistryUnknownError,
)
from control_plane.move_record import Burial, Move
from control_plane.notices import PROTECTIVE, Notice
from control_plane.registry_draft import CARRIED, Draft, Held
from control_plane.registry_errors import AGAIN, explain, lost, not_whole, was_deleted
from control_plane.registry_reading import load, rows
from control_plane.registry_records import (
    ISOLATIONS,
    NEW,
    Cell,
    Change,
    Deletion,
    Key,
    Operator,
    Origin,
    Owner,
    Partner,
)
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

log = structlog.get_logger()


class Registry:
    """Belongs to one event loop. Reading is from memory; each write is one commit, durable before it returns.

    Every write may raise RegistryError (nothing was changed), RegistryUnknownError (it may have been), FolderError
    (the book is gone or damaged) and RegistryLostError (another control plane owns it; `lost` is set from then on).
    """

    def __init__(self, store: Store, where: str, owner: Owner, held: Held, audit_key: bytes) -> None:
        self._store = store
        self._where = where
        self._owner = owner
        self._held = held
        self._audit_key = audit_key
        self._keep_head: Callable[[Head], None] | None = None
        self._lock = asyncio.Lock()
        self._in_doubt = False  # a commit's outcome is not known, so memory may be behind
        self.lost: RegistryLostError | None = None

    @classmethod
    async def open(cls, store: Store, where: str, *, audit_key: bytes, new: bool = False) -> "Registry":
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
            return cls(store, where, owner, await load(store, where, audit_key), audit_key)
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
            deletion = self._held.deletions.get(partner_id)
            deleted = "" if deletion is None else f" any more: it was deleted at {deletion.ended_at}"
            raise NotFoundError(
                f"there is no partner {partner_id!r}{deleted}",
                where=self._where,
                hint="see them all: bulkhead partner list",
            )
        return found

    def find(self, partner_id: str) -> Partner | None:
        """Give one partner, None where there is none."""
        return self._held.partners.get(partner_id)

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

    def operators(self) -> list[Operator]:
        """Give all operators by id."""
        return [self._held.operators[operator_id] for operator_id in sorted(self._held.operators)]

    def find_operator(self, operator_id: str) -> Operator | None:
        """Give one operator, None where there is none."""
        return self._held.operators.get(operator_id)

    def operator(self, operator_id: str) -> Operator:
        """Give one operator. Raises NotFoundError."""
        found = self.find_operator(operator_id)
        if found is None:
            raise NotFoundError(f"there is no operator {operator_id!r}", hint="see them all: bulkhead operator list")
        return found

    def approvals(self) -> list[Approval]:
        """Give the changes that wait for a second person, and the newest that did, the oldest first."""
        return [self._held.approvals[approval_id] for approval_id in sorted(self._held.approvals)]

    def approval(self, approval_id: str) -> Approval:
        """Give one of them. Raises NotFoundError."""
        found = self._held.approvals.get(approval_id)
        if found is None:
            raise NotFoundError(f"there is no approval {approval_id!r}", hint="see them all: bulkhead approval list")
        return found

    def moves(self) -> list[Move]:
        """Give the moves that did not end, by partner."""
        return [self._held.moves[partner_id] for partner_id in sorted(self._held.moves)]

    def move(self, partner_id: str) -> Move | None:
        """Give the move that a partner is on; None where it is on none."""
        return self._held.moves.get(partner_id)

    def burials(self) -> list[Burial]:
        """Give what cells are still to be told of partners that were taken over, by cell and partner."""
        return [self._held.burials[place] for place in sorted(self._held.burials)]

    def burials_of(self, partner_id: str) -> list[Burial]:
        """Give what cells are still to be told of one partner."""
        return [burial for burial in self._held.burials.values() if burial.partner_id == partner_id]

    def partners_to_tell(self) -> list[str]:
        """Give the partners that are still to be told of changes."""
        return sorted(self._held.notices)

    def notices(self, partner_id: str) -> list[Notice]:
        """Give what a partner is still to be told, in its order."""
        of_partner = self._held.notices.get(partner_id, {})
        return [of_partner[sequence] for sequence in sorted(of_partner)]

    def deletion(self, partner_id: str) -> Deletion | None:
        """Give a partner's deletion, one that has ended too; None where there is none."""
        return self._held.deletions.get(partner_id)

    def count_deletions(self) -> int:
        """Give how many partners are being deleted, or were."""
        return len(self._held.deletions)

    def directory_version(self) -> int:
        """Give the newest version that was taken for a directory."""
        return self._held.directory_version

    @property
    def head(self) -> Head:
        """The number and hash of the audit log's newest entry."""
        return self._held.head

    @property
    def is_sealed(self) -> bool:
        """Whether the audit log's newest entry is keyed."""
        return self._held.is_sealed

    def hash_of(self, change: Change) -> str:
        """Return an entry's hash."""
        return audit_chain.digest(change, self._audit_key)

    async def find_seal(self, at: int | None) -> Change | None:
        """Return the entry that seals the audit log, None where it is gone; `at`: where it is known to stand."""
        async for change in self.audit_log(0 if at is None else at - 1):
            if change.keyed or at is not None:
                return change if change.keyed and change.what == audit_chain.SEALED else None
        return None

    async def audit_log(self, after: int = 0) -> AsyncGenerator[Change, None]:
        """Give all entries of the audit log after a number, oldest first, read now. Raises ControlPlaneError."""
        try:
            while True:
                (page,) = (await self._store.read([], [registry_keys.changes(after, limits.REGISTRY_PAGE_ROWS)])).ranges
                for entry in page:
                    yield registry_codec.decode_change(entry.value)
                if len(page) < limits.REGISTRY_PAGE_ROWS:
                    return
                after = int(page[-1].key[-1])
        except StoreError as error:
            raise explain(error, self._where) from error

    async def keep_heads(self, keep: Callable[[Head], None]) -> None:
        """Have the audit log's newest hash kept where the book is not, now and after each change, in a thread.

        A failure costs no change: the next one, or the next start, keeps a newer head.
        """
        self._keep_head = keep
        try:
            await asyncio.to_thread(keep, self._held.head)
        except OSError as error:
            log.warning("audit_head_not_kept", error=str(error))

    async def holds(self, head: Head) -> bool:
        """Whether the audit log has the entry that a head of before names. Raises ControlPlaneError."""
        if not head.sequence:
            return True
        found = await self.change(head.sequence)
        return found is not None and self.hash_of(found) == head.hash

    async def change(self, sequence: int) -> Change | None:
        """Return one entry of the audit log, None where there is none. Raises ControlPlaneError."""
        try:
            (value,) = (await self._store.read([registry_keys.change(sequence)])).values
            return None if value is None else registry_codec.decode_change(value)
        except StoreError as error:
            raise explain(error, self._where) from error

    async def kept_head(self) -> Head | None:
        """Give the head as it stands beside the entries, read now; None where nothing was chained yet."""
        try:
            (value,) = (await self._store.read([registry_keys.HEAD])).values
            return registry_codec.decode_head(value)
        except StoreError as error:
            raise explain(error, self._where) from error

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
            return list(values), [entry async for entry in rows(self._store, of, at_most, self._where)]
        except StoreError as error:
            raise explain(error, self._where) from error

    # Writing.

    async def begin_onboarding(self, partner: Partner, who: str) -> Partner:
        """Write down a partner to be onboarded; give what is there already under its id, if anything is."""
        assert partner.status == "onboarding"
        async with self.writing() as draft:
            self._require_never_deleted(partner.id)
            if partner.id not in self._held.partners:
                count = len(self._held.partners)
                if count >= limits.PARTNERS_MAX:
                    raise RefusedError(f"there are {count} partners already, the most that one installation takes")
                draft.begin(partner, who)
        return self.partner(partner.id)

    async def begin_onboardings(self, partners: Sequence[Partner], who: str) -> None:
        """Write down many partners to be onboarded, a batch a commit; those that are there already stay as they are."""
        assert all(partner.status == "onboarding" for partner in partners)
        for first in range(0, len(partners), limits.IMPORT_BATCH_PARTNERS_MAX):
            async with self.writing() as draft:
                for partner in partners[first : first + limits.IMPORT_BATCH_PARTNERS_MAX]:
                    self._require_never_deleted(partner.id)
                    if partner.id not in self._held.partners:
                        draft.begin(partner, who)

    async def admit(self, admitted: Sequence[tuple[str, ApiKey, str]], who: str) -> None:
        """Write down that these partners' books are made: each gets its status and its first key, all in one commit."""
        async with self.writing() as draft:
            for partner_id, key, status in admitted:
                found = self.partner(partner_id)
                assert not self._held.keys.get(partner_id), f"{partner_id} has a key already"
                if found.status != status:
                    assert status in {"active", "suspended"}
                    # Its door knows it as active: one that is not is told by the reconciler.
                    version = found.profile_version + (status != "active")
                    draft.put_partner(replace(found, status=status, profile_version=version))
                    draft.note(who, f"partner_{status}", partner_id, {"status": [found.status, status]})
                kept = Key(key.id, partner_id, key.hash, key.hint, timestamp(), None, None)
                draft.put_key(kept, new=True)
                draft.note(who, "key_added", partner_id, {"key": key.id, "hint": key.hint})

    async def activate(self, partner_id: str, who: str) -> Partner:
        """Write down that the partner's book is made: it is never onboarded again. Doing it again changes nothing."""
        async with self.writing() as draft:
            found = self.partner(partner_id)
            if found.status == "onboarding":
                draft.put_partner(replace(found, status="active"))
                draft.note(who, "partner_active", partner_id, {"status": [found.status, "active"]})
        return self.partner(partner_id)

    async def set_status(self, partner_id: str, status: str, who: str) -> Partner:
        """Suspend or resume a partner; nothing changes where it is so already."""
        assert status in {"active", "suspended"}
        async with self.writing() as draft:
            found = self.partner(partner_id)
            if found.status in {"active", "suspended"} - {status}:
                draft.put_partner(replace(found, status=status, profile_version=found.profile_version + 1))
                draft.note(who, f"partner_{status}", partner_id, {"status": [found.status, status]})
        return self.partner(partner_id)

    async def set_limits(self, partner_id: str, changed: dict[str, int], who: str) -> Partner:
        """Set some of rate_per_second, rate_burst and in_flight_max."""
        assert changed.keys() <= {"rate_per_second", "rate_burst", "in_flight_max"}
        return await self._set(partner_id, "partner_limits", who, **changed)

    async def set_isolation(self, partner_id: str, isolation: str, who: str) -> Partner:
        """Give a partner a worker of its own (`dedicated`) or a share of one (`pooled`)."""
        assert isolation in ISOLATIONS
        return await self._set(partner_id, f"partner_{isolation}", who, isolation=isolation)

    async def set_acquirers(self, partner_id: str, acquirers: tuple[str, ...], who: str) -> Partner:
        """Set which acquirers a partner's new payments go to."""
        return await self._set(partner_id, "partner_acquirers", who, acquirers=acquirers)

    async def set_currencies(self, partner_id: str, currencies: tuple[str, ...], who: str) -> Partner:
        """Set which currencies new payments may be in, none for all."""
        return await self._set(partner_id, "partner_currencies", who, currencies=currencies)

    async def raise_profile_version(self, partner_id: str, above: int) -> Partner:
        """Make the partner's profile newer than one that its door has seen already."""
        async with self.writing() as draft:
            found = self.partner(partner_id)
            version = max(found.profile_version, above) + 1
            draft.put_partner(replace(found, profile_version=version))
            detail = {"profile_version": [found.profile_version, version]}
            draft.note("reconciler", "partner_profile_raised", partner_id, detail)
        return self.partner(partner_id)

    async def add_key(self, partner_id: str, key: ApiKey, who: str, *, others_end_at: datetime | None = None) -> None:
        """Keep a new key's hash; the partner's other good keys end at `others_end_at`, if that is sooner.

        Past KEYS_KEPT_PER_PARTNER_MAX the oldest that ended are forgotten; the changes still tell of them.
        """
        now = datetime.now(UTC)
        async with self.writing() as draft:
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
        async with self.writing() as draft:
            found = self._held.keys.get(partner_id, {}).get(key_id)
            if found is None:
                raise NotFoundError(
                    f"{partner_id} has no key {key_id!r}", hint=f"see its keys: bulkhead partner show {partner_id}"
                )
            if found.revoked_at is None:
                draft.put_key(replace(found, revoked_at=timestamp()))
                draft.note(who, "key_revoked", partner_id, {"key": key_id})
        return self._held.keys[partner_id][key_id]

    async def add_operator(self, operator: Operator, who: str) -> None:
        """Let an operator in. Raises RefusedError where one of that name is there, or too many are."""
        async with self.writing() as draft:
            if operator.id in self._held.operators:
                raise RefusedError(
                    f"operator {operator.id!r} exists already",
                    hint=f"for a new key: bulkhead operator rotate-key {operator.id}",
                )
            if len(self._held.operators) >= limits.OPERATORS_MAX:
                raise RefusedError(f"there are {limits.OPERATORS_MAX} operators already, the most that there may be")
            draft.put_operator(operator, new=True)
            detail = {"operator": operator.id, "role": operator.role, "hint": operator.hint}
            draft.note(who, "operator_added", None, detail)

    async def put_operator(self, operator: Operator, what: str, who: str) -> Operator:
        """Change an operator; nothing changes where it is so already. Raises NotFoundError."""
        async with self.writing() as draft:
            found = self.operator(operator.id)
            if found != operator:
                draft.put_operator(operator)
                pairs = {name: [getattr(found, name), getattr(operator, name)] for name in ("role", "status", "hint")}
                changed = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
                draft.note(who, what, None, {"operator": operator.id, **changed})
        return operator

    async def write_cells(self, cells: Sequence[Cell], /, who: str = "", what: str = "", **detail: Any) -> None:
        """Write cells as they are to be from now on, new ones too; `what` happened is noted where it is said."""
        async with self.writing() as draft:
            for cell in cells:
                draft.put_cell(cell)
            if what:
                draft.note(who, what, None, detail)

    async def write_rows(
        self, rows: Mapping[contract.Key, bytes | None], who: str = "", what: str = "", **detail: Any
    ) -> None:
        """Write rows that this does not hold in memory (None: none is left); `what` is noted where it is said."""
        async with self.writing() as draft:
            draft.rows |= rows
            if what:
                draft.note(who, what, None, detail)

    async def forget_notices(self, told: Sequence[Notice]) -> None:
        """Write down that a partner was told."""
        async with self.writing() as draft:
            for notice in told:
                draft.forget_notice(notice)

    async def seal(self) -> None:
        """Have the audit log's hashes keyed from now on."""
        async with self.writing() as draft:
            draft.seal()

    async def note(self, who: str, what: str, partner_id: str | None, detail: dict[str, Any]) -> int:
        """Write down something that was done elsewhere, such as in a partner's book; return its entry's number."""
        async with self.writing() as draft:
            draft.note(who, what, partner_id, detail)
        return draft.changes[-1].sequence

    async def take_directory_version(self, above: int) -> int:
        """Take the next version for a directory, larger than `above` and than any taken before."""
        async with self.writing() as draft:
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

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Draft]:
        """Give a draft to fill, one at a time; it is committed afterwards, unless it is empty or something was raised.

        For this and its neighbours that write a kind of row of their own (registry_deletions.py).
        """
        async with self._lock:
            if self.lost is not None:
                raise self.lost
            if self._in_doubt:
                try:
                    await self._read_again()
                except StoreError as error:
                    raise explain(error, self._where) from error
            draft = Draft(self._held.head, self._audit_key, is_sealed=self._held.is_sealed)
            yield draft
            carrier = CARRIED.get()
            if carrier is not None and (carrier.is_written or not draft.changes):
                carrier = None
            if carrier is not None:
                carrier.put(draft)
            self._require_room_to_tell(draft)
            if dry_run.ASKED.get():
                raise DryRunDone(draft.changes)
            if draft.rows:
                await self._commit(draft)
            if carrier is not None:
                carrier.is_written = True

    # Inside.

    async def _set(self, partner_id: str, what: str, who: str, **wanted: Any) -> Partner:
        """Set some of a profile's fields; nothing changes, and nothing is noted, where they are so already."""
        async with self.writing() as draft:
            found = self.partner(partner_id)
            changed = {name: value for name, value in wanted.items() if getattr(found, name) != value}
            if changed:
                draft.put_partner(replace(found, **changed, profile_version=found.profile_version + 1))
                detail = {name: [_plain(getattr(found, name)), _plain(value)] for name, value in changed.items()}
                draft.note(who, what, partner_id, detail)
        return self.partner(partner_id)

    def _require_room_to_tell(self, draft: Draft) -> None:
        """Refuse a change of a partner that was not told of so many before: none of them may go unseen."""
        for notice in draft.notices:
            waiting = self._held.notices.get(notice.partner_id, {})
            if len(waiting) >= limits.NOTICES_PER_PARTNER_MAX and notice.what not in PROTECTIVE:
                raise RefusedError(
                    f"{notice.partner_id} was not told yet of {len(waiting)} changes before this one",
                    where=f"{notice.partner_id}'s journal, which its cell does not write",
                    hint="see whether its cell is up and the partner served: bulkhead status",
                )

    def _require_never_deleted(self, partner_id: str) -> None:
        deletion = self._held.deletions.get(partner_id)
        if deletion is not None and deletion.state == "deleted":
            raise was_deleted(deletion)

    async def _commit(self, draft: Draft) -> None:
        assert draft.is_noted, f"the audit log would not tell of {list(draft.rows)}"
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
        if registry_keys.HEAD in draft.rows and self._keep_head is not None:
            await self.keep_heads(self._keep_head)

    async def _find_out(self, draft: Draft, error: StoreError) -> None:
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
        held = await load(self._store, self._where, self._audit_key)
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


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
