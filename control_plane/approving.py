"""Makes a change at once, or has it wait for a second person where the settings ask for that, and then makes it once.

A key that two persons made is known to neither: its secret's first part is told to who asked, the rest to who approved,
and the partner (or operator) puts them together. The first part is derived from the approval's name and the pepper, so
that it is nowhere kept; the rest is random, and is told once.
"""

import asyncio
import base64
import contextlib
import hmac
import weakref
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import structlog

from cells.api.ids import new_ulid
from control_plane import approvals, dry_run, limits, registry_approvals
from control_plane.actions import SECOND_PART_CHARACTERS, Action, Arguments, By
from control_plane.approvals import Approval, Person
from control_plane.data_folder import timestamp
from control_plane.dry_run import DryRunDone
from control_plane.errors import ControlPlaneError, NotFoundError, RefusedError, WaitsForApprovalError
from control_plane.registry import Registry
from router.directory import KEY_SECRET_CHARACTERS

log = structlog.get_logger()

_CONTROL_PLANE: Final = "control_plane"
# Refusals after which the same change would be refused again: our own, and those of a partner's actor.
_FINAL: Final = frozenset(
    {RefusedError.code, NotFoundError.code, "operation_not_found", "operation_final", "operation_still_pursued"}
)


class Approvals:
    """All actions, and those of them that wait."""

    def __init__(
        self, registry: Registry, actions: Mapping[str, Action], kinds: Collection[str], pepper: bytes
    ) -> None:
        self._registry = registry
        self._actions = actions
        self._by_route = {(action.method, action.route): action for action in actions.values()}
        self._kinds = frozenset(kinds)
        self._pepper = pepper
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of changes that need two persons."""
        return self._kinds

    async def do(self, name: str, arguments: Arguments, person: Person) -> dict[str, Any]:
        """Make a change. Raises WaitsForApprovalError where it waits for a second person, and what refuses it."""
        action = self._actions[name]
        if action.kind not in self._kinds or not action.needs_two(arguments, person):
            return await action.run(arguments, By(person.who))
        if dry_run.ASKED.get():
            try:
                return await action.run(arguments, By(person.who))
            except DryRunDone as done:
                raise DryRunDone(done.changes, {**done.more, "waits_for_approval": action.kind}) from done
        await _try(action, arguments, person)
        approval = await registry_approvals.ask(self._registry, await self._make(action, arguments, person))
        log.info("approval_asked", approval=approval.id, kind=approval.kind, who=person.who)
        raise WaitsForApprovalError(self._told(approval, person))

    def shown(self, approval: Approval) -> dict[str, Any]:
        """Return an approval as the admin API tells it."""
        expired = approvals.is_expired(approval, datetime.now(UTC))
        fields = asdict(approval) | ({"state": "expired"} if expired else {})
        may = approvals.who_may_decide(self._registry.operators(), approval)
        return {**fields, "who_may_decide": may if fields["state"] == "pending" else []}

    async def approve(self, approval_id: str, decider: Person) -> dict[str, Any]:
        """Make a change that waited. Raises ControlPlaneError: ForbiddenError for who is not the second person."""
        async with self._alone(approval_id):
            approval = self._registry.approval(approval_id)
            operators = {one.id: one for one in self._registry.operators()}
            approvals.require_may_decide(approval, decider, operators, datetime.now(UTC), approves=True)
            action = self._by_route[approval.method, approval.route]
            decided = replace(approval, decided_by=decider)
            try:
                approvals.require_unchanged(approval, await action.target(approval.arguments))
            except RefusedError as error:
                if error.code in _FINAL:
                    await registry_approvals.end(self._registry, decided, "failed", decider.who, error.what)
                raise
            if action.is_outside:
                decided = await registry_approvals.approve(self._registry, approval, decider)
            return await self._make_change(decided, action)

    async def refuse(self, approval_id: str, decider: Person, why: str) -> Approval:
        """End a change that waits. Raises ForbiddenError, RefusedError."""
        async with self._alone(approval_id):
            approval = self._registry.approval(approval_id)
            operators = {one.id: one for one in self._registry.operators()}
            approvals.require_may_decide(approval, decider, operators, datetime.now(UTC), approves=False)
            decided = replace(approval, decided_by=decider)
            return await registry_approvals.end(self._registry, decided, "refused", decider.who, why)

    async def withdraw(self, approval_id: str, person: Person) -> Approval:
        """Withdraw a change that one asked for oneself. Raises ForbiddenError, RefusedError."""
        async with self._alone(approval_id):
            approval = self._registry.approval(approval_id)
            approvals.require_may_withdraw(approval, person, datetime.now(UTC))
            return await registry_approvals.end(self._registry, approval, "withdrawn", person.who)

    async def work(self) -> None:
        """Make what was approved and not made to its end, and end what waited too long. Raises nothing."""
        for approval in self._registry.approvals():
            try:
                if approvals.is_expired(approval, datetime.now(UTC)):
                    await registry_approvals.end(self._registry, approval, "expired", _CONTROL_PLANE)
                elif approval.state == "approved":
                    await self._go_on(approval.id)
            except ControlPlaneError as error:
                log.warning("approval_not_carried_out", approval=approval.id, error=error.what)

    # Inside

    async def _go_on(self, approval_id: str) -> None:
        async with self._alone(approval_id):
            approval = self._registry.approval(approval_id)
            if approval.state == "approved":
                await self._make_change(approval, self._by_route[approval.method, approval.route])

    async def _make_change(self, approval: Approval, action: Action) -> dict[str, Any]:
        assert approval.decided_by is not None
        first_part = "" if action.key_prefix is None else self._first_part(approval)
        by = By(approval.who, approval.id, first_part)
        try:
            with registry_approvals.carried_by(approval) as carried:
                result = await action.run(approval.arguments, by)
                is_done = carried.is_written
        except RefusedError as error:
            # All else may pass, so it waits on; what was written down before it went wrong is done.
            if error.code in _FINAL and self._registry.approval(approval.id).state != "done":
                await registry_approvals.end(self._registry, approval, "failed", approval.decided_by.who, error.what)
            raise
        if not is_done:
            await registry_approvals.end(self._registry, approval, "done", approval.decided_by.who)
        log.info("approval_done", approval=approval.id, who=approval.who)
        return _without_first_part(result) if action.key_prefix is not None else result

    async def _make(self, action: Action, arguments: Arguments, person: Person) -> Approval:
        target = await action.target(arguments)
        now = datetime.now(UTC)
        return Approval(
            id=f"ap_{new_ulid()}",
            kind=action.kind,
            method=action.method,
            route=action.route,
            arguments=dict(arguments),
            target=target,
            digest=approvals.digest_of(action.method, action.route, arguments, target),
            summary=action.summary(arguments, target),
            asked_by=person,
            asked_at=timestamp(now),
            expires_at=timestamp(now + timedelta(seconds=limits.APPROVAL_VALIDITY_S)),
        )

    def _told(self, approval: Approval, person: Person) -> dict[str, Any]:
        told: dict[str, Any] = {"approval": self.shown(approval)}
        action = self._by_route[approval.method, approval.route]
        if action.key_prefix is not None and person.operator == approval.asked_by.operator:
            told["first_part"] = action.key_prefix(approval.arguments) + self._first_part(approval)
        return told

    def _first_part(self, approval: Approval) -> str:
        derived = hmac.digest(self._pepper, f"first part of a key: {approval.id}".encode(), "sha256")
        return base64.urlsafe_b64encode(derived).decode()[: KEY_SECRET_CHARACTERS - SECOND_PART_CHARACTERS]

    def _alone(self, approval_id: str) -> asyncio.Lock:
        return self._locks.setdefault(approval_id, asyncio.Lock())


async def _try(action: Action, arguments: Arguments, person: Person) -> None:
    """Refuse now what would be refused then. Raises ControlPlaneError."""
    token = dry_run.ASKED.set(True)
    try:
        with contextlib.suppress(DryRunDone):
            await action.run(arguments, By(person.who))
    finally:
        dry_run.ASKED.reset(token)


def _without_first_part(result: dict[str, Any]) -> dict[str, Any]:
    """Leave of the new key what is for who approved."""
    key = result["key"]
    if isinstance(key, dict):
        kept = {name: value for name, value in key.items() if name != "api_key"}
        return {**result, "key": {**kept, "second_part": key["api_key"][-SECOND_PART_CHARACTERS:]}}
    return {
        **{name: value for name, value in result.items() if name != "key"},
        "second_part": key[-SECOND_PART_CHARACTERS:],
    }
