"""FoundationDB's error codes, as what they mean for a transaction. Pure: by code, never by text; needs no client.

Codes: https://apple.github.io/foundationdb/api-error-codes.html and, for those it leaves out, flow/error_definitions.h.
"""

import enum
from typing import Final


class Verdict(enum.Enum):
    """What became of the transaction that met an error, and what to do."""

    AGAIN = "nothing was written; the same may pass when it is tried again"
    BUSY = "nothing was written; the cluster is behind or throttles and wants a pause"
    REFUSED = "nothing was written; the cluster takes no transactions of ours now"
    LIMIT = "nothing was written; it is larger than the cluster takes"
    SETTLED = "it was written, or will never be: the batch's receipt tells"
    LATE = "it may be written, now or later: only a new epoch makes sure"


_COMMITTING: Final = {
    1020: Verdict.AGAIN,  # not_committed: a conflict
    1007: Verdict.AGAIN,  # transaction_too_old: longer than 5 s
    1009: Verdict.BUSY,  # future_version: a storage server lags
    1037: Verdict.BUSY,  # process_behind
    1042: Verdict.BUSY,  # commit_proxy_memory_limit_exceeded
    1051: Verdict.BUSY,  # batch_transaction_throttled
    1078: Verdict.BUSY,  # grv_proxy_memory_limit_exceeded
    1213: Verdict.BUSY,  # tag_throttled
    1223: Verdict.BUSY,  # proxy_tag_throttled
    1235: Verdict.BUSY,  # transaction_throttled_hot_shard
    1038: Verdict.REFUSED,  # database_locked
    1242: Verdict.REFUSED,  # transaction_rejected_range_locked
    2101: Verdict.LIMIT,  # transaction_too_large
    2102: Verdict.LIMIT,  # key_too_large
    2103: Verdict.LIMIT,  # value_too_large
    1021: Verdict.SETTLED,  # commit_unknown_result: the client has made sure that it is no longer under way
    1031: Verdict.LATE,  # transaction_timed_out
    1039: Verdict.LATE,  # cluster_version_changed
    1025: Verdict.LATE,  # transaction_cancelled
    1101: Verdict.LATE,  # operation_cancelled
}

TIMED_OUT: Final = 1_031
LOCKED: Final = 1_038


def of_commit(code: int) -> Verdict:
    """Judge an error of a commit that was sent. What is not known here may have been written."""
    return _COMMITTING.get(code, Verdict.LATE)


def of_read(code: int) -> Verdict:
    """Judge an error of a read, or of anything before the commit was sent: whatever it is, nothing was written."""
    verdict = _COMMITTING.get(code, Verdict.REFUSED)
    return Verdict.REFUSED if verdict in {Verdict.SETTLED, Verdict.LATE} else verdict
