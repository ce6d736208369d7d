"""Moves, as a rebalancing asks for them: one partner at a time, and what came of it."""

from control_plane.errors import RefusedError
from control_plane.moves import Moves
from control_plane.rebalancer import MoveResult


class MovesMover:
    """See `rebalancer.Mover`. A move that was begun before is joined, or was ended by whoever began it."""

    def __init__(self, moves: Moves) -> None:
        self._moves = moves

    async def move(self, partner_id: str, to_cell: str, who: str) -> MoveResult:
        """Move a partner. Raises ControlPlaneError where nothing is known of how it went."""
        try:
            moved = await self._moves.move(partner_id, to_cell, who)
        except RefusedError as error:
            return MoveResult(0, error.what)
        return MoveResult(max(moved.pause_ms, 0))
