"""The API's shapes. Requests are checked by these; answers come ready-made from the cell and are only described.

Bounds of fields come from the actor's limits. No HTTP and no flow goes in.
"""

import re
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from router.limits import actor_limits as bounds

ULID: Final = "[0-7][0-9A-HJKMNP-TV-Z]{25}"
PAYMENT_ID: Final = f"^pay_{ULID}$"
REFUND_ID: Final = f"^re_{ULID}$"
EVENT_ID: Final = "^evt_[0-9]{20}$"
# One line of text: no control characters of C0 or C1 (a log or a terminal must not be steered by a reference).
_LINE: Final = r"^[^\x00-\x1f\x7f-\x9f]*$"
# Text of several lines.
_TEXT: Final = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]*$"


class PaymentStatus(StrEnum):
    """A payment's status, derived from its operations."""

    REQUIRES_ACTION = "requires_action"
    PROCESSING = "processing"
    AUTHORIZED = "authorized"
    PARTIALLY_CAPTURED = "partially_captured"
    CAPTURED = "captured"
    CANCELED = "canceled"
    FAILED = "failed"
    PARTIALLY_REFUNDED = "partially_refunded"
    REFUNDED = "refunded"
    DISPUTED = "disputed"
    EXPIRED = "expired"


class OperationStatus(StrEnum):
    """An operation's status.

    `unknown`: the acquirer gave no final answer yet. `accepted`: it tells its result later. `requires_action`: the
    customer is to act.
    """

    PENDING = "pending"
    UNKNOWN = "unknown"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REQUIRES_ACTION = "requires_action"
    ACCEPTED = "accepted"


class DisputeStatus(StrEnum):
    """A dispute's status. `won` and `lost` are final."""

    OPEN = "open"
    WON = "won"
    LOST = "lost"


# Requests.


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


Amount = Annotated[
    int,
    Field(
        ge=0,
        le=bounds.AMOUNT_MINOR_UNITS_MAX,
        description="Minor units of the currency (ISO 4217), a whole JSON number.",
    ),
]
PositiveAmount = Annotated[
    int,
    Field(
        ge=1,
        le=bounds.AMOUNT_MINOR_UNITS_MAX,
        description="Minor units of the currency (ISO 4217), a whole JSON number. All that is left, if omitted.",
    ),
]


class PaymentRequest(_Request):
    """A new payment. An amount of 0 verifies the payment method."""

    amount: Amount
    currency: Annotated[str, Field(pattern="^[A-Z]{3}$", description="ISO 4217, upper case.", examples=["EUR"])]
    payment_method: Annotated[
        str,
        Field(
            pattern="^tok_[A-Za-z0-9_]+$",
            max_length=bounds.PAYMENT_METHOD_CHARACTERS_MAX,
            description="A token. Card numbers are refused.",
            examples=["tok_approve"],
        ),
    ]
    capture_method: Literal["automatic", "manual"] = "automatic"
    reference: Annotated[str, Field(max_length=bounds.REFERENCE_CHARACTERS_MAX, pattern=_LINE)] | None = None
    description: Annotated[str, Field(max_length=bounds.DESCRIPTION_CHARACTERS_MAX, pattern=_TEXT)] | None = None
    metadata: Annotated[
        dict[
            Annotated[str, Field(min_length=1, max_length=bounds.METADATA_KEY_CHARACTERS_MAX, pattern=_LINE)],
            Annotated[str, Field(max_length=bounds.METADATA_VALUE_CHARACTERS_MAX, pattern=_TEXT)],
        ],
        Field(max_length=bounds.METADATA_ENTRIES_MAX),
        # pydantic would let names through that match no pattern.
        WithJsonSchema(
            {
                "type": "object",
                "maxProperties": bounds.METADATA_ENTRIES_MAX,
                "propertyNames": {
                    "minLength": 1,
                    "maxLength": bounds.METADATA_KEY_CHARACTERS_MAX,
                    "pattern": _LINE,
                },
                "additionalProperties": {
                    "type": "string",
                    "maxLength": bounds.METADATA_VALUE_CHARACTERS_MAX,
                    "pattern": _TEXT,
                },
            }
        ),
    ] = {}


class CaptureRequest(_Request):
    """A capture of an authorized payment. An empty body captures all that is left."""

    amount: PositiveAmount | None = None


class VoidRequest(_Request):
    """A void of what is authorized and not captured, or of a payment that waits for its customer. It has no fields."""


class ConfirmRequest(_Request):
    """Says that the customer came back from the challenge. It has no fields: the acquirer knows how it ended."""


class RefundRequest(_Request):
    """A refund of what is captured. An empty body refunds all that is left."""

    amount: PositiveAmount | None = None
    reason: Annotated[str, Field(max_length=bounds.REASON_CHARACTERS_MAX, pattern=_TEXT)] | None = None


# Query strings. Their values arrive as text, so these are not strict.


def _whole_number(value: Any) -> int:
    if not isinstance(value, str) or re.fullmatch("[0-9]{1,4}", value) is None:
        raise ValueError("should be a whole number")
    return int(value)


_RFC_3339: Final = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _unix_ms(value: Any) -> int:
    """Read an RFC 3339 time as Unix milliseconds, rounded up: both bounds of a range then mean what they say."""
    match = None if not isinstance(value, str) else _RFC_3339.fullmatch(value)
    if match is None:
        raise ValueError("should be a time as in RFC 3339, such as 2026-11-22T08:00:00Z (write + as %2B)")
    day, clock, fraction, zone = match.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}{'+00:00' if zone in 'Zz' else zone}")
        whole_ms = (moment - _EPOCH) // timedelta(milliseconds=1)
    except (ValueError, OverflowError) as error:
        raise ValueError("should be a time that exists") from error
    if whole_ms < 0:
        return 0  # nothing is older
    nanoseconds = int((fraction or ".")[1:].ljust(9, "0"))
    return whole_ms + -(-nanoseconds // 1_000_000)


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_enum_values=True)


_Limit = Annotated[int, Field(ge=1, le=bounds.PAGE_ROWS_MAX), BeforeValidator(_whole_number)]
_Time = Annotated[int, BeforeValidator(_unix_ms), WithJsonSchema({"type": "string", "format": "date-time"})]


class NoQuery(_Query):
    """No query parameters."""


class PaymentsQuery(_Query):
    """A page of payments, newest first."""

    limit: _Limit = bounds.PAGE_ROWS_DEFAULT
    starting_after: Annotated[str, Field(pattern=PAYMENT_ID)] | None = None
    status: PaymentStatus | None = None
    reference: Annotated[str, Field(max_length=bounds.REFERENCE_CHARACTERS_MAX, pattern=_LINE)] | None = None
    created_from_ms: Annotated[_Time | None, Field(alias="created_from", description="At or after.")] = None
    created_before_ms: Annotated[_Time | None, Field(alias="created_before", description="Before.")] = None


class EventsQuery(_Query):
    """A page of events, newest first."""

    limit: _Limit = bounds.PAGE_ROWS_DEFAULT
    starting_after: Annotated[str, Field(pattern=EVENT_ID)] | None = None
    type: Annotated[str, Field(pattern=r"^[a-z_]+(\.[a-z_]+)*$", max_length=64)] | None = None


# Answers, for OpenAPI.


class Failure(BaseModel):
    """Why something failed. `retryable`: a new attempt with the same payment method may go through."""

    code: str
    message: str
    retryable: bool


class PaymentFailure(Failure):
    """Why the payment failed, and in which operation."""

    operation_id: str


class Operation(BaseModel):
    """One authorization, purchase, verification, capture, void or refund."""

    id: str
    type: str
    amount: int
    status: OperationStatus
    created_at: datetime
    settled_at: datetime | None
    failure: Failure | None
    reason: str | None


class Redirect(BaseModel):
    """Where to send the customer."""

    url: str


class NextAction(BaseModel):
    """What is to be done before the payment can go on: send the customer to `redirect_to_url.url`, then confirm."""

    type: Literal["redirect_to_url"]
    redirect_to_url: Redirect
    expires_at: datetime


class Dispute(BaseModel):
    """A dispute by the customer, the newest of the payment. The acquirer holds `amount` until it is won."""

    id: str
    operation_id: str
    amount: int
    reason: str
    status: DisputeStatus
    opened_at: datetime
    closed_at: datetime | None


class Payment(BaseModel):
    """A payment. Amounts are in minor units of its currency."""

    id: Annotated[str, Field(pattern=PAYMENT_ID)]
    object: Literal["payment"]
    mode: Literal["test", "live"]
    created_at: datetime
    amount: int
    currency: str
    status: PaymentStatus
    capture_method: Literal["automatic", "manual"]
    payment_method: str
    reference: str | None
    description: str | None
    metadata: dict[str, str]
    amount_authorized: int
    amount_capturable: int
    amount_captured: int
    amount_refunded: int
    amount_disputed: int
    next_action: NextAction | None
    dispute: Dispute | None
    failure: PaymentFailure | None
    expires_at: datetime | None
    operations: list[Operation]


class Refund(BaseModel):
    """A refund, an operation of a payment."""

    id: Annotated[str, Field(pattern=REFUND_ID)]
    object: Literal["refund"]
    payment_id: Annotated[str, Field(pattern=PAYMENT_ID)]
    amount: int
    currency: str
    status: OperationStatus
    reason: str | None
    created_at: datetime
    settled_at: datetime | None
    failure: Failure | None


class PaymentList(BaseModel):
    """A page of payments."""

    object: Literal["list"]
    data: list[Payment]
    has_more: bool
    next_starting_after: Annotated[
        str | None, Field(description="`starting_after` of the next page; null where there is none.")
    ]


class CurrencyBalance(BaseModel):
    """What stands in one currency, in minor units."""

    currency: str
    payable: int
    authorized: int
    captures_pending: int
    refunds_pending: int
    disputes_held: int


class Balance(BaseModel):
    """The partner's balance, by currency."""

    object: Literal["balance"]
    balances: list[CurrencyBalance]


class Event(BaseModel):
    """Something that happened to a payment, or that an operator changed of the partner (`partner.…`)."""

    id: Annotated[str, Field(pattern=EVENT_ID)]
    object: Literal["event"]
    type: str
    created_at: datetime
    data: dict[str, Any]


class EventList(BaseModel):
    """A page of events."""

    object: Literal["list"]
    data: list[Event]
    has_more: bool
    next_starting_after: Annotated[
        str | None, Field(description="`starting_after` of the next page; null where there is none.")
    ]


class PartnerKey(BaseModel):
    """An API key, without the key. `hint`: its last four characters."""

    id: str
    hint: str
    created_at: datetime
    expires_at: datetime | None


class PartnerLimits(BaseModel):
    """What the partner may send."""

    rate_per_second: int
    rate_burst: int
    in_flight_max: int


class PartnerAccount(BaseModel):
    """The partner that the API key names."""

    id: str
    object: Literal["partner"]
    name: str
    status: Literal["active", "suspended"]
    mode: Literal["test", "live"]
    api_version: str
    limits: PartnerLimits
    created_at: datetime
    keys: list[PartnerKey]


class FieldError(BaseModel):
    """One thing that is wrong: at a JSON pointer of the body (RFC 6901), in a query parameter or in a header."""

    detail: str
    pointer: str | None = None
    parameter: str | None = None
    header: str | None = None


class ProblemDetails(BaseModel):
    """A problem (RFC 9457)."""

    type: Annotated[str, Field(examples=["urn:bulkhead:problem:validation_failed"])]
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    pointer: str | None = None
    errors: list[FieldError] | None = None
    retry_after_ms: int | None = None
    context: dict[str, str | int] | None = None
