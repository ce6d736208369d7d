"""The requests that a finding is about, named so that they are found in the history and in logs. Judges nothing.

They go by the workload's own idempotency keys. API keys stand in no history, so none can come into a report.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chaos.history import Call


@dataclass(frozen=True, slots=True)
class Offender:
    """One request. `at_s`: when it was due, or first sent, on the monotonic clock; None: it is in no history."""

    at_s: float | None
    partner: str
    what: str


def name_of(call: Call) -> str:
    """Name a request: what was asked for, under which key, and as which step of which scenario."""
    key = f" under key {call.key}" if call.key else ""
    return f"{call.method} {call.path}{key} ({call.scenario} {call.step})"


def offenders_of(calls: Iterable[Call]) -> list[Offender]:
    """Name each request once, however often it was sent, in the order given."""
    first: dict[tuple[str, str], Call] = {}
    for call in calls:
        name = call.partner, name_of(call)
        if name not in first or call.sent_s < first[name].sent_s:
            first[name] = call
    return [Offender(call.sent_s, partner, what) for (partner, what), call in first.items()]


def under_way(calls: Iterable[Call], partners: Iterable[str], from_s: float, until_s: float) -> list[Offender]:
    """Name these partners' requests that were under way at any moment of a time."""
    theirs = frozenset(partners)
    met = [call for call in calls if call.partner in theirs and call.sent_s <= until_s]
    met = [call for call in met if call.ended_s is None or call.ended_s >= from_s]
    return offenders_of(sorted(met, key=lambda call: call.sent_s))


def offender_json(offender: Offender, begin_s: float) -> dict[str, Any]:
    """Give one request as it stands in a report, its time in seconds after the load's begin."""
    at_s = None if offender.at_s is None else round(offender.at_s - begin_s, 2)
    return {"at_s": at_s, "partner": offender.partner, "what": offender.what}


class Requests:
    """Finds the writes behind payments and operations in one partner's history. `book`: its payments."""

    def __init__(self, partner: str, calls: Sequence[Call], book: Sequence[Mapping[str, Any]]) -> None:
        self.partner = partner
        self._writes: dict[str, list[Call]] = defaultdict(list)
        self._payment_of: dict[str, str] = {}
        by_reference: dict[str, list[str]] = defaultdict(list)
        for payment in book:
            by_reference[str(payment["reference"])].append(payment["id"])
            self._payment_of |= {operation["id"]: payment["id"] for operation in payment["operations"]}
        for call in calls:
            content = call.content() if call.acknowledged else {}
            told = {str(content["id"])} if content.get("object") == "payment" else set()
            for operation in content["operations"] if told else ():
                self._payment_of[operation["id"]] = content["id"]
            if content.get("object") == "refund":
                self._payment_of[content["id"]] = content["payment_id"]
            if call.key is None:
                continue
            if call.step == "create_payment":
                told |= {*by_reference.get(str(call.request().get("reference")), ())}
            else:
                told = {call.path.split("/")[3]}
            for payment_id in told:
                self._writes[payment_id].append(call)

    def of_payment(self, payment_id: str) -> list[Offender]:
        """Name all writes to a payment; the payment itself where this history has none."""
        writes = self._writes.get(payment_id)
        return offenders_of(writes) if writes else [Offender(None, self.partner, f"payment {payment_id}")]

    def of_operation(self, operation_id: str) -> list[Offender]:
        """Name all writes to the payment of an operation; the operation itself where nobody told of it."""
        payment_id = self._payment_of.get(operation_id)
        if payment_id is None:
            return [Offender(None, self.partner, f"operation {operation_id}")]
        return self.of_payment(payment_id)

    def named_in(self, text: str) -> list[Offender]:
        """Name all writes to the payments and operations that a text names."""
        found: dict[Offender, None] = {}
        for word in re.findall(r"\w+", text):
            if word in self._writes:
                found |= dict.fromkeys(self.of_payment(word))
            elif word in self._payment_of:
                found |= dict.fromkeys(self.of_operation(word))
        return list(found)
