"""One write of the registry in the making, and what the registry holds in memory. Commits nothing itself."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from control_plane import audit_chain, registry_codec, registry_keys
from control_plane.approvals import Approval
from control_plane.audit_chain import Head
from control_plane.data_folder import timestamp
from control_plane.move_record import Burial, Move
from control_plane.notices import Notice, notice_of
from control_plane.origin import ORIGIN
from control_plane.registry_records import ACCESSES, Cell, Change, Deletion, Key, Operator, Owner, Partner
from stores import contract
from stores.contract import Check, Put


@dataclass(slots=True)
class Held:
    """What is in memory. Keys are by partner, then by id."""

    owner: Owner | None = None
    directory_version: int = 0
    head: Head = field(default_factory=lambda: Head(0, audit_chain.NOTHING))  # of the audit log
    is_sealed: bool = False  # whether that entry's hash is keyed
    partners: dict[str, Partner] = field(default_factory=dict)
    cells: dict[str, Cell] = field(default_factory=dict)
    keys: dict[str, dict[str, Key]] = field(default_factory=dict)
    operators: dict[str, Operator] = field(default_factory=dict)
    approvals: dict[str, Approval] = field(default_factory=dict)
    moves: dict[str, Move] = field(default_factory=dict)
    burials: dict[tuple[str, str], Burial] = field(default_factory=dict)  # by cell and partner
    deletions: dict[str, Deletion] = field(default_factory=dict)
    notices: dict[str, dict[int, Notice]] = field(default_factory=dict)  # by partner, in their order


class Carrier(Protocol):
    """What the next commit with an entry of the audit log writes down beside (registry_approvals.py)."""

    is_written: bool

    def put(self, draft: "Draft") -> None:
        """Write it into a commit."""


CARRIED: Final[ContextVar[Carrier | None]] = ContextVar("carried", default=None)


class Draft:
    """One write in the making: its rows (None: none is left), what must be so for it, and what it does to memory."""

    def __init__(self, head: Head, audit_key: bytes, *, is_sealed: bool) -> None:
        self.rows: dict[contract.Key, bytes | None] = {}
        self.checks: list[Check] = []
        self._head = head
        self._audit_key = audit_key
        self._is_sealed = is_sealed
        self.changes: list[Change] = []
        self.notices: list[Notice] = []
        self._effects: list[Callable[[Held], None]] = []

    def put_partner(self, partner: Partner, *, new: bool = False) -> None:
        """Write a partner; a new one has to be new."""
        key = registry_keys.partner(partner.id)
        if new:
            self.checks.append(Check(key, None))
        self.rows[key] = registry_codec.encode_partner(partner)
        self._effects.append(lambda held: held.partners.update({partner.id: partner}))

    def put_cell(self, cell: Cell) -> None:
        """Write a cell."""
        self.rows[registry_keys.cell(cell.name)] = registry_codec.encode_cell(cell)
        self._effects.append(lambda held: held.cells.update({cell.name: cell}))

    def forget_partner(self, partner_id: str) -> None:
        """Take a partner away whose keys are gone already."""
        self.rows[registry_keys.partner(partner_id)] = None
        self._effects.append(lambda held: held.partners.__delitem__(partner_id))
        self._effects.append(lambda held: held.keys.pop(partner_id, {}).clear())

    def put_deletion(self, deletion: Deletion, *, new: bool = False) -> None:
        """Write that a partner is being deleted, or was; a new one has to be new."""
        key = registry_keys.deletion(deletion.partner_id)
        if new:
            self.checks.append(Check(key, None))
        self.rows[key] = registry_codec.encode_deletion(deletion)
        self._effects.append(lambda held: held.deletions.update({deletion.partner_id: deletion}))

    def forget_deletion(self, partner_id: str) -> None:
        """Take back that a partner is being deleted."""
        self.rows[registry_keys.deletion(partner_id)] = None
        self._effects.append(lambda held: held.deletions.__delitem__(partner_id))

    def begin(self, partner: Partner, who: str) -> None:
        """Write down a partner to be onboarded."""
        self.put_partner(partner, new=True)
        named = ("cell", "mode", "name", "isolation", "rate_per_second", "rate_burst", "in_flight_max")
        detail = {name: getattr(partner, name) for name in named}
        detail |= {"acquirers": list(partner.acquirers), "currencies": list(partner.currencies)}
        self.note(who, "partner_onboarding", partner.id, detail)

    def put_key(self, key: Key, *, new: bool = False) -> None:
        """Write what is kept of a key; a new one has to be new, and its hash nobody else's."""
        place = registry_keys.key(key.partner_id, key.id)
        self.rows[place] = registry_codec.encode_key(key)
        if new:
            named = registry_keys.key_hash(key.hash)
            self.checks += [Check(place, None), Check(named, None)]
            self.rows[named] = registry_codec.encode_key_hash(key)
        self._effects.append(lambda held: held.keys.setdefault(key.partner_id, {}).update({key.id: key}))

    def forget_key(self, key: Key) -> None:
        """Take away what is kept of a key."""
        self.rows[registry_keys.key(key.partner_id, key.id)] = None
        self.rows[registry_keys.key_hash(key.hash)] = None
        self._effects.append(lambda held: held.keys[key.partner_id].__delitem__(key.id))

    def put_operator(self, operator: Operator, *, new: bool = False) -> None:
        """Write an operator; a new one has to be new."""
        place = registry_keys.operator(operator.id)
        if new:
            self.checks.append(Check(place, None))
        self.rows[place] = registry_codec.encode_operator(operator)
        self._effects.append(lambda held: held.operators.update({operator.id: operator}))

    def put_approval(self, approval: Approval) -> None:
        """Write a change that waits for a second person, or did."""
        self.rows[registry_keys.approval(approval.id)] = registry_codec.encode_approval(approval)
        self._effects.append(lambda held: held.approvals.update({approval.id: approval}))

    def forget_approval(self, approval: Approval) -> None:
        """Take one away that ended; the audit log still tells of it."""
        self.rows[registry_keys.approval(approval.id)] = None
        self._effects.append(lambda held: held.approvals.__delitem__(approval.id))

    def put_move(self, move: Move, *, new: bool = False) -> None:
        """Write a move; a new one has to be new."""
        key = registry_keys.move(move.partner_id)
        if new:
            self.checks.append(Check(key, None))
        self.rows[key] = registry_codec.encode_move(move)
        self._effects.append(lambda held: held.moves.update({move.partner_id: move}))

    def forget_move(self, partner_id: str) -> None:
        """Take a move away."""
        self.rows[registry_keys.move(partner_id)] = None
        self._effects.append(lambda held: held.moves.__delitem__(partner_id))

    def put_burial(self, burial: Burial) -> None:
        """Write that a cell is to be told that a partner is in another one."""
        place = (burial.cell, burial.partner_id)
        self.rows[registry_keys.burial(*place)] = registry_codec.encode_burial(burial)
        self._effects.append(lambda held: held.burials.update({place: burial}))

    def forget_burial(self, burial: Burial) -> None:
        """Take away that a cell is to be told."""
        place = (burial.cell, burial.partner_id)
        self.rows[registry_keys.burial(*place)] = None
        self._effects.append(lambda held: held.burials.__delitem__(place))

    def put_directory_version(self, version: int) -> None:
        """Write the newest version that was taken for a directory."""
        self.rows[registry_keys.DIRECTORY] = registry_codec.encode_directory_version(version)
        self._effects.append(lambda held: setattr(held, "directory_version", version))

    def note(
        self, who: str, what: str, partner_id: str | None, detail: dict[str, Any], origin: str | None = None
    ) -> None:
        """Append an entry of the audit log, with the hash of the last. Whose memory is old conflicts: one is there.

        This is the one place where entries are made; a write without one is not committed (`_commit`). `origin`: of
        what is told of later; else it is that of the request at hand.
        """
        if not self._is_sealed:
            self.seal()
        sequence = self._head.sequence + 1
        previous, origin = self._head.hash, ORIGIN.get() if origin is None else origin
        change = Change(sequence, timestamp(), who, what, partner_id, detail, previous, keyed=True, origin=origin)
        self._head = head = Head(sequence, audit_chain.digest(change, self._audit_key))
        self.changes.append(change)
        self.checks.append(Check(registry_keys.change(sequence), None))
        self.rows |= {put.key: put.value for put in rows_of_change(change)}
        self.rows[registry_keys.HEAD] = registry_codec.encode_head(head)
        self._effects.append(lambda held: setattr(held, "head", head))
        notice = notice_of(change)
        if notice is not None:
            self._put_notice(notice)

    def _put_notice(self, notice: Notice) -> None:
        self.notices.append(notice)
        self.rows[registry_keys.notice(notice.partner_id, notice.sequence)] = registry_codec.encode_notice(notice)
        self._effects.append(
            lambda held: held.notices.setdefault(notice.partner_id, {}).update({notice.sequence: notice})
        )

    def forget_notice(self, notice: Notice) -> None:
        """Take away what a partner was told."""
        self.rows[registry_keys.notice(notice.partner_id, notice.sequence)] = None

        def forget(held: Held) -> None:
            of_partner = held.notices.get(notice.partner_id, {})
            of_partner.pop(notice.sequence, None)
            if not of_partner:
                held.notices.pop(notice.partner_id, None)

        self._effects.append(forget)

    def seal(self) -> None:
        """Append the entry from which on hashes are keyed; it carries the head of what stands before it."""
        self._is_sealed = True
        self._effects.append(lambda held: setattr(held, "is_sealed", True))
        detail = {"key": audit_chain.key_id(self._audit_key), "old_head": str(self._head)}
        self.note("control_plane", audit_chain.SEALED, None, detail)

    @property
    def is_noted(self) -> bool:
        """Whether the audit log tells of it. A directory's version, first cells and next steps are nobody's change."""
        kinds = {"move", "burial", "cell", "rebalance", "rebalance_step", "notice"}
        steps = {key for key in self.rows if key == registry_keys.DIRECTORY or key[0] in kinds}
        return registry_keys.HEAD in self.rows or self.rows.keys() <= steps

    def mutations(self) -> list[contract.Mutation]:
        """Give what the store is to write."""
        return [contract.Clear(key) if value is None else Put(key, value) for key, value in self.rows.items()]

    def apply(self, held: Held) -> None:
        """Do to memory what was written."""
        for effect in self._effects:
            effect(held)


def rows_of_change(change: Change) -> list[Put]:
    """Give a change's row and, where it changed a partner, its index row."""
    rows = [Put(registry_keys.change(change.sequence), registry_codec.encode_change(change))]
    if change.partner_id is not None and change.what not in ACCESSES:
        rows.append(Put(registry_keys.change_of(change.partner_id, change.sequence), registry_codec.PRESENT))
    return rows
