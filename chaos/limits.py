"""Every bound of the experiments, named with its unit, and how the bounds relate."""

from typing import Final

from actors import limits as actor_limits
from cells.api import limits as api_limits
from router import limits as router_limits

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

# A FoundationDB server of our own.
FDB_SERVER_START_TIMEOUT_MS: Final = 60_000
FDB_CLI_TIMEOUT_MS: Final = 5_000

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
# Nor where they use more than this share of it: what then is late may be late for their sake.
OTHERS_SHARE_MAX: Final = 0.5

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

# The soak. Between two faults all is calm for a time from this range.
SOAK_CELLS: Final = 3
SOAK_CELLS_MAX: Final = 8
SOAK_PARTNERS_PER_CELL: Final = 3
SOAK_PARTNERS_PER_CELL_MAX: Final = 8
SOAK_MINUTES: Final = 10.0
SOAK_MINUTES_MIN: Final = 0.5
SOAK_MINUTES_MAX: Final = 120.0
# Of each partner.
SOAK_REQUESTS_PER_SECOND: Final = 5
SOAK_CALM_MS: Final = (1_500, 4_000)
SOAK_CALM_FIRST_MS: Final = 5_000
SOAK_CALM_LAST_MS: Final = 4_000
# A fault that is not over by then has broken what was promised, whatever its goal.
SOAK_RECOVERY_MS_MAX: Final = 90_000
# After the last process is well a call may still come in that began before.
SOAK_QUIET_MS: Final = 1_500
# The last fault begins so long before the load ends, or not at all.
SOAK_FAULT_ROOM_MS: Final = 15_000
SOAK_LOOK_MS: Final = 250
# A usual call that took longer was disturbed; on two shared cores a collection of garbage is not.
DISTURBED_MS: Final = 400
# A call that took so long came to the end of its command's own time.
OVERDUE_MS: Final = actor_limits.COMMAND_DEADLINE_MS - actor_limits.ANSWER_MARGIN_MS
REPLAYS_PER_SECOND: Final = 2
REPLAYS_AT_END_MAX: Final = 300
REPLAY_AGE_MS_MIN: Final = 2_000

# What is promised of recovery on a machine that does nothing else (DESIGN.md section 10; docs/soak.md).
GOAL_WORKER_KILLED_MS: Final = 500
# A stopped worker is found by its heartbeat.
GOAL_SILENT_FOUND_MS: Final = 2_000
GOAL_WORKER_STARTS_MS: Final = 4_000
GOAL_DOOR_KILLED_MS: Final = 2_000
GOAL_ROUTER_KILLED_MS: Final = 2_000
GOAL_CELL_KILLED_MS: Final = 10_000
# A door that was stopped and goes on finds a crowd; the one that may replace it is there as soon as after a death.
GOAL_CELL_HUNG_MS: Final = 10_000
# A stopped door or router, and a stopped process of Ray, is found by the supervisor.
GOAL_STOPPED_FOUND_MS: Final = 2_000
GOAL_RAY_STOPPED_FOUND_MS: Final = 4_000
GOAL_ACQUIRER_MS: Final = 4_000
# Redis is on no request's path.
GOAL_REDIS_MS: Final = 500
# The soak starts a killed control plane again after this.
CONTROL_PLANE_AWAY_MS: Final = 2_000
GOAL_CONTROL_PLANE_STARTS_MS: Final = 4_000
# The soak starts a killed FoundationDB server again after this, and lets a stopped one go on after that.
FDB_SERVER_AWAY_MS: Final = 2_000
FDB_SERVER_STOPPED_MS: Final = 5_000
# From when the server takes transactions again (in a soak: is started): it is found, and each partner taken over anew.
GOAL_FDB_SERVER_BACK_MS: Final = 4_000

# The fault proxy. What a direction of a connection reads ahead, and how much at once.
FAULT_PROXY_BUFFER_BYTES: Final = 256 * 1_024
FAULT_PROXY_READ_BYTES: Final = 64 * 1_024
FAULT_PROXY_CONNECTIONS_MAX: Final = 1_024
FAULT_PROXY_BACKLOG: Final = 256
FAULT_PROXY_CONNECT_TIMEOUT_MS: Final = 5_000
FAULT_PROXY_CLOSE_TIMEOUT_MS: Final = 5_000
FAULT_PROXY_START_TIMEOUT_MS: Final = 20_000
FAULT_PROXY_API_TIMEOUT_MS: Final = 5_000
FAULT_PROXY_REQUEST_BYTES_MAX: Final = 64 * 1_024
TOXICS_MAX: Final = 32
TOXIC_TIME_MS_MAX: Final = 3_600_000
TOXIC_BYTES_MAX: Final = 1 << 40
# What a relay that tampers puts in: the answer of a captured payment, as it looked before frames were sealed.
TAMPER_INJECTED: Final = b"\x00\x00\x00\x05\x93\x05\x01\xc4\x00"
TOXIC_RATE_KB_MAX: Final = 1 << 30

CLOCK_OFFSET_S_MAX: Final = 10 * 366 * 86_400
CHAOS_CLOCK_JUMP_S: Final = 3_600
# System calls that are made slow or fail. A tracer ends by itself after so long.
SYNC_DELAY_MS_MAX: Final = 60_000
TRACED_S_MAX: Final = 600
TRACER_START_TIMEOUT_MS: Final = 5_000
TRACER_END_TIMEOUT_MS: Final = 3_000
# The search for an order of one payment's answers.
LINEARIZABILITY_STEPS_MAX: Final = 20_000
# How much faster than ours the gateway's clock may run, as a share: NTP slews by half of it at most.
CLOCK_RATE_DIFFERENCE_MAX: Final = 0.001

assert FAULT_PROXY_READ_BYTES <= FAULT_PROXY_BUFFER_BYTES
# Chaos experiments. The load is that of all partners together.
CHAOS_CELLS: Final = 3
CHAOS_PARTNERS_PER_CELL: Final = 2
# Beside these: they share one worker.
CHAOS_POOLED_PER_CELL: Final = 2
# Until those that were kept apart are in one pool again.
CHAOS_POOLED_MS_MAX: Final = 30_000
CHAOS_DURATION_S: Final = 15.0
CHAOS_DURATION_S_MIN: Final = 2.0
CHAOS_DURATION_S_MAX: Final = 300.0
CHAOS_LOAD_PER_SECOND: Final = 40.0
CHAOS_LOAD_PER_SECOND_MIN: Final = 2.0
CHAOS_LOAD_PER_SECOND_MAX: Final = 300.0
CHAOS_PATIENCE_MAX: Final = 100.0
CHAOS_WARM_UP_S: Final = 3.0
# Calm lasts as long as the fault, within these bounds, so that both have as many calls.
CHAOS_CALM_S_MIN: Final = 4.0
CHAOS_CALM_S_MAX: Final = 30.0
CHAOS_CALM_AGAIN_S: Final = 5.0
CHAOS_LOOK_MS: Final = 200
# Steady state and safeguards are looked at so often.
CHAOS_ATTACK_TIMEOUT_MS: Final = 1_000  # an attacker waits so long for an answer
# Empty streams to a cell's GCS, each of which ends it.
CHAOS_EMPTY_STREAMS: Final = 8
CHAOS_EMPTY_STREAMS_INTERVAL_MS: Final = 500
CHAOS_WATCH_MS: Final = 1_000
CHAOS_RECOVERY_MS_MAX: Final = SOAK_RECOVERY_MS_MAX
CHAOS_QUIET_MS: Final = 1_500
# More errors than this of those outside the target end an experiment.
CHAOS_ERRORS_OUTSIDE_MAX: Final = 2
# A cell outside the target whose partners got no answer for so long ends it as well: nobody's client waits longer.
CHAOS_CELL_SILENT_MS_MAX: Final = CLIENT_DEADLINE_MS
# Beside the fault's duration; a load is planned for longer than its run takes, and told when to end.
CHAOS_LOAD_MORE_S: Final = CHAOS_WARM_UP_S + CHAOS_CALM_S_MAX + CHAOS_CALM_AGAIN_S + 2 * CHAOS_RECOVERY_MS_MAX / 1_000
# The partner that floods is limited to this; more than 50 times that one client can't send here.
CHAOS_RATE_PER_SECOND: Final = 5
CHAOS_RATE_BURST: Final = 10
CHAOS_FLOOD_FACTOR: Final = 50
# A flood of payments that the acquirer takes so long for: past a limit of payments in flight, and past a partner's
# share of its door, which needs more than its slots at the acquirer let through.
CHAOS_FLOOD_SLOW_MS: Final = 1_000
CHAOS_IN_FLIGHT_MAX: Final = 20
CHAOS_IN_FLIGHT_PER_SECOND: Final = 50
CHAOS_SHARE_PER_SECOND: Final = 150
# What waits at the door at its end comes through its slots first.
CHAOS_BACKLOG_MS: Final = api_limits.DOOR_PARTNER_COMMANDS_MAX * CHAOS_FLOOD_SLOW_MS // actor_limits.ACQUIRER_SLOTS
# A cell that answers nothing fills its share of a router, which takes more partners than one or two.
CHAOS_HUNG_PARTNERS: Final = 4
CHAOS_HUNG_PER_SECOND: Final = 240
# Bounds that the gateway keeps for itself are read so often.
CHAOS_BOUNDS_LOOK_MS: Final = 500
# So much later than its last failure a breaker is surely open: the failure's commit, and a machine that is late.
CHAOS_BREAKER_LATE_MS: Final = 1_000
# Until the flood's client is there.
CHAOS_FLOOD_START_MS: Final = 1_500
# A command that orders a fault is set aside after two deaths, so that it needs few attempts to be answered so.
CHAOS_ORDERED_REPEATS_MAX: Final = 10
CHAOS_FLOOD_FIRST_AMOUNT: Final = 100_000_000
CHAOS_BAD_KEYS_PER_SECOND: Final = 300
# A hostile partner: its worst requests, as many writes and reads as its limit lets in, after so many in a row each.
# A stranger: connections of each kind at a time, how long one is held, and what comes over it.
CHAOS_STRANGER_CONNECTIONS: Final = 100
CHAOS_STRANGER_HELD_MS: Final = 5_000
CHAOS_STRANGER_HEAD_BYTES: Final = 4_000
CHAOS_STRANGER_UPGRADES: Final = 3_000
CHAOS_HOSTILE_CONNECTIONS: Final = 130
CHAOS_HOSTILE_AT_ONCE: Final = 3
CHAOS_HOSTILE_PER_SECOND: Final = 2.0 * api_limits.PARTNER_RATE_PER_SECOND_DEFAULT
CHAOS_HOSTILE_BODY_BYTES: Final = 60_000
# Slow, and within the time that the gateway waits for an acquirer.
ACQUIRER_SLOW_MS: Final = 2_000
# An fsync that takes so long is a disk in trouble; commits of one partner still end within the client's deadline.
CHAOS_SYNC_DELAY_MS: Final = 300
# Both ways, each with a jitter: a call takes twice that, and is disturbed.
CHAOS_NETWORK_DELAY_MS: Final = 250
CHAOS_NETWORK_JITTER_MS: Final = 50
CHAOS_SLICE_BYTES: Final = 256
CHAOS_SLICE_VARIATION_BYTES: Final = 250
CHAOS_SLICE_PAUSE_US: Final = 100
# After its disk or its network is well again a cell is served as ever within this.
GOAL_DISK_MS: Final = 4_000
# A hostile relay tampers with one piece of data in so many, in each of its ways and each direction.
CHAOS_TAMPER_EVERY: Final = 100
GOAL_NETWORK_MS: Final = 2_000
GOAL_CLOCK_MS: Final = GOAL_WORKER_KILLED_MS
CHAOS_FINDINGS_SHOWN_MAX: Final = 50
# Of the requests that a finding is about so many are named; how many there are is said, too.
FINDING_OFFENDERS_MAX: Final = 10
CHAOS_CHART_STEP_S: Final = 1.0

assert POLL_INTERVAL_MS * 10 < START_TIMEOUT_MS
assert JOURNEYS_END_MS_MAX > 5 * CLIENT_DEADLINE_MS
assert KILL_LOOK_MS > KILLED_DELAY_MS_MAX
assert 2 * FDB_CLI_TIMEOUT_MS < FDB_SERVER_START_TIMEOUT_MS
assert FLOOD_RECOVERY_MS > FLOODER_RATE_BURST * 1_000 // FLOODER_RATE_PER_SECOND
assert (CHAOS_DURATION_S_MAX + CHAOS_LOAD_MORE_S) * CHAOS_LOAD_PER_SECOND_MAX / 2 < JOURNEYS_PLANNED_MAX, (
    "a journey makes two calls and more"
)
assert CHAOS_DURATION_S_MAX * CHAOS_RATE_PER_SECOND * CHAOS_FLOOD_FACTOR < JOURNEYS_PLANNED_MAX
assert 2 * CHAOS_NETWORK_DELAY_MS > DISTURBED_MS
assert CHAOS_SLICE_VARIATION_BYTES < CHAOS_SLICE_BYTES
assert 4 * CHAOS_SYNC_DELAY_MS < CLIENT_DEADLINE_MS
assert ACQUIRER_SLOW_MS < actor_limits.ACQUIRER_TIMEOUT_MS
assert FLOOD_RECOVERY_MS > CHAOS_RATE_BURST * 1_000 // CHAOS_RATE_PER_SECOND
assert CHAOS_IN_FLIGHT_PER_SECOND * CHAOS_FLOOD_SLOW_MS > 2 * 1_000 * CHAOS_IN_FLIGHT_MAX, (
    "without the limit more are open"
)
assert CHAOS_IN_FLIGHT_MAX < actor_limits.ACQUIRER_SLOTS, "the limit is met before the slots are"
assert CHAOS_SHARE_PER_SECOND * CHAOS_FLOOD_SLOW_MS > 2 * 1_000 * actor_limits.ACQUIRER_SLOTS, "the door fills up"
assert CHAOS_FLOOD_SLOW_MS < actor_limits.ACQUIRER_TIMEOUT_MS
assert CHAOS_HUNG_PARTNERS * router_limits.PARTNER_REQUESTS_MAX > router_limits.REQUESTS_MAX // CHAOS_CELLS, (
    "their places are more than their cell's share"
)
assert CHAOS_HUNG_PER_SECOND * actor_limits.COMMAND_DEADLINE_MS > 1_000 * router_limits.REQUESTS_MAX // CHAOS_CELLS
assert CHAOS_ORDERED_REPEATS_MAX > api_limits.POISON_DEATHS_MAX
