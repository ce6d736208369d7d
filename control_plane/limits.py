"""Every bound of the control plane, named with its unit, and how the bounds relate."""

from typing import Final

from cells.api import limits as wire_limits
from router import limits as router_limits
from stores import contract

# A command's deadline stands with the actor; the wire's limits pass it on.
actor_limits = wire_limits.actor_limits  # type: ignore[attr-defined]  # mypy takes the import there for a private one

# What an installation may hold.
CELLS_MAX: Final = 64
# Those that were removed count, too: their rows stay.
CELLS_EVER_MAX: Final = 1_000
CELL_WEIGHT_MAX: Final = 1_000
# How many ports past the end of its row are looked at to find a free one for a cell that is added.
CELL_PORTS_TRIED_MAX: Final = 2_000
ROUTERS_MAX: Final = 32
# Users of an installation's processes: some for its roles, one for each cell that ever was. The blocks lie where
# neither systemd (https://systemd.io/UIDS-GIDS/) nor subuid(5) hand numbers out, one of them for each installation.
USERS_MAX: Final = 2_048
FIRST_CELL_USER: Final = 16
FIRST_UID_MIN: Final = 1_900_000_000
UID_BLOCKS: Final = 100_000
UID_MAX: Final = 2**31 - 1
SPARES_PER_CELL_MAX: Final = 8
PARTNERS_MAX: Final = 10_000
# Keys of a partner that are still good; and all that are kept of it: past that the oldest that ended is forgotten.
KEYS_PER_PARTNER_MAX: Final = 8
KEYS_KEPT_PER_PARTNER_MAX: Final = 32
KEYS_MAX: Final = PARTNERS_MAX * KEYS_KEPT_PER_PARTNER_MAX
PARTNER_NAME_CHARACTERS_MAX: Final = 100
NOTE_CHARACTERS_MAX: Final = 500
HISTORY_ROWS_SHOWN_MAX: Final = 20
AUDIT_ENTRIES_SHOWN_MAX: Final = 10_000

# The audit log's head follows to its second place so often at most.
AUDIT_COPY_INTERVAL_MS: Final = 1_000

# Operators, and what the admin API takes of them.
OPERATORS_MAX: Final = 1_000
ADMIN_BODY_BYTES_MAX: Final = 16_000_000
# Keys that are not good: each of an address within the window is answered twice as late as the one before.
FAILED_KEYS_WINDOW_MS: Final = 60_000
FAILED_KEYS_ADDRESSES_MAX: Final = 1_000
FAILED_KEY_DELAY_MS_MIN: Final = 50
FAILED_KEY_DELAY_MS_MAX: Final = 3_000
# So many wait for their answer at once; one more is answered at once, with 429.
FAILED_KEYS_WAITING_MAX: Final = 64

# What is read, refused and tried in vain, for the audit log: what is alike within the window is one entry. So many
# unlike ones of a name are told apart; a name may have so many entries at once, then one in each interval; all without
# a good key share one name.
ACCESS_WINDOW_MS: Final = 60_000
ACCESS_ROWS_MAX: Final = 1_000
ACCESS_ENTRIES_OPERATOR_MAX: Final = 1_000
ACCESS_ENTRY_OPERATOR_INTERVAL_MS: Final = 1_000
ACCESS_ENTRIES_NOBODY_MAX: Final = 30
ACCESS_ENTRY_NOBODY_INTERVAL_MS: Final = 60_000
ACCESS_ENTRIES_PER_COMMIT_MAX: Final = 250
# Of the partners in what is counted together, so many are named.
ACCESS_PARTNERS_NAMED_MAX: Final = 16
ACCESS_INTERVAL_MS: Final = 1_000
# Partners' keys that are not good, as routers count them: how often what they left is taken, and what a file may hold.
FAILED_KEYS_TAKE_INTERVAL_MS: Final = 5_000
FAILED_KEYS_FILE_BYTES_MAX: Final = 65_536
FAILED_KEYS_COUNT_MAX: Final = 10**12

# Changes that wait for a second person: how many may, how long each does, and how many that ended are shown.
APPROVALS_PENDING_MAX: Final = 100
APPROVALS_PENDING_PER_OPERATOR_MAX: Final = 10
APPROVAL_VALIDITY_S: Final = 24 * 3_600
APPROVALS_ENDED_MAX: Final = 200
APPROVALS_MAX: Final = APPROVALS_PENDING_MAX + APPROVALS_ENDED_MAX
APPROVALS_INTERVAL_MS: Final = 2_000

# Keys. An old key stays good for this long after a rotation, unless the operator says otherwise.
KEY_GRACE_S_DEFAULT: Final = 24 * 3_600
KEY_GRACE_S_MAX: Final = 90 * 24 * 3_600

# Deleted partners: how long one may still read and be restored, and how many ids are remembered as gone.
DELETION_GRACE_S_DEFAULT: Final = 30 * 24 * 3_600
DELETION_GRACE_S_MAX: Final = 90 * 24 * 3_600
# One for each partner and cell at most.
BURIALS_MAX: Final = PARTNERS_MAX * CELLS_EVER_MAX
DELETIONS_MAX: Final = 100_000

# What a partner is still to be told, one row a change; past that nothing more is changed of it but to its protection.
NOTICES_PER_PARTNER_MAX: Final = 32
# Of protective ones there are no more than keys to revoke, and one suspension.
NOTICES_MAX: Final = PARTNERS_MAX * (NOTICES_PER_PARTNER_MAX + KEYS_KEPT_PER_PARTNER_MAX + 1)
# So many of a partner's are delivered before they are forgotten in one commit.
NOTICES_AT_ONCE_MAX: Final = 32
INFORM_INTERVAL_MS: Final = 1_000

# Memory, measured: a dedicated worker is a process of its own, a cell is a Ray head and a door.
WORKER_MEMORY_BYTES: Final = 60_000_000
# What a pooled partner adds to its worker, and how many share one.
POOLED_PARTNER_MEMORY_BYTES: Final = 2_000_000
POOL_PARTNERS_MAX: Final = wire_limits.POOL_PARTNERS_MAX
CELL_MEMORY_BYTES: Final = 400_000_000

# Supervised processes.
START_TIMEOUT_MS: Final = 90_000
# How long a process waits for those that it needs before it is started all the same.
NEEDS_TIMEOUT_MS: Final = 60_000
PROBE_INTERVAL_MS: Final = 1_000
PROBE_INTERVAL_WAITING_MS: Final = 100
# A process under more load than it can carry answers late, and to kill it would cost all that it carries.
PROBE_TIMEOUT_MS: Final = 5_000
# A process that answered once and then is silent for this long is killed and started again.
UNRESPONSIVE_MS_MAX: Final = 8_000
# The same where its event loop's thread ran, or waited for a core, for at least this share of that time: it has more to
# do than it can, and goes on where it is let. One that loops for ever is ended by this.
BUSY_PERCENT_MIN: Final = 50
BUSY_SILENT_MS_MAX: Final = 24_000
# The same where the kernel says that it is stopped (SIGSTOP): no load explains that. Ray's processes carry no payment,
# and to replace them costs the cell's partners seconds: so these are given longer.
STOPPED_MS_MAX: Final = 1_000
STOPPED_RAY_MS_MAX: Final = 3_000
# What answers for Ray is its GCS, which may be away for a while, and which its head starts again.
SILENT_RAY_MS_MAX: Final = 90_000
STATE_LOOK_INTERVAL_MS: Final = 500
# A process's parts (Ray's) are looked for again after so many looks.
STATE_LOOKS_PER_SEARCH: Final = 4
# A supervisor that finds itself this late accuses nobody.
SUPERVISOR_LATE_MS: Final = 500
# Whether everything listens where the settings say is looked at so often.
LISTENING_LOOK_INTERVAL_MS: Final = 60_000
RESTART_DELAY_MS_MIN: Final = 200
RESTART_DELAY_MS_MAX: Final = 10_000
HEALTHY_MS_TO_RESET_DELAY: Final = 30_000
STOP_TIMEOUT_MS: Final = 5_000
KILL_TIMEOUT_MS: Final = 2_000
SWEEP_ROUNDS_MAX: Final = 20
SETTINGS_BYTES_MAX: Final = 65_536
OUTPUT_FILE_BYTES_MAX: Final = 10_000_000
TRIM_INTERVAL_MS: Final = 30_000

# The installation's own Redis: what it may hold, and how many may be connected.
REDIS_MEMORY_BYTES_MAX: Final = 134_217_728
REDIS_CLIENTS_MAX: Final = 256
# How long each step of telling routers by Redis may take; the file is written by then.
REDIS_TIMEOUT_MS: Final = 500

# Asking doors and routers.
# Longer than a door waits for a stopped worker of its own.
CELL_STATUS_TIMEOUT_MS: Final = 1_500
DOOR_CONNECT_TIMEOUT_MS: Final = 5_000
ONBOARD_TIMEOUT_MS: Final = 30_000
ERASE_TIMEOUT_MS: Final = 30_000
CONFIGURE_TIMEOUT_MS: Final = 10_000
COMMAND_TIMEOUT_MS: Final = 8_000
LIST_UNKNOWN_TIMEOUT_MS: Final = 3_000
LIST_UNKNOWN_AT_ONCE_MAX: Final = 16
# How long a change waits to see each router hold the new directory before it says which ones don't.
DIRECTORY_TAKEN_TIMEOUT_MS: Final = 1_000
DIRECTORY_TAKEN_POLL_MS: Final = 20
RECONCILE_INTERVAL_MS: Final = 4_000
# Cells on their way in or out are looked at this often.
CELL_STEP_INTERVAL_MS: Final = 500
# So long a new cell waits for routers that have not taken the directory with it, before partners go there all the same.
CELL_JOIN_MS_MAX: Final = 10_000
# A cell that no router is told of any more serves out what it was sent: no command is older than its deadline.
CELL_REMOVE_GRACE_MS: Final = actor_limits.COMMAND_DEADLINE_MS
# How long `cell add` and `remove` watch, and `evacuate` while nobody comes; what they began goes on by itself.
CELL_WATCH_MS_MAX: Final = 180_000
CELL_WATCH_INTERVAL_MS: Final = 500
CONFIGURES_AT_ONCE_MAX: Final = 8
# A partner that its door can't configure is tried again after a delay that doubles up to this.
CONFIGURE_RETRY_DELAY_MS_MAX: Final = 60_000

# Rebalancing: how many partners move at once and in an hour, and the pause after which one isn't moved again in a run.
REBALANCE_MOVES_AT_ONCE_DEFAULT: Final = 2
REBALANCE_MOVES_AT_ONCE_MAX: Final = 16
REBALANCE_MOVES_PER_HOUR_DEFAULT: Final = 600
REBALANCE_MOVES_PER_HOUR_MAX: Final = 36_000
REBALANCE_PAUSE_BUDGET_MS_DEFAULT: Final = 250
REBALANCE_PAUSE_BUDGET_MS_MAX: Final = 10_000
# What a plan says before any move of the run has told more.
REBALANCE_PAUSE_MS_EXPECTED: Final = 100
REBALANCE_MOVE_S_EXPECTED: Final = 1
REBALANCE_ATTEMPTS_MAX: Final = 3
REBALANCE_RETRY_DELAY_MS: Final = 5_000
REBALANCE_STEP_INTERVAL_MS: Final = 500
# It stops by itself after so many failed moves in a row, or where more of the answers of the last seconds are 5xx.
REBALANCE_FAILURES_IN_ROW_MAX: Final = 3
REBALANCE_ERRORS_WINDOW_MS: Final = 30_000
REBALANCE_ERRORS_INTERVAL_MS: Final = 2_000
REBALANCE_ERRORS_MIN: Final = 5
REBALANCE_ERROR_RATE_MAX: Final = 0.01
# A plan is written down so many steps a commit.
REBALANCE_STEPS_PER_COMMIT_MAX: Final = 500
# A plan's name: so much of a hash that no two plans which an operator may see have the same.
REBALANCE_PLAN_ID_CHARACTERS: Final = 12
# By load: a cell may be above its share by this part of it; a move that helps less is not worth a pause.
REBALANCE_LOAD_TOLERANCE: Final = 0.1
REBALANCE_GAIN_MIN: Final = 1e-6
REBALANCE_TARGETS_MAX: Final = 3
# How often routers' counts of requests are looked at, how many looks are remembered, and how far apart two must be.
LOAD_INTERVAL_MS: Final = 60_000
LOAD_LOOKS_MAX: Final = 10
LOAD_SPAN_MS_MIN: Final = 2_000
METRICS_TIMEOUT_MS: Final = 3_000
METRICS_BYTES_MAX: Final = 64 * 1_048_576

# Moves of partners between cells.
MOVE_STEP_TIMEOUT_MS: Final = 6_000
MOVE_RETRY_DELAY_MS_MIN: Final = 200
MOVE_RETRY_DELAY_MS_MAX: Final = 5_000
# A partner that was stopped for a seal that never came is served again after so long.
QUIESCE_LEASE_MS: Final = wire_limits.QUIESCE_LEASE_MS
# A move that failed otherwise is looked at again so much later.
MOVE_RESUME_DELAY_MS: Final = 60_000
# Steps of moves at once between two cells: an evacuation begins with all of a cell's partners.
MOVE_STEPS_AT_ONCE_MAX: Final = 32
# Cells are looked at so often where silent ones are evacuated; who looks later than that accuses nobody.
EVACUATION_LOOK_MS: Final = 1_000
EVACUATION_LATE_MS: Final = 10_000
# Cells that were evacuated are told so, as soon as they are back.
BURIAL_INTERVAL_MS: Final = 1_000
EVACUATE_AFTER_S_MAX: Final = 24 * 3_600
# How long a request waits for a move; the command line asks again.
MOVE_WAIT_S_MAX: Final = 30
MOVE_LOOK_INTERVAL_MS: Final = 500
# So long a move waits for a worker of its target that is ready; then the partner stays where it is.
MOVE_READY_WAIT_MS_MAX: Final = 120_000
# A copy that is lost so often is given up; the partner stays where it is.
MOVE_ATTEMPTS_MAX: Final = 10
# So few rows may be left to copy when the partner is stopped for them: one batch.
MOVE_ROWS_LEFT_MAX: Final = 100
# Where that is not so after so many more batches, the partner writes faster than it is copied, and stays.
MOVE_CATCH_UP_BATCHES_MAX: Final = 1_000

# The command line.
CONTROL_TIMEOUT_MS: Final = 60_000
WATCH_INTERVAL_MS: Final = 2_000
AUDIT_TIMEOUT_MS: Final = 600_000
AUDITS_AT_ONCE_MAX: Final = 2
AUDIT_LINE_BYTES_MAX: Final = 1_048_576
# Of the audit log, so many entries are read between two looks of who watches.
AUDIT_PROGRESS_ENTRIES: Final = 256

# Settlement files: what one may hold, and how it is read.
SETTLEMENT_FILE_ROWS_MAX: Final = 100_000_000
SETTLEMENT_CURRENCIES_MAX: Final = 300
SETTLEMENT_SUM_MAX: Final = SETTLEMENT_FILE_ROWS_MAX * wire_limits.SETTLEMENT_AMOUNT_MINOR_UNITS_MAX
SETTLEMENT_LINE_BYTES_MAX: Final = 4_096
SETTLEMENT_READ_BYTES: Final = 1_048_576
# Rows wait in memory for their partner's file until there are so many bytes of them.
SETTLEMENT_BUFFER_BYTES: Final = 32 * 1_048_576
# So many keys are held at once to find those that stand in a file twice.
SETTLEMENT_KEYS_AT_ONCE_MAX: Final = 1_000_000
SETTLEMENT_ERRORS_SHOWN_MAX: Final = 20
SETTLEMENT_PROGRESS_LINES: Final = 4_096
# How they are handed to the partners' actors, and how long a partner that does not answer is asked again.
SETTLEMENT_PARTNERS_AT_ONCE_MAX: Final = 8
SETTLEMENT_PATIENCE_MS: Final = 30_000
SETTLEMENT_RETRY_DELAY_MS_MIN: Final = 100
SETTLEMENT_RETRY_DELAY_MS_MAX: Final = 2_000
# Of each verdict, so many are in a report; the option --differences writes all.
SETTLEMENT_DIFFERENCES_SHOWN_MAX: Final = 500
# How far the acquirer's clock and ours may be apart: what succeeded so shortly before midnight may be in the next file.
SETTLEMENT_CLOCK_MARGIN_S_DEFAULT: Final = 300
SETTLEMENT_CLOCK_MARGIN_S_MAX: Final = 12 * 3_600

# Files of partners: how large one may be, and how it is worked off.
IMPORT_FILE_BYTES_MAX: Final = 8_000_000
IMPORT_PARTNERS_MAX: Final = 5_000
IMPORT_ERRORS_SHOWN_MAX: Final = 100
# Partners that one commit of the registry begins or admits; some 600 bytes each.
IMPORT_BATCH_PARTNERS_MAX: Final = 250
# So long it is waited for more of them, because each batch costs a directory.
IMPORT_GATHER_MS: Final = 300
# Books that one cell makes and opens at once.
IMPORT_ONBOARDS_AT_ONCE_MAX: Final = 32

# The registry is read so many rows at a time.
REGISTRY_PAGE_ROWS: Final = 1_000
# What is read of a registry of before, and how long another process may keep it from being read.
REGISTRY_BUSY_TIMEOUT_MS: Final = 5_000
IMPORT_ROWS: Final = 500
IMPORT_COMMIT_BYTES: Final = 1_000_000

assert 4 * ROUTERS_MAX <= REDIS_CLIENTS_MAX, "all routers fit in, also while lost connections linger"
assert PROBE_INTERVAL_MS + PROBE_TIMEOUT_MS < UNRESPONSIVE_MS_MAX, "one lost probe kills nobody"
assert UNRESPONSIVE_MS_MAX < BUSY_SILENT_MS_MAX
assert SILENT_RAY_MS_MAX > wire_limits.GCS_AWAY_MS_MAX + PROBE_TIMEOUT_MS, "Ray's head ends by itself first"
assert DIRECTORY_TAKEN_TIMEOUT_MS < CELL_JOIN_MS_MAX
assert START_TIMEOUT_MS + CELL_JOIN_MS_MAX < CELL_WATCH_MS_MAX
assert START_TIMEOUT_MS + CELL_REMOVE_GRACE_MS < CELL_WATCH_MS_MAX
assert CELLS_MAX < CELLS_EVER_MAX
assert FIRST_CELL_USER + CELLS_EVER_MAX <= USERS_MAX
assert FIRST_UID_MIN + UID_BLOCKS * USERS_MAX <= UID_MAX
assert REBALANCE_MOVES_AT_ONCE_DEFAULT <= REBALANCE_MOVES_AT_ONCE_MAX
assert REBALANCE_MOVES_PER_HOUR_DEFAULT <= REBALANCE_MOVES_PER_HOUR_MAX
assert REBALANCE_PAUSE_MS_EXPECTED <= REBALANCE_PAUSE_BUDGET_MS_DEFAULT <= REBALANCE_PAUSE_BUDGET_MS_MAX
assert REBALANCE_ERRORS_INTERVAL_MS < REBALANCE_ERRORS_WINDOW_MS < LOAD_INTERVAL_MS
assert LOAD_SPAN_MS_MIN + METRICS_TIMEOUT_MS * 2 < CONTROL_TIMEOUT_MS, "a plan by load answers in time"
assert RESTART_DELAY_MS_MIN <= RESTART_DELAY_MS_MAX < HEALTHY_MS_TO_RESET_DELAY
assert NEEDS_TIMEOUT_MS <= START_TIMEOUT_MS
assert DOOR_CONNECT_TIMEOUT_MS + ONBOARD_TIMEOUT_MS < CONTROL_TIMEOUT_MS, "the command line outwaits an onboarding"
assert KEYS_PER_PARTNER_MAX < KEYS_KEPT_PER_PARTNER_MAX, "there is always one that ended to forget"
assert ACCESS_INTERVAL_MS < ACCESS_WINDOW_MS
assert FAILED_KEYS_FILE_BYTES_MAX > 200 * (router_limits.FAILED_KEYS_ROWS_MAX + 2), "a router's file is read whole"
assert ACCESS_ENTRIES_PER_COMMIT_MAX * 4_096 < contract.STORE_TRANSACTION_BYTES_MAX // 2
assert DELETION_GRACE_S_DEFAULT <= DELETION_GRACE_S_MAX
assert IMPORT_PARTNERS_MAX <= PARTNERS_MAX
assert IMPORT_BATCH_PARTNERS_MAX * 4_096 < contract.STORE_TRANSACTION_BYTES_MAX // 2
assert REGISTRY_PAGE_ROWS <= contract.STORE_RANGE_ROWS_MAX
assert IMPORT_COMMIT_BYTES + contract.STORE_VALUE_BYTES_MAX < contract.STORE_TRANSACTION_BYTES_MAX // 2
