"""The rules: `decide` says what a command leads to, or why it is refused; `settle` what an acquirer's word leads to.

Pure: time, ids and everything stored are arguments. A refusal changes nothing. Refusals are checked in the order of
`RefusalCode`, so that the same wrong is reported the same way every time.
"""

from collections.abc import Set as AbstractSet
from dataclasses import field

from actors import limits, rate_limit
from actors.acquirer import Accepted, Approved, Challenged, Declined, NeverPerformed, Word
from actors.bulkheads import ALL_ON, Bulkhead
from actors.commands import (
    CapturePayment,
    Command,
    ConfirmPayment,
    CreatePayment,
    DisputeNotification,
    Notification,
    RefundPayment,
    ResolveOperation,
    VoidPayment,
)
from actors.events import (
    AcquirerContradicted,
    AuthorizationExpired,
    DisputeClosed,
    DisputeOpened,
    Event,
    ExpiryDeferred,
    OperationAccepted,
    OperationApproved,
    OperationChallenged,
    OperationConfirmed,
    OperationDeclined,
    OperationIntended,
    OperationLost,
    OperationWithdrawn,
    PaymentCreated,
    PaymentRouted,
    apply,
)
from actors.ledger import Balances
from actors.money import is_chargeable
from actors.payment import (
    REASON_CANCELED,
    REASON_EXPIRED,
    DisputeStatus,
    Operation,
    OperationKind,
    OperationState,
    Payment,
)
from actors.profile import MAIN_ACQUIRER, Profile
from actors.refusals import Refusal, RefusalCode
from actors.values import dataclass
from actors.views import timestamp

# Declines by which the acquirer says that an authorization is no more.
_AUTHORIZATION_GONE = frozenset({"authorization_expired", "authorization_voided"})
CODE_NEVER_PERFORMED = "acquirer_did_not_answer"
CODE_RESOLVED_FAILED = "resolved_as_failed"
# What an operation fails with whose key was closed because nobody waited for its customer any more.
_CODES_WITHDRAWN = {REASON_CANCELED: REASON_CANCELED, REASON_EXPIRED: "challenge_expired"}
# What can be disputed: what moved money to the partner.
_DISPUTABLE = (OperationKind.PURCHASE, OperationKind.CAPTURE)
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
    acquirer: str | None = MAIN_ACQUIRER,
    bulkheads_off: AbstractSet[Bulkhead] = ALL_ON,
) -> Decision | Refusal:
    """Decide a command. `payment` is the one it names (or whose operation it names), None where there is none.

    `acquirer` is to be asked: the payment's own, or the one chosen for a new payment. None: it does not answer.
    """
    if isinstance(command, ResolveOperation):
        return _resolve(profile, payment, command, now_ms)
    if isinstance(command, Notification):
        return _hear(profile, payment, command, now_ms)
    if profile.status != "active":
        return Refusal(RefusalCode.PARTNER_SUSPENDED, "The partner is suspended; nothing new is taken.")
    events = _begin(payment, command, now_ms, ids, acquirer or MAIN_ACQUIRER)
    if isinstance(events, Refusal):
        return events
    if isinstance(command, CreatePayment) and not profile.accepts(command.currency):
        return Refusal(
            RefusalCode.CURRENCY_NOT_ACCEPTED,
            f"The partner takes no payments in {command.currency}, but in {', '.join(profile.currencies)}.",
            "/currency",
        )
    rate = rate_limit.admit(standing.arrival_us, now_ms * 1_000, profile.rate_per_second, profile.rate_burst)
    if isinstance(rate, rate_limit.Limited) and Bulkhead.RATE_LIMIT not in bulkheads_off:
        return Refusal(
            RefusalCode.RATE_LIMITED,
            f"More than {profile.rate_per_second} requests a second (burst {profile.rate_burst}).",
            retry_after_ms=max(-(-rate.retry_after_us // 1_000), 1),
        )
    if standing.open_operations >= profile.in_flight_max and Bulkhead.IN_FLIGHT_LIMIT not in bulkheads_off:
        return Refusal(
            RefusalCode.TOO_MANY_IN_FLIGHT,
            f"{standing.open_operations} operations await their outcome; {profile.in_flight_max} are allowed.",
            retry_after_ms=1_000,
        )
    if acquirer is None:
        return Refusal(
            RefusalCode.ACQUIRER_UNAVAILABLE,
            "The acquirer does not answer; nothing was started.",
            retry_after_ms=limits.BREAKER_OPEN_MS,
        )
    return Decision(events, rate.arrival_us if isinstance(rate, rate_limit.Admitted) else standing.arrival_us)


def settle(
    profile: Profile, payment: Payment, operation_id: str, word: Word, now_ms: int, confirmations: int = 0
) -> tuple[Event, ...]:
    """Take the acquirer's word. What is final already stays as it is: no events.

    `confirmations` is how often the operation had been confirmed when this was asked: "challenged" may be an old
    word, of before the customer came back, and is passed over then. A final word is never too old.
    """
    operation = payment.operation(operation_id)
    match word:
        case _ if operation.is_final:
            return ()
        case Approved():
            return _approved(profile, payment, operation_id, word, now_ms, None)
        case Declined():
            return _declined(payment, operation_id, word, now_ms, None)
        case NeverPerformed():
            code = _CODES_WITHDRAWN.get(operation.withdrawn or "", CODE_NEVER_PERFORMED)
            return _declined(payment, operation_id, Declined(code, retryable=True), now_ms, None)
        case Challenged():
            if not operation.is_open or operation.withdrawn or operation.confirmations != confirmations:
                return ()
            expires_ms = min(word.expires_ms, now_ms + limits.CHALLENGE_VALIDITY_MS_MAX)
            return (OperationChallenged(payment.id, operation_id, now_ms, word.url, expires_ms),)
        case Accepted():
            if operation.state not in (OperationState.PENDING, OperationState.UNKNOWN):
                return ()
            return (OperationAccepted(payment.id, operation_id, now_ms),)


def lose(payment: Payment, operation_id: str, why: str, now_ms: int) -> tuple[Event, ...]:
    """Take note that no answer came. Only the first time is an event.

    An operation that the acquirer accepted is lost only when the acquirer may have forgotten it.
    """
    operation = payment.operation(operation_id)
    forgotten = now_ms - operation.created_ms >= limits.ACQUIRER_KEY_RETENTION_MS
    if operation.state is OperationState.PENDING or (operation.state is OperationState.ACCEPTED and forgotten):
        return (OperationLost(payment.id, operation_id, now_ms, why),)
    return ()


def expire(payment: Payment, now_ms: int, ids: Ids) -> tuple[Event, ...]:
    """Let end what is due. The acquirer's word wins in both.

    A challenge that nobody confirmed: its key is to be closed, so that nothing is charged under it later. An
    authorization: the acquirer is to release it.
    """
    due_ms = payment.due_ms
    if due_ms is None or due_ms > now_ms:
        return ()
    if payment.first.state is OperationState.REQUIRES_ACTION:
        return (OperationWithdrawn(payment.id, payment.first.id, now_ms, REASON_EXPIRED),)
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


def _begin(
    payment: Payment | None,
    command: CreatePayment | CapturePayment | VoidPayment | RefundPayment | ConfirmPayment,
    now_ms: int,
    ids: Ids,
    acquirer: str,
) -> tuple[Event, ...] | Refusal:
    """Decide what a partner asks for, its limits left aside."""
    if isinstance(command, CreatePayment):
        return _create(command, now_ms, ids, acquirer)
    if isinstance(command, CapturePayment | RefundPayment) and command.amount == 0:
        return Refusal(RefusalCode.AMOUNT_INVALID, "At least 1 is captured or refunded.", "/amount")
    if payment is None:
        return Refusal(RefusalCode.PAYMENT_NOT_FOUND, f"There is no payment {command.payment_id}.", "/payment_id")
    if payment.first.is_open:
        return Refusal(
            RefusalCode.PAYMENT_PROCESSING,
            "The payment's own outcome is not known yet; ask for it and try again then.",
            retry_after_ms=1_000,
            context={"status": payment.status.value},
        )
    if isinstance(command, ConfirmPayment):
        return _continue(payment, command, now_ms)
    if isinstance(command, VoidPayment) and payment.first.state is OperationState.REQUIRES_ACTION:
        return _continue(payment, command, now_ms)
    return _follow_up(payment, command, now_ms, ids)


def _create(command: CreatePayment, now_ms: int, ids: Ids, acquirer: str) -> tuple[Event, ...] | Refusal:
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
        # Only where it says something: ordinary payments are what they were.
        *(() if acquirer == MAIN_ACQUIRER else (PaymentRouted(ids.payment_id, acquirer),)),
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


def _continue(payment: Payment, command: ConfirmPayment | VoidPayment, now_ms: int) -> tuple[Event, ...] | Refusal:
    """Confirm or cancel a payment that waits for its customer. No new operation: its own key goes on, or is closed."""
    first = payment.first
    if first.state is not OperationState.REQUIRES_ACTION:
        return Refusal(
            RefusalCode.PAYMENT_STATE_INVALID,
            f"The payment is {payment.status}: there is nothing to confirm.",
            context={"status": payment.status.value},
        )
    if isinstance(command, VoidPayment):
        return (OperationWithdrawn(payment.id, first.id, now_ms, REASON_CANCELED),)
    return (OperationConfirmed(payment.id, first.id, now_ms),)


def _hear(profile: Profile, payment: Payment | None, command: Notification, now_ms: int) -> Decision | Refusal:
    """Take what the acquirer tells by itself: double, late and out of order as it comes.

    What is known already changes nothing. What does not go with something final is written down for a person.
    """
    # One acquirer's word on what was asked of another is no word.
    if payment is None or payment.acquirer != command.acquirer:
        return Refusal(RefusalCode.PAYMENT_NOT_FOUND, f"There is no payment {command.payment_id}.")
    operation = payment.find(command.operation_id)
    if operation is None:
        return Refusal(RefusalCode.OPERATION_NOT_FOUND, f"{payment.id} has no operation {command.operation_id}.")
    if isinstance(command, DisputeNotification):
        if not operation.is_final:
            return Refusal(
                RefusalCode.PAYMENT_PROCESSING,
                "The disputed operation's own outcome is not known here yet; tell it again then.",
                retry_after_ms=1_000,
            )
        return Decision(_dispute(payment, operation, command, now_ms))
    if not operation.is_final:
        return Decision(settle(profile, payment, operation.id, command.outcome, now_ms))
    approved = isinstance(command.outcome, Approved)
    if approved == (operation.state is OperationState.SUCCEEDED):
        return Decision(())
    claim = "approved" if isinstance(command.outcome, Approved) else f"declined: {command.outcome.code}"
    return Decision((AcquirerContradicted(payment.id, operation.id, now_ms, claim),))


def _dispute(payment: Payment, operation: Operation, told: DisputeNotification, now_ms: int) -> tuple[Event, ...]:
    known = payment.dispute(told.dispute_id)
    closing: tuple[Event, ...] = ()
    if told.closed_ms is not None:
        won = told.status is DisputeStatus.WON
        closing = (DisputeClosed(payment.id, operation.id, now_ms, told.dispute_id, told.amount, won, told.closed_ms),)
    if known is None:
        held = sum(
            dispute.amount
            for dispute in payment.disputes
            if dispute.operation_id == operation.id and dispute.status is not DisputeStatus.WON
        )
        fits = (
            operation.kind in _DISPUTABLE
            and operation.state is OperationState.SUCCEEDED
            and told.currency == payment.currency
            and told.amount <= operation.amount - held
            and len(payment.disputes) < limits.DISPUTES_PER_PAYMENT_MAX
        )
        if fits:
            opening = DisputeOpened(
                payment.id, operation.id, now_ms, told.dispute_id, told.amount, told.reason, told.opened_ms
            )
            return opening, *closing
    elif (known.operation_id, known.amount) == (operation.id, told.amount):
        if told.status in (DisputeStatus.OPEN, known.status):
            return ()  # known, or news of before it was decided
        if known.status is DisputeStatus.OPEN:
            return closing
    claim = f"dispute {told.dispute_id} of {told.amount} {told.currency} is {told.status}"
    return (AcquirerContradicted(payment.id, operation.id, now_ms, claim),)


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
