"""The bounds of one cell's stores, each with its unit, and how they relate. The wire's are in `cells.api.limits`."""

from typing import Final

from actors import limits as actor_limits
from cells.api import limits as wire_limits

# What FoundationDB's limits leave to a partner: its subspace's prefix is part of every key there.
STORE_PREFIX_BYTES_MAX: Final = 100
# What FoundationDB counts for a mutation or a conflict range beside the bytes of its keys and value.
STORE_MUTATION_OVERHEAD_BYTES: Final = 100
STORE_READ_KEYS_MAX: Final = 10_000
STORE_READ_RANGES_MAX: Final = 1_000

# Calls waiting for one thread of one store; past it the caller is refused at once.
STORE_CALLS_PENDING_MAX: Final = 256
# How long a transaction waits for the file's write lock (a stopped process may hold it).
STORE_LOCK_WAIT_MS: Final = 3_000
STORE_CLOSE_TIMEOUT_MS: Final = 6_000
SQLITE_CACHE_KIB: Final = 1_024
# Rows that one statement writes; a larger commit takes several.
STATEMENT_ROWS_MAX: Final = 16

# The write-ahead log, in pages of 4 KiB. A checkpoint beside the writer is tried each time it has grown by so many ...
CHECKPOINT_LOG_PAGES: Final = 1_000
# ... and from here on the writer waits for its end, or a log that is written without a pause would never start over.
CHECKPOINT_LOG_PAGES_BLOCKING: Final = 4_000
# What a log that starts over keeps of its file: to write over it is cheaper than to let it grow again.
CHECKPOINT_LOG_BYTES_KEPT: Final = 32 * 1_048_576
# How long the writer waits for readers then.
CHECKPOINT_LOCK_WAIT_MS: Final = 100

assert STORE_LOCK_WAIT_MS < actor_limits.COMMIT_TIMEOUT_MS, (
    "waiting for the lock fails cleanly before the commit as a whole is late"
)
assert CHECKPOINT_LOCK_WAIT_MS * 10 <= STORE_LOCK_WAIT_MS
assert CHECKPOINT_LOG_PAGES < CHECKPOINT_LOG_PAGES_BLOCKING < CHECKPOINT_LOG_BYTES_KEPT // 4_096
assert STORE_CLOSE_TIMEOUT_MS > actor_limits.COMMIT_TIMEOUT_MS, "what is being written is finished first"
# One batch of the actor reads for each of its commands a payment and an idempotency record, and two keys a row.
assert (
    2 * actor_limits.BATCH_COMMANDS_MAX
    + 2 * actor_limits.SETTLEMENT_ROWS_MAX * wire_limits.WORKER_RECONCILES_AT_ONCE_MAX
    < STORE_READ_KEYS_MAX
)
