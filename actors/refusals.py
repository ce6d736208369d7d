"""Every way a command is refused, in order of precedence: the first that applies is the one reported.

A refusal changes nothing and is not remembered: the idempotency key of a refused command is still free.
The router maps each to HTTP in one total table (router/problems.py).
"""

from dataclasses import dataclass, field
from enum import StrEnum


class RefusalCode(StrEnum):
    """Stable, public codes; the order below is the order of precedence."""

    # Who asks, and where.
    PARTNER_MOVED = "partner_moved"
    PARTNER_QUARANTINED = "partner_quarantined"
    PARTNER_SUSPENDED = "partner_suspended"
    # Idempotency.
    IDEMPOTENCY_KEY_REUSED = "idempotency_key_reused"
    IDEMPOTENCY_KEY_IN_USE = "idempotency_key_in_use"
    # What is asked.
    CURRENCY_UNKNOWN = "currency_unknown"
    CURRENCY_NOT_ACCEPTED = "currency_not_accepted"
    AMOUNT_INVALID = "amount_invalid"
    CURSOR_INVALID = "cursor_invalid"
    PAYMENT_NOT_FOUND = "payment_not_found"
    REFUND_NOT_FOUND = "refund_not_found"
    OPERATION_NOT_FOUND = "operation_not_found"
    PAYMENT_PROCESSING = "payment_processing"
    PAYMENT_STATE_INVALID = "payment_state_invalid"
    OPERATION_FINAL = "operation_final"
    OPERATION_STILL_PURSUED = "operation_still_pursued"
    TOO_MANY_OPERATIONS = "too_many_operations"
    AMOUNT_TOO_LARGE = "amount_too_large"
    # How much is asked.
    RATE_LIMITED = "rate_limited"
    TOO_MANY_IN_FLIGHT = "too_many_in_flight"
    MAILBOX_FULL = "mailbox_full"
    # How much there is to do: shed before anything was looked at.
    CELL_OVERLOADED = "cell_overloaded"
    WORKER_OVERLOADED = "worker_overloaded"
    # What is broken; nothing was written.
    ACQUIRER_UNAVAILABLE = "acquirer_unavailable"
    COMMAND_TOO_LARGE = "command_too_large"
    COMMAND_QUARANTINED = "command_quarantined"
    PARTNER_UNAVAILABLE = "partner_unavailable"
    # It may have been written: ask again with the same idempotency key.
    OUTCOME_UNKNOWN = "outcome_unknown"
    INTERNAL_ERROR = "internal_error"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A command refused. `pointer` is a JSON pointer into the request; `context` names figures and states."""

    code: RefusalCode
    detail: str
    pointer: str | None = None
    retry_after_ms: int | None = None
    context: dict[str, str | int] = field(default_factory=dict)
