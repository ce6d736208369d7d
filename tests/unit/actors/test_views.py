import orjson
import pytest

from actors import views
from actors.acquirer import Declined
from actors.events import Event
from actors.records import JournalEntry, OpenOperation
from actors.store import Key
from tests.unit.actors.story import CHALLENGE_MS, DAY_MS, NOW_MS, Story


def test_times_are_rfc_3339_in_utc_with_milliseconds() -> None:
    assert views.timestamp(None) is None
    assert views.timestamp(0) == "1970-01-01T00:00:00.000Z"
    assert views.timestamp(1_795_367_400_007) == "2026-11-22T17:10:00.007Z"


def test_a_payment_as_partners_see_it() -> None:
    story = Story().create(1_050).approve().capture(50).decline("stolen_card")
    assert orjson.loads(views.render_payment(story.payment, "live")) == {
        "id": "pay_1",
        "object": "payment",
        "mode": "live",
        "created_at": "2026-09-21T14:13:20.000Z",
        "amount": 1_050,
        "currency": "EUR",
        "status": "authorized",
        "capture_method": "manual",
        "payment_method": "tok_approve",
        "reference": None,
        "description": None,
        "metadata": {},
        "amount_authorized": 1_050,
        "amount_capturable": 1_050,
        "amount_captured": 0,
        "amount_refunded": 0,
        "amount_disputed": 0,
        "next_action": None,
        "dispute": None,
        "failure": {
            "operation_id": "op_2",
            "code": "stolen_card",
            "message": "The capture failed: stolen card. The same may go through later.",
            "retryable": True,
        },
        "expires_at": "2026-09-28T14:13:20.000Z",
        "operations": [
            {
                "id": "op_1",
                "type": "authorization",
                "amount": 1_050,
                "status": "succeeded",
                "created_at": "2026-09-21T14:13:20.000Z",
                "settled_at": "2026-09-21T14:13:20.000Z",
                "failure": None,
                "reason": None,
            },
            {
                "id": "op_2",
                "type": "capture",
                "amount": 50,
                "status": "failed",
                "created_at": "2026-09-21T14:13:20.000Z",
                "settled_at": "2026-09-21T14:13:20.000Z",
                "failure": {
                    "code": "stolen_card",
                    "message": "The capture failed: stolen card. The same may go through later.",
                    "retryable": True,
                },
                "reason": None,
            },
        ],
    }


def test_a_refund_as_partners_see_it() -> None:
    payment = Story().create(manual=False).approve().refund(40).approve().payment
    assert orjson.loads(views.render_refund(payment, payment.operation("re_2"))) == {
        "id": "re_2",
        "object": "refund",
        "payment_id": "pay_1",
        "amount": 40,
        "currency": "EUR",
        "status": "succeeded",
        "reason": None,
        "created_at": "2026-09-21T14:13:20.000Z",
        "settled_at": "2026-09-21T14:13:20.000Z",
        "failure": None,
    }


def test_balances_are_credits_to_the_partner_in_the_order_of_currencies() -> None:
    story = Story().create().approve().capture(60).approve().capture(10).refund(20)
    balances = story.balances | {("AUD", "partner_payable"): -7}
    assert orjson.loads(views.render_balance(balances)) == {
        "object": "balance",
        "balances": [
            {
                "currency": "AUD",
                "payable": 7,
                "authorized": 0,
                "captures_pending": 0,
                "refunds_pending": 0,
                "disputes_held": 0,
            },
            {
                "currency": "EUR",
                "payable": 40,
                "authorized": 30,
                "captures_pending": 10,
                "refunds_pending": 20,
                "disputes_held": 0,
            },
        ],
    }
    disputed = Story().create(manual=False).approve().dispute(amount=30)
    (row,) = orjson.loads(views.render_balance(disputed.balances))["balances"]
    assert (row["payable"], row["disputes_held"]) == (70, 30)
    assert orjson.loads(views.render_balance({})) == {"object": "balance", "balances": []}


def test_a_challenge_as_partners_see_it() -> None:
    story = Story().create().challenge()
    shown = orjson.loads(views.render_payment(story.payment, "test"))
    assert shown["next_action"] == {
        "type": "redirect_to_url",
        "redirect_to_url": {"url": "https://bank.example/challenges/1"},
        "expires_at": "2026-09-21T14:28:20.000Z",
    }
    assert shown["operations"][0]["status"] == "requires_action"
    assert shown["failure"] is None
    for after in (story.confirm(), story.decline("authentication_failed")):
        assert orjson.loads(views.render_payment(after.payment, "test"))["next_action"] is None


def test_a_dispute_as_partners_see_it() -> None:
    story = Story().create(manual=False).approve().dispute(amount=30)
    shown = orjson.loads(views.render_payment(story.payment, "test"))
    assert shown["dispute"] == {
        "id": "dp_1",
        "operation_id": "op_1",
        "amount": 30,
        "reason": "fraudulent",
        "status": "open",
        "opened_at": "2026-09-21T14:13:19.995Z",
        "closed_at": None,
    }
    assert (shown["amount_disputed"], shown["amount_captured"], shown["amount_refunded"]) == (30, 100, 0)
    shown = orjson.loads(views.render_payment(story.dispute("lost", amount=30).payment, "test"))
    assert (shown["dispute"]["status"], shown["dispute"]["closed_at"]) == ("lost", "2026-09-21T14:13:19.999Z")
    assert shown["amount_disputed"] == 30


def test_an_unknown_operation_as_operators_see_it() -> None:
    payment = Story().create().lose().payment
    key: Key = ("once", "key", "k")
    shown = views.unknown_view(payment, OpenOperation("op_1", "pay_1", key, NOW_MS, 3), NOW_MS + 500, needs_person=True)
    assert shown == {
        "operation_id": "op_1",
        "payment_id": "pay_1",
        "kind": "authorization",
        "amount": 100,
        "currency": "EUR",
        "state": "unknown",
        "age_ms": 500,
        "attempts": 3,
        "needs_person": True,
        "acquirer": "main",
    }


CHALLENGED = ["payment.created", "payment.requires_action"]


class Recorder(Story):
    """A story that keeps its events."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []

    def happen(self, *events: Event) -> "Recorder":
        self.events += events
        super().happen(*events)
        return self


@pytest.mark.parametrize(
    ("story", "types"),
    [
        (Recorder().create().approve(), ["payment.created", "payment.authorized"]),
        (Recorder().create().lose().decline(), ["payment.created", "operation.unknown", "payment.failed"]),
        (Recorder().create(manual=False).approve(), ["payment.created", "payment.captured"]),
        (Recorder().create(0).approve(), ["payment.created", "payment.verified"]),
        (
            Recorder().create().approve().capture().decline(),
            ["payment.created", "payment.authorized", "payment.capture_failed"],
        ),
        (
            Recorder().create().approve().void().approve(),
            ["payment.created", "payment.authorized", "payment.canceled"],
        ),
        (
            Recorder().create().approve().void().decline(),
            ["payment.created", "payment.authorized", "payment.cancel_failed"],
        ),
        (
            Recorder().create(manual=False).approve().refund(5).approve().refund(6).decline(),
            [
                "payment.created",
                "payment.captured",
                "refund.created",
                "refund.succeeded",
                "refund.created",
                "refund.failed",
            ],
        ),
        (
            Recorder().create().approve().later(8 * DAY_MS).expire().approve(),
            ["payment.created", "payment.authorized", "payment.expired"],
        ),
        (
            Recorder().create().approve().capture().decline("authorization_expired"),
            ["payment.created", "payment.authorized", "payment.capture_failed", "payment.expired"],
        ),
        (
            Recorder().create().challenge().confirm().approve(),
            ["payment.created", "payment.requires_action", "payment.confirmed", "payment.authorized"],
        ),
        (Recorder().create().challenge().void().never(), [*CHALLENGED, "payment.canceled"]),
        (Recorder().create().challenge().later(CHALLENGE_MS).expire().never(), [*CHALLENGED, "payment.failed"]),
        (
            Recorder().create(manual=False).accept().approve(),
            ["payment.created", "operation.accepted", "payment.captured"],
        ),
        (
            Recorder().create(manual=False).approve().dispute().dispute("won"),
            ["payment.created", "payment.captured", "dispute.opened", "dispute.won"],
        ),
        (
            Recorder().create(manual=False).approve().dispute("lost"),
            ["payment.created", "payment.captured", "dispute.opened", "dispute.lost"],
        ),
        (
            Recorder().create(manual=False).approve().notify(Declined("stolen_card", retryable=False)),
            ["payment.created", "payment.captured", "operation.contradicted"],
        ),
    ],
)
def test_the_public_events_of_a_history(story: Recorder, types: list[str]) -> None:
    entry = JournalEntry(7, NOW_MS, "c", "r", 1, tuple(story.events), ())
    shown = views.event_views(entry, {"pay_1": story.payment})
    assert [event["type"] for event in shown] == types
    ids = [event["id"] for event in shown]
    assert ids == sorted(set(ids))
    assert ids[0] == "evt_00000000000000070000"
    assert all(event["data"]["payment_id"] == "pay_1" for event in shown)
    assert all(event["data"]["amount"] >= 0 for event in shown)
    failures = [event["data"]["failure"]["code"] for event in shown if event["type"].endswith("_failed")]
    assert all(failures)


def test_that_a_person_resolved_an_operation_is_an_event_of_its_own() -> None:
    for succeeded, outcome, kind in ((True, "succeeded", "payment.captured"), (False, "failed", "payment.failed")):
        story = Recorder().create(manual=False).lose().resolve(succeeded=succeeded)
        entry = JournalEntry(7, NOW_MS, "c", "r", 1, tuple(story.events), ())
        *_, before, resolved = views.event_views(entry, {"pay_1": story.payment})
        assert (before["type"], resolved["type"]) == (kind, "operation.resolved_by_operator")
        assert before["id"] < resolved["id"]
        assert resolved["data"] == {
            "payment_id": "pay_1",
            "operation_id": story.last,
            "outcome": outcome,
            "by": "operator",
        }


def test_ids_of_events_rise_with_the_journal() -> None:
    ids = [views.event_id(sequence, index) for sequence in (1, 9, 10, 10**9) for index in (0, 9, 10)]
    assert ids == sorted(ids)
    assert {len(name) for name in ids} == {24}
