"""Every endpoint of the API as one row: what it takes, which command it becomes, what it may answer. Data only."""

from dataclasses import dataclass, field
from typing import Final

from pydantic import BaseModel

from cells.api.messages import Method, RefusalCode
from router import models
from router.problems import EdgeCode

Code = EdgeCode | RefusalCode


@dataclass(frozen=True, slots=True)
class PathId:
    """The id in a path: the argument it becomes, the form it has, and what is said where it has not."""

    argument: str
    pattern: str
    not_found: RefusalCode


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of one path. `command` None: answered from the directory. `writes`: takes an Idempotency-Key."""

    method: str
    path: str
    name: str
    summary: str
    command: str | None
    answers: dict[int, tuple[type[BaseModel], str]]
    writes: bool = False
    body: type[BaseModel] | None = None
    body_optional: bool = False
    query: type[BaseModel] = models.NoQuery
    path_id: PathId | None = None
    refusals: tuple[Code, ...] = field(default=())


_PAYMENT: Final = PathId("payment_id", models.PAYMENT_ID, RefusalCode.PAYMENT_NOT_FOUND)
_REFUND: Final = PathId("refund_id", models.REFUND_ID, RefusalCode.REFUND_NOT_FOUND)

# What each may answer, in the order in which it is looked for; `refusals` above come on top.
ALWAYS: Final[tuple[Code, ...]] = (
    EdgeCode.REQUEST_MALFORMED,
    EdgeCode.HEAD_TIMEOUT,
    EdgeCode.HEAD_TOO_LARGE,
    EdgeCode.NOT_READY,
    EdgeCode.AUTHORIZATION_MALFORMED,
    EdgeCode.UNAUTHORIZED,
    EdgeCode.TOO_MANY_FAILED_AUTHENTICATIONS,
    EdgeCode.CPU_BUDGET_EXHAUSTED,
    RefusalCode.TOO_MANY_IN_FLIGHT,
    EdgeCode.OVERLOADED,
    EdgeCode.VALIDATION_FAILED,
    EdgeCode.CARD_DATA_REFUSED,
    RefusalCode.INTERNAL_ERROR,
)
OF_READS: Final[tuple[Code, ...]] = (EdgeCode.TOO_MANY_READS,)
OF_CELLS: Final[tuple[Code, ...]] = (
    RefusalCode.PARTNER_MOVED,
    RefusalCode.PARTNER_QUARANTINED,
    RefusalCode.MAILBOX_FULL,
    RefusalCode.CELL_OVERLOADED,
    RefusalCode.WORKER_OVERLOADED,
    RefusalCode.PARTNER_UNAVAILABLE,
)
OF_WRITES: Final[tuple[Code, ...]] = (
    RefusalCode.PARTNER_SUSPENDED,
    EdgeCode.UNSUPPORTED_MEDIA_TYPE,
    EdgeCode.BODY_TOO_LARGE,
    EdgeCode.TOO_MANY_SLOW_BODIES,
    EdgeCode.BODY_TIMEOUT,
    EdgeCode.BODY_INVALID,
    EdgeCode.IDEMPOTENCY_KEY_INVALID,
    RefusalCode.IDEMPOTENCY_KEY_REUSED,
    RefusalCode.IDEMPOTENCY_KEY_IN_USE,
    RefusalCode.RATE_LIMITED,
    RefusalCode.ACQUIRER_UNAVAILABLE,
    RefusalCode.COMMAND_TOO_LARGE,
    RefusalCode.COMMAND_QUARANTINED,
    RefusalCode.OUTCOME_UNKNOWN,
)
_OF_CHANGES: Final[tuple[Code, ...]] = (
    RefusalCode.AMOUNT_INVALID,
    RefusalCode.PAYMENT_NOT_FOUND,
    RefusalCode.PAYMENT_PROCESSING,
    RefusalCode.PAYMENT_STATE_INVALID,
    RefusalCode.TOO_MANY_OPERATIONS,
    RefusalCode.AMOUNT_TOO_LARGE,
)
_OF_CONFIRMS: Final[tuple[Code, ...]] = (
    RefusalCode.PAYMENT_NOT_FOUND,
    RefusalCode.PAYMENT_PROCESSING,
    RefusalCode.PAYMENT_STATE_INVALID,
)
_UNSETTLED: Final = "The outcome is not known yet; ask for it, or wait for its event."

# The order is the order of matching: what is asked most comes first.
ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    Endpoint(
        "POST",
        "/v1/payments",
        "create_payment",
        "Make a payment. A decline is an outcome: status `failed`, with a code. `requires_action` has a `next_action`.",
        Method.CREATE_PAYMENT,
        {201: (models.Payment, "The payment."), 202: (models.Payment, f"Status `processing`. {_UNSETTLED}")},
        writes=True,
        body=models.PaymentRequest,
        refusals=(RefusalCode.CURRENCY_UNKNOWN, RefusalCode.CURRENCY_NOT_ACCEPTED, RefusalCode.AMOUNT_INVALID),
    ),
    Endpoint(
        "GET",
        "/v1/payments/{id}",
        "get_payment",
        "Get a payment in its newest state.",
        Method.GET_PAYMENT,
        {200: (models.Payment, "The payment.")},
        path_id=_PAYMENT,
        refusals=(RefusalCode.PAYMENT_NOT_FOUND,),
    ),
    Endpoint(
        "GET",
        "/v1/payments",
        "list_payments",
        "List payments, the newest first.",
        Method.LIST_PAYMENTS,
        {200: (models.PaymentList, "A page.")},
        query=models.PaymentsQuery,
        refusals=(RefusalCode.CURSOR_INVALID,),
    ),
    Endpoint(
        "POST",
        "/v1/payments/{id}/capture",
        "capture_payment",
        "Capture all or part of what is authorized.",
        Method.CAPTURE_PAYMENT,
        {200: (models.Payment, "The payment."), 202: (models.Payment, _UNSETTLED)},
        writes=True,
        body=models.CaptureRequest,
        body_optional=True,
        path_id=_PAYMENT,
        refusals=_OF_CHANGES,
    ),
    Endpoint(
        "POST",
        "/v1/payments/{id}/void",
        "void_payment",
        "Release what is authorized and not captured; or cancel a payment in `requires_action`.",
        Method.VOID_PAYMENT,
        {200: (models.Payment, "The payment."), 202: (models.Payment, _UNSETTLED)},
        writes=True,
        body=models.VoidRequest,
        body_optional=True,
        path_id=_PAYMENT,
        refusals=_OF_CHANGES,
    ),
    Endpoint(
        "POST",
        "/v1/payments/{id}/confirm",
        "confirm_payment",
        "Go on with a payment in `requires_action` once the customer came back.",
        Method.CONFIRM_PAYMENT,
        {200: (models.Payment, "The payment."), 202: (models.Payment, _UNSETTLED)},
        writes=True,
        body=models.ConfirmRequest,
        body_optional=True,
        path_id=_PAYMENT,
        refusals=_OF_CONFIRMS,
    ),
    Endpoint(
        "POST",
        "/v1/payments/{id}/refunds",
        "refund_payment",
        "Refund all or part of what is captured.",
        Method.REFUND_PAYMENT,
        {201: (models.Refund, "The refund."), 202: (models.Refund, _UNSETTLED)},
        writes=True,
        body=models.RefundRequest,
        body_optional=True,
        path_id=_PAYMENT,
        refusals=_OF_CHANGES,
    ),
    Endpoint(
        "GET",
        "/v1/refunds/{id}",
        "get_refund",
        "Get a refund in its newest state.",
        Method.GET_REFUND,
        {200: (models.Refund, "The refund.")},
        path_id=_REFUND,
        refusals=(RefusalCode.REFUND_NOT_FOUND,),
    ),
    Endpoint(
        "GET",
        "/v1/balance",
        "get_balance",
        "Get the balance, by currency.",
        Method.GET_BALANCE,
        {200: (models.Balance, "The balance.")},
    ),
    Endpoint(
        "GET",
        "/v1/events",
        "list_events",
        "List events, the newest first.",
        Method.LIST_EVENTS,
        {200: (models.EventList, "A page.")},
        query=models.EventsQuery,
        refusals=(RefusalCode.CURSOR_INVALID,),
    ),
    Endpoint(
        "GET",
        "/v1/partner",
        "get_partner",
        "Get the partner that the API key names.",
        None,
        {200: (models.PartnerAccount, "The partner.")},
    ),
)


def codes(endpoint: Endpoint) -> tuple[Code, ...]:
    """Give every code that the endpoint may answer with."""
    return (
        ALWAYS
        + (OF_WRITES if endpoint.writes else OF_READS)
        + (OF_CELLS if endpoint.command is not None else ())
        + endpoint.refusals
    )
