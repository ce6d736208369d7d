"""`bulkhead partner isolate` and `pool` under load on a whole gateway, by a client that repeats nothing: no error."""

import asyncio
import time
from collections.abc import Callable

import pytest

from chaos.checker import error_of, latency
from chaos.experiment import bring_to_rest, judge_at_rest, onboard, plan_for
from chaos.gateway import Gateway
from chaos.workload import Load

PARTNERS = [f"shop_{number}" for number in range(4)]
MOVED = "shop_2"
SECONDS = 18
WORDS_AT_S = ((4, "isolate"), (8, "pool"), (12, "isolate"))
DELAY_MS_MAX = 1_000


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_a_partner_is_isolated_and_pooled_under_load_without_an_error(
    make_gateway: Callable[..., Gateway],
) -> None:
    gateway = await asyncio.to_thread(make_gateway, 1)
    keys = await onboard(gateway, PARTNERS)
    for partner in PARTNERS:
        done = await asyncio.to_thread(gateway.run, "partner", "pool", partner)
        assert done.returncode == 0, done.stderr
    await is_with(gateway, set(PARTNERS))
    await asyncio.to_thread(gateway.wait_spares)
    plan = plan_for(gateway, keys, run="load", seed=1, requests_per_second=40, seconds=SECONDS)

    running = asyncio.create_task(Load(plan).run())
    for at_s, word in WORDS_AT_S:
        await asyncio.sleep(plan.begin_s + at_s - time.monotonic())
        done = await asyncio.to_thread(gateway.run, "partner", word, MOVED)
        assert done.returncode == 0, done.stderr
        await is_with(gateway, {MOVED} if word == "isolate" else set(PARTNERS))
    calls = await running

    assert not [f"{call.partner} {call.scenario} {call.step}: {error}" for call in calls if (error := error_of(call))]
    delay = latency([call for call in calls if call.partner == MOVED])
    print(f"three handovers: the slowest of {delay.count} calls of the partner took {delay.max_ms} ms")  # noqa: T201
    assert delay.max_ms is not None
    assert delay.max_ms < DELAY_MS_MAX
    calls += await bring_to_rest(gateway, keys, calls)
    judgement, audit = await judge_at_rest(gateway, keys, calls)
    assert audit["ok"]
    assert (judgement.verdict, judgement.findings, judgement.unknowns) == ("right", [], [])


async def is_with(gateway: Gateway, partners: set[str]) -> None:
    """Wait until the moved partner's worker has these, and no others."""
    until = time.monotonic() + 20
    while True:
        status = await asyncio.to_thread(gateway.status)
        workers = {row["partner"]: row.get("worker") for row in status["partners"]}
        if workers[MOVED] and {name for name, worker in workers.items() if worker == workers[MOVED]} == partners:
            return
        assert time.monotonic() < until, workers
        await asyncio.sleep(0.1)
