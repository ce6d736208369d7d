"""The bytes of every stored record: msgpack arrays that open with their version. Nothing else knows the bytes.

A record of a version that is not known here, or whose fields have other types, is reported; it is never guessed at. A
payment is written in the oldest version that can hold it: what is older than challenges and disputes reads the rest.
"""

import dataclasses
from operator import attrgetter
from typing import Any, Final

import msgpack

from actors import events
from actors.errors import StoreCorruptError
from actors.ledger import Account, Posting
from actors.payment import (
    Challenge,
    Dispute,
    DisputeStatus,
    Failure,
    Operation,
    OperationKind,
    OperationState,
    Payment,
)
from actors.profile import MAIN_ACQUIRER
from actors.record_types import checked
from actors.records import JournalEntry, Once, OpenOperation, Reconciled
from actors.rules import Standing
from actors.store import Key

VERSION: Final = 1
# Of payments with what version 1 has no place for: disputes, and three more fields of each operation; then of those at
# another acquirer than the main one.
_DISPUTED_VERSION: Final = 2
PAYMENT_VERSION: Final = 3

# The tag of an event is for ever; new events take new numbers.
_EVENT_TAGS: Final[dict[type[Any], int]] = {
    events.PaymentCreated: 1,
    events.OperationIntended: 2,
    events.OperationApproved: 3,
    events.OperationDeclined: 4,
    events.OperationLost: 5,
    events.AuthorizationExpired: 6,
    events.ExpiryDeferred: 7,
    events.OperationChallenged: 8,
    events.OperationConfirmed: 9,
    events.OperationWithdrawn: 10,
    events.OperationAccepted: 11,
    events.DisputeOpened: 12,
    events.DisputeClosed: 13,
    events.AcquirerContradicted: 14,
    events.PaymentRouted: 15,
    events.PartnerChanged: 16,
    events.OperationReconciled: 20,
}
_EVENT_TYPES: Final = {tag: kind for kind, tag in _EVENT_TAGS.items()}
_EVENT_VALUES: Final = {kind: attrgetter(*(f.name for f in dataclasses.fields(kind))) for kind in _EVENT_TAGS}


def encode_standing(standing: Standing) -> bytes:
    """Give the head's bytes."""
    balances = [[currency, account, amount] for (currency, account), amount in standing.balances.items()]
    return _pack(
        [
            VERSION,
            standing.sequence,
            standing.floor_ms,
            standing.arrival_us,
            standing.open_operations,
            standing.swept_sequence,
            balances,
        ]
    )


def decode_standing(data: bytes) -> Standing:
    """Read a head. Raises StoreCorruptError."""
    sequence, floor_ms, arrival_us, open_operations, swept_sequence, balances = _unpack(data, 7)
    try:
        posted = {(currency, account): amount for currency, account, amount in balances}
    except (TypeError, ValueError) as error:
        raise StoreCorruptError(f"the head's balances can't be read: {error}") from error
    return checked(Standing(sequence, floor_ms, arrival_us, open_operations, swept_sequence, posted))


def encode_payment(payment: Payment) -> bytes:
    """Give a payment's bytes."""
    operations = [
        [
            operation.id,
            operation.kind.value,
            operation.amount,
            operation.state.value,
            operation.created_ms,
            operation.settled_ms,
            None if operation.failure is None else [operation.failure.code, operation.failure.retryable],
            operation.acquirer_reference,
            operation.reason,
            operation.resolved_by,
        ]
        for operation in payment.operations
    ]
    fields = [
        VERSION,
        payment.id,
        payment.created_ms,
        payment.amount,
        payment.currency,
        payment.payment_method,
        payment.manual_capture,
        payment.reference,
        payment.description,
        payment.metadata,
        operations,
        payment.expires_ms,
        payment.expiry_check_ms,
        payment.amount_expired,
    ]
    routed = payment.acquirer != MAIN_ACQUIRER
    if routed or _needs_version_2(payment):
        fields[0] = PAYMENT_VERSION if routed else _DISPUTED_VERSION
        for row, operation in zip(operations, payment.operations, strict=True):
            challenge = operation.challenge
            row.append(None if challenge is None else [challenge.url, challenge.expires_ms])
            row += [operation.confirmations, operation.withdrawn]
        fields.append(
            [
                [d.id, d.operation_id, d.amount, d.reason, d.status.value, d.opened_ms, d.closed_ms]
                for d in payment.disputes
            ]
        )
    if routed:
        fields.append(payment.acquirer)
    return _pack(fields)


def decode_payment(data: bytes) -> Payment:
    """Read a payment, of any version. Raises StoreCorruptError."""
    fields = _unpack(data, 14, 15, 16)
    try:
        fields[9] = tuple(_operation(*row) for row in fields[9])
        if len(fields) > 13:
            fields[13] = tuple(
                checked(Dispute(dispute_id, operation_id, amount, reason, DisputeStatus(status), opened_ms, closed_ms))
                for dispute_id, operation_id, amount, reason, status, opened_ms, closed_ms in fields[13]
            )
    except (TypeError, ValueError) as error:
        raise StoreCorruptError(f"a payment's operations can't be read: {error}") from error
    return checked(Payment(*fields))


def _needs_version_2(payment: Payment) -> bool:
    return bool(payment.disputes) or any(o.challenge or o.confirmations or o.withdrawn for o in payment.operations)


def _operation(  # noqa: PLR0913, PLR0917 - an operation's fields in their order
    operation_id: str,
    kind: str,
    amount: int,
    state: str,
    created_ms: int,
    settled_ms: int | None,
    failure: list[Any] | None,
    acquirer_reference: str | None,
    reason: str | None,
    resolved_by: str | None,
    challenge: list[Any] | None = None,
    confirmations: int = 0,
    withdrawn: str | None = None,
) -> Operation:
    return checked(
        Operation(
            operation_id,
            OperationKind(kind),
            amount,
            OperationState(state),
            created_ms,
            settled_ms,
            None if failure is None else checked(Failure(*failure)),
            acquirer_reference,
            reason,
            resolved_by,
            None if challenge is None else checked(Challenge(*challenge)),
            confirmations,
            withdrawn,
        )
    )


def encode_once(once: Once) -> bytes:
    """Give an idempotency record's bytes."""
    return _pack(
        [
            VERSION,
            once.command_id,
            once.fingerprint,
            once.payment_id,
            once.operation_id,
            once.created_ms,
            once.status,
            once.body,
        ]
    )


def decode_once(data: bytes) -> Once:
    """Read an idempotency record. Raises StoreCorruptError."""
    return checked(Once(*_unpack(data, 8)))


def encode_open(operation: OpenOperation) -> bytes:
    """Give an open operation's bytes."""
    return _pack(
        [
            VERSION,
            operation.operation_id,
            operation.payment_id,
            operation.once_key,
            operation.first_asked_ms,
            operation.attempts,
        ]
    )


def decode_open(data: bytes) -> OpenOperation:
    """Read an open operation. Raises StoreCorruptError."""
    operation_id, payment_id, once_key, first_asked_ms, attempts = _unpack(data, 6)
    return checked(OpenOperation(operation_id, payment_id, _key(once_key), first_asked_ms, attempts))


def encode_entry(entry: JournalEntry) -> bytes:
    """Give a journal entry's bytes."""
    tagged = [(_EVENT_TAGS[type(event)], *_EVENT_VALUES[type(event)](event)) for event in entry.events]
    posted = [[posting.currency, posting.account.value, posting.amount] for posting in entry.postings]
    return _pack(
        [
            VERSION,
            entry.sequence,
            entry.at_ms,
            entry.cause,
            entry.request_id,
            entry.epoch,
            tagged,
            posted,
            entry.once_key,
        ]
    )


def decode_entry(data: bytes) -> JournalEntry:
    """Read a journal entry. Raises StoreCorruptError."""
    sequence, at_ms, cause, request_id, epoch, tagged, posted, once_key = _unpack(data, 9)
    try:
        return checked(
            JournalEntry(
                sequence,
                at_ms,
                cause,
                request_id,
                epoch,
                tuple(checked(_EVENT_TYPES[tag](*values)) for tag, *values in tagged),
                tuple(checked(Posting(currency, Account(account), amount)) for currency, account, amount in posted),
                _key(once_key),
            )
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StoreCorruptError(f"journal entry {sequence!r:.40} can't be read: {error}") from error


def encode_reconciled(row: Reconciled) -> bytes:
    """Give the bytes of what a settlement file said of an operation."""
    return _pack(
        [
            VERSION,
            row.operation_id,
            row.payment_id,
            row.settled_on,
            row.gross,
            row.fee,
            row.fee_agreed,
            row.reference,
            row.file,
            row.at_ms,
        ]
    )


def decode_reconciled(data: bytes) -> Reconciled:
    """Read what a settlement file said of an operation. Raises StoreCorruptError."""
    return checked(Reconciled(*_unpack(data, 10)))


def encode_text(text: str) -> bytes:
    """Give the bytes of a plain text, as the indexes hold it."""
    return _pack([VERSION, text])


def decode_text(data: bytes) -> str:
    """Read a plain text. Raises StoreCorruptError."""
    (text,) = _unpack(data, 2)
    if not isinstance(text, str):
        raise StoreCorruptError("a text is of another type")
    return text


def _key(parts: list[Any] | None) -> Key | None:
    if not isinstance(parts, list | None):
        raise StoreCorruptError("a key is not an array")
    return None if parts is None else tuple(parts)


def _pack(fields: list[Any]) -> bytes:
    return msgpack.packb(fields)  # type: ignore[no-any-return]


def _unpack(data: bytes, *lengths: int) -> list[Any]:
    """Read a record whose n-th version has the n-th of the lengths."""
    try:
        fields = msgpack.unpackb(data)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise StoreCorruptError(f"a record is not msgpack: {error}") from error
    if not isinstance(fields, list) or not fields or (fields[0], len(fields)) not in enumerate(lengths, VERSION):
        raise StoreCorruptError("a record is not of a version that is known here")
    return fields[1:]
