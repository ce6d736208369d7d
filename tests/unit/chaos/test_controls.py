"""An action that failed ends its experiment: Chaos Toolkit would go on, with no fault or after a safeguard's word."""

import json
import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from chaoslib.configuration import load_configuration
from chaoslib.exceptions import InterruptExecution
from chaoslib.types import Dry

from actors.errors import StoreClientError
from chaos import actions, catalogue, controls, run_report, session

ACTION = {"type": "action", "name": "hold"}


@pytest.fixture
def run() -> Iterator[Any]:
    held = SimpleNamespace(ends_early=False, aborted=None, failure=None)
    session.hold(held)  # type: ignore[arg-type]
    yield held
    session.hold(None)


def test_a_failed_action_ends_it_once(run: Any) -> None:
    run.aborted = "3 errors of partners outside the target"
    with pytest.raises(InterruptExecution, match="3 errors of partners"):
        controls.after_activity_control(ACTION, {"status": "failed"})
    controls.after_activity_control(ACTION, {"status": "failed"})  # of the rollbacks, which go on


def test_what_succeeded_or_only_looked_ends_nothing(run: Any) -> None:
    controls.after_activity_control(ACTION, {"status": "succeeded"})
    controls.after_activity_control({**ACTION, "type": "probe"}, {"status": "failed"})
    assert not run.ends_early


@pytest.fixture
def experiment() -> dict[str, Any]:
    return catalogue.load("no-fault")


def begin(experiment: dict[str, Any]) -> None:
    configuration = load_configuration(experiment["configuration"])
    controls.before_experiment_control(experiment, configuration, experiment)


def test_why_a_gateway_could_not_be_started_is_told(
    experiment: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(_: session.Session) -> None:
        raise StoreClientError("FoundationDB's Python binding 8.0.0 doesn't take the client library 7.1")

    monkeypatch.setattr(session.Session, "begin", fail)
    monkeypatch.setattr(controls, "_take_signals", lambda: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InterruptExecution, match="binding 8"):
        begin(experiment)
    held = session.held()
    assert held is not None
    assert held.failure is not None, "so it ends with 2, not as if it was interrupted"
    session.hold(None)


def test_a_dry_run_of_all_activities_does_nothing_and_half_a_run_is_refused(experiment: dict[str, Any]) -> None:
    begin({**experiment, "dry": Dry.ACTIVITIES})
    assert session.held() is None
    for dry in (Dry.ACTIONS, Dry.PROBES):
        with pytest.raises(InterruptExecution, match="say --dry activities"):
            begin({**experiment, "dry": dry})
    actions.restore()  # a rollback is played all the same, and has nothing to take away


def test_a_terminal_that_is_closed_ends_a_run_as_ctrl_c_does(
    experiment: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BULKHEAD_CHAOS_DURATION_S", "0.2")
    before = signal.getsignal(signal.SIGHUP)
    with pytest.raises(InterruptExecution, match=r"duration_s is 0\.2"):
        begin(experiment)
    with pytest.raises(InterruptExecution, match="SIGHUP"):
        signal.raise_signal(signal.SIGHUP)
    controls.cleanup_control()
    assert signal.getsignal(signal.SIGHUP) is before


@pytest.mark.parametrize(
    ("verdict", "status", "deviated", "told"),
    [
        ("contained", "completed", False, "verdict: contained; report: "),
        ("not contained", "completed", True, "one error"),
        ("unknown", "failed", False, "too few calls"),
    ],
)
def test_chaos_toolkit_s_own_program_ends_with_0_only_where_the_fault_was_contained_and_tells_the_verdict(
    *, verdict: str, status: str, deviated: bool, told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = {"verdict": verdict, "broken": [], "not_known": []}
    found |= {"broken": ["one error"]} if deviated else {}
    found |= {"not_known": ["too few calls"]} if verdict == "unknown" else {}
    journal: dict[str, Any] = {"status": "completed", "deviated": deviated, "bulkhead": found}
    ended: list[bool] = []
    held = SimpleNamespace(calls=[], moments=SimpleNamespace(begin_s=0.0), failure=None, aborted=None, folder=tmp_path)
    held.end = lambda: ended.append(True)
    session.hold(held)  # type: ignore[arg-type]
    with caplog.at_level(logging.INFO, "chaostoolkit"):
        controls.after_experiment_control({}, journal)
    session.hold(None)
    assert ended
    assert journal["status"] == status
    assert told in caplog.text
    assert f"verdict: {verdict}" in caplog.text
    assert json.loads((tmp_path / run_report.JOURNAL).read_text())["status"] == status
