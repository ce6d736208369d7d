"""Budgets: what a partner's requests may cost this router, whatever they are answered with, and its reads."""

import datetime as dt

import pytest

from cells.api.bulkheads import Bulkhead
from router import budgets, limits
from router.budgets import Budgets, OverBudgetError
from router.directory import Partner
from router.problems import EdgeCode, ProblemError


def partner(per_second: int = 50, burst: int = 100) -> Partner:
    return Partner(
        name="Acme",
        status="active",
        mode="test",
        api_version="2026-11-22",
        profile_version=1,
        rate_per_second=per_second,
        rate_burst=burst,
        in_flight_max=256,
        created_at=dt.datetime(2026, 11, 22, tzinfo=dt.UTC),
    )


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kept(clock: Clock) -> Budgets:
    return Budgets(now_s=clock)


def refused_after(kept: Budgets, record: Partner, announced_bytes: int, took_us: int) -> int:
    """Count how many requests of this kind are let in at once."""
    for count in range(1_000_000):
        try:
            account = kept.admit("acme", record, announced_bytes)
        except OverBudgetError:
            return count
        account.charge(took_us)
    raise AssertionError("it has no end")


def test_ordinary_traffic_at_the_full_limit_never_meets_it(kept: Budgets, clock: Clock) -> None:
    """A burst, then a minute of payments, each with a capture, a refund and four reads, on a slow machine."""
    record = partner()
    for _ in range(record.rate_burst):
        kept.admit("acme", record, 400).charge(300)
    for _ in range(60 * record.rate_per_second):
        clock.now_s += 1 / record.rate_per_second
        for _ in range(7):
            kept.admit("acme", record, 400).charge(150)


@pytest.mark.parametrize(("per_second", "burst"), [(1, 1), (5, 10), (50, 100), (10_000, 100_000)])
def test_the_worst_at_any_limit_takes_a_bounded_share(per_second: int, burst: int, kept: Budgets, clock: Clock) -> None:
    record, took_us = partner(per_second, burst), 1_000
    let_in = refused_after(kept, record, limits.BODY_BYTES_MAX, took_us)
    assert let_in * took_us <= limits.CPU_BUDGET_BURST_US_MAX
    for _ in range(1_000):
        clock.now_s += 0.01
        let_in += refused_after(kept, record, limits.BODY_BYTES_MAX, took_us)
    used_us = let_in * (took_us + budgets.arrival_us(limits.BODY_BYTES_MAX))
    assert used_us <= limits.CPU_BUDGET_BURST_US_MAX + 10 * limits.CPU_BUDGET_US_PER_SECOND_MAX + 2_000


def test_bytes_are_charged_before_they_are_read(kept: Budgets) -> None:
    small = refused_after(Budgets(), partner(), 0, 0)
    large = refused_after(kept, partner(), limits.BODY_BYTES_MAX, 0)
    assert large < small


def test_a_refusal_says_when_to_come_again_and_then_it_is_let_in(kept: Budgets, clock: Clock) -> None:
    refused_after(kept, partner(), 0, 5_000)
    with pytest.raises(OverBudgetError) as caught:
        kept.admit("acme", partner(), 0)
    assert caught.value.problem.code is EdgeCode.CPU_BUDGET_EXHAUSTED
    assert caught.value.problem.retry_after_ms == caught.value.wait_ms
    clock.now_s += caught.value.wait_ms / 1_000 + 0.01
    kept.admit("acme", partner(), 0)


def test_refusals_are_charged_too_but_lock_nobody_out(kept: Budgets, clock: Clock) -> None:
    refused_after(kept, partner(), 0, 1_000)
    for _ in range(100_000):
        with pytest.raises(OverBudgetError) as caught:
            kept.admit("acme", partner(), 0)
    assert caught.value.wait_ms >= 1_000
    clock.now_s += limits.BUDGET_WAIT_MS_MAX / 1_000 + 0.01
    kept.admit("acme", partner(), 0)


def test_each_partner_has_its_own(kept: Budgets) -> None:
    refused_after(kept, partner(), 0, 1_000)
    kept.admit("globex", partner(), 0)


def test_new_limits_hold_at_once_and_what_was_used_stays_used(kept: Budgets) -> None:
    small, large = partner(), partner(10_000, 100_000)
    refused_after(kept, small, 0, 1_000)
    assert refused_after(kept, large, 0, 1_000) > 500


def test_no_more_are_remembered_than_the_bound(kept: Budgets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BUDGETS_MAX", 10)
    for number in range(50):
        kept.admit(f"partner_{number}", partner(), 0)
    assert len(kept) == 10


def test_reads_have_a_rate_and_a_burst(kept: Budgets, clock: Clock) -> None:
    record = partner()
    account = kept.admit("acme", record, 0)
    for count in range(400):
        state = kept.admit_read(account)
        assert state is not None
        assert state.remaining == 399 - count
    with pytest.raises(ProblemError) as caught:
        kept.admit_read(account)
    assert caught.value.problem.code is EdgeCode.TOO_MANY_READS
    assert caught.value.problem.headers == {"ratelimit-policy": '"reads";q=400;w=2', "ratelimit": '"reads";r=0;t=2'}
    assert caught.value.problem.retry_after_ms == 5
    clock.now_s += 1.0
    for _ in range(200):
        kept.admit_read(account)
    with pytest.raises(ProblemError):
        kept.admit_read(account)


def test_a_partner_of_few_payments_may_read_all_the_same(kept: Budgets) -> None:
    account = kept.admit("acme", partner(1, 1), 0)
    for _ in range(limits.READS_BURST_MIN):
        kept.admit_read(account)
    with pytest.raises(ProblemError):
        kept.admit_read(account)


def test_it_can_be_switched_off_to_see_what_it_is_for(clock: Clock) -> None:
    kept = Budgets(frozenset({Bulkhead.ROUTER_BUDGET}), clock)
    for _ in range(1_000):
        account = kept.admit("acme", partner(1, 1), limits.BODY_BYTES_MAX)
        account.charge(10_000)
        assert kept.admit_read(account) is None
