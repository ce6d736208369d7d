"""What changes nothing and is in the audit log all the same: who read what, what was refused, whose keys failed.

What is alike within a minute is one entry: the first is written within a second, the rest is counted and written
together. Each name has a budget of entries, all who have no key share one, and what is past it is counted together. So
it is bounded what anybody can have written, whatever they ask. No answer waits for it.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Final

import structlog

from control_plane import limits
from control_plane.data_folder import timestamp
from control_plane.errors import ControlPlaneError
from control_plane.registry import Registry
from control_plane.registry_records import FORBIDDEN, OPERATOR_KEY_FAILED, PARTNER_KEY_FAILED, READ, REFUSED

__all__ = ["FORBIDDEN", "OPERATOR_KEY_FAILED", "PARTNER_KEY_FAILED", "READ", "REFUSED", "Access", "AccessLog"]

log = structlog.get_logger()

# Who has shown no good key. No operator has this name (operators.py).
NOBODY: Final = "nobody"


@dataclass(frozen=True, slots=True)
class Access:
    """Who did what, from where, with which partner; what is equal is counted together."""

    who: str
    what: str
    origin: str
    partner_id: str | None = None
    detail: tuple[tuple[str, str], ...] = ()

    @property
    def account(self) -> str:
        """Whose budget it is of: partners' keys that fail leave operators' theirs."""
        return f"{self.who} {self.what}" if self.who == NOBODY else self.who

    @property
    def others(self) -> "Access":
        """Return what it is counted as where there is no room for it."""
        return Access(self.who, self.what, "", None, (("others", "counted together: there were too many"),))


@dataclass(slots=True)
class _Count:
    """How often something came since it was last written, with which partners, and when it is written next."""

    due_at: float
    times: int = 0
    first_at: str = ""
    last_at: str = ""
    partners: set[str] = field(default_factory=set)

    def add(self, times: int, first_at: str, last_at: str, partners: Iterable[str]) -> None:
        """Count more of it. Of very many partners some are named."""
        if not self.times:
            self.first_at = first_at
        self.times += times
        self.last_at = last_at
        room = limits.ACCESS_PARTNERS_NAMED_MAX - len(self.partners)
        self.partners.update(islice((one for one in partners if one not in self.partners), max(room, 0)))


class _Budget:
    """So many entries at once, and so many a second (a token bucket)."""

    def __init__(self, access: Access, now: float) -> None:
        few = access.who == NOBODY
        self._burst = limits.ACCESS_ENTRIES_NOBODY_MAX if few else limits.ACCESS_ENTRIES_OPERATOR_MAX
        interval_ms = limits.ACCESS_ENTRY_NOBODY_INTERVAL_MS if few else limits.ACCESS_ENTRY_OPERATOR_INTERVAL_MS
        self._per_s = 1_000 / interval_ms
        self._left = float(self._burst)
        self._at = now

    def take(self, now: float) -> bool:
        """Use one up, where one is left."""
        self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class AccessLog:
    """Counts accesses, and has them written. Belongs to one event loop."""

    def __init__(self, registry: Registry, now: Callable[[], float] = time.monotonic) -> None:
        self._registry = registry
        self._now = now
        self._counts: dict[Access, _Count] = {}
        self._rows: Counter[str] = Counter()  # of each account
        self._budgets: dict[str, _Budget] = {}  # likewise

    def partner(self, partner_id: str | None) -> str | None:
        """Return a partner's id where there is such a partner: no text of whoever asks gets into the log as one."""
        found = None if partner_id is None else self._registry.find(partner_id)
        return None if found is None else found.id

    def note(self, access: Access, times: int = 1, span: tuple[str, str] | None = None) -> None:
        """Count an access; `span`: from when to when it came, where that is not now."""
        partners = [] if access.partner_id is None else [access.partner_id]
        if access not in self._counts and self._rows[access.account] >= limits.ACCESS_ROWS_MAX:
            access = access.others
        count = self._counts.get(access)
        if count is None:
            count = self._counts[access] = _Count(self._now())
            self._rows[access.account] += 1
        first_at, last_at = span or (timestamp(),) * 2
        count.add(times, first_at, last_at, partners)

    async def work(self) -> None:
        """Write what is due, in one commit. Called again and again; raises nothing, and what failed is due again."""
        due = list(self._due())
        if not due:
            return
        try:
            async with self._registry.writing() as draft:
                for access, count in due:
                    draft.note(access.who, access.what, access.partner_id, _detail(access, count), access.origin)
        except ControlPlaneError as error:
            log.warning("accesses_not_written", entries=len(due), error=str(error))
            return
        for access, written in due:
            count = self._counts[access]
            count.times -= written.times  # more may have come meanwhile
            count.first_at = count.last_at
            count.partners.clear()
            count.due_at = self._now() + limits.ACCESS_WINDOW_MS / 1_000

    def _due(self) -> Iterator[tuple[Access, _Count]]:
        """Yield copies of what is to be written now; forget what did not come again, count together what is too much.

        What was counted together goes first: it must not wait for ever behind what is new.
        """
        now = self._now()
        ripe = [(access, count) for access, count in self._counts.items() if now >= count.due_at]
        ripe.sort(key=lambda one: one[0] != one[0].others)
        entries = 0
        for access, count in ripe:
            if not count.times:
                self._forget(access)
                continue
            if entries >= limits.ACCESS_ENTRIES_PER_COMMIT_MAX:
                return
            budget = self._budgets.setdefault(access.account, _Budget(access, now))
            if budget.take(now):
                entries += 1
                yield access, replace(count, partners=set(count.partners))
            elif access == access.others:
                count.due_at = now + limits.ACCESS_WINDOW_MS / 1_000
            else:
                self._forget(access)
                self._count_together(access.others, count, now)

    def _count_together(self, others: Access, count: _Count, now: float) -> None:
        known = self._counts.get(others)
        if known is None:
            known = self._counts[others] = _Count(now + limits.ACCESS_WINDOW_MS / 1_000)
            self._rows[others.account] += 1
        known.add(count.times, count.first_at, count.last_at, count.partners)

    def _forget(self, access: Access) -> None:
        del self._counts[access]
        self._rows[access.account] -= 1
        if not self._rows[access.account]:
            del self._rows[access.account]


def _detail(access: Access, count: _Count) -> dict[str, Any]:
    is_of_before = count.times > 1 or access.what == PARTNER_KEY_FAILED  # routers count those, and tell later
    span = {"from": count.first_at, "until": count.last_at} if is_of_before else {}
    named = {"partners": sorted(count.partners)} if access == access.others and count.partners else {}
    return {**dict(access.detail), **named, "times": count.times, **span}
