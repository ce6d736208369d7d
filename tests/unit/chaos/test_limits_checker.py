"""The checker of limits takes what GCRA lets in, seen through intervals, and finds one payment more."""

import random
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.history import Call
from chaos.limits_checker import Limits, densest, judge

LIMITS = {"acme": Limits(rate_per_second=10, rate_burst=5, in_flight_max=2)}


def call(key: str, sent_s: float, answered_s: float | None, status: int = 201, **answer: Any) -> Call:
    return Call(
        run="t",
        partner="acme",
        scenario="s",
        step="create_payment",
        method="POST",
        path="/v1/payments",
        key=key,
        body=b"{}",
        expected=(),
        usual=True,
        due_s=sent_s,
        sent_s=sent_s,
        answered_s=answered_s,
        status=None if answered_s is None else status,
        answer=orjson.dumps(answer),
    )


def test_a_burst_is_taken_and_one_more_is_not() -> None:
    burst = [call(f"k{number}", 0, 0.01) for number in range(5)]
    assert judge(burst, LIMITS).verdict == "right"
    judgement = judge([*burst, call("more", 0, 0.01)], LIMITS)
    assert judgement.verdict == "wrong"
    (found,) = judgement.findings
    assert "6 new payments" in str(found)
    (past,) = found.offenders
    assert (past.partner, past.what, past.at_s) == ("acme", "POST /v1/payments under key more (s create_payment)", 0)


def test_what_a_client_can_t_know_is_no_finding() -> None:
    burst = [call(f"k{number}", 0, 0.01) for number in range(5)]
    assert judge([*burst, call("slow", 0, 0.2)], LIMITS).verdict == "right", "it may have been let in at its end"
    assert judge([*burst, call("lost", 0, None)], LIMITS).verdict == "right"
    assert judge([*burst, call("refused", 0, 0.01, 429)], LIMITS).verdict == "right"
    assert judge([*burst, call("k0", 0.005, 0.01)], LIMITS).verdict == "right", "a repeat is let in once"
    refilled = {"acme": Limits(10, 5, 2, refills=1)}
    assert judge([*burst, call("more", 0, 0.01)], refilled).verdict == "right"


@settings(max_examples=100, deadline=None)
@given(st.integers(min_value=0))
def test_all_that_gcra_lets_in_is_taken(seed: int) -> None:
    dice = random.Random(seed)
    calls, tokens, at_s = [], 5.0, 0.0
    for number in range(100):
        wait_s = dice.choice((0, 0.05, 0.3))
        at_s += wait_s
        tokens = min(5.0, tokens + 10 * wait_s)
        if tokens >= 1 - 1e-9:
            tokens -= 1
            calls.append(call(f"k{number}", at_s - dice.random() * 0.1, at_s + dice.random() * 0.1))
    dice.shuffle(calls)
    assert judge(calls, LIMITS).verdict == "right"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5)), min_size=1, max_size=12), st.integers(0, 3))
def test_the_densest_window_is_the_one_that_trying_all_finds(pairs: list[tuple[int, int]], rate: int) -> None:
    intervals = [(float(begin), float(begin + length)) for begin, length in pairs]
    tried = max(
        sum(begin <= one[0] and one[1] <= end for one in intervals) - rate * (end - begin)
        for begin, _ in intervals
        for _, end in intervals
        if any(begin <= one[0] and one[1] <= end for one in intervals)
    )
    excess, begin, end, count = densest(intervals, rate)
    assert excess == pytest.approx(tried)
    assert count == sum(begin <= one[0] and one[1] <= end for one in intervals)


def paid(number: int, began_ms: int, ended_ms: int, method: str = "tok_slow_500") -> Call:
    def at(ms: int) -> str:
        return f"2026-01-01T00:00:{ms // 1_000:02}.{ms % 1_000:03}Z"

    operation = {"id": f"op_{number}", "status": "succeeded", "created_at": at(began_ms), "settled_at": at(ended_ms)}
    payment = {"object": "payment", "id": f"pay_{number}", "payment_method": method, "operations": [operation]}
    return call(f"k{number}", number, number + 0.5, **payment)


def test_in_flight_is_proven_by_what_answers_tell() -> None:
    two = [paid(0, 0, 500), paid(1, 100, 600)]
    assert judge(two, LIMITS).verdict == "right"
    assert judge([*two, paid(2, 500, 700)], LIMITS).verdict == "right", "one ended as it began"
    assert judge([*two, paid(2, 200, 700, "tok_challenge")], LIMITS).verdict == "right", "it waited for its customer"
    listed = call("-", 5, 6, object="list", data=[paid(2, 200, 700).content()])
    listed.step, listed.key = "list_payments", None
    judgement = judge([listed, *two, paid(2, 200, 700)], LIMITS)
    assert judgement.verdict == "wrong"
    (found,) = judgement.findings
    assert "3 operations" in str(found)
    assert [(one.what.split()[4], one.at_s) for one in found.offenders] == [("k2", 2)], "the last one was too many"
