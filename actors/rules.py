"""The rules: `decide` says what a command leads to, or why it is refused; `settle` what an acquirer's word leads to.

Pure: time, ids and everything stored are arguments. A refusal changes nothing. Refusals are checked in the order of
`RefusalCode`, so that the same wrong is reported the same way every time.
"""

from dataclasses import dataclass, field

from actors import limits, rate_limit
from actors.acquirer import Approved, Declined, NeverPerformed
from actors.commands import CapturePayment, Command, CreatePayment, RefundPayment, ResolveOperation, VoidPayment
from actors.events import (
    AuthorizationExpired,
    Event,
    ExpiryDeferred,
    OperationApproved,
    OperationDeclined,
    OperationIntended,
    OperationLost,
    PaymentCreated,
    apply,
)
from actors.ledger import Balances
from actors.money import is_chargeable
from actors.payment import REASON_EXPIRED, OperationKind, OperationState, Payment
from actors.profile import Profile
from actors.refusals import Refusal, RefusalCode
from actors.views import timestamp

# Declines by which the acquirer says that an authorization is no more.
_AUTHORIZATION_GONE = frozenset({"authorization_expired", "authorization_voided"})
CODE_NEVER_PERFORMED = "acquirer_did_not_answer"
CODE_RESOLVED_FAILED = "resolved_as_failed"
REFERENCE_RESOLVED = "resolved_by_operator"


@dataclass(frozen=True, slots=True)
class Standing:
    """What a partner's actor knows of the partner as a whole, beside its payments."""

    sequence: int = 0  # of the last journal entry
    floor_ms: int = 0  # time never goes below this
    arrival_us: int = 0  # of the rate limit
    open_operations: int = 0
    swept_sequence: int = 0  # journal entries up to here have had their idempotency records removed
    balances: Balances = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ids:
    """The ids for whatever a command may make. All end in the same ULID: reconciliation.py finds payments by it."""

    payment_id: str
    operation_id: str
    refund_id: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What a command leads to. `arrival_us`: the rate limit's new instant; None where it was not charged."""

    events: tuple[Event, ...]
    arrival_us: int | None = None


def decide(
    profile: Profile,
    standing: Standing,
    payment: Payment | None,
    command: Command,
    now_ms: int,
    ids: Ids,
    *,
    acquirer_available: bool = True,
) -> Decision | Refusal:
    """Decide a command. `payment` is the one it names (or whose operation it names), None where there is none."""
    if isinstance(command, ResolveOperation):
        return _resolve(profile, payment, command, now_ms)
    if profile.status != "active":
        return Refusal(RefusalCode.PARTNER_SUSPENDED, "The partner is suspended; nothing new is taken.")
    events: tuple[Event, ...] | Refusal
    if isinstance(command, CreatePayment):
        events = _create(command, now_ms, ids)
    elif not isinstance(command, VoidPayment) and command.amount == 0:
        events = Refusal(RefusalCode.AMOUNT_INVALID, "At least 1 is captured or refunded.", "/amount")
    elif payment is None:
        events = Refusal(RefusalCode.PAYMENT_NOT_FOUND, f"There is no payment {command.payment_id}.", "/payment_id")
    elif payment.first.is_open:
        events = Refusal(
            RefusalCode.PAYMENT_PROCESSING,
            "The payment's own outcome is not known yet; ask for it and try again then.",
            retry_after_ms=1_000,
            context={"status": payment.status.value},
        )
    else:
        events = _follow_up(payment, command, now_ms, ids)
    if isinstance(events, Refusal):
        return events
    rate = rate_limit.admit(standing.arrival_us, now_ms * 1_000, profile.rate_per_second, profile.rate_burst)
    if isinstance(rate, rate_limit.Limited):
        return Refusal(
            RefusalCode.RATE_LIMITED,
            f"More than {profile.rate_per_second} requests a second (burst {profile.rate_burst}).",
            retry_after_ms=max(-(-rate.retry_after_us // 1_000), 1),
        )
    if standing.open_operations >= profile.in_flight_max:
        return Refusal(
            RefusalCode.TOO_MANY_IN_FLIGHT,
            f"{standing.open_operations} operations await their outcome; {profile.in_flight_max} are allowed.",
            retry_after_ms=1_000,
        )
    if not acquirer_available:
        return Refusal(
            RefusalCode.ACQUIRER_UNAVAILABLE,
            "The acquirer does not answer; nothing was started.",
            retry_after_ms=limits.BREAKER_OPEN_MS,
        )
    return Decision(events, rate.arrival_us)


def settle(
    profile: Profile, payment: Payment, operation_id: str, outcome: Approved | Declined | NeverPerformed, now_ms: int
) -> tuple[Event, ...]:
    """Take the acquirer's final word. What is final already stays as it is: no events."""
    operation = payment.operation(operation_id)
    if not operation.is_open:
        return ()
    if isinstance(outcome, Approved):
        return _approved(profile, payment, operation_id, outcome, now_ms, None)
    if isinstance(outcome, NeverPerformed):
        outcome = Declined(CODE_NEVER_PERFORMED, retryable=True)
    return _declined(payment, operation_id, outcome, now_ms, None)


def lose(payment: Payment, operation_id: str, why: str, now_ms: int) -> tuple[Event, ...]:
    """Take note that no answer came. Only the first time is an event."""
    if payment.operation(operation_id).state is not OperationState.PENDING:
        return ()
    return (OperationLost(payment.id, operation_id, now_ms, why),)


def expire(payment: Payment, now_ms: int, ids: Ids) -> tuple[Event, ...]:
    """Let an authorization end that is due: ask the acquirer to release it; its word wins."""
    due_ms = payment.due_ms
    if due_ms is None or due_ms > now_ms:
        return ()
    if (
        payment.has_open(OperationKind.CAPTURE, OperationKind.VOID)
        or len(payment.operations) >= limits.OPERATIONS_PER_PAYMENT_MAX
    ):
        return (ExpiryDeferred(payment.id, now_ms + limits.EXPIRY_RETRY_DELAY_MS),)
    amount = payment.amount_capturable
    return (
        OperationIntended(payment.id, ids.operation_id, OperationKind.VOID.value, amount, now_ms, REASON_EXPIRED),
        # Should the acquirer decline the void, the authorization is looked at again then.
        ExpiryDeferred(payment.id, now_ms + limits.EXPIRY_RETRY_DELAY_MS),
    )


def _create(command: CreatePayment, now_ms: int, ids: Ids) -> tuple[Event, ...] | Refusal:
    if not is_chargeable(command.currency):
        return Refusal(
            RefusalCode.CURRENCY_UNKNOWN,
            f"{command.currency!r} is no currency of ISO 4217 with a minor unit.",
            "/currency",
        )
    if not command.amount:
        kind = OperationKind.VERIFICATION
    elif command.manual_capture:
        kind = OperationKind.AUTHORIZATION
    else:
        kind = OperationKind.PURCHASE
    return (
        PaymentCreated(
            ids.payment_id,
            now_ms,
            command.amount,
            command.currency,
            command.payment_method,
            command.manual_capture,
            command.reference,
            command.description,
            command.metadata,
        ),
        OperationIntended(ids.payment_id, ids.operation_id, kind.value, command.amount, now_ms, None),
    )


def _follow_up(
    payment: Payment, command: CapturePayment | VoidPayment | RefundPayment, now_ms: int, ids: Ids
) -> tuple[Event, ...] | Refusal:
    match command:
        case CapturePayment():
            kind, available, operation_id, reason = (
                OperationKind.CAPTURE,
                payment.amount_capturable,
                ids.operation_id,
                None,
            )
            blocked = payment.has_open(OperationKind.VOID)
        case VoidPayment():
            kind, available, operation_id, reason = (
                OperationKind.VOID,
                payment.amount_capturable,
                ids.operation_id,
                None,
            )
            blocked = payment.has_open(OperationKind.VOID, OperationKind.CAPTURE)
        case RefundPayment():
            kind, available, operation_id, reason = (
                OperationKind.REFUND,
                payment.amount_refundable,
                ids.refund_id,
                command.reason,
            )
            blocked = False
    if blocked:
        return Refusal(
            RefusalCode.PAYMENT_PROCESSING,
            f"Another operation is under way that excludes a {kind}; ask for the payment and try again then.",
            retry_after_ms=1_000,
            context={"status": payment.status.value},
        )
    if available <= 0:
        return Refusal(
            RefusalCode.PAYMENT_STATE_INVALID,
            f"The payment is {payment.status}: there is nothing left for a {kind}.",
            context={"status": payment.status.value},
        )
    if len(payment.operations) >= limits.OPERATIONS_PER_PAYMENT_MAX:
        return Refusal(
            RefusalCode.TOO_MANY_OPERATIONS,
            f"A payment takes at most {limits.OPERATIONS_PER_PAYMENT_MAX} operations.",
        )
    amount = available if isinstance(command, VoidPayment) or command.amount is None else command.amount
    if amount > available:
        return Refusal(
            RefusalCode.AMOUNT_TOO_LARGE,
            f"A {kind} of {amount} is asked for, {available} are left.",
            "/amount",
            context={"available": available},
        )
    return (OperationIntended(payment.id, operation_id, kind.value, amount, now_ms, reason),)


def _resolve(profile: Profile, payment: Payment | None, command: ResolveOperation, now_ms: int) -> Decision | Refusal:
    if payment is None:
        return Refusal(
            RefusalCode.OPERATION_NOT_FOUND,
            f"No open operation is called {command.operation_id}.",
            "/operation_id",
        )
    operation = payment.operation(command.operation_id)
    if operation.state is not OperationState.UNKNOWN:
        return Refusal(
            RefusalCode.OPERATION_FINAL,
            f"The operation is {operation.state}; only an unknown one is for a person to resolve.",
            context={"state": operation.state.value},
        )
    # The same instant as the open operation's `first_asked_ms`: from then on nobody asks (settlement.needs_person).
    asked_until_ms = operation.created_ms + limits.ACQUIRER_KEY_RETENTION_MS
    if now_ms < asked_until_ms:
        # Resolved as failed it could still be charged: the next attempt may be on its way.
        return Refusal(
            RefusalCode.OPERATION_STILL_PURSUED,
            f"The acquirer is still being asked, until {timestamp(asked_until_ms)} at the latest; nothing needs doing.",
            context={"state": operation.state.value, "asked_until_ms": asked_until_ms},
        )
    who = f"{command.operator}: {command.note}"
    if command.succeeded:
        return Decision(
            _approved(profile, payment, operation.id, Approved(REFERENCE_RESOLVED), now_ms, who),
        )
    return Decision(_declined(payment, operation.id, Declined(CODE_RESOLVED_FAILED, retryable=True), now_ms, who))


def _approved(
    profile: Profile,
    payment: Payment,
    operation_id: str,
    outcome: Approved,
    now_ms: int,
    resolved_by: str | None,
) -> tuple[Event, ...]:
    expires_ms = None
    if payment.operation(operation_id).kind is OperationKind.AUTHORIZATION:
        expires_ms = outcome.expires_ms or now_ms + profile.authorization_validity_ms
    return (OperationApproved(payment.id, operation_id, now_ms, outcome.reference, expires_ms, resolved_by),)


def _declined(
    payment: Payment, operation_id: str, outcome: Declined, now_ms: int, resolved_by: str | None
) -> tuple[Event, ...]:
    declined = OperationDeclined(payment.id, operation_id, now_ms, outcome.code, outcome.retryable, resolved_by)
    after = apply(payment, declined)
    if (
        outcome.code in _AUTHORIZATION_GONE
        and payment.operation(operation_id).kind in (OperationKind.CAPTURE, OperationKind.VOID)
        and after.amount_capturable > 0
    ):
        return declined, AuthorizationExpired(payment.id, now_ms, after.amount_capturable)
    return (declined,)
