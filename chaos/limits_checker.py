"""Judges whether a partner's limits were ever exceeded, from what its clients saw. Pure: it asks nobody.

A client knows no moment, only intervals: a payment was let in between the first sending of its key and its answer. So
a number of payments proves too many only where all of their intervals lie within one window. GCRA lets at most
burst + rate x window in. Killed workers, moves and restarts give nothing back: the bucket is in the payment's commit.

In flight is judged by what answers say of operations: since when and until when each was open, in the partner's own
time, which never goes back. What waited for a customer does not count. Only what the history proves is a finding.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from math import inf
from typing import Any

from chaos import limits
from chaos.history import Call
from chaos.offenders import Offender, offenders_of


@dataclass(frozen=True, slots=True)
class Limits:
    """A partner's limits. `refills`: how often its bucket may have been filled at once, as by a clock's jump."""

    rate_per_second: int
    rate_burst: int
    in_flight_max: int
    refills: int = 0


@dataclass(frozen=True, slots=True)
class Exceeded:
    """A limit that was exceeded. `offenders`: what was let in past it."""

    partner: str
    detail: str
    offenders: tuple[Offender, ...]

    def __str__(self) -> str:
        return f"{self.partner}: {self.detail}"


@dataclass(slots=True)
class Judgement:
    """What was exceeded, and how near it came: the greatest share of what may be let in, and of what may be open."""

    findings: list[Exceeded] = field(default_factory=list)
    payments: int = 0
    rate_share_max: float = 0
    in_flight_share_max: float = 0

    @property
    def verdict(self) -> str:
        """`wrong` or `right`: nothing can be unknown where only what is proven counts."""
        return "wrong" if self.findings else "right"


def judge(calls: Iterable[Call], limits_of: Mapping[str, Limits]) -> Judgement:
    """Judge a history, repeats included, by each partner's limits."""
    judgement = Judgement()
    by_partner: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        by_partner[call.partner].append(call)
    assert by_partner.keys() <= limits_of.keys(), "a partner without limits can't be judged"
    for partner, own in sorted(by_partner.items()):
        _judge_rate(judgement, partner, own, limits_of[partner])
        _judge_in_flight(judgement, partner, own, limits_of[partner])
    return judgement


def _judge_rate(judgement: Judgement, partner: str, calls: list[Call], allowed: Limits) -> None:
    admitted = admissions(calls)
    intervals = [(from_s, until_s) for from_s, until_s, _ in admitted]
    judgement.payments += len(intervals)
    # The gateway counts whole microseconds; its clock may run a little faster than ours.
    interval_us = max(1_000_000 // allowed.rate_per_second, 1)
    per_second = 1_000_000 / interval_us * (1 + limits.CLOCK_RATE_DIFFERENCE_MAX)
    burst = allowed.rate_burst * (1 + allowed.refills)
    excess, from_s, until_s, count = densest(intervals, per_second)
    if not count:
        return
    room = burst + per_second * (until_s - from_s)
    judgement.rate_share_max = max(judgement.rate_share_max, count / room)
    if excess > burst:
        detail = (
            f"{count} new payments were let in from {from_s:.3f} to {until_s:.3f} s; "
            f"{allowed.rate_per_second} a second and a burst of {burst} allow {room:.1f}"
        )
        within = [one for one in admitted if from_s <= one[0] and one[1] <= until_s]
        past = [call for _, _, call in sorted(within, key=lambda one: one[1])[int(room) :]]
        judgement.findings.append(Exceeded(partner, detail, tuple(offenders_of(past))))


def admissions(calls: Iterable[Call]) -> list[tuple[float, float, Call]]:
    """Give between which times each new payment was let in: one a key, from its first sending to its first answer.

    With each stands the call that was answered so.
    """
    sent: dict[str, float] = {}
    answered: dict[str, tuple[float, Call]] = {}
    for call in calls:
        if call.step != "create_payment" or call.key is None:
            continue
        sent[call.key] = min(sent.get(call.key, inf), call.sent_s)
        if call.acknowledged and call.answered_s is not None:
            known = answered.get(call.key)
            if known is None or call.answered_s < known[0]:
                answered[call.key] = call.answered_s, call
    return [(sent[key], until_s, call) for key, (until_s, call) in answered.items()]


def densest(intervals: Iterable[tuple[float, float]], per_second: float) -> tuple[float, float, float, int]:
    """Find the window with the most intervals wholly inside, less what the rate lets in: (excess, from, until, n).

    For each end, the best beginning: a tree over all beginnings holds, for each, what lies inside from there on.
    """
    ordered = sorted(intervals, key=lambda interval: interval[1])
    begins = sorted({begin for begin, _ in ordered})
    place = {begin: number for number, begin in enumerate(begins)}
    tree = _Tree(len(begins))
    best = (-inf, 0.0, 0.0, 0)
    used: set[int] = set()
    for begin, end in ordered:
        number = place[begin]
        if number not in used:
            used.add(number)
            tree.enter(number, begin * per_second)
        tree.add_up_to(number, 1)
        value, found = tree.greatest()
        if value - end * per_second > best[0]:
            count = round(value - begins[found] * per_second)
            best = (value - end * per_second, begins[found], end, count)
    return best


class _Tree:
    """Values by place, where all up to a place can be raised at once and the greatest is known."""

    def __init__(self, size: int) -> None:
        self._leaves = 1
        while self._leaves < size:
            self._leaves *= 2
        self._greatest = [-inf] * (2 * self._leaves)
        self._raised = [0.0] * (2 * self._leaves)

    def enter(self, place: int, value: float) -> None:
        """Give a place its value; what it was raised by before counts, too."""
        node = place + self._leaves
        self._greatest[node] = value + self._raised[node]
        self._mend(node)

    def add_up_to(self, place: int, amount: float) -> None:
        """Raise all up to this place, itself included."""
        left, right = self._leaves, place + self._leaves + 1
        ends = (left, right - 1)
        while left < right:
            if left & 1:
                self._raise(left, amount)
                left += 1
            if right & 1:
                right -= 1
                self._raise(right, amount)
            left //= 2
            right //= 2
        for node in ends:
            self._mend(node)

    def greatest(self) -> tuple[float, int]:
        """Give the greatest value and its place."""
        node = 1
        while node < self._leaves:
            node *= 2
            if self._greatest[node + 1] > self._greatest[node]:
                node += 1
        return self._greatest[1], node - self._leaves

    def _raise(self, node: int, amount: float) -> None:
        self._greatest[node] += amount
        self._raised[node] += amount

    def _mend(self, node: int) -> None:
        node //= 2
        while node:
            self._greatest[node] = max(self._greatest[2 * node], self._greatest[2 * node + 1]) + self._raised[node]
            node //= 2


def _judge_in_flight(judgement: Judgement, partner: str, calls: list[Call], allowed: Limits) -> None:
    open_ = open_times(calls)
    moments: list[tuple[float, int]] = []
    for began_ms, ended_ms, _ in open_:
        moments += [(began_ms, 1), (ended_ms, -1)]
    count = most = 0
    at_ms = 0.0
    for moment_ms, change in sorted(moments):  # ends before beginnings at the same moment
        count += change
        if count > most:
            most, at_ms = count, moment_ms
    judgement.in_flight_share_max = max(judgement.in_flight_share_max, most / allowed.in_flight_max)
    if most > allowed.in_flight_max:
        at = datetime.fromtimestamp(at_ms / 1_000).astimezone().isoformat(timespec="milliseconds")
        there = sorted((one for one in open_ if one[0] <= at_ms < one[1]), key=lambda one: one[0])
        past = [call for _, _, call in there[allowed.in_flight_max :]]
        detail = f"{most} operations were in flight at {at}; {allowed.in_flight_max} are allowed"
        judgement.findings.append(Exceeded(partner, detail, tuple(offenders_of(past))))


def open_times(calls: Iterable[Call]) -> list[tuple[float, float, Call]]:
    """Give since when and until when, in ms, each settled opening operation was certainly open, as answers tell.

    Times are told in whole milliseconds, so each is narrowed by one at both ends. With each stands the call that
    asked for it, or one that told of it.
    """
    told: dict[str, tuple[float, float]] = {}
    asked: dict[str, Call] = {}
    challenged: set[str] = set()
    for call in calls:
        content = call.content() if call.acknowledged else {}
        rows = content.get("data", []) if content.get("object") == "list" else [content]
        for row in rows:
            if isinstance(row, dict) and row.get("object") == "payment" and row.get("operations"):
                operation = row["operations"][0]
                if operation["id"] not in asked or call.step == "create_payment":
                    asked[operation["id"]] = call
                if operation["status"] == "requires_action" or "challenge" in str(row.get("payment_method")):
                    challenged.add(operation["id"])
                elif operation.get("created_at") and operation.get("settled_at"):
                    told[operation["id"]] = (_ms(operation["created_at"]) + 1, _ms(operation["settled_at"]) - 1)
    return [
        (began, ended, asked[one]) for one, (began, ended) in told.items() if ended > began and one not in challenged
    ]


def _ms(time: Any) -> float:
    return datetime.fromisoformat(str(time)).timestamp() * 1_000
