"""Changes that wait for a second person: what is asked, who may decide it, and whether it is still the same. Pure.

    pending -> done | refused | withdrawn | expired | failed
    pending -> approved -> done | failed       where something outside the registry is changed first

What is approved is bound by a digest over method, route, arguments and target as they were when it was asked; where any
of them is another by then, it fails and is to be asked anew. Why two persons: docs/operations.md, "Two persons".
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, get_args

from control_plane import limits
from control_plane.errors import ForbiddenError, RefusedError
from control_plane.registry_records import Operator
from control_plane.roles import ROLES, role_for

Kind = Literal["live_keys", "unknown_resolve", "deletion", "roles"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
# Without it one who may add operators could make the second person.
ROLES_KIND: Final = "roles"
APPROVAL_STATES: Final = frozenset({"pending", "approved", "done", "refused", "withdrawn", "expired", "failed"})
OPEN_STATES: Final = frozenset({"pending", "approved"})


@dataclass(frozen=True, slots=True)
class Person:
    """Who asks: by which operator's key, under which name, and as which user of this machine, where that is known."""

    operator: str
    who: str
    uid: int | None = None

    def is_same(self, other: "Person") -> bool:
        """Whether both may be one human being."""
        return self.operator == other.operator or (self.uid is not None and self.uid == other.uid)


@dataclass(frozen=True, slots=True)
class Approval:
    """One change that waits for a second person, or did. Times are RFC 3339. `why`: what came of it, in words."""

    id: str
    kind: str
    method: str
    route: str
    arguments: dict[str, Any]
    target: dict[str, Any]
    digest: str
    summary: str
    asked_by: Person
    asked_at: str
    expires_at: str
    state: str = "pending"
    decided_by: Person | None = None
    ended_at: str = ""
    why: str = ""

    @property
    def who(self) -> str:
        """Name both persons, for the audit log."""
        assert self.decided_by is not None, f"{self.id} was not decided"
        return f"{self.asked_by.who}, approved by {self.decided_by.who}"


def digest_of(method: str, route: str, arguments: Mapping[str, Any], target: Mapping[str, Any]) -> str:
    """Return the digest that binds an approval to what is done."""
    named = [method, route, dict(arguments), dict(target)]
    return hashlib.sha256(json.dumps(named, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def is_expired(approval: Approval, now: datetime) -> bool:
    """Whether it waited too long."""
    return approval.state == "pending" and datetime.fromisoformat(approval.expires_at) <= now


def find_same(asked: Approval, known: Iterable[Approval], now: datetime) -> Approval | None:
    """Return what waits already and is the same change, of whoever asked."""
    waiting = (one for one in known if one.state in OPEN_STATES and not is_expired(one, now))
    return next((one for one in waiting if one.digest == asked.digest), None)


def who_may_decide(operators: Iterable[Operator], approval: Approval) -> list[str]:
    """Return the operators who could approve, as far as their names tell."""
    _, needed = role_for(approval.method, approval.route)
    return [
        one.id
        for one in operators
        if one.status == "active" and ROLES[one.role] >= needed and one.id != approval.asked_by.operator
    ]


def require_may_ask(asked: Approval, known: Sequence[Approval], operators: Iterable[Operator], now: datetime) -> None:
    """Refuse what would wait for ever, or more than may wait. Raises RefusedError."""
    if not who_may_decide(operators, asked):
        raise RefusedError(
            f"nobody but {asked.asked_by.operator} could approve it",
            where="two_person_approval in the settings",
            hint="a second operator is added while it is off: docs/operations.md, Two persons",
        )
    waiting = [one for one in known if one.state in OPEN_STATES and not is_expired(one, now)]
    own = sum(one.asked_by.operator == asked.asked_by.operator for one in waiting)
    if own >= limits.APPROVALS_PENDING_PER_OPERATOR_MAX or len(waiting) >= limits.APPROVALS_PENDING_MAX:
        raise RefusedError(
            f"{len(waiting)} changes wait for a second person, {own} of them asked for by {asked.asked_by.operator}: "
            f"at most {limits.APPROVALS_PENDING_MAX} may, {limits.APPROVALS_PENDING_PER_OPERATOR_MAX} of one operator",
            hint="see them: bulkhead approval list; take one back: bulkhead approval withdraw ID",
        )


def require_may_decide(
    approval: Approval, decider: Person, operators: Mapping[str, Operator], now: datetime, *, approves: bool
) -> None:
    """Refuse who is not the second person, and what is decided already. Raises RefusedError, ForbiddenError."""
    require_pending(approval, now)
    if decider.is_same(approval.asked_by):
        asker = approval.asked_by
        same = (
            f"{decider.who} is who asked for {approval.id}"
            if decider.operator == asker.operator
            else f"{decider.who} and {asker.who}, who asked for it, are one user of this machine, {decider.uid}"
        )
        raise ForbiddenError(
            f"{same}: it needs a second person",
            where=approval.id,
            hint=f"take it back with `bulkhead approval withdraw {approval.id}`, or let another operator decide, "
            "as a user of their own or over the admin port",
        )
    _, needed = role_for(approval.method, approval.route)
    # Who asked has to be somebody still, or a thief's wish outlives the theft; to refuse it asks for nothing.
    asked = [(approval.asked_by.operator, "asked")] if approves else []
    for operator_id, what in ((decider.operator, "decides"), *asked):
        found = operators.get(operator_id)
        if found is None or found.status != "active" or ROLES[found.role] < needed:
            raise ForbiddenError(
                f"{operator_id}, who {what}, is no {needed.word} (any more)",
                where=approval.id,
                hint="ask an admin: bulkhead operator list",
            )


def require_may_withdraw(approval: Approval, decider: Person, now: datetime) -> None:
    """Refuse all but who asked. Raises RefusedError, ForbiddenError."""
    require_pending(approval, now)
    if decider.operator != approval.asked_by.operator:
        raise ForbiddenError(
            f"{approval.asked_by.who} asked for {approval.id}, and can withdraw it",
            where=approval.id,
            hint=f"to decide it: bulkhead approval refuse {approval.id}",
        )


def require_pending(approval: Approval, now: datetime) -> None:
    """Refuse what does not wait any more. Raises RefusedError."""
    if is_expired(approval, now) or approval.state != "pending":
        state = "expired" if is_expired(approval, now) else approval.state
        raise RefusedError(
            f"{approval.id} is {state}{approval.why and f': {approval.why}'}",
            where=approval.id,
            hint="ask for the change anew, if it is still wanted",
        )


def require_unchanged(approval: Approval, target: Mapping[str, Any]) -> None:
    """Refuse what is not any more what was asked for. Raises RefusedError."""
    if digest_of(approval.method, approval.route, approval.arguments, target) != approval.digest:
        raise RefusedError(
            f"{approval.id} was asked for something that has changed since then",
            where=approval.summary,
            hint="ask for the change anew, if it is still wanted",
        )


def surplus(known: Iterable[Approval], most: int) -> list[Approval]:
    """Return those that ended longest ago, past `most`."""
    ended = sorted((one for one in known if one.state not in OPEN_STATES), key=lambda one: (one.ended_at, one.id))
    return ended[: max(len(ended) - most, 0)]
