"""A partner's move to another cell as the registry keeps it, and what follows from how far it is. Pure.

    copying    nothing is decided: the source serves, rows are copied. It can be aborted.
    sealing    written down before the source is asked to seal. Only the source knows whether it did.
    clearing   the target serves; the directory is to say so, and the old book is compared with the new one.
    erasing    the books agreed; the old one is removed.
    aborting   the source is made sure to serve, what arrived is removed.

Three ways: the book is copied; or taken over from a cell of the same FoundationDB cluster, where nothing is copied; or
taken over from such a cell that is dead (evacuation), which nobody asks and whose owners the new epoch fences.

Where the cell that was to take a partner over dies too, another move to a third cell replaces the first, and keeps in
`passed_over` who died. The book is then in the place of the first cell or of one that was passed over, and nowhere
else: each takes it from those before itself only. So the last one looks in that order, and finds it wherever it is.

A move that ends is a line in the operators' log; its row goes. Of an evacuation, and of a move that was given up while
its target was dead, a Burial stays for each cell until that was told. `token` is a secret until the seal.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

Verdict = Literal["begin", "fence", "redirect", "leave"]

WAYS: Final = ("copy", "hand_over", "evacuate")
STATES: Final = ("copying", "sealing", "clearing", "erasing", "aborting")


@dataclass(frozen=True, slots=True)
class Move:
    """One move. `why`: what went wrong last. `attempt`: of the copy, from 1; a later one begins anew.

    `pause_ms`: how long the partner's commands waited at most, as the control plane saw it, of several attempts in the
    one in which they waited longest; None: not known. `quiesced_at_ms`: since when they wait in this attempt, in
    milliseconds since 1970; None: they don't, or that is not known.
    `passed_over`: cells that were to take it over and died, each with the id of the move that was to bring it there,
    the first one first.
    """

    id: str
    partner_id: str
    source: str
    target: str
    token: str
    state: str
    attempt: int
    who: str
    started_at: str
    why: str = ""
    pause_ms: int | None = 0
    rows: int = 0
    way: str = "copy"
    quiesced_at_ms: int | None = None
    passed_over: tuple[tuple[str, str], ...] = ()

    @property
    def has_arrived(self) -> bool:
        """Whether the partner is known to live in its new cell."""
        return self.state in {"clearing", "erasing"}

    @property
    def left(self) -> tuple[str, ...]:
        """The cells that the partner's book may be taken over from, in the order in which it can have got on."""
        return (self.source, *(cell for cell, _ in self.passed_over))

    def tried_again(self, why: str) -> "Move":
        """Give the move with its copy begun anew."""
        return replace(self, state="copying", attempt=self.attempt + 1, why=why)

    def paused(self, pause_ms: int | None) -> "Move":
        """Give the move after its partner's commands waited for so long (None: not known), and are served again."""
        return replace(self, pause_ms=longest_ms(self.pause_ms, pause_ms), quiesced_at_ms=None)

    def as_evacuation(self) -> "Move":
        """Give the move as one that does not ask its source any more, which is dead. Since when, nobody knows."""
        told = self.paused(None)
        return replace(told, way="evacuate", state="copying", attempt=self.attempt + 1, why="its cell is dead")

    def in_place_of(self, held: "Move") -> "Move":
        """Give this move as the one that replaces `held`, whose target died on the way."""
        return replace(self, passed_over=(*held.passed_over, (held.target, held.id)))

    def described(self) -> dict[str, Any]:
        """Give what operators see: all but the token."""
        return {
            "move": self.id,
            "partner": self.partner_id,
            "source": self.source,
            "target": self.target,
            "state": self.state,
            "attempt": self.attempt,
            "who": self.who,
            "started_at": self.started_at,
            "why": self.why,
            "pause_ms": self.pause_ms,
            "rows": self.rows,
            "way": self.way,
            "passed_over": [cell for cell, _ in self.passed_over],
        }


@dataclass(frozen=True, slots=True)
class Burial:
    """A partner that is in another cell, `target`, which a cell can't be told now: it is dead.

    Its book was taken over from there, or was to come there and does not. `move_id`: by which move that was decided.
    `arrival_id`: the move that was to bring the partner to this cell, and is over; "": it was there. `sources`: whose
    places the cell would take the book from if it heard of that move once more; the partner stays out of these, too.
    """

    partner_id: str
    cell: str
    move_id: str
    target: str
    token: str
    arrival_id: str = ""
    sources: tuple[str, ...] = ()


def longest_ms(first: int | None, second: int | None) -> int | None:
    """Give the longer of two pauses; None, not known, where one of them is not."""
    return None if first is None or second is None else max(first, second)


def way_between(source: Mapping[str, Any], target: Mapping[str, Any]) -> str:
    """Give how a book gets from one place to the other: nothing is copied between cells of one cluster."""
    shares = source["store"] == target["store"] == "fdb" and source["cluster_file"] == target["cluster_file"]
    return "hand_over" if shares else "copy"


def may_abort(move: Move) -> bool:
    """Say whether a move can still be taken back; while it is sealing only the source knows.

    An evacuation can't: its source can't be asked, and where its book is by now only the last cell finds out.
    """
    return move.way != "evacuate" and move.state in {"copying", "sealing"}


def verdict(held: Move | None, home: str, dead: str) -> Verdict:
    """Say what the evacuation of a cell makes of a partner that lives in `home` and is on the move `held`, if on any.

        begin     a move takes it over from the dead cell; one that brought it there and has only words to say is over
        fence     the move that it is on goes on without asking the dead cell any more
        redirect  the dead cell was to take it over and is not known to have done so: another one does
        leave     the dead cell has nothing to do with it, or it is under way already, or only that cell can go on

    A partner that is to be handed over to the dead cell and is not sealed yet is left: its own cell takes it back. One
    that is being sealed either is, and has no cell, or is taken back within the same moment.
    """
    if held is None:
        return "begin" if home == dead else "leave"
    if held.has_arrived:
        return "begin" if home == dead and held.way != "copy" else "leave"
    if held.source == dead:
        return "fence" if held.way == "hand_over" else "leave"
    is_lost = held.way == "evacuate" or (held.way == "hand_over" and held.state == "sealing")
    return "redirect" if held.target == dead and is_lost else "leave"


def burials_of(move: Move) -> tuple[Burial, ...]:
    """Give who is to be told that this move took a partner over: the cell that it was in, and those that died after."""
    if move.way != "evacuate":
        return ()
    arrivals = ("", *(move_id for _, move_id in move.passed_over))
    return tuple(
        Burial(move.partner_id, cell, move.id, move.target, move.token, arrival_id, move.left[:before])
        for before, (cell, arrival_id) in enumerate(zip(move.left, arrivals, strict=True))
    )


def burial_of_arrival(move: Move) -> Burial:
    """Give what a move's target is to be told that did not answer as the move was given up: the partner stays."""
    return Burial(move.partner_id, move.target, move.id, move.source, move.token, move.id)


def is_untold(burial: Burial, cell: str) -> bool:
    """Say whether a partner can't go to a cell before this is told: it, or who would take from it, knows old news."""
    return cell == burial.cell or cell in burial.sources


def may_hold_copy(burial: Burial) -> bool:
    """Say whether a cell that is to be told may hold what a move copied there that was given up."""
    return bool(burial.arrival_id) and not burial.sources


def is_caught_up(*, is_scanned: bool, changed: int, rows_max: int) -> bool:
    """Say whether so little is left of a copy that the partner may be stopped for it."""
    return is_scanned and changed <= rows_max
