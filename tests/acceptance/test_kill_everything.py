"""SIGKILL of everything at a random moment, `up` again, and the client repeats what was not answered: all is right.

Rounds go on over the same data. BULKHEAD_TEST_ROUNDS says how many, BULKHEAD_TEST_SEED repeats a run.
"""

import asyncio
import os
import random
from collections.abc import Callable

import pytest

from chaos import limits
from chaos.experiment import bring_to_rest, judge_at_rest, onboard, plan_for
from chaos.gateway import Gateway
from chaos.history import Call
from chaos.workload import Load, means_again
from tests.store_choices import chosen, on_either_store

ROUNDS = int(os.environ.get("BULKHEAD_TEST_ROUNDS", "1"))
CELLS = 2
PARTNERS = [f"shop_{number}" for number in range(4)]
REQUESTS_PER_SECOND = 60
AMOUNTS_PER_ROUND = 1_000_000


@pytest.mark.timeout(120 + 90 * ROUNDS)
@on_either_store
async def test_nothing_acknowledged_is_lost_and_nothing_is_charged_twice(
    make_gateway: Callable[..., Gateway], kind: str
) -> None:
    seed = int(os.environ.get("BULKHEAD_TEST_SEED") or random.SystemRandom().randrange(2**32))
    print(f"BULKHEAD_TEST_SEED={seed}")  # noqa: T201 - pytest shows it where the test fails
    dice = random.Random(seed)
    gateway = await asyncio.to_thread(make_gateway, CELLS, chosen(kind))
    keys = await onboard(gateway, PARTNERS)
    calls: list[Call] = []
    writes_cut_off = 0
    for number in range(ROUNDS):
        seen = await run_and_kill(gateway, keys, seed, number, kill_after_s=dice.uniform(1, 5))
        await asyncio.to_thread(gateway.start)
        await asyncio.to_thread(gateway.wait_ready)
        repeats = await bring_to_rest(gateway, keys, seen)
        assert not [call for call in last_of_each(repeats) if means_again(call)], "a repeat found no final answer"
        calls += seen + repeats
        writes_cut_off += cut_off(seen)
        judgement, audit = await judge_at_rest(gateway, keys, calls)
        assert audit["ok"], audit
        assert (judgement.verdict, judgement.findings, judgement.unknowns) == ("right", [], []), f"round {number}"
    assert writes_cut_off, "no kill met a write under way: it showed nothing"


async def run_and_kill(
    gateway: Gateway, keys: dict[str, str], seed: int, number: int, *, kill_after_s: float
) -> list[Call]:
    """Run a load and SIGKILL everything in its midst; give what the client saw."""
    plan = plan_for(
        gateway,
        keys,
        run=f"round-{number}",
        seed=seed,
        requests_per_second=REQUESTS_PER_SECOND,
        seconds=60,
        first_amount=1_000 + number * AMOUNTS_PER_ROUND,
    )
    load = Load(plan)
    running = asyncio.create_task(load.run())
    await asyncio.sleep(kill_after_s)
    killed = await asyncio.to_thread(gateway.kill_everything)
    load.stop()
    seen = await running
    said = f"{killed} processes killed after {kill_after_s:.3f} s, {len(seen)} calls, {cut_off(seen)} cut off"
    print(f"round {number}: {said}")  # noqa: T201
    return seen


def cut_off(calls: list[Call]) -> int:
    """Count the writes that were sent over a connection and not answered; what came after could not even connect."""
    return sum(
        call.key is not None and call.error is not None and not call.error.startswith("ClientConnectorError")
        for call in calls
    )


def last_of_each(repeats: list[Call]) -> list[Call]:
    """Give the last repeat of each request."""
    assert all(call.repeat <= limits.REPEATS_MAX for call in repeats)
    return list({(call.partner, call.key, call.body): call for call in repeats}.values())
