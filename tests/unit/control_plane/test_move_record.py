"""What an evacuation makes of a partner, who is told of it, where it can't go before; what a row says of its pause."""

from typing import Any

import pytest

from control_plane.move_record import STATES, WAYS, Burial, Move, burials_of, is_untold, longest_ms, may_abort, verdict

# cell-a has the partner, cell-b is to have it; cell-c has nothing to do with either.
A, B, C = "cell-a", "cell-b", "cell-c"


def move(way: str, state: str, **other: Any) -> Move:
    return Move("move_1", "p", A, B, "t", state, 1, "ann", "", way=way, **other)


# way, state -> what the evacuation makes of it where its source is dead, and where its target is.
TABLE = {
    ("copy", "copying"): ("leave", "leave"),
    ("copy", "sealing"): ("leave", "leave"),
    ("copy", "clearing"): ("leave", "leave"),
    ("copy", "erasing"): ("leave", "leave"),
    ("copy", "aborting"): ("leave", "leave"),
    ("hand_over", "copying"): ("fence", "leave"),
    ("hand_over", "sealing"): ("fence", "redirect"),
    ("hand_over", "clearing"): ("leave", "begin"),
    ("hand_over", "erasing"): ("leave", "begin"),
    ("hand_over", "aborting"): ("fence", "leave"),
    ("evacuate", "copying"): ("leave", "redirect"),
    ("evacuate", "sealing"): ("leave", "redirect"),
    ("evacuate", "clearing"): ("leave", "begin"),
    ("evacuate", "erasing"): ("leave", "begin"),
    ("evacuate", "aborting"): ("leave", "redirect"),
}


def test_the_table_is_whole() -> None:
    assert TABLE.keys() == {(way, state) for way in WAYS for state in STATES}


@pytest.mark.parametrize(("way", "state"), TABLE)
def test_what_an_evacuation_makes_of_a_partner(way: str, state: str) -> None:
    held = move(way, state)
    home = B if held.has_arrived else A
    assert (verdict(held, home, A), verdict(held, home, B)) == TABLE[way, state]
    assert verdict(held, home, C) == "leave"


def test_who_is_on_no_way_is_taken_over_from_its_own_cell_only() -> None:
    assert (verdict(None, A, A), verdict(None, A, B)) == ("begin", "leave")


@pytest.mark.parametrize(
    ("way", "state", "may"),
    [
        ("copy", "copying", True),
        ("hand_over", "copying", True),
        ("hand_over", "sealing", True),
        ("evacuate", "copying", False),
        ("evacuate", "sealing", False),
        ("copy", "clearing", False),
        ("copy", "aborting", False),
    ],
)
def test_what_may_be_aborted(way: str, state: str, may: bool) -> None:
    assert may_abort(move(way, state)) is may


def test_the_third_cell_looks_where_the_book_can_have_got_to_in_that_order() -> None:
    first = move("evacuate", "sealing")
    second = Move("move_2", "p", A, C, "t2", "copying", 1, "ann", "", way="evacuate").in_place_of(first)
    third = Move("move_3", "p", A, "cell-d", "t3", "copying", 1, "ann", "", way="evacuate").in_place_of(second)
    assert (first.left, second.left, third.left) == ((A,), (A, B), (A, B, C))
    assert third.passed_over == ((B, "move_1"), (C, "move_2"))
    assert burials_of(third) == (
        Burial("p", A, "move_3", "cell-d", "t3", "", ()),
        Burial("p", B, "move_3", "cell-d", "t3", "move_1", (A,)),
        Burial("p", C, "move_3", "cell-d", "t3", "move_2", (A, B)),
    )


def test_nobody_is_told_of_a_move_that_its_source_took_part_in() -> None:
    assert burials_of(move("hand_over", "erasing")) == ()


def test_nobody_goes_where_old_news_could_fetch_it() -> None:
    burial = Burial("p", B, "move_2", C, "t", "move_1", (A,))
    assert {cell for cell in (A, B, C) if is_untold(burial, cell)} == {A, B}


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
