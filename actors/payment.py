"""A payment and its operations: what they are, how an operation's state moves, what follows from it.

The transitions are one table; the diagram in docs/payments.md is generated from it. A payment has no state of its
own: its status and amounts are derived from its operations. No clock, no I/O.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class OperationKind(StrEnum):
    """What is asked of the acquirer. A purchase authorizes and captures in one."""

    AUTHORIZATION = "authorization"
    PURCHASE = "purchase"
    VERIFICATION = "verification"
    CAPTURE = "capture"
    VOID = "void"
    REFUND = "refund"


class OperationState(StrEnum):
    """Where an operation stands. Unknown: asked, and no final answer came."""

    PENDING = "pending"
    UNKNOWN = "unknown"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class Outcome(StrEnum):
    """What became known of an operation."""

    APPROVED = "approved"
    DECLINED = "declined"
    LOST = "lost"


class PaymentStatus(StrEnum):
    """What partners see. requires_action and disputed are reserved for 3-D Secure and disputes."""

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


TRANSITIONS: Final[Mapping[tuple[OperationState, Outcome], OperationState]] = MappingProxyType(
    {
        (OperationState.PENDING, Outcome.APPROVED): OperationState.SUCCEEDED,
        (OperationState.PENDING, Outcome.DECLINED): OperationState.FAILED,
        (OperationState.PENDING, Outcome.LOST): OperationState.UNKNOWN,
        (OperationState.UNKNOWN, Outcome.APPROVED): OperationState.SUCCEEDED,
        (OperationState.UNKNOWN, Outcome.DECLINED): OperationState.FAILED,
    }
)
OPEN_STATES: Final = frozenset({OperationState.PENDING, OperationState.UNKNOWN})
FIRST_KINDS: Final = frozenset({OperationKind.AUTHORIZATION, OperationKind.PURCHASE, OperationKind.VERIFICATION})
# What an acquirer's settlement files have rows for.
MONEY_KINDS: Final = frozenset({OperationKind.PURCHASE, OperationKind.CAPTURE, OperationKind.REFUND})
_TAKE_AUTHORIZED: Final = (OperationKind.CAPTURE, OperationKind.VOID)
REASON_EXPIRED: Final = "expired"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an operation failed; `retryable`: a new payment with the same method may go through later."""

    code: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing asked of the acquirer. Its id is its key there, for ever."""

    id: str
    kind: OperationKind
    amount: int
    state: OperationState
    created_ms: int
    settled_ms: int | None = None
    failure: Failure | None = None
    acquirer_reference: str | None = None
    reason: str | None = None
    resolved_by: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether its outcome is still to come."""
        return self.state in OPEN_STATES


@dataclass(frozen=True, slots=True)
class Payment:
    """A payment of one partner. Amounts in minor units of `currency`."""

    id: str
    created_ms: int
    amount: int
    currency: str
    payment_method: str
    manual_capture: bool
    reference: str | None
    description: str | None
    metadata: Mapping[str, str]
    operations: tuple[Operation, ...] = ()
    expires_ms: int | None = None
    expiry_check_ms: int | None = None
    amount_expired: int = 0

    def operation(self, operation_id: str) -> Operation:
        """Give one of its operations; asking for another payment's is a bug."""
        for operation in self.operations:
            if operation.id == operation_id:
                return operation
        raise AssertionError(f"{operation_id} is no operation of {self.id}")

    @property
    def first(self) -> Operation:
        """The authorization, purchase or verification that opened it."""
        return self.operations[0]

    @property
    def amount_authorized(self) -> int:
        """What the acquirer approved."""
        return self.first.amount if self.first.state is OperationState.SUCCEEDED else 0

    @property
    def amount_captured(self) -> int:
        """What was captured, refunds not taken off."""
        purchased = self.amount_authorized if self.first.kind is OperationKind.PURCHASE else 0
        return purchased + self._total(OperationKind.CAPTURE, OperationState.SUCCEEDED)

    @property
    def amount_refunded(self) -> int:
        """What was given back."""
        return self._total(OperationKind.REFUND, OperationState.SUCCEEDED)

    @property
    def amount_capturable(self) -> int:
        """What a capture can still take: open captures and voids hold their part already."""
        if self.first.kind is not OperationKind.AUTHORIZATION:
            return 0
        taken = sum(
            operation.amount
            for operation in self.operations
            if operation.kind in _TAKE_AUTHORIZED and operation.state is not OperationState.FAILED
        )
        return self.amount_authorized - taken - self.amount_expired

    @property
    def amount_refundable(self) -> int:
        """What a refund can still give back: open refunds hold their part already."""
        given = sum(
            operation.amount
            for operation in self.operations
            if operation.kind is OperationKind.REFUND and operation.state is not OperationState.FAILED
        )
        return self.amount_captured - given

    @property
    def status(self) -> PaymentStatus:
        """What partners see, derived from operations and amounts."""
        if self.first.is_open:
            return PaymentStatus.PROCESSING
        if self.first.state is OperationState.FAILED:
            return PaymentStatus.FAILED
        captured = self.amount_captured
        if captured:
            refunded = self.amount_refunded
            if refunded == captured and not self.amount_capturable and not self.has_open(*_TAKE_AUTHORIZED):
                return PaymentStatus.REFUNDED
            if refunded:
                return PaymentStatus.PARTIALLY_REFUNDED
            return PaymentStatus.CAPTURED if captured == self.amount_authorized else PaymentStatus.PARTIALLY_CAPTURED
        voids = [
            operation
            for operation in self.operations
            if operation.kind is OperationKind.VOID and operation.state is OperationState.SUCCEEDED
        ]
        if self.amount_capturable or self.has_open(*_TAKE_AUTHORIZED):
            return PaymentStatus.AUTHORIZED  # neither expired nor canceled while something may still be captured
        if self.amount_expired or any(void.reason == REASON_EXPIRED for void in voids):
            return PaymentStatus.EXPIRED
        return PaymentStatus.CANCELED if voids else PaymentStatus.AUTHORIZED

    @property
    def due_ms(self) -> int | None:
        """When its authorization is to be looked at, while it holds something."""
        return self.expiry_check_ms if self.amount_capturable > 0 else None

    def has_open(self, *kinds: OperationKind) -> bool:
        """Whether an operation of one of these kinds has its outcome still to come."""
        return any(operation.is_open and operation.kind in kinds for operation in self.operations)

    def _total(self, kind: OperationKind, state: OperationState) -> int:
        return sum(o.amount for o in self.operations if o.kind is kind and o.state is state)


def next_state(state: OperationState, outcome: Outcome) -> OperationState:
    """Look the transition up; asking for one that the table lacks is a bug."""
    assert (state, outcome) in TRANSITIONS, f"no transition from {state} by {outcome}"
    return TRANSITIONS[state, outcome]


def diagram() -> str:
    """Draw the table as a Mermaid state diagram, for docs/payments.md."""
    lines = ["stateDiagram-v2", "    [*] --> pending: intended"]
    lines += [f"    {state} --> {target}: {outcome}" for (state, outcome), target in TRANSITIONS.items()]
    final = [state for state in OperationState if state not in OPEN_STATES]
    lines += [f"    {state} --> [*]" for state in final]
    return "\n".join(lines)
