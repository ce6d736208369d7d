"""Judges what clients saw, against the books, the audit and the acquirer's record. Pure: it asks nobody.

It may say "unknown" where a history can't tell. Money is judged from what clients sent: each new payment has an amount
of its own, so a charge at the acquirer is laid to a request without believing the gateway's books.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from chaos import limits
from chaos.history import Call, Outcome
from chaos.offenders import Offender, Requests, offender_json, offenders_of
from router.endpoints import ENDPOINTS, codes
from router.problems import KINDS

Book = list[dict[str, Any]]
Record = list[dict[str, Any]]

_OPENING: Final = frozenset({"authorization", "purchase", "verification"})
_FINAL: Final = frozenset({"succeeded", "failed"})
_MONEY_MOVES: Final = _OPENING | {"capture", "void", "refund"}
# A payment's statuses by that of its first operation, while that one did not succeed (docs/payments.md).
_STATUSES_OF_FIRST: Final = {
    **dict.fromkeys(("pending", "unknown", "accepted"), frozenset({"processing"})),
    "requires_action": frozenset({"requires_action"}),
    "failed": frozenset({"failed", "canceled"}),  # canceled: voided while it waited for the customer
}
# The customer is to act: no end, but nothing is under way either, and nothing may be charged.
_RESTING: Final = frozenset({"requires_action"})
_CHANGES: Final = {"capture_payment": "capture", "void_payment": "void", "refund_payment": "refund"}
# Answers after which nothing was written for this request: by status, and by code where the status leaves it open.
_REFUSING_STATUSES: Final = frozenset({400, 401, 403, 404, 405, 413, 415, 422, 429})
_REFUSING_CODES: Final = frozenset(
    {
        "payment_processing",
        "payment_state_invalid",
        "too_many_operations",
        "acquirer_unavailable",
        "partner_unavailable",
        "partner_moved",
        "overloaded",
        "not_ready",
    }
)


class Fault(StrEnum):
    """What can be wrong with money or answers."""

    LOST = "an acknowledged payment or operation is not in the books"
    TWICE_THERE = "one request made two payments"
    ALTERED = "a payment is not what was acknowledged"
    REVERSED = "what was final is final no more"
    IMPOSSIBLE = "a payment is in a state that its operations don't lead to"
    REPLAY_DIFFERS = "a repeated request was answered otherwise than the first time"
    KEY_REUSED = "another request under a used key was taken"
    REFUSED_YET_DONE = "a refused request made a payment"
    CHARGED_TWICE = "the acquirer charged one request twice"
    CHARGED_TOO_MUCH = "the acquirer moved more than was paid"
    CHARGED_UNASKED = "the acquirer charged what no request asked for"
    NOT_CHARGED = "a success in the books is none at the acquirer"
    CHARGED_UNBOOKED = "the acquirer charged what the books don't have as a success"
    NOT_LINEARIZABLE = "no order of events explains what clients were told of a payment"
    LIMIT_EXCEEDED = "more was let in than the partner's limits allow"
    BOUND_EXCEEDED = "more was taken than its bulkhead allows"
    BREAKER_CLOSED = "new payments went on to an acquirer that was known to fail"
    NEVER_SET_ASIDE = "a command that orders a fault went on being tried"
    AUDIT = "the audit found a difference"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, and the first of the requests that it is about; `offenders_count`: of all of them."""

    fault: Fault
    partner: str
    detail: str
    offenders: tuple[Offender, ...] = ()
    offenders_count: int = 0

    def __str__(self) -> str:
        told = f"{self.partner}: {self.fault}: {self.detail}"
        if not self.offenders:
            return told
        more = f" and {self.offenders_count - 1} more" if self.offenders_count > 1 else ""
        return f"{told}; {self.offenders[0].what}{more}"


def finding_json(finding: Finding, begin_s: float) -> dict[str, Any]:
    """Give one finding as it stands in a report, times in seconds after the load's begin."""
    return {
        "fault": str(finding.fault),
        "partner": finding.partner,
        "detail": finding.detail,
        "requests": [offender_json(one, begin_s) for one in finding.offenders],
        "requests_count": finding.offenders_count,
    }


@dataclass(slots=True)
class Judgement:
    """What is wrong, and what can't be told."""

    findings: list[Finding] = field(default_factory=list)
    unknowns: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """`wrong`, `unknown` or `right`."""
        return "wrong" if self.findings else "unknown" if self.unknowns else "right"

    def accuse(self, fault: Fault, partner: str, detail: str, offenders: Sequence[Offender]) -> None:
        """Take note of something wrong, and of the first requests that it is about."""
        kept = tuple(offenders[: limits.FINDING_OFFENDERS_MAX])
        self.findings.append(Finding(fault, partner, detail, kept, len(offenders)))


def judge_money(
    calls: Sequence[Call], books: dict[str, Book], record: Record, audit: dict[str, Any] | None = None
) -> Judgement:
    """Judge a whole history, repeats included, once everything has come to rest.

    `books` are all payments of each partner as its API lists them, `record` the acquirer's rows, `audit` what
    `bulkhead audit --json` printed.
    """
    judgement = Judgement()
    by_partner: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        by_partner[call.partner].append(call)
    rows: dict[str, Record] = defaultdict(list)
    for row in record:
        rows[str(row["partner"])].append(row)
    assert by_partner.keys() <= books.keys(), "a partner without a book can't be judged"
    requests: dict[str, Requests] = {}
    for partner in sorted(books):
        own, book = by_partner[partner], books[partner]
        requests[partner] = Requests(partner, own, book)
        _judge_requests(judgement, partner, own, book)
        _judge_answers(judgement, requests[partner], partner, own, book)
        _judge_charges(judgement, partner, own, rows[partner])
        _judge_books(judgement, requests[partner], partner, book, rows[partner])
    if audit is not None:
        _judge_audit(judgement, requests, audit)
    return judgement


def judge_ordered(judgement: Judgement, attempts: Sequence[Call]) -> None:
    """Judge a command that ordered a fault, repeats included: it was done, or at last set aside."""
    key, partner = attempts[0].key, attempts[0].partner
    # Whether it was done before it was set aside is in the book; nobody else is in doubt of it.
    judgement.unknowns = [what for what in judgement.unknowns if str(key) not in what]
    ends = {call.outcome.word for call in attempts if call.outcome is not None}
    if not any(call.acknowledged for call in attempts) and "command_quarantined" not in ends:
        told = f"{len(attempts)} attempts under {key} were answered {sorted(ends)}"
        judgement.accuse(Fault.NEVER_SET_ASIDE, partner, told, offenders_of(attempts))


def _judge_requests(judgement: Judgement, partner: str, calls: list[Call], book: Book) -> None:
    """Each key: one answer for ever, at most one payment, and exactly one where it was acknowledged."""
    by_key: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        if call.key is not None:
            by_key[call.key].append(call)
    by_reference: dict[str, int] = defaultdict(int)
    for payment in book:
        by_reference[str(payment["reference"])] += 1
    for key, attempts in by_key.items():
        _judge_replays(judgement, partner, key, attempts)
        if all(call.step != "create_payment" for call in attempts):
            if not any(call.acknowledged or _is_refused(call) for call in attempts):
                judgement.unknowns.append(f"{partner}: {attempts[0].step} under {key} was never answered")
            continue
        reference = str(attempts[0].request()["reference"])
        count = by_reference[reference]
        if count > 1:
            judgement.accuse(
                Fault.TWICE_THERE, partner, f"{count} payments of {reference}, key {key}", offenders_of(attempts)
            )
        acknowledged = any(call.acknowledged for call in attempts)
        if acknowledged and not count:
            detail = f"no payment of {reference}, acknowledged under key {key}"
            judgement.accuse(Fault.LOST, partner, detail, offenders_of(attempts))
        refused = [_is_refused(call) for call in attempts]
        if all(refused) and count:
            detail = f"{reference}, refused with {attempts[-1].outcome} under key {key}"
            judgement.accuse(Fault.REFUSED_YET_DONE, partner, detail, offenders_of(attempts))
        if not acknowledged and not any(refused):
            judgement.unknowns.append(f"{partner}: a payment under {key} was never answered")


def _is_refused(call: Call) -> bool:
    outcome = call.outcome
    return outcome is not None and (outcome.status in _REFUSING_STATUSES or outcome.word in _REFUSING_CODES)


def _judge_replays(judgement: Judgement, partner: str, key: str, attempts: list[Call]) -> None:
    answered = [call for call in attempts if call.acknowledged]
    if not answered:
        return
    first = min(answered, key=lambda call: call.answered_s or 0)
    for call in answered:
        if call is first:
            continue
        both = offenders_of((first, call))
        if call.body != first.body or call.path != first.path:
            judgement.accuse(Fault.KEY_REUSED, partner, f"key {key}: {call.outcome} for another request", both)
        elif (call.status, call.answer) != (first.status, first.answer):
            judgement.accuse(Fault.REPLAY_DIFFERS, partner, f"key {key}: {first.outcome}, then {call.outcome}", both)
        elif call.sent_s > (first.answered_s or 0) and not call.replayed:
            judgement.accuse(Fault.REPLAY_DIFFERS, partner, f"key {key}: a replay is not marked as one", both)


def _judge_answers(judgement: Judgement, requests: Requests, partner: str, calls: list[Call], book: Book) -> None:
    """Each acknowledged answer: what it says is in the books, and what it says is final has stayed so."""
    payments: dict[str, dict[str, Any]] = {}
    for payment in book:
        if payment["id"] in payments:
            detail = f"{payment['id']} is listed twice"
            judgement.accuse(Fault.TWICE_THERE, partner, detail, requests.of_payment(payment["id"]))
        payments[payment["id"]] = payment
        _judge_state(judgement, partner, payment, requests.of_payment(payment["id"]))
    for call in calls:
        content = call.content() if call.acknowledged else {}
        if content.get("object") == "payment":
            _judge_payment(judgement, call, content, payments.get(content["id"]))
        elif content.get("object") == "refund":
            payment = payments.get(content["payment_id"], {"operations": []})
            told = {**content, "type": "refund"}
            _judge_operation(judgement, call, told, _operation(payment, content["id"]))


def _judge_payment(judgement: Judgement, call: Call, told: dict[str, Any], kept: dict[str, Any] | None) -> None:
    partner, offenders = call.partner, offenders_of([call])
    _judge_state(judgement, partner, told, offenders)
    if kept is None:
        judgement.accuse(Fault.LOST, partner, f"{told['id']}, told by {call.step}", offenders)
        return
    names = ("amount", "currency", "payment_method", "reference")
    asked = call.request() if call.step == "create_payment" else {}
    for name in names:
        if told[name] != kept[name] or asked.get(name, told[name]) != told[name]:
            detail = f"{told['id']}: {name} was {asked.get(name)}, told {told[name]}, is {kept[name]}"
            judgement.accuse(Fault.ALTERED, partner, detail, offenders)
    for operation in told["operations"]:
        _judge_operation(judgement, call, operation, _operation(kept, operation["id"]))


def _judge_state(judgement: Judgement, partner: str, payment: dict[str, Any], offenders: Sequence[Offender]) -> None:
    """Hold status and amounts against the operations, as docs/payments.md says, without the gateway's own rules."""
    operations = payment["operations"]
    if "amount_captured" not in payment or any(operation["type"] not in _MONEY_MOVES for operation in operations):
        return  # a summary, or of a kind that is not known here
    first = operations[0]
    done = [operation for operation in operations if operation["status"] == "succeeded"]

    def sum_of(*kinds: str) -> int:
        return sum(int(operation["amount"]) for operation in done if operation["type"] in kinds)

    authorized = sum_of(*_OPENING)
    captured, refunded = sum_of("purchase", "capture"), sum_of("refund")
    said = [payment[f"amount_{name}"] for name in ("authorized", "captured", "refunded")]
    allowed = _STATUSES_OF_FIRST.get(first["status"], _statuses_of_success(authorized, captured, refunded))
    told = f"{payment['id']} is {payment['status']} with {said} and {[(o['type'], o['status']) for o in operations]}"
    if said != [authorized, captured, refunded] or not refunded <= captured <= authorized <= payment["amount"]:
        judgement.accuse(Fault.IMPOSSIBLE, partner, told, offenders)
    elif payment["status"] not in allowed:
        judgement.accuse(Fault.IMPOSSIBLE, partner, f"{told}, only {sorted(allowed)} can be", offenders)


def _statuses_of_success(authorized: int, captured: int, refunded: int) -> frozenset[str]:
    """Name the statuses of a payment that the acquirer approved; a dispute may come to any that was captured."""
    if not captured:
        return frozenset({"authorized", "canceled", "expired"})
    if refunded:
        # All is refunded only where nothing more can be captured.
        return frozenset({"partially_refunded", "disputed", "refunded" if refunded == captured else "disputed"})
    return frozenset({"captured" if captured == authorized else "partially_captured", "disputed"})


def _judge_operation(judgement: Judgement, call: Call, told: dict[str, Any], kept: dict[str, Any] | None) -> None:
    partner, offenders = call.partner, offenders_of([call])
    if kept is None:
        judgement.accuse(Fault.LOST, partner, f"{told['type']} {told['id']}", offenders)
    elif (told["type"], told["amount"]) != (kept["type"], kept["amount"]):
        judgement.accuse(Fault.ALTERED, partner, f"{told['type']} {told['id']}", offenders)
    elif told["status"] in _FINAL and told["status"] != kept["status"]:
        detail = f"{told['id']} was {told['status']}, is {kept['status']}"
        judgement.accuse(Fault.REVERSED, partner, detail, offenders)


def _operation(payment: dict[str, Any], operation_id: str) -> dict[str, Any] | None:
    return next((found for found in payment["operations"] if found["id"] == operation_id), None)


def _judge_charges(judgement: Judgement, partner: str, calls: list[Call], rows: Record) -> None:
    """Hold what the acquirer charged against what clients asked for; the gateway's own books are not looked at."""
    asked: dict[int, list[Call]] = defaultdict(list)  # amount -> requests for a new payment
    changes: dict[tuple[str, str], list[Call]] = defaultdict(list)  # (payment, kind) -> requests
    known: set[str] = set()
    for call in calls:
        if call.key is None or call.key in known:
            continue  # a read, or a repeat: another body under a used key asks for nothing
        known.add(call.key)
        if call.step == "create_payment":
            asked[call.request()["amount"]].append(call)
        elif call.step in _CHANGES:  # a confirmation goes on with what was asked for
            changes[call.path.split("/")[3], _CHANGES[call.step]].append(call)
    charged = [row for row in rows if row["charged"]]
    openings: dict[int, Record] = defaultdict(list)
    for row in charged:
        if row["kind"] in _OPENING:
            openings[row["amount"]].append(row)
    for amount, its in openings.items():
        requests = asked.get(amount, [])
        if len(its) > len(requests):
            detail = f"{len(its)} charges over {amount}, {len(requests)} were asked for"
            fault = Fault.CHARGED_TWICE if requests else Fault.CHARGED_UNASKED
            judgement.accuse(fault, partner, detail, [*offenders_of(requests), *_charges(partner, its)])
    _judge_changes(judgement, partner, calls, charged, changes)


def _judge_changes(
    judgement: Judgement,
    partner: str,
    calls: list[Call],
    charged: Record,
    changes: dict[tuple[str, str], list[Call]],
) -> None:
    """See that there are no more captures, voids and refunds than requests, over no more money than was paid."""
    payment_of: dict[str, str] = {}  # the opening operation's key -> payment, as clients were told
    for call in calls:
        content = call.content() if call.acknowledged else {}
        if content.get("object") == "payment" and content["operations"]:
            payment_of[content["operations"][0]["id"]] = content["id"]
    openings = {row["key"]: row for row in charged if row["kind"] in _OPENING}
    later: dict[tuple[str, str], Record] = defaultdict(list)
    for row in charged:
        if row["kind"] not in _OPENING:
            later[str(row["original_key"]), row["kind"]].append(row)
    for (original, kind), rows in later.items():
        payment = payment_of.get(original)
        requests = changes.get((payment, kind), []) if payment is not None else []
        offenders = [*offenders_of(requests), *_charges(partner, rows)]
        if len(rows) > len(requests):
            detail = f"{len(rows)} of kind {kind} on {payment or original}, {len(requests)} were asked for"
            judgement.accuse(Fault.CHARGED_TWICE if requests else Fault.CHARGED_UNASKED, partner, detail, offenders)
        moved = sum(row["amount"] for row in rows)
        if original not in openings or moved > openings[original]["amount"]:
            judgement.accuse(Fault.CHARGED_TOO_MUCH, partner, f"{moved} by {kind} on {payment or original}", offenders)


def _charges(partner: str, rows: Record) -> list[Offender]:
    """Name what the acquirer did; it tells no time."""
    return [Offender(None, partner, f"{row['kind']} {row['key']} at the acquirer") for row in rows]


def _by_key(judgement: Judgement, requests: Requests, rows: Record) -> dict[str, dict[str, Any]]:
    """Give the acquirers' rows by key; one key may be charged at one acquirer only."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        other = found.get(row["key"])
        if other is not None and other["charged"] and row["charged"]:
            detail = f"{row['key']} at two acquirers"
            _accuse_operation(judgement, requests, row["key"], Fault.CHARGED_TWICE, detail)
        if other is None or row["charged"]:
            found[row["key"]] = row
    return found


def _judge_books(judgement: Judgement, requests: Requests, partner: str, book: Book, rows: Record) -> None:
    """Each operation in the books against the acquirer's row of the same key."""
    at_acquirer = _by_key(judgement, requests, rows)
    booked: set[str] = set()
    for payment in book:
        for operation in payment["operations"]:
            row = at_acquirer.get(operation["id"])
            charged = row is not None and row["charged"]
            booked.add(operation["id"])
            if operation["status"] in _RESTING:
                if charged:
                    detail = f"{operation['id']} waits for its customer"
                    _accuse_operation(judgement, requests, operation["id"], Fault.CHARGED_UNBOOKED, detail)
            elif operation["status"] not in _FINAL:
                judgement.unknowns.append(f"{partner}: {operation['id']} is {operation['status']}")
            elif operation["status"] == "succeeded":
                same = row is not None and (row["kind"], row["amount"], row["currency"]) == (
                    operation["type"],
                    operation["amount"],
                    payment["currency"],
                )
                if not charged or not same:
                    detail = f"{operation['type']} {operation['id']}"
                    _accuse_operation(judgement, requests, operation["id"], Fault.NOT_CHARGED, detail)
            elif charged:
                detail = f"{operation['id']} is failed in the books"
                _accuse_operation(judgement, requests, operation["id"], Fault.CHARGED_UNBOOKED, detail)
    for key, row in at_acquirer.items():
        if row["charged"] and key not in booked:
            _accuse_operation(judgement, requests, key, Fault.CHARGED_UNBOOKED, f"{key} is not in the books")


def _accuse_operation(judgement: Judgement, requests: Requests, operation_id: str, fault: Fault, detail: str) -> None:
    judgement.accuse(fault, requests.partner, detail, requests.of_operation(operation_id))


def _judge_audit(judgement: Judgement, requests: Mapping[str, Requests], audit: dict[str, Any]) -> None:
    for row in audit["partners"]:
        for difference in row["differences"]:
            own = requests.get(row["partner"])
            offenders = [] if own is None else own.named_in(str(difference))
            judgement.accuse(Fault.AUDIT, row["partner"], str(difference), offenders)
        if row["in_doubt"]:
            judgement.unknowns.append(f"{row['partner']}: {row['in_doubt']} operations are in doubt")
    for extra in audit.get("extra_at_acquirer", []):
        judgement.accuse(Fault.AUDIT, str(extra), "the acquirer has it, no cell does", [])
    if not audit["ok"] and not any(finding.fault is Fault.AUDIT for finding in judgement.findings):
        judgement.accuse(Fault.AUDIT, "-", "it is not ok and does not say why", [])


# Answers, one by one.


class Role(StrEnum):
    """A partner's part in an experiment."""

    BYSTANDER = "bystander"
    KILLED = "worker killed"
    FLOODING = "floods"
    HANGING = "acquirer hangs"


_FLOODING_EXCUSES: Final = frozenset(
    {Outcome(429, "rate_limited"), Outcome(429, "too_many_in_flight"), Outcome(429, "mailbox_full")}
)
_HANGING_EXCUSES: Final = frozenset(
    {
        Outcome(503, "acquirer_unavailable"),
        Outcome(429, "too_many_in_flight"),
        Outcome(429, "mailbox_full"),
        Outcome(409, "payment_processing"),
    }
)


def error_of(call: Call, role: Role = Role.BYSTANDER, *, in_trouble: bool = False) -> str | None:
    """Say in which way a first attempt broke the promise of "0 errors"; None where it didn't.

    No answer, one later than CLIENT_DEADLINE_MS, one that is not documented for its request, or one that is but
    that this request should not have got: only the partner that is itself in trouble may hear of it, with a 429
    where it floods, with a 202 or 503 where its acquirer does not answer.
    """
    if call.error is not None or call.latency_ms is None:
        return f"no answer ({call.error})"
    outcome = call.outcome
    assert outcome is not None
    if call.latency_ms > limits.CLIENT_DEADLINE_MS:
        return f"late ({call.latency_ms:.0f} ms)"
    if not is_documented(call.method, call.path, outcome):
        return f"not documented ({outcome})"
    if outcome in call.expected:
        return None
    if in_trouble and role is Role.FLOODING and outcome in _FLOODING_EXCUSES:
        return None
    if in_trouble and role is Role.HANGING and (outcome in _HANGING_EXCUSES or call.acknowledged):
        return None
    return f"not due ({outcome})"


def is_documented(method: str, path: str, outcome: Outcome) -> bool:
    """Say whether the API's description has this answer for this request."""
    for endpoint in ENDPOINTS:
        if endpoint.method == method and _fits(endpoint.path, path.partition("?")[0]):
            if outcome.status in endpoint.answers:
                return outcome.word != "unreadable"
            return any(KINDS[code].status == outcome.status and code.value == outcome.word for code in codes(endpoint))
    return False


def _fits(pattern: str, path: str) -> bool:
    wanted, given = pattern.split("/"), path.split("/")
    return len(wanted) == len(given) and all(part in ("{id}", found) for part, found in zip(wanted, given, strict=True))


# Latency.


@dataclass(frozen=True, slots=True)
class Latency:
    """Of usual calls that were answered, in ms, by nearest rank; None where there was none."""

    count: int
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    p95_ms: float | None = None

    @property
    def tail_ms(self) -> float | None:
        """The percentile that so many calls can carry: of a hundred, the p99 is a single call (one stalled fsync)."""
        few = self.count < limits.LATENCIES_FOR_P99_MIN
        return self.p95_ms if few and self.p95_ms is not None else self.p99_ms


NO_LATENCY: Final = Latency(0, None, None, None)


def latency(calls: Iterable[Call]) -> Latency:
    """Sum up the latencies of usual calls."""
    values = sorted(call.latency_ms for call in calls if call.usual and call.latency_ms is not None)
    if not values:
        return NO_LATENCY
    return Latency(len(values), _rank(values, 50), _rank(values, 99), values[-1], _rank(values, 95))


def _rank(values: Sequence[float], percent: int) -> float:
    return values[max(-(-len(values) * percent // 100), 1) - 1]


def calm_range_ms(calm: Latency) -> float | None:
    """Give the tail latency up to which a bystander counts as undisturbed; None where calm was too short to tell."""
    if calm.p99_ms is None or calm.count < limits.LATENCIES_MIN:
        return None
    return max(limits.CALM_RANGE_FACTOR * calm.p99_ms, calm.p99_ms + limits.CALM_RANGE_SLACK_MS)


def within_calm_range(calm: Latency, trouble: Latency) -> bool | None:
    """Say whether trouble was as calm as calm; None where there were too few calls to tell."""
    bound_ms = calm_range_ms(calm)
    if bound_ms is None or trouble.tail_ms is None or trouble.count < limits.LATENCIES_MIN:
        return None
    return trouble.tail_ms <= bound_ms
