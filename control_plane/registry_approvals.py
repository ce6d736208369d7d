"""Approvals as the registry keeps them: each step is one commit with its entry in the audit log.

The change itself, where it is one of the registry, and that it is done, are the same commit: `carried_by` sees to it.
So it is done once, whatever dies around it. Each may raise what registry.py says.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from control_plane import approvals, limits
from control_plane.approvals import Approval, Person
from control_plane.data_folder import timestamp
from control_plane.registry import Registry
from control_plane.registry_draft import CARRIED, Draft


class Carried:
    """An approval that the next commit with an entry of the audit log writes down as done."""

    def __init__(self, approval: Approval) -> None:
        self._done = replace(approval, state="done", ended_at=timestamp())
        self.is_written = False

    def put(self, draft: Draft) -> None:
        """Write it into a commit."""
        assert self._done.decided_by is not None
        draft.put_approval(self._done)
        draft.note(self._done.decided_by.who, "approval_done", None, described(self._done))


@contextmanager
def carried_by(approval: Approval) -> Iterator[Carried]:
    """Let the next commit that this task makes write the approval down as done."""
    carried = Carried(approval)
    token = CARRIED.set(carried)
    try:
        yield carried
    finally:
        CARRIED.reset(token)
        carried.is_written = True  # for tasks that were begun meanwhile, and go on


def described(approval: Approval) -> dict[str, Any]:
    """Return what the audit log says of an approval."""
    fields = {
        "approval": approval.id,
        "kind": approval.kind,
        "method": approval.method,
        "route": approval.route,
        "arguments": approval.arguments,
        "digest": approval.digest,
        "asked_by": approval.asked_by.who,
    }
    if approval.decided_by is not None:
        fields["decided_by"] = approval.decided_by.who
    return fields | ({"why": approval.why} if approval.why else {})


async def ask(registry: Registry, asked: Approval) -> Approval:
    """Write down that a change waits for a second person; return the one that waits, which may be older."""
    now = datetime.now(UTC)
    async with registry.writing() as draft:
        known = registry.approvals()
        same = approvals.find_same(asked, known, now)
        if same is not None:
            return same
        approvals.require_may_ask(asked, known, registry.operators(), now)
        for old in approvals.surplus(known, limits.APPROVALS_ENDED_MAX - 1):
            draft.forget_approval(old)
        draft.put_approval(asked)
        draft.note(asked.asked_by.who, "approval_asked", None, described(asked))
    return asked


async def approve(registry: Registry, approval: Approval, decider: Person) -> Approval:
    """Write down that a change outside the registry was approved and is to be made, by whoever runs then."""
    approved = replace(approval, state="approved", decided_by=decider)
    async with registry.writing() as draft:
        approvals.require_pending(registry.approval(approval.id), datetime.now(UTC))
        draft.put_approval(approved)
        draft.note(decider.who, "approval_approved", None, described(approved))
    return approved


async def end(registry: Registry, approval: Approval, state: str, who: str, why: str = "") -> Approval:
    """Write down what came of a change that was not made; nothing changes where it has ended."""
    assert state in approvals.APPROVAL_STATES - approvals.OPEN_STATES
    ended = replace(approval, state=state, ended_at=timestamp(), why=why)
    async with registry.writing() as draft:
        if registry.approval(approval.id).state in approvals.OPEN_STATES:
            draft.put_approval(ended)
            draft.note(who, f"approval_{state}", None, described(ended))
    return registry.approval(approval.id)
