"""What each checker of a run finds comes into its judgement with the requests that it is about, and with no API key."""

from typing import Any

import orjson

from chaos import run_checkers
from chaos.bounds import Bound, Reading
from chaos.checker import Fault, Finding, Judgement
from chaos.history import Call
from chaos.limits_checker import Limits

CELLS = {"ann": "cell-0", "bob": "cell-1"}


def call(key: str, sent_s: float, took_s: float | None = 0.01, partner: str = "ann", **answer: Any) -> Call:
    return Call(
        run="t",
        partner=partner,
        scenario="automatic",
        step="create_payment",
        method="POST",
        path="/v1/payments",
        key=key,
        body=b"{}",
        expected=(),
        usual=True,
        due_s=sent_s,
        sent_s=sent_s,
        answered_s=None if took_s is None else sent_s + took_s,
        status=None if took_s is None else 201,
        answer=orjson.dumps(answer),
    )


def only(judgement: Judgement) -> Finding:
    (finding,) = judgement.findings
    return finding


def keys(finding: Finding) -> list[str]:
    return [one.what.split(" under key ")[1].split()[0] for one in finding.offenders]


def test_a_bounds_requests_are_those_that_were_under_way_as_it_was_exceeded() -> None:
    calls = [call("before", 8, 0.5), call("long", 8, 3), call("open", 9.9, None), call("after", 10.6)]
    calls.append(call("other", 9.9, 3, partner="bob"))
    looks = [(9.5, 0), (10.0, 100), (10.5, 100)]

    readings = [Reading(at_s, Bound.PARTNER_COMMANDS, "ann", value, 50, ("ann",)) for at_s, value in looks]
    judgement = Judgement()
    run_checkers.judge_bounds(judgement, calls, readings, CELLS, 1.0)
    assert only(judgement).fault is Fault.BOUND_EXCEEDED
    assert keys(only(judgement)) == ["long", "open"]

    readings = [Reading(at_s, Bound.CELL_REQUESTS, "cell-1", value, 50) for at_s, value in looks]
    judgement = Judgement()
    run_checkers.judge_bounds(judgement, calls, readings, CELLS, 1.0)
    assert keys(only(judgement)) == ["other"], "a cell's requests are those of its partners"


def test_what_was_let_in_past_the_limits_that_a_flood_had_is_named() -> None:
    flood = [call(f"k{number}", number / 100) for number in range(30)]
    judgement = Judgement()
    run_checkers.judge_limits(judgement, flood, CELLS, flood, Limits(5, 10, 1_000))
    assert only(judgement).fault is Fault.LIMIT_EXCEEDED
    assert keys(only(judgement)) == [f"k{number}" for number in range(21, 30)]
    judgement = Judgement()
    run_checkers.judge_limits(judgement, flood, CELLS, [], None)
    assert judgement.findings == []


def test_an_order_that_is_impossible_names_its_requests_where_the_payment_is_of_this_run() -> None:
    paid = {"id": "op_1", "type": "purchase", "amount": 100, "status": "succeeded"}
    made = {"object": "payment", "id": "pay_1", "reference": "r", "operations": [paid]}
    read = call("-", 2, **{**made, "operations": [{**paid, "status": "failed"}]})
    read.method, read.path, read.step, read.key = "GET", "/v1/payments/pay_1", "get_payment", None
    judgement = Judgement()
    run_checkers.judge_order(judgement, [call("k1", 0, **made), read])
    assert [(one.at_s, one.what) for one in only(judgement).offenders] == [
        (2, "GET /v1/payments/pay_1 (automatic get_payment)"),
        (0, "POST /v1/payments under key k1 (automatic create_payment)"),
    ]
    judgement = Judgement()
    run_checkers.judge_order(judgement, [read])
    assert judgement.findings == []


def test_payments_past_an_open_breaker_are_named() -> None:
    def made(number: int) -> Call:
        created = f"1970-01-01T00:01:{number // 2:02}.{number % 2 * 500:03}Z"
        operation = {"created_at": created}
        at_s = 60 + number / 2
        return call(f"k{number}", at_s, 1, object="payment", id=f"pay_{number}", operations=[operation])

    calls = [made(number) for number in range(80)]
    judgement = Judgement()
    run_checkers.judge_breaker(judgement, calls, "ann", 60_000, 100_000, 500)
    assert only(judgement).fault is Fault.BREAKER_CLOSED
    assert keys(only(judgement))[-1].startswith("k")
    judgement = Judgement()
    run_checkers.judge_breaker(judgement, calls, "bob", 60_000, 100_000, 500)
    assert judgement.findings == []
