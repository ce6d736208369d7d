"""`bulkhead partner move` under load on a whole gateway, by a client that repeats nothing: no error, a short pause."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from chaos.checker import error_of, latency
from chaos.experiment import bring_to_rest, judge_at_rest, onboard, plan_for
from chaos.gateway import Gateway
from chaos.workload import Load

PARTNERS = [f"shop_{number}" for number in range(6)]
SECONDS = 14


def cells_of(gateway: Gateway) -> dict[str, str]:
    return {row["partner"]: row["cell"] for row in gateway.status()["partners"]}


def move(gateway: Gateway, partner: str, to: str) -> dict[str, Any]:
    done = gateway.run("partner", "move", partner, "--to", to, "--json")
    assert done.returncode == 0, done.stderr
    moved: dict[str, Any] = json.loads(done.stdout)
    return moved


@pytest.mark.long
@pytest.mark.timeout(400)
async def test_partners_move_under_load_without_an_error(
    make_gateway: Callable[..., Gateway],
) -> None:
    gateway = await asyncio.to_thread(make_gateway, 2)
    keys = await onboard(gateway, PARTNERS)
    for partner in PARTNERS[2:]:
        done = await asyncio.to_thread(gateway.run, "partner", "pool", partner)
        assert done.returncode == 0, done.stderr
    await asyncio.to_thread(gateway.wait_spares)
    homes = await asyncio.to_thread(cells_of, gateway)
    away = {name: "cell-1" if home == "cell-0" else "cell-0" for name, home in homes.items()}
    plan = plan_for(gateway, keys, run="load", seed=1, requests_per_second=40, seconds=SECONDS)

    running = asyncio.create_task(Load(plan).run())
    await asyncio.sleep(plan.begin_s + 3 - time.monotonic())
    pauses = []
    for partner in PARTNERS[1:4]:
        for to in (away[partner], homes[partner], away[partner]):
            moved = await asyncio.to_thread(move, gateway, partner, to)
            pauses.append(moved["pause_ms"])
    calls = await running

    assert not [f"{call.partner} {call.scenario} {call.step}: {error}" for call in calls if (error := error_of(call))]
    delay = latency([call for call in calls if call.partner in PARTNERS[1:4]])
    print(f"{len(pauses)} moves: pauses {sorted(pauses)} ms; the slowest call took {delay.max_ms} ms")  # noqa: T201
    held = await asyncio.to_thread(cells_of, gateway)
    assert held == {name: away[name] if name in PARTNERS[1:4] else homes[name] for name in PARTNERS}
    calls += await bring_to_rest(gateway, keys, calls)
    judgement, audit = await judge_at_rest(gateway, keys, calls)
    assert audit["ok"]
    assert (judgement.verdict, judgement.findings, judgement.unknowns) == ("right", [], [])
