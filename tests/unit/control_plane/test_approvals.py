"""The rules of approvals: who is the second person, until when, and for what exactly."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from control_plane import approvals, limits
from control_plane.approvals import Approval, Person, digest_of
from control_plane.data_folder import timestamp
from control_plane.errors import ForbiddenError, RefusedError
from control_plane.registry_records import Operator

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)
ROUTE = ("POST", "/partners/{partner_id}/keys")
GIVEN = {"partner_id": "acme", "grace_s": 0}
TARGET = {"partner": {"id": "acme", "profile_version": 3}, "keys": [["key_1", None, None]]}
ANN, BOB = Person("ann", "ann", 1_000), Person("bob", "bob", 1_001)
APPROVAL = Approval(
    "ap_1",
    "live_keys",
    *ROUTE,
    GIVEN,
    TARGET,
    digest_of(*ROUTE, GIVEN, TARGET),
    "give acme a new key",
    ANN,
    timestamp(NOW),
    timestamp(NOW + timedelta(hours=24)),
)


def operator(name: str, role: str = "operator", status: str = "active") -> Operator:
    return Operator(name, role, status, "hash", "hint", timestamp(NOW))


OPERATORS = {
    one.id: one for one in (operator("ann"), operator("bob"), operator("cyn", "viewer"), operator("local", "admin"))
}


def decide(decider: Person, approval: Approval = APPROVAL, operators: dict[str, Operator] = OPERATORS) -> None:
    approvals.require_may_decide(approval, decider, operators, NOW, approves=True)


def test_another_operator_approves() -> None:
    decide(BOB)
    decide(Person("bob", "bob"))  # over the port nobody knows which user it is
    assert approvals.who_may_decide(OPERATORS.values(), APPROVAL) == ["bob", "local"]


@pytest.mark.parametrize(
    "same",
    [ANN, Person("ann", "ann", 1_001), Person("ann", "ann"), Person("bob", "bob", 1_000), Person("local", "x", 1_000)],
)
def test_one_and_the_same_person_is_no_second_one(same: Person) -> None:
    with pytest.raises(ForbiddenError, match="second person"):
        decide(same)


@pytest.mark.parametrize("changed", [operator("bob", "viewer"), operator("bob", status="disabled"), None])
def test_neither_who_decides_nor_who_asked_may_be_nobody_by_now(changed: Operator | None) -> None:
    for name in ("bob", "ann"):
        operators = {key: value for key, value in OPERATORS.items() if key != name}
        if changed is not None:
            operators[name] = replace(changed, id=name)
        with pytest.raises(ForbiddenError, match=f"^{name}, who"):
            decide(BOB, APPROVAL, operators)


def test_an_admin_s_change_needs_an_admin() -> None:
    added = replace(APPROVAL, kind="roles", method="POST", route="/operators")
    with pytest.raises(ForbiddenError, match="no admin"):
        decide(BOB, added, OPERATORS | {"ann": operator("ann", "admin")})
    assert approvals.who_may_decide(OPERATORS.values(), added) == ["local"]


@pytest.mark.parametrize("state", sorted(approvals.APPROVAL_STATES - {"pending"}))
def test_what_is_decided_is_not_decided_again(state: str) -> None:
    decided = replace(APPROVAL, state=state, ended_at=timestamp(NOW))
    for refused in (lambda: decide(BOB, decided), lambda: approvals.require_may_withdraw(decided, ANN, NOW)):
        with pytest.raises(RefusedError, match=f"ap_1 is {state}"):
            refused()


def test_it_waits_until_it_expires_and_no_moment_longer() -> None:
    late = NOW + timedelta(hours=24)
    approvals.require_pending(APPROVAL, late - timedelta(milliseconds=1))
    with pytest.raises(RefusedError, match="expired"):
        approvals.require_pending(APPROVAL, late)
    assert not approvals.is_expired(replace(APPROVAL, state="approved"), late)


def test_only_who_asked_withdraws() -> None:
    approvals.require_may_withdraw(APPROVAL, ANN, NOW)
    with pytest.raises(ForbiddenError, match="ann asked for ap_1"):
        approvals.require_may_withdraw(APPROVAL, BOB, NOW)


@pytest.mark.parametrize(
    "other",
    [
        {**TARGET, "partner": {"id": "acme", "profile_version": 4}},
        {**TARGET, "keys": []},
        {},
    ],
)
def test_what_has_changed_since_is_not_what_was_approved(other: dict[str, object]) -> None:
    approvals.require_unchanged(APPROVAL, TARGET)
    with pytest.raises(RefusedError, match="changed since"):
        approvals.require_unchanged(APPROVAL, other)


def test_the_digest_binds_method_route_arguments_and_target() -> None:
    digests = {
        digest_of(*ROUTE, GIVEN, TARGET),
        digest_of("PUT", ROUTE[1], GIVEN, TARGET),
        digest_of(ROUTE[0], "/other", GIVEN, TARGET),
        digest_of(*ROUTE, {**GIVEN, "grace_s": 1}, TARGET),
        digest_of(*ROUTE, GIVEN, {}),
    }
    assert len(digests) == 5
    assert digest_of(*ROUTE, dict(reversed(GIVEN.items())), TARGET) in digests


def test_the_same_change_waits_once() -> None:
    assert approvals.find_same(replace(APPROVAL, id="ap_2", asked_by=BOB), [APPROVAL], NOW) is APPROVAL
    assert approvals.find_same(APPROVAL, [replace(APPROVAL, state="refused")], NOW) is None
    assert approvals.find_same(APPROVAL, [APPROVAL], NOW + timedelta(hours=25)) is None


def test_only_so_many_wait_of_one_operator_and_of_all() -> None:
    def ask(*known: Approval) -> None:
        approvals.require_may_ask(APPROVAL, known, OPERATORS.values(), NOW)

    own = [replace(APPROVAL, id=f"ap_{n}") for n in range(limits.APPROVALS_PENDING_PER_OPERATOR_MAX)]
    ask(*own[1:])
    ask(replace(own[0], state="done"), *own[1:])
    with pytest.raises(RefusedError, match="10 of them asked for by ann"):
        ask(*own)
    others = [replace(APPROVAL, id=f"ap_{n}", asked_by=BOB) for n in range(limits.APPROVALS_PENDING_MAX)]
    with pytest.raises(RefusedError, match="100 changes wait"):
        ask(*others)


def test_what_nobody_else_could_approve_is_refused_at_once() -> None:
    for others in ([], [operator("cyn", "viewer")], [operator("bob", status="disabled")]):
        with pytest.raises(RefusedError, match="nobody but ann"):
            approvals.require_may_ask(APPROVAL, [], [operator("ann"), *others], NOW)


def test_those_that_ended_longest_ago_go_first() -> None:
    ended = [replace(APPROVAL, id=f"ap_{n}", state="done", ended_at=f"2026-12-01T12:00:0{n}Z") for n in range(4)]
    assert approvals.surplus([APPROVAL, *reversed(ended)], 2) == ended[:2]
    assert approvals.surplus([APPROVAL, *ended], 4) == []
