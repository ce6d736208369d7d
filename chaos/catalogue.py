"""The table of experiments: what each does to whom, what may be noticed of it, by what the gateway shows it. Pure.

Each row becomes a Chaos Toolkit experiment in `chaos/experiments/`: `python -m chaos.catalogue` writes them anew, and a
test holds them and the table in docs/chaos.md against the rows. What a row says beside the toolkit's own format stands
in the file's `extensions`, and is read back from there, so an experiment may also be written by hand.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import orjson

from actors import limits as actor_limits
from cells.api import limits as api_limits
from chaos import limits
from chaos.faults import (
    DELAYED,
    IS_CROWDED,
    IS_LIMITED,
    MAY_CUT_OFF,
    MAY_PEND,
    MAY_REFUSE,
    NO_ERROR,
    Excuse,
    Excuses,
    in_words,
)
from chaos.needs import Need, Needs
from chaos.toxics import Bandwidth, Latency, ResetPeer, Slicer, Stream, Tamper, Toxic

FOLDER: Final = Path(__file__).parent / "experiments"
EXTENSION: Final = "bulkhead"
_TAG: Final = "bulkhead"


class Scope(StrEnum):
    """Whom an experiment strikes: its target. The others are those of the same cell, and those of other cells."""

    NOBODY = "nobody"
    PARTNER = "partner"
    POOL = "pool"
    CELL = "cell"
    ALL = "all"


class CatalogueError(Exception):
    """There is no such experiment, or its file can't be read as one."""


@dataclass(frozen=True, slots=True)
class Sign:
    """By what the gateway itself shows a fault: a line of a log, a metric of the routers that rises, or its status.

    `kind`: log, metric, breaker or control_plane. `name`: the event, or the metric. `where`: fields of the line, or
    labels. `${cell}` and `${partner}` stand for the target's. `log`: whose log file, as a pattern.
    """

    kind: str
    name: str = ""
    log: str = ""
    where: tuple[tuple[str, str], ...] = ()

    def of(self, cell: str, partner: str) -> "Sign":
        """Give it for a certain target."""

        def fill(text: str) -> str:
            return text.replace("${cell}", cell).replace("${partner}", partner)

        return Sign(self.kind, self.name, fill(self.log), tuple((name, fill(value)) for name, value in self.where))


@dataclass(frozen=True, slots=True)
class Activity:
    """A function of chaos.actions and its arguments."""

    name: str
    function: str
    arguments: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Experiment:
    """A row of the table. `goal_ms`: so long after the fault's begin, or its end, everybody is served as ever.

    `needs`: what not every gateway or machine has. `begin`: what is done; `end`: what takes it away again, None where
    it is over at once. `fails_after_ms`: the target's acquirer fails whatever it is asked, each time after so long, so
    that its breaker has to open; None: it does not. `partners_in_cell`: so many live in the target's cell.
    """

    name: str
    title: str
    scope: Scope
    own: Excuses
    cell: Excuses
    others: Excuses
    goal_ms: int
    begin: Activity | None = None
    end: Activity | None = None
    goal_from_end: bool = False
    signs: tuple[Sign, ...] = ()
    needs: Needs = frozenset()
    fails_after_ms: int | None = None
    partners_in_cell: int = limits.CHAOS_PARTNERS_PER_CELL

    def excuses(self, group: "Group") -> Excuses:
        """Give what a group of partners may get while the fault lasts."""
        return {Group.TARGET: self.own, Group.CELL: self.cell, Group.OTHERS: self.others}[group]


class Group(StrEnum):
    """Partners, as they stand to the target."""

    TARGET = "target"
    CELL = "same cell"
    OTHERS = "other cells"


def group_of(scope: Scope, partner: str, cell: str, target: str, target_cell: str) -> Group:
    """Say how a partner stands to the target."""
    if scope is Scope.ALL or (scope in {Scope.PARTNER, Scope.POOL} and partner == target):
        return Group.TARGET
    if scope is Scope.NOBODY or cell != target_cell:
        return Group.OTHERS
    return Group.TARGET if scope is Scope.CELL else Group.CELL


def _act(name: str, function: str, **arguments: Any) -> Activity:
    return Activity(name, function, tuple(arguments.items()))


def _kill(what: str, target: str) -> Activity:
    return _act(f"kill {what}", "kill", target=target, cell="${cell}", partner="${partner}")


def _stop(what: str, target: str) -> tuple[Activity, Activity]:
    return (
        _act(f"stop {what}", "stop", target=target, cell="${cell}", partner="${partner}"),
        _act(f"let {what} go on", "restore"),
    )


def _bank(mode: str, **more: Any) -> tuple[Activity, Activity]:
    return (
        _act(f"the acquirer: {mode}", "set_acquirer_fault", partner="${partner}", mode=mode, **more),
        _act("the acquirer is well again", "restore"),
    )


def _flood(
    per_second: float,
    mix: str,
    *,
    rate_per_second: int = actor_limits.RATE_PER_SECOND_MAX,
    rate_burst: int = actor_limits.RATE_BURST_MAX,
    in_flight_max: int = api_limits.PARTNER_IN_FLIGHT_DEFAULT,
) -> tuple[Activity, Activity]:
    return (
        _act(
            "flood",
            "start_flood",
            partner="${partner}",
            per_second=per_second,
            mix=mix,
            rate_per_second=rate_per_second,
            rate_burst=rate_burst,
            in_flight_max=in_flight_max,
        ),
        _act("the flood ends", "restore"),
    )


def _disk(fault: str) -> tuple[Activity, Activity]:
    return (
        _act(f"the cell's disk: {fault}", "spoil_disk", cell="${cell}", fault=fault),
        _act("the disk is well again", "restore"),
    )


def _network(what: str, *toxics: Toxic) -> tuple[Activity, Activity]:
    return (
        _act(f"the cell's network: {what}", "spoil_network", cell="${cell}", toxics=[one.fields() for one in toxics]),
        _act("the network is well again", "restore"),
    )


def _clock(offset_s: int) -> tuple[Activity, Activity]:
    return (
        _act(f"the clock jumps by {offset_s} s", "move_clock", offset_s=offset_s),
        _act("the clock is right again", "restore"),
    )


def _ended(child: str) -> Sign:
    return Sign("log", "process_ended", "control_plane", (("child", child),))


_WORKER_DEAD: Final = Sign("log", "worker_dead", "${cell}.door")
_NO_OUTCOME: Final = Sign("log", "acquirer_gave_no_outcome", "${cell}.worker-*", (("partner", "${partner}"),))
_BREAKER: Final = Sign("breaker")
_LIMITED: Final = Sign(
    "metric",
    "bulkhead_router_partner_requests_total",
    where=(("partner", "${partner}"), ("outcome", "429")),
)
_STORE_AWAY: Final = (
    Sign("log", "partner_unavailable", "cell-*.door"),
    Sign("log", "commit_failed", "cell-*.worker-*"),
)
_CELL_LOST: Final = Sign("log", "cell_lost", "router-*", (("cell", "${cell}"),))
_BOTH_WAYS: Final[tuple[Stream, Stream]] = ("upstream", "downstream")
_SLOW: Final = [
    Latency(stream=way, latency=limits.CHAOS_NETWORK_DELAY_MS, jitter=limits.CHAOS_NETWORK_JITTER_MS)
    for way in _BOTH_WAYS
]
_CUT: Final = [Bandwidth(stream=way, rate=0) for way in _BOTH_WAYS]
_RESET: Final = [ResetPeer(stream=way) for way in _BOTH_WAYS]
_SLICED: Final = [
    Slicer(
        stream=way,
        average_size=limits.CHAOS_SLICE_BYTES,
        size_variation=limits.CHAOS_SLICE_VARIATION_BYTES,
        delay=limits.CHAOS_SLICE_PAUSE_US,
    )
    for way in _BOTH_WAYS
]
_TAMPERED: Final = [
    Tamper(name=f"tamper_{way}_{stream}", stream=stream, way=way, every=limits.CHAOS_TAMPER_EVERY)
    for stream in _BOTH_WAYS
    for way in ("flip", "replay", "drop", "inject")
]
_PROXIES: Final = frozenset({Need.FAULT_PROXIES})
_DISK: Final = frozenset({Need.SQLITE, Need.STRACE})
_CLOCK: Final = frozenset({Need.CLOCK})
_ORDERS: Final = frozenset({Need.FAULT_INJECTION})
_OWN_FDB: Final = frozenset({Need.FDB_SERVER})
_UP_MS: Final = limits.GOAL_CONTROL_PLANE_STARTS_MS
_TIMES_OUT_MS: Final = actor_limits.ACQUIRER_TIMEOUT_MS
_BANK_MS: Final = limits.GOAL_ACQUIRER_MS
# The second death of a worker finds the spare used up.
_REPLACED_MS: Final = limits.GOAL_WORKER_KILLED_MS + limits.GOAL_WORKER_STARTS_MS

# fmt: off
EXPERIMENTS: Final = (
    Experiment("no-fault", "Nothing is done: what this machine's noise looks like", Scope.NOBODY,
               NO_ERROR, NO_ERROR, NO_ERROR, 0),
    # One partner.
    Experiment("worker-killed", "A partner's worker is killed", Scope.PARTNER,
               DELAYED, NO_ERROR, NO_ERROR, limits.GOAL_WORKER_KILLED_MS,
               _kill("the worker", "worker"), signs=(_WORKER_DEAD,)),
    Experiment("pool-killed", "The worker that some partners share is killed", Scope.POOL,
               DELAYED, NO_ERROR, NO_ERROR, limits.GOAL_WORKER_KILLED_MS,
               _kill("the pool", "worker"), signs=(_WORKER_DEAD,)),
    Experiment("worker-stopped", "A partner's worker is stopped, and goes on later", Scope.PARTNER,
               DELAYED, NO_ERROR, NO_ERROR, limits.GOAL_SILENT_FOUND_MS + limits.GOAL_WORKER_KILLED_MS,
               *_stop("the worker", "worker"), signs=(_WORKER_DEAD,)),
    Experiment("poison-command", "A command of a partner ends whatever worker decides it", Scope.PARTNER,
               MAY_REFUSE, NO_ERROR, NO_ERROR, _REPLACED_MS,
               _act("a poison command", "order_fault", partner="${partner}", fault="crash"),
               signs=(_WORKER_DEAD,), needs=_ORDERS),
    Experiment("worker-looping", "A command of a partner keeps its worker on a CPU for ever", Scope.PARTNER,
               MAY_REFUSE, NO_ERROR, NO_ERROR, 2 * limits.GOAL_SILENT_FOUND_MS + _REPLACED_MS,
               _act("a command that loops", "order_fault", partner="${partner}", fault="loop"),
               signs=(_WORKER_DEAD,), needs=_ORDERS),
    Experiment("worker-leaking", "A command of a partner lets its worker take memory and keep it", Scope.PARTNER,
               MAY_REFUSE, NO_ERROR, NO_ERROR, 2 * limits.GOAL_SILENT_FOUND_MS + _REPLACED_MS,
               _act("a command that leaks", "order_fault", partner="${partner}", fault="leak:600"),
               signs=(_WORKER_DEAD,), needs=_ORDERS),
    Experiment("flood", "A partner floods at 50 times its limit", Scope.PARTNER,
               IS_LIMITED, NO_ERROR, NO_ERROR, limits.FLOOD_RECOVERY_MS,
               *_flood(limits.CHAOS_RATE_PER_SECOND * limits.CHAOS_FLOOD_FACTOR, "flood",
                       rate_per_second=limits.CHAOS_RATE_PER_SECOND, rate_burst=limits.CHAOS_RATE_BURST),
               goal_from_end=True, signs=(_LIMITED,)),
    Experiment("flood-in-flight", "A partner has more payments in flight than it may", Scope.PARTNER,
               IS_LIMITED, NO_ERROR, NO_ERROR, limits.FLOOD_RECOVERY_MS,
               *_flood(limits.CHAOS_IN_FLIGHT_PER_SECOND, "slow_flood", in_flight_max=limits.CHAOS_IN_FLIGHT_MAX),
               goal_from_end=True, signs=(_LIMITED,)),
    Experiment("flood-share", "A partner without limits of its own sends more than its acquirer takes", Scope.PARTNER,
               IS_LIMITED | MAY_PEND, NO_ERROR, NO_ERROR, limits.CHAOS_BACKLOG_MS + limits.FLOOD_RECOVERY_MS,
               *_flood(limits.CHAOS_SHARE_PER_SECOND, "slow_flood", in_flight_max=actor_limits.IN_FLIGHT_MAX),
               goal_from_end=True, signs=(_LIMITED,)),
    Experiment("flood-bad-keys", "Somebody floods with keys that are none", Scope.NOBODY,
               NO_ERROR, NO_ERROR, NO_ERROR, limits.GOAL_WORKER_KILLED_MS,
               _act("flood with bad keys", "start_flood_of_bad_keys"), _act("the flood ends", "restore"),
               goal_from_end=True,
               signs=(Sign("metric", "bulkhead_router_requests_total", where=(("status", "401"),)),)),
    Experiment("stranger-at-the-door", "Somebody without a key begins much at a router, and finishes nothing",
               Scope.NOBODY, NO_ERROR, NO_ERROR, NO_ERROR, limits.GOAL_WORKER_KILLED_MS,
               _act("begin without an end", "start_stranger"), _act("the stranger goes", "restore"),
               goal_from_end=True,
               signs=(Sign("metric", "bulkhead_router_requests_total", where=(("status", "429"),)),)),
    Experiment("hostile-partner", "A partner sends its worst at its full limit, on many connections", Scope.PARTNER,
               IS_LIMITED, NO_ERROR, NO_ERROR, limits.FLOOD_RECOVERY_MS,
               _act("attack the router", "start_hostile_partner", partner="${partner}"),
               _act("the attack ends", "restore"), goal_from_end=True,
               signs=(Sign("metric", "bulkhead_router_partner_requests_total",
                           where=(("partner", "${partner}"), ("outcome", "4xx"))),)),
    Experiment("acquirer-hanging", "A partner's acquirer does not answer", Scope.PARTNER,
               MAY_PEND, NO_ERROR, NO_ERROR, _BANK_MS, *_bank("hang"), goal_from_end=True,
               signs=(_NO_OUTCOME, _BREAKER), fails_after_ms=_TIMES_OUT_MS),
    Experiment("acquirer-slow", "A partner's acquirer takes two seconds for each answer", Scope.PARTNER,
               MAY_PEND, NO_ERROR, NO_ERROR, _BANK_MS,
               *_bank("slow", delay_ms=limits.ACQUIRER_SLOW_MS), goal_from_end=True),
    Experiment("acquirer-failing", "A partner's acquirer fails", Scope.PARTNER,
               MAY_PEND, NO_ERROR, NO_ERROR, _BANK_MS, *_bank("refuse"), goal_from_end=True,
               signs=(_NO_OUTCOME, _BREAKER), fails_after_ms=0),
    Experiment("acquirer-garbage", "A partner's acquirer charges and answers garbage", Scope.PARTNER,
               MAY_PEND, NO_ERROR, NO_ERROR, _BANK_MS, *_bank("garbage"), goal_from_end=True,
               signs=(_NO_OUTCOME, _BREAKER), fails_after_ms=0),
    Experiment("acquirer-silent", "A partner's acquirer charges and does not answer", Scope.PARTNER,
               MAY_PEND, NO_ERROR, NO_ERROR, _BANK_MS, *_bank("silent"), goal_from_end=True,
               signs=(_NO_OUTCOME, _BREAKER), fails_after_ms=_TIMES_OUT_MS),
    Experiment("book-corrupted", "A partner's book is damaged on the disk, and put back later", Scope.PARTNER,
               MAY_REFUSE, NO_ERROR, NO_ERROR, limits.GOAL_DISK_MS,
               _act("damage the book", "damage_book", partner="${partner}", damage="PAGES"),
               _act("put the book back", "restore"), goal_from_end=True,
               signs=(Sign("log", "partner_unavailable", "${cell}.door", (("partner", "${partner}"),)),),
               needs=frozenset({Need.SQLITE})),
    # One cell.
    Experiment("door-killed", "A cell's door is killed", Scope.CELL,
               DELAYED, DELAYED, NO_ERROR, limits.GOAL_DOOR_KILLED_MS,
               _kill("the door", "door"), signs=(_ended("${cell}.door"),)),
    Experiment("door-stopped", "A cell's door is stopped, and goes on later", Scope.CELL,
               DELAYED, DELAYED, NO_ERROR, limits.GOAL_STOPPED_FOUND_MS + limits.GOAL_DOOR_KILLED_MS,
               *_stop("the door", "door"), signs=(_ended("${cell}.door"),)),
    Experiment("cell-hung", "A cell's door is stopped, nobody finds it, and its partners go on sending", Scope.CELL,
               IS_CROWDED, IS_CROWDED, NO_ERROR, limits.GOAL_CELL_HUNG_MS,
               _act("stop the door and who would replace it", "hang_cell", cell="${cell}",
                    per_second=limits.CHAOS_HUNG_PER_SECOND),
               _act("let them go on", "restore"), goal_from_end=True,
               signs=(Sign("metric", "bulkhead_router_requests_total", where=(("status", "503"),)),),
               partners_in_cell=limits.CHAOS_HUNG_PARTNERS),
    Experiment("ray-head-killed", "A cell's Ray head is killed", Scope.CELL,
               MAY_REFUSE, MAY_REFUSE, NO_ERROR, limits.GOAL_CELL_KILLED_MS,
               _kill("the Ray head", "Ray head"), signs=(_ended("${cell}.ray"),)),
    Experiment("stranger-at-ray", "A stranger on the machine sends a cell's GCS what ends it, eight times", Scope.CELL,
               NO_ERROR, NO_ERROR, NO_ERROR, limits.GOAL_CELL_KILLED_MS,
               _act("send empty streams to the GCS", "send_empty_streams", cell="${cell}"),
               signs=(Sign("log", "part_ended", "control_plane", (("child", "${cell}.ray"),)),)),
    Experiment("raylet-killed", "A cell's raylet is killed", Scope.CELL,
               MAY_REFUSE, MAY_REFUSE, NO_ERROR, limits.GOAL_CELL_KILLED_MS,
               _kill("the raylet", "raylet"), signs=(_ended("${cell}.ray"),)),
    Experiment("cell-killed", "All processes of a cell are killed at once", Scope.CELL,
               MAY_REFUSE, MAY_REFUSE, NO_ERROR, limits.GOAL_CELL_KILLED_MS,
               _kill("the cell", "cell"), signs=(_ended("${cell}.door"), _ended("${cell}.ray"))),
    Experiment("disk-full", "A cell's disk is full for a while", Scope.CELL,
               MAY_REFUSE, MAY_REFUSE, NO_ERROR, limits.GOAL_DISK_MS, *_disk("full"), goal_from_end=True,
               signs=(Sign("log", "commit_failed", "${cell}.worker-*"),), needs=_DISK),
    Experiment("fsync-slow", "Each fsync of a cell's disk takes 0.3 s longer", Scope.CELL,
               DELAYED, DELAYED, NO_ERROR, limits.GOAL_DISK_MS, *_disk("slow"), goal_from_end=True, needs=_DISK),
    Experiment("network-slow", "The network between routers and a cell takes 0.25 s each way", Scope.CELL,
               DELAYED, DELAYED, NO_ERROR, limits.GOAL_NETWORK_MS,
               *_network("slow", *_SLOW), goal_from_end=True, needs=_PROXIES),
    Experiment("network-cut", "The network between routers and a cell lets nothing through", Scope.CELL,
               MAY_REFUSE, MAY_REFUSE, NO_ERROR, limits.GOAL_NETWORK_MS,
               *_network("cut", *_CUT), goal_from_end=True, needs=_PROXIES),
    Experiment("network-reset", "The network between routers and a cell resets each connection", Scope.CELL,
               MAY_REFUSE, MAY_REFUSE, NO_ERROR, limits.GOAL_NETWORK_MS,
               *_network("reset", *_RESET), goal_from_end=True, signs=(_CELL_LOST,), needs=_PROXIES),
    Experiment("network-slicing", "The network between routers and a cell delivers frames in slices", Scope.CELL,
               NO_ERROR, NO_ERROR, NO_ERROR, limits.GOAL_NETWORK_MS,
               *_network("slices", *_SLICED), goal_from_end=True, needs=_PROXIES),
    Experiment("relay-tampering", "A relay between routers and a cell tampers with frames", Scope.CELL,
               MAY_REFUSE, MAY_REFUSE, NO_ERROR, limits.GOAL_NETWORK_MS,
               *_network("tampered with", *_TAMPERED), goal_from_end=True,
               signs=(Sign("log", "client_refused", "${cell}.door"), _CELL_LOST), needs=_PROXIES),
    # What all share.
    Experiment("router-killed", "A router is killed", Scope.ALL,
               MAY_CUT_OFF, MAY_CUT_OFF, MAY_CUT_OFF, limits.GOAL_ROUTER_KILLED_MS,
               _kill("the router", "router"), signs=(_ended("router-0"),)),
    Experiment("control-plane-killed", "The control plane is killed, and started again later", Scope.ALL,
               NO_ERROR, NO_ERROR, NO_ERROR, _UP_MS,
               _act("kill the control plane", "kill_control_plane"),
               _act("start the control plane again", "restore"), goal_from_end=True, signs=(Sign("control_plane"),)),
    Experiment("redis-killed", "The installation's Redis is killed", Scope.ALL,
               NO_ERROR, NO_ERROR, NO_ERROR, limits.GOAL_REDIS_MS,
               _kill("Redis", "redis"), signs=(_ended("redis"),)),
    Experiment("redis-stopped", "The installation's Redis is stopped, and goes on later", Scope.ALL,
               NO_ERROR, NO_ERROR, NO_ERROR, limits.GOAL_REDIS_MS,
               *_stop("Redis", "redis"), signs=(_ended("redis"),)),
    Experiment("clock-forward", "The clock of all but the acquirer jumps an hour forward, and back later", Scope.ALL,
               NO_ERROR, NO_ERROR, NO_ERROR, limits.GOAL_CLOCK_MS,
               *_clock(limits.CHAOS_CLOCK_JUMP_S), goal_from_end=True, needs=_CLOCK),
    Experiment("clock-back", "The clock of all but the acquirer jumps an hour back, and forward later", Scope.ALL,
               NO_ERROR, NO_ERROR, NO_ERROR, limits.GOAL_CLOCK_MS,
               *_clock(-limits.CHAOS_CLOCK_JUMP_S), goal_from_end=True, needs=_CLOCK),
    Experiment("fdb-server-killed", "The only FoundationDB server is killed, and started again later", Scope.ALL,
               MAY_REFUSE, MAY_REFUSE, MAY_REFUSE, limits.GOAL_FDB_SERVER_BACK_MS,
               _act("kill the server", "kill_fdb_server"),
               _act("start the server again", "restore"), goal_from_end=True, needs=_OWN_FDB,
               signs=_STORE_AWAY),
    Experiment("fdb-server-stopped", "The only FoundationDB server is stopped, and goes on later", Scope.ALL,
               MAY_REFUSE, MAY_REFUSE, MAY_REFUSE, limits.GOAL_FDB_SERVER_BACK_MS,
               *_stop("the server", "FoundationDB server"), goal_from_end=True, needs=_OWN_FDB,
               signs=_STORE_AWAY),
)
# fmt: on


# Chaos Toolkit's format: https://chaostoolkit.org/reference/api/experiment/

_CONFIGURATION: Final[dict[str, tuple[str, str]]] = {
    # name -> type, default
    "data_folder": ("str", "data"),
    "cell": ("str", ""),
    "partner": ("str", ""),
    "duration_s": ("float", f"{limits.CHAOS_DURATION_S:g}"),
    "load_per_second": ("float", f"{limits.CHAOS_LOAD_PER_SECOND:g}"),
    "seed": ("int", "1"),
    "patience": ("float", "1"),
    "own": ("bool", "false"),
    "force": ("bool", "false"),
    "runs_folder": ("str", "chaos-runs"),
    "bulkheads_off": ("str", ""),
}


def document(experiment: Experiment) -> dict[str, Any]:
    """Write a row as a Chaos Toolkit experiment."""
    steps = [experiment.begin] if experiment.begin is not None else []
    steps += [_act("hold", "hold", seconds="${duration_s}")]
    steps += [experiment.end] if experiment.end is not None else []
    steps += [_act("wait until all is as ever", "recover"), _act("calm again", "calm")]
    return {
        "version": "1.0.0",
        "title": experiment.title,
        "description": _description(experiment),
        "tags": [_TAG, f"scope:{experiment.scope}"],
        "contributions": {"reliability": "high", "availability": "high"},
        "configuration": {
            name: {
                "type": "env",
                "key": f"BULKHEAD_CHAOS_{name.upper()}",
                "env_var_type": kind,
                "default": _typed(kind, default),
            }
            for name, (kind, default) in _CONFIGURATION.items()
        },
        "runtime": {"hypothesis": {"strategy": "continuously"}, "rollbacks": {"strategy": "always"}},
        "extensions": [_extension(experiment)],
        "controls": [{"name": "bulkhead", "provider": {"type": "python", "module": "chaos.controls"}}],
        "steady-state-hypothesis": {
            "title": "Who is not struck is served as ever",
            "probes": [
                _probe("every cell that is not struck answers", "cells_answer"),
                _probe("no bystander has met an error", "bystanders_unharmed"),
            ],
        },
        "method": [_action(step) for step in steps],
        "rollbacks": [_action(_act("take away what is left of the fault", "restore"))],
    }


def _description(experiment: Experiment) -> str:
    groups = ((Group.TARGET, "the target"), (Group.CELL, "others of its cell"), (Group.OTHERS, "other cells"))
    said = [f"{words}: {in_words(experiment.excuses(group))}" for group, words in groups]
    return f"Strikes {experiment.scope}. May be noticed by {'; by '.join(said)}."


def _extension(experiment: Experiment) -> dict[str, Any]:
    allows = {group.name.lower(): sorted(one.name for one in experiment.excuses(group)) for group in Group}
    return {
        "name": EXTENSION,
        "experiment": experiment.name,
        "scope": experiment.scope.value,
        "allows": allows,
        "goal_ms": experiment.goal_ms,
        "goal_from_end": experiment.goal_from_end,
        "needs": sorted(need.name for need in experiment.needs),
        **({} if experiment.fails_after_ms is None else {"fails_after_ms": experiment.fails_after_ms}),
        **(
            {}
            if experiment.partners_in_cell == limits.CHAOS_PARTNERS_PER_CELL
            else {"partners_in_cell": experiment.partners_in_cell}
        ),
        "signs": [
            {"kind": sign.kind, "name": sign.name, "log": sign.log, "where": dict(sign.where)}
            for sign in experiment.signs
        ],
    }


def _typed(kind: str, text: str) -> Any:
    match kind:
        case "float":
            return float(text)
        case "int":
            return int(text)
        case "bool":
            return text == "true"
        case _:
            return text


def _action(activity: Activity) -> dict[str, Any]:
    provider: dict[str, Any] = {"type": "python", "module": "chaos.actions", "func": activity.function}
    if activity.arguments:
        provider["arguments"] = dict(activity.arguments)
    return {"type": "action", "name": activity.name, "provider": provider}


def _probe(name: str, function: str) -> dict[str, Any]:
    provider = {"type": "python", "module": "chaos.probes", "func": function}
    return {"type": "probe", "name": name, "tolerance": True, "provider": provider}


def read(found: Mapping[str, Any], where: str = "the experiment") -> Experiment:
    """Read what an experiment's file says of what it strikes and what is allowed. Raises CatalogueError."""
    for extension in found.get("extensions") or []:
        if extension.get("name") == EXTENSION:
            break
    else:
        raise CatalogueError(f"{where} has no extension {EXTENSION!r}: see docs/chaos.md")
    try:
        own, cell, others = (
            frozenset(Excuse[name] for name in extension["allows"][group.name.lower()]) for group in Group
        )
        signs = [
            Sign(str(sign["kind"]), str(sign["name"]), str(sign["log"]), tuple(dict(sign["where"]).items()))
            for sign in extension["signs"]
        ]
        return Experiment(
            name=str(extension["experiment"]),
            title=str(found["title"]),
            scope=Scope(extension["scope"]),
            own=own,
            cell=cell,
            others=others,
            goal_ms=int(extension["goal_ms"]),
            goal_from_end=bool(extension["goal_from_end"]),
            signs=tuple(signs),
            needs=frozenset(Need[name] for name in extension["needs"]),
            fails_after_ms=int(extension["fails_after_ms"]) if "fails_after_ms" in extension else None,
            partners_in_cell=int(extension.get("partners_in_cell", limits.CHAOS_PARTNERS_PER_CELL)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CatalogueError(f"{where}: its extension {EXTENSION!r} can't be read: {error!r}") from error


def load(name: str) -> dict[str, Any]:
    """Give an experiment's file. Raises CatalogueError."""
    if name not in names():
        raise CatalogueError(f"there is no experiment {name!r}; there are {', '.join(names())}")
    found = orjson.loads(file_of(name).read_bytes())
    assert isinstance(found, dict)
    return found


def file_of(name: str) -> Path:
    """Say where an experiment's file is."""
    return FOLDER / f"{name}.json"


def names() -> list[str]:
    """Name all experiments: those of the table in its order, then what else has a file."""
    there = {file.stem for file in FOLDER.glob("*.json")}
    of_table = [experiment.name for experiment in EXPERIMENTS if experiment.name in there]
    return [*of_table, *sorted(there.difference(of_table))]


def files() -> Iterator[tuple[Path, bytes]]:
    """Give each row's file and what is to stand in it."""
    for experiment in EXPERIMENTS:
        yield (
            file_of(experiment.name),
            orjson.dumps(document(experiment), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE),
        )


def table() -> str:
    """Write the table as Markdown, for docs/chaos.md."""
    heads = ("Experiment", "Does", "Target", "The target sees", "Others of its cell", "Other cells", "As ever within")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for experiment in EXPERIMENTS:
        allowed = [in_words(experiment.excuses(group)) if _has(experiment, group) else "-" for group in Group]
        after = " of its end" if experiment.goal_from_end else ""
        goal = f"{experiment.goal_ms / 1_000:g} s{after}" if experiment.goal_ms else "-"
        lines.append(
            f"| `{experiment.name}` | {experiment.title} | {experiment.scope} | {' | '.join(allowed)} | {goal} |"
        )
    return "\n".join(lines)


def _has(experiment: Experiment, group: Group) -> bool:
    """Say whether there is anybody in this group."""
    match experiment.scope:
        case Scope.NOBODY:
            return group is Group.OTHERS
        case Scope.PARTNER | Scope.POOL:
            return True
        case Scope.CELL:
            return group is not Group.CELL
        case Scope.ALL:
            return group is Group.TARGET


def main() -> None:
    """Write all files anew, and print the table for docs/chaos.md."""
    FOLDER.mkdir(exist_ok=True)
    for file, content in files():
        file.write_bytes(content)
    sys.stdout.write(table() + "\n")


if __name__ == "__main__":
    main()
