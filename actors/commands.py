"""What may be asked of a partner's actor, as typed values; and how they are read from what the wire carries.

The router has validated every field already. Here the types are checked once more, because a cell trusts no router.
"""

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from actors import limits
from actors.acquirer import Approved, Declined
from actors.fees import FeeSchedule
from actors.payment import DisputeStatus, payment_id_of
from actors.profile import MAIN_ACQUIRER
from actors.values import dataclass


class CommandError(ValueError):
    """The arguments are not of the command's types; whoever sent them is at fault."""


@dataclass(frozen=True, slots=True)
class CreatePayment:
    """Authorize, and capture at once unless `manual_capture`. Amount 0 verifies the payment method."""

    amount: int
    currency: str
    payment_method: str
    manual_capture: bool = False
    reference: str | None = None
    description: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CapturePayment:
    """Capture `amount`, or all that is left (None)."""

    payment_id: str
    amount: int | None = None


@dataclass(frozen=True, slots=True)
class VoidPayment:
    """Release what is authorized and not captured."""

    payment_id: str


@dataclass(frozen=True, slots=True)
class RefundPayment:
    """Give back `amount`, or all that is left (None)."""

    payment_id: str
    amount: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ConfirmPayment:
    """Go on with a payment whose customer came back from the challenge."""

    payment_id: str


@dataclass(frozen=True, slots=True)
class ResolveOperation:
    """A person says what an operation became that the acquirer can't tell any more."""

    operation_id: str
    succeeded: bool
    operator: str
    note: str


@dataclass(frozen=True, slots=True)
class ResultNotification:
    """The acquirer says by itself what an operation became. No partner can send it; `notification_id` is unique."""

    notification_id: str
    payment_id: str
    operation_id: str
    outcome: Approved | Declined
    acquirer: str = MAIN_ACQUIRER


@dataclass(frozen=True, slots=True)
class DisputeNotification:
    """The acquirer tells of a dispute, whole each time, so that the news may come double or in any order."""

    notification_id: str
    payment_id: str
    operation_id: str
    dispute_id: str
    amount: int
    currency: str
    reason: str
    status: DisputeStatus
    opened_ms: int
    closed_ms: int | None
    acquirer: str = MAIN_ACQUIRER


Notification = ResultNotification | DisputeNotification


@dataclass(frozen=True, slots=True)
class SettlementRow:
    """One money movement as the acquirer's settlement file has it. Signed: refunds negative; net is gross less fee."""

    key: str
    original_key: str | None
    kind: str
    reference: str
    currency: str
    gross: int
    fee: int


@dataclass(frozen=True, slots=True)
class ReconcileOperations:
    """Compare rows of one settlement file with the partner's operations, and post what was paid out.

    `file`: the SHA-256 of the file, in hex. `settled_on`: its day, YYYY-MM-DD. `fees`: what was agreed.
    """

    file: str
    settled_on: str
    operator: str
    fees: FeeSchedule
    rows: tuple[SettlementRow, ...]
    acquirer: str = MAIN_ACQUIRER


# What an operator may have changed of a partner: `partner.<what>` is the event's type.
CHANGES = frozenset(
    {
        "key_rotated",
        "key_revoked",
        "suspended",
        "resumed",
        "limits_changed",
        "acquirers_changed",
        "currencies_changed",
        "deletion_requested",
        "deletion_withdrawn",
    }
)


@dataclass(frozen=True, slots=True)
class RecordChange:
    """The control plane tells the partner, in its own journal, what an operator changed. Once for each `change_id`."""

    change_id: str
    what: str
    at_ms: int
    detail: Mapping[str, str | int]


Command = (
    CreatePayment | CapturePayment | VoidPayment | RefundPayment | ConfirmPayment | ResolveOperation | Notification
)
# Commands that are of no one payment.
PartnerCommand = ReconcileOperations | RecordChange


@dataclass(frozen=True, slots=True)
class Envelope:
    """A command with who asked: its id for ever, and the partner's idempotency key with a digest of the request."""

    command_id: str
    request_id: str
    command: Command | PartnerCommand
    idempotency_key: str | None = None
    fingerprint: bytes = b""


def parse(method: str, arguments: Mapping[str, Any]) -> Command | PartnerCommand:
    """Read a command. Raises CommandError where a field is missing, unknown or of another type."""
    rest = dict(arguments)
    command: Command | PartnerCommand
    match method:
        case "create_payment":
            command = CreatePayment(
                _integer(rest, "amount"),
                _text(rest, "currency", 3),
                _text(rest, "payment_method", limits.PAYMENT_METHOD_CHARACTERS_MAX),
                _choice(rest, "capture_method", "automatic", "manual") == "manual",
                _optional_text(rest, "reference", limits.REFERENCE_CHARACTERS_MAX),
                _optional_text(rest, "description", limits.DESCRIPTION_CHARACTERS_MAX),
                _metadata(rest),
            )
        case "capture_payment":
            command = CapturePayment(_text(rest, "payment_id", 64), _optional_integer(rest, "amount"))
        case "void_payment":
            command = VoidPayment(_text(rest, "payment_id", 64))
        case "confirm_payment":
            command = ConfirmPayment(_text(rest, "payment_id", 64))
        case "refund_payment":
            command = RefundPayment(
                _text(rest, "payment_id", 64),
                _optional_integer(rest, "amount"),
                _optional_text(rest, "reason", limits.REASON_CHARACTERS_MAX),
            )
        case "resolve_operation":
            command = ResolveOperation(
                _text(rest, "operation_id", 64),
                _choice(rest, "outcome", "failed", "succeeded") == "succeeded",
                _text(rest, "operator", 255),
                _text(rest, "note", limits.DESCRIPTION_CHARACTERS_MAX),
            )
        case "notify_result":
            command = ResultNotification(*_origin(rest), _outcome(rest), _acquirer(rest))
        case "notify_dispute":
            command = _dispute(rest)
        case "reconcile_operations":
            command = _reconcile(rest)
        case "record_change":
            command = _change(rest)
        case _:
            raise CommandError(f"{method!r} is no command")
    if rest:
        raise CommandError(f"{method} has no {min(rest)!r}")
    return command


def _origin(arguments: dict[str, Any]) -> tuple[str, str, str]:
    """Give the notification's id, and the payment and operation that it is about."""
    notification_id = _text(arguments, "notification_id", limits.NOTIFICATION_ID_CHARACTERS_MAX)
    operation_id = _text(arguments, "operation_id", 64)
    original_id = _optional_text(arguments, "original_id", 64)
    return notification_id, payment_id_of(original_id or operation_id), operation_id


def _acquirer(arguments: dict[str, Any]) -> str:
    """Give whose word it is; who names nobody means the main acquirer."""
    return _optional_text(arguments, "acquirer", limits.ACQUIRER_KEY_CHARACTERS_MAX) or MAIN_ACQUIRER


def _outcome(arguments: dict[str, Any]) -> Approved | Declined:
    if _choice(arguments, "result", "approved", "declined") == "approved":
        reference = _text(arguments, "reference", limits.ACQUIRER_NAME_CHARACTERS_MAX)
        return Approved(reference, _optional_time(arguments, "expires_ms"))
    retryable = arguments.pop("retryable", None)
    if not isinstance(retryable, bool):
        raise CommandError("retryable is true or false")
    return Declined(_text(arguments, "code", limits.ACQUIRER_NAME_CHARACTERS_MAX), retryable)


def _dispute(arguments: dict[str, Any]) -> DisputeNotification:
    origin = _origin(arguments)
    dispute_id = _text(arguments, "dispute_id", limits.DISPUTE_ID_CHARACTERS_MAX)
    amount = _integer(arguments, "amount")
    currency = _text(arguments, "currency", 3)
    reason = _text(arguments, "reason", limits.REASON_CHARACTERS_MAX)
    status = DisputeStatus(_choice(arguments, "status", *DisputeStatus))
    opened_ms, closed_ms = _optional_time(arguments, "opened_ms"), _optional_time(arguments, "closed_ms")
    acquirer = _acquirer(arguments)
    if opened_ms is None or amount == 0 or (closed_ms is None) != (status is DisputeStatus.OPEN):
        raise CommandError("a dispute has an amount, and is closed if and only if it is won or lost")
    return DisputeNotification(*origin, dispute_id, amount, currency, reason, status, opened_ms, closed_ms, acquirer)


def _change(arguments: dict[str, Any]) -> RecordChange:
    change_id = _text(arguments, "change_id", limits.CHANGE_ID_CHARACTERS_MAX)
    what = _choice(arguments, "what", *sorted(CHANGES))
    at_ms = _optional_time(arguments, "at_ms")
    detail = arguments.pop("detail", None)
    if at_ms is None or not change_id.isascii():  # it becomes a key of the store
        raise CommandError("a change has a time, and an id in ASCII")
    if (
        not isinstance(detail, dict)
        or len(detail) > limits.CHANGE_DETAILS_MAX
        or not all(type(value) in {int, str} for value in detail.values())
        or any(len(str(text)) > limits.CHANGE_DETAIL_CHARACTERS_MAX for text in (*detail, *detail.values()))
        or not all(isinstance(name, str) for name in detail)
    ):
        raise CommandError("a change's detail maps a few names to short texts or numbers")
    return RecordChange(change_id, what, at_ms, detail)


def _optional_time(arguments: dict[str, Any], name: str) -> int | None:
    value = arguments.pop(name, None)
    if value is not None and (type(value) is not int or not 0 < value < limits.ACQUIRER_TIME_MS_MAX):
        raise CommandError(f"{name} is Unix time in milliseconds")
    return value


def parse_reconcile(arguments: Mapping[str, Any]) -> ReconcileOperations:
    """Read what `reconcile_operations` carries. Raises CommandError."""
    command = parse("reconcile_operations", arguments)
    assert isinstance(command, ReconcileOperations)
    return command


def _reconcile(rest: dict[str, Any]) -> ReconcileOperations:
    fees, rows = rest.pop("fees", None), rest.pop("rows", None)
    if not isinstance(rows, list) or not 1 <= len(rows) <= limits.SETTLEMENT_ROWS_MAX:
        raise CommandError(f"rows is a list of 1 to {limits.SETTLEMENT_ROWS_MAX}")
    return ReconcileOperations(
        _text(rest, "file", 64),
        _text(rest, "settled_on", 10),
        _text(rest, "operator", 255),
        _fees(fees),
        tuple(_row(row) for row in rows),
        _acquirer(rest),
    )


def _fees(fields: Any) -> FeeSchedule:
    if not isinstance(fields, dict) or fields.keys() != FeeSchedule.__dataclass_fields__.keys():
        raise CommandError("fees is a schedule of fees")
    for name, most in (
        ("basis_points", limits.FEE_BASIS_POINTS_MAX),
        ("refund_basis_points", limits.FEE_BASIS_POINTS_MAX),
    ):
        if type(fields[name]) is not int or not 0 <= fields[name] <= most:
            raise CommandError(f"{name} is an integer from 0 to {most}")
    for name in ("fixed", "refund_fixed"):
        fixed = fields[name]
        if (
            not isinstance(fixed, list)
            or len(fixed) != len(FeeSchedule().fixed)
            or not all(type(fee) is int and 0 <= fee <= limits.FEE_FIXED_MINOR_UNITS_MAX for fee in fixed)
        ):
            raise CommandError(f"{name} is a list of fees by the currency's number of decimals")
    return FeeSchedule(
        fields["basis_points"], tuple(fields["fixed"]), fields["refund_basis_points"], tuple(fields["refund_fixed"])
    )


def _row(values: Any) -> SettlementRow:
    """Read a row, which travels as an array in the order of its fields."""
    match values:
        case [str(key), str() | None as original, str(kind), str(reference), str(currency), int(gross), int(fee)] if (
            1 <= len(key) <= limits.SETTLEMENT_KEY_CHARACTERS_MAX
            and key.isascii()  # both become keys of the store
            and (original or "").isascii()
            and len(original or "") <= limits.SETTLEMENT_KEY_CHARACTERS_MAX
            and len(kind) <= limits.SETTLEMENT_KEY_CHARACTERS_MAX
            and len(reference) <= limits.SETTLEMENT_REFERENCE_CHARACTERS_MAX
            and len(currency) == 3
            and abs(gross) <= limits.AMOUNT_MINOR_UNITS_MAX
            and abs(fee) <= limits.AMOUNT_MINOR_UNITS_MAX
            and bool not in (type(gross), type(fee))
        ):
            return SettlementRow(key, original, kind, reference, currency, gross, fee)
    raise CommandError("a row of a settlement file can't be read")


def _integer(arguments: dict[str, Any], name: str) -> int:
    value = arguments.pop(name, None)
    if type(value) is not int or not 0 <= value <= limits.AMOUNT_MINOR_UNITS_MAX:
        raise CommandError(f"{name} is an integer from 0 to {limits.AMOUNT_MINOR_UNITS_MAX}")
    return value


def _optional_integer(arguments: dict[str, Any], name: str) -> int | None:
    if arguments.get(name) is None:
        arguments.pop(name, None)
        return None
    return _integer(arguments, name)


def _text(arguments: dict[str, Any], name: str, characters_max: int) -> str:
    value = arguments.pop(name, None)
    if not isinstance(value, str) or not 1 <= len(value) <= characters_max:
        raise CommandError(f"{name} is a string of 1 to {characters_max} characters")
    return value


def _choice(arguments: dict[str, Any], name: str, *choices: str) -> str:
    value = arguments.pop(name, None)
    if not isinstance(value, str) or value not in choices:
        raise CommandError(f"{name} is {' or '.join(choices)}")
    return value


def _optional_text(arguments: dict[str, Any], name: str, characters_max: int) -> str | None:
    if arguments.get(name) is None:
        arguments.pop(name, None)
        return None
    value = arguments.pop(name)
    if not isinstance(value, str) or len(value) > characters_max:
        raise CommandError(f"{name} is a string of at most {characters_max} characters")
    return value


def _metadata(arguments: dict[str, Any]) -> dict[str, str]:
    value = arguments.pop("metadata", None)
    if value is None:
        return {}
    if (
        not isinstance(value, dict)
        or len(value) > limits.METADATA_ENTRIES_MAX
        or not all(
            isinstance(key, str)
            and len(key) <= limits.METADATA_KEY_CHARACTERS_MAX
            and isinstance(entry, str)
            and len(entry) <= limits.METADATA_VALUE_CHARACTERS_MAX
            for key, entry in value.items()
        )
    ):
        raise CommandError("metadata maps strings to strings, within its bounds")
    return value
