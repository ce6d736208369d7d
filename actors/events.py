"""What happened to a payment, as the journal keeps it. Events are facts: applying one never fails, never decides."""

from collections.abc import Mapping
from dataclasses import replace

from actors.payment import (
    MONEY_KINDS,
    Challenge,
    Dispute,
    DisputeStatus,
    Failure,
    Operation,
    OperationKind,
    OperationState,
    Outcome,
    Payment,
    next_state,
)
from actors.values import dataclass


@dataclass(frozen=True, slots=True)
class PaymentCreated:
    """A payment was asked for."""

    payment_id: str
    at_ms: int
    amount: int
    currency: str
    payment_method: str
    manual_capture: bool
    reference: str | None
    description: str | None
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PaymentRouted:
    """The payment is another acquirer's than the main one, for ever. Comes before its first operation."""

    payment_id: str
    acquirer: str


@dataclass(frozen=True, slots=True)
class OperationIntended:
    """The acquirer will be asked. The amount is reserved from now on."""

    payment_id: str
    operation_id: str
    kind: str
    amount: int
    at_ms: int
    reason: str | None


@dataclass(frozen=True, slots=True)
class OperationApproved:
    """The acquirer did it. Final. `expires_ms`: the end of an authorization; `resolved_by`: a person said so."""

    payment_id: str
    operation_id: str
    at_ms: int
    acquirer_reference: str
    expires_ms: int | None
    resolved_by: str | None


@dataclass(frozen=True, slots=True)
class OperationDeclined:
    """The acquirer did not and will not do it. Final."""

    payment_id: str
    operation_id: str
    at_ms: int
    code: str
    retryable: bool
    resolved_by: str | None


@dataclass(frozen=True, slots=True)
class OperationLost:
    """No final answer came; it will be asked for again."""

    payment_id: str
    operation_id: str
    at_ms: int
    why: str


@dataclass(frozen=True, slots=True)
class AuthorizationExpired:
    """The acquirer holds `amount` no longer."""

    payment_id: str
    at_ms: int
    amount: int


@dataclass(frozen=True, slots=True)
class ExpiryDeferred:
    """The end of the authorization is to be looked at again at `until_ms`."""

    payment_id: str
    until_ms: int


@dataclass(frozen=True, slots=True)
class OperationChallenged:
    """The customer is to be sent to `url` before anything is moved; after `expires_ms` it is withdrawn."""

    payment_id: str
    operation_id: str
    at_ms: int
    url: str
    expires_ms: int


@dataclass(frozen=True, slots=True)
class OperationConfirmed:
    """The customer came back, says the partner: the acquirer will be asked to go on."""

    payment_id: str
    operation_id: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class OperationWithdrawn:
    """Nobody waits for the customer any more: the key will be closed at the acquirer. `reason`: canceled, expired."""

    payment_id: str
    operation_id: str
    at_ms: int
    reason: str


@dataclass(frozen=True, slots=True)
class OperationAccepted:
    """The acquirer took it and tells its result later."""

    payment_id: str
    operation_id: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class DisputeOpened:
    """The acquirer took `amount` back, which the operation had moved. `opened_ms` is the acquirer's time."""

    payment_id: str
    operation_id: str
    at_ms: int
    dispute_id: str
    amount: int
    reason: str
    opened_ms: int


@dataclass(frozen=True, slots=True)
class DisputeClosed:
    """The dispute is decided. Final. Won: the acquirer gave `amount` back."""

    payment_id: str
    operation_id: str
    at_ms: int
    dispute_id: str
    amount: int
    won: bool
    closed_ms: int


@dataclass(frozen=True, slots=True)
class AcquirerContradicted:
    """The acquirer claims what does not go with what is final here. Changes nothing: a person looks into it."""

    payment_id: str
    operation_id: str
    at_ms: int
    claim: str


@dataclass(frozen=True, slots=True)
class OperationReconciled:
    """A settlement file of the acquirer paid the operation out: `gross` less `fee`, refunds negative.

    `settled_on`: the file's day, YYYY-MM-DD. `fee_agreed`: what the fee should have been. Once for each operation.
    """

    payment_id: str
    operation_id: str
    at_ms: int
    settled_on: str
    gross: int
    fee: int
    fee_agreed: int


@dataclass(frozen=True, slots=True)
class PartnerChanged:
    """An operator changed something of the partner as a whole, which the partner is to see. It posts nothing.

    `at_ms`: the control plane's time of it. `detail` names no person, and no key but by its id and its last characters.
    """

    change_id: str
    what: str
    at_ms: int
    detail: Mapping[str, str | int]


# What happens to a payment.
Event = (
    PaymentCreated
    | PaymentRouted
    | OperationIntended
    | OperationApproved
    | OperationDeclined
    | OperationLost
    | AuthorizationExpired
    | ExpiryDeferred
    | OperationChallenged
    | OperationConfirmed
    | OperationWithdrawn
    | OperationAccepted
    | DisputeOpened
    | DisputeClosed
    | AcquirerContradicted
    | OperationReconciled
)
# What an entry of the journal may hold.
JournalEvent = Event | PartnerChanged


def apply(payment: Payment | None, event: Event) -> Payment:  # noqa: C901, PLR0911, PLR0912 - one case per event
    """Give the payment after the event. An event that does not fit is a bug."""
    if isinstance(event, PaymentCreated):
        assert payment is None, f"{event.payment_id} is created twice"
        return Payment(
            event.payment_id,
            event.at_ms,
            event.amount,
            event.currency,
            event.payment_method,
            event.manual_capture,
            event.reference,
            event.description,
            event.metadata,
        )
    assert payment is not None, f"an event of {event.payment_id}, which was never created"
    assert payment.id == event.payment_id
    match event:
        case PaymentRouted():
            assert not payment.operations, f"{payment.id} was asked for at {payment.acquirer}"
            return replace(payment, acquirer=event.acquirer)
        case OperationIntended():
            kind = OperationKind(event.kind)
            operation = Operation(
                event.operation_id, kind, event.amount, OperationState.PENDING, event.at_ms, reason=event.reason
            )
            return replace(payment, operations=(*payment.operations, operation))
        case OperationApproved():
            operation = payment.operation(event.operation_id)
            settled = replace(
                operation,
                state=next_state(operation.state, Outcome.APPROVED),
                settled_ms=event.at_ms,
                acquirer_reference=event.acquirer_reference,
                resolved_by=event.resolved_by,
                challenge=None,
            )
            after = _with(payment, settled)
            if operation.kind is OperationKind.AUTHORIZATION:
                return replace(after, expires_ms=event.expires_ms, expiry_check_ms=event.expires_ms)
            return after
        case OperationDeclined():
            operation = payment.operation(event.operation_id)
            settled = replace(
                operation,
                state=next_state(operation.state, Outcome.DECLINED),
                settled_ms=event.at_ms,
                failure=Failure(event.code, event.retryable),
                resolved_by=event.resolved_by,
                challenge=None,
            )
            return _with(payment, settled)
        case OperationLost():
            operation = payment.operation(event.operation_id)
            return _with(payment, replace(operation, state=next_state(operation.state, Outcome.LOST)))
        case AuthorizationExpired():
            return replace(payment, amount_expired=payment.amount_expired + event.amount)
        case ExpiryDeferred():
            return replace(payment, expiry_check_ms=event.until_ms)
        case OperationReconciled():
            operation = payment.operation(event.operation_id)
            assert operation.kind in MONEY_KINDS, f"{operation.id} moved no money"
            assert operation.state is OperationState.SUCCEEDED, f"{operation.id} is {operation.state}"
            return payment
        case OperationChallenged():
            operation = payment.operation(event.operation_id)
            assert operation is payment.first, "only what opens a payment is challenged"
            state = next_state(operation.state, Outcome.CHALLENGED)
            return _with(payment, replace(operation, state=state, challenge=Challenge(event.url, event.expires_ms)))
        case OperationConfirmed():
            operation = payment.operation(event.operation_id)
            state = next_state(operation.state, Outcome.CONFIRMED)
            return _with(payment, replace(operation, state=state, confirmations=operation.confirmations + 1))
        case OperationWithdrawn():
            operation = payment.operation(event.operation_id)
            state = next_state(operation.state, Outcome.WITHDRAWN)
            return _with(payment, replace(operation, state=state, withdrawn=event.reason))
        case OperationAccepted():
            operation = payment.operation(event.operation_id)
            return _with(payment, replace(operation, state=next_state(operation.state, Outcome.ACCEPTED)))
        case DisputeOpened():
            assert payment.dispute(event.dispute_id) is None, f"{event.dispute_id} is opened twice"
            dispute = Dispute(
                event.dispute_id, event.operation_id, event.amount, event.reason, DisputeStatus.OPEN, event.opened_ms
            )
            return replace(payment, disputes=(*payment.disputes, dispute))
        case DisputeClosed():
            known = payment.dispute(event.dispute_id)
            assert known is not None, f"{event.dispute_id} was never opened"
            assert known.status is DisputeStatus.OPEN, f"{event.dispute_id} is closed twice"
            closed = replace(
                known, status=DisputeStatus.WON if event.won else DisputeStatus.LOST, closed_ms=event.closed_ms
            )
            return replace(payment, disputes=tuple(closed if d.id == closed.id else d for d in payment.disputes))
        case AcquirerContradicted():
            return payment


def _with(payment: Payment, operation: Operation) -> Payment:
    operations = tuple(operation if o.id == operation.id else o for o in payment.operations)
    return replace(payment, operations=operations)
