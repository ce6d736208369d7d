"""A partner's move to another cell as the registry keeps it, and what follows from how far it is. Pure.

    copying    nothing is decided: the source serves, rows are copied. It can be aborted.
    sealing    written down before the source is asked to seal. Only the source knows whether it did.
    clearing   the target serves; the directory is to say so, and the old book is compared with the new one.
    erasing    the books agreed; the old one is removed.
    aborting   the source is made sure to serve, what arrived is removed.

Three ways: the book is copied; or taken over from a cell of the same FoundationDB cluster, where nothing is copied; or
taken over from such a cell that is dead (evacuation), which nobody asks and whose owners the new epoch fences.

A move that ends is a line in the operators' log; its row goes. Of an evacuation a Burial stays until the cell was told.
`token` is a secret until the seal.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

WAYS: Final = ("copy", "hand_over", "evacuate")
STATES: Final = ("copying", "sealing", "clearing", "erasing", "aborting")


@dataclass(frozen=True, slots=True)
class Move:
    """One move. `why`: what went wrong last. `attempt`: of the copy, from 1; a later one begins anew.

    `pause_ms`: how long the partner's commands waited at most, as the control plane saw it, of several attempts in the
    one in which they waited longest; None: not known. `quiesced_at_ms`: since when they wait in this attempt, in
    milliseconds since 1970; None: they don't, or that is not known.
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
        }


@dataclass(frozen=True, slots=True)
class Burial:
    """A partner's book that was taken over from a cell which is dead: when it is back, it is to be told."""

    partner_id: str
    cell: str
    move_id: str
    target: str
    token: str


def longest_ms(first: int | None, second: int | None) -> int | None:
    """Give the longer of two pauses; None, not known, where one of them is not."""
    return None if first is None or second is None else max(first, second)


def way_between(source: Mapping[str, Any], target: Mapping[str, Any]) -> str:
    """Give how a book gets from one place to the other: nothing is copied between cells of one cluster."""
    shares = source["store"] == target["store"] == "fdb" and source["cluster_file"] == target["cluster_file"]
    return "hand_over" if shares else "copy"


def may_abort(move: Move) -> bool:
    """Say whether a move can still be taken back; while it is sealing only the source knows."""
    return move.state == "copying" or (move.state == "sealing" and move.way != "evacuate")


def is_caught_up(*, is_scanned: bool, changed: int, rows_max: int) -> bool:
    """Say whether so little is left of a copy that the partner may be stopped for it."""
    return is_scanned and changed <= rows_max
