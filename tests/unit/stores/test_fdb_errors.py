"""What each of FoundationDB's error codes means for a transaction."""

import pytest

from stores import fdb_errors
from stores.fdb_errors import Verdict


@pytest.mark.parametrize(
    ("code", "reading", "committing"),
    [
        (1_020, Verdict.AGAIN, Verdict.AGAIN),  # not_committed
        (1_007, Verdict.AGAIN, Verdict.AGAIN),  # transaction_too_old
        (1_009, Verdict.BUSY, Verdict.BUSY),  # future_version
        (1_037, Verdict.BUSY, Verdict.BUSY),  # process_behind
        (1_213, Verdict.BUSY, Verdict.BUSY),  # tag_throttled
        (1_038, Verdict.REFUSED, Verdict.REFUSED),  # database_locked
        (2_101, Verdict.LIMIT, Verdict.LIMIT),  # transaction_too_large
        (1_021, Verdict.REFUSED, Verdict.SETTLED),  # commit_unknown_result
        (1_031, Verdict.REFUSED, Verdict.LATE),  # transaction_timed_out
        (1_039, Verdict.REFUSED, Verdict.LATE),  # cluster_version_changed
        (4_100, Verdict.REFUSED, Verdict.LATE),  # internal_error, and whatever is new: it may have been written
        (999_999, Verdict.REFUSED, Verdict.LATE),
    ],
)
def test_a_code_means_the_same_whatever_its_text_but_not_before_and_after_the_commit_was_sent(
    code: int, reading: Verdict, committing: Verdict
) -> None:
    assert fdb_errors.of_read(code) is reading
    assert fdb_errors.of_commit(code) is committing


def test_before_the_commit_was_sent_nothing_can_have_been_written() -> None:
    for code in range(10_000):
        assert fdb_errors.of_read(code) not in {Verdict.SETTLED, Verdict.LATE}
