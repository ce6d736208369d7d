"""The bulkheads by name, so that a test installation can switch one off and show that its absence is noticed.

Each is asked for at the one place that decides. In earnest all are on: control_plane/settings.py sees to that.
"""

from enum import StrEnum
from typing import Final


class Bulkhead(StrEnum):
    """What keeps one partner's or one cell's trouble from the others."""

    PARTNER_SHARE = "partner_share"  # how much of router, door and mailbox one partner takes
    ROUTER_BUDGET = "router_budget"  # how much CPU time of a router, how many reads and whose turn
    CELL_SHARE = "cell_share"  # how much of the router one cell takes
    RATE_LIMIT = "rate_limit"  # payments a second
    IN_FLIGHT_LIMIT = "in_flight_limit"  # payments whose outcome is to come
    BREAKER = "breaker"  # the circuit breaker towards the acquirer, and its slots
    HEARTBEAT = "heartbeat"  # silent, stuck and unanswering workers are found
    WORKER_MEMORY = "worker_memory"  # how much memory one worker takes
    POISON = "poison"  # commands that ended their worker twice are quarantined


ALL_ON: Final[frozenset[Bulkhead]] = frozenset()
