"""The verdict on made-up histories: whatever is wrong outside what is allowed turns it, and so does each checker."""

from dataclasses import replace
from typing import Any

import orjson
import pytest

from chaos import catalogue
from chaos.catalogue import EXPERIMENTS, Experiment, Group, Scope
from chaos.checker import Fault, Finding, Judgement
from chaos.containment import (
    Circumstances,
    Impact,
    Moments,
    Target,
    group_json,
    impact_of,
    recovery_ms,
    series_of,
    verdict_of,
)
from chaos.history import Call, Outcome
from chaos.report import Verdict
from chaos.signs import Seen

BY_NAME = {experiment.name: experiment for experiment in EXPERIMENTS}
TARGET = Target("ann", "cell-0", {"ann": "cell-0", "bob": "cell-0", "eve": "cell-1"})
STRUCK_S, ENDED_S, CALM_S = 60.0, 70.0, 80.0
MOMENTS = Moments(begin_s=0.0, warm_s=3.0, struck_s=STRUCK_S, ended_s=ENDED_S, calm_s=CALM_S, end_s=90.0)
SEEN = Seen(STRUCK_S + 0.2, "log cell-0.door.log: worker_dead")


def call(partner: str, at_s: float, took_s: float = 0.01, status: int = 201, word: str = "captured") -> Call:
    content = {"object": "payment", "status": word} if status < 300 else {"code": word}
    return Call(
        run="chaos",
        partner=partner,
        scenario="automatic",
        step="create_payment",
        method="POST",
        path="/v1/payments",
        key=f"k-{at_s}",
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


def test_whoever_shares_the_worker_is_struck_with_it_and_nobody_else() -> None:
    cells = {"ann": "cell-0", "amy": "cell-0", "bob": "cell-0", "eve": "cell-1"}
    target = Target("ann", "cell-0", cells, mates=frozenset({"ann", "amy"}))
    struck = {partner for partner, group in target.groups(Scope.POOL).items() if group is Group.TARGET}
    assert struck == {"ann", "amy"}
    assert target.groups(Scope.POOL)["bob"] is Group.CELL
    assert target.groups(Scope.PARTNER)["amy"] is Group.CELL


def quiet() -> list[Call]:
    """Everybody pays twice a second, and is answered at once."""
    return [call(partner, half / 2 + 0.1) for partner in TARGET.cells for half in range(180)]


def judged(
    *more: Call,
    experiment: str | Experiment = "worker-killed",
    moments: Moments = MOMENTS,
    money: Judgement | None = None,
    audit_ok: bool = True,
    **around: Any,
) -> tuple[Verdict, Impact]:
    row = BY_NAME[experiment] if isinstance(experiment, str) else experiment
    around.setdefault("first_sign", SEEN)
    impact = impact_of(row, TARGET, moments, [*quiet(), *more])
    return verdict_of(row, impact, moments, money or Judgement(), audit_ok, Circumstances(**around)), impact


def test_a_fault_that_nobody_noticed_is_contained() -> None:
    verdict, impact = judged()
    assert (verdict.word, verdict.broken, verdict.unknown) == ("contained", [], [])
    assert all(not found.hit for found in impact.figures.values())
    assert recovery_ms(BY_NAME["worker-killed"], impact, MOMENTS) == 0


def test_a_delay_of_the_target_within_the_goal_is_contained_and_measured() -> None:
    verdict, impact = judged(call("ann", STRUCK_S - 0.1, took_s=0.55))
    assert verdict.word == "contained"
    assert impact.figures[Group.TARGET].hit == {"ann": 1}
    assert recovery_ms(BY_NAME["worker-killed"], impact, MOMENTS) == pytest.approx(450)


def test_the_target_s_delay_past_the_goal_is_not_contained_unless_there_is_patience_or_noise() -> None:
    late = call("ann", STRUCK_S, took_s=2.0)
    verdict, impact = judged(late)
    name = f"POST /v1/payments under key k-{STRUCK_S} (automatic create_payment)"
    told = "the target was disturbed for 2000 ms, 500 ms are promised"
    assert verdict.broken == [f"{told}; last: ann: {name}: 201 captured after 2000 ms"]
    (shown,) = group_json(impact.figures[Group.TARGET], 0.0)["late_shown"]
    assert shown == {"at_s": STRUCK_S, "partner": "ann", "what": f"{name}: 201 captured after 2000 ms"}
    assert judged(late, patience=5.0)[0].word == "contained"
    assert judged(late, others_cores={"calm": 0.1, "fault": 1.2})[0].word == "unknown"


def test_a_goal_may_count_from_the_fault_s_end() -> None:
    slow = call("ann", ENDED_S + 1, took_s=1.0)
    verdict, impact = judged(slow, experiment="acquirer-hanging")
    assert verdict.word == "contained"
    assert recovery_ms(BY_NAME["acquirer-hanging"], impact, MOMENTS) == pytest.approx(2_000)


@pytest.mark.parametrize(("partner", "group"), [("bob", Group.CELL), ("eve", Group.OTHERS)])
def test_one_error_of_a_bystander_is_not_contained_and_told_with_its_request(partner: str, group: Group) -> None:
    verdict, impact = judged(call(partner, STRUCK_S + 1, status=503, word="partner_unavailable"))
    assert verdict.word == "not contained"
    (error,) = impact.figures[group].errors
    assert f"POST /v1/payments under key k-{STRUCK_S + 1}" in error.what
    assert error.what in verdict.broken[0]
    assert group_json(impact.figures[group], 0.0)["errors_shown"][0]["partner"] == partner


def test_what_is_allowed_for_the_target_is_excused_for_it_alone() -> None:
    limited = [call("ann", STRUCK_S + 1 + tenth / 10, status=429, word="rate_limited") for tenth in range(5)]
    seen = Seen(STRUCK_S, "metric")
    verdict, impact = judged(*limited, experiment="flood", first_sign=seen)
    assert verdict.word == "contained"
    assert impact.figures[Group.TARGET].excused == {"429 rate_limited": 5}
    verdict, _ = judged(replace(limited[0], partner="bob"), experiment="flood", first_sign=seen)
    assert verdict.word == "not contained"


def test_an_error_while_all_was_calm_is_nobody_s_excuse() -> None:
    verdict, impact = judged(call("ann", 20, status=503, word="partner_unavailable"))
    assert verdict.word == "not contained"
    assert len(impact.in_calm) == 1


def test_a_bystander_s_tail_outside_the_calm_range_is_not_contained_and_unknown_where_there_is_noise() -> None:
    slow = [call("eve", STRUCK_S + tenth / 10, took_s=0.39) for tenth in range(50)]
    verdict, impact = judged(*slow)
    assert verdict.word == "not contained"
    assert "other cells: tail 390 ms while the fault lasted" in verdict.broken[0]
    assert "slowest: eve: POST /v1/payments under key k-" in verdict.broken[0]
    found = group_json(impact.figures[Group.OTHERS], 0.0)
    assert (found["slow"], len(found["slow_shown"])) == (50, 50)
    assert not impact.figures[Group.CELL].slow
    noisy, _ = judged(*slow, others_cores={"calm": 0.1, "fault": 0.9})
    assert noisy.word == "unknown"
    assert judged(*slow, others_cores={"calm": 1.7, "fault": 1.6}, cores=2)[0].word == "unknown"
    assert judged(*slow, others_cores={"calm": 0.7, "fault": 0.6}, cores=2)[0].word == "not contained"


def test_too_few_calls_are_unknown() -> None:
    row = BY_NAME["worker-killed"]
    few = [call(partner, at_s) for partner in TARGET.cells for at_s in (10.0, STRUCK_S + 1)]
    impact = impact_of(row, TARGET, MOMENTS, few)
    verdict = verdict_of(row, impact, MOMENTS, Judgement(), True, Circumstances(first_sign=SEEN))
    assert verdict.word == "unknown"
    assert "too few calls to tell its range" in verdict.unknown[0]


@pytest.mark.parametrize("fault", Fault)
def test_each_finding_of_a_checker_turns_the_verdict(fault: Fault) -> None:
    verdict, _ = judged(money=Judgement([Finding(fault, "bob", "pay_1")]))
    assert verdict.word == "not contained"
    assert f"bob: {fault}: pay_1" in verdict.broken


def test_what_a_checker_can_t_tell_and_a_fault_that_nothing_shows_are_unknown() -> None:
    assert judged(money=Judgement(unknowns=["ann: op_1 is unknown"]))[0].word == "unknown"
    assert judged(first_sign=None)[0].unknown == ["the gateway showed no sign of the fault: it may not have struck"]
    assert judged(moments=replace_moments(struck_s=None))[0].word == "unknown"
    assert judged(moments=replace_moments(calm_s=None), ended_early=True)[0].word == "unknown"


def replace_moments(**changed: Any) -> Moments:
    return replace(MOMENTS, **changed)


@pytest.mark.parametrize(
    ("around", "told"),
    [
        ({"aborted": "3 errors of partners outside the target"}, "ended by a safeguard: 3 errors"),
        ({"leftovers": ["fdbserver 12"]}, "left running at the end: fdbserver 12"),
        ({"not_undone": ["SIGCONT: no such process"]}, "could not be undone: SIGCONT"),
        ({"audit_ok": False}, "the audit found books that disagree"),
        ({"moments": replace_moments(calm_s=None)}, "not as ever within"),
    ],
)
def test_what_else_is_not_contained(around: dict[str, Any], told: str) -> None:
    verdict, _ = judged(**around)
    assert verdict.word == "not contained"
    assert any(told in what for what in verdict.broken), verdict.broken


def test_the_chart_s_series_count_errors_and_latencies_by_step() -> None:
    calls = [call("ann", 0.5), call("ann", 1.2, status=503, word="not_ready"), call("eve", 1.4, took_s=0.2)]
    ann, eve = series_of(BY_NAME["worker-killed"], TARGET, MOMENTS, calls, 1.0)
    assert (ann.group, ann.errors) == (Group.TARGET, [0, 1])
    assert eve.p99_ms == [None, pytest.approx(200)]


def test_every_experiment_s_row_can_be_judged() -> None:
    for name in catalogue.names():
        row = BY_NAME[name]
        assert judged(experiment=row)[0].word == "contained", name
