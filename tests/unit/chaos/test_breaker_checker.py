"""A breaker may let probes through while its acquirer fails, and nothing else; what proves nothing is no finding."""

from datetime import UTC, datetime

import orjson

from actors import limits as actor_limits
from chaos.breaker_checker import TooMany, judge, let_in
from chaos.history import Call

BEGIN_S, END_S = 100.0, 112.0
TO_OPEN = actor_limits.BREAKER_FAILURES_TO_OPEN


def paid(at_s: float, status: int = 202, number: str | None = None) -> Call:
    name = number or f"pay_{at_s}"
    created = datetime.fromtimestamp(at_s, UTC).isoformat()
    answer = {"object": "payment", "id": name, "status": "processing", "operations": [{"created_at": created}]}
    return Call(
        run="t",
        partner="ann",
        scenario="automatic",
        step="create_payment",
        method="POST",
        path="/v1/payments",
        key=name,
        body=b"{}",
        expected=(),
        usual=True,
        due_s=at_s,
        sent_s=at_s,
        answered_s=at_s + 1,
        status=status,
        answer=orjson.dumps(answer if status < 300 else {"code": "acquirer_unavailable"}),
    )


def judged(calls: list[Call], fails_after_ms: int = 2_500) -> TooMany | None:
    return judge(calls, BEGIN_S * 1_000, END_S * 1_000, fails_after_ms)


def every(step_s: float, begin_s: float = BEGIN_S, end_s: float = END_S) -> list[Call]:
    return [paid(begin_s + number * step_s) for number in range(int((end_s - begin_s) / step_s) + 1)]


FIRST = every(0.1, end_s=BEGIN_S + 0.1 * (TO_OPEN - 1) + 0.05)


def test_payments_that_go_on_all_the_time_are_found() -> None:
    told = judged(every(0.25))
    assert told is not None
    assert "new payments were let in within" in told.detail
    count, allowed = (int(word) for word in (told.detail.split()[0], told.detail.split()[-4]))
    assert len(told.offenders) == count - allowed, "who was let in as a probe did nothing wrong"
    assert told.offenders[-1].what == "POST /v1/payments under key pay_112.0 (automatic create_payment)"
    assert told.offenders[-1].at_s == 112
    assert judged(every(0.25), fails_after_ms=0) is not None


def test_what_is_let_in_before_the_breaker_can_know_is_none_of_its_matter() -> None:
    assert len(FIRST) == TO_OPEN
    assert judged([*FIRST, *every(0.05, BEGIN_S + 0.8, BEGIN_S + 4.0)]) is None, "none of them had failed for long"


def test_probes_are_allowed_and_refusals_are_what_is_promised() -> None:
    refused = [paid(BEGIN_S + 5 + number / 10, 503) for number in range(50)]
    probes = [paid(BEGIN_S + 5.0 + number * 0.001 + 3.5 * after) for after in range(2) for number in range(2)]
    assert judged([*FIRST, *refused, *probes]) is None


def test_without_enough_failures_nothing_is_proven() -> None:
    assert judged(every(0.1)[: TO_OPEN - 1]) is None
    assert judged([]) is None
    before, after = every(0.1, BEGIN_S - 20, BEGIN_S - 0.1), every(0.1, END_S + 0.1, END_S + 20)
    assert judged([*before, *after]) is None, "the acquirer was well"


def test_a_payment_counts_once_whoever_asked_for_it_how_often() -> None:
    admitted = let_in([paid(7, number="pay_1"), paid(7, 201, number="pay_1"), paid(5)])
    assert [at_ms for at_ms, _ in admitted] == [5_000, 7_000]
    other = paid(6)
    other.step = "refund_payment"
    assert let_in([other]) == []
