"""The messages in the frames, as typed values and as msgpack. No I/O goes in.

A body is opaque to the door: it forwards a command to the worker and the answer back without reading either.
"""

from typing import Any

import msgpack

from actors.answers import Answer, RateState, Refused
from actors.profile import Profile
from actors.refusals import Refusal, RefusalCode
from actors.values import dataclass
from cells.api.limits import (
    ACQUIRER_KEY_CHARACTERS_MAX,
    ACQUIRERS_MAX,
    COMMAND_ID_BYTES_MAX,
    CURRENCIES_MAX,
    PARTNER_AUTHORIZATION_VALIDITY_MS_MAX,
    PARTNER_IN_FLIGHT_MAX,
    PARTNER_RATE_BURST_MAX,
    PARTNER_RATE_PER_SECOND_MAX,
    PROFILE_TEXT_CHARACTERS_MAX,
)

__all__ = [
    "NOTIFICATIONS",
    "NOT_MINE",
    "READS",
    "UNTOUCHED",
    "WRITES",
    "Answer",
    "Command",
    "MessageError",
    "Method",
    "Profile",
    "RateState",
    "Refusal",
    "RefusalCode",
    "Refused",
    "decode_answer",
    "decode_command",
    "decode_profile",
    "encode_answer",
    "encode_command",
    "encode_profile",
]

VERSION = 1
# What a worker answers instead of a message: the partner's actor is not here, or gave its partner up.
NOT_MINE = b""


class MessageError(ValueError):
    """A message is not what its type says; the peer that sent it is at fault."""


class Method:
    """What may be asked, as the frames spell it: of a partner's actor, of a door, of a worker."""

    # Of a partner's actor, forwarded by the door. These change something.
    CREATE_PAYMENT = "create_payment"  # {amount, currency, payment_method, capture_method, reference, ...}
    CAPTURE_PAYMENT = "capture_payment"  # {payment_id, amount | None}
    VOID_PAYMENT = "void_payment"  # {payment_id}
    REFUND_PAYMENT = "refund_payment"  # {payment_id, amount | None, reason | None}
    CONFIRM_PAYMENT = "confirm_payment"  # {payment_id}
    RESOLVE_OPERATION = "resolve_operation"  # {operation_id, outcome: succeeded | failed, operator, note}
    # Rows of a settlement file: [key, original_key | None, kind, reference, currency, gross, fee], at most
    # actors.limits.SETTLEMENT_ROWS_MAX.
    RECONCILE_OPERATIONS = "reconcile_operations"  # {file, settled_on, operator, fees: {...}, rows: [...]}
    # What an operator changed, for the partner's own journal.
    RECORD_CHANGE = "record_change"  # {change_id, what, at_ms, detail: {...}}
    # An acquirer's notifications: no partner's request becomes one of these (NOTIFICATIONS below).
    NOTIFY_RESULT = "notify_result"  # {notification_id, operation_id, original_id | None, result, ...}
    NOTIFY_DISPUTE = "notify_dispute"  # {notification_id, operation_id, original_id | None, dispute_id, ...}
    # These only read.
    GET_PAYMENT = "get_payment"  # {payment_id}
    LIST_PAYMENTS = "list_payments"  # {limit, starting_after, status, reference, created_from_ms, created_before_ms}
    GET_REFUND = "get_refund"  # {refund_id}
    GET_BALANCE = "get_balance"  # {}
    LIST_EVENTS = "list_events"  # {limit, starting_after, type}
    LIST_UNKNOWN = "list_unknown"  # {}
    COUNT_OPEN = "count_open"  # {} -> what keeps the partner from being deleted
    COMPARE_SETTLEMENT = "compare_settlement"  # as RECONCILE_OPERATIONS, and posts nothing
    LIST_UNRECONCILED = "list_unreconciled"  # {from_ms, before_ms, after: sequence | None}
    # Of a door, by the control plane (role "control" only).
    ONBOARD = "onboard"  # a profile; makes the partner's book where there is none yet
    CONFIGURE = "configure"  # a profile
    RELEASE_PARTNER = "release_partner"  # {to_pool: bool}: take back what its deaths led to
    # {profile_version}: what is left of a partner that is deleted; done again, it is done already
    ERASE_PARTNER = "erase_partner"
    CELL_STATUS = "cell_status"  # {}
    # Of a door, by the control plane, and passed on to a worker: a partner on its way to another cell (api/moves.py).
    BEGIN_LEAVING = "begin_leaving"  # {move_id}
    COPY_ROWS = "copy_rows"  # {move_id, number} -> a batch
    # -> a batch, or nothing where the number is None; the partner's commands wait from now on, for a while
    QUIESCE = "quiesce"  # {move_id, number | None}
    SEAL = "seal"  # {move_id, to, token, batches, stream, directory_version} -> a receipt
    END_LEAVING = "end_leaving"  # {move_id} -> {receipt, held_ms}
    # `places`: where the book may be that is taken over from another cell of the same store, in the order in which it
    # can have got on; none: it is copied.
    BEGIN_ARRIVAL = "begin_arrival"  # {move_id, attempt, token_hash, profile, places, is_sealed}
    HOLD_PLACE = "hold_place"  # {move_id}: in a ready worker, anew where the one of BEGIN_ARRIVAL is lost
    TAKE_ROWS = "take_rows"  # a batch -> how far the copy is
    ARRIVAL_STATUS = "arrival_status"  # {} -> how far the copy is
    # {receipt, profile}; {receipt} by a router, which has it of the tombstone -> {was_open, opened_in_ms}: whether it
    # was so before, and how soon the partner was served then
    OPEN_ARRIVAL = "open_arrival"
    END_ARRIVAL = "end_arrival"  # {move_id}: remove what has arrived
    SUM_ROWS = "sum_rows"  # {after: key | None} -> [content, rows, key | None]
    # Of a partner whose book was taken over while this cell was dead. `arrival_id`: the move that was to bring it here.
    BURY_MOVED = "bury_moved"  # {receipt, arrival_id: move id | ""}
    ERASE_MOVED = "erase_moved"  # {move_id}: the sealed book; its tombstone stays
    # Of a worker, by its door.
    ASSIGN = "assign"  # {profile, door_epoch, acquirers: {name: url}}: own this partner
    RELEASE = "release"  # {partner_id}: give it up
    WORKER_STATUS = "worker_status"  # {}
    METRICS = "metrics"  # {}


WRITES = frozenset(
    {
        Method.CREATE_PAYMENT,
        Method.CAPTURE_PAYMENT,
        Method.VOID_PAYMENT,
        Method.REFUND_PAYMENT,
        Method.CONFIRM_PAYMENT,
        Method.RESOLVE_OPERATION,
        Method.RECONCILE_OPERATIONS,
        Method.RECORD_CHANGE,
        Method.NOTIFY_RESULT,
        Method.NOTIFY_DISPUTE,
    }
)
NOTIFICATIONS = frozenset({Method.NOTIFY_RESULT, Method.NOTIFY_DISPUTE})
# Refusals without a look at what is written: said of a command that was sent before, too, they say nothing of that.
UNTOUCHED = frozenset(
    {
        RefusalCode.MAILBOX_FULL,
        RefusalCode.CELL_OVERLOADED,
        RefusalCode.WORKER_OVERLOADED,
        RefusalCode.PARTNER_UNAVAILABLE,
    }
)
READS = frozenset(
    {
        Method.GET_PAYMENT,
        Method.LIST_PAYMENTS,
        Method.GET_REFUND,
        Method.GET_BALANCE,
        Method.LIST_EVENTS,
        Method.LIST_UNKNOWN,
        Method.COUNT_OPEN,
        Method.COMPARE_SETTLEMENT,
        Method.LIST_UNRECONCILED,
    }
)


@dataclass(frozen=True, slots=True)
class Command:
    """One request of a partner. `fingerprint` is a digest of method, path and canonical body."""

    command_id: str
    request_id: str
    arguments: dict[str, Any]
    idempotency_key: str | None = None
    fingerprint: bytes = b""


def encode_command(command: Command) -> bytes:
    """Give the command's bytes."""
    return _pack(
        [
            VERSION,
            command.command_id,
            command.request_id,
            command.arguments,
            command.idempotency_key,
            command.fingerprint,
        ]
    )


def decode_command(body: bytes) -> Command:
    """Read a command. Raises MessageError."""
    try:
        version, command_id, request_id, arguments, key, fingerprint = _unpack(body)
    except (TypeError, ValueError) as error:
        raise MessageError(f"a command can't be read: {error}") from error
    if (
        version != VERSION
        or not isinstance(command_id, str)
        or not 0 < len(command_id.encode()) <= COMMAND_ID_BYTES_MAX
        or not isinstance(request_id, str)
        or not isinstance(arguments, dict)
        or not isinstance(key, str | None)
        or not isinstance(fingerprint, bytes)
    ):
        raise MessageError(f"a command of version {version!r} does not have the types of version {VERSION}")
    return Command(command_id, request_id, arguments, key, fingerprint)


def encode_answer(answer: Answer | Refused) -> bytes:
    """Give the answer's bytes."""
    rate = answer.rate
    rated = None if rate is None else [rate.per_second, rate.burst, rate.remaining, rate.reset_ms]
    if isinstance(answer, Answer):
        return _pack([VERSION, answer.status, answer.body, answer.replayed, rated])
    refusal = answer.refusal
    return _pack(
        [
            VERSION,
            0,
            refusal.code.value,
            refusal.detail,
            refusal.pointer,
            refusal.retry_after_ms,
            refusal.context,
            rated,
        ]
    )


def decode_answer(body: bytes) -> Answer | Refused:
    """Read an answer. Raises MessageError."""
    try:
        fields = _unpack(body)
        version, status = fields[0], fields[1]
        if version != VERSION:
            raise MessageError(f"an answer has version {version!r}, {VERSION} is known")
        rated = fields[-1]
        rate = None if rated is None else RateState(*rated)
        if status == 0:
            _, _, code, detail, pointer, retry_after_ms, context, _ = fields
            _require(detail, str)
            _require(pointer, str | None)
            _require(retry_after_ms, int | None)
            _require(context, dict)
            return Refused(Refusal(RefusalCode(code), detail, pointer, retry_after_ms, context), rate)
        _, _, payload, replayed, _ = fields
        _require(status, int)
        _require(payload, bytes)
        _require(replayed, bool)
        return Answer(status, payload, replayed, rate)
    except (TypeError, ValueError, IndexError) as error:
        raise MessageError(f"an answer can't be read: {error}") from error


_PROFILE_TYPES = {name: field.type for name, field in Profile.__dataclass_fields__.items()}
# What a profile may say. Numbers out of these would make rules fail on every command (a rate of 0 divides by it).
_PROFILE_WORDS = {
    "status": frozenset({"active", "suspended"}),
    "mode": frozenset({"test", "live"}),
    "isolation": frozenset({"dedicated", "pooled"}),
}
_PROFILE_NUMBERS_MAX = {
    "rate_per_second": PARTNER_RATE_PER_SECOND_MAX,
    "rate_burst": PARTNER_RATE_BURST_MAX,
    "in_flight_max": PARTNER_IN_FLIGHT_MAX,
    "authorization_validity_ms": PARTNER_AUTHORIZATION_VALIDITY_MS_MAX,
}


def encode_profile(profile: Profile) -> dict[str, Any]:
    """Give the profile as a map, to go into a body."""
    return {name: getattr(profile, name) for name in _PROFILE_TYPES}


def decode_profile(fields: Any) -> Profile:
    """Read a profile from a map; fields that are not known here are left out. Raises MessageError."""
    if not isinstance(fields, dict):
        raise MessageError("a profile is a map")
    try:
        known = {name: fields[name] for name in _PROFILE_TYPES if name in fields}
        for name in ("acquirers", "currencies"):
            if isinstance(known.get(name), list):
                known[name] = tuple(known[name])  # msgpack has no tuples
        for name, value in known.items():
            _require_exactly(name, value, _PROFILE_TYPES[name])
        return Profile(**known)
    except (TypeError, ValueError) as error:
        raise MessageError(f"a profile can't be read: {error}") from error


def _require_exactly(name: str, value: Any, kind: Any) -> None:
    if name == "acquirers":
        _require_acquirers(value)
    elif name == "currencies":
        _require_currencies(value)
    elif type(value) is not kind:  # True is an int to isinstance
        raise TypeError(f"{name}: {value!r:.80} is no {kind}")
    if name in _PROFILE_WORDS and value not in _PROFILE_WORDS[name]:
        raise ValueError(f"{name}: {value!r:.80} is not known")
    if name in _PROFILE_NUMBERS_MAX and not 1 <= value <= _PROFILE_NUMBERS_MAX[name]:
        raise ValueError(f"{name}: {value} is not from 1 to {_PROFILE_NUMBERS_MAX[name]}")
    if name == "version" and not 0 <= value < 1 << 63:
        raise ValueError(f"version: {value} is not from 0 to 2**63 - 1")
    if kind is str and len(value) > PROFILE_TEXT_CHARACTERS_MAX:
        raise ValueError(f"{name}: more than {PROFILE_TEXT_CHARACTERS_MAX} characters")


def _require_acquirers(names: Any) -> None:
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"acquirers: {names!r:.80} are no names")
    if len(names) > ACQUIRERS_MAX or any(not 1 <= len(name) <= ACQUIRER_KEY_CHARACTERS_MAX for name in names):
        raise ValueError(f"acquirers: {names!r:.80} are too many, or too long")


def _require_currencies(names: Any) -> None:
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"currencies: {names!r:.80} are no names")
    if len(names) > CURRENCIES_MAX or any(len(name) != 3 for name in names):
        raise ValueError(f"currencies: {names!r:.80} are too many, or no codes of three letters")


def _require(value: object, kind: Any) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r:.80} is no {kind}")


def _pack(fields: list[Any]) -> bytes:
    return msgpack.packb(fields)  # type: ignore[no-any-return]


def _unpack(body: bytes) -> list[Any]:
    fields = msgpack.unpackb(body)
    if not isinstance(fields, list):
        raise MessageError("a message is an array")
    return fields
