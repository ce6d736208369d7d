"""What a move's row says of its partner's pause."""

import pytest

from control_plane.move_record import Move, longest_ms

MOVE = Move("move_1", "acme", "cell-0", "cell-1", "t", "sealing", 1, "ann", "now", quiesced_at_ms=5)


@pytest.mark.parametrize(
    ("first", "second", "longest"), [(0, 80, 80), (80, 0, 80), (None, 80, None), (80, None, None), (None, None, None)]
)
def test_of_two_pauses_the_longer_counts_and_what_is_not_known_stays_so(
    first: int | None, second: int | None, longest: int | None
) -> None:
    assert longest_ms(first, second) == longest


def test_several_attempts_are_told_as_the_longest_pause() -> None:
    failed = MOVE.paused(700).tried_again("it was not sealed")
    assert (failed.pause_ms, failed.quiesced_at_ms, failed.attempt) == (700, None, 2)
    assert failed.paused(80).described()["pause_ms"] == 700


def test_nobody_knows_since_when_a_dead_cell_s_partner_waits() -> None:
    assert MOVE.as_evacuation().paused(80).pause_ms is None
