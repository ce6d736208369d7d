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

# The most megabytes or milliseconds that a command orders where faults are injected.
FAULT_AMOUNT_MAX: Final = 100_000

assert store_limits.FDB_STATUS_TIMEOUT_MS < SHELF_HEALTH_DELAY_MS
