"""A flood of events leaves few lines, and the lines say how many they stand for."""

from structlog.testing import capture_logs

from cells.api import limits
from cells.api.log_budget import LogBudget


def test_a_flood_is_counted_instead_of_written() -> None:
    now = 10.0
    with capture_logs() as lines:
        budget = LogBudget(lambda: now)
        for _ in range(limits.LOG_LINES_PER_SECOND_MAX + 500):
            budget.warning("authentication_failed", reason="no_key")
        budget.warning("request_failed", status=503)
        assert len(lines) == limits.LOG_LINES_PER_SECOND_MAX + 1
        now = 11.0
        budget.warning("authentication_failed", reason="no_key")
        budget.warning("authentication_failed", reason="no_key")
    assert lines[-2]["left_out"] == 500
    assert "left_out" not in lines[-1]
