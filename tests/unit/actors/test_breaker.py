from actors import limits
from actors.breaker import Breaker
from actors.bulkheads import Bulkhead


def broken(at_ms: int = 0) -> Breaker:
    breaker = Breaker()
    for _ in range(limits.BREAKER_FAILURES_TO_OPEN):
        breaker.begin(at_ms)
        breaker.fail(at_ms)
    return breaker


def test_it_opens_after_enough_failures_in_a_row() -> None:
    breaker = Breaker()
    for _ in range(limits.BREAKER_FAILURES_TO_OPEN - 1):
        breaker.fail(0)
        assert breaker.allows(0)
    breaker.fail(0)
    assert breaker.state(0) == "open"
    assert not breaker.allows(limits.BREAKER_OPEN_MS - 1)


def test_an_answer_in_between_starts_the_count_again() -> None:
    breaker = Breaker()
    for _ in range(limits.BREAKER_FAILURES_TO_OPEN * 2):
        breaker.fail(0)
        breaker.succeed()
    assert breaker.state(0) == "closed"


def test_after_a_while_a_few_probes_may_go() -> None:
    breaker = broken()
    now_ms = limits.BREAKER_OPEN_MS
    assert breaker.state(now_ms) == "half_open"
    for _ in range(limits.BREAKER_PROBES):
        assert breaker.allows(now_ms)
        breaker.begin(now_ms)
    assert not breaker.allows(now_ms)


def test_one_success_closes_it() -> None:
    breaker = broken()
    breaker.begin(limits.BREAKER_OPEN_MS)
    breaker.succeed()
    assert breaker.state(limits.BREAKER_OPEN_MS) == "closed"
    assert breaker.allows(limits.BREAKER_OPEN_MS)


def test_one_failure_opens_it_again_for_as_long() -> None:
    breaker = broken()
    breaker.begin(limits.BREAKER_OPEN_MS)
    breaker.fail(limits.BREAKER_OPEN_MS + 5)
    assert breaker.state(2 * limits.BREAKER_OPEN_MS) == "open"
    assert breaker.state(2 * limits.BREAKER_OPEN_MS + 5) == "half_open"
    assert breaker.allows(2 * limits.BREAKER_OPEN_MS + 5)


def test_failures_of_calls_begun_before_do_not_keep_it_open_longer() -> None:
    breaker = broken()
    breaker.fail(limits.BREAKER_OPEN_MS - 1)
    assert breaker.state(limits.BREAKER_OPEN_MS) == "half_open"


def test_probes_that_end_without_a_word_give_their_place_back() -> None:
    breaker = broken()
    now_ms = limits.BREAKER_OPEN_MS
    for _ in range(10):
        assert breaker.allows(now_ms)
        breaker.begin(now_ms)
        breaker.give_up()
    assert breaker.allows(now_ms)


def test_one_that_is_switched_off_never_opens() -> None:
    breaker = Breaker({Bulkhead.BREAKER})
    for _ in range(limits.BREAKER_FAILURES_TO_OPEN * 2):
        breaker.fail(0)
    assert breaker.allows(0)
