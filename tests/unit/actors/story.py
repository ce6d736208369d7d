"""Tells a payment's history in a line, by the rules themselves: Story().create(100).approve().capture(30).approve()."""

from typing import Self

from actors import ledger, limits, rules
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
from actors.events import Event, apply
from actors.ledger import Balances
from actors.payment import DisputeStatus, Payment
from actors.profile import Profile
from actors.refusals import Refusal
from actors.rules import Ids, Standing

NOW_MS = 1_790_000_000_000
DAY_MS = 24 * 3_600_000
CHALLENGE_URL = "https://bank.example/challenges/1"
CHALLENGE_MS = 900_000
PROFILE = Profile("partner_1", 1, rate_per_second=10_000, rate_burst=100_000, in_flight_max=10_000)


def ids(number: int) -> Ids:
    """The ids of a story's n-th command."""
    return Ids("pay_1", f"op_{number}", f"re_{number}")


class Story:
    """One payment, its balances and the operation that was intended last."""

    def __init__(self, profile: Profile = PROFILE) -> None:
        self.profile = profile
        self.told: Payment | None = None
        self.balances: Balances = {}
        self.now_ms = NOW_MS
        self.commands = 0
        self.last = ""

    @property
    def payment(self) -> Payment:
        assert self.told is not None
        return self.told

    def decide(self, command: Command) -> tuple[Event, ...] | Refusal:
        """Decide, and change nothing."""
        decision = rules.decide(self.profile, Standing(), self.told, command, self.now_ms, ids(self.commands + 1))
        return decision if isinstance(decision, Refusal) else decision.events

    def create(self, amount: int = 100, currency: str = "EUR", *, manual: bool = True) -> Self:
        return self._do(CreatePayment(amount, currency, "tok_approve", manual))

    def capture(self, amount: int | None = None) -> Self:
        return self._do(CapturePayment("pay_1", amount))

    def void(self) -> Self:
        return self._do(VoidPayment("pay_1"))

    def refund(self, amount: int | None = None) -> Self:
        return self._do(RefundPayment("pay_1", amount))

    def challenge(self, after_ms: int = CHALLENGE_MS, *, confirmations: int = 0) -> Self:
        word = Challenged(CHALLENGE_URL, self.now_ms + after_ms)
        return self.happen(
            *rules.settle(self.profile, self.payment, "op_1", word, self.now_ms, confirmations=confirmations)
        )

    def confirm(self) -> Self:
        return self._do(ConfirmPayment("pay_1"))

    def accept(self) -> Self:
        return self._settle(None, Accepted())

    def notify(self, outcome: Approved | Declined, operation_id: str | None = None) -> Self:
        return self._do(ResultNotification("msg_1", "pay_1", operation_id or self.last, outcome))

    def dispute(
        self,
        status: str = "open",
        operation_id: str | None = None,
        *,
        amount: int | None = None,
        dispute_id: str = "dp_1",
        currency: str = "EUR",
    ) -> Self:
        """Let the acquirer tell of a dispute."""
        return self._do(self.told_dispute(status, operation_id, amount, dispute_id, currency))

    def told_dispute(
        self,
        status: str = "open",
        operation_id: str | None = None,
        amount: int | None = None,
        dispute_id: str = "dp_1",
        currency: str = "EUR",
    ) -> DisputeNotification:
        """Give what the acquirer tells of a dispute."""
        named = operation_id or self.last
        of = self.payment.find(named)
        assert amount is not None or of is not None
        return DisputeNotification(
            "msg_1",
            "pay_1",
            named,
            dispute_id,
            amount if amount is not None or of is None else of.amount,
            currency,
            "fraudulent",
            DisputeStatus(status),
            self.now_ms - 5,
            None if status == "open" else self.now_ms - 1,
        )

    def resolve(self, *, succeeded: bool) -> Self:
        """Let a person decide, as early as a person may."""
        self.later(limits.ACQUIRER_KEY_RETENTION_MS)
        return self._do(ResolveOperation(self.last, succeeded, "ann", "called the bank"))

    def approve(self, operation_id: str | None = None, *, expires_ms: int | None = None) -> Self:
        return self._settle(operation_id, Approved("ref", expires_ms))

    def decline(self, code: str = "insufficient_funds", operation_id: str | None = None) -> Self:
        return self._settle(operation_id, Declined(code, retryable=True))

    def never(self) -> Self:
        return self._settle(None, NeverPerformed())

    def lose(self) -> Self:
        return self.happen(*rules.lose(self.payment, self.last, "timeout", self.now_ms))

    def expire(self) -> Self:
        self.commands += 1
        return self.happen(*rules.expire(self.payment, self.now_ms, ids(self.commands)))

    def later(self, by_ms: int) -> Self:
        self.now_ms += by_ms
        return self

    def happen(self, *events: Event) -> Self:
        """Apply and post events."""
        for event in events:
            self.told = apply(self.told, event)
            self.balances = ledger.post(self.balances, ledger.postings_of(self.told, event))
            if self.told.operations:
                self.last = self.told.operations[-1].id
        return self

    def _do(self, command: Command) -> Self:
        events = self.decide(command)
        assert not isinstance(events, Refusal), events
        self.commands += 1
        return self.happen(*events)

    def _settle(self, operation_id: str | None, outcome: Word) -> Self:
        events = rules.settle(self.profile, self.payment, operation_id or self.last, outcome, self.now_ms)
        assert events, "settled already"
        return self.happen(*events)
