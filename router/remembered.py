"""429s remembered for a moment, so that a flood of new payments costs its own partner's door nothing.

Only a rate limit is remembered, only for `POST /v1/payments`: reads, captures, voids and refunds always get through.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

from cells.api.limits import ROUTER_REMEMBERED_429_MS_MAX
from cells.api.messages import RefusalCode, Refused
from router import limits


@dataclass(frozen=True, slots=True)
class _Entry:
    refused: Refused
    profile_version: int
    forget_at: float  # monotonic
    free_at: float  # monotonic; when the cell said that the next payment conforms


class RememberedRefusals:
    """At most one remembered refusal per partner, for at most ROUTER_REMEMBERED_429_MS_MAX."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._entries: dict[str, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def remember(self, partner_id: str, profile_version: int, refused: Refused) -> None:
        """Take note of a cell's refusal of a new payment, if it is one that may be remembered."""
        wait_ms = refused.refusal.retry_after_ms
        if refused.refusal.code is not RefusalCode.RATE_LIMITED or not wait_ms or wait_ms < 0:
            return
        now = self._now()
        self._entries.pop(partner_id, None)
        self._entries[partner_id] = _Entry(
            refused,
            profile_version,
            now + min(wait_ms, ROUTER_REMEMBERED_429_MS_MAX) / 1000,
            now + wait_ms / 1000,
        )
        if len(self._entries) > limits.REMEMBERED_PARTNERS_MAX:
            del self._entries[next(iter(self._entries))]  # the one noted longest ago

    def recall(self, partner_id: str, profile_version: int) -> Refused | None:
        """Give the refusal that still holds for a new payment of this partner, with the time that is left."""
        entry = self._entries.get(partner_id)
        if entry is None:
            return None
        now = self._now()
        if now >= entry.forget_at or entry.profile_version != profile_version:
            del self._entries[partner_id]
            return None
        left_ms = max(1, round((entry.free_at - now) * 1000))
        return Refused(dataclasses.replace(entry.refused.refusal, retry_after_ms=left_ms), entry.refused.rate)
