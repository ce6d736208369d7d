"""SIGKILL of a worker under load, a client that repeats nothing: no error for anybody, a short delay for its own."""

import asyncio
import time
from collections.abc import Callable

import pytest

from chaos import limits
from chaos.checker import error_of, latency
from chaos.experiment import bring_to_rest, judge_at_rest, onboard, plan_for
from chaos.gateway import Gateway
from chaos.history import Call
from chaos.workload import Load
from tests.store_choices import chosen, on_either_store

CELLS = 2
PARTNERS = [f"shop_{number}" for number in range(6)]
VICTIM = "shop_2"
SECONDS = 18
# The first kill finds the load going; between two there is time for a new spare.
KILLS_AT_S = (5, 12)


@pytest.mark.long
@pytest.mark.timeout(180)
@on_either_store
async def test_a_killed_worker_costs_its_partner_no_error_and_less_than_a_second(
    make_gateway: Callable[..., Gateway], kind: str
) -> None:
    gateway = await asyncio.to_thread(make_gateway, CELLS, chosen(kind))
    keys = await onboard(gateway, PARTNERS)
    await asyncio.to_thread(gateway.wait_spares)
    plan = plan_for(gateway, keys, run="load", seed=1, requests_per_second=60, seconds=SECONDS)
    load = Load(plan)

    running = asyncio.create_task(load.run())
    killed_s = [await kill_at(gateway, plan.begin_s + at_s) for at_s in KILLS_AT_S]
    calls = await running

    errors = [f"{call.partner} {call.scenario} {call.step}: {error}" for call in calls if (error := error_of(call))]
    assert not errors
    for at_s in killed_s:
        around = [call for call in calls if call.partner == VICTIM and is_open_around(call, at_s)]
        delay = latency(around)
        print(f"SIGKILL: {delay.count} calls of its partner around it, the slowest took {delay.max_ms} ms")  # noqa: T201
        assert delay.count, "no call of the victim was there to be delayed"
        assert delay.max_ms is not None
        assert delay.max_ms < limits.KILLED_DELAY_MS_MAX
    (victim,) = [row for row in gateway.status()["partners"] if row["partner"] == VICTIM]
    assert victim["takeovers"] == len(KILLS_AT_S), "the worker was not killed, or not replaced"
    calls += await bring_to_rest(gateway, keys, calls)
    judgement, audit = await judge_at_rest(gateway, keys, calls)
    assert audit["ok"]
    assert (judgement.verdict, judgement.findings, judgement.unknowns) == ("right", [], [])


async def kill_at(gateway: Gateway, at_s: float) -> float:
    """SIGKILL the victim's worker then; give when it was."""
    worker = await asyncio.to_thread(gateway.worker_of, VICTIM)
    await asyncio.sleep(at_s - time.monotonic())
    killed_s = time.monotonic()
    worker.kill()
    return killed_s


def is_open_around(call: Call, at_s: float) -> bool:
    """Say whether the call was under way at that moment or due soon after."""
    assert call.answered_s is not None
    return call.answered_s > at_s and call.due_s < at_s + limits.KILL_LOOK_MS / 1_000
