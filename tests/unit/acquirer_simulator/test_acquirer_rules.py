"""The rules of money at the acquirer: one row a case, ending in the code expected."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acquirer_simulator.rules import Operation, Original, captured_at_once, decide, reference_of
from acquirer_simulator.tokens import Behaviour

NOW_MS = 1_000_000
PLAIN = Behaviour()
FRESH = Original("p", 1_000, "EUR", captured=0, refunded=0, voided=False, expires_at_ms=NOW_MS + 1)
PARTLY = FRESH._replace(captured=400)
FULLY = FRESH._replace(captured=1_000)
REFUNDED = FULLY._replace(refunded=600)
VOIDED = FRESH._replace(voided=True)
EXPIRED = FRESH._replace(expires_at_ms=NOW_MS)
PURCHASE = FULLY._replace(expires_at_ms=None)


def operation(kind: str, amount: int, currency: str = "EUR", partner: str = "p") -> Operation:
    return Operation("key", partner, kind, amount, currency, "tok_approve", "original")


@pytest.mark.parametrize(
    ("asked", "original", "code"),
    [
        (operation("capture", 1), None, "original_not_found"),
        (operation("capture", 1, partner="other"), FRESH, "original_not_found"),
        (operation("void", 1, partner="other"), FRESH, "original_not_found"),
        (operation("refund", 1, partner="other"), FULLY, "original_not_found"),
        (operation("capture", 1, "USD"), FRESH, "currency_mismatch"),
        (operation("capture", 1_000), FRESH, None),
        (operation("capture", 1_001), FRESH, "amount_exceeds_authorization"),
        (operation("capture", 600), PARTLY, None),
        (operation("capture", 601), PARTLY, "amount_exceeds_authorization"),
        (operation("capture", 1), PURCHASE, "amount_exceeds_authorization"),
        (operation("capture", 1), EXPIRED, "authorization_expired"),
        (operation("capture", 1), VOIDED, "authorization_voided"),
        (operation("capture", 1), VOIDED._replace(expires_at_ms=NOW_MS), "authorization_voided"),
        (operation("capture", 9_999), EXPIRED, "authorization_expired"),
        (operation("void", 1_000), FRESH, None),
        (operation("void", 600), PARTLY, None),
        (operation("void", 1_000), FULLY, "already_captured"),
        (operation("void", 1_000), PURCHASE, "already_captured"),
        (operation("void", 1_000), FULLY._replace(expires_at_ms=NOW_MS), "already_captured"),
        (operation("void", 1_000), VOIDED, "authorization_voided"),
        (operation("void", 1_000), EXPIRED, "authorization_expired"),
        (operation("refund", 1), FRESH, "amount_exceeds_capture"),
        (operation("refund", 400), PARTLY, None),
        (operation("refund", 401), PARTLY, "amount_exceeds_capture"),
        (operation("refund", 400), REFUNDED, None),
        (operation("refund", 401), REFUNDED, "amount_exceeds_capture"),
        (operation("refund", 400), PARTLY._replace(voided=True, expires_at_ms=NOW_MS), None),
    ],
)
def test_later_operations(asked: Operation, original: Original | None, code: str | None) -> None:
    decision = decide(asked, PLAIN, original, NOW_MS)

    assert decision.code == code
    assert (decision.original_after is None) == (code is not None)
    assert not decision.retryable


def test_each_later_operation_moves_its_own_figure() -> None:
    captured = decide(operation("capture", 100), PLAIN, PARTLY, NOW_MS).original_after
    voided = decide(operation("void", 600), PLAIN, PARTLY, NOW_MS).original_after
    refunded = decide(operation("refund", 100), PLAIN, PARTLY, NOW_MS).original_after

    assert captured == PARTLY._replace(captured=500)
    assert voided == PARTLY._replace(voided=True)
    assert refunded == PARTLY._replace(refunded=100)


@pytest.mark.parametrize("kind", ["authorization", "purchase", "verification"])
def test_opening_operations_follow_their_token(kind: str) -> None:
    opening = operation(kind, 500)._replace(original_key=None)

    approved = decide(opening, Behaviour(validity_ms=77), None, NOW_MS)
    declined = decide(opening, Behaviour(decline="insufficient_funds"), None, NOW_MS)

    assert approved == (None, NOW_MS + 77 if kind == "authorization" else None, None)
    assert (declined.code, declined.retryable, declined.expires_at_ms) == ("insufficient_funds", True, None)
    assert captured_at_once(opening) == (500 if kind == "purchase" else 0)


def test_a_rule_comes_before_a_token() -> None:
    decision = decide(operation("refund", 1), Behaviour(decline="refund_declined"), FRESH, NOW_MS)

    assert decision.code == "amount_exceeds_capture"


def test_a_reference_is_the_keys_own() -> None:
    assert reference_of("a") == reference_of("a")
    assert reference_of("a") != reference_of("b")


@given(
    authorized=st.integers(0, 500),
    steps=st.lists(st.tuples(st.sampled_from(["capture", "refund", "void"]), st.integers(0, 300)), max_size=30),
)
def test_no_sequence_takes_more_than_was_authorized(authorized: int, steps: list[tuple[str, int]]) -> None:
    original = FRESH._replace(amount=authorized)
    captured = refunded = 0
    for kind, amount in steps:
        decision = decide(operation(kind, amount), PLAIN, original, NOW_MS)
        if decision.original_after is None:
            continue
        assert not (original.voided and kind == "capture")
        original = decision.original_after
        captured += amount if kind == "capture" else 0
        refunded += amount if kind == "refund" else 0
        assert (original.captured, original.refunded) == (captured, refunded)
        assert 0 <= refunded <= captured <= authorized
