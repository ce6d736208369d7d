from pathlib import Path

import pytest

from actors.payment import FINAL_STATES, OPEN_STATES, TRANSITIONS, OperationState, Outcome, diagram, next_state
from tests.unit.actors.story import Story

DOCS = Path(__file__).parents[3] / "docs" / "payments.md"


@pytest.mark.parametrize("state", OperationState)
@pytest.mark.parametrize("outcome", Outcome)
def test_a_transition_is_in_the_table_or_a_bug(state: OperationState, outcome: Outcome) -> None:
    if (state, outcome) in TRANSITIONS:
        assert next_state(state, outcome) is TRANSITIONS[state, outcome]
    else:
        with pytest.raises(AssertionError, match="no transition"):
            next_state(state, outcome)


def test_final_states_stay_final_and_open_ones_can_end_both_ways() -> None:
    for state in OperationState:
        targets = {target for (source, _), target in TRANSITIONS.items() if source is state}
        assert (state not in FINAL_STATES) == bool(targets)
        if targets:
            assert targets >= FINAL_STATES
    # What waits for its customer is not asked for meanwhile.
    assert set(OperationState) - FINAL_STATES - OPEN_STATES == {OperationState.REQUIRES_ACTION}


def test_the_docs_show_the_table_as_it_is() -> None:
    assert f"```mermaid\n{diagram()}\n```" in DOCS.read_text(), "docs/payments.md: paste what payment.diagram() gives"


# story -> status, authorized, capturable, captured, refundable, refunded
STORIES = [
    (Story().create(), "processing", 0, 0, 0, 0, 0),
    (Story().create().lose(), "processing", 0, 0, 0, 0, 0),
    (Story().create().decline(), "failed", 0, 0, 0, 0, 0),
    (Story().create().lose().never(), "failed", 0, 0, 0, 0, 0),
    (Story().create().approve(), "authorized", 100, 100, 0, 0, 0),
    (Story().create(0).approve(), "authorized", 0, 0, 0, 0, 0),
    (Story().create(manual=False), "processing", 0, 0, 0, 0, 0),
    (Story().create(manual=False).approve(), "captured", 100, 0, 100, 100, 0),
    (Story().create().approve().capture(30), "authorized", 100, 70, 0, 0, 0),
    (Story().create().approve().capture(30).lose(), "authorized", 100, 70, 0, 0, 0),
    (Story().create().approve().capture(30).decline(), "authorized", 100, 100, 0, 0, 0),
    (Story().create().approve().capture(30).approve(), "partially_captured", 100, 70, 30, 30, 0),
    (Story().create().approve().capture(30).approve().capture().approve(), "captured", 100, 0, 100, 100, 0),
    (Story().create().approve().capture(30).approve().void().approve(), "partially_captured", 100, 0, 30, 30, 0),
    (Story().create().approve().void(), "authorized", 100, 0, 0, 0, 0),
    (Story().create().approve().void().decline(), "authorized", 100, 100, 0, 0, 0),
    (Story().create().approve().void().approve(), "canceled", 100, 0, 0, 0, 0),
    (Story().create(manual=False).approve().refund(40), "captured", 100, 0, 100, 60, 0),
    (Story().create(manual=False).approve().refund(40).decline(), "captured", 100, 0, 100, 100, 0),
    (Story().create(manual=False).approve().refund(40).approve(), "partially_refunded", 100, 0, 100, 60, 40),
    (Story().create(manual=False).approve().refund(40).approve().refund().approve(), "refunded", 100, 0, 100, 0, 100),
    # All that was captured is given back, but more can be captured: not the end yet, nor while that is under way.
    (Story().create().approve().capture(30).approve().refund().approve(), "partially_refunded", 100, 70, 30, 0, 30),
    (
        Story().create().approve().capture(30).approve().refund().approve().capture(),
        "partially_refunded",
        100,
        0,
        30,
        0,
        30,
    ),
    (
        Story().create().approve().capture(30).approve().refund().approve().void(),
        "partially_refunded",
        100,
        0,
        30,
        0,
        30,
    ),
    (
        Story().create().approve().capture(30).approve().refund().approve().void().approve(),
        "refunded",
        100,
        0,
        30,
        0,
        30,
    ),
    (Story().create().approve().capture(30).decline("authorization_expired"), "expired", 100, 0, 0, 0, 0),
    # Another capture is still under way when the acquirer says that the rest is gone: it may yet go through.
    (
        Story().create().approve().capture(20).capture(30).decline("authorization_expired"),
        "authorized",
        100,
        0,
        0,
        0,
        0,
    ),
    (
        Story().create().approve().capture(20).capture(30).decline("authorization_expired").approve("op_2"),
        "partially_captured",
        100,
        0,
        20,
        20,
        0,
    ),
    (
        Story().create().approve().capture(20).capture(30).decline("authorization_expired").decline("x", "op_2"),
        "authorized",
        100,
        20,
        0,
        0,
        0,
    ),
    (
        Story().create().approve().capture(20).capture(30).decline("authorization_expired").decline("x", "op_2").void(),
        "authorized",
        100,
        0,
        0,
        0,
        0,
    ),
    (Story().create().approve().later(8 * 24 * 3_600_000).expire().approve(), "expired", 100, 0, 0, 0, 0),
    # The customer is to act.
    (Story().create().challenge(), "requires_action", 0, 0, 0, 0, 0),
    (Story().create().lose().challenge(), "requires_action", 0, 0, 0, 0, 0),
    (Story().create().challenge().confirm(), "processing", 0, 0, 0, 0, 0),
    (Story().create().challenge().confirm().approve(), "authorized", 100, 100, 0, 0, 0),
    (Story().create(manual=False).challenge().confirm().approve(), "captured", 100, 0, 100, 100, 0),
    (Story().create(0).challenge().confirm().approve(), "authorized", 0, 0, 0, 0, 0),
    (Story().create().challenge().confirm().challenge(confirmations=1), "requires_action", 0, 0, 0, 0, 0),
    (Story().create().challenge().confirm().challenge(confirmations=0), "processing", 0, 0, 0, 0, 0),
    (Story().create().challenge().confirm().decline("authentication_failed"), "failed", 0, 0, 0, 0, 0),
    (Story().create().challenge().confirm().lose().never(), "failed", 0, 0, 0, 0, 0),
    (Story().create().challenge().approve(), "authorized", 100, 100, 0, 0, 0),
    (Story().create().challenge().void(), "processing", 0, 0, 0, 0, 0),
    (Story().create().challenge().void().never(), "canceled", 0, 0, 0, 0, 0),
    (Story().create().challenge().void().approve(), "authorized", 100, 100, 0, 0, 0),
    (Story().create().challenge().void().decline("stolen_card"), "failed", 0, 0, 0, 0, 0),
    (Story().create().challenge().later(900_000).expire(), "processing", 0, 0, 0, 0, 0),
    (Story().create().challenge().later(900_000).expire().never(), "failed", 0, 0, 0, 0, 0),
    # The acquirer tells its result later.
    (Story().create().accept(), "processing", 0, 0, 0, 0, 0),
    (Story().create().lose().accept().approve(), "authorized", 100, 100, 0, 0, 0),
    (Story().create().accept().decline(), "failed", 0, 0, 0, 0, 0),
    (Story().create().accept().challenge(), "requires_action", 0, 0, 0, 0, 0),
    (Story().create().challenge().confirm().accept().approve(), "authorized", 100, 100, 0, 0, 0),
    # Disputes hold what a refund would take.
    (Story().create(manual=False).approve().dispute(), "disputed", 100, 0, 100, 0, 0),
    (Story().create(manual=False).approve().dispute(amount=30), "disputed", 100, 0, 100, 70, 0),
    (Story().create(manual=False).approve().dispute().dispute("won"), "captured", 100, 0, 100, 100, 0),
    (Story().create(manual=False).approve().dispute("won"), "captured", 100, 0, 100, 100, 0),
    (Story().create(manual=False).approve().dispute().dispute("lost"), "disputed", 100, 0, 100, 0, 0),
    (Story().create(manual=False).approve().dispute("lost"), "disputed", 100, 0, 100, 0, 0),
    (
        Story().create(manual=False).approve().refund(40).approve().dispute("open", "op_1"),
        "disputed",
        100,
        0,
        100,
        0,
        40,
    ),
    (
        Story().create(manual=False).approve().refund(40).approve().dispute("won", "op_1"),
        "partially_refunded",
        100,
        0,
        100,
        60,
        40,
    ),
    (Story().create().approve().capture(60).approve().dispute(), "disputed", 100, 40, 60, 0, 0),
]


@pytest.mark.parametrize(("story", "status", "authorized", "capturable", "captured", "refundable", "refunded"), STORIES)
def test_status_and_amounts_follow_from_the_operations(
    story: Story, status: str, authorized: int, capturable: int, captured: int, refundable: int, refunded: int
) -> None:
    payment = story.payment
    assert (
        payment.status.value,
        payment.amount_authorized,
        payment.amount_capturable,
        payment.amount_captured,
        payment.amount_refundable,
        payment.amount_refunded,
    ) == (status, authorized, capturable, captured, refundable, refunded)


def test_asking_for_the_operation_of_another_payment_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="no operation"):
        Story().create().payment.operation("op_99")
