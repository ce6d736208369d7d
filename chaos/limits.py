"""Every bound of the experiments, named with its unit, and how the bounds relate."""

from typing import Final

from actors import limits as actor_limits

# What a client promises itself.
CLIENT_DEADLINE_MS: Final = actor_limits.CLIENT_DEADLINE_MS
# Journeys under way at once in one load; past it the client itself is at fault, and says so.
JOURNEYS_OPEN_MAX: Final = 4_000
JOURNEYS_PLANNED_MAX: Final = 200_000
PROGRESS_INTERVAL_MS: Final = 500
# After the last journey has begun, all calls of the longest one fit into this.
JOURNEYS_END_MS_MAX: Final = 60_000

# Repeating what was not answered.
REPEATS_MAX: Final = 60
REPEAT_DELAY_MS: Final = 500
REPEATS_AT_ONCE_MAX: Final = 16

# A gateway under test.
START_TIMEOUT_MS: Final = 180_000
POLL_INTERVAL_MS: Final = 100
STOP_TIMEOUT_MS: Final = 60_000
KILL_TIMEOUT_MS: Final = 10_000
KILL_ROUNDS_MAX: Final = 20
COMMAND_TIMEOUT_MS: Final = 120_000
SETTLE_TIMEOUT_MS: Final = 90_000
PARTNERS_CREATED_AT_ONCE_MAX: Final = 4
PORT_BLOCKS_TRIED_MAX: Final = 50
# Below Linux's ephemeral ports (32768 on), so that no outgoing connection takes one meanwhile.
PORT_FIRST_MIN: Final = 10_000
PORT_FIRST_MAX: Final = 30_000
BOOK_PAGES_MAX: Final = 1_000
RECORD_PAGES_MAX: Final = 2_000
RECORD_PAGE_ROWS: Final = 500

# What counts as contained. A bystander's tail in trouble lies within its calm range if it is at most
# CALM_RANGE_FACTOR times its calm p99, or at most CALM_RANGE_SLACK_MS above it, whichever is more.
CALM_RANGE_FACTOR: Final = 3
CALM_RANGE_SLACK_MS: Final = 150
KILLED_DELAY_MS_MAX: Final = 1_000
# Calls that were open when a worker was killed, or due within this time after, tell what it cost.
KILL_LOOK_MS: Final = 5_000
# A tail of fewer calls than this says little; the verdict is "unknown" then.
LATENCIES_MIN: Final = 20
# The tail is the p99 from so many calls on (five lie above it), and the p95 below.
LATENCIES_FOR_P99_MIN: Final = 500

# Where other programs use this many cores more in trouble than in calm, latencies can't be compared.
OTHERS_CORES_MORE_MAX: Final = 0.4

# The demo.
DEMO_CELLS: Final = 4
DEMO_CELLS_MAX: Final = 8
DEMO_PARTNERS: Final = 24
DEMO_SECONDS: Final = 60
DEMO_SECONDS_MIN: Final = 30
DEMO_SECONDS_MAX: Final = 600
DEMO_PARTNERS_MIN: Final = 6
DEMO_PARTNERS_MAX: Final = 64
DEMO_REQUESTS_PER_SECOND: Final = 80
FLOOD_REQUESTS_PER_SECOND: Final = 300
FLOODER_RATE_PER_SECOND: Final = 20
FLOODER_RATE_BURST: Final = 40
# After a flood its rate limit needs this long to be whole again.
FLOOD_RECOVERY_MS: Final = 5_000
WARM_UP_MS: Final = 3_000
LOAD_START_MS: Final = 3_000
# To look through all processes for ours takes less than this.
READING_MS: Final = 1_000
SCREEN_INTERVAL_MS: Final = 1_000
# Where there is no terminal, one line of totals each so many intervals.
PLAIN_LINE_EVERY: Final = 5

assert POLL_INTERVAL_MS * 10 < START_TIMEOUT_MS
assert JOURNEYS_END_MS_MAX > 5 * CLIENT_DEADLINE_MS
assert KILL_LOOK_MS > KILLED_DELAY_MS_MAX
assert FLOOD_RECOVERY_MS > FLOODER_RATE_BURST * 1_000 // FLOODER_RATE_PER_SECOND
