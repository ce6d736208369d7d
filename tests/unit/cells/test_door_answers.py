"""What a door makes of a worker's answer that came after a lost one."""

import pytest

from cells import door_answers
from cells.api.messages import Answer, Refusal, RefusalCode, Refused, encode_answer


@pytest.mark.parametrize("code", list(RefusalCode))
def test_only_a_worker_that_wrote_nothing_leaves_the_lost_try_unknown(code: RefusalCode) -> None:
    body = encode_answer(Refused(Refusal(code, "why")))
    assert door_answers.says_unavailable(body) is (code is RefusalCode.PARTNER_UNAVAILABLE)


def test_an_outcome_is_passed_on() -> None:
    assert door_answers.says_unavailable(encode_answer(Answer(201, b"{}"))) is False
