"""What each partner may cost this router: CPU time, whatever its requests are answered with, and reads.

The CPU budget is a leaky bucket: what is used leaks away at the partner's rate, and a request is refused while its
burst is used up. It derives from the partner's own limit and is several times what ordinary requests at that limit
cost, so that only requests that cost much more than others meet it, or many more of them. What can't be measured at the
request itself (reading its bytes, its task, writing its answer) is charged by constants.
"""

import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet

from cells.api.bulkheads import ALL_ON, Bulkhead
from cells.api.messages import RateState
from router import limits, problems
from router.directory import Partner
from router.problems import EdgeCode, ProblemError


class OverBudgetError(ProblemError):
    """A 429 for CPU time: what comes next on this connection is better left unread for `wait_ms`."""

    def __init__(self, wait_ms: int) -> None:
        super().__init__(
            problems.Problem(
                EdgeCode.CPU_BUDGET_EXHAUSTED,
                "The partner's requests took more CPU time of this gateway than its limits allow: "
                "send fewer, or smaller ones.",
                retry_after_ms=wait_ms,
            )
        )
        self.wait_ms = wait_ms


class Account:
    """One partner's budgets: what it used and did not get back yet. `partner`: the record that has its limits."""

    __slots__ = ("_cpu_at_s", "_cpu_burst_us", "_cpu_us_per_second", "_cpu_used_us", "_reads_full_at_s", "partner")

    def __init__(self, partner: Partner) -> None:
        self._cpu_used_us = 0.0
        self._cpu_at_s = 0.0  # when that was so
        self._reads_full_at_s = 0.0
        self.follow(partner)

    def follow(self, partner: Partner) -> None:
        """Go by other limits; what was used stays used."""
        self.partner = partner
        self._cpu_us_per_second = cpu_us_per_second(partner)
        self._cpu_burst_us = cpu_burst_us(partner)

    def admit(self, now_s: float, cost_us: float) -> None:
        """Charge what one more request costs by arriving. Raises OverBudgetError where the budget is used up."""
        used_us = self._cpu_used_us - (now_s - self._cpu_at_s) * self._cpu_us_per_second
        over_us = used_us - self._cpu_burst_us
        self._cpu_at_s = now_s
        if over_us >= 0.0:
            # A refusal is not free either; but nobody is refused for long after the last request.
            longest_us = self._cpu_burst_us + limits.BUDGET_WAIT_MS_MAX * self._cpu_us_per_second / 1_000
            self._cpu_used_us = min(used_us + limits.REFUSAL_CPU_US, longest_us)
            raise OverBudgetError(1 + int(over_us * 1_000 / self._cpu_us_per_second))
        self._cpu_used_us = max(used_us, 0.0) + cost_us

    def charge(self, cost_us: float) -> None:
        """Charge what its handling took beyond that."""
        self._cpu_used_us += cost_us

    def admit_read(self, now_s: float) -> RateState:
        """Count one more read, and return what is left. Raises ProblemError (429)."""
        per_second, burst = reads_per_second(self.partner), reads_burst(self.partner)
        full_at_s = max(self._reads_full_at_s, now_s) + 1.0 / per_second
        over_s = full_at_s - now_s - burst / per_second
        if over_s > 1e-9:
            reset_ms = round((self._reads_full_at_s - now_s) * 1_000)
            raise problems.fail(
                EdgeCode.TOO_MANY_READS,
                f"A partner reads {per_second} times a second here, and {burst} at once.",
                retry_after_ms=max(1, round(over_s * 1_000)),
                headers=problems.rate_headers(RateState(per_second, burst, 0, reset_ms), "reads"),
            )
        self._reads_full_at_s = full_at_s
        return RateState(per_second, burst, round(-over_s * per_second), round((full_at_s - now_s) * 1_000))


class Budgets:
    """The accounts of those partners that asked for something. Of those that are forgotten, none is owed anything."""

    def __init__(
        self, bulkheads_off: AbstractSet[Bulkhead] = ALL_ON, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._is_off = Bulkhead.ROUTER_BUDGET in bulkheads_off
        self._now_s = now_s
        self._accounts: dict[str, Account] = {}

    def __len__(self) -> int:
        return len(self._accounts)

    def admit(self, partner_id: str, partner: Partner, announced_bytes: int) -> Account:
        """Charge the arrival of a request to its partner, before its body is read. Raises OverBudgetError."""
        account = self._accounts.get(partner_id)
        if account is None:
            account = self._accounts[partner_id] = Account(partner)
            if len(self._accounts) > limits.BUDGETS_MAX:
                del self._accounts[next(iter(self._accounts))]  # the one that came first
        elif account.partner is not partner:
            account.follow(partner)
        if not self._is_off:
            account.admit(self._now_s(), arrival_us(announced_bytes))
        return account

    def admit_read(self, account: Account) -> RateState | None:
        """Count a read, and return what is left of them. Raises ProblemError (429)."""
        return None if self._is_off else account.admit_read(self._now_s())


def arrival_us(announced_bytes: int) -> float:
    """Return what a request costs before anything is made of it: its head, its task, the bytes of its body."""
    return limits.ARRIVAL_CPU_US + announced_bytes * limits.BYTES_CPU_US_PER_KIB / 1_024


def cpu_us_per_second(partner: Partner) -> int:
    """Return how much CPU time a second a partner's requests may take, by its limit of payments a second."""
    wanted = partner.rate_per_second * limits.PAYMENT_CPU_BUDGET_US
    return min(max(wanted, limits.CPU_BUDGET_US_PER_SECOND_MIN), limits.CPU_BUDGET_US_PER_SECOND_MAX)


def cpu_burst_us(partner: Partner) -> int:
    """Return how much CPU time they may take at once, by its burst."""
    wanted = partner.rate_burst * limits.PAYMENT_CPU_BUDGET_US
    return min(max(wanted, limits.CPU_BUDGET_BURST_US_MIN), limits.CPU_BUDGET_BURST_US_MAX)


def reads_per_second(partner: Partner) -> int:
    """Return how many reads a second a partner may make."""
    return max(partner.rate_per_second * limits.READS_PER_PAYMENT, limits.READS_PER_SECOND_MIN)


def reads_burst(partner: Partner) -> int:
    """Return how many it may make at once."""
    return max(partner.rate_burst * limits.READS_PER_PAYMENT, limits.READS_BURST_MIN)
