"""Moves, as a rebalancing asks for them: one partner at a time, and what came of it."""

from control_plane.errors import RefusedError
from control_plane.moves import MoveAbortedError, Moves
from control_plane.rebalancer import MoveResult


class MovesMover:
    """See `rebalancer.Mover`. A move that was begun before is joined, or was ended by whoever began it."""

    def __init__(self, moves: Moves) -> None:
        self._moves = moves

    async def move(self, partner_id: str, to_cell: str, who: str) -> MoveResult:
        """Move a partner. Raises ControlPlaneError where nothing is known of how it went."""
        try:
            moved = await self._moves.move(partner_id, to_cell, who)
        except MoveAbortedError as error:
            return MoveResult(error.pause_ms, error.what)
        except RefusedError as error:
            # It was not begun, or goes on for a person: then its row tells.
            held = [move for move in self._moves.running() if (move.partner_id, move.target) == (partner_id, to_cell)]
            return MoveResult(held[0].pause_ms if held else 0, error.what)
        return MoveResult(moved.pause_ms)
