"""An action that failed ends its experiment: Chaos Toolkit would go on, with no fault or after a safeguard's word."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from chaoslib.exceptions import InterruptExecution

from chaos import controls, session

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
