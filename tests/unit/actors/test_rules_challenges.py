"""3-D Secure, results that come later, disputes, and what acquirers notify: one row per rule."""

from dataclasses import replace

import pytest

from actors import limits, rules
from actors.acquirer import Accepted, Approved, Challenged, Declined, NeverPerformed, Word
from actors.commands import CapturePayment, Command, ConfirmPayment, RefundPayment, ResultNotification, VoidPayment
from actors.events import (
    AcquirerContradicted,
    DisputeClosed,
    DisputeOpened,
    Event,
    OperationAccepted,
    OperationApproved,
    OperationChallenged,
    OperationConfirmed,
    OperationDeclined,
    OperationLost,
    OperationWithdrawn,
)
from actors.ledger import Account
from actors.payment import Payment, PaymentStatus
from actors.profile import MAIN_ACQUIRER
from actors.refusals import Refusal, RefusalCode
from actors.rules import Decision, Standing
from tests.unit.actors.story import CHALLENGE_MS, CHALLENGE_URL, NOW_MS, PROFILE, Story, ids

CONFIRM = ConfirmPayment("pay_1")
CONFIRMED = (OperationConfirmed("pay_1", "op_1", NOW_MS),)
WITHDRAWN = (OperationWithdrawn("pay_1", "op_1", NOW_MS, "canceled"),)

COMMANDS: list[tuple[Story, Command, RefusalCode | tuple[Event, ...]]] = [
    (Story(), CONFIRM, RefusalCode.PAYMENT_NOT_FOUND),
    (Story().create(), CONFIRM, RefusalCode.PAYMENT_PROCESSING),
    (Story().create().approve(), CONFIRM, RefusalCode.PAYMENT_STATE_INVALID),
    (Story().create().decline(), CONFIRM, RefusalCode.PAYMENT_STATE_INVALID),
    (Story().create().challenge(), CONFIRM, CONFIRMED),
    (Story().create(manual=False).challenge(), CONFIRM, CONFIRMED),
    (Story().create().challenge(), VoidPayment("pay_1"), WITHDRAWN),
    (Story().create(manual=False).challenge(), VoidPayment("pay_1"), WITHDRAWN),
    (Story().create().challenge(), CapturePayment("pay_1"), RefusalCode.PAYMENT_STATE_INVALID),
    (Story().create().challenge(), RefundPayment("pay_1"), RefusalCode.PAYMENT_STATE_INVALID),
    (Story().create().challenge().confirm(), CONFIRM, RefusalCode.PAYMENT_PROCESSING),
    (Story().create().challenge().confirm(), VoidPayment("pay_1"), RefusalCode.PAYMENT_PROCESSING),
    (Story().create().challenge().confirm().challenge(confirmations=1), CONFIRM, CONFIRMED),
    (Story().create().challenge().confirm().approve(), CONFIRM, RefusalCode.PAYMENT_STATE_INVALID),
    (Story().create().challenge().void(), CONFIRM, RefusalCode.PAYMENT_PROCESSING),
    (Story().create().challenge().void().never(), CONFIRM, RefusalCode.PAYMENT_STATE_INVALID),
    (Story().create().accept(), CapturePayment("pay_1"), RefusalCode.PAYMENT_PROCESSING),
    (Story().create().accept(), VoidPayment("pay_1"), RefusalCode.PAYMENT_PROCESSING),
    (Story().create().accept(), CONFIRM, RefusalCode.PAYMENT_PROCESSING),
    # What a dispute holds can't be given back a second time; the rest can.
    (Story().create(manual=False).approve().dispute(), RefundPayment("pay_1"), RefusalCode.PAYMENT_STATE_INVALID),
    (Story().create(manual=False).approve().dispute("lost"), RefundPayment("pay_1"), RefusalCode.PAYMENT_STATE_INVALID),
    (
        Story().create(manual=False).approve().dispute(amount=30),
        RefundPayment("pay_1", 71),
        RefusalCode.AMOUNT_TOO_LARGE,
    ),
]


@pytest.mark.parametrize(("story", "command", "end"), COMMANDS)
def test_each_command_ends_in(story: Story, command: Command, end: RefusalCode | tuple[Event, ...]) -> None:
    decision = story.decide(command)
    assert (decision.code if isinstance(decision, Refusal) else decision) == end


@pytest.mark.parametrize("story", [Story().create(manual=False).approve().dispute("won")])
def test_what_was_won_back_can_be_refunded(story: Story) -> None:
    assert not isinstance(story.decide(RefundPayment("pay_1", 100)), Refusal)
    partly = Story().create(manual=False).approve().dispute(amount=30)
    assert not isinstance(partly.decide(RefundPayment("pay_1", 70)), Refusal)


def test_a_confirmation_is_bounded_as_any_command_is() -> None:
    story = Story().create().challenge()
    slow = replace(PROFILE, rate_per_second=1, rate_burst=1)
    later = Standing(arrival_us=(NOW_MS + 500) * 1_000)
    for profile, standing, available, code in (
        (replace(PROFILE, status="suspended"), Standing(), True, RefusalCode.PARTNER_SUSPENDED),
        (slow, later, True, RefusalCode.RATE_LIMITED),
        (PROFILE, Standing(open_operations=10_000), True, RefusalCode.TOO_MANY_IN_FLIGHT),
        (PROFILE, Standing(), False, RefusalCode.ACQUIRER_UNAVAILABLE),
    ):
        decision = rules.decide(
            profile, standing, story.payment, CONFIRM, NOW_MS, ids(2), acquirer=MAIN_ACQUIRER if available else None
        )
        assert isinstance(decision, Refusal)
        assert decision.code is code


def settle(story: Story, word: Word, confirmations: int = 0) -> tuple[Event, ...]:
    return rules.settle(PROFILE, story.payment, "op_1", word, NOW_MS, confirmations)


SOON = Challenged(CHALLENGE_URL, NOW_MS + 5)
CHALLENGED = (OperationChallenged("pay_1", "op_1", NOW_MS, CHALLENGE_URL, NOW_MS + 5),)
ACCEPTED = (OperationAccepted("pay_1", "op_1", NOW_MS),)

WORDS: list[tuple[Story, Word, int, tuple[Event, ...]]] = [
    (Story().create(), SOON, 0, CHALLENGED),
    (Story().create().lose(), SOON, 0, CHALLENGED),
    (Story().create().accept(), SOON, 0, CHALLENGED),
    (Story().create().challenge(), SOON, 0, ()),
    # An old word, of before the customer came back.
    (Story().create().challenge().confirm(), SOON, 0, ()),
    (Story().create().challenge().confirm(), SOON, 1, CHALLENGED),
    (Story().create().challenge().confirm().lose(), SOON, 1, CHALLENGED),
    (Story().create().challenge().void(), SOON, 0, ()),
    (Story().create().approve(), SOON, 0, ()),
    (Story().create(), Accepted(), 0, ACCEPTED),
    (Story().create().lose(), Accepted(), 0, ACCEPTED),
    (Story().create().accept(), Accepted(), 0, ()),
    (Story().create().challenge(), Accepted(), 0, ()),
    (Story().create().challenge().confirm(), Accepted(), 0, ACCEPTED),
    (Story().create().decline(), Accepted(), 0, ()),
]


@pytest.mark.parametrize(("story", "word", "confirmations", "events"), WORDS)
def test_each_word_of_the_acquirer_leads_to(
    story: Story, word: Word, confirmations: int, events: tuple[Event, ...]
) -> None:
    assert settle(story, word, confirmations) == events


def test_a_challenge_lasts_no_longer_than_the_limit() -> None:
    (event,) = settle(Story().create(), Challenged(CHALLENGE_URL, NOW_MS + 10 * limits.CHALLENGE_VALIDITY_MS_MAX))
    assert isinstance(event, OperationChallenged)
    assert event.expires_ms == NOW_MS + limits.CHALLENGE_VALIDITY_MS_MAX


@pytest.mark.parametrize(
    ("story", "code"),
    [
        (Story().create().challenge().void(), "canceled"),
        (Story().create().challenge().later(CHALLENGE_MS).expire(), "challenge_expired"),
        (Story().create().challenge().confirm().lose(), rules.CODE_NEVER_PERFORMED),
    ],
)
def test_a_closed_key_fails_with_why_it_was_closed(story: Story, code: str) -> None:
    (event,) = settle(story, NeverPerformed())
    assert event == OperationDeclined("pay_1", "op_1", NOW_MS, code, True, None)


def test_a_challenge_ends_by_itself() -> None:
    story = Story().create().challenge()
    assert story.payment.due_ms == NOW_MS + CHALLENGE_MS
    assert rules.expire(story.payment, NOW_MS + CHALLENGE_MS - 1, ids(2)) == ()
    at_ms = NOW_MS + CHALLENGE_MS
    assert rules.expire(story.payment, at_ms, ids(2)) == (OperationWithdrawn("pay_1", "op_1", at_ms, "expired"),)
    assert story.confirm().payment.due_ms is None, "who confirmed is not hurried"


def test_what_the_acquirer_accepted_is_lost_only_when_it_may_have_forgotten_it() -> None:
    payment = Story().create().accept().payment
    day_ms = limits.ACQUIRER_KEY_RETENTION_MS
    assert rules.lose(payment, "op_1", "timeout", NOW_MS + day_ms - 1) == ()
    lost = OperationLost("pay_1", "op_1", NOW_MS + day_ms, "key_forgotten")
    assert rules.lose(payment, "op_1", "key_forgotten", NOW_MS + day_ms) == (lost,)


def hear(story: Story, outcome: Approved | Declined, operation_id: str = "op_1") -> Decision | Refusal:
    told = story.told
    command = ResultNotification("msg_1", "pay_1", operation_id, outcome)
    return rules.decide(replace(PROFILE, status="suspended"), Standing(), told, command, NOW_MS, ids(9))


APPROVED = Approved("ref")
DECLINED = Declined("stolen_card", retryable=False)
APPROVES = (OperationApproved("pay_1", "op_1", NOW_MS, "ref", None, None),)
DECLINES = (OperationDeclined("pay_1", "op_1", NOW_MS, "stolen_card", False, None),)


@pytest.mark.parametrize(
    ("story", "outcome", "events"),
    [
        (Story().create(manual=False), APPROVED, APPROVES),
        (Story().create(manual=False).lose(), APPROVED, APPROVES),
        (Story().create(manual=False).accept(), APPROVED, APPROVES),
        (Story().create(manual=False).challenge(), APPROVED, APPROVES),
        (Story().create(manual=False).challenge().void(), APPROVED, APPROVES),
        (Story().create(manual=False).accept(), DECLINED, DECLINES),
        (Story().create(manual=False).challenge(), DECLINED, DECLINES),
        # What agrees with what is final is known; what doesn't is for a person.
        (Story().create(manual=False).approve(), APPROVED, ()),
        (Story().create(manual=False).decline(), DECLINED, ()),
        (
            Story().create(manual=False).approve(),
            DECLINED,
            (AcquirerContradicted("pay_1", "op_1", NOW_MS, "declined: stolen_card"),),
        ),
        (
            Story().create(manual=False).decline(),
            APPROVED,
            (AcquirerContradicted("pay_1", "op_1", NOW_MS, "approved"),),
        ),
        (
            Story().create(manual=False).lose().resolve(succeeded=False),
            APPROVED,
            (AcquirerContradicted("pay_1", "op_1", NOW_MS, "approved"),),
        ),
        (Story().create(manual=False).lose().resolve(succeeded=True), APPROVED, ()),
    ],
)
def test_a_notified_result_is_taken_once_also_for_a_suspended_partner(
    story: Story, outcome: Approved | Declined, events: tuple[Event, ...]
) -> None:
    assert hear(story, outcome) == Decision(events)
    before = story.payment.operation("op_1")
    if before.is_final:
        story.happen(*events)
        assert story.payment.operation("op_1") == before, "final stays final"


def test_a_notification_of_what_is_not_known() -> None:
    for story, operation_id, code in (
        (Story(), "op_1", RefusalCode.PAYMENT_NOT_FOUND),
        (Story().create(), "op_7", RefusalCode.OPERATION_NOT_FOUND),
    ):
        decision = hear(story, APPROVED, operation_id)
        assert isinstance(decision, Refusal)
        assert decision.code is code


def paid() -> Story:
    return Story().create(manual=False).approve()


def opened(amount: int = 100, dispute_id: str = "dp_1") -> DisputeOpened:
    return DisputeOpened("pay_1", "op_1", NOW_MS, dispute_id, amount, "fraudulent", NOW_MS - 5)


def closed(amount: int = 100, *, won: bool) -> DisputeClosed:
    return DisputeClosed("pay_1", "op_1", NOW_MS, "dp_1", amount, won, NOW_MS - 1)


def contradicted(claim: str, operation_id: str = "op_1") -> tuple[Event, ...]:
    return (AcquirerContradicted("pay_1", operation_id, NOW_MS, claim),)


@pytest.mark.parametrize(
    ("story", "status", "events"),
    [
        (paid(), "open", (opened(),)),
        (paid().dispute(), "open", ()),
        (paid().dispute(), "won", (closed(won=True),)),
        (paid().dispute(), "lost", (closed(won=False),)),
        # The end before the beginning; then the beginning is no news.
        (paid(), "won", (opened(), closed(won=True))),
        (paid().dispute("won"), "open", ()),
        (paid().dispute("won"), "won", ()),
        (paid().dispute("won"), "lost", contradicted("dispute dp_1 of 100 EUR is lost")),
        (paid().dispute("lost"), "won", contradicted("dispute dp_1 of 100 EUR is won")),
        (paid().dispute("lost"), "open", ()),
    ],
)
def test_news_of_a_dispute_in_any_order(story: Story, status: str, events: tuple[Event, ...]) -> None:
    assert story.decide(story.told_dispute(status, "op_1")) == events


@pytest.mark.parametrize(
    ("story", "told", "claim"),
    [
        (paid(), {"amount": 101}, "dispute dp_1 of 101 EUR is open"),
        (paid(), {"currency": "USD"}, "dispute dp_1 of 100 USD is open"),
        (paid().dispute(), {"amount": 99}, "dispute dp_1 of 99 EUR is open"),
        (paid().dispute(amount=60), {"amount": 41, "dispute_id": "dp_2"}, "dispute dp_2 of 41 EUR is open"),
        (Story().create().approve(), {}, "dispute dp_1 of 100 EUR is open"),  # an authorization moved nothing
        (Story().create(manual=False).decline(), {}, "dispute dp_1 of 100 EUR is open"),
    ],
)
def test_a_dispute_that_can_t_be_is_for_a_person(story: Story, told: dict[str, int | str], claim: str) -> None:
    command = story.told_dispute("open", "op_1", **told)  # type: ignore[arg-type]
    assert story.decide(command) == contradicted(claim)


def test_disputes_of_a_payment_are_bounded() -> None:
    story = Story().create(1_000, manual=False).approve()
    for number in range(limits.DISPUTES_PER_PAYMENT_MAX):
        story.dispute(amount=1, dispute_id=f"dp_{number}", operation_id="op_1")
    (event,) = story.decide(story.told_dispute("open", "op_1", 1, "dp_more"))
    assert isinstance(event, AcquirerContradicted)


@pytest.mark.parametrize(
    "story", [Story().create(manual=False), Story().create().challenge(), Story().create().accept()]
)
def test_a_dispute_of_what_is_not_final_here_is_to_be_told_again(story: Story) -> None:
    decision = story.decide(story.told_dispute("open", "op_1"))
    assert isinstance(decision, Refusal)
    assert decision.code is RefusalCode.PAYMENT_PROCESSING
    assert decision.retry_after_ms


@pytest.mark.parametrize(
    ("story", "payable", "held", "withdrawn", "receivable"),
    [
        (paid(), -100, 0, 0, 100),
        (paid().dispute(amount=30), -70, -30, 30, 70),
        (paid().dispute(amount=30).dispute("won", amount=30), -100, 0, 0, 100),
        (paid().dispute(amount=30).dispute("lost", amount=30), -70, 0, 0, 70),
        (paid().dispute("lost"), 0, 0, 0, 0),
        # Refunded, and disputed as well: the partner owes it.
        (paid().refund().approve().dispute("open", "op_1"), 100, -100, 100, -100),
    ],
)
def test_what_a_dispute_posts(story: Story, payable: int, held: int, withdrawn: int, receivable: int) -> None:
    accounts = (
        Account.PARTNER_PAYABLE,
        Account.DISPUTES_HELD,
        Account.DISPUTES_WITHDRAWN,
        Account.ACQUIRER_RECEIVABLE,
    )
    figures = tuple(story.balances.get(("EUR", account.value), 0) for account in accounts)
    assert figures == (payable, held, withdrawn, receivable)


def test_a_payment_that_was_refunded_and_then_disputed_has_nothing_left() -> None:
    payment: Payment = paid().refund().approve().dispute("open", "op_1").payment
    assert payment.status is PaymentStatus.DISPUTED
    assert payment.amount_refundable == 0
