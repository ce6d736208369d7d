"""What partners do: journeys of one or several calls, each written as a generator. No HTTP, no clock, no gateway.

A journey yields the next step and is given the answer's JSON if it was the expected one, else None. All its choices
come from its own seeded randomness, so a schedule is fixed before anything is sent.
"""

import random
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from chaos import limits
from chaos.history import Outcome

Content = dict[str, Any]
Journey = Generator["Step", Content | None, None]

_PROCESSING: Final = Outcome(202, "processing")
_CURRENCIES: Final = ("EUR", "EUR", "EUR", "USD", "GBP", "JPY", "KWD")
_DECLINES: Final = ("insufficient_funds", "stolen_card", "expired_card")


_STEPS: Final = {
    "capture": "capture_payment",
    "void": "void_payment",
    "refunds": "refund_payment",
    "confirm": "confirm_payment",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One call to make. `pause_ms` is how long after the journey's previous answer it is due, at the earliest."""

    name: str
    method: str
    path: str
    expected: tuple[Outcome, ...]
    body: bytes = b""
    key: str | None = None
    usual: bool = True
    pause_ms: float = 0


@dataclass(slots=True)
class Maker:
    """Makes the steps of one journey. `amount` is the journey's own: no other payment of the partner has it."""

    name: str
    amount: int
    dice: random.Random
    keys: int = field(default=0)

    def create(
        self,
        payment_method: str = "tok_approve",
        *expected: Outcome,
        amount: int | None = None,
        manual: bool = False,
        usual: bool = True,
    ) -> Step:
        """Make a payment under a new idempotency key."""
        fields: Content = {
            "amount": self.amount if amount is None else amount,
            "currency": self.dice.choice(_CURRENCIES),
            "payment_method": payment_method,
            "capture_method": "manual" if manual else "automatic",
            "reference": self.name,
            "metadata": {"journey": self.name},
        }
        usually = (Outcome(201, "authorized" if manual else "captured"),)
        return Step(
            "create_payment",
            "POST",
            "/v1/payments",
            expected or usually,
            orjson.dumps(fields),
            self._next_key(),
            usual,
        )

    def change(self, payment: Content, what: str, expected: Outcome, amount: int | None = None) -> Step:
        """Capture, void, refund or confirm; all that is left without an amount."""
        path = f"/v1/payments/{payment['id']}/{what}"
        body = b"" if amount is None else orjson.dumps({"amount": amount})
        return Step(
            _STEPS[what],
            "POST",
            path,
            (expected,),
            body,
            self._next_key(),
            pause_ms=self._pause_ms(),
        )

    def read(self, name: str, path: str, word: str, *more: Outcome) -> Step:
        """Read something."""
        return Step(name, "GET", path, (Outcome(200, word), *more), pause_ms=self._pause_ms())

    def part(self) -> int:
        """Give a part of the journey's amount, neither none nor all."""
        return self.dice.randint(1, self.amount - 1)

    def _next_key(self) -> str:
        self.keys += 1
        return f"{self.name}-{self.keys}"

    def _pause_ms(self) -> float:
        return self.dice.uniform(50, 600)


def automatic(make: Maker) -> Journey:
    """Pay at once, and look at it later."""
    payment = yield make.create()
    if payment is not None:
        yield make.read("get_payment", f"/v1/payments/{payment['id']}", "captured")


def manual(make: Maker) -> Journey:
    """Authorize, then capture all."""
    payment = yield make.create(manual=True)
    if payment is not None:
        yield make.change(payment, "capture", Outcome(200, "captured"))


def partial_captures(make: Maker) -> Journey:
    """Authorize, capture a part, then the rest."""
    payment = yield make.create(manual=True)
    if payment is None:
        return
    captured = yield make.change(payment, "capture", Outcome(200, "partially_captured"), make.part())
    if captured is not None:
        yield make.change(payment, "capture", Outcome(200, "captured"))


def capture_and_void(make: Maker) -> Journey:
    """Authorize, capture a part, release the rest."""
    payment = yield make.create(manual=True)
    if payment is None:
        return
    captured = yield make.change(payment, "capture", Outcome(200, "partially_captured"), make.part())
    if captured is not None:
        yield make.change(payment, "void", Outcome(200, "partially_captured"))


def void(make: Maker) -> Journey:
    """Authorize, then release."""
    payment = yield make.create(manual=True)
    if payment is not None:
        yield make.change(payment, "void", Outcome(200, "canceled"))


def refund(make: Maker) -> Journey:
    """Pay, then give all of it back."""
    payment = yield make.create()
    if payment is None:
        return
    refunded = yield make.change(payment, "refunds", Outcome(201, "succeeded"))
    if refunded is not None:
        yield make.read("get_payment", f"/v1/payments/{payment['id']}", "refunded")


def partial_refunds(make: Maker) -> Journey:
    """Pay, give a part back, then the rest; more than was paid is refused."""
    payment = yield make.create()
    if payment is None:
        return
    refunded = yield make.change(payment, "refunds", Outcome(201, "succeeded"), make.part())
    if refunded is None:
        return
    yield make.change(payment, "refunds", Outcome(422, "amount_too_large"), make.amount)
    rest = yield make.change(payment, "refunds", Outcome(201, "succeeded"))
    if rest is not None:
        yield make.read("get_refund", f"/v1/refunds/{rest['id']}", "succeeded")


def verification(make: Maker) -> Journey:
    """Verify a payment method with an amount of 0."""
    yield make.create("tok_approve", Outcome(201, "authorized"), Outcome(201, "captured"), amount=0)


def declined(make: Maker) -> Journey:
    """Pay with a card that is declined: an outcome, not an error."""
    yield make.create(f"tok_decline_{make.dice.choice(_DECLINES)}", Outcome(201, "failed"))


def slow(make: Maker) -> Journey:
    """Pay at an acquirer that takes its time."""
    yield make.create(f"tok_slow_{make.dice.randint(100, 800)}", Outcome(201, "captured"), usual=False)


def timeout_charged(make: Maker) -> Journey:
    """Pay at an acquirer that charges and does not answer at first."""
    yield make.create("tok_timeout_charged", Outcome(201, "captured"), _PROCESSING, usual=False)


def timeout_not_charged(make: Maker) -> Journey:
    """Pay at an acquirer that never answers and never charges: it ends as failed, after the caller's deadline."""
    yield make.create("tok_timeout_not_charged", Outcome(201, "failed"), _PROCESSING, usual=False)


def error_500(make: Maker) -> Journey:
    """Pay at an acquirer that fails."""
    yield make.create("tok_error_500", Outcome(201, "failed"), _PROCESSING, usual=False)


def malformed(make: Maker) -> Journey:
    """Pay at an acquirer that charges and answers garbage."""
    yield make.create("tok_malformed", Outcome(201, "captured"), _PROCESSING, usual=False)


def challenge(make: Maker) -> Journey:
    """Pay with a card whose bank asks for the customer, who comes back."""
    payment = yield make.create("tok_challenge", Outcome(201, "requires_action"))
    if payment is not None:
        yield make.change(payment, "confirm", Outcome(200, "captured"))


def challenge_manual(make: Maker) -> Journey:
    """Authorize with such a card, and capture then."""
    payment = yield make.create("tok_challenge", Outcome(201, "requires_action"), manual=True)
    if payment is None:
        return
    confirmed = yield make.change(payment, "confirm", Outcome(200, "authorized"))
    if confirmed is not None:
        yield make.change(payment, "capture", Outcome(200, "captured"))


def challenge_failed(make: Maker) -> Journey:
    """Pay with such a card; the customer fails to prove who they are."""
    payment = yield make.create("tok_challenge_decline", Outcome(201, "requires_action"))
    if payment is not None:
        yield make.change(payment, "confirm", Outcome(200, "failed"))


def challenge_canceled(make: Maker) -> Journey:
    """Pay with such a card; the customer does not come back, and the partner cancels."""
    payment = yield make.create("tok_challenge_abandoned", Outcome(201, "requires_action"))
    if payment is not None:
        yield make.change(payment, "void", Outcome(200, "canceled"))


def decided_later(make: Maker) -> Journey:
    """Pay in a way whose result comes later: the answer comes at once."""
    token = make.dice.choice(("tok_async_approve", "tok_async_decline", "tok_async_unnotified"))
    yield make.create(token, _PROCESSING)


def timeout_notified(make: Maker) -> Journey:
    """Pay at an acquirer that charges, answers nothing, and tells after a while."""
    yield make.create("tok_timeout_notified", Outcome(201, "captured"), _PROCESSING, usual=False)


def disputed(make: Maker) -> Journey:
    """Pay, and dispute it."""
    token = make.dice.choice(("tok_dispute", "tok_dispute_won", "tok_dispute_lost", "tok_dispute_backwards"))
    payment = yield make.create(token, Outcome(201, "captured"))
    if payment is not None:
        yield make.read("get_payment", f"/v1/payments/{payment['id']}", "captured", Outcome(200, "disputed"))


def again(make: Maker) -> Journey:
    """Send a request twice under its key, then another under the same key."""
    first = make.create()
    payment = yield first
    if payment is None:
        return
    yield Step(first.name, first.method, first.path, first.expected, first.body, first.key, pause_ms=100)
    other = orjson.dumps({**orjson.loads(first.body), "amount": make.amount + 1})
    reused = (Outcome(422, "idempotency_key_reused"),)
    yield Step(first.name, first.method, first.path, reused, other, first.key, pause_ms=100)


def reads(make: Maker) -> Journey:
    """Look around."""
    yield make.read("list_payments", f"/v1/payments?limit={make.dice.randint(1, 20)}", "list")
    yield make.read("list_payments", "/v1/payments?status=captured&limit=5", "list")
    yield make.read("get_balance", "/v1/balance", "balance")
    yield make.read("list_events", "/v1/events?limit=10", "list")
    yield make.read("get_partner", "/v1/partner", "partner")


def flood(make: Maker) -> Journey:
    """Pay, as fast as the load says: part of a flood."""
    yield make.create()


def slow_flood(make: Maker) -> Journey:
    """Pay at an acquirer that takes its time, as fast as the load says: part of a flood that piles up."""
    yield make.create(f"tok_slow_{limits.CHAOS_FLOOD_SLOW_MS}", Outcome(201, "captured"), usual=False)


def bad_key(make: Maker) -> Journey:
    """Try to pay with a key that is none."""
    yield make.create("tok_approve", Outcome(401, "unauthorized"))


@dataclass(frozen=True, slots=True)
class Scenario:
    """A kind of journey, how often it is taken, and how many calls it makes when all goes well."""

    make: Callable[[Maker], Journey]
    weight: int
    calls: int


MIXED: Final[dict[str, Scenario]] = {
    "automatic": Scenario(automatic, 30, 2),
    "manual": Scenario(manual, 12, 2),
    "partial_captures": Scenario(partial_captures, 8, 3),
    "capture_and_void": Scenario(capture_and_void, 4, 3),
    "void": Scenario(void, 6, 2),
    "refund": Scenario(refund, 8, 3),
    "partial_refunds": Scenario(partial_refunds, 5, 5),
    "verification": Scenario(verification, 5, 1),
    "declined": Scenario(declined, 8, 1),
    "slow": Scenario(slow, 5, 1),
    "timeout_charged": Scenario(timeout_charged, 2, 1),
    "timeout_not_charged": Scenario(timeout_not_charged, 1, 1),
    "error_500": Scenario(error_500, 1, 1),
    "malformed": Scenario(malformed, 1, 1),
    "challenge": Scenario(challenge, 3, 2),
    "challenge_manual": Scenario(challenge_manual, 1, 3),
    "challenge_failed": Scenario(challenge_failed, 1, 2),
    "challenge_canceled": Scenario(challenge_canceled, 1, 2),
    "decided_later": Scenario(decided_later, 3, 1),
    "timeout_notified": Scenario(timeout_notified, 1, 1),
    "disputed": Scenario(disputed, 2, 2),
    "again": Scenario(again, 4, 3),
    "reads": Scenario(reads, 6, 5),
}
FLOOD: Final[dict[str, Scenario]] = {"flood": Scenario(flood, 1, 1)}
SLOW_FLOOD: Final[dict[str, Scenario]] = {"slow_flood": Scenario(slow_flood, 1, 1)}
BAD_KEYS: Final[dict[str, Scenario]] = {"bad_key": Scenario(bad_key, 1, 1)}
MIXES: Final[dict[str, dict[str, Scenario]]] = {
    "mixed": MIXED,
    "flood": FLOOD,
    "slow_flood": SLOW_FLOOD,
    "bad_keys": BAD_KEYS,
}


def calls_per_journey(mix: dict[str, Scenario]) -> float:
    """Give how many calls a journey of this mix makes on average."""
    weights = sum(scenario.weight for scenario in mix.values())
    return sum(scenario.weight * scenario.calls for scenario in mix.values()) / weights
