"""What each fault of a soak did to whom, from the clients' history, and which promises it broke. Pure; asks nobody."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from chaos import limits
from chaos.checker import Judgement, error_of, is_documented
from chaos.faults import EXCUSED_OUTCOMES, NO_ERROR, Excuse, Excuses, Fault
from chaos.history import Call
from chaos.offenders import name_of

_SHOWN_MAX: Final = 5


@dataclass(slots=True)
class Happened:
    """One fault as it was carried out, on the monotonic clock (seconds). `calm_s`: all was well again, None: never."""

    fault: Fault
    struck_s: float
    calm_s: float | None = None
    pids: dict[str, int] = field(default_factory=dict)
    # What was stopped for long and went on by itself, though it should have been replaced.
    not_replaced: list[str] = field(default_factory=list)
    processes: str = ""  # what is more or less than there should be, once all is calm


@dataclass(frozen=True, slots=True)
class Group:
    """What one group of partners met while a fault lasted. `back_ms`: from the blow until the last disturbed call."""

    sent: int
    excused: Mapping[str, int]
    errors: tuple[str, ...]
    delayed: int
    slowest_ms: float | None
    first_ms: float | None
    back_ms: float


@dataclass(frozen=True, slots=True)
class Impact:
    """What one fault did: to those it struck, and to everybody else. Where no cell was struck, all were."""

    happened: Happened
    struck: Group
    others: Group
    patience: float

    @property
    def back_ms(self) -> float:
        """How long it took until those who were struck were served as ever."""
        return self.struck.back_ms

    def broken(self) -> list[str]:
        """Say which promises were broken."""
        fault, broken = self.happened.fault, []
        for name, group in (("of its own", self.struck), ("elsewhere", self.others)):
            if group.errors:
                broken.append(f"{fault.title}: {len(group.errors)} errors {name}: {group.errors[0]}")
        if self.happened.calm_s is None:
            broken.append(f"{fault.title}: not over within {limits.SOAK_RECOVERY_MS_MAX / 1_000:g} s")
        elif self.back_ms > fault.kind.goal_ms * self.patience:
            broken.append(
                f"{fault.title}: {self.back_ms:.0f} ms, {fault.kind.goal_ms * self.patience:.0f} ms are promised"
            )
        broken += [f"{fault.title}: {what} was not replaced, it went on" for what in self.happened.not_replaced]
        if self.happened.processes:
            broken.append(f"{fault.title}: {self.happened.processes}")
        return broken


def error_under(call: Call, excuses: Excuses) -> str | None:
    """Say in which way a call broke what is promised while this may happen; None where it didn't."""
    error = error_of(call)
    if error is None or any(_is_excused(call, excuse) for excuse in excuses):
        return None
    return error


def _is_excused(call: Call, excuse: Excuse) -> bool:
    if call.error is not None:
        return excuse is Excuse.CUT_OFF
    outcome = call.outcome
    if outcome is None or call.latency_ms is None or call.latency_ms > limits.CLIENT_DEADLINE_MS:
        return False
    if not is_documented(call.method, call.path, outcome):
        return False
    if excuse is Excuse.OVERDUE and call.latency_ms < limits.OVERDUE_MS:
        return False
    if call.acknowledged:
        # Not known in time, which the answer says; or known to be otherwise, as the acquirer was not there.
        return outcome.status == 202 or excuse is Excuse.PENDING
    if outcome.status in {429, 503} and call.retry_after is None:
        return False
    return outcome in EXCUSED_OUTCOMES[excuse]


def impacts_of(
    faults: Sequence[Happened], calls: Iterable[Call], cells: Mapping[str, str], patience: float
) -> tuple[list[Impact], list[str]]:
    """Sum up what each fault did, and what went wrong with calls that met none. Calls that are still open don't count.

    `faults` in the order in which they happened, `cells`: where each partner lives. Any of those that a call met
    excuses it, and it belongs to the last that does. `patience` stretches the times for a machine that others use, too.
    """
    of_fault: list[list[tuple[Call, str | None]]] = [[] for _ in faults]
    in_calm: list[str] = []
    for call in calls:
        if call.ended_s is None:
            continue
        met = [number for number, happened in enumerate(faults) if _met(call, happened)]
        excuses = NO_ERROR.union(*(faults[number].fault.excuses(call.partner, cells[call.partner]) for number in met))
        error = error_under(call, excuses)
        told = None if error is None else f"{call.partner}: {name_of(call)}: {error}"
        if met:
            # What only an earlier one allows is that one's doing.
            excusing = [
                number
                for number in met
                if error_under(call, faults[number].fault.excuses(call.partner, cells[call.partner])) is None
            ]
            of_fault[(excusing or met)[-1]].append((call, told))
        elif told is not None:
            in_calm.append(told)
    impacts = []
    for happened, met_by in zip(faults, of_fault, strict=True):
        cell = happened.fault.cell
        struck = [(call, told) for call, told in met_by if cell is None or cells[call.partner] == cell]
        others = [(call, told) for call, told in met_by if cell is not None and cells[call.partner] != cell]
        impacts.append(
            Impact(happened, _group(struck, happened, patience), _group(others, happened, patience), patience)
        )
    return impacts, in_calm


def verdict_of(impacts: Sequence[Impact], calm: Sequence[str], money: Judgement, leftovers: Sequence[str]) -> list[str]:
    """Give every broken promise in words; none: all was kept. What can't be told counts as broken."""
    broken = [what for impact in impacts for what in impact.broken()]
    if calm:
        broken.append(f"{len(calm)} errors while all was calm: {calm[0]}")
    broken += [str(finding) for finding in money.findings]
    broken += [f"not to be told: {unknown}" for unknown in money.unknowns]
    if leftovers:
        broken.append(f"left running at the end: {', '.join(leftovers)}")
    return broken


def line_of(impact: Impact, begin_s: float) -> str:
    """Tell one fault in one line."""
    happened = impact.happened
    fault = happened.fault
    goal = f"goal {fault.kind.goal_ms / 1_000:g} s"
    back = "never" if happened.calm_s is None else f"after {impact.back_ms / 1_000:.2f} s"
    whose = "all" if fault.cell is None else "its cell"
    line = f"{happened.struck_s - begin_s:7.1f} s  {fault.title}: {whose} {_told(impact.struck)}"
    if fault.cell is not None:
        line += f"; elsewhere {_told(impact.others)}"
    return f"{line}; as ever {back} ({goal})"


def impact_json(impact: Impact, begin_s: float) -> dict[str, Any]:
    """Give one fault as it stands in the report."""
    happened = impact.happened
    fault = happened.fault
    return {
        "number": fault.number,
        "fault": fault.kind.name,
        "cell": fault.cell,
        "partner": fault.partner,
        "blows": [f"{blow.blow} {blow.target} +{blow.after_ms} ms for {blow.stop_ms} ms" for blow in fault.blows],
        "pids": happened.pids,
        "at_s": round(happened.struck_s - begin_s, 3),
        "calm_after_s": None if happened.calm_s is None else round(happened.calm_s - happened.struck_s, 3),
        "back_ms": round(impact.back_ms),
        "goal_ms": fault.kind.goal_ms,
        "struck": _group_json(impact.struck),
        "others": _group_json(impact.others),
        "not_replaced": happened.not_replaced,
        "processes": happened.processes,
    }


def _met(call: Call, happened: Happened) -> bool:
    """Say whether a call was under way, or begun, while the fault lasted."""
    assert call.ended_s is not None
    until_s = float("inf") if happened.calm_s is None else happened.calm_s
    return call.due_s <= until_s and call.ended_s >= happened.struck_s


def is_disturbed(call: Call, patience: float) -> bool:
    """Say whether a call got something else than it should, or waited longer than in calm.

    It waited from when it was sent: this client shares its machine with the gateway, and may itself have been late.
    """
    waited_ms = 0 if call.answered_s is None else (call.answered_s - call.sent_s) * 1_000
    return error_of(call) is not None or (call.usual and waited_ms > limits.DISTURBED_MS * patience)


def _group(calls: Sequence[tuple[Call, str | None]], happened: Happened, patience: float) -> Group:
    disturbed = [call for call, _ in calls if is_disturbed(call, patience)]
    # One that was cut off shows that all was not well when it was sent, one that waited, when it was answered.
    times = [(call.sent_s if call.answered_s is None else call.answered_s) - happened.struck_s for call in disturbed]
    answered = [
        call.answered_s - happened.struck_s
        for call in disturbed
        if call.acknowledged and call.answered_s is not None and call.answered_s > happened.struck_s
    ]
    waits_ms = [
        (call.answered_s - call.sent_s) * 1_000 for call, _ in calls if call.usual and call.answered_s is not None
    ]
    excused = Counter(
        str(call.outcome or "cut off") for call, told in calls if told is None and error_of(call) is not None
    )
    return Group(
        sent=len(calls),
        excused=dict(excused),
        errors=tuple(told for _, told in calls if told is not None),
        delayed=sum(call.answered_s is not None for call in disturbed),
        slowest_ms=max(waits_ms, default=None),
        first_ms=min(answered) * 1_000 if answered else None,
        back_ms=max([*times, 0]) * 1_000,
    )


def _told(group: Group) -> str:
    slowest = "-" if group.slowest_ms is None else f"{group.slowest_ms:.0f} ms"
    excused = "".join(f", {count} x {what}" for what, count in group.excused.items())
    return f"{len(group.errors)} errors of {group.sent}{excused}, slowest {slowest}"


def _group_json(group: Group) -> dict[str, Any]:
    return {
        "sent": group.sent,
        "errors": len(group.errors),
        "errors_shown": list(group.errors[:_SHOWN_MAX]),
        "excused": dict(group.excused),
        "delayed": group.delayed,
        "slowest_ms": None if group.slowest_ms is None else round(group.slowest_ms),
        "first_ms": None if group.first_ms is None else round(group.first_ms),
        "back_ms": round(group.back_ms),
    }
