"""Tells a payment's history in a line, by the rules themselves: Story().create(100).approve().capture(30).approve()."""

from typing import Self

from actors import ledger, limits, rules
from actors.acquirer import Approved, Declined, NeverPerformed
from actors.commands import CapturePayment, Command, CreatePayment, RefundPayment, ResolveOperation, VoidPayment
from actors.events import Event, apply
from actors.ledger import Balances
from actors.payment import Payment
from actors.profile import Profile
from actors.refusals import Refusal
from actors.rules import Ids, Standing

NOW_MS = 1_790_000_000_000
DAY_MS = 24 * 3_600_000
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

    def _settle(self, operation_id: str | None, outcome: Approved | Declined | NeverPerformed) -> Self:
        events = rules.settle(self.profile, self.payment, operation_id or self.last, outcome, self.now_ms)
        assert events, "settled already"
        return self.happen(*events)
