"""What a door makes of a worker's answer that came after a lost one."""

import pytest

from cells import door_answers
from cells.api.messages import Answer, Refusal, RefusalCode, Refused, encode_answer

# A command that a worker refused so was not looked at: whether an earlier try wrote it, nobody knows.
UNSEEN = {
    RefusalCode.PARTNER_UNAVAILABLE,
    RefusalCode.MAILBOX_FULL,
    RefusalCode.CELL_OVERLOADED,
    RefusalCode.WORKER_OVERLOADED,
}


@pytest.mark.parametrize("code", list(RefusalCode))
def test_only_a_worker_that_wrote_nothing_leaves_the_lost_try_unknown(code: RefusalCode) -> None:
    body = encode_answer(Refused(Refusal(code, "why")))
    assert door_answers.says_nothing_done(body) is (code in UNSEEN)


def test_an_outcome_is_passed_on() -> None:
    assert door_answers.says_nothing_done(encode_answer(Answer(201, b"{}"))) is False
