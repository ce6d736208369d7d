"""The page of a run shows the verdict, and each finding with its requests; it is one file that needs no network."""

from typing import Any

import pytest

from chaos import page
from chaos.catalogue import Group
from chaos.containment import Series

SERIES = [Series(Group.TARGET, [0.0, 1.0], [0, 2], [20.0, None]), Series(Group.OTHERS, [0.0, 1.0], [0, 0], [20.0, 9.0])]


def request(number: int, at_s: float | None = 12.5) -> dict[str, Any]:
    return {"at_s": at_s, "partner": "chaos_a", "what": f"POST /v1/payments under key k-{number} (automatic x)"}


def found(**changed: Any) -> dict[str, Any]:
    """What a journal says of a run in which nothing went wrong, but for what is changed."""
    group = {
        "group": "target",
        "partners": ["chaos_a"],
        "hit": {"chaos_a": 1},
        "sent": 30,
        "errors": 0,
        "errors_shown": [],
        "slow_shown": [],
        "late_shown": [],
        "excused": {"503 outcome_unknown": 2},
        "calm_p99_ms": 20.0,
        "calm_range_ms": 170.0,
        "fault_tail_ms": 30.0,
        "fault_max_ms": None,
    }
    checkers = {"verdict": "right", "findings": [], "unknowns": [], "calls": 90, "flood_calls": 0, "repeats": 1}
    return {
        "verdict": "contained",
        "broken": [],
        "not_known": [],
        "experiment": "worker-killed",
        "title": "A partner's worker is killed",
        "scope": "partner",
        "target": {"partner": "chaos_a", "cell": "cell-0"},
        "seed": 1,
        "command": "bulkhead chaos run worker-killed --own",
        "happened": {"warm_s": 3.0, "struck_s": 9.0, "ended_s": 14.0, "calm_s": 16.0, "end_s": 21.0},
        "detected_ms": 9,
        "detected_by": "log cell-0.door.log: worker_dead",
        "recovered_ms": 0,
        "recovered_since": "the fault's begin",
        "goal_ms": 500,
        "groups": [group | changed.pop("group", {})],
        "in_calm": [],
        "others_cores": {"calm": 0.1, "fault": 0.2},
        "machine": {"cores": 2, "system": "Linux", "python": "3.11"},
        "audit": {"ok": True, "payments": 12, "operations": 15, "in_doubt": 0},
        "checkers": checkers | changed.pop("checkers", {}),
        **changed,
    }


def test_all_well() -> None:
    told = page.render(found(), SERIES)
    assert "None: every call got what it should" in told
    assert "Money and answers: <b>right</b>" in told
    assert "requests</p>" not in told


def test_a_finding_is_shown_with_its_requests_and_says_where_there_are_more() -> None:
    finding = {
        "fault": "more was let in than the partner's limits allow",
        "partner": "chaos_a",
        "detail": "<1086> new payments",
        "requests": [request(1), request(2, None)],
        "requests_count": 1_042,
    }
    told = page.render(found(verdict="not contained", checkers={"verdict": "wrong", "findings": [finding]}), SERIES)
    assert "&lt;1086&gt; new payments" in told
    assert "12.50 s</td><td>chaos_a</td><td><code>POST /v1/payments under key k-1 (automatic x)" in told
    assert "\N{EN DASH}</td><td>chaos_a</td><td><code>POST /v1/payments under key k-2" in told
    assert "The first 2 of 1042 requests." in told


@pytest.mark.parametrize("name", ["errors_shown", "slow_shown", "late_shown"])
def test_requests_that_went_wrong_or_came_late_are_shown(name: str) -> None:
    told = page.render(found(group={name: [request(7)]}, in_calm=[request(8)]), SERIES)
    assert "under key k-7" in told
    assert "under key k-8" in told
    assert "None: every call" not in told


def test_it_needs_no_network() -> None:
    told = page.render(found(), SERIES)
    assert "http" not in told
    assert 'src="data:image/svg+xml;base64,' in told


@pytest.mark.parametrize(
    ("scope", "told"),
    [
        ("partner", "partner <code>chaos_a</code> in <code>cell-0</code>"),
        ("pool", "those who share a worker with <code>chaos_a</code> in <code>cell-0</code>"),
        ("cell", "against <code>cell-0</code>"),
        ("all", "what all share"),
        ("nobody", "nobody"),
    ],
)
def test_it_says_who_was_struck(scope: str, told: str) -> None:
    shown = page.render(found(scope=scope), SERIES).partition('<p class="small">Experiment')[2].partition("</p>")[0]
    assert told in " ".join(shown.split())


def test_the_chart_has_plain_milliseconds() -> None:
    drawn = page.chart(found(), SERIES, "#333333").decode()
    assert ">20</text>" in drawn
    assert "\N{MULTIPLICATION SIGN}" not in drawn
