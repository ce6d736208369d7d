"""The demo's report: figures per partner, what it cost bystanders, whether all was contained. Pure; shows nothing."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from chaos import limits
from chaos.checker import (
    NO_LATENCY,
    Judgement,
    Latency,
    Role,
    calm_range_ms,
    error_of,
    latency,
    within_calm_range,
)
from chaos.drama import Cast, Timeline
from chaos.history import Call
from chaos.offenders import name_of

_ERRORS_SHOWN_MAX = 20


@dataclass(frozen=True, slots=True)
class Moments:
    """When what really happened, on the monotonic clock (seconds): a plan is one thing, its execution another."""

    begin_s: float
    kill_s: float
    flood_s: float
    hang_s: float
    flood_end_s: float
    hang_end_s: float
    end_s: float

    @property
    def trouble_end_s(self) -> float:
        """When the last fault was taken away."""
        return max(self.flood_end_s, self.hang_end_s)


@dataclass(slots=True)
class Row:
    """One partner's figures. `own_trouble`: refused because of what went wrong with it itself, other than by 429."""

    partner: str
    cell: str
    role: Role
    sent: int = 0
    acknowledged: int = 0
    refused_as_due: int = 0
    refused_429: int = 0
    own_trouble: int = 0
    errors: list[str] = field(default_factory=list)
    calm: Latency = NO_LATENCY
    trouble: Latency = NO_LATENCY

    @property
    def undisturbed(self) -> bool | None:
        """Whether its tail in trouble lies within its calm range; None where that can't be told."""
        return within_calm_range(self.calm, self.trouble)


@dataclass(slots=True)
class Verdict:
    """What was not contained, and what can't be told."""

    broken: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @property
    def word(self) -> str:
        """`contained`, `not contained` or `unknown`."""
        return "not contained" if self.broken else "unknown" if self.unknown else "contained"

    def require(self, condition: bool | None, what: str) -> None:
        """Take note of a condition that does not hold, or can't be told."""
        if condition is None:
            self.unknown.append(what)
        elif not condition:
            self.broken.append(what)


def rows_of(calls: Sequence[Call], cast: Cast, moments: Moments) -> list[Row]:
    """Sum up all first attempts, by partner."""
    by_partner: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        if not call.repeat:
            by_partner[call.partner].append(call)
    rows = []
    for partner in sorted(cast.cells, key=lambda name: (cast.cells[name], name)):
        row = Row(partner, cast.cells[partner], cast.role(partner))
        for call in by_partner[partner]:
            _count(row, call, moments)
        row.calm = latency(_within(by_partner[partner], _warm_s(moments), moments.kill_s))
        row.trouble = latency(_within(by_partner[partner], moments.kill_s, moments.trouble_end_s))
        rows.append(row)
    return rows


def _warm_s(moments: Moments) -> float:
    return moments.begin_s + limits.WARM_UP_MS / 1_000


def _within(calls: Iterable[Call], begin_s: float, end_s: float) -> list[Call]:
    return [call for call in calls if begin_s <= call.due_s < end_s]


def _count(row: Row, call: Call, moments: Moments) -> None:
    row.sent += 1
    error = error_of(call, row.role, in_trouble=_is_excused(row.role, call, moments))
    if error is not None:
        row.errors.append(f"{call.due_s - moments.begin_s:.1f} s {name_of(call)}: {error}")
    elif call.acknowledged:
        row.acknowledged += 1
    elif call.outcome in call.expected:
        row.refused_as_due += 1
    elif call.status == 429:
        row.refused_429 += 1
    else:
        row.own_trouble += 1


def _is_excused(role: Role, call: Call, moments: Moments) -> bool:
    """Say whether the partner's own trouble may be what the call met."""
    if call.answered_s is None:
        return False
    if role is Role.FLOODING:
        after_s = limits.FLOOD_RECOVERY_MS / 1_000
        return call.answered_s >= moments.flood_s and call.due_s <= moments.flood_end_s + after_s
    if role is Role.HANGING:
        # What it left open is settled with growing pauses, so it lasts until all is calm.
        return call.answered_s >= moments.hang_s
    return False


def killed_delay(calls: Sequence[Call], cast: Cast, moments: Moments) -> Latency:
    """Give how long the killed partner's calls took that were under way at the kill, or due soon after."""
    look_s = limits.KILL_LOOK_MS / 1_000
    return latency(
        call
        for call in calls
        if call.partner == cast.killed
        and not call.repeat
        and call.answered_s is not None
        and call.answered_s >= moments.kill_s
        and call.due_s < moments.kill_s + look_s
    )


def bystander_groups(rows: Sequence[Row], calls: Sequence[Call], cast: Cast, moments: Moments) -> list[dict[str, Any]]:
    """Sum up bystanders who share a cell with a victim, and those who don't."""
    groups: list[dict[str, Any]] = []
    for name, shares in (("in a victim's cell", True), ("in other cells", False)):
        members = [row for row in rows if row.role is Role.BYSTANDER and (row.cell in cast.troubled_cells) is shares]
        names = {row.partner for row in members}
        theirs = [call for call in calls if call.partner in names and not call.repeat]
        groups.append(
            {
                "group": name,
                "partners": len(members),
                "sent": sum(row.sent for row in members),
                "errors": sum(len(row.errors) for row in members),
                "outside_calm_range": [row.partner for row in members if row.undisturbed is False],
                "calm": asdict(latency(_within(theirs, _warm_s(moments), moments.kill_s))),
                "trouble": asdict(latency(_within(theirs, moments.kill_s, moments.trouble_end_s))),
            }
        )
    for group in groups:
        group["undisturbed"] = within_calm_range(Latency(**group["calm"]), Latency(**group["trouble"]))
    return groups


def judge(
    rows: Sequence[Row],
    delay: Latency,
    takeovers: int,
    money: Judgement,
    audit: dict[str, Any],
    others_cores: dict[str, float],
    leftovers: Sequence[str] = (),
    groups: Sequence[dict[str, Any]] = (),
) -> Verdict:
    """Say whether everything was contained and all books agree.

    Where other programs took much more of the machine in trouble than in calm, latencies tell nothing about ours.
    """
    verdict = Verdict()
    is_noisy = others_cores["trouble"] - others_cores["calm"] > limits.OTHERS_CORES_MORE_MAX
    for row in rows:
        verdict.require(not row.errors, f"{row.partner} ({row.role}): {len(row.errors)} errors")
        if row.role is Role.BYSTANDER:
            bound_ms = calm_range_ms(row.calm)
            said = "too few calls to tell" if bound_ms is None else f"{bound_ms:.0f} ms was its range"
            trouble_ms = row.trouble.tail_ms
            spent = "no tail" if trouble_ms is None else f"tail {trouble_ms:.0f} ms"
            within = None if is_noisy and row.undisturbed is False else row.undisturbed
            verdict.require(within, f"{row.partner}: {spent} in trouble, {said}")
    for group in groups:
        within = None if is_noisy and group["undisturbed"] is False else group["undisturbed"]
        verdict.require(within, f"bystanders {group['group']}: their common p99 is outside its calm range")
    if is_noisy and any(row.undisturbed is False for row in rows if row.role is Role.BYSTANDER):
        verdict.unknown.append(f"other programs used {others_cores} cores of this machine: run it again, alone")
    by_role = {row.role: row for row in rows}
    # An experiment that met nobody shows nothing.
    verdict.require(takeovers >= 1, f"{by_role[Role.KILLED].partner}'s worker was not killed, or not replaced")
    fast = None if delay.max_ms is None else delay.max_ms < limits.KILLED_DELAY_MS_MAX
    verdict.require(fast, f"{by_role[Role.KILLED].partner} waited {delay.max_ms} ms when its worker was killed")
    flooding = by_role[Role.FLOODING]
    verdict.require(flooding.refused_429 > flooding.acknowledged, f"{flooding.partner}'s flood was let in")
    hanging = by_role[Role.HANGING]
    verdict.require(hanging.own_trouble > 0 or None, f"{hanging.partner} noticed nothing of its acquirer's hanging")
    verdict.require(audit["ok"], "the audit found books that disagree")
    verdict.broken += [str(finding) for finding in money.findings[:_ERRORS_SHOWN_MAX]]
    verdict.unknown += money.unknowns[:_ERRORS_SHOWN_MAX]
    verdict.require(not leftovers, f"processes were left behind: {', '.join(leftovers)}")
    return verdict


def row_json(row: Row) -> dict[str, Any]:
    """Give one partner's figures as they stand in the report."""
    return {
        **asdict(row),
        "role": row.role.value,
        "errors": len(row.errors),
        "errors_shown": row.errors[:_ERRORS_SHOWN_MAX],
        "calm_range_ms": calm_range_ms(row.calm),
        "undisturbed": row.undisturbed,
    }


def outcomes(calls: Sequence[Call]) -> dict[str, int]:
    """Count all answers in short."""
    return dict(Counter(str(call.outcome or "no answer") for call in calls).most_common())


def moments_json(moments: Moments, timeline: Timeline) -> list[dict[str, Any]]:
    """Give what happened when, in seconds after the load's begin, beside what was planned."""
    happened = {
        "worker killed": (moments.kill_s, timeline.kill_s),
        "flood begins": (moments.flood_s, timeline.flood_s),
        "acquirer hangs": (moments.hang_s, timeline.hang_s),
        "flood ends": (moments.flood_end_s, timeline.flood_end_s),
        "acquirer answers again": (moments.hang_end_s, timeline.hang_end_s),
        "load ends": (moments.end_s, timeline.end_s),
    }
    return [
        {"what": what, "at_s": round(at_s - moments.begin_s, 3), "planned_s": planned_s}
        for what, (at_s, planned_s) in happened.items()
    ]
