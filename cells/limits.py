"""The bounds of one cell beside the wire's (`cells.api.limits`), and how they fit the stores'."""

from typing import Final

from actors import limits as actor_limits
from cells.api import limits as wire_limits
from stores import limits as store_limits

# One batch of the actor reads for each of its commands a payment and an idempotency record, and two keys a row.
assert (
    2 * actor_limits.BATCH_COMMANDS_MAX
    + 2 * actor_limits.SETTLEMENT_ROWS_MAX * wire_limits.WORKER_RECONCILES_AT_ONCE_MAX
    < store_limits.STORE_READ_KEYS_MAX
)

# A door asks its shelf so long after the last answer how the place of its books is.
SHELF_HEALTH_DELAY_MS: Final = 10_000

# A worker that holds more is ended and its partners taken over.
WORKER_RESIDENT_BYTES_MAX: Final = 512 * 1_048_576

# Of that so much came with one partner's batches: it is that partner's. Below, whose command was being decided.
WORKER_GROWTH_SUSPECT_BYTES: Final = WORKER_RESIDENT_BYTES_MAX // 4

# What is more at once, faster than hearts beat, the kernel refuses, and the worker ends (worker_limits.py).
# In writable memory, which counts also where it was never touched, above what Ray has of it at the worker's start.
WORKER_DATA_BYTES_MAX: Final = 1_024 * 1_048_576
# Of a thread of the worker's. FoundationDB's client has no more where Java starts its thread.
WORKER_STACK_BYTES: Final = 1_048_576
# Door and router go before workers: of threads (nice(2)) and of sessions (sched(7)) the weight is a third of theirs.
WORKER_NICENESS: Final = 5
SESSION_NICENESS_ATTEMPTS: Final = 20
SESSION_NICENESS_DELAY_MS: Final = 120
# Threads and open files, above those at the start. A thread too many is seen by the door, a file is refused.
WORKER_THREADS_MAX: Final = 256
WORKER_FILES_MAX: Final = 8_192

# Where a worker has a control group of its own: bounds that the kernel holds it to should nothing else do.
WORKER_GROUP_BYTES_MAX: Final = 2 * WORKER_RESIDENT_BYTES_MAX
WORKER_GROUP_THREADS_MAX: Final = 2 * WORKER_THREADS_MAX
# Of 100 that all but workers have together; the kernel's range is 1 to 10,000.
WORKER_CPU_WEIGHT: Final = 20
assert WORKER_RESIDENT_BYTES_MAX < WORKER_GROUP_BYTES_MAX, "the watch is first"

# A SQLite book has three connections in threads of their own, each with its file, its log and what they share of it.
_BOOK_THREADS = 3
_BOOK_FILES = 9
# Threads for short work: as many as asyncio's own, asyncio.to_thread's and uvloop's resolver's, have at most.
_OTHER_THREADS = 64
_POOL_THREADS = wire_limits.POOL_PARTNERS_MAX * _BOOK_THREADS + _OTHER_THREADS
_POOL_FILES = wire_limits.POOL_PARTNERS_MAX * (_BOOK_FILES + 2 * actor_limits.ACQUIRER_SLOTS)
assert WORKER_RESIDENT_BYTES_MAX + WORKER_THREADS_MAX * WORKER_STACK_BYTES < WORKER_DATA_BYTES_MAX, "the watch is first"
assert _POOL_THREADS < WORKER_THREADS_MAX, "a full pool is no hog"
assert _POOL_FILES + wire_limits.UNPROVEN_CONNECTIONS_MAX + wire_limits.HEARTBEAT_CONNECTIONS_MAX < WORKER_FILES_MAX, (
    "all slots of a full pool at two acquirers, and whoever knocks"
)

# The most megabytes, milliseconds, files or threads that a command orders where faults are injected.
FAULT_AMOUNT_MAX: Final = 100_000

# Load shedding (cells/shedding.py): commands under way in a door and in a worker, past which even captures are shed.
DOOR_COMMANDS_MAX: Final = 1_024
WORKER_COMMANDS_MAX: Final = 640
# Of these, in parts: where reads, new payments and follow-ups are shed of partners above their fair share; then of all.
SHED_PARTS: Final = 16
SHED_ABOVE_SHARE: Final = (8, 10, 12)
SHED_WITHIN_SHARE: Final = (14, 15, 16)
# A worker whose event loop is late by so much, twice in a row, sheds reads, and then new payments.
SHED_READS_LATE_MS: Final = 500
SHED_PAYMENTS_LATE_MS: Final = 1_000
SHED_RETRY_AFTER_MS: Final = 1_000

_PARTNER_MAX = wire_limits.DOOR_PARTNER_COMMANDS_MAX + wire_limits.DOOR_PARTNER_NOTIFICATIONS_MAX
assert list(SHED_ABOVE_SHARE + SHED_WITHIN_SHARE) == sorted(set(SHED_ABOVE_SHARE + SHED_WITHIN_SHARE)), (
    "reads before new payments before follow-ups, and partners above their share before the others"
)
assert SHED_WITHIN_SHARE[-1] == SHED_PARTS, "follow-ups have all the room"
assert min(DOOR_COMMANDS_MAX, WORKER_COMMANDS_MAX) * SHED_ABOVE_SHARE[0] // SHED_PARTS >= _PARTNER_MAX, (
    "one partner alone, with all that its door lets in, makes nobody be shed"
)
assert SHED_READS_LATE_MS < SHED_PAYMENTS_LATE_MS < wire_limits.WORKER_LOOP_LAG_MS_MAX, "it sheds before it is killed"

assert store_limits.FDB_STATUS_TIMEOUT_MS < SHELF_HEALTH_DELAY_MS

# Of Ray's GCS that dies (cells/ray_gcs.py): so long its clients wait for it, and so much of its last words is kept.
GCS_RECONNECT_TIMEOUT_S: Final = 180
GCS_CRASH_LOGS_MAX: Final = 5
GCS_CRASH_LOG_BYTES_MAX: Final = 65_536
assert wire_limits.GCS_AWAY_MS_MAX < GCS_RECONNECT_TIMEOUT_S * 1_000, "who starts it gives up before its clients do"

POOL_PARTNERS_MAX: Final = wire_limits.POOL_PARTNERS_MAX
# Of a dead pool's partners so many are taken over at once: their fsyncs go side by side.
POOL_ASSIGNS_AT_ONCE_MAX: Final = 16

# A partner's strikes: workers that died, or stopped answering, under its commands. Older ones don't count.
STRIKES_WINDOW_MS: Final = 600_000
# From the first strike on until the window has passed a pooled partner has a worker of its own; after so many for good.
STRIKES_TO_DEDICATED: Final = 2
# After so many it has none, until an operator releases it.
STRIKES_TO_QUARANTINE: Final = 4
# Workers of different partners that stop answering within this time were stopped by the machine: no strikes.
STALLS_TOGETHER_MS: Final = 10_000
QUARANTINE_RETRY_AFTER_MS: Final = 300_000

# A partner that is handed over to another worker: what is under way has so long to end, and its actor to stop.
HANDOVER_DRAIN_MS_MAX: Final = 100
HANDOVER_RELEASE_MS_MAX: Final = 3_000
# Whether everybody has the worker that it should have is looked at so often, and at once when that changes.
PLACEMENT_LOOK_INTERVAL_MS: Final = 5_000

# A partner that moves to another cell (cells/api/moves.py). A batch of its book's rows has so many, and ends before it
# has more bytes than this: one that is under way costs its pool-mates some milliseconds.
COPY_ROWS_MAX: Final = 250
COPY_BYTES_MAX: Final = 400_000
QUIESCE_LEASE_MS: Final = wire_limits.QUIESCE_LEASE_MS
QUIESCE_DRAIN_MS_MAX: Final = 50
# So long the answer to an arrival waits for the partner to be served.
ARRIVAL_SERVED_WAIT_MS: Final = 3_000
MOVE_TIMEOUT_MS: Final = 5_000
# A partner's moves into this cell that ended: what is said of them once more is refused.
ENDED_MOVES_KEPT_MAX: Final = 8

assert COPY_BYTES_MAX + actor_limits.STORE_VALUE_BYTES_MAX + actor_limits.STORE_KEY_BYTES_MAX < (
    wire_limits.ANSWER_BYTES_MAX
), "any row fits into a batch"
assert COPY_ROWS_MAX <= actor_limits.STORE_RANGE_ROWS_MAX
assert COPY_ROWS_MAX < store_limits.STORE_READ_KEYS_MAX
assert QUIESCE_DRAIN_MS_MAX < QUIESCE_LEASE_MS < actor_limits.COMMAND_DEADLINE_MS, "what waits is answered in time"

assert 1 < POOL_PARTNERS_MAX <= wire_limits.ACQUIRER_CONNECTIONS_MAX // actor_limits.ACQUIRER_SLOTS, "slots for each"
assert 1 < STRIKES_TO_DEDICATED < STRIKES_TO_QUARANTINE
assert wire_limits.POISON_DEATHS_MAX < STRIKES_TO_QUARANTINE, "one command alone quarantines nobody"
assert HANDOVER_DRAIN_MS_MAX + HANDOVER_RELEASE_MS_MAX < actor_limits.COMMAND_DEADLINE_MS
