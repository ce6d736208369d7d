"""What a fault did to whom, and whether it was contained, from the clients' history. Pure; asks nobody."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final

from chaos import limits
from chaos.catalogue import Experiment, Group, Scope, group_of
from chaos.checker import NO_LATENCY, Judgement, Latency, calm_range_ms, error_of, latency, within_calm_range
from chaos.faults import NO_ERROR
from chaos.history import Call
from chaos.impact import error_under, is_disturbed
from chaos.offenders import Offender, name_of, offender_json
from chaos.report import Verdict
from chaos.signs import Seen


@dataclass(frozen=True, slots=True)
class Target:
    """Whom the fault struck, and where everybody lives (partner -> cell). `mates`: who shares the partner's worker."""

    partner: str
    cell: str
    cells: Mapping[str, str]
    mates: frozenset[str] = frozenset()

    def groups(self, scope: Scope) -> dict[str, Group]:
        """Say how each partner stands to the target."""
        found = {
            partner: group_of(scope, partner, cell, self.partner, self.cell) for partner, cell in self.cells.items()
        }
        return found | dict.fromkeys(self.mates, Group.TARGET) if scope is Scope.POOL else found


@dataclass(slots=True)
class Moments:
    """When what happened, on the monotonic clock (seconds). `calm_s`: all was as ever again; None: never."""

    begin_s: float
    warm_s: float
    struck_s: float | None = None
    ended_s: float | None = None
    calm_s: float | None = None
    end_s: float | None = None

    def met(self, call: Call) -> bool:
        """Say whether a call was under way, or begun, while the fault lasted."""
        if self.struck_s is None or call.ended_s is None or call.ended_s < self.struck_s:
            return False
        return self.calm_s is None or call.due_s <= self.calm_s


@dataclass(slots=True)
class GroupFigures:
    """One group of partners while the fault lasted. `hit`: who noticed anything; `last_s`: the last disturbed call.

    `slow`: what a tail outside its range is made of, the slowest first. `late`: what was disturbed past the goal.
    """

    group: Group
    partners: list[str]
    sent: int = 0
    excused: Counter[str] = field(default_factory=Counter)
    errors: list[Offender] = field(default_factory=list)
    slow: list[Offender] = field(default_factory=list)
    late: list[Offender] = field(default_factory=list)
    hit: dict[str, int] = field(default_factory=dict)
    last_s: float | None = None
    calm: Latency = NO_LATENCY
    fault: Latency = NO_LATENCY

    @property
    def undisturbed(self) -> bool | None:
        """Whether its tail lies within the range of this run's calm; None where there were too few calls to tell."""
        return within_calm_range(self.calm, self.fault)


@dataclass(frozen=True, slots=True)
class Impact:
    """All that the fault did, by group; and what went wrong while all was calm."""

    figures: dict[Group, GroupFigures]
    in_calm: list[Offender]


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What else counts. `aborted`: why a safeguard ended it; `others_cores`: of other programs, by phase."""

    aborted: str | None = None
    others_cores: Mapping[str, float] = field(default_factory=dict)
    first_sign: Seen | None = None
    leftovers: Sequence[str] = ()
    not_undone: Sequence[str] = ()
    patience: float = 1.0
    cores: int = 1
    ended_early: bool = False  # interrupted, or something could not be done

    @property
    def is_noisy(self) -> bool:
        """Whether other programs took so much of the machine, or so much more, that times can't be compared."""
        calm, fault = (self.others_cores.get(phase, 0.0) for phase in ("calm", "fault"))
        return fault - calm > limits.OTHERS_CORES_MORE_MAX or fault > limits.OTHERS_SHARE_MAX * self.cores


def impact_of(
    experiment: Experiment, target: Target, moments: Moments, calls: Iterable[Call], patience: float = 1.0
) -> Impact:
    """Sum up all first attempts. What met the fault may be what its group is allowed, the rest has to be right."""
    groups = target.groups(experiment.scope)
    figures = {
        group: GroupFigures(group, sorted(partner for partner, its in groups.items() if its is group))
        for group in Group
    }
    in_calm: list[Offender] = []
    calm: dict[Group, list[Call]] = defaultdict(list)
    fault: dict[Group, list[Call]] = defaultdict(list)
    since_s = _recovers_since_s(experiment, moments)
    goal_s = inf if since_s is None or not experiment.goal_ms else since_s + experiment.goal_ms * patience / 1_000
    for call in calls:
        if call.repeat or call.ended_s is None or call.partner not in groups:
            continue
        group = groups[call.partner]
        if not moments.met(call):
            if call.due_s >= moments.warm_s:
                calm[group].append(call)
            error = error_under(call, NO_ERROR)
            if error is not None:
                in_calm.append(_offence(call, error))
            continue
        fault[group].append(call)
        _count(figures[group], call, error_under(call, experiment.excuses(group)), patience, goal_s)
    for group, found in figures.items():
        found.calm, found.fault = latency(calm[group]), latency(fault[group])
        bound_ms = calm_range_ms(found.calm)
        if found.undisturbed is False and experiment.excuses(group) == NO_ERROR and bound_ms is not None:
            found.slow = _slower_than(bound_ms, fault[group])
    return Impact(figures, in_calm)


def _count(found: GroupFigures, call: Call, error: str | None, patience: float, goal_s: float) -> None:
    found.sent += 1
    if error is not None:
        found.errors.append(_offence(call, error))
    elif error_of(call) is not None:
        found.excused[str(call.outcome or "cut off")] += 1
    if is_disturbed(call, patience):
        found.hit[call.partner] = found.hit.get(call.partner, 0) + 1
        # One that was cut off shows that all was not well when it was sent, one that waited, when it was answered.
        at_s = call.sent_s if call.answered_s is None else call.answered_s
        found.last_s = at_s if found.last_s is None else max(found.last_s, at_s)
        if found.group is Group.TARGET and at_s > goal_s:
            found.late.append(_offence(call, _told(call)))


def _offence(call: Call, why: str) -> Offender:
    return Offender(call.due_s, call.partner, f"{name_of(call)}: {why}")


def _told(call: Call) -> str:
    after = "" if call.latency_ms is None else f" after {call.latency_ms:.0f} ms"
    return f"{call.outcome or 'no answer'}{after}"


def _slower_than(bound_ms: float, calls: Iterable[Call]) -> list[Offender]:
    slow = [call for call in calls if call.usual and call.latency_ms is not None and call.latency_ms > bound_ms]
    return [_offence(call, _told(call)) for call in sorted(slow, key=lambda call: -(call.latency_ms or 0))]


def _recovers_since_s(experiment: Experiment, moments: Moments) -> float | None:
    return moments.ended_s if experiment.goal_from_end else moments.struck_s


def recovery_ms(experiment: Experiment, impact: Impact, moments: Moments) -> float | None:
    """Give how long the target was disturbed: from the fault's begin, or its end; None where nothing was struck."""
    since_s = _recovers_since_s(experiment, moments)
    if since_s is None:
        return None
    last_s = impact.figures[Group.TARGET].last_s
    return 0.0 if last_s is None else max(last_s - since_s, 0.0) * 1_000


def verdict_of(
    experiment: Experiment, impact: Impact, moments: Moments, money: Judgement, audit_ok: bool, around: Circumstances
) -> Verdict:
    """Say whether the fault was contained, and what can't be told."""
    verdict = Verdict()
    if around.aborted is not None:
        verdict.broken.append(f"ended by a safeguard: {around.aborted}")
    for found in impact.figures.values():
        _judge_group(verdict, experiment, found, around)
    verdict.require(not impact.in_calm, f"{len(impact.in_calm)} errors while all was calm: {_first(impact.in_calm)}")
    _judge_recovery(verdict, experiment, impact, moments, around)
    verdict.require(audit_ok, "the audit found books that disagree")
    verdict.broken += [str(finding) for finding in money.findings[: limits.CHAOS_FINDINGS_SHOWN_MAX]]
    verdict.unknown += money.unknowns[: limits.CHAOS_FINDINGS_SHOWN_MAX]
    verdict.broken += [f"could not be undone: {what}" for what in around.not_undone]
    verdict.require(not around.leftovers, f"left running at the end: {', '.join(around.leftovers)}")
    if experiment.signs and moments.struck_s is not None:
        seen = True if around.first_sign is not None else None
        verdict.require(seen, "the gateway showed no sign of the fault: it may not have struck")
    return verdict


def _judge_group(verdict: Verdict, experiment: Experiment, found: GroupFigures, around: Circumstances) -> None:
    if not found.partners:
        return
    verdict.require(not found.errors, f"{found.group}: {len(found.errors)} errors: {_first(found.errors)}")
    if experiment.excuses(found.group) != NO_ERROR:
        return  # it may be delayed: how long is the matter of the goal
    bound_ms = calm_range_ms(found.calm)
    bound = "too few calls to tell its range" if bound_ms is None else f"{bound_ms:.0f} ms is its range"
    tail = "no tail" if found.fault.tail_ms is None else f"tail {found.fault.tail_ms:.0f} ms"
    within = found.undisturbed
    if within is None and bound_ms is not None:
        bound += "; too few calls to compare them"
    if within is False and around.is_noisy:
        within = None
        bound += f"; other programs used {dict(around.others_cores)} cores of this machine"
    slowest = f"; slowest: {_first(found.slow)}" if found.slow else ""
    verdict.require(within, f"{found.group}: {tail} while the fault lasted, {bound}{slowest}")


def _judge_recovery(
    verdict: Verdict, experiment: Experiment, impact: Impact, moments: Moments, around: Circumstances
) -> None:
    if moments.struck_s is None:
        verdict.unknown.append("nothing was struck")
        return
    if moments.calm_s is None:
        if around.ended_early:
            verdict.unknown.append("it ended before all was as ever")
        elif around.aborted is None:
            verdict.broken.append(f"not as ever within {limits.CHAOS_RECOVERY_MS_MAX / 1_000:g} s")
        return
    took_ms = recovery_ms(experiment, impact, moments)
    goal_ms = experiment.goal_ms * around.patience
    if took_ms is not None and goal_ms and took_ms > goal_ms:
        kept = None if around.is_noisy else False
        late = impact.figures[Group.TARGET].late
        told = f"the target was disturbed for {took_ms:.0f} ms, {goal_ms:.0f} ms are promised"
        verdict.require(kept, f"{told}; last: {_first(late[-1:])}")


def _first(offences: Sequence[Offender]) -> str:
    return f"{offences[0].partner}: {offences[0].what}" if offences else ""


# For the report.


def group_json(found: GroupFigures, begin_s: float) -> dict[str, Any]:
    """Give one group's figures as they stand in the report."""
    return {
        "group": found.group.value,
        "partners": found.partners,
        "hit": found.hit,
        "sent": found.sent,
        "errors": len(found.errors),
        "errors_shown": _shown(found.errors, begin_s),
        "slow": len(found.slow),
        "slow_shown": _shown(found.slow, begin_s),
        "late": len(found.late),
        "late_shown": _shown(found.late, begin_s),
        "excused": dict(found.excused),
        "calm_p99_ms": _rounded(found.calm.p99_ms),
        "calm_calls": found.calm.count,
        "calm_range_ms": _rounded(calm_range_ms(found.calm)),
        "fault_tail_ms": _rounded(found.fault.tail_ms),
        "fault_max_ms": _rounded(found.fault.max_ms),
        "undisturbed": found.undisturbed,
    }


def _shown(offenders: Sequence[Offender], begin_s: float) -> list[dict[str, Any]]:
    return [offender_json(one, begin_s) for one in offenders[: limits.CHAOS_FINDINGS_SHOWN_MAX]]


@dataclass(frozen=True, slots=True)
class Series:
    """One group over time: in each step its errors (excused ones, too) and the p99 of usual calls, None: no call."""

    group: Group
    at_s: list[float]
    errors: list[int]
    p99_ms: list[float | None]


def series_of(
    experiment: Experiment, target: Target, moments: Moments, calls: Iterable[Call], step_s: float
) -> list[Series]:
    """Put calls into steps of time by when they were due, counted from the load's begin."""
    groups = target.groups(experiment.scope)
    by_step: dict[Group, dict[int, list[Call]]] = {group: defaultdict(list) for group in Group}
    last = 0
    for call in calls:
        if not call.repeat and call.ended_s is not None and call.partner in groups:
            step = int((call.due_s - moments.begin_s) // step_s)
            by_step[groups[call.partner]][step].append(call)
            last = max(last, step)
    found = []
    for group, steps in by_step.items():
        if steps:
            told = [steps.get(step, []) for step in range(last + 1)]
            errors = [sum(error_of(call) is not None for call in some) for some in told]
            at_s = [step * step_s for step in range(last + 1)]
            found.append(Series(group, at_s, errors, [latency(some).p99_ms for some in told]))
    return found


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


EXIT_CODES: Final = {"contained": 0, "not contained": 1, "unknown": 3}
EXIT_NOT_RUN: Final = 2
EXIT_INTERRUPTED: Final = 130
