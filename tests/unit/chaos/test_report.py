"""The demo's verdict is `contained` only where everything was, and says what was not."""

from dataclasses import replace
from typing import Any

import orjson
import pytest

from chaos import report
from chaos.checker import NO_LATENCY, Fault, Finding, Judgement, Latency, Role
from chaos.drama import Cast
from chaos.history import Call, Outcome
from chaos.report import Moments, Row, Verdict, judge, rows_of

CAST = Cast({"ann": "cell-0", "bob": "cell-0", "eve": "cell-1", "kim": "cell-2", "joe": "cell-3"}, "bob", "eve", "kim")
MOMENTS = Moments(begin_s=100, kill_s=120, flood_s=126, hang_s=132, flood_end_s=141, hang_end_s=144, end_s=160)
CALM = Latency(100, 10, 20, 30)
QUIET = {"calm": 0.0, "trouble": 0.1}
AUDIT: dict[str, Any] = {"ok": True}


def call(partner: str, at_s: float, status: int = 201, word: str = "captured", *, took_s: float = 0.01) -> Call:
    content = {"object": "payment", "status": word} if status < 300 else {"code": word}
    return Call(
        run="mixed",
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
    )


def row_of(partner: str, *calls: Call) -> Row:
    return next(row for row in rows_of(calls, CAST, MOMENTS) if row.partner == partner)


def good_rows() -> list[Row]:
    rows = [Row(partner, cell, CAST.role(partner), 100, 100) for partner, cell in CAST.cells.items()]
    for row in rows:
        row.calm = row.trouble = CALM
        if row.role is Role.FLOODING:
            row.refused_429 = 1_000
        if row.role is Role.HANGING:
            row.own_trouble = 5
    return rows


def verdict_of(rows: list[Row], **changed: Any) -> Verdict:
    given: dict[str, Any] = {
        "delay": Latency(10, 20, 90, 90),
        "takeovers": 1,
        "money": Judgement(),
        "audit": AUDIT,
        "others_cores": QUIET,
        "leftovers": (),
        **changed,
    }
    return judge(rows, **given)


def test_all_well_is_contained() -> None:
    assert verdict_of(good_rows()).word == "contained"


@pytest.mark.parametrize(
    "changed",
    [
        {"delay": Latency(10, 20, 1_000, 1_000)},
        {"takeovers": 0},
        {"audit": {"ok": False}},
        {"money": Judgement([Finding(Fault.CHARGED_TWICE, "ann", "op_1")])},
        {"leftovers": ["ray"]},
    ],
)
def test_each_breach_alone_is_not_contained(changed: dict[str, Any]) -> None:
    verdict = verdict_of(good_rows(), **changed)
    assert verdict.word == "not contained"
    assert len(verdict.broken) == 1


@pytest.mark.parametrize("partner", CAST.cells)
def test_one_error_of_anybody_is_not_contained(partner: str) -> None:
    rows = good_rows()
    next(row for row in rows if row.partner == partner).errors.append("late")
    assert verdict_of(rows).word == "not contained"


def test_a_bystander_outside_its_calm_range_is_not_contained() -> None:
    rows = good_rows()
    rows[0].trouble = Latency(100, 10, 171, 171)
    assert verdict_of(rows).broken == ["ann: tail 171 ms in trouble, 170 ms was its range"]


def test_where_other_programs_took_the_machine_it_is_not_known() -> None:
    rows = good_rows()
    rows[0].trouble = Latency(100, 10, 171, 171)
    assert verdict_of(rows, others_cores={"calm": 0.1, "trouble": 1.0}).word == "unknown"
    assert verdict_of(good_rows(), others_cores={"calm": 0.1, "trouble": 1.0}).word == "contained"


@pytest.mark.parametrize("changed", [{"delay": NO_LATENCY}, {"money": Judgement([], ["op_1 is open"])}])
def test_what_can_not_be_told_is_unknown(changed: dict[str, Any]) -> None:
    assert verdict_of(good_rows(), **changed).word == "unknown"


def test_a_flood_that_was_let_in_is_not_contained() -> None:
    rows = good_rows()
    rows[2].refused_429 = 0
    assert verdict_of(rows).broken == ["eve's flood was let in"]


def test_a_hang_that_nobody_noticed_shows_nothing() -> None:
    rows = good_rows()
    rows[3].own_trouble = 0
    assert verdict_of(rows).word == "unknown"


def test_a_429_is_excused_for_who_floods_from_its_flood_until_it_recovered() -> None:
    limited = [call("eve", at_s, 429, "rate_limited") for at_s in (110, 130, 145, 155)]
    row = row_of("eve", *limited)
    assert row.refused_429 == 2
    assert len(row.errors) == 2


def test_trouble_of_the_own_acquirer_is_excused_from_the_hang_on() -> None:
    unavailable = [call("kim", at_s, 503, "acquirer_unavailable") for at_s in (110, 135, 150)]
    row = row_of("kim", *unavailable, call("kim", 136, 202, "processing", took_s=7.5))
    assert (row.own_trouble, row.acknowledged, len(row.errors)) == (2, 1, 1)


def test_nothing_is_excused_for_bystanders_and_the_killed() -> None:
    for partner in ("ann", "bob"):
        row = row_of(partner, call(partner, 130, 503, "partner_unavailable"), call(partner, 130, 429, "rate_limited"))
        assert len(row.errors) == 2


def test_latencies_are_told_apart_by_when_calls_were_due() -> None:
    warm, calm, trouble, after = (call("ann", at_s) for at_s in (101, 110, 130, 150))
    row = row_of("ann", warm, calm, trouble, after)
    assert (row.sent, row.calm.count, row.trouble.count) == (4, 1, 1)


def test_a_killed_partners_delay_is_that_of_calls_under_way_or_due_soon_after() -> None:
    under_way = call("bob", 119.9, took_s=0.5)
    soon = call("bob", 121, took_s=0.2)
    others = [call("bob", 110, took_s=9), call("bob", 130, took_s=9), call("ann", 120, took_s=9)]
    delay = report.killed_delay([under_way, soon, *others], CAST, MOMENTS)
    assert delay.count == 2
    assert delay.max_ms == pytest.approx(500)


def test_bystanders_are_summed_up_by_whether_they_share_a_cell_with_a_victim() -> None:
    rows = rows_of([call("ann", 110), call("joe", 110), call("joe", 130)], CAST, MOMENTS)
    with_victim, elsewhere = report.bystander_groups(rows, [call("joe", 130)], CAST, MOMENTS)
    assert (with_victim["partners"], with_victim["sent"]) == (1, 1)
    assert (elsewhere["partners"], elsewhere["sent"]) == (1, 2)
    assert elsewhere["trouble"]["count"] == 1


def test_a_repeat_is_no_first_attempt() -> None:
    assert row_of("ann", replace(call("ann", 110), repeat=1)).sent == 0


def test_bystanders_whose_common_tail_is_outside_are_not_contained() -> None:
    group = {"group": "in other cells", "undisturbed": False}
    assert verdict_of(good_rows(), groups=[group]).word == "not contained"
    assert verdict_of(good_rows(), groups=[{**group, "undisturbed": True}]).word == "contained"
