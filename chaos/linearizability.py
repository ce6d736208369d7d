"""Judges whether all that clients saw of each payment can be explained by one order of events. Pure: it asks nobody.

Each answer that shows a payment or a refund is an observation of one moment between its call's sending and its end.
Each write may begin one operation; one whose outcome its client does not know may do so at any later time, or never.
What the acquirer says comes at hidden moments: between two observations an operation may move along the table below.
The search is Wing and Gong's with Lowe's memoisation, a payment at a time: an observation may come next if no other
had ended before it was asked. It takes at most LINEARIZABILITY_STEPS_MAX steps; past them it says "unknown".

The model is written from docs/payments.md, not from the gateway's rules. Not in it: disputes, the end of
authorizations (what they make of a status or an amount is let pass), and what is missing in a list, because pages and
filters leave out.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final, NamedTuple

from chaos import limits
from chaos.history import Call
from chaos.offenders import Offender, offenders_of

_OPENING: Final = frozenset({"authorization", "purchase", "verification"})
_KINDS: Final = {"capture_payment": "capture", "void_payment": "void", "refund_payment": "refund"}
_NEXT: Final[Mapping[str, frozenset[str]]] = {
    "pending": frozenset({"succeeded", "failed", "unknown", "requires_action", "accepted"}),
    "unknown": frozenset({"succeeded", "failed", "requires_action", "accepted"}),
    "accepted": frozenset({"succeeded", "failed", "requires_action", "unknown"}),
    "requires_action": frozenset({"pending", "succeeded", "failed"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
}


def _reachable() -> dict[str, frozenset[str]]:
    found = {state: {state} | following for state, following in _NEXT.items()}
    for _ in _NEXT:
        found = {state: states.union(*(found[one] for one in states)) for state, states in found.items()}
    return {state: frozenset(states) for state, states in found.items()}


_REACHABLE: Final = _reachable()


class Operation(NamedTuple):
    """One operation as an answer shows it."""

    id: str
    kind: str
    amount: int
    status: str
    is_own: bool  # begun by the gateway itself, as the void at an authorization's end


@dataclass(frozen=True, slots=True)
class Write:
    """What a client asked for under one key: it begins at most one operation, after `sent_s`."""

    kind: str
    amount: int | None
    sent_s: float


@dataclass(frozen=True, slots=True)
class Observation:
    """What one answer shows, at a moment from `from_s` to `until_s`.

    `is_whole`: all operations of the payment, not only one refund. `write` is the number of the write that it answers.
    """

    from_s: float
    until_s: float
    operations: tuple[Operation, ...]
    is_whole: bool
    write: int | None
    told_by: Call
    wrong: str = ""  # what no payment can be, whatever came before


@dataclass(slots=True)
class PaymentHistory:
    """All that clients did to one payment, and all that they saw of it."""

    partner: str
    payment_id: str
    writes: list[Write] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    requests: list[Call] = field(default_factory=list)  # the first attempt of each write


@dataclass(frozen=True, slots=True)
class Impossible:
    """A payment of which no order explains all answers. `offenders`: those that don't fit, then its writes."""

    partner: str
    payment_id: str
    detail: str
    offenders: tuple[Offender, ...]

    def __str__(self) -> str:
        return f"{self.partner}: {self.payment_id}: {self.detail}"


@dataclass(slots=True)
class Judgement:
    """What no order explains, and what could not be judged within the bound."""

    findings: list[Impossible] = field(default_factory=list)
    unknowns: list[str] = field(default_factory=list)
    payments: int = 0
    observations: int = 0
    steps: int = 0

    @property
    def verdict(self) -> str:
        """`wrong`, `unknown` or `right`."""
        return "wrong" if self.findings else "unknown" if self.unknowns else "right"


def judge(calls: Iterable[Call], *, steps_max: int = limits.LINEARIZABILITY_STEPS_MAX) -> Judgement:
    """Judge a history, repeats included, in whatever order its calls stand."""
    judgement = Judgement()
    for payment in payments_of(calls):
        judgement.payments += 1
        judgement.observations += len(payment.observations)
        search = _Search(payment, steps_max)
        found = search.run()
        judgement.steps += search.steps
        if found is None:
            judgement.unknowns.append(f"{payment.partner}: {payment.payment_id}: more than {steps_max} steps")
        elif not found:
            offenders = tuple(offenders_of([*search.misfits(), *payment.requests]))
            judgement.findings.append(Impossible(payment.partner, payment.payment_id, search.why(), offenders))
    return judgement


# Reading a history


def payments_of(calls: Iterable[Call]) -> Iterator[PaymentHistory]:
    """Sort a history by payments."""
    by_partner: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        by_partner[call.partner].append(call)
    for partner, own in sorted(by_partner.items()):
        yield from _of_partner(partner, own)


def _of_partner(partner: str, calls: Sequence[Call]) -> Iterator[PaymentHistory]:
    histories: dict[str, PaymentHistory] = {}
    by_key: dict[str, list[Call]] = defaultdict(list)
    shown: list[tuple[Call, dict[str, Any]]] = []
    for call in calls:
        if call.key is not None:
            by_key[call.key].append(call)
        elif call.acknowledged:
            content = call.content()
            shown += [(call, row) for row in _rows(content)]

    def history_of(payment_id: str) -> PaymentHistory:
        return histories.setdefault(payment_id, PaymentHistory(partner, payment_id))

    creates: dict[str, float] = {}
    for attempts in by_key.values():
        _read_write(attempts, history_of, creates)
    for call, row in shown:
        payment_id = row.get("payment_id", row.get("id"))
        history = history_of(str(payment_id))
        history.observations.append(_observation(call.sent_s, call.answered_s, row, None, call))
        reference = row.get("reference")
        if not any(write.kind == "create" for write in history.writes) and reference in creates:
            history.writes.append(Write("create", None, creates[reference]))
    yield from histories.values()


def _read_write(attempts: list[Call], history_of: Any, creates: dict[str, float]) -> None:
    """Read all attempts under one key as the one write that they are."""
    attempts.sort(key=lambda call: call.sent_s)
    first = attempts[0]
    answered = sorted(
        (call for call in attempts if call.acknowledged and (call.path, call.body) == (first.path, first.body)),
        key=lambda call: call.answered_s or inf,
    )
    is_create = first.step == "create_payment"
    if is_create and not answered:
        creates[str(first.request().get("reference"))] = first.sent_s
        return
    row = answered[0].content() if answered else {}
    if is_create:
        if not list(_rows(row)):
            return
        history = history_of(str(row["id"]))
        kind, amount = "create", None
    else:
        history = history_of(first.path.split("/")[3])
        kind = _KINDS.get(first.step, "")
        asked = first.request().get("amount")
        amount = None if asked is None else int(asked)
    history.requests.append(first)
    number = None
    if kind:
        number = len(history.writes)
        history.writes.append(Write(kind, amount, first.sent_s))
    for one in _rows(row):
        # A repeat's answer is the first one again: it was true once since the first attempt, not of late.
        history.observations.append(_observation(first.sent_s, answered[0].answered_s, one, number, first))


def _rows(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    match content:
        case {"object": "payment", "operations": [_, *_]} | {"object": "refund", "payment_id": str()}:
            yield content
        case {"object": "list", "data": [*rows]}:
            for row in rows:
                if isinstance(row, dict) and row.get("object") != "list":
                    yield from _rows(row)


def _observation(
    from_s: float, until_s: float | None, row: dict[str, Any], write: int | None, told_by: Call
) -> Observation:
    is_whole = row["object"] == "payment"
    told = row["operations"] if is_whole else [{**row, "type": "refund"}]
    operations = tuple(
        Operation(one["id"], one["type"], int(one["amount"]), one["status"], one.get("reason") == "expired")
        for one in told
    )
    wrong = _wrong(row, operations) if is_whole else ""
    return Observation(from_s, inf if until_s is None else until_s, operations, is_whole, write, told_by, wrong)


def _wrong(row: dict[str, Any], operations: Sequence[Operation]) -> str:
    """Say what is wrong with a payment by itself; nothing where nothing is."""
    first, *later = operations
    kinds = [operation.kind for operation in operations]
    if first.kind not in _OPENING or any(operation.kind in _OPENING for operation in later):
        return f"its operations are {kinds}"
    if first.status != "succeeded" and any(operation.kind in {"capture", "refund"} for operation in later):
        return f"its {first.kind} is {first.status}, and yet it was captured or refunded"

    def total(*wanted: str, done: bool) -> int:
        statuses = {"succeeded"} if done else _NEXT.keys() - {"failed"}
        return sum(one.amount for one in operations if one.kind in wanted and one.status in statuses)

    authorized = total(*_OPENING, done=True)
    taken = total("capture", "void", done=False)
    if first.kind == "authorization" and first.status == "succeeded" and taken > authorized:
        return f"{taken} is captured or voided, and {authorized} was authorized"
    captured = total("purchase", "capture", done=True)
    if total("refund", done=False) > captured:
        return f"{total('refund', done=False)} is refunded, and {captured} was captured"
    for name, amount in (("amount_captured", captured), ("amount_refunded", total("refund", done=True))):
        if row.get(name, amount) != amount:
            return f"{name} is {row[name]}, and its operations make {amount}"
    return ""


# The search

# Of each operation: its id, its status, and the write that began it (-1: nobody's that is known).
_State = tuple[tuple[str, str, int], ...]


class _Search:
    def __init__(self, payment: PaymentHistory, steps_max: int) -> None:
        self._observations = sorted(payment.observations, key=lambda one: one.until_s)
        self._writes = payment.writes
        self._steps_max = steps_max
        self._has_create = any(write.kind == "create" for write in payment.writes)
        self._seen: set[tuple[int, _State]] = set()
        self._furthest = 0
        self._stuck: tuple[Observation, ...] = ()
        self.steps = 0

    def run(self) -> bool | None:
        """Say whether there is an order; None where the steps don't suffice."""
        everything = (1 << len(self._observations)) - 1
        waiting: list[tuple[int, _State]] = [(0, ())]
        while waiting:
            done, state = waiting.pop()
            if done == everything:
                return True
            if (done, state) in self._seen:
                continue
            self._seen.add((done, state))
            self.steps += 1
            if self.steps > self._steps_max:
                return None
            candidates = list(self._candidates(done))
            if done.bit_count() >= self._furthest:
                self._furthest = done.bit_count()
                self._stuck = tuple(self._observations[number] for number in candidates)
            # The last is tried first: what ended first most often happened first.
            for number in reversed(candidates):
                observation = self._observations[number]
                waiting.extend((done | 1 << number, after) for after in self._after(state, observation))
        return False

    def why(self) -> str:
        """Say what could not be put into any order, once `run` found none."""
        wrong = self._wrong()
        if wrong:
            return f"{wrong[0].told_by.step}: {wrong[0].wrong}"
        told = "; ".join(
            f"{one.told_by.step} from {one.from_s:.3f} to {one.until_s:.3f} s shows "
            + ", ".join(f"{operation.kind} {operation.id} {operation.status}" for operation in one.operations)
            for one in self._stuck[:3]
        )
        return f"after {self._furthest} of {len(self._observations)} answers none of these can be next: {told}"

    def misfits(self) -> list[Call]:
        """Give the calls whose answers could not be put into any order, once `run` found none."""
        return [one.told_by for one in self._wrong() or self._stuck]

    def _wrong(self) -> list[Observation]:
        return [one for one in self._observations if one.wrong]

    def _candidates(self, done: int) -> Iterator[int]:
        """Give what may come next: what was asked before any other of those left had ended."""
        bound_s = inf
        for number, observation in enumerate(self._observations):
            if done >> number & 1:
                continue
            if bound_s is inf:
                bound_s = observation.until_s  # they stand in the order of their ends
            if observation.from_s <= bound_s:
                yield number

    def _after(self, state: _State, observation: Observation) -> Iterator[_State]:
        """Give the states in which this may have been seen, coming from that one."""
        if observation.wrong:
            return
        known = {operation_id: (status, write) for operation_id, status, write in state}
        fresh = []
        for operation in observation.operations:
            before = known.pop(operation.id, None)
            if before is None:
                fresh.append(operation)
            elif operation.status not in _REACHABLE.get(before[0], frozenset()):
                return  # what was final is no more, or what is known was forgotten
        if observation.is_whole and known:
            return  # an operation that was there is gone
        statuses = {operation.id: operation.status for operation in observation.operations}
        kept = tuple((one, statuses.get(one, status), write) for one, status, write in state)
        taken = frozenset(write for _, _, write in state)
        for begun in self._begin(fresh, taken, observation.until_s):
            after = tuple(sorted(kept + begun))
            if observation.write is None or self._answers(observation, after):
                yield after

    def _begin(self, fresh: Sequence[Operation], taken: frozenset[int], now_s: float) -> Iterator[_State]:
        """Give the ways in which writes that were sent by then may have begun these operations."""
        if not fresh:
            yield ()
            return
        operation, *others = fresh
        kind = "create" if operation.kind in _OPENING else operation.kind
        if operation.is_own or (kind == "create" and not self._has_create):
            for rest in self._begin(others, taken, now_s):
                yield ((operation.id, operation.status, -1), *rest)
            return
        for number, write in enumerate(self._writes):
            fits = write.kind == kind and write.amount in {None, operation.amount} and write.sent_s <= now_s
            if fits and number not in taken:
                for rest in self._begin(others, taken | {number}, now_s):
                    yield ((operation.id, operation.status, number), *rest)

    def _answers(self, observation: Observation, state: _State) -> bool:
        """Say whether what a write was answered shows the operation that it began."""
        shown = {operation.id for operation in observation.operations}
        if any(write == observation.write and operation_id in shown for operation_id, _, write in state):
            return True
        # What still waits for its customer is canceled without an operation of its own.
        assert observation.write is not None
        is_void = self._writes[observation.write].kind == "void"
        return is_void and observation.operations[0].status != "succeeded"
