"""Any sequence of commands, words of the acquirer, losses, repeats, expiries and times: the books stay right."""

from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from actors import limits, rules
from actors.acquirer import Accepted, Approved, Challenged, Declined, NeverPerformed, Word
from actors.commands import (
    CapturePayment,
    Command,
    ConfirmPayment,
    CreatePayment,
    DisputeNotification,
    RefundPayment,
    ResolveOperation,
    ResultNotification,
    VoidPayment,
)
from actors.events import Event
from actors.payment import DisputeStatus, OperationState, Payment, PaymentStatus
from actors.profile import Profile
from actors.refusals import Refusal
from actors.rules import Ids, Standing
from actors.settlement import needs_person
from actors.staging import Draft, State
from actors.store import Key, Put
from tests.unit.actors.partner_bench import check_books, recompute
from tests.unit.actors.virtual_time import START_MS

AMOUNTS = st.integers(0, 6) | st.just(limits.AMOUNT_MINOR_UNITS_MAX)
WORDS = st.sampled_from(
    [
        Approved("ref"),
        Approved("ref", START_MS + 40),
        Declined("insufficient_funds", retryable=True),
        Declined("authorization_expired", retryable=False),
        Declined("authorization_voided", retryable=False),
        NeverPerformed(),
    ]
)
# What leaves an operation undecided: the customer is to act, or the acquirer decides later.
OPEN_WORDS = st.sampled_from([Challenged("https://b/c", START_MS + 40), Accepted()])
# Only a dispute can follow these: a payment that was refunded may be disputed as well.
FINAL = {PaymentStatus.FAILED, PaymentStatus.CANCELED, PaymentStatus.EXPIRED, PaymentStatus.REFUNDED}
FINAL_OPERATIONS = {OperationState.SUCCEEDED, OperationState.FAILED}


class Partner(RuleBasedStateMachine):
    """One partner's payments, through rules and staging, with the rows that a store would hold."""

    payments = Bundle("payments")

    def __init__(self) -> None:
        super().__init__()
        self.profile = Profile(
            "partner_1", 1, rate_per_second=1_000, rate_burst=20, in_flight_max=6, authorization_validity_ms=50
        )
        self.state = State(Standing())
        self.rows: dict[Key, bytes] = {}
        self.now_ms = START_MS
        self.made = 0
        self.finals: dict[str, tuple[OperationState, str | None]] = {}
        self.ended: dict[str, PaymentStatus] = {}
        self.disputes: dict[tuple[str, str], DisputeStatus] = {}

    @rule(target=payments, amount=AMOUNTS, currency=st.sampled_from(["EUR", "JPY", "XXX"]), manual=st.booleans())
    def create(self, amount: int, currency: str, manual: bool) -> str:
        ids = self._decide(CreatePayment(amount, currency, "tok", manual, reference="r" if amount % 2 else None), None)
        return ids.payment_id

    @rule(payment_id=payments, amount=st.none() | AMOUNTS)
    def capture(self, payment_id: str, amount: int | None) -> None:
        self._decide(CapturePayment(payment_id, amount), payment_id)

    @rule(payment_id=payments)
    def void(self, payment_id: str) -> None:
        self._decide(VoidPayment(payment_id), payment_id)

    @rule(payment_id=payments, amount=st.none() | AMOUNTS)
    def refund(self, payment_id: str, amount: int | None) -> None:
        self._decide(RefundPayment(payment_id, amount), payment_id)

    @precondition(lambda self: self._operations())
    @rule(data=st.data(), word=WORDS)
    def hear(self, data: st.DataObject, word: Approved | Declined | NeverPerformed) -> None:
        """The acquirer's word, also on what is final: then it changes nothing."""
        payment, operation_id = data.draw(st.sampled_from(self._operations()))
        final = payment.operation(operation_id).is_final
        events = rules.settle(self.profile, payment, operation_id, word, self.now_ms)
        assert final == (events == ())
        self._record(payment.id, events)

    @precondition(lambda self: self._open())
    @rule(data=st.data(), word=WORDS)
    def hear_of_an_open_one(self, data: st.DataObject, word: Approved | Declined | NeverPerformed) -> None:
        payment, operation_id = data.draw(st.sampled_from(self._open()))
        self._record(payment.id, rules.settle(self.profile, payment, operation_id, word, self.now_ms))

    @rule(payment_id=payments)
    def confirm(self, payment_id: str) -> None:
        self._decide(ConfirmPayment(payment_id), payment_id)

    @precondition(lambda self: self._open())
    @rule(data=st.data(), word=OPEN_WORDS, stale=st.booleans())
    def hear_that_it_is_undecided(self, data: st.DataObject, word: Word, stale: bool) -> None:
        """Also an old word, of before the customer came back."""
        payment, operation_id = data.draw(st.sampled_from(self._open()))
        if isinstance(word, Challenged) and operation_id != payment.first.id:
            return  # settlement takes that for garbage
        confirmations = payment.operation(operation_id).confirmations - stale
        self._record(payment.id, rules.settle(self.profile, payment, operation_id, word, self.now_ms, confirmations))

    @precondition(lambda self: self._operations())
    @rule(data=st.data(), outcome=WORDS.filter(lambda word: not isinstance(word, NeverPerformed)))
    def be_notified(self, data: st.DataObject, outcome: Approved | Declined) -> None:
        """Of anything, also of what is final: that stays as it is."""
        payment, operation_id = data.draw(st.sampled_from(self._operations()))
        self._decide(ResultNotification("m", payment.id, operation_id, outcome), payment.id)

    @precondition(lambda self: self._operations())
    @rule(
        data=st.data(),
        amount=st.integers(1, 6),
        status=st.sampled_from(DisputeStatus),
        dispute_id=st.sampled_from(["dp_1", "dp_2"]),
    )
    def be_told_of_a_dispute(self, data: st.DataObject, amount: int, status: DisputeStatus, dispute_id: str) -> None:
        """In any order, and of what can't be disputed, too."""
        payment, operation_id = data.draw(st.sampled_from(self._operations()))
        known = payment.dispute(dispute_id)
        amount = known.amount if known is not None else amount
        closed_ms = None if status is DisputeStatus.OPEN else 2
        command = DisputeNotification(
            "m", payment.id, operation_id, dispute_id, amount, payment.currency, "fraudulent", status, 1, closed_ms
        )
        self._decide(command, payment.id)

    @precondition(lambda self: self._operations())
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        payment, operation_id = data.draw(st.sampled_from(self._operations()))
        self._record(payment.id, rules.lose(payment, operation_id, "timeout", self.now_ms))

    @precondition(lambda self: self._operations())
    @rule(data=st.data(), succeeded=st.booleans())
    def resolve(self, data: st.DataObject, succeeded: bool) -> None:
        payment, operation_id = data.draw(st.sampled_from(self._operations()))
        opened = self.state.opens.get(operation_id)
        unknown = payment.operation(operation_id).state is OperationState.UNKNOWN
        # The two must agree: what operators are shown as theirs, and what they may resolve.
        for_a_person = opened is not None and needs_person(opened, self.now_ms)
        before = self.state.standing.sequence
        self._decide(ResolveOperation(operation_id, succeeded, "ann", "n"), payment.id)
        assert (unknown and for_a_person) == (self.state.standing.sequence > before)

    @precondition(lambda self: self._unknown())
    @rule(data=st.data(), succeeded=st.booleans())
    def resolve_a_day_later(self, data: st.DataObject, succeeded: bool) -> None:
        """A day passes, so that a person may decide: seldom would all of that come together by itself."""
        self.now_ms += limits.ACQUIRER_KEY_RETENTION_MS
        payment, operation_id = data.draw(st.sampled_from(self._unknown()))
        self._decide(ResolveOperation(operation_id, succeeded, "ann", "n"), payment.id)
        newest = self.state.payments[payment.id]
        assert newest is not None
        assert newest.operation(operation_id).resolved_by == "ann: n"

    @rule(payment_id=payments)
    def expire(self, payment_id: str) -> None:
        payment = self.state.payments.get(payment_id)
        if payment is not None:
            self._record(payment_id, rules.expire(payment, self.now_ms, self._ids()))

    @rule(by_ms=st.integers(0, 30) | st.just(limits.EXPIRY_RETRY_DELAY_MS))
    def wait(self, by_ms: int) -> None:
        self.now_ms += by_ms

    @rule(status=st.sampled_from(["active", "suspended"]))
    def configure(self, status: str) -> None:
        self.profile = replace(self.profile, status=status)

    @invariant()
    def the_books_are_right(self) -> None:
        check_books(recompute(self.rows))

    @invariant()
    def what_is_final_stays_final(self) -> None:
        for payment in self.state.payments.values():
            assert payment is not None
            for operation in payment.operations:
                if operation.state in FINAL_OPERATIONS:
                    first = self.finals.setdefault(operation.id, (operation.state, operation.acquirer_reference))
                    assert first == (operation.state, operation.acquirer_reference)
            for dispute in payment.disputes:
                before = self.disputes.setdefault((payment.id, dispute.id), dispute.status)
                assert before in (dispute.status, DisputeStatus.OPEN)
                self.disputes[payment.id, dispute.id] = dispute.status
            if payment.disputes:
                self.ended.pop(payment.id, None)
            elif payment.status in FINAL:
                assert self.ended.setdefault(payment.id, payment.status) is payment.status
                assert payment.amount_capturable == 0
                assert payment.due_ms is None
            assert payment.id not in self.ended or payment.status is self.ended[payment.id]

    def _decide(self, command: Command, payment_id: str | None) -> Ids:
        ids = self._ids()
        payment = None if payment_id is None else self.state.payments.get(payment_id)
        decision = rules.decide(self.profile, self.state.standing, payment, command, self.now_ms, ids)
        if not isinstance(decision, Refusal):
            # What a partner asks for always changes something; news of what is known changes nothing.
            assert decision.events or isinstance(command, ResultNotification | DisputeNotification)
            self._record(ids.payment_id if payment is None else payment.id, decision.events, decision.arrival_us)
        return ids

    def _record(self, payment_id: str, events: tuple[Event, ...], arrival_us: int | None = None) -> None:
        if not events:
            return
        draft = Draft(self.state)
        draft.record(
            events, payment_id=payment_id, now_ms=self.now_ms, cause="c", request_id="r", epoch=1, arrival_us=arrival_us
        )
        for mutation in draft.mutations():
            if isinstance(mutation, Put):
                self.rows[mutation.key] = mutation.value
            else:
                self.rows.pop(mutation.key, None)
        draft.adopt()

    def _ids(self) -> Ids:
        self.made += 1
        return Ids(f"pay_{self.made:04d}", f"op_{self.made:04d}", f"re_{self.made:04d}")

    def _operations(self) -> list[tuple[Payment, str]]:
        payments = [payment for payment in self.state.payments.values() if payment is not None]
        return [(payment, operation.id) for payment in payments for operation in payment.operations]

    def _unknown(self) -> list[tuple[Payment, str]]:
        return [(p, name) for p, name in self._open() if p.operation(name).state is OperationState.UNKNOWN]

    def _open(self) -> list[tuple[Payment, str]]:
        return [(payment, name) for payment, name in self._operations() if payment.operation(name).is_open]


TestPartner = Partner.TestCase
