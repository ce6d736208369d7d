"""The bounds of the wire between router, door and worker, each with its unit, and how they relate."""

from typing import Final

from actors import limits as actor_limits
from actors.profile import MAIN_ACQUIRER as _MAIN

FRAME_BYTES_MAX: Final = 1_048_576
# What of a frame is left to an answer's body.
ANSWER_BYTES_MAX: Final = FRAME_BYTES_MAX - 1_024
# What AES-256-GCM adds to a frame (NIST SP 800-38D), and how many frames one key seals: far below where it wears out.
SEAL_BYTES: Final = 16
FRAMES_PER_KEY_MAX: Final = 2**36
# Before its proof a peer may send this much in a frame: a proof has some 120 bytes.
HANDSHAKE_FRAME_BYTES_MAX: Final = 256
# What a router may send in a frame: bodies that it lets in have 64 KiB.
ROUTER_FRAME_BYTES_MAX: Final = 131_072
# A frame is an array of so many fields and holds no other array or map; messages in it are bytes.
FRAME_FIELDS_MAX: Final = 6
# The names in a request's frame: a method, a partner.
FRAME_NAME_CHARACTERS_MAX: Final = 64
assert actor_limits.PAGE_BYTES_MAX + actor_limits.STORE_VALUE_BYTES_MAX < ANSWER_BYTES_MAX, "any page fits"
HANDSHAKE_TIMEOUT_MS: Final = 2_000
# Who asks waits so much longer than the budget that it hands down: "202, processing" in the last moment is a better
# answer than "outcome unknown". The router waits longer than the door, and the client longer than both.
ANSWER_GRACE_MS: Final = {"door": 400, "router": 800}
CONNECT_TIMEOUT_MS: Final = 1_000
RECONNECT_DELAY_MS_MIN: Final = 50
# A door is back within two seconds; a refused connection costs next to nothing.
RECONNECT_DELAY_MS_MAX: Final = 200
# Requests awaiting an answer on one connection; past it the caller is refused at once.
CONNECTION_REQUESTS_MAX: Final = 20_000
# Unsent bytes on one connection; past it the peer is taken for stopped and the caller is refused at once.
CONNECTION_UNSENT_BYTES_MAX: Final = 16 * FRAME_BYTES_MAX
# A worker's mark (cells/poison.py) holds a whole command id; the router's ULIDs have 26 characters.
COMMAND_ID_BYTES_MAX: Final = 64
# And whose it is: partners' ids have at most 40.
PARTNER_ID_BYTES_MAX: Final = FRAME_NAME_CHARACTERS_MAX
# A command is sent at most so often, whatever dies; then the caller is told to ask.
COMMAND_SENDS_MAX: Final = 2

# A partner that moves to another cell: its commands wait so long for the seal, whoever asked for it; then it is served
# where it was.
QUIESCE_LEASE_MS: Final = 2_000

# One partner's share of the door.
DOOR_PARTNER_COMMANDS_MAX: Final = 256
# Beside them, of its acquirer's notifications: neither a partner's flood nor an acquirer's takes the other's places.
DOOR_PARTNER_NOTIFICATIONS_MAX: Final = 32
DOOR_CONNECTIONS_MAX: Final = 256
# Connections that have not proven themselves yet; one more takes the place of the oldest, so that they lock nobody out.
UNPROVEN_CONNECTIONS_MAX: Final = 128

# Lines a second of one kind of event in the log; what is left out is counted in the next line.
LOG_LINES_PER_SECOND_MAX: Final = 20

# Health. A worker is suspected after this much silence and then killed and replaced.
HEARTBEAT_INTERVAL_MS: Final = 350
HEARTBEAT_TIMEOUT_MS: Final = 1_500
DOOR_LATE_MS: Final = 500
TAKEOVERS_AT_ONCE_MAX: Final = 4
# So many pooled partners share a worker. What its death costs them rises with it.
POOL_PARTNERS_MAX: Final = 32
# A new spare is started so long after a death, so that it does not compete with the takeover.
SPARE_AFTER_DEATH_DELAY_MS: Final = 1_000
WORKER_START_TIMEOUT_MS: Final = 60_000
ACTIVATION_TIMEOUT_MS: Final = 10_000
# A cell's Ray goes on without its GCS, which is started again, for so long; then all of it begins anew.
GCS_AWAY_MS_MAX: Final = 60_000
ACTIVATION_RETRY_DELAY_MS_MAX: Final = 5_000
# A worker is suspected, too, by commands in a row that it left unanswered for at least this long.
UNANSWERED_MS_MIN: Final = 3_000
UNANSWERED_IN_ROW_MAX: Final = 3
# A command that was being executed at so many deaths of workers is refused from then on.
POISON_DEATHS_MAX: Final = 2
POISON_COMMANDS_REMEMBERED_MAX: Final = 1_000

ROUTER_REMEMBERED_429_MS_MAX: Final = 1_000

assert HEARTBEAT_TIMEOUT_MS >= 4 * HEARTBEAT_INTERVAL_MS, "one late heartbeat accuses nobody"
assert 0 < ANSWER_GRACE_MS["door"] < ANSWER_GRACE_MS["router"]
assert actor_limits.COMMAND_DEADLINE_MS + ANSWER_GRACE_MS["router"] < actor_limits.CLIENT_DEADLINE_MS
assert HEARTBEAT_TIMEOUT_MS < UNANSWERED_MS_MIN < actor_limits.COMMAND_DEADLINE_MS
assert DOOR_PARTNER_COMMANDS_MAX + DOOR_PARTNER_NOTIFICATIONS_MAX <= actor_limits.MAILBOX_COMMANDS_MAX, (
    "what its door lets in fits"
)
assert actor_limits.COMMAND_DEADLINE_MS > HEARTBEAT_TIMEOUT_MS * 2, "a takeover fits into it"

# Workers.
WORKER_LOOP_LAG_MS_MAX: Final = 3_000
WORKER_STARTS_AT_ONCE_MAX: Final = 2
WORKER_READS_AT_ONCE_MAX: Final = 64
# Batches of settlement rows under way in one worker: payments take turns with one, never with many.
WORKER_RECONCILES_AT_ONCE_MAX: Final = 1
HEARTBEAT_CONNECTIONS_MAX: Final = 8
METRICS_TIMEOUT_MS: Final = 1_000

# The acquirer's answers, and a worker process's connections to one host: ACQUIRER_SLOTS for each of 64 partners sharing
# it. Each host has its own, so that one that hangs takes none of another's.
ACQUIRER_ANSWER_BYTES_MAX: Final = 16_384
ACQUIRER_NAME_CHARACTERS_MAX: Final = actor_limits.ACQUIRER_NAME_CHARACTERS_MAX
MAIN_ACQUIRER: Final = _MAIN
ACQUIRERS_MAX: Final = actor_limits.ACQUIRERS_MAX
CURRENCIES_MAX: Final = actor_limits.CURRENCIES_MAX
ACQUIRER_KEY_CHARACTERS_MAX: Final = actor_limits.ACQUIRER_KEY_CHARACTERS_MAX
ACQUIRER_TIME_MS_MAX: Final = actor_limits.ACQUIRER_TIME_MS_MAX
CHALLENGE_URL_CHARACTERS_MAX: Final = actor_limits.CHALLENGE_URL_CHARACTERS_MAX
ACQUIRER_CONNECTIONS_MAX: Final = 64 * actor_limits.ACQUIRER_SLOTS
ACQUIRER_KEEP_ALIVE_S: Final = 30

# Groups of digits in one request that begin like a card's number, and numbers made of them, past which the request is
# refused without trying more: one in ten has the check digit by chance.
CARD_CANDIDATES_MAX: Final = 256
CARD_NAMES_REMEMBERED_MAX: Final = 1_024
CARD_NAME_CHARACTERS_MAX: Final = 64  # longer names of fields name no security code

# What operators may set for a partner, and what it is where they set nothing.
PARTNER_RATE_PER_SECOND_DEFAULT: Final = actor_limits.RATE_PER_SECOND_DEFAULT
PARTNER_RATE_PER_SECOND_MAX: Final = actor_limits.RATE_PER_SECOND_MAX
PARTNER_RATE_BURST_DEFAULT: Final = actor_limits.RATE_BURST_DEFAULT
PARTNER_RATE_BURST_MAX: Final = actor_limits.RATE_BURST_MAX
PARTNER_IN_FLIGHT_DEFAULT: Final = actor_limits.IN_FLIGHT_DEFAULT
PARTNER_IN_FLIGHT_MAX: Final = actor_limits.IN_FLIGHT_MAX

# What a settlement file may hold, and how it is handed to the partners' actors.
SETTLEMENT_ROWS_MAX: Final = actor_limits.SETTLEMENT_ROWS_MAX
SETTLEMENT_KEY_CHARACTERS_MAX: Final = actor_limits.SETTLEMENT_KEY_CHARACTERS_MAX
SETTLEMENT_REFERENCE_CHARACTERS_MAX: Final = actor_limits.SETTLEMENT_REFERENCE_CHARACTERS_MAX
SETTLEMENT_AMOUNT_MINOR_UNITS_MAX: Final = actor_limits.AMOUNT_MINOR_UNITS_MAX
FEE_BASIS_POINTS_MAX: Final = actor_limits.FEE_BASIS_POINTS_MAX
FEE_FIXED_MINOR_UNITS_MAX: Final = actor_limits.FEE_FIXED_MINOR_UNITS_MAX
PARTNER_AUTHORIZATION_VALIDITY_MS_MAX: Final = 400 * 24 * 3_600_000
PROFILE_TEXT_CHARACTERS_MAX: Final = 2_048
