"""A partner's place at its cell's door: what the door knows of it. What changes it is in door.py and ownership.py."""

import asyncio
import time
from dataclasses import dataclass, field

from prometheus_client import Counter, Histogram

from cells import door_metrics
from cells.api.messages import Profile
from cells.api.moves import Receipt
from cells.escalation import QUARANTINED, Escalation
from cells.workforce import Link


@dataclass(eq=False, slots=True)
class Seat:
    """One partner's place at the door."""

    profile: Profile
    state: str = "activating"  # activating, active, unavailable, quarantined, moved
    why: str = ""
    link: Link | None = None
    epoch: int | None = None
    in_flight: int = 0
    notifying: int = 0
    under_way: int = 0  # sent to its worker, and not answered
    unanswered: int = 0
    takeovers: int = 0
    handovers: int = 0
    is_handed_over: bool = False  # while it is, what comes waits
    receipt: Receipt | None = None  # it left for another cell
    escalation: Escalation | None = None
    opened_in_ms: int | None = None  # it came from another cell to this door, and was served so soon
    apart_until: float = 0.0  # monotonic: a pooled partner is kept from its pool so long
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    quiet: asyncio.Event = field(default_factory=asyncio.Event)
    activation: asyncio.Task[None] | None = None
    meters: dict[str, tuple[Counter, Histogram]] = field(default_factory=dict)

    @property
    def partner_id(self) -> str:
        """Whose it is."""
        return self.profile.partner_id

    @property
    def is_quarantined(self) -> bool:
        """Whether nothing of the partner is executed."""
        return self.escalation is not None and self.escalation.kind == QUARANTINED

    @property
    def wants_pool(self) -> bool:
        """Whether it is to share a worker, as things are now."""
        return self.profile.isolation == "pooled" and self.escalation is None and time.monotonic() >= self.apart_until

    @property
    def is_ready(self) -> bool:
        """Whether a command may go to its worker now."""
        return self.link is not None and not self.is_handed_over

    def count(self, method: str, seconds: float) -> None:
        """Count a command; looking a series up by its labels costs more than counting, so it is kept."""
        found = self.meters.get(method)
        if found is None:
            found = self.meters[method] = (
                door_metrics.COMMANDS.labels(self.profile.partner_id, method),
                door_metrics.COMMAND_SECONDS.labels(method),
            )
        counter, histogram = found
        counter.inc()
        histogram.observe(seconds)

    def sent(self) -> None:
        """Note that a command goes to the worker."""
        self.under_way += 1
        self.quiet.clear()

    def answered(self) -> None:
        """Note that it came back, whatever came."""
        self.under_way -= 1
        if not self.under_way:
            self.quiet.set()
