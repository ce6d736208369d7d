"""What the soak does to a gateway, and what may be noticed of it: one table, fixed before anything is struck. Pure.

Each fault has a row: whom it strikes, and what its partner, the other partners of its cell, and all other cells may
notice. `plan` makes an endless sequence of them from a seed. Nothing is sent or signalled here.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from chaos import limits
from chaos.history import Outcome


class Target(StrEnum):
    """A process, or several, of the gateway under test."""

    WORKER = "worker"
    SPARE = "spare"
    DOOR = "door"
    HEAD = "Ray head"  # `ray start`, which watches the next two
    GCS = "Ray's GCS"
    RAYLET = "raylet"
    CELL = "cell"  # all processes of one cell at once
    ROUTER = "router"
    CONTROL_PLANE = "control plane"
    ACQUIRER = "acquirer"
    REDIS = "redis"
    FDB_SERVER = "FoundationDB server"  # where the soak has one of its own


class Blow(StrEnum):
    """What a process is dealt."""

    KILL = "SIGKILL"
    STOP = "SIGSTOP"  # and SIGCONT later


class Excuse(StrEnum):
    """What a first attempt may get beside what its request should get. Never: an answer after the client's deadline."""

    OVERDUE = "a delay; 202, or 503 with Retry-After, where the command's own 8 s end meanwhile"
    REFUSED = "a delay; past its deadline 202, or 503 with Retry-After"
    CUT_OFF = "no answer, or no connection"
    PENDING = "202, or 503, 429, 409 for the acquirer's sake"
    LIMITED = "429 for what is past its own limits"
    CROWDED = "503 where its cell's share, or its room, is used up"


_REFUSED: Final = frozenset(
    {Outcome(503, "partner_unavailable"), Outcome(503, "outcome_unknown"), Outcome(503, "not_ready")}
)
_PENDING: Final = frozenset(
    {
        Outcome(503, "acquirer_unavailable"),
        Outcome(429, "too_many_in_flight"),
        Outcome(409, "payment_processing"),
    }
)
_LIMITED: Final = frozenset(
    {
        Outcome(429, "rate_limited"),
        Outcome(429, "too_many_in_flight"),
        Outcome(429, "mailbox_full"),
        Outcome(429, "cpu_budget_exhausted"),
        Outcome(429, "too_many_reads"),
    }
)
EXCUSED_OUTCOMES: Final = {
    Excuse.OVERDUE: _REFUSED,
    Excuse.REFUSED: _REFUSED,
    Excuse.CUT_OFF: frozenset[Outcome](),
    Excuse.PENDING: _PENDING,
    Excuse.LIMITED: _LIMITED,
    Excuse.CROWDED: frozenset({Outcome(503, "overloaded"), Outcome(503, "cell_overloaded")}),
}

Excuses = frozenset[Excuse]
NO_ERROR: Final[Excuses] = frozenset()
DELAYED: Final[Excuses] = frozenset({Excuse.OVERDUE})
MAY_REFUSE: Final[Excuses] = frozenset({Excuse.REFUSED})
MAY_CUT_OFF: Final[Excuses] = frozenset({Excuse.REFUSED, Excuse.CUT_OFF})
MAY_PEND: Final[Excuses] = frozenset({Excuse.PENDING})
IS_LIMITED: Final[Excuses] = frozenset({Excuse.LIMITED})
IS_CROWDED: Final[Excuses] = frozenset({Excuse.REFUSED, Excuse.LIMITED, Excuse.CROWDED})


@dataclass(frozen=True, slots=True)
class Strike:
    """One blow at one target, so long after the fault's moment. A stop lasts for a time from the range."""

    target: Target
    blow: Blow
    after_ms: tuple[int, int] = (0, 0)
    stop_ms: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Kind:
    """A row of the table. `goal_ms`: so long after the first blow everybody is served as ever.

    `replaces`: what was stopped is found, ended and started anew before it could go on by itself.
    """

    name: str
    strikes: tuple[Strike, ...]
    own: Excuses  # the partner of the worker that was struck
    cell: Excuses  # the other partners of the cell that was struck
    others: Excuses  # all other partners; all partners where no cell was struck
    goal_ms: int
    replaces: bool = False


_LAG_MS: Final = (100, 700)  # shorter than anybody is accused for
_LONG_MS: Final = (6_000, 9_000)  # longer than it takes to find out
_SOON_MS: Final = (0, 150)

_WORKER_MS: Final = limits.GOAL_WORKER_KILLED_MS
_DOOR_MS: Final = limits.GOAL_DOOR_KILLED_MS
_ROUTER_MS: Final = limits.GOAL_ROUTER_KILLED_MS
_CELL_MS: Final = limits.GOAL_CELL_KILLED_MS
_UP_MS: Final = limits.CONTROL_PLANE_AWAY_MS + limits.GOAL_CONTROL_PLANE_STARTS_MS
_FOUND_MS: Final = limits.GOAL_STOPPED_FOUND_MS
_RAY_FOUND_MS: Final = limits.GOAL_RAY_STOPPED_FOUND_MS


def _kill(target: Target, after_ms: tuple[int, int] = (0, 0)) -> Strike:
    return Strike(target, Blow.KILL, after_ms)


def _stop(target: Target, stop_ms: tuple[int, int], after_ms: tuple[int, int] = (0, 0)) -> Strike:
    return Strike(target, Blow.STOP, after_ms, stop_ms)


# fmt: off
KINDS: Final = (
    # Workers: a delay for their own partner, nothing for anybody else.
    Kind("worker killed", (_kill(Target.WORKER),), DELAYED, NO_ERROR, NO_ERROR, _WORKER_MS),
    Kind("worker lags", (_stop(Target.WORKER, _LAG_MS),), DELAYED, NO_ERROR, NO_ERROR, _LAG_MS[1] + _WORKER_MS),
    Kind("worker stopped", (_stop(Target.WORKER, _LONG_MS),),
         DELAYED, NO_ERROR, NO_ERROR, limits.GOAL_SILENT_FOUND_MS + _WORKER_MS, replaces=True),
    Kind("spare killed", (_kill(Target.SPARE),), NO_ERROR, NO_ERROR, NO_ERROR, _WORKER_MS),
    Kind("spare stopped", (_stop(Target.SPARE, _LONG_MS),), NO_ERROR, NO_ERROR, NO_ERROR, _WORKER_MS, replaces=True),
    # Without a spare the partner waits until a worker has started.
    Kind("worker and spare killed", (_kill(Target.WORKER), _kill(Target.SPARE)),
         MAY_REFUSE, NO_ERROR, NO_ERROR, limits.GOAL_WORKER_STARTS_MS),
    Kind("spare killed as it is handed a partner", (_kill(Target.WORKER), _kill(Target.SPARE, _SOON_MS)),
         MAY_REFUSE, NO_ERROR, NO_ERROR, limits.GOAL_WORKER_STARTS_MS),
    # The door: its cell's partners wait until it is back; the router sends again.
    Kind("door killed", (_kill(Target.DOOR),), DELAYED, DELAYED, NO_ERROR, _DOOR_MS),
    Kind("door lags", (_stop(Target.DOOR, _LAG_MS),), DELAYED, DELAYED, NO_ERROR, _LAG_MS[1] + _WORKER_MS),
    Kind("door stopped", (_stop(Target.DOOR, _LONG_MS),),
         DELAYED, DELAYED, NO_ERROR, _FOUND_MS + _DOOR_MS, replaces=True),
    Kind("worker killed while its door is away", (_kill(Target.DOOR), _kill(Target.WORKER, (50, 600))),
         DELAYED, DELAYED, NO_ERROR, _DOOR_MS + limits.GOAL_WORKER_STARTS_MS),
    Kind("worker stopped while its door is away", (_kill(Target.DOOR), _stop(Target.WORKER, _LONG_MS, (50, 600))),
         DELAYED, DELAYED, NO_ERROR, _DOOR_MS + limits.GOAL_SILENT_FOUND_MS + limits.GOAL_WORKER_STARTS_MS,
         replaces=True),
    # Ray: the cell starts anew. Past its deadline a call is refused; a command that was sent twice is not known.
    Kind("Ray head killed", (_kill(Target.HEAD),), MAY_REFUSE, MAY_REFUSE, NO_ERROR, _CELL_MS),
    Kind("Ray head stopped", (_stop(Target.HEAD, _LONG_MS),),
         MAY_REFUSE, MAY_REFUSE, NO_ERROR, _RAY_FOUND_MS + _CELL_MS, replaces=True),
    Kind("Ray's GCS killed", (_kill(Target.GCS),), MAY_REFUSE, MAY_REFUSE, NO_ERROR, _CELL_MS),
    Kind("Ray's GCS lags", (_stop(Target.GCS, _LAG_MS),), NO_ERROR, NO_ERROR, NO_ERROR, _LAG_MS[1]),
    Kind("Ray's GCS stopped", (_stop(Target.GCS, _LONG_MS),),
         MAY_REFUSE, MAY_REFUSE, NO_ERROR, _RAY_FOUND_MS + _CELL_MS, replaces=True),
    Kind("raylet killed", (_kill(Target.RAYLET),), MAY_REFUSE, MAY_REFUSE, NO_ERROR, _CELL_MS),
    Kind("raylet lags", (_stop(Target.RAYLET, _LAG_MS),), NO_ERROR, NO_ERROR, NO_ERROR, _LAG_MS[1]),
    Kind("raylet stopped", (_stop(Target.RAYLET, _LONG_MS),),
         MAY_REFUSE, MAY_REFUSE, NO_ERROR, _RAY_FOUND_MS + _CELL_MS, replaces=True),
    Kind("Ray head killed while its door starts", (_kill(Target.DOOR), _kill(Target.HEAD, (300, 1_500))),
         MAY_REFUSE, MAY_REFUSE, NO_ERROR, _DOOR_MS + _CELL_MS),
    Kind("cell killed", (_kill(Target.CELL),), MAY_REFUSE, MAY_REFUSE, NO_ERROR, _CELL_MS),
    Kind("cell stopped", (_stop(Target.CELL, _LONG_MS),),
         MAY_REFUSE, MAY_REFUSE, NO_ERROR, _RAY_FOUND_MS + _CELL_MS),
    # What all share. Who was connected to a router that dies hears nothing more.
    Kind("router killed", (_kill(Target.ROUTER),), MAY_CUT_OFF, MAY_CUT_OFF, MAY_CUT_OFF, _ROUTER_MS),
    Kind("router lags", (_stop(Target.ROUTER, _LAG_MS),), NO_ERROR, NO_ERROR, NO_ERROR, _LAG_MS[1] + _WORKER_MS),
    Kind("router stopped", (_stop(Target.ROUTER, _LONG_MS),),
         MAY_CUT_OFF, MAY_CUT_OFF, MAY_CUT_OFF, _FOUND_MS + _ROUTER_MS, replaces=True),
    Kind("control plane killed", (_kill(Target.CONTROL_PLANE),), NO_ERROR, NO_ERROR, NO_ERROR, _WORKER_MS),
    Kind("control plane stopped", (_stop(Target.CONTROL_PLANE, _LONG_MS),), NO_ERROR, NO_ERROR, NO_ERROR, _WORKER_MS),
    Kind("control plane killed as it restarts a door",
         (_kill(Target.DOOR), _kill(Target.CONTROL_PLANE, (100, 1_200))),
         MAY_REFUSE, MAY_REFUSE, NO_ERROR, _UP_MS + _DOOR_MS),
    Kind("acquirer killed", (_kill(Target.ACQUIRER),), MAY_PEND, MAY_PEND, MAY_PEND, limits.GOAL_ACQUIRER_MS),
    Kind("acquirer lags", (_stop(Target.ACQUIRER, _LAG_MS),), NO_ERROR, NO_ERROR, NO_ERROR, _LAG_MS[1] + _WORKER_MS),
    Kind("acquirer stopped", (_stop(Target.ACQUIRER, _LONG_MS),),
         MAY_PEND, MAY_PEND, MAY_PEND, _FOUND_MS + limits.GOAL_ACQUIRER_MS, replaces=True),
    # Nobody replaces it: breakers open, 202s, and all of it settled after SIGCONT.
    Kind("acquirer stopped for long, unsupervised",
         (_stop(Target.CONTROL_PLANE, (12_000, 15_000)), _stop(Target.ACQUIRER, (10_000, 11_500), (100, 200))),
         MAY_PEND, MAY_PEND, MAY_PEND, 12_000 + limits.GOAL_ACQUIRER_MS),
    # Redis carries nothing that a payment waits for.
    Kind("Redis killed", (_kill(Target.REDIS),), NO_ERROR, NO_ERROR, NO_ERROR, _WORKER_MS),
    Kind("Redis stopped", (_stop(Target.REDIS, _LONG_MS),), NO_ERROR, NO_ERROR, NO_ERROR, _WORKER_MS, replaces=True),
    # The only server of the only cluster: nobody is served while it is away; nothing else has to be started again.
    Kind("FoundationDB server killed", (_kill(Target.FDB_SERVER),),
         MAY_REFUSE, MAY_REFUSE, MAY_REFUSE, limits.FDB_SERVER_AWAY_MS + limits.GOAL_FDB_SERVER_BACK_MS),
    Kind("FoundationDB server stopped", (_stop(Target.FDB_SERVER, (limits.FDB_SERVER_STOPPED_MS,) * 2),),
         MAY_REFUSE, MAY_REFUSE, MAY_REFUSE, limits.FDB_SERVER_STOPPED_MS + limits.GOAL_FDB_SERVER_BACK_MS),
)
# fmt: on
_BY_NAME: Final = {kind.name: kind for kind in KINDS}
# Those that a gateway of any store can be dealt.
KINDS_OF_ANY_STORE: Final = tuple(
    kind for kind in KINDS if all(strike.target is not Target.FDB_SERVER for strike in kind.strikes)
)
_OF_A_CELL: Final = frozenset(
    {Target.WORKER, Target.SPARE, Target.DOOR, Target.HEAD, Target.GCS, Target.RAYLET, Target.CELL}
)


@dataclass(frozen=True, slots=True)
class Blows:
    """One strike with its times drawn."""

    target: Target
    blow: Blow
    after_ms: int
    stop_ms: int


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a plan. `pause_ms`: how long all is calm before it. `partner`: the victim where one is struck."""

    number: int
    kind: Kind
    cell: str | None
    partner: str | None
    pause_ms: int
    blows: tuple[Blows, ...]

    @property
    def title(self) -> str:
        """What is done to whom, for a person."""
        where = self.partner or self.cell
        return f"{self.kind.name} ({where})" if where else self.kind.name

    def excuses(self, partner: str, cell: str) -> Excuses:
        """Give what this partner's calls may get while the fault lasts."""
        if self.cell is None or cell != self.cell:
            return self.kind.others
        return self.kind.own if partner == self.partner else self.kind.cell


def kind_named(name: str) -> Kind:
    """Give a row of the table. Raises KeyError."""
    return _BY_NAME[name]


def plan(seed: int, cells: dict[str, list[str]], kinds: tuple[Kind, ...] = KINDS) -> Iterator[Fault]:
    """Give an endless sequence of faults: all kinds in random order, then again in another. `cells`: their partners.

    The same arguments give the same sequence.
    """
    dice = random.Random(seed)
    number = 0
    while True:
        for kind in dice.sample(kinds, len(kinds)):
            struck = any(strike.target in _OF_A_CELL for strike in kind.strikes)
            cell = dice.choice(sorted(cells))
            partner = dice.choice(sorted(cells[cell]))
            yield Fault(
                number,
                kind,
                cell if struck else None,
                partner if any(strike.target is Target.WORKER for strike in kind.strikes) else None,
                dice.randint(*limits.SOAK_CALM_MS),
                tuple(
                    Blows(strike.target, strike.blow, dice.randint(*strike.after_ms), dice.randint(*strike.stop_ms))
                    for strike in kind.strikes
                ),
            )
            number += 1


def table() -> str:
    """Write the table as Markdown, for docs/soak.md."""
    lines = [
        "| Fault | Its partner | Others of its cell | Other cells | All as ever within |",
        "|---|---|---|---|---|",
    ]
    for kind in KINDS:
        cells = [in_words(excuses) for excuses in (kind.own, kind.cell, kind.others)]
        lines.append(f"| {kind.name} | {' | '.join(cells)} | {kind.goal_ms / 1_000:g} s |")
    return "\n".join(lines)


def in_words(excuses: Excuses) -> str:
    """Say what may be got beside what should be."""
    return "at most a delay" if not excuses else "; ".join(excuse.value for excuse in Excuse if excuse in excuses)
