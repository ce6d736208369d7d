"""A payment and its operations: what they are, how an operation's state moves, what follows from it.

The transitions are one table; the diagram in docs/payments.md is generated from it. A payment has no state of its
own: its status and amounts are derived from its operations. No clock, no I/O.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from actors.profile import MAIN_ACQUIRER
from actors.values import dataclass


class OperationKind(StrEnum):
    """What is asked of the acquirer. A purchase authorizes and captures in one."""

    AUTHORIZATION = "authorization"
    PURCHASE = "purchase"
    VERIFICATION = "verification"
    CAPTURE = "capture"
    VOID = "void"
    REFUND = "refund"


class OperationState(StrEnum):
    """Where an operation stands.

    Unknown: asked, and no final answer came. Requires action: the customer is to act, and the acquirer is not asked
    meanwhile. Accepted: the acquirer took it and tells its result later.
    """

    PENDING = "pending"
    UNKNOWN = "unknown"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REQUIRES_ACTION = "requires_action"
    ACCEPTED = "accepted"


class Outcome(StrEnum):
    """What became known of an operation; of one that waits for its customer, also what was decided here."""

    APPROVED = "approved"
    DECLINED = "declined"
    LOST = "lost"
    CHALLENGED = "challenged"
    ACCEPTED = "accepted"
    CONFIRMED = "confirmed"
    WITHDRAWN = "withdrawn"


class DisputeStatus(StrEnum):
    """Where a dispute stands. Won and lost are final."""

    OPEN = "open"
    WON = "won"
    LOST = "lost"


class PaymentStatus(StrEnum):
    """What partners see."""

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
        (OperationState.PENDING, Outcome.CHALLENGED): OperationState.REQUIRES_ACTION,
        (OperationState.UNKNOWN, Outcome.CHALLENGED): OperationState.REQUIRES_ACTION,
        (OperationState.ACCEPTED, Outcome.CHALLENGED): OperationState.REQUIRES_ACTION,
        (OperationState.REQUIRES_ACTION, Outcome.CONFIRMED): OperationState.PENDING,
        (OperationState.REQUIRES_ACTION, Outcome.WITHDRAWN): OperationState.PENDING,
        (OperationState.REQUIRES_ACTION, Outcome.APPROVED): OperationState.SUCCEEDED,
        (OperationState.REQUIRES_ACTION, Outcome.DECLINED): OperationState.FAILED,
        (OperationState.PENDING, Outcome.ACCEPTED): OperationState.ACCEPTED,
        (OperationState.UNKNOWN, Outcome.ACCEPTED): OperationState.ACCEPTED,
        (OperationState.ACCEPTED, Outcome.APPROVED): OperationState.SUCCEEDED,
        (OperationState.ACCEPTED, Outcome.DECLINED): OperationState.FAILED,
        (OperationState.ACCEPTED, Outcome.LOST): OperationState.UNKNOWN,
    }
)
# The acquirer is asked, or is to tell: these are kept as open operations and resumed by the next owner.
OPEN_STATES: Final = frozenset({OperationState.PENDING, OperationState.UNKNOWN, OperationState.ACCEPTED})
FINAL_STATES: Final = frozenset({OperationState.SUCCEEDED, OperationState.FAILED})
FIRST_KINDS: Final = frozenset({OperationKind.AUTHORIZATION, OperationKind.PURCHASE, OperationKind.VERIFICATION})
# What an acquirer's settlement files have rows for.
MONEY_KINDS: Final = frozenset({OperationKind.PURCHASE, OperationKind.CAPTURE, OperationKind.REFUND})
_TAKE_AUTHORIZED: Final = (OperationKind.CAPTURE, OperationKind.VOID)
REASON_EXPIRED: Final = "expired"
REASON_CANCELED: Final = "canceled"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an operation failed; `retryable`: a new payment with the same method may go through later."""

    code: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class Challenge:
    """Where the customer is to be sent (3-D Secure), and until when."""

    url: str
    expires_ms: int


@dataclass(frozen=True, slots=True)
class Dispute:
    """Money that the acquirer took back because the customer disputes it; `operation_id` had moved it."""

    id: str
    operation_id: str
    amount: int
    reason: str
    status: DisputeStatus
    opened_ms: int
    closed_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing asked of the acquirer. Its id is its key there, for ever.

    `confirmations` counts how often the partner said that the customer came back; `withdrawn` says why its key is
    being closed: the partner canceled it, or nobody confirmed it in time.
    """

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
    challenge: Challenge | None = None
    confirmations: int = 0
    withdrawn: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether the acquirer's word is still to come."""
        return self.state in OPEN_STATES

    @property
    def is_final(self) -> bool:
        """Whether the acquirer's last word is there."""
        return self.state in FINAL_STATES


@dataclass(frozen=True, slots=True)
class Payment:
    """A payment of one partner. Amounts in minor units of `currency`. All of it is `acquirer`'s."""

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
    disputes: tuple[Dispute, ...] = ()
    acquirer: str = MAIN_ACQUIRER

    def operation(self, operation_id: str) -> Operation:
        """Give one of its operations; asking for another payment's is a bug."""
        operation = self.find(operation_id)
        assert operation is not None, f"{operation_id} is no operation of {self.id}"
        return operation

    def find(self, operation_id: str) -> Operation | None:
        """Give one of its operations, if it is one."""
        for operation in self.operations:
            if operation.id == operation_id:
                return operation
        return None

    def dispute(self, dispute_id: str) -> Dispute | None:
        """Give one of its disputes, if it is one."""
        for dispute in self.disputes:
            if dispute.id == dispute_id:
                return dispute
        return None

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
    def amount_disputed(self) -> int:
        """What the acquirer took back: of disputes that are open or lost."""
        if not self.disputes:
            return 0
        return sum(dispute.amount for dispute in self.disputes if dispute.status is not DisputeStatus.WON)

    @property
    def amount_unreturned(self) -> int:
        """What is captured and not refunded; open refunds hold their part already."""
        given = sum(
            operation.amount
            for operation in self.operations
            if operation.kind is OperationKind.REFUND and operation.state is not OperationState.FAILED
        )
        return self.amount_captured - given

    @property
    def amount_refundable(self) -> int:
        """What a refund can still give back: never what a dispute took, or the customer would get it twice."""
        return max(self.amount_unreturned - self.amount_disputed, 0)

    @property
    def status(self) -> PaymentStatus:
        """What partners see, derived from operations and amounts."""
        first = self.first
        if first.is_open:
            return PaymentStatus.PROCESSING
        if first.state is OperationState.REQUIRES_ACTION:
            return PaymentStatus.REQUIRES_ACTION
        if first.state is OperationState.FAILED:
            assert first.failure is not None, f"{first.id} failed without a failure"
            # The acquirer may have declined it before it heard that it was canceled.
            canceled = first.withdrawn == REASON_CANCELED == first.failure.code
            return PaymentStatus.CANCELED if canceled else PaymentStatus.FAILED
        if self.amount_disputed:
            return PaymentStatus.DISPUTED
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
        """When its authorization is to be looked at, while it holds something; or when its challenge ends."""
        first = self.first
        if first.state is OperationState.REQUIRES_ACTION:
            assert first.challenge is not None, f"{first.id} waits for a customer who was sent nowhere"
            return first.challenge.expires_ms
        return self.expiry_check_ms if self.amount_capturable > 0 else None

    def has_open(self, *kinds: OperationKind) -> bool:
        """Whether an operation of one of these kinds has its outcome still to come."""
        return any(operation.is_open and operation.kind in kinds for operation in self.operations)

    def _total(self, kind: OperationKind, state: OperationState) -> int:
        return sum(o.amount for o in self.operations if o.kind is kind and o.state is state)


def payment_id_of(opening_operation_id: str) -> str:
    """Give the id of the payment that the operation opened: the same, behind another prefix."""
    return f"pay_{opening_operation_id.partition('_')[2]}"


def next_state(state: OperationState, outcome: Outcome) -> OperationState:
    """Look the transition up; asking for one that the table lacks is a bug."""
    assert (state, outcome) in TRANSITIONS, f"no transition from {state} by {outcome}"
    return TRANSITIONS[state, outcome]


def diagram() -> str:
    """Draw the table as a Mermaid state diagram, for docs/payments.md."""
    lines = ["stateDiagram-v2", "    [*] --> pending: intended"]
    lines += [f"    {state} --> {target}: {outcome}" for (state, outcome), target in TRANSITIONS.items()]
    lines += [f"    {state} --> [*]" for state in OperationState if state in FINAL_STATES]
    return "\n".join(lines)
