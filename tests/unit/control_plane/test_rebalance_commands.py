"""`bulkhead rebalance`: what it asks for, what it shows, and which options don't go together."""

import json
from dataclasses import asdict
from typing import Any

import pytest
from typer.testing import CliRunner

from control_plane import cli, client
from control_plane.errors import PlanChangedError
from control_plane.rebalancing import Resident, plan
from router.directory import Cell

CELLS = [Cell(name=f"cell-{number}", weight=1.0, host="h", port=1) for number in (0, 1)]
PLAN = json.loads(json.dumps(asdict(plan("hash", CELLS, [Resident(f"p{n}", "cell-0", 1.0, 1_000) for n in range(9)]))))
RUN = {
    "id": "r1",
    "by": "hash",
    "state": "running",
    "created_at": "2026-11-22T00:00:00.000Z",
    "why": "",
    "pause_budget_ms": 250,
}
STATUS: dict[str, Any] = {
    "run": RUN,
    "plan_id": PLAN["id"],
    "counts": dict.fromkeys(("done", "failed", "moving", "skipped"), 0) | {"waiting": len(PLAN["moves"])},
    "steps": len(PLAN["moves"]),
    "pause_ms": {"median": 80, "p99": 90, "max": 90, "unknown": 3},
    "over_budget": 0,
    "moving": [],
    "failed": [],
}
ANSWERS = {
    "/rebalance/plan": PLAN,
    "/rebalance/apply": {**STATUS, "plan": PLAN},
    "/rebalance": {**STATUS, "run": {**RUN, "state": "done"}},
}

TRIED = {"dry_run": True, "entries": [{"what": "rebalance_begun", "partner_id": None, "detail": {"moves": 5}}]}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    requests: list[tuple[Any, ...]] = []

    def ask(
        _folder: object, method: str, path: str, body: dict[str, Any] | None = None, *, dry_run: bool = False
    ) -> dict[str, Any]:
        requests.append((method, path, body))
        return {**TRIED, **({"plan": PLAN} if "apply" in path else {})} if dry_run else ANSWERS[path]

    monkeypatch.setattr(client, "ask", ask)
    return requests


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ("rebalance", *arguments))


def test_a_plan_says_how_to_carry_out_just_it(asked: list[tuple[Any, ...]]) -> None:
    shown = run("--plan")
    assert f"rebalance --apply --by hash --plan-id {PLAN['id']}\n" in shown.stdout
    assert [request[1] for request in asked] == ["/rebalance/plan"]
    assert json.loads(run("--plan", "--json").stdout) == PLAN


def test_what_is_begun_is_shown_with_its_cost(asked: list[tuple[Any, ...]]) -> None:
    shown = run("--apply", "--plan-id", PLAN["id"])
    assert shown.exit_code == 0
    assert asked[0][2]["plan_id"] == PLAN["id"]
    assert f"plan {PLAN['id']}: {len(PLAN['moves'])} moves" in shown.stdout
    assert f"{PLAN['moves'][0]['partner_id']}: cell-0 -> cell-1" in shown.stdout
    assert f"{len(PLAN['moves'])} waiting" in shown.stdout
    assert "of 3 moves it is not known" in shown.stdout
    assert json.loads(run("--apply", "--json").stdout)["plan"] == PLAN
    assert "plan_id" not in asked[1][2]


def test_only_the_bounds_that_are_named_are_sent(asked: list[tuple[Any, ...]]) -> None:
    run("--apply", "--by", "drain", "--at-once", "4", "--pause-budget", "90")
    run("--plan")
    assert [body for _, _, body in asked] == [{"by": "drain", "at_once": 4, "pause_budget_ms": 90}, {"by": "hash"}]


def test_watching_it_shows_the_plan_and_the_end(asked: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("control_plane.rebalance_commands.time.sleep", lambda _: None)
    told = json.loads(run("--apply", "--watch", "--json").stdout)
    assert (told["plan"], told["run"]["state"]) == (PLAN, "done")
    assert [request[1] for request in asked] == ["/rebalance/apply", "/rebalance"]


@pytest.mark.parametrize("what", ["apply", "pause", "abort"])
def test_a_dry_run_shows_what_would_be_written(asked: list[tuple[Any, ...]], what: str) -> None:
    shown = run(f"--{what}", "--dry-run", "--watch")
    assert shown.exit_code == 0
    assert ("cell-0 -> cell-1" in shown.stdout) == (what == "apply")
    assert "rebalance_begun: " in shown.stdout
    assert "nothing was changed" in shown.stdout
    assert json.loads(run(f"--{what}", "--dry-run", "--json").stdout)["entries"] == TRIED["entries"]
    assert {request[1] for request in asked} == {f"/rebalance/{what}"}


def test_another_plan_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **_more: Any) -> None:
        raise PlanChangedError("the plan of now is b, not a", hint="see what it would do")

    monkeypatch.setattr(client, "ask", refuse)
    refused = run("--apply", "--plan-id", "a")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "the plan of now is b, not a" in refused.stderr


@pytest.mark.parametrize(
    "wrong",
    [
        ("--plan", "--apply"),
        ("--plan", "--plan-id", "a"),
        ("--plan-id", "a"),
        ("--pause", "--at-once", "4"),
        ("--per-hour", "4"),
    ],
)
def test_options_that_do_not_go_together_are_refused(asked: list[tuple[Any, ...]], wrong: tuple[str, ...]) -> None:
    assert run(*wrong).exit_code == 2
    assert asked == []
