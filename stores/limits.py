"""The bounds of the stores, each with its unit, and how they relate. What the contract allows is in `actors.limits`."""

from typing import Final

from actors import limits as actor_limits

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

# Rows that change while a book is copied are remembered up to here; past it the copy begins anew.
TRACKED_ROWS_MAX: Final = 200_000

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

# FoundationDB. What one transaction may take, the client's own retries of its parts included: short enough that a
# command whose commit met a cluster that is gone is answered within its deadline.
FDB_TRANSACTION_TIMEOUT_MS: Final = 3_000
# How long a store goes on with a call that the cluster turned away.
FDB_CALL_TIMEOUT_MS: Final = 4_000
FDB_BUSY_DELAY_MS: Final = 50
# While a cluster doesn't answer it is asked so often, and every call fails at once meanwhile.
FDB_PROBE_TIMEOUT_MS: Final = 1_000
FDB_PROBE_DELAY_MS: Final = 200
# How old a committed version may be that a commit is based on without asking for a newer one (FoundationDB: 5 s).
FDB_VERSION_AGE_MS_MAX: Final = 1_500
# A commit with checks is based on such a version only so long after the cluster was last asked for leave.
FDB_LEAVE_MS_MAX: Final = 250
FDB_CLUSTER_FILE_BYTES_MAX: Final = 10_000
# What opening the first connection to a cluster may take, a probe each.
FDB_CONNECT_TIMEOUT_MS: Final = 5_000
# The cluster's status, as JSON: 10 kB for one process, 100 kB and more for many.
FDB_STATUS_TIMEOUT_MS: Final = 5_000
FDB_STATUS_BYTES_MAX: Final = 4_000_000

assert FDB_TRANSACTION_TIMEOUT_MS < FDB_CALL_TIMEOUT_MS < actor_limits.COMMIT_TIMEOUT_MS
assert FDB_CALL_TIMEOUT_MS + actor_limits.ANSWER_MARGIN_MS < actor_limits.COMMAND_DEADLINE_MS
assert FDB_VERSION_AGE_MS_MAX + FDB_TRANSACTION_TIMEOUT_MS < actor_limits.STORE_TRANSACTION_MS_MAX
