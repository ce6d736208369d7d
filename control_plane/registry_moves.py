"""How far moves of partners to other cells are, as the registry keeps it, and which dead cells are to be told of them.

Each is one commit, as in registry.py, and may raise what is said there. What moves do is in moves.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from control_plane.errors import RefusedError
from control_plane.move_record import Burial, Move, burials_of, is_untold
from control_plane.registry import Registry
from control_plane.registry_draft import Draft


async def begin_move(registry: Registry, move: Move) -> Move:
    """Write down that a partner is to go to another cell, before anything is done."""
    async with registry.writing() as draft:
        if registry.partner(move.partner_id).status == "erasing":
            raise RefusedError(f"{move.partner_id} is being erased, so it stays where it is")
        for burial in registry.burials_of(move.partner_id):
            if is_untold(burial, move.target):
                raise RefusedError(
                    f"{burial.cell} was not told yet that {move.partner_id} is in another cell",
                    hint="that happens by itself within seconds of its being back; then ask again",
                )
        draft.put_move(move, new=True)
        detail = {"move": move.id, "from": move.source, "to": move.target}
        draft.note(move.who, "partner_move_begun", move.partner_id, detail)
    return move


async def begin_evacuation(
    registry: Registry, cell: str, plan: Callable[[], Sequence[Move]], who: str
) -> Sequence[Move]:
    """Write down all moves that take a dead cell's partners over, in one commit, over those under way; give them.

    `plan` is asked for them when no other write can come between it and the commit.
    """
    async with registry.writing() as draft:
        moves = plan()
        for move in moves:
            held = registry.move(move.partner_id)
            if held is not None and held.has_arrived:
                _bury(draft, held)
            draft.put_move(move)
        if moves:
            draft.note(who, "cell_evacuation_begun", None, {"cell": cell, "partners": len(moves)})
    return moves


async def put_move(registry: Registry, move: Move) -> Move:
    """Write down how far a move is; one that was replaced meanwhile is not, and what replaced it is given.

    Raises RefusedError where it has ended.
    """
    async with registry.writing() as draft:
        held = _held_move(registry, move)
        if held is not move:
            return held
        draft.put_move(move)
    return move


async def partner_moved(registry: Registry, move: Move) -> Move:
    """Write down, in one commit, that a partner lives in its new cell and that its old book is to be cleared."""
    async with registry.writing() as draft:
        held = _held_move(registry, move)
        if held is not move:
            return held
        draft.put_partner(replace(registry.partner(move.partner_id), cell=move.target))
        draft.put_move(move)
        draft.note(move.who, "partner_arrived", move.partner_id, {"cell": [move.source, move.target]})
    return move


async def end_move(registry: Registry, move: Move, what: str, untold: Sequence[Burial] = ()) -> Move:
    """Write down that a move has ended, and how; and who is to be told: `untold`, and an evacuation's dead."""
    async with registry.writing() as draft:
        held = _held_move(registry, move)
        if held is not move:
            return held
        draft.forget_move(move.partner_id)
        if what == "partner_moved":
            _bury(draft, move)
        for burial in untold:
            draft.put_burial(burial)
        draft.note(move.who, what, move.partner_id, move.described())
    return move


async def forget_burials(registry: Registry, burials: Sequence[Burial]) -> None:
    """Write down that a cell was told of these, or that it is never to be told any more."""
    async with registry.writing() as draft:
        held = registry.burials()
        for burial in burials:
            if burial in held:
                draft.forget_burial(burial)


def _held_move(registry: Registry, move: Move) -> Move:
    """Give a move itself where it is still the partner's, else the one that is. Raises RefusedError."""
    held = registry.move(move.partner_id)
    if held is None:
        raise RefusedError(f"the move {move.id} of {move.partner_id} has ended")
    return move if (held.id, held.way) == (move.id, move.way) else held


def _bury(draft: Draft, move: Move) -> None:
    for burial in burials_of(move):
        draft.put_burial(burial)
