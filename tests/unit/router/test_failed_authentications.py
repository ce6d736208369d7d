"""Failed authentications: counted by address and window, in a bounded table."""

import pytest

from router import limits
from router.failed_authentications import FailedAuthentications


class Clock:
    now = 500.0

    def __call__(self) -> float:
        return self.now


def test_past_the_bound_it_tells_when_the_window_ends_and_then_begins_anew() -> None:
    clock = Clock()
    failed = FailedAuthentications(clock)
    assert {failed.note("a") for _ in range(limits.FAILED_AUTHENTICATIONS_MAX)} == {None}
    clock.now += 4
    assert failed.note("a") == limits.FAILED_AUTHENTICATIONS_WINDOW_MS - 4_000
    assert failed.note("b") is None, "another address is not meant"
    clock.now += limits.FAILED_AUTHENTICATIONS_WINDOW_MS / 1_000 - 4
    assert failed.note("a") is None


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FAILED_AUTHENTICATION_ADDRESSES_MAX", 10)
    failed = FailedAuthentications()
    for number in range(50):
        failed.note(str(number))
    assert len(failed) == 10


def test_looking_counts_nothing_and_ends_with_the_window() -> None:
    clock = Clock()
    failed = FailedAuthentications(clock)
    assert failed.wait_ms("a") is None
    for _ in range(limits.FAILED_AUTHENTICATIONS_MAX - 1):
        failed.note("a")
    assert {failed.wait_ms("a") for _ in range(10)} == {None}
    failed.note("a")
    clock.now += 4
    assert failed.wait_ms("a") == limits.FAILED_AUTHENTICATIONS_WINDOW_MS - 4_000
    clock.now += limits.FAILED_AUTHENTICATIONS_WINDOW_MS / 1_000 - 4
    assert failed.wait_ms("a") is None
