from dataclasses import replace
from typing import Any

import pytest

from actors import limits, rules
from actors.acquirer import Approved, Declined, NeverPerformed
from actors.bulkheads import Bulkhead
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
)
from actors.payment import Payment
from actors.profile import MAIN_ACQUIRER, Profile
from actors.refusals import Refusal, RefusalCode
from actors.rules import Decision, Standing
from tests.unit.actors.story import DAY_MS, NOW_MS, PROFILE, Story, ids

DUE_MS = NOW_MS + limits.AUTHORIZATION_VALIDITY_MS
RETRY_MS = limits.EXPIRY_RETRY_DELAY_MS
# From here on nobody asks for what was intended at NOW_MS.
FORGOTTEN_MS = NOW_MS + limits.ACQUIRER_KEY_RETENTION_MS


def many_operations(count: int) -> Story:
    story = Story().create(10_000).approve()
    while len(story.payment.operations) < count:
        story.capture(1).decline()
    return story


def intended(number: int, kind: str, amount: int, reason: str | None = None) -> OperationIntended:
    prefix = "re" if kind == "refund" else "op"
    return OperationIntended("pay_1", f"{prefix}_{number}", kind, amount, NOW_MS, reason)


def created(amount: int, *, manual: bool) -> PaymentCreated:
    return PaymentCreated("pay_1", NOW_MS, amount, "EUR", "tok_approve", manual, None, None, {})


# One row per case: the history, the command, what it ends in.
CASES: list[tuple[Story, Command, RefusalCode | tuple[Event, ...]]] = [
    # create
    (
        Story(),
        CreatePayment(100, "EUR", "tok_approve"),
        (created(100, manual=False), intended(1, "purchase", 100)),
    ),
    (
        Story(),
        CreatePayment(100, "EUR", "tok_approve", manual_capture=True),
        (created(100, manual=True), intended(1, "authorization", 100)),
    ),
    (Story(), CreatePayment(0, "EUR", "tok_approve"), (created(0, manual=False), intended(1, "verification", 0))),
    (
        Story(),
        CreatePayment(0, "EUR", "tok_approve", manual_capture=True),
        (created(0, manual=True), intended(1, "verification", 0)),
    ),
    (Story(), CreatePayment(100, "XAU", "tok_approve"), RefusalCode.CURRENCY_UNKNOWN),
    (Story(), CreatePayment(100, "eur", "tok_approve"), RefusalCode.CURRENCY_UNKNOWN),
    # capture
    (Story(), CapturePayment("pay_1"), RefusalCode.PAYMENT_NOT_FOUND),
    (Story(), CapturePayment("pay_1", 0), RefusalCode.AMOUNT_INVALID),
    (Story().create(), CapturePayment("pay_1"), RefusalCode.PAYMENT_PROCESSING),
    (Story().create().lose(), CapturePayment("pay_1"), RefusalCode.PAYMENT_PROCESSING),
    (Story().create().decline(), CapturePayment("pay_1"), RefusalCode.PAYMENT_STATE_INVALID),
    (Story().create(0).approve(), CapturePayment("pay_1"), RefusalCode.PAYMENT_STATE_INVALID),
    (Story().create(manual=False).approve(), CapturePayment("pay_1"), RefusalCode.PAYMENT_STATE_INVALID),
    (Story().create().approve(), CapturePayment("pay_1"), (intended(2, "capture", 100),)),
    (Story().create().approve(), CapturePayment("pay_1", 30), (intended(2, "capture", 30),)),
    (Story().create().approve(), CapturePayment("pay_1", 100), (intended(2, "capture", 100),)),
    (Story().create().approve(), CapturePayment("pay_1", 101), RefusalCode.AMOUNT_TOO_LARGE),
    (Story().create().approve(), CapturePayment("pay_1", 0), RefusalCode.AMOUNT_INVALID),
    (Story().create().approve().capture(30), CapturePayment("pay_1"), (intended(3, "capture", 70),)),
    (Story().create().approve().capture(30).lose(), CapturePayment("pay_1", 71), RefusalCode.AMOUNT_TOO_LARGE),
    (Story().create().approve().capture(30).approve(), CapturePayment("pay_1"), (intended(3, "capture", 70),)),
    (Story().create().approve().capture(30).decline(), CapturePayment("pay_1"), (intended(3, "capture", 100),)),
    (Story().create().approve().capture(), CapturePayment("pay_1", 1), RefusalCode.PAYMENT_STATE_INVALID),
    (Story().create().approve().capture().approve(), CapturePayment("pay_1"), RefusalCode.PAYMENT_STATE_INVALID),
    (Story().create().approve().void(), CapturePayment("pay_1"), RefusalCode.PAYMENT_PROCESSING),
    (Story().create().approve().void().lose(), CapturePayment("pay_1"), RefusalCode.PAYMENT_PROCESSING),
    (Story().create().approve().void().approve(), CapturePayment("pay_1"), RefusalCode.PAYMENT_STATE_INVALID),
    (Story().create().approve().void().decline(), CapturePayment("pay_1"), (intended(3, "capture", 100),)),
    (
        Story().create().approve().void().decline("authorization_expired"),
        CapturePayment("pay_1"),
        RefusalCode.PAYMENT_STATE_INVALID,
    ),
    (many_operations(99), CapturePayment("pay_1"), (intended(100, "capture", 10_000),)),
    (many_operations(100), CapturePayment("pay_1"), RefusalCode.TOO_MANY_OPERATIONS),
    # An authorization past its end can still be captured if the acquirer says so: its word wins.
    (Story().create().approve(expires_ms=NOW_MS - 5), CapturePayment("pay_1"), (intended(2, "capture", 100),)),
    # void
    (Story(), VoidPayment("pay_1"), RefusalCode.PAYMENT_NOT_FOUND),
    (Story().create(), VoidPayment("pay_1"), RefusalCode.PAYMENT_PROCESSING),
    (Story().create().decline(), VoidPayment("pay_1"), RefusalCode.PAYMENT_STATE_INVALID),
    (Story().create(manual=False).approve(), VoidPayment("pay_1"), RefusalCode.PAYMENT_STATE_INVALID),
    (Story().create().approve(), VoidPayment("pay_1"), (intended(2, "void", 100),)),
    (Story().create().approve().capture(30), VoidPayment("pay_1"), RefusalCode.PAYMENT_PROCESSING),
    (Story().create().approve().capture(30).approve(), VoidPayment("pay_1"), (intended(3, "void", 70),)),
    (Story().create().approve().capture().approve(), VoidPayment("pay_1"), RefusalCode.PAYMENT_STATE_INVALID),
    (Story().create().approve().void(), VoidPayment("pay_1"), RefusalCode.PAYMENT_PROCESSING),
    (Story().create().approve().void().approve(), VoidPayment("pay_1"), RefusalCode.PAYMENT_STATE_INVALID),
    (Story().create().approve().void().never(), VoidPayment("pay_1"), (intended(3, "void", 100),)),
    (many_operations(100), VoidPayment("pay_1"), RefusalCode.TOO_MANY_OPERATIONS),
    # refund
    (Story(), RefundPayment("pay_1"), RefusalCode.PAYMENT_NOT_FOUND),
    (Story().create(manual=False), RefundPayment("pay_1"), RefusalCode.PAYMENT_PROCESSING),
    (Story().create().approve(), RefundPayment("pay_1"), RefusalCode.PAYMENT_STATE_INVALID),
    (Story().create().approve().capture(30), RefundPayment("pay_1"), RefusalCode.PAYMENT_STATE_INVALID),
    (Story().create().approve().capture(30).approve(), RefundPayment("pay_1"), (intended(3, "refund", 30),)),
    (Story().create(manual=False).approve(), RefundPayment("pay_1", 0), RefusalCode.AMOUNT_INVALID),
    (Story().create(manual=False).approve(), RefundPayment("pay_1", 101), RefusalCode.AMOUNT_TOO_LARGE),
    (
        Story().create(manual=False).approve(),
        RefundPayment("pay_1", 40, "late"),
        (intended(2, "refund", 40, "late"),),
    ),
    # Two refunds at once can't both take the same money, not even while the first is unknown.
    (Story().create(manual=False).approve().refund(60), RefundPayment("pay_1", 41), RefusalCode.AMOUNT_TOO_LARGE),
    (
        Story().create(manual=False).approve().refund(60).lose(),
        RefundPayment("pay_1", 41),
        RefusalCode.AMOUNT_TOO_LARGE,
    ),
    (Story().create(manual=False).approve().refund(60), RefundPayment("pay_1"), (intended(3, "refund", 40),)),
    (
        Story().create(manual=False).approve().refund(60).decline(),
        RefundPayment("pay_1"),
        (intended(3, "refund", 100),),
    ),
    (
        Story().create(manual=False).approve().refund().approve(),
        RefundPayment("pay_1"),
        RefusalCode.PAYMENT_STATE_INVALID,
    ),
    # resolve
    (Story(), ResolveOperation("op_1", True, "ann", "n"), RefusalCode.OPERATION_NOT_FOUND),
    (Story().create(), ResolveOperation("op_1", True, "ann", "n"), RefusalCode.OPERATION_FINAL),
    (Story().create().approve(), ResolveOperation("op_1", True, "ann", "n"), RefusalCode.OPERATION_FINAL),
    (Story().create().decline(), ResolveOperation("op_1", True, "ann", "n"), RefusalCode.OPERATION_FINAL),
    # While the acquirer is still being asked nobody else decides: what is called failed could still be charged.
    (Story().create().lose(), ResolveOperation("op_1", True, "ann", "n"), RefusalCode.OPERATION_STILL_PURSUED),
    (
        Story().create().lose().later(limits.ACQUIRER_KEY_RETENTION_MS - 1),
        ResolveOperation("op_1", False, "ann", "n"),
        RefusalCode.OPERATION_STILL_PURSUED,
    ),
    # What counts is the operation's own age: not its payment's, nor how long it is unknown.
    (
        Story().create().approve().later(limits.ACQUIRER_KEY_RETENTION_MS).capture(30).lose(),
        ResolveOperation("op_2", False, "ann", "n"),
        RefusalCode.OPERATION_STILL_PURSUED,
    ),
    (
        Story().create().later(limits.ACQUIRER_KEY_RETENTION_MS).lose(),
        ResolveOperation("op_1", False, "ann", "n"),
        (OperationDeclined("pay_1", "op_1", FORGOTTEN_MS, "resolved_as_failed", True, "ann: n"),),
    ),
    (
        Story().create().later(limits.ACQUIRER_KEY_RETENTION_MS),
        ResolveOperation("op_1", True, "ann", "n"),
        RefusalCode.OPERATION_FINAL,
    ),
    (
        Story(replace(PROFILE, authorization_validity_ms=5)).create().lose().later(limits.ACQUIRER_KEY_RETENTION_MS),
        ResolveOperation("op_1", True, "ann", "n"),
        (OperationApproved("pay_1", "op_1", FORGOTTEN_MS, "resolved_by_operator", FORGOTTEN_MS + 5, "ann: n"),),
    ),
    (
        Story().create(manual=False).lose().later(limits.ACQUIRER_KEY_RETENTION_MS),
        ResolveOperation("op_1", True, "ann", "n"),
        (OperationApproved("pay_1", "op_1", FORGOTTEN_MS, "resolved_by_operator", None, "ann: n"),),
    ),
]


@pytest.mark.parametrize(("story", "command", "expected"), CASES)
def test_what_a_command_leads_to(story: Story, command: Command, expected: RefusalCode | tuple[Event, ...]) -> None:
    decided = story.decide(command)
    if isinstance(decided, Refusal):
        assert decided.code is expected
        assert decided.detail
    else:
        assert decided == expected


def decide(
    payment: Payment | None,
    command: Command,
    *,
    available: bool = True,
    standing: Standing | None = None,
    now_ms: int = NOW_MS,
    **profile: Any,
) -> Decision | Refusal:
    return rules.decide(
        replace(PROFILE, **profile),
        standing or Standing(),
        payment,
        command,
        now_ms,
        ids(9),
        acquirer=MAIN_ACQUIRER if available else None,
    )


def test_every_wrong_at_once_is_reported_in_the_order_of_the_codes() -> None:
    """Set one wrong right after the other: each time the next code of the enumeration is the one that is told."""
    broke = Standing(arrival_us=NOW_MS * 1_000 + 1_000_000, open_operations=7)
    full = many_operations(100).payment
    whole = Story().create().approve().payment
    spent = many_operations(99).capture().approve().payment
    capture = CapturePayment("pay_1", 20_000)
    bad: dict[str, Any] = {"rate_per_second": 1, "rate_burst": 1, "in_flight_max": 7}
    told = [
        decide(None, CapturePayment("pay_1", 0), standing=broke, available=False, status="suspended", **bad),
        decide(None, CapturePayment("pay_1", 0), standing=broke, available=False, **bad),
        decide(None, capture, standing=broke, available=False, **bad),
        decide(Story().create().payment, capture, standing=broke, available=False, **bad),
        decide(spent, capture, standing=broke, available=False, **bad),
        decide(full, capture, standing=broke, available=False, **bad),
        decide(many_operations(9).payment, capture, standing=broke, available=False, **bad),
        decide(whole, CapturePayment("pay_1"), standing=broke, available=False, **bad),
        decide(whole, CapturePayment("pay_1"), standing=broke, available=False, in_flight_max=7),
        decide(whole, CapturePayment("pay_1"), standing=broke, available=False),
    ]
    codes = [refusal.code for refusal in told if isinstance(refusal, Refusal)]
    assert codes == [
        RefusalCode.PARTNER_SUSPENDED,
        RefusalCode.AMOUNT_INVALID,
        RefusalCode.PAYMENT_NOT_FOUND,
        RefusalCode.PAYMENT_PROCESSING,
        RefusalCode.PAYMENT_STATE_INVALID,
        RefusalCode.TOO_MANY_OPERATIONS,
        RefusalCode.AMOUNT_TOO_LARGE,
        RefusalCode.RATE_LIMITED,
        RefusalCode.TOO_MANY_IN_FLIGHT,
        RefusalCode.ACQUIRER_UNAVAILABLE,
    ]
    order = list(RefusalCode)
    assert [order.index(code) for code in codes] == sorted(order.index(code) for code in codes)
    assert isinstance(decide(whole, CapturePayment("pay_1"), standing=broke), Decision)


def test_an_unknown_currency_comes_before_the_limits() -> None:
    refusal = decide(None, CreatePayment(1, "XXX", "t"), available=False, in_flight_max=0)
    assert isinstance(refusal, Refusal)
    assert refusal.code is RefusalCode.CURRENCY_UNKNOWN


def test_a_person_may_resolve_for_a_partner_that_is_suspended_and_pays_no_rate() -> None:
    story = Story().create().lose().later(limits.ACQUIRER_KEY_RETENTION_MS)
    decision = decide(
        story.payment,
        ResolveOperation("op_1", False, "ann", "n"),
        now_ms=story.now_ms,
        status="suspended",
        in_flight_max=0,
        available=False,
    )
    assert isinstance(decision, Decision)
    assert decision.arrival_us is None


def test_who_resolves_too_early_is_told_until_when_the_acquirer_is_asked() -> None:
    refusal = Story().create().later(5_000).lose().decide(ResolveOperation("op_1", False, "ann", "n"))
    assert isinstance(refusal, Refusal)
    assert refusal.code is RefusalCode.OPERATION_STILL_PURSUED
    assert "still being asked, until 2026-09-22T13:13:20.000Z at the latest; nothing needs doing" in refusal.detail
    assert refusal.context == {"state": "unknown", "asked_until_ms": FORGOTTEN_MS}


def test_a_rate_limited_command_is_told_when_to_come_again_and_is_taken_then() -> None:
    command = CreatePayment(1, "EUR", "t")
    first = decide(None, command, rate_per_second=3, rate_burst=1)
    assert isinstance(first, Decision)
    assert first.arrival_us is not None
    standing = Standing(arrival_us=first.arrival_us)
    refusal = decide(None, command, rate_per_second=3, rate_burst=1, standing=standing)
    assert isinstance(refusal, Refusal)
    assert refusal.code is RefusalCode.RATE_LIMITED
    assert refusal.retry_after_ms == 334
    profile = replace(PROFILE, rate_per_second=3, rate_burst=1)
    again = rules.decide(profile, standing, None, command, NOW_MS + 334, ids(1))
    assert isinstance(again, Decision)


def test_in_flight_counts_what_is_open_in_all_payments() -> None:
    command = CreatePayment(1, "EUR", "t")
    assert isinstance(decide(None, command, in_flight_max=7, standing=Standing(open_operations=6)), Decision)
    refusal = decide(None, command, in_flight_max=7, standing=Standing(open_operations=7))
    assert isinstance(refusal, Refusal)
    assert refusal.code is RefusalCode.TOO_MANY_IN_FLIGHT


# settle: the history, the acquirer's word on the last operation, the events
WORDS: list[tuple[Story, Approved | Declined | NeverPerformed, tuple[Event, ...]]] = [
    (
        Story().create(),
        Approved("ref"),
        (OperationApproved("pay_1", "op_1", NOW_MS, "ref", DUE_MS, None),),
    ),
    (
        Story().create(),
        Approved("ref", NOW_MS + 7),
        (OperationApproved("pay_1", "op_1", NOW_MS, "ref", NOW_MS + 7, None),),
    ),
    (
        Story().create(manual=False),
        Approved("ref", NOW_MS + 7),
        (OperationApproved("pay_1", "op_1", NOW_MS, "ref", None, None),),
    ),
    (
        Story().create().lose(),
        Declined("stolen_card", retryable=False),
        (OperationDeclined("pay_1", "op_1", NOW_MS, "stolen_card", False, None),),
    ),
    (
        Story().create(),
        NeverPerformed(),
        (OperationDeclined("pay_1", "op_1", NOW_MS, "acquirer_did_not_answer", True, None),),
    ),
    # The acquirer's word on the authorization wins: what was left of it is gone.
    (
        Story().create().approve().capture(30),
        Declined("authorization_expired", retryable=False),
        (
            OperationDeclined("pay_1", "op_2", NOW_MS, "authorization_expired", False, None),
            AuthorizationExpired("pay_1", NOW_MS, 100),
        ),
    ),
    (
        Story().create().approve().capture(20).approve().void(),
        Declined("authorization_expired", retryable=False),
        (
            OperationDeclined("pay_1", "op_3", NOW_MS, "authorization_expired", False, None),
            AuthorizationExpired("pay_1", NOW_MS, 80),
        ),
    ),
    (
        Story().create().approve().capture(20).capture(30),
        Declined("authorization_voided", retryable=False),
        (
            OperationDeclined("pay_1", "op_3", NOW_MS, "authorization_voided", False, None),
            AuthorizationExpired("pay_1", NOW_MS, 80),
        ),
    ),
    # A refund takes nothing of the authorization, so what is said of it there does not count.
    (
        Story().create().approve().capture(30).approve().refund(5),
        Declined("authorization_expired", retryable=False),
        (OperationDeclined("pay_1", "re_3", NOW_MS, "authorization_expired", False, None),),
    ),
    (
        Story().create(),
        Declined("authorization_expired", retryable=False),
        (OperationDeclined("pay_1", "op_1", NOW_MS, "authorization_expired", False, None),),
    ),
    # What is final stays final, whatever is told later.
    (Story().create().approve(), Declined("stolen_card", retryable=False), ()),
    (Story().create().decline(), Approved("ref"), ()),
    (Story().create().lose().resolve(succeeded=False), Approved("ref"), ()),
]


@pytest.mark.parametrize(("story", "word", "expected"), WORDS)
def test_what_the_acquirers_word_leads_to(
    story: Story, word: Approved | Declined | NeverPerformed, expected: tuple[Event, ...]
) -> None:
    assert rules.settle(PROFILE, story.payment, story.last, word, NOW_MS) == expected


@pytest.mark.parametrize(
    ("story", "expected"),
    [
        (Story().create(), (OperationLost("pay_1", "op_1", NOW_MS, "timeout"),)),
        (Story().create().lose(), ()),
        (Story().create().approve(), ()),
        (Story().create().decline(), ()),
    ],
)
def test_a_loss_is_an_event_once(story: Story, expected: tuple[Event, ...]) -> None:
    assert rules.lose(story.payment, "op_1", "timeout", NOW_MS) == expected


def released(number: int, amount: int, at_ms: int) -> tuple[Event, ...]:
    return (
        OperationIntended("pay_1", f"op_{number}", "void", amount, at_ms, "expired"),
        ExpiryDeferred("pay_1", at_ms + RETRY_MS),
    )


# expiry: the history, the time after its end (or before), the events
EXPIRIES: list[tuple[Story, int, tuple[Event, ...]]] = [
    (Story().create().approve(), -1, ()),
    (Story().create().approve(), 0, released(9, 100, DUE_MS)),
    (Story().create().approve().capture(30).approve(), 5, released(9, 70, DUE_MS + 5)),
    (Story().create().approve().capture(30).decline(), 5, released(9, 100, DUE_MS + 5)),
    (Story().create().approve().capture(30), 5, (ExpiryDeferred("pay_1", DUE_MS + 5 + RETRY_MS),)),
    (Story().create().approve().capture(), 5, ()),
    (Story().create().approve().capture().approve(), 5, ()),
    (Story().create().approve().void(), 5, ()),
    (Story().create().approve().void().approve(), 5, ()),
    (Story().create().approve().void().decline("authorization_expired"), 5, ()),
    (Story().create(manual=False).approve(), 5, ()),
    (Story().create(), 5, ()),
    (Story().create().decline(), 5, ()),
    (many_operations(100), 5, (ExpiryDeferred("pay_1", DUE_MS + 5 + RETRY_MS),)),
]


@pytest.mark.parametrize(("story", "late_ms", "expected"), EXPIRIES)
def test_what_the_end_of_an_authorization_leads_to(story: Story, late_ms: int, expected: tuple[Event, ...]) -> None:
    assert rules.expire(story.payment, DUE_MS + late_ms, ids(9)) == expected


def test_an_expiry_that_the_acquirer_declines_is_tried_again_later() -> None:
    story = Story().create().approve().later(8 * DAY_MS).expire().decline("try_again")
    assert story.payment.status == "authorized"
    assert story.payment.due_ms == story.now_ms + RETRY_MS
    assert rules.expire(story.payment, story.now_ms + RETRY_MS - 1, ids(9)) == ()
    assert story.later(RETRY_MS).expire().approve().payment.status == "expired"


def test_an_expiry_that_finds_the_authorization_gone_ends_it() -> None:
    story = Story().create().approve().later(8 * DAY_MS).expire().decline("authorization_expired")
    assert story.payment.status == "expired"
    assert story.payment.due_ms is None


def test_a_capture_that_fails_after_the_end_is_looked_at_again() -> None:
    story = Story().create().approve().capture().later(8 * DAY_MS)
    assert story.payment.due_ms is None
    story.decline()
    assert story.payment.due_ms == DUE_MS
    assert story.expire().approve().payment.status == "expired"


@pytest.mark.parametrize(
    ("standing", "off", "refusal"),
    [
        (Standing(arrival_us=(NOW_MS + 3_600) * 1_000), Bulkhead.RATE_LIMIT, RefusalCode.RATE_LIMITED),
        (Standing(open_operations=1), Bulkhead.IN_FLIGHT_LIMIT, RefusalCode.TOO_MANY_IN_FLIGHT),
    ],
)
def test_a_limit_that_is_switched_off_refuses_nothing(standing: Standing, off: Bulkhead, refusal: RefusalCode) -> None:
    profile = replace(PROFILE, rate_per_second=1, rate_burst=4, in_flight_max=1)
    command = CreatePayment(100, "EUR", "tok_approve")
    refused = rules.decide(profile, standing, None, command, NOW_MS, ids(1))
    assert isinstance(refused, Refusal)
    assert refused.code is refusal
    assert isinstance(rules.decide(profile, standing, None, command, NOW_MS, ids(1), bulkheads_off={off}), Decision)


def test_a_payment_in_a_currency_that_the_profile_does_not_list_is_refused_after_one_that_is_none() -> None:
    profile = replace(PROFILE, currencies=("EUR", "USD"))

    def code(currency: str, profile: Profile = profile) -> RefusalCode | None:
        decision = rules.decide(profile, Standing(), None, CreatePayment(5, currency, "tok_approve"), NOW_MS, ids(1))
        return decision.code if isinstance(decision, Refusal) else None

    assert code("EUR") is code("USD") is None
    assert code("JPY") is RefusalCode.CURRENCY_NOT_ACCEPTED
    assert code("XXX") is RefusalCode.CURRENCY_UNKNOWN
    assert code("JPY", replace(PROFILE, currencies=())) is None


def test_what_is_under_way_goes_on_in_a_currency_that_is_not_taken_any_more() -> None:
    story = Story().create().approve()
    profile = replace(PROFILE, currencies=("JPY",))
    decision = rules.decide(profile, Standing(), story.payment, CapturePayment("pay_1"), NOW_MS, ids(2))
    assert isinstance(decision, Decision)
