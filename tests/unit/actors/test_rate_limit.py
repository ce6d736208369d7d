import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.rate_limit import Admitted, Limited, admit, remaining

SECOND_US = 1_000_000
NOW_US = 1_790_000_000 * SECOND_US


def test_a_burst_is_let_in_at_once_and_not_one_more() -> None:
    arrival_us = 0
    for left in (4, 3, 2, 1, 0):
        decision = admit(arrival_us, NOW_US, 10, 5)
        assert isinstance(decision, Admitted)
        assert decision.remaining == left
        arrival_us = decision.arrival_us
    refused = admit(arrival_us, NOW_US, 10, 5)
    assert refused == Limited(retry_after_us=100_000, reset_us=500_000)


def test_who_waits_as_told_is_let_in() -> None:
    arrival_us = NOW_US + 5 * 100_000
    refused = admit(arrival_us, NOW_US, 10, 5)
    assert isinstance(refused, Limited)
    assert isinstance(admit(arrival_us, NOW_US + refused.retry_after_us, 10, 5), Admitted)
    assert isinstance(admit(arrival_us, NOW_US + refused.retry_after_us - 1, 10, 5), Limited)


def test_after_the_burst_the_rate_is_smooth() -> None:
    arrival_us, admitted = 0, 0
    for step in range(1_000):
        decision = admit(arrival_us, NOW_US + step * 10_000, 10, 5)
        if isinstance(decision, Admitted):
            arrival_us, admitted = decision.arrival_us, admitted + 1
    assert admitted == 5 + 99  # ten seconds, the last of the hundred not quite due


@pytest.mark.parametrize("ahead_us", [SECOND_US, 3_600 * SECOND_US, 10**9 * SECOND_US])
def test_an_instant_that_a_clock_left_in_the_future_locks_nobody_out(ahead_us: int) -> None:
    decision = admit(NOW_US + ahead_us, NOW_US, 10, 5)
    assert decision == Admitted(NOW_US + 500_000, remaining=0, reset_us=500_000)
    assert isinstance(admit(decision.arrival_us, NOW_US, 10, 5), Limited)


def test_a_smaller_burst_applies_at_once_and_locks_nobody_out() -> None:
    decision = admit(NOW_US + 100 * 100_000, NOW_US, 10, 2)
    assert isinstance(decision, Admitted)
    refused = admit(decision.arrival_us, NOW_US, 10, 2)
    assert refused == Limited(retry_after_us=100_000, reset_us=200_000)


@given(
    st.integers(0, 2 * NOW_US),
    st.integers(1, 10_000),
    st.integers(1, 1_000),
    st.lists(st.integers(0, SECOND_US), max_size=60),
)
def test_no_span_of_time_lets_in_more_than_burst_and_rate(
    arrival_us: int, per_second: int, burst: int, gaps: list[int]
) -> None:
    now_us, began_us, admitted = NOW_US, NOW_US, 0
    for gap_us in gaps:
        now_us += gap_us
        left, reset_us = remaining(arrival_us, now_us, per_second, burst)
        decision = admit(arrival_us, now_us, per_second, burst)
        assert 0 <= left <= burst
        if isinstance(decision, Admitted):
            assert left >= 1
            assert decision.remaining == left - 1
            assert (left - 1, decision.reset_us) == remaining(decision.arrival_us, now_us, per_second, burst)
            arrival_us, admitted = decision.arrival_us, admitted + 1
        else:
            assert left == 0
            assert decision.reset_us == reset_us
    interval_us = max(SECOND_US // per_second, 1)
    assert admitted <= burst + (now_us - began_us) // interval_us
