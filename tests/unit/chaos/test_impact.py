"""What a fault did is laid to it alone; what is allowed by the table is no error, and what is not is one."""

from dataclasses import replace
from typing import Any

import orjson
import pytest

from chaos import faults, limits
from chaos.checker import Fault as MoneyFault
from chaos.checker import Finding, Judgement
from chaos.history import Call, Outcome
from chaos.impact import Happened, Impact, impact_json, impacts_of, line_of, verdict_of

CELLS = {"ann": "cell-0", "bob": "cell-0", "eve": "cell-1"}
STRUCK_S, CALM_S = 100.0, 104.0


def happened(name: str, struck_s: float = STRUCK_S, calm_s: float | None = CALM_S) -> Happened:
    kind = faults.kind_named(name)
    fault = next(faults.plan(1, {"cell-0": ["ann"]}, (kind,)))
    return Happened(fault, struck_s, calm_s)


def call(partner: str, at_s: float, status: int = 201, word: str = "captured", took_s: float = 0.01) -> Call:
    content = {"object": "payment", "status": word} if status < 300 else {"code": word}
    return Call(
        run="soak",
        partner=partner,
        scenario="automatic",
        step="create_payment",
        method="POST",
        path="/v1/payments",
        key="k",
        body=b"{}",
        expected=(Outcome(201, "captured"),),
        usual=True,
        due_s=at_s,
        sent_s=at_s,
        answered_s=at_s + took_s,
        status=status,
        answer=orjson.dumps(content),
        retry_after="1" if status in {429, 503} else None,
    )


def cut_off(partner: str, at_s: float, took_s: float = 0.01) -> Call:
    made = call(partner, at_s)
    return replace(made, answered_s=None, status=None, answer=b"", error="it broke", failed_s=at_s + took_s)


def impact_of(name: str, *calls: Call, **changed: Any) -> Impact:
    patience = changed.pop("patience", 1.0)
    ((impact,), calm) = impacts_of([happened(name, **changed)], calls, CELLS, patience)
    assert calm == []
    return impact


def test_a_worker_s_death_that_nobody_notices() -> None:
    impact = impact_of("worker killed", call("ann", 100.1), call("bob", 100.1), call("eve", 100.1))
    assert (impact.struck.sent, impact.others.sent) == (2, 1)
    assert impact.broken() == []
    assert impact.back_ms == 0


def test_how_long_it_took_is_when_the_last_disturbed_call_was_answered() -> None:
    impact = impact_of("door killed", call("ann", 99.9, took_s=1.3), call("bob", 100.5, took_s=1.0), call("bob", 103.0))
    assert impact.back_ms == pytest.approx(1_500)
    assert impact.struck.first_ms == pytest.approx(1_200)
    assert impact.struck.slowest_ms == pytest.approx(1_300)
    assert impact.broken() == []


def test_who_is_served_later_than_promised_breaks_the_promise_unless_there_is_patience() -> None:
    late = call("ann", 100, took_s=2.5)
    (broken,) = impact_of("door killed", late).broken()
    assert "2500 ms, 2000 ms are promised" in broken
    assert impact_of("door killed", late, patience=2.0).broken() == []


@pytest.mark.parametrize(
    ("name", "partner", "bad", "is_error"),
    [
        ("door killed", "ann", call("ann", 101, 503, "partner_unavailable"), True),
        ("door killed", "ann", call("ann", 93, 503, "outcome_unknown", took_s=8), False),
        ("door killed", "ann", call("ann", 93, 202, "processing", took_s=7.6), False),
        ("door killed", "ann", call("ann", 95, 202, "processing", took_s=6), True),
        ("door killed", "eve", call("eve", 93, 503, "outcome_unknown", took_s=8), True),
        ("Ray head killed", "ann", call("ann", 101, 503, "partner_unavailable"), False),
        ("Ray head killed", "ann", call("ann", 101, 503, "outcome_unknown"), False),
        ("Ray head killed", "ann", call("ann", 101, 202, "processing"), False),
        ("Ray head killed", "ann", call("ann", 101, 201, "failed"), True),
        ("Ray head killed", "ann", replace(call("ann", 101, 503, "outcome_unknown"), retry_after=None), True),
        ("Ray head killed", "ann", call("ann", 101, 500, "internal_error"), True),
        ("Ray head killed", "ann", call("ann", 99.9, 503, "outcome_unknown", took_s=10.5), True),
        ("Ray head killed", "eve", call("eve", 101, 503, "outcome_unknown"), True),
        ("Ray head killed", "ann", cut_off("ann", 101), True),
        ("router killed", "eve", cut_off("eve", 101), False),
        ("acquirer killed", "eve", call("eve", 101, 201, "failed"), False),
        ("acquirer killed", "eve", call("eve", 101, 503, "acquirer_unavailable"), False),
        ("acquirer killed", "eve", call("eve", 101, 503, "outcome_unknown"), True),
        ("FoundationDB server killed", "eve", call("eve", 101, 503, "partner_unavailable"), False),
        ("FoundationDB server killed", "ann", call("ann", 101, 503, "outcome_unknown"), False),
        ("FoundationDB server killed", "ann", call("ann", 101, 202, "processing"), False),
        ("FoundationDB server stopped", "eve", replace(call("eve", 101, 503, "not_ready"), retry_after=None), True),
        ("FoundationDB server stopped", "eve", cut_off("eve", 101), True),
    ],
)
def test_the_table_excuses_what_it_names_and_nothing_else(name: str, partner: str, bad: Call, is_error: bool) -> None:
    ((impact,), _) = impacts_of([happened(name)], [bad], CELLS, patience=10)
    assert bool(impact.struck.errors or impact.others.errors) is is_error
    assert bool(impact.struck.excused or impact.others.excused) is not is_error
    assert bool(impact.broken()) is is_error


def test_an_error_that_met_no_fault_is_one_of_calm() -> None:
    ((impact,), calm) = impacts_of([happened("router killed")], [cut_off("ann", 90), call("ann", 91)], CELLS, 1)
    assert impact.struck.sent == 0
    assert calm == ["ann: POST /v1/payments under key k (automatic create_payment): no answer (it broke)"]


def test_a_call_that_met_two_faults_is_laid_to_the_last_that_excuses_it() -> None:
    first, second = happened("Ray head killed"), happened("worker killed", struck_s=106, calm_s=109)
    refused = call("ann", 103.9, 503, "outcome_unknown", took_s=4)
    well = call("ann", 103.9, took_s=4)
    wrong = call("ann", 103.9, 500, "internal_error", took_s=4)
    ((one, two), calm) = impacts_of([first, second], [refused, well, wrong], CELLS, patience=10)
    assert (one.struck.sent, one.struck.errors) == (1, ())
    assert (two.struck.sent, len(two.struck.errors)) == (2, 1)
    assert calm == []


def test_a_call_that_is_still_open_is_not_judged() -> None:
    waiting = replace(call("eve", 101), answered_s=None, status=None)
    assert impact_of("worker killed", waiting).others.sent == 0


def test_a_fault_that_is_never_over_breaks_the_promise() -> None:
    assert "not over within" in impact_of("worker killed", call("ann", 300), calm_s=None).broken()[0]


def test_what_was_not_replaced_and_processes_too_many_break_it() -> None:
    bad = happened("door stopped")
    bad.not_replaced, bad.processes = ["door 17"], "1 cell-0.ray raylet too many"
    ((impact,), _) = impacts_of([bad], [], CELLS, patience=1)
    assert impact.broken() == [
        "door stopped (cell-0): door 17 was not replaced, it went on",
        "door stopped (cell-0): 1 cell-0.ray raylet too many",
    ]


def test_the_verdict_names_all_that_is_broken() -> None:
    well = impact_of("worker killed", call("ann", 100.1))
    assert verdict_of([well], [], Judgement(), []) == []
    money = Judgement([Finding(MoneyFault.CHARGED_TWICE, "ann", "twice")], ["bob: op_1 is unknown"])
    broken = verdict_of([impact_of("worker killed", cut_off("ann", 100.2))], ["an error"], money, ["raylet 7"])
    assert len(broken) == 5
    assert "1 errors of its own" in broken[0]
    assert "while all was calm" in broken[1]
    assert "charged one request twice" in broken[2]
    assert "not to be told" in broken[3]
    assert "left running" in broken[4]


def test_one_line_tells_it_all_and_the_report_is_json() -> None:
    impact = impact_of("Ray head killed", call("ann", 101, 503, "outcome_unknown", took_s=8), call("eve", 101))
    line = line_of(impact, begin_s=90)
    assert "10.0 s  Ray head killed (cell-0)" in line
    assert "0 errors of 1, 1 x 503 outcome_unknown" in line
    assert "elsewhere 0 errors of 1" in line
    assert "after 9.00 s (goal 10 s)" in line
    assert orjson.loads(orjson.dumps(impact_json(impact, 90)))["back_ms"] == 9_000
    assert limits.GOAL_CELL_KILLED_MS == 10_000
