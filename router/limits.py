"""Every bound of the router, named with its unit, and how the bounds relate.

The wire's stand in `cells.api.limits`, those of heads and pipelines in `listeners.limits`.
"""

from typing import Final

from cells.api import limits as wire
from listeners import limits as listening

# The bounds of what partners may send stand with the actor; the wire's limits pass them on.
actor_limits = wire.actor_limits  # type: ignore[attr-defined]  # mypy takes the import there for a private one

# What one request may be.
BODY_BYTES_MAX: Final = 65_536
BODY_TIMEOUT_MS: Final = 10_000
# Fields, elements and values of a JSON body, at all depths: the largest that can be right has fewer than this, and what
# each costs to check is not bounded by its bytes.
BODY_VALUES_MAX: Final = 512
QUERY_PARAMETERS_MAX: Final = 16
PROBLEM_ERRORS_MAX: Final = 20
PROBLEM_POINTER_CHARACTERS_MAX: Final = 200

# What runs at once, in one router process. A cell's share is REQUESTS_MAX over the number of cells.
CONNECTIONS_MAX: Final = 8_192
REQUESTS_MAX: Final = 4_000
PARTNER_REQUESTS_MAX: Final = 512
# What a partner's requests may cost one router, of its CPU time. Each of its payments a second brings so much: a
# payment, its captures, refunds and reads take some 0.3 ms each, and three times that on a slow machine.
PAYMENT_CPU_BUDGET_US: Final = 2_000
CPU_BUDGET_US_PER_SECOND_MIN: Final = 50_000
CPU_BUDGET_US_PER_SECOND_MAX: Final = 600_000
CPU_BUDGET_BURST_US_MIN: Final = 200_000
CPU_BUDGET_BURST_US_MAX: Final = 1_000_000
# What a request costs by arriving, for each KiB of its body and of its answer, and as it is refused (measured with
# bench/edge_steps.py). The rest is measured as it is served.
ARRIVAL_CPU_US: Final = 100
BYTES_CPU_US_PER_KIB: Final = 2
REFUSAL_CPU_US: Final = 100
# Nobody is refused for longer than this after the last request, and no connection stays unread for longer.
BUDGET_WAIT_MS_MAX: Final = 2_000
BUDGETS_MAX: Final = 10_000
# Reads of a partner: so many for each of its payments a second, and for each of its burst.
READS_PER_PAYMENT: Final = 4
READS_PER_SECOND_MIN: Final = 100
READS_BURST_MIN: Final = 200
# How much work a turn of the event loop begins before others have their turn, what one request's is taken for, and what
# each partner may begin in a round.
TURN_US: Final = 2_000
WORK_US: Final = 200
WORK_US_PER_KIB: Final = 15
QUANTUM_US: Final = 1_200
# Notifications of acquirers that are read or under way: they have places of their own.
NOTIFICATIONS_MAX: Final = 256
# Bodies that have not come whole with their heads: of all partners and of one; and of notifications whose signature
# can't be checked before, of all addresses and of one. A body that is there needs no place.
BODIES_AWAITED_MAX: Final = 1_024
PARTNER_BODIES_AWAITED_MAX: Final = 64
UNPROVEN_BODIES_AWAITED_MAX: Final = 64
ADDRESS_BODIES_AWAITED_MAX: Final = 4
NOTIFICATION_AGE_S_MAX: Final = 300  # Standard Webhooks' own
SHUTDOWN_S: Final = 5

# Cells. While one is away its requests wait for it; away for longer than this they are refused at once.
CELL_ABSENT_MS_MAX: Final = 10_000
# A command follows its partner so often: a long one may see some moves, and each may take two steps.
MOVES_FOLLOWED_MAX: Final = 16
CELL_WAIT_MS: Final = 1_000
CELL_WAIT_PAUSE_MS: Final = 20
# A command whose door was lost after it was sent is asked about for so much longer than its deadline: its answer may be
# written by now. Then its cell is given this long.
ASK_AGAIN_MS: Final = 700
ASK_AGAIN_BUDGET_MS: Final = 200
RETRY_AFTER_DEFAULT_MS: Final = 1_000
REMEMBERED_PARTNERS_MAX: Final = 10_000
# Failed authentications of one client address in one window; and addresses that are remembered at once.
FAILED_AUTHENTICATIONS_MAX: Final = 100
FAILED_AUTHENTICATIONS_WINDOW_MS: Final = 10_000
FAILED_AUTHENTICATION_ADDRESSES_MAX: Final = 10_000
# What is left of them for the audit log: lines of a file, and files, each of an interval in which there were some.
FAILED_KEYS_ROWS_MAX: Final = 256
FAILED_KEYS_FILES_MAX: Final = 64
FAILED_KEYS_INTERVAL_MS: Final = 10_000

# Redis, which spreads remembered 429s.
NEWS_BYTES_MAX: Final = 2_048
NEWS_WAITING_MAX: Final = 1_000
REDIS_TIMEOUT_MS: Final = 1_000
# A connection on which nothing happens is tried so often.
REDIS_LOOK_MS: Final = 500
REDIS_RETRY_DELAY_MS_MIN: Final = 100
REDIS_RETRY_DELAY_MS_MAX: Final = 2_000

# The directory.
DIRECTORY_BYTES_MAX: Final = 64 * 1_048_576
DIRECTORY_POLL_MS: Final = 250
DIRECTORY_KEEP_RETRY_MS: Final = 5_000
# So long a request waits for the directory that names the cell to which its partner moved.
DIRECTORY_WAIT_MS_MAX: Final = 3_000
PARTNER_KEYS_MAX: Final = 32

assert BODY_BYTES_MAX <= wire.ROUTER_FRAME_BYTES_MAX // 2, "any body that is let in fits into a frame"
assert (
    actor_limits.COMMAND_DEADLINE_MS + ASK_AGAIN_MS + ASK_AGAIN_BUDGET_MS + wire.ANSWER_GRACE_MS["router"]
    < actor_limits.CLIENT_DEADLINE_MS
), "the gateway answers before its client gives up"
assert 2 * BODIES_AWAITED_MAX < REQUESTS_MAX, "slow bodies don't use up the router"
assert PARTNER_REQUESTS_MAX < REQUESTS_MAX, "one hanging partner can't use up the router"
assert PARTNER_REQUESTS_MAX >= wire.DOOR_PARTNER_COMMANDS_MAX, "the door's own bound is met first"
assert REQUESTS_MAX + NOTIFICATIONS_MAX <= wire.CONNECTION_REQUESTS_MAX
assert REQUESTS_MAX + NOTIFICATIONS_MAX < CONNECTIONS_MAX
assert WORK_US + BODY_BYTES_MAX * WORK_US_PER_KIB // 1_024 <= QUANTUM_US <= TURN_US, (
    "each round has room for any request"
)
assert CPU_BUDGET_US_PER_SECOND_MIN <= CPU_BUDGET_US_PER_SECOND_MAX < 1_000_000, "one partner can't use up the router"
assert BUDGET_WAIT_MS_MAX <= listening.HOLD_MS_MAX
assert CPU_BUDGET_BURST_US_MIN <= CPU_BUDGET_BURST_US_MAX
assert actor_limits.METADATA_ENTRIES_MAX * 2 + 64 < BODY_VALUES_MAX, "any body that can be right is let in"
assert DIRECTORY_POLL_MS < DIRECTORY_WAIT_MS_MAX < actor_limits.COMMAND_DEADLINE_MS // 2, "there is time to follow"
assert CELL_WAIT_PAUSE_MS < CELL_WAIT_MS < actor_limits.COMMAND_DEADLINE_MS
