"""Remembered 429s: short, per partner, ended by a new profile, and never more than so many."""

import pytest

from cells.api.limits import ROUTER_REMEMBERED_429_MS_MAX
from cells.api.messages import RateState, Refusal, RefusalCode, Refused
from router import limits
from router.remembered import RememberedRefusals


class Clock:
    now = 500.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def remembered(clock: Clock) -> RememberedRefusals:
    return RememberedRefusals(clock)


def refused(wait_ms: int | None, code: RefusalCode = RefusalCode.RATE_LIMITED) -> Refused:
    return Refused(Refusal(code, "Slower.", retry_after_ms=wait_ms), RateState(50, 100, 0, 2_000))


def wait_of(found: Refused | None) -> int | None:
    return None if found is None else found.refusal.retry_after_ms


def test_it_holds_for_the_time_the_cell_said(remembered: RememberedRefusals, clock: Clock) -> None:
    remembered.remember("acme", 1, refused(200))
    assert wait_of(remembered.recall("acme", 1)) == 200
    clock.now += 0.15
    found = remembered.recall("acme", 1)
    assert wait_of(found) == 50
    assert found is not None
    assert found.rate == RateState(50, 100, 0, 2_000)
    clock.now += 0.051
    assert remembered.recall("acme", 1) is None
    assert len(remembered) == 0


def test_it_is_forgotten_after_the_cap_and_tells_the_whole_wait_until_then(
    remembered: RememberedRefusals, clock: Clock
) -> None:
    remembered.remember("acme", 1, refused(60_000))
    clock.now += ROUTER_REMEMBERED_429_MS_MAX / 1000 - 0.001
    assert wait_of(remembered.recall("acme", 1)) == 60_000 - ROUTER_REMEMBERED_429_MS_MAX + 1
    clock.now += 0.002
    assert remembered.recall("acme", 1) is None


def test_others_are_not_touched(remembered: RememberedRefusals) -> None:
    remembered.remember("acme", 1, refused(200))
    assert remembered.recall("globex", 1) is None


def test_a_new_profile_ends_it(remembered: RememberedRefusals) -> None:
    remembered.remember("acme", 1, refused(200))
    assert remembered.recall("acme", 2) is None
    assert remembered.recall("acme", 1) is None


@pytest.mark.parametrize(
    "other",
    [
        refused(None),
        refused(0),
        refused(-5),
        refused(200, RefusalCode.TOO_MANY_IN_FLIGHT),
        refused(200, RefusalCode.MAILBOX_FULL),
        refused(200, RefusalCode.PARTNER_UNAVAILABLE),
    ],
)
def test_nothing_else_is_remembered(remembered: RememberedRefusals, other: Refused) -> None:
    remembered.remember("acme", 1, other)
    assert remembered.recall("acme", 1) is None


def test_there_are_never_more_than_so_many(remembered: RememberedRefusals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REMEMBERED_PARTNERS_MAX", 3)
    for name in ("a", "b", "a", "c", "d"):
        remembered.remember(name, 1, refused(200))
    assert len(remembered) == 3
    assert remembered.recall("b", 1) is None, "the one noted longest ago went"
    assert remembered.recall("a", 1) is not None
