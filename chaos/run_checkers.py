"""Holds a run's history against all checkers but that of money: order, limits, bulkheads, breakers. Pure; asks nobody.

Each of them finds in its own words; here their findings come into one judgement, each with its requests.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from chaos import bounds, breaker_checker, limits_checker, linearizability, partners
from chaos.checker import Fault, Judgement
from chaos.history import Call
from chaos.limits_checker import Limits
from chaos.offenders import under_way


def judge_order(judgement: Judgement, calls: Sequence[Call]) -> None:
    """Add what no order of events explains."""
    # A list also shows payments of earlier runs, whose writes this history does not have.
    ours = {call.content().get("id") for call in calls if call.step == "create_payment" and call.acknowledged}
    order = linearizability.judge(calls)
    for impossible in order.findings:
        if impossible.payment_id in ours:
            judgement.accuse(Fault.NOT_LINEARIZABLE, impossible.partner, str(impossible), impossible.offenders)
    judgement.unknowns += order.unknowns


def judge_limits(
    judgement: Judgement, calls: Sequence[Call], names: Iterable[str], flood_calls: Sequence[Call], flood: Limits | None
) -> None:
    """Add which limits were exceeded.

    A flood has its partner's limits changed to `flood` and changed back, and is judged by those that it had; all calls
    together by what nobody may exceed, and again after a flood, which then finds its bucket full.
    """
    usual = partners.USUAL_LIMITS
    allowed = dataclasses.replace(usual, refills=2 if flood_calls else 0)
    if flood is not None:
        allowed = Limits(
            max(usual.rate_per_second, flood.rate_per_second),
            max(usual.rate_burst, flood.rate_burst),
            max(usual.in_flight_max, flood.in_flight_max),
            allowed.refills,
        )
    names = list(names)
    exceeded = limits_checker.judge(calls, dict.fromkeys(names, allowed)).findings
    if flood is not None:
        # One refill: what its bucket held when the limits were changed.
        during = dict.fromkeys(names, dataclasses.replace(flood, refills=1))
        exceeded += limits_checker.judge(flood_calls, during).findings
    for one in exceeded:
        judgement.accuse(Fault.LIMIT_EXCEEDED, one.partner, one.detail, one.offenders)


def judge_bounds(
    judgement: Judgement,
    calls: Sequence[Call],
    readings: Iterable[bounds.Reading],
    cells: Mapping[str, str],
    patience: float,
) -> None:
    """Add what of the gateway's own bounds was not kept, whether anybody was harmed by it or not.

    The requests are those that were under way as it was exceeded. `cells`: where each partner lives.
    """
    for one in bounds.judge(readings, patience):
        theirs = one.partners or [partner for partner, cell in cells.items() if cell == one.who]
        offenders = under_way(calls, theirs, one.from_s, one.until_s)
        judgement.accuse(Fault.BOUND_EXCEEDED, one.who, one.detail, offenders)


def judge_breaker(
    judgement: Judgement, calls: Sequence[Call], partner: str, begin_ms: float, end_ms: float, fails_after_ms: int
) -> None:
    """Add whether new payments went on to the partner's acquirer while it failed (Unix time)."""
    own = [call for call in calls if call.partner == partner]
    found = breaker_checker.judge(own, begin_ms, end_ms, fails_after_ms)
    if found is not None:
        judgement.accuse(Fault.BREAKER_CLOSED, partner, found.detail, found.offenders)
