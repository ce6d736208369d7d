"""What each token does, and to which kinds of operation."""

import pytest

from acquirer_simulator import limits, tokens
from acquirer_simulator.tokens import LATER_KINDS, OPENING_KINDS, RETRYABLE_BY_DECLINE, Answering, Behaviour, behaviour

PLAIN = Behaviour()


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("tok_approve", PLAIN),
        ("tok_decline_insufficient_funds", Behaviour(decline="insufficient_funds")),
        ("tok_decline_processing_error", Behaviour(decline="processing_error")),
        ("tok_decline_stolen_card", Behaviour(decline="stolen_card")),
        ("tok_decline_expired_card", Behaviour(decline="expired_card")),
        ("tok_slow_200", Behaviour(delay_ms=200)),
        ("tok_expires_50", Behaviour(validity_ms=50)),
        ("tok_timeout_charged", Behaviour(Answering.SILENT_AT_FIRST)),
        ("tok_timeout_not_charged", Behaviour(Answering.SILENT, performs=False)),
        ("tok_error_500", Behaviour(Answering.SERVER_ERROR, performs=False)),
        ("tok_malformed", Behaviour(Answering.GARBAGE)),
        ("tok_capture_decline", PLAIN),
        ("tok_refund_timeout_charged", PLAIN),
        ("tok_decline_", Behaviour(decline="invalid_payment_method")),
        ("tok_slow_", Behaviour(decline="invalid_payment_method")),
        ("tok_slow_-1", Behaviour(decline="invalid_payment_method")),
        (f"tok_slow_{limits.DELAY_MS_MAX + 1}", Behaviour(decline="invalid_payment_method")),
        (f"tok_expires_{limits.AUTHORIZATION_VALIDITY_MS_MAX + 1}", Behaviour(decline="invalid_payment_method")),
        ("", Behaviour(decline="invalid_payment_method")),
        ("redacted", Behaviour(decline="invalid_payment_method")),
    ],
)
def test_at_the_opening(token: str, expected: Behaviour) -> None:
    assert {behaviour(token, kind) for kind in OPENING_KINDS} == {expected}


@pytest.mark.parametrize(
    ("token", "kind", "expected"),
    [
        ("tok_capture_decline", "capture", Behaviour(decline="capture_declined")),
        ("tok_refund_decline", "refund", Behaviour(decline="refund_declined")),
        ("tok_capture_timeout_charged", "capture", Behaviour(Answering.SILENT_AT_FIRST)),
        ("tok_void_timeout_charged", "void", Behaviour(Answering.SILENT_AT_FIRST)),
        ("tok_refund_timeout_charged", "refund", Behaviour(Answering.SILENT_AT_FIRST)),
    ],
)
def test_tokens_of_one_later_operation_touch_no_other(token: str, kind: str, expected: Behaviour) -> None:
    assert behaviour(token, kind) == expected
    assert {behaviour(token, other) for other in LATER_KINDS - {kind}} == {PLAIN}


@pytest.mark.parametrize("kind", sorted(LATER_KINDS))
def test_a_slow_payment_is_slow_at_each_operation(kind: str) -> None:
    assert behaviour("tok_slow_200", kind) == Behaviour(delay_ms=200)


@pytest.mark.parametrize("kind", sorted(LATER_KINDS))
@pytest.mark.parametrize(
    "token",
    [
        "tok_decline_stolen_card",
        "tok_timeout_charged",
        "tok_timeout_not_charged",
        "tok_error_500",
        "tok_malformed",
        "tok_expires_50",
        "unknown",
    ],
)
def test_tokens_of_the_opening_leave_later_operations_alone(token: str, kind: str) -> None:
    assert behaviour(token, kind) == PLAIN


def test_every_decline_says_whether_a_retry_makes_sense() -> None:
    declines = {b.decline for b in [*tokens._OPENING.values(), *tokens._LATER.values()] if b.decline}

    assert declines <= RETRYABLE_BY_DECLINE.keys()
    assert {code for code, retryable in RETRYABLE_BY_DECLINE.items() if retryable} == {
        "insufficient_funds",
        "processing_error",
        "authentication_failed",
        "challenge_expired",
        "charge_disputed",
    }


def test_every_token_is_documented() -> None:
    assert tokens.__doc__ is not None
    for token in [*tokens._OPENING, *(token for token, _ in tokens._LATER), "tok_slow_<ms>", "tok_expires_<ms>"]:
        assert f"`{token}`" in tokens.__doc__
