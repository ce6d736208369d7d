"""Every bound of a partner's actor, named with its unit, and how the bounds relate.

A bound that is not here does not exist. Bounds of the wire stand in `cells.api.limits`, which builds on these.
"""

from typing import Final

# FoundationDB's limits, which every store obeys so that a partner can move between stores.
# https://apple.github.io/foundationdb/known-limitations.html
STORE_KEY_BYTES_MAX: Final = 10_000
STORE_VALUE_BYTES_MAX: Final = 100_000
STORE_TRANSACTION_BYTES_MAX: Final = 10_000_000
STORE_TRANSACTION_MS_MAX: Final = 5_000
STORE_RANGE_ROWS_MAX: Final = 1_000

# What a partner may send.
AMOUNT_MINOR_UNITS_MAX: Final = 999_999_999_999
IDEMPOTENCY_KEY_CHARACTERS_MAX: Final = 255
REFERENCE_CHARACTERS_MAX: Final = 255
DESCRIPTION_CHARACTERS_MAX: Final = 1_000
REASON_CHARACTERS_MAX: Final = 255
PAYMENT_METHOD_CHARACTERS_MAX: Final = 255
METADATA_ENTRIES_MAX: Final = 50
METADATA_KEY_CHARACTERS_MAX: Final = 40
METADATA_VALUE_CHARACTERS_MAX: Final = 500
OPERATIONS_PER_PAYMENT_MAX: Final = 100
DISPUTES_PER_PAYMENT_MAX: Final = 20
PAGE_ROWS_MAX: Final = 100
PAGE_ROWS_DEFAULT: Final = 10
# A page filtered by something that has no index looks at no more rows than this; the next one goes on from there.
PAGE_ROWS_SCANNED_MAX: Final = 1_000
# A page ends before the row that would make it larger than this; one row it always has.
PAGE_BYTES_MAX: Final = 262_144
# Rows that a page's making has in memory at a time, of up to STORE_VALUE_BYTES_MAX each.
PAGE_ROWS_READ_AT_ONCE: Final = 34

# What an acquirer's word may add to a payment's record and to its JSON. An operation is taken only where its outcome
# will fit, or the outcome could never be written.
OUTCOME_BYTES_MAX: Final = 2_048

# What a challenge (3-D Secure) may be: how long its address is, how long the customer has, whatever the acquirer says.
CHALLENGE_URL_CHARACTERS_MAX: Final = 1_000
CHALLENGE_VALIDITY_MS_MAX: Final = 3_600_000

# What an acquirer's notification may hold.
NOTIFICATION_ID_CHARACTERS_MAX: Final = 255
ACQUIRER_NAME_CHARACTERS_MAX: Final = 255
DISPUTE_ID_CHARACTERS_MAX: Final = 64
# The last moment that a timestamp can say: the end of the year 9999.
ACQUIRER_TIME_MS_MAX: Final = 253_402_300_800_000

# What the control plane may tell of an operator's change.
CHANGE_ID_CHARACTERS_MAX: Final = 64
CHANGE_DETAILS_MAX: Final = 8
CHANGE_DETAIL_CHARACTERS_MAX: Final = 512

# The mailbox and its batches.
MAILBOX_COMMANDS_MAX: Final = 512
BATCH_COMMANDS_MAX: Final = 64
BATCH_BYTES_MAX: Final = 2_000_000
PAYMENTS_CACHED_MAX: Final = 2_000
COMMIT_TIMEOUT_MS: Final = 5_000
COMMIT_ATTEMPTS_MAX: Final = 4
# No further attempt begins later than this after the first.
COMMIT_RETRY_MS_MAX: Final = 2_000
# After a batch whose new payments turned out not to be new, so many are read for before they are decided.
BATCHES_READ_AFTER_WRONG_GUESS: Final = 64

# How wrong a machine's wall clock may be without breaking a promise: what we promise to keep is kept longer by this,
# and what others promise us is counted on for less (docs/protocol.md, "Clocks").
CLOCK_MARGIN_MS: Final = 3_600_000

# How many acquirers an installation may have, and how long a name of one may be.
ACQUIRERS_MAX: Final = 8
ACQUIRER_KEY_CHARACTERS_MAX: Final = 32
# How many currencies a partner's profile may name; one that takes more takes all.
CURRENCIES_MAX: Final = 64

# Per partner and acquirer.
ACQUIRER_SLOTS: Final = 64
ACQUIRER_TIMEOUT_MS: Final = 2_500
ACQUIRER_RETRY_DELAY_MS_MIN: Final = 250
ACQUIRER_RETRY_DELAY_MS_MAX: Final = 30_000
# After so many attempts without a final answer the key is closed at the acquirer.
ACQUIRER_ATTEMPTS_BEFORE_CLOSE: Final = 3
# How long an acquirer promises to remember a key, and how long we count on that: a clock that is late by the margin
# must not let us ask for a key that is forgotten, which could charge twice. Past it a person decides.
ACQUIRER_KEY_RETENTION_PROMISED_MS: Final = 24 * 3_600_000
ACQUIRER_KEY_RETENTION_MS: Final = ACQUIRER_KEY_RETENTION_PROMISED_MS - CLOCK_MARGIN_MS
# Of an operation that the acquirer accepted it is asked at this pace; what it notifies comes sooner.
ACQUIRER_POLL_DELAY_MS_MIN: Final = 5_000
ACQUIRER_POLL_DELAY_MS_MAX: Final = 300_000
BREAKER_FAILURES_TO_OPEN: Final = 8
BREAKER_OPEN_MS: Final = 1_000
BREAKER_PROBES: Final = 2

# Settlement files. One commit takes so many rows: a few milliseconds of the partner's time, other work goes between.
SETTLEMENT_ROWS_MAX: Final = 100
# What one row may add to its commit's journal entry, at most.
SETTLEMENT_ROW_BYTES_MAX: Final = 600
SETTLEMENT_KEY_CHARACTERS_MAX: Final = 64
SETTLEMENT_REFERENCE_CHARACTERS_MAX: Final = 255
FEE_BASIS_POINTS_MAX: Final = 10_000
FEE_FIXED_MINOR_UNITS_MAX: Final = 1_000_000

# Time.
COMMAND_DEADLINE_MS: Final = 8_000
CLIENT_DEADLINE_MS: Final = 10_000
# An answer leaves the actor this long before the command's deadline, to reach the client in time.
ANSWER_MARGIN_MS: Final = 500
AUTHORIZATION_VALIDITY_MS: Final = 7 * 24 * 3_600_000
EXPIRY_RETRY_DELAY_MS: Final = 60_000
EXPIRIES_PER_WAKE_MAX: Final = 100
WAKE_MS_MAX: Final = 60_000

# Retention.
IDEMPOTENCY_RETENTION_MS: Final = 24 * 3_600_000
# How long they really are kept.
IDEMPOTENCY_KEPT_MS: Final = IDEMPOTENCY_RETENTION_MS + CLOCK_MARGIN_MS
IDEMPOTENCY_ROWS_SWEPT_MAX: Final = 200

# A partner's own limits, where the operator sets none.
RATE_PER_SECOND_DEFAULT: Final = 50
RATE_BURST_DEFAULT: Final = 100
IN_FLIGHT_DEFAULT: Final = 256
RATE_PER_SECOND_MAX: Final = 10_000
RATE_BURST_MAX: Final = 100_000
IN_FLIGHT_MAX: Final = 10_000

assert COMMAND_DEADLINE_MS < CLIENT_DEADLINE_MS, "the gateway answers before its client gives up"
assert ANSWER_MARGIN_MS < COMMAND_DEADLINE_MS
assert ACQUIRER_TIMEOUT_MS < COMMAND_DEADLINE_MS - ANSWER_MARGIN_MS, "one whole acquirer call fits into a command"
assert COMMIT_TIMEOUT_MS <= STORE_TRANSACTION_MS_MAX
assert COMMIT_RETRY_MS_MAX + COMMIT_TIMEOUT_MS < COMMAND_DEADLINE_MS - ANSWER_MARGIN_MS, (
    "a batch that the store does not take is answered in time"
)
assert BATCH_BYTES_MAX + STORE_VALUE_BYTES_MAX < STORE_TRANSACTION_BYTES_MAX
assert BATCH_COMMANDS_MAX <= MAILBOX_COMMANDS_MAX
assert SETTLEMENT_ROWS_MAX * SETTLEMENT_ROW_BYTES_MAX < STORE_VALUE_BYTES_MAX, "a commit's rows fit into its entry"
assert PAGE_ROWS_MAX <= PAGE_ROWS_SCANNED_MAX <= STORE_RANGE_ROWS_MAX
assert PAGE_ROWS_READ_AT_ONCE * 3 > PAGE_ROWS_MAX, "the largest page takes three reads"
assert ACQUIRER_RETRY_DELAY_MS_MAX * 10 < ACQUIRER_KEY_RETENTION_MS
assert ACQUIRER_POLL_DELAY_MS_MAX * 10 < ACQUIRER_KEY_RETENTION_MS
assert CHALLENGE_VALIDITY_MS_MAX * 10 < ACQUIRER_KEY_RETENTION_MS, "a key is closed long before it is forgotten"
assert CHALLENGE_URL_CHARACTERS_MAX + 256 < OUTCOME_BYTES_MAX, "a challenge fits into an outcome's room"
