"""Load shedding: what a door or a worker takes on when it has too much to do. Pure; the metrics are its callers'.

Decided before anything is sent or read, so what is shed changed nothing and its idempotency key is free. The order is
the promise: reads first, new payments next; captures, voids, refunds, confirmations and what acquirers tell, last. A
partner within its fair share of the room is shed later than one above it, so no few partners make it shed the others.

The idea is Stripe's (https://stripe.com/blog/rate-limiters): a fleet usage and a worker utilization load shedder.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cells import limits
from cells.api import messages
from cells.api.messages import Method


class Work(StrEnum):
    """A class of work; in the order in which they are shed."""

    READ = "read"
    NEW_PAYMENT = "new_payment"
    FOLLOW_UP = "follow_up"


# Every command of a partner's actor. Settlement files and operators' changes can wait as reads can: who tells of them
# tries again.
WORK: Final[dict[str, Work]] = {
    **dict.fromkeys(messages.READS, Work.READ),
    Method.RECONCILE_OPERATIONS: Work.READ,
    Method.RECORD_CHANGE: Work.READ,
    Method.CREATE_PAYMENT: Work.NEW_PAYMENT,
    Method.CAPTURE_PAYMENT: Work.FOLLOW_UP,
    Method.VOID_PAYMENT: Work.FOLLOW_UP,
    Method.REFUND_PAYMENT: Work.FOLLOW_UP,
    Method.CONFIRM_PAYMENT: Work.FOLLOW_UP,
    Method.RESOLVE_OPERATION: Work.FOLLOW_UP,
    Method.NOTIFY_RESULT: Work.FOLLOW_UP,
    Method.NOTIFY_DISPUTE: Work.FOLLOW_UP,
}
assert WORK.keys() == messages.READS | messages.WRITES, "every command has its class of work"

# How late the event loop must be, at two looks in a row, until such work is shed. Follow-ups never are for that.
_LATE_MS: Final = {Work.READ: limits.SHED_READS_LATE_MS, Work.NEW_PAYMENT: limits.SHED_PAYMENTS_LATE_MS}


@dataclass(frozen=True, slots=True)
class Bounds:
    """So many commands may be under way when one more is taken: of a partner above its fair share, and of others."""

    above_share: int
    within_share: int


def bounds(room: int) -> dict[Work, Bounds]:
    """Divide the room: each class of work has all that the one before it has, and some more."""
    parts = limits.SHED_PARTS
    return {
        work: Bounds(room * above // parts, room * within // parts)
        for work, above, within in zip(Work, limits.SHED_ABOVE_SHARE, limits.SHED_WITHIN_SHARE, strict=True)
    }


class LoadShedder:
    """Counts what is under way in one process, by partner. `late_ms`: how late its event loop is, lastingly."""

    def __init__(self, room: int, late_ms: Callable[[], float] = lambda: 0.0) -> None:
        self._bounds = bounds(room)
        self._late_ms = late_ms
        self._held: dict[str, int] = {}
        self.under_way = 0

    def enter(self, partner_id: str, work: Work) -> bool:
        """Take one command on, to be ended by `leave`; or shed it (False)."""
        held = self._held.get(partner_id, 0)
        if self._is_shed(held, work):
            return False
        self._held[partner_id] = held + 1
        self.under_way += 1
        return True

    def leave(self, partner_id: str) -> None:
        """Note that one command has ended."""
        left = self._held[partner_id] - 1
        assert left >= 0, "left more often than entered"
        if left:
            self._held[partner_id] = left
        else:
            del self._held[partner_id]  # so that only what is under way takes memory
        self.under_way -= 1

    def _is_shed(self, held: int, work: Work) -> bool:
        own = self._bounds[work]
        # What every partner with work under way could have, before anybody is refused anything.
        partners = len(self._held) + (held == 0)
        share = max(1, self._bounds[Work.READ].above_share // partners)
        if self.under_way >= (own.within_share if held < share else own.above_share):
            return True
        # The lateness is of those who have most under way; who has nothing under way did not make it.
        late_ms = _LATE_MS.get(work)
        return late_ms is not None and self._late_ms() >= late_ms and held * partners >= max(1, self.under_way)
