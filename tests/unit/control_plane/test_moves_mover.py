"""What a move comes to in a rebalancing: done with its pause, refused in words, or not known."""

from dataclasses import replace
from typing import Any

import pytest

from control_plane.errors import DoorError, RefusedError
from control_plane.move_record import Move
from control_plane.moves import MoveAbortedError
from control_plane.moves_mover import MovesMover
from control_plane.rebalancer import MoveResult

MOVED = Move("move_1", "acme", "cell-0", "cell-1", "t", "erasing", 1, "ann", "now", pause_ms=80)


class Moves:
    def __init__(self, outcome: Any, *held: Move) -> None:
        self.outcome = outcome
        self.held = list(held)

    def running(self) -> list[Move]:
        return self.held

    async def move(self, partner_id: str, to_cell: str, who: str) -> Move:
        assert (partner_id, to_cell, who) == ("acme", "cell-1", "rebalance 1")
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("outcome", "result"),
    [
        (MOVED, MoveResult(80)),
        (replace(MOVED, pause_ms=None), MoveResult(None)),
        (MoveAbortedError("the target is full", pause_ms=700), MoveResult(700, "the target is full")),
        (MoveAbortedError("the target is full", pause_ms=None), MoveResult(None, "the target is full")),
        (RefusedError("it is being onboarded"), MoveResult(0, "it is being onboarded")),
    ],
)
async def test_what_came_of_a_move(outcome: Any, result: MoveResult) -> None:
    assert await MovesMover(Moves(outcome)).move("acme", "cell-1", "rebalance 1") == result  # type: ignore[arg-type]


async def test_of_a_move_that_a_person_is_to_look_at_its_row_tells() -> None:
    refused = RefusedError("the books differ")
    other = replace(MOVED, partner_id="beta", pause_ms=9)
    mover = MovesMover(Moves(refused, other, MOVED))  # type: ignore[arg-type]
    assert await mover.move("acme", "cell-1", "rebalance 1") == MoveResult(80, "the books differ")


async def test_what_is_not_known_is_raised() -> None:
    with pytest.raises(DoorError):
        await MovesMover(Moves(DoorError("no answer"))).move("acme", "cell-1", "rebalance 1")  # type: ignore[arg-type]
