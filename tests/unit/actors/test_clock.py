from hypothesis import given
from hypothesis import strategies as st

from actors.clock import PartnerTime, SystemClock
from tests.unit.actors.virtual_time import START_MS, HandClock


def test_it_follows_the_wall_clock() -> None:
    clock = HandClock()
    partner = PartnerTime(clock, 0)
    clock.advance(5)
    assert partner.now_ms() == START_MS + 5


def test_it_begins_at_the_committed_floor() -> None:
    assert PartnerTime(HandClock(), START_MS + 99).now_ms() == START_MS + 99


def test_a_wall_clock_that_jumps_back_stops_nothing() -> None:
    clock = HandClock()
    partner = PartnerTime(clock, 0)
    clock.wall -= 3_600_000
    clock.advance(40)
    assert partner.now_ms() == START_MS + 40


def test_a_jump_forward_is_taken_over_and_kept() -> None:
    clock = HandClock()
    partner = PartnerTime(clock, 0)
    clock.wall += 3_600_000
    assert partner.now_ms() == START_MS + 3_600_000
    clock.wall -= 3_600_000
    clock.advance(1)
    assert partner.now_ms() == START_MS + 3_600_001


@given(st.lists(st.tuples(st.integers(-(10**9), 10**9), st.integers(0, 10**6)), max_size=30), st.integers(0, 2**45))
def test_it_never_falls_and_never_stands_still(moves: list[tuple[int, int]], floor_ms: int) -> None:
    clock = HandClock()
    partner = PartnerTime(clock, floor_ms)
    before = partner.now_ms()
    assert before >= floor_ms
    for wall_jump_ms, passed_ms in moves:
        clock.advance(passed_ms)
        clock.wall += wall_jump_ms
        after = partner.now_ms()
        assert after >= before + passed_ms
        assert after >= clock.wall_ms()
        before = after


def test_the_machine_clocks_run() -> None:
    clock = SystemClock()
    assert clock.wall_ms() > 1_700_000_000_000
    assert clock.monotonic_ms() <= clock.monotonic_ms()
