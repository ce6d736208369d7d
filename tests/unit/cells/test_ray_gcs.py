"""When a GCS that dies is given up, and what is kept of it. Restarts of a real one stand in the integration tests."""

from pathlib import Path

import pytest

from cells import limits
from cells.api import limits as wire_limits
from cells.ray_environment import ray_environment
from cells.ray_gcs import Patience, keep_words

AWAY_S = wire_limits.GCS_AWAY_MS_MAX / 1_000


def test_one_that_is_heard_now_and_then_is_never_given_up() -> None:
    patience = Patience(0)
    for number in range(1, 100):
        assert not patience.is_over(number * AWAY_S)
        patience.heard(number * AWAY_S)


def test_one_that_is_never_heard_is_given_up() -> None:
    patience = Patience(10)
    assert not patience.is_over(10 + AWAY_S)
    assert patience.is_over(10 + AWAY_S + 0.1)


def test_its_last_words_are_kept_and_bounded(tmp_path: Path) -> None:
    session, kept = tmp_path / "session", tmp_path / "logs" / "cell-0.ray.gcs"
    session.mkdir()
    for number in range(limits.GCS_CRASH_LOGS_MAX + 3):
        (session / f"gcs_server.{number}.out").write_bytes(b"x" * 10 * limits.GCS_CRASH_LOG_BYTES_MAX + b"the last")
        (session / f"gcs_server.{number}.err").write_text(f"error {number}")
        file = Path(keep_words(session, kept))
        assert file.stat().st_mode & 0o077 == 0
        words = file.read_text()
        assert "the last" in words
        assert f"error {number}" in words
        assert len(words) < 2 * limits.GCS_CRASH_LOG_BYTES_MAX
        assert list(session.iterdir()) == [], "nothing piles up in the session's folder"
        (tmp_path / "logs" / "cell-0.door.log").touch()
    left = sorted(one.name for one in (tmp_path / "logs").iterdir())
    assert len(left) == limits.GCS_CRASH_LOGS_MAX + 1
    assert "cell-0.door.log" in left, "another's log is left alone"
    assert file.name in left, "the newest is kept"


def test_words_that_can_t_be_kept_stop_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "not kept" in keep_words(tmp_path, tmp_path / "file" / "cell-0.ray.gcs")


@pytest.mark.parametrize(("name", "value"), [("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0"), ("RAY_AUTH_MODE", "token")])
def test_every_process_of_ray_keeps_to_loopback_and_wants_a_token(tmp_path: Path, name: str, value: str) -> None:
    (tmp_path / "token").write_text("secret\n")
    environment = ray_environment(tmp_path / "token")
    assert environment[name] == value
    assert environment["RAY_AUTH_TOKEN"] == "secret"
