"""Every bound of the acquirer simulator, named with its unit, and how the bounds relate.

Retention of keys is no bound: a key and its outcome are kept for ever, so asking again never performs again.
"""

from typing import Final

# What an operation may hold.
KEY_CHARACTERS_MAX: Final = 255
PARTNER_CHARACTERS_MAX: Final = 40
PAYMENT_METHOD_CHARACTERS_MAX: Final = 255
AMOUNT_MINOR_UNITS_MAX: Final = 999_999_999_999
REQUEST_BODY_BYTES_MAX: Final = 16_384
PAGE_ROWS_MAX: Final = 1_000
PAGE_ROWS_DEFAULT: Final = 100
# No token has so many digits in a row; what has them is taken for a card number and not written down.
DIGITS_IN_A_TOKEN_MAX: Final = 11

# The record.
BATCH_OPERATIONS_MAX: Final = 256
QUEUE_OPERATIONS_MAX: Final = 10_000
RECORD_LOCK_TIMEOUT_MS: Final = 2_000
WAL_CHECKPOINT_PAGES: Final = 2_000

# Connections and waits.
CONNECTIONS_MAX: Final = 16_384
OPEN_FILES_WANTED: Final = CONNECTIONS_MAX + 256
WAITING_REQUESTS_MAX: Final = 10_000
HANG_MS_MAX: Final = 600_000
DELAY_MS_MAX: Final = 60_000
FAULTS_MAX: Final = 10_000
TOKENS_CACHED_MAX: Final = 4_096

# Settlement files. So many operations of the record are looked at between two turns of the event loop.
SETTLEMENT_OPERATIONS_AT_ONCE: Final = 500
# A day's file is final so long after its end: what was begun before midnight is in the record by then.
SETTLEMENT_FINAL_AFTER_MS: Final = 60_000
SETTLEMENT_EXTRAS_MAX: Final = 1_000

# How long an authorization holds.
AUTHORIZATION_VALIDITY_MS: Final = 7 * 24 * 3_600_000
AUTHORIZATION_VALIDITY_MS_MAX: Final = 365 * 24 * 3_600_000

# Challenges, results that come later, disputes: test money's times are short.
CHALLENGE_VALIDITY_MS: Final = 15 * 60_000
CHALLENGE_VALIDITY_MS_MAX: Final = 3_600_000
ASYNC_RESULT_MS: Final = 1_000
LATE_RESULT_MS: Final = 4_000
DISPUTE_OPENS_MS: Final = 1_000
DISPUTE_CLOSES_MS: Final = 2_000

# Notifications. All attempts together take two and a half hours, far less than a gateway remembers their ids.
NOTIFICATION_DELIVERIES: Final = 2
NOTIFICATION_REPEAT_DELAY_MS: Final = 500
NOTIFICATION_ATTEMPTS_MAX: Final = 40
NOTIFICATION_RETRY_DELAY_MS_MIN: Final = 200
NOTIFICATION_RETRY_DELAY_MS_MAX: Final = 300_000
NOTIFICATION_TIMEOUT_MS: Final = 10_000
# For so long a notification that was taken to be sent is nobody else's.
NOTIFICATION_LEASE_MS: Final = 30_000
NOTIFICATIONS_AT_ONCE_MAX: Final = 64
NOTIFIER_IDLE_MS: Final = 60_000

LOG_FILE_BYTES_MAX: Final = 50_000_000
LOG_FILES_KEPT: Final = 3

assert BATCH_OPERATIONS_MAX <= QUEUE_OPERATIONS_MAX
assert WAITING_REQUESTS_MAX < CONNECTIONS_MAX, "hung requests leave connections for the others"
assert DELAY_MS_MAX < HANG_MS_MAX
assert NOTIFICATION_TIMEOUT_MS < NOTIFICATION_LEASE_MS
assert len(str(AUTHORIZATION_VALIDITY_MS_MAX)) <= DIGITS_IN_A_TOKEN_MAX
