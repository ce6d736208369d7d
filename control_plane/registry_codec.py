"""The bytes of every row of the registry's book: msgpack arrays that open with their version. Nothing else knows them.

A row of a version that is not known here, whose fields have other types, or that stands under another's key, is
reported; it is never guessed at.
"""

import json
from collections.abc import Mapping
from dataclasses import astuple
from datetime import datetime
from typing import Any, Final

import msgpack

from control_plane import limits
from control_plane.approvals import APPROVAL_STATES, Approval, Person
from control_plane.audit_chain import Head
from control_plane.move_record import STATES, WAYS, Burial, Move
from control_plane.notices import Notice
from control_plane.registry_records import (
    CELL_STATES,
    DELETION_STATES,
    IMPORTED,
    ISOLATIONS,
    MODES,
    NEW,
    OPERATOR_ROLES,
    OPERATOR_STATUSES,
    RUN_STATES,
    STATUSES,
    STEP_STATES,
    Cell,
    Change,
    Deletion,
    Key,
    Operator,
    Origin,
    Owner,
    Partner,
    Rebalance,
    RebalanceStep,
)
from stores.contract import Entry, StoreCorruptError, checked

VERSION: Final = 1
_CHAINED_VERSION: Final = 2
_KEYED_VERSION: Final = 3
_ORIGIN_VERSION: Final = 4
_PARTNER_VERSION: Final = 3
# How many fields a partner has in each version: isolation and acquirers came with 2, currencies with 3.
_PARTNER_FIELDS: Final = {1: 11, 2: 13, 3: 14}
_MOVE_VERSION: Final = 2
# How many fields they have in each version: with 2 came who was passed over, in moves and burials, since when a moved
# partner waits, and None for a pause that is not known.
_MOVE_FIELDS: Final = {1: 13, 2: 15}
_MOVE_PAUSE: Final = 10
_MOVE_PASSED_OVER: Final = 14
_BURIAL_FIELDS: Final = {1: 5, 2: 7}
# What an index row holds: that it is there.
PRESENT: Final[bytes] = msgpack.packb([VERSION])


def encode_partner(partner: Partner) -> bytes:
    """Give a partner's bytes."""
    assert partner.status in STATUSES, partner.status
    assert partner.mode in MODES, partner.mode
    assert partner.isolation in ISOLATIONS, partner.isolation
    return bytes(msgpack.packb([_PARTNER_VERSION, *astuple(partner)]))


def decode_partner(entry: Entry) -> Partner:
    """Read a partner, also of a version before. Raises StoreCorruptError."""
    fields = _unpack_one_of(entry.value, _PARTNER_FIELDS)
    fields[12:] = [tuple(names) if isinstance(names, list) else names for names in fields[12:]]
    partner = checked(Partner(*fields))
    known = partner.status in STATUSES and partner.mode in MODES and partner.isolation in ISOLATIONS
    if partner.id != entry.key[1] or not known:
        raise StoreCorruptError(f"the row of partner {entry.key[1]!r} is none of it")
    return partner


def encode_cell(cell: Cell) -> bytes:
    """Give a cell's bytes."""
    assert cell.state in CELL_STATES, cell.state
    return _pack(*astuple(cell))


def decode_cell(entry: Entry) -> Cell:
    """Read a cell. Raises StoreCorruptError."""
    cell = checked(Cell(*_unpack(entry.value, 11)))
    if cell.name != entry.key[1] or cell.state not in CELL_STATES or not 0 <= cell.weight <= limits.CELL_WEIGHT_MAX:
        raise StoreCorruptError(f"the row of cell {entry.key[1]!r} is none of it")
    return cell


def encode_rebalance(run: Rebalance) -> bytes:
    """Give the bytes of a run of moves."""
    assert run.state in RUN_STATES, run.state
    return _pack(*astuple(run))


def decode_rebalance(value: bytes | None) -> Rebalance | None:
    """Read a run of moves; None where there never was one. Raises StoreCorruptError."""
    if value is None:
        return None
    run = checked(Rebalance(*_unpack(value, 10)))
    if run.state not in RUN_STATES or min(run.at_once, run.per_hour) < 1:
        raise StoreCorruptError("the row of the rebalancing is none")
    return run


def encode_rebalance_step(step: RebalanceStep) -> bytes:
    """Give the bytes of one move of a run."""
    assert step.state in STEP_STATES, step.state
    return _pack(*astuple(step))


def decode_rebalance_step(entry: Entry) -> RebalanceStep:
    """Read one move of a run. Raises StoreCorruptError."""
    step = checked(RebalanceStep(*_unpack(entry.value, 11)))
    if step.partner_id != entry.key[1] or step.state not in STEP_STATES:
        raise StoreCorruptError(f"the row of the move of {entry.key[1]!r} is none of it")
    return step


def encode_key(key: Key) -> bytes:
    """Give the bytes of what is kept of an API key."""
    return _pack(*astuple(key))


def decode_key(entry: Entry) -> Key:
    """Read what is kept of an API key. Raises StoreCorruptError."""
    key = checked(Key(*_unpack(entry.value, 7)))
    if (key.partner_id, key.id) != entry.key[1:]:
        raise StoreCorruptError(f"the row of key {entry.key[2]!r} is none of it")
    if key.expires_at is not None and not _is_moment(key.expires_at):
        raise StoreCorruptError(f"key {key.id!r} ends at no time")
    return key


def encode_key_hash(key: Key) -> bytes:
    """Give the bytes of what names the key with a hash."""
    return _pack(key.partner_id, key.id)


def encode_operator(operator: Operator) -> bytes:
    """Give an operator's bytes."""
    assert operator.role in OPERATOR_ROLES, operator.role
    assert operator.status in OPERATOR_STATUSES, operator.status
    return _pack(*astuple(operator))


def decode_operator(entry: Entry) -> Operator:
    """Read an operator. Raises StoreCorruptError."""
    operator = checked(Operator(*_unpack(entry.value, 6)))
    known = operator.role in OPERATOR_ROLES and operator.status in OPERATOR_STATUSES
    if operator.id != entry.key[1] or not known:
        raise StoreCorruptError(f"the row of operator {entry.key[1]!r} is none of it")
    return operator


def encode_approval(approval: Approval) -> bytes:
    """Give an approval's bytes. What is asked and what it is about are JSON, as a change's detail."""
    fields = [getattr(approval, name) for name in Approval.__dataclass_fields__]
    return _pack(*(_plain_of(field) for field in fields))


def decode_approval(entry: Entry) -> Approval:
    """Read an approval. Raises StoreCorruptError."""
    fields = dict(
        zip(Approval.__dataclass_fields__, _unpack(entry.value, len(Approval.__dataclass_fields__)), strict=True)
    )
    for name in ("arguments", "target"):
        fields[name] = _json_of(fields[name], f"approval {entry.key[1]!r:.40}")
    for name in ("asked_by", "decided_by"):
        fields[name] = _person_of(fields[name])
    texts = fields.keys() - {"arguments", "target", "asked_by", "decided_by"}
    if (
        not all(isinstance(fields[name], str) for name in texts)
        or not (isinstance(fields["arguments"], dict) and isinstance(fields["target"], dict))
        or fields["asked_by"] is None
        or (fields["id"], fields["state"] in APPROVAL_STATES) != (entry.key[1], True)
        or not _is_moment(fields["expires_at"])
    ):
        raise StoreCorruptError(f"the row of approval {entry.key[1]!r} is none of it")
    return Approval(**fields)


def _plain_of(field: Any) -> Any:
    if isinstance(field, Person):
        return list(astuple(field))
    return json.dumps(field) if isinstance(field, dict) else field


def _person_of(fields: Any) -> Person | None:
    if fields is None:
        return None
    if not isinstance(fields, list) or len(fields) != len(Person.__dataclass_fields__):
        raise StoreCorruptError("a person has other fields")
    return checked(Person(*fields))


def encode_move(move: Move) -> bytes:
    """Give a move's bytes."""
    assert move.state in STATES, move.state
    return bytes(msgpack.packb([_MOVE_VERSION, *astuple(move)]))


def decode_move(entry: Entry) -> Move:
    """Read a move, also of a version before. Raises StoreCorruptError."""
    fields = _unpack_one_of(entry.value, _MOVE_FIELDS)
    if fields[_MOVE_PAUSE] == -1:
        fields[_MOVE_PAUSE] = None  # as version 1 had it
    fields[_MOVE_PASSED_OVER:] = [_tuples(passed_over) for passed_over in fields[_MOVE_PASSED_OVER:]]
    move = checked(Move(*fields))
    if move.partner_id != entry.key[1] or move.state not in STATES or move.way not in WAYS:
        raise StoreCorruptError(f"the row of the move of {entry.key[1]!r} is none of it")
    return move


def encode_burial(burial: Burial) -> bytes:
    """Give the bytes of a burial."""
    return bytes(msgpack.packb([_MOVE_VERSION, *astuple(burial)]))


def decode_burial(entry: Entry) -> Burial:
    """Read a burial, also of a version before. Raises StoreCorruptError."""
    fields = _unpack_one_of(entry.value, _BURIAL_FIELDS)
    fields[6:] = [_tuples(sources) for sources in fields[6:]]
    burial = checked(Burial(*fields))
    if (burial.cell, burial.partner_id) != entry.key[1:]:
        raise StoreCorruptError(f"the row of the burial of {entry.key[2]!r} is none of it")
    return burial


def encode_notice(notice: Notice) -> bytes:
    """Give the bytes of what a partner is to be told. Its detail is JSON, as a change's."""
    *fields, detail = astuple(notice)
    return _pack(*fields, json.dumps(detail))


def decode_notice(entry: Entry) -> Notice:
    """Read what a partner is to be told. Raises StoreCorruptError."""
    fields = _unpack(entry.value, 6)
    fields[5] = _json_of(fields[5], "a notice")
    notice = checked(Notice(*fields))
    if (notice.partner_id, notice.sequence) != entry.key[1:]:
        raise StoreCorruptError(f"the row of a notice to {entry.key[1]!r} is none of it")
    return notice


def encode_deletion(deletion: Deletion) -> bytes:
    """Give a deletion's bytes."""
    assert deletion.state in DELETION_STATES, deletion.state
    return _pack(*astuple(deletion))


def decode_deletion(entry: Entry) -> Deletion:
    """Read a deletion. Raises StoreCorruptError."""
    deletion = checked(Deletion(*_unpack(entry.value, 7)))
    known = deletion.state in DELETION_STATES and deletion.status_before in STATUSES and _is_moment(deletion.due_at)
    if deletion.partner_id != entry.key[1] or not known:
        raise StoreCorruptError(f"the row of the deletion of {entry.key[1]!r} is none of it")
    return deletion


def encode_change(change: Change) -> bytes:
    """Give a change's bytes. Its detail is JSON, which may hold what msgpack can't."""
    detail = json.dumps(change.detail)
    fields = (change.sequence, change.at, change.who, change.what, change.partner_id, detail)
    if not change.previous:
        return _pack(*fields)  # of before there was a chain
    if change.origin:
        return bytes(msgpack.packb([_ORIGIN_VERSION, *fields, change.previous, change.origin]))
    return bytes(msgpack.packb([_KEYED_VERSION if change.keyed else _CHAINED_VERSION, *fields, change.previous]))


def decode_change(value: bytes) -> Change:
    """Read a change, also of before there was a chain. Raises StoreCorruptError."""
    version, fields = _unpack_version(value)
    if (version, len(fields)) not in {(VERSION, 6), (_CHAINED_VERSION, 7), (_KEYED_VERSION, 7), (_ORIGIN_VERSION, 8)}:
        raise StoreCorruptError("a row is not of a version that is known here")
    sequence, at, who, what, partner_id, text = fields[:6]
    previous = "" if version == VERSION else fields[6]
    origin = fields[7] if version == _ORIGIN_VERSION else ""
    detail = _json_of(text, f"change {sequence!r:.40}")
    texts = (at, who, what, "" if partner_id is None else partner_id, previous, origin)
    if type(sequence) is not int or not isinstance(detail, dict) or not all(isinstance(text, str) for text in texts):
        raise StoreCorruptError(f"change {sequence!r:.40} has fields of another type")
    keyed = version in {_KEYED_VERSION, _ORIGIN_VERSION}
    return Change(sequence, at, who, what, partner_id, detail, previous, keyed=keyed, origin=origin)


def encode_directory_version(version: int) -> bytes:
    """Give the bytes of the newest directory's version."""
    return _pack(version)


def decode_directory_version(value: bytes | None) -> int:
    """Read the newest directory's version, 0 where none was ever taken. Raises StoreCorruptError."""
    if value is None:
        return 0
    (version,) = _unpack(value, 1)
    if type(version) is not int:
        raise StoreCorruptError("the directory's version is no number")
    return version


def encode_head(head: Head) -> bytes:
    """Give the bytes of the newest change's number and hash."""
    return _pack(*astuple(head))


def decode_head(value: bytes | None) -> Head | None:
    """Read the newest change's number and hash; None where none was chained. Raises StoreCorruptError."""
    return None if value is None else checked(Head(*_unpack(value, 2)))


def encode_owner(owner: Owner) -> bytes:
    """Give an owner's bytes."""
    return _pack(*astuple(owner))


def decode_owner(value: bytes | None) -> Owner | None:
    """Read an owner; None where there never was one. Raises StoreCorruptError."""
    return None if value is None else checked(Owner(*_unpack(value, 3)))


def encode_origin(origin: Origin) -> bytes:
    """Give an origin's bytes."""
    return _pack(*astuple(origin))


def decode_origin(value: bytes | None) -> Origin | None:
    """Read an origin; None where the book is not whole. Raises StoreCorruptError."""
    if value is None:
        return None
    origin = checked(Origin(*_unpack(value, 2)))
    if origin.how not in {NEW, IMPORTED}:
        raise StoreCorruptError(f"the book came to be in a way that is not known here: {origin.how!r:.40}")
    return origin


def _json_of(text: Any, name: str) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreCorruptError(f"the detail of {name} is no JSON: {error}") from error


def _is_moment(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _pack(*fields: Any) -> bytes:
    return bytes(msgpack.packb([VERSION, *fields]))


def _tuples(value: Any) -> Any:
    """Give lists, and those in them, as tuples; what is none is found to be of another type."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _unpack_one_of(value: bytes, lengths: Mapping[int, int]) -> list[Any]:
    """Read a row that has so many fields in each version."""
    version, fields = _unpack_version(value)
    if type(version) is not int or lengths.get(version) != len(fields):
        raise StoreCorruptError("a row is not of a version that is known here")
    return fields


def _unpack(value: bytes, length: int) -> list[Any]:
    version, fields = _unpack_version(value)
    if version != VERSION or len(fields) != length:
        raise StoreCorruptError("a row is not of a version that is known here")
    return fields


def _unpack_version(value: bytes) -> tuple[Any, list[Any]]:
    try:
        fields = msgpack.unpackb(value)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise StoreCorruptError(f"a row is not msgpack: {error}") from error
    if not isinstance(fields, list) or not fields:
        raise StoreCorruptError("a row is not of a version that is known here")
    return fields[0], fields[1:]
