"""A cell is killed under load and its partners are evacuated: others notice nothing, nothing is lost or doubled."""

import asyncio
import time
from collections.abc import Callable

import pytest

from chaos import victims
from chaos.checker import error_of
from chaos.experiment import bring_to_rest, judge_at_rest, onboard, plan_for
from chaos.faults import Target
from chaos.gateway import Gateway
from chaos.workload import Load
from tests.store_choices import chosen, needs_cluster

PARTNERS = [f"shop_{number}" for number in range(9)]
SECONDS = 30


@needs_cluster
@pytest.mark.timeout(400)
async def test_a_killed_cells_partners_are_served_by_others_in_seconds(make_gateway: Callable[..., Gateway]) -> None:
    gateway = await asyncio.to_thread(make_gateway, 3, chosen("fdb"))
    keys = await onboard(gateway, PARTNERS, isolation="pooled")
    await asyncio.to_thread(gateway.wait_spares)
    status = await asyncio.to_thread(gateway.status)
    homes = {row["partner"]: row["cell"] for row in status["partners"]}
    dead = homes[PARTNERS[0]]
    struck = {name for name, home in homes.items() if home == dead}
    load = Load(plan_for(gateway, keys, run="load", seed=1, requests_per_second=40, seconds=SECONDS))
    running = asyncio.create_task(load.run())
    await asyncio.sleep(8)

    killed_s = time.monotonic()
    for process in victims.find(status, Target.CELL, cell=dead):
        process.kill()
    done = await asyncio.to_thread(gateway.run, "cell", "evacuate", dead, "--force")
    assert done.returncode == 0, done.stderr
    served: set[str] = set()
    while not struck <= served:
        assert time.monotonic() < killed_s + 60, (struck, served)
        await asyncio.sleep(0.1)
        status = await asyncio.to_thread(gateway.status)
        served = {row["partner"] for row in status["partners"] if row["cell"] != dead and row.get("worker")}
    took_s = time.monotonic() - killed_s
    calls = await running

    errors = [call for call in calls if error_of(call)]
    last_s = max((call.due_s for call in errors), default=killed_s)
    told = f"{len(errors)} errors, the last one {last_s - killed_s:.1f} s after it"
    print(f"{len(struck)} partners, served again after {took_s:.1f} s; {told}")  # noqa: T201
    assert not [f"{call.partner}: {error_of(call)}" for call in errors if call.partner not in struck]
    calls += await bring_to_rest(gateway, keys, calls)
    judgement, audit = await judge_at_rest(gateway, keys, calls)
    assert audit["ok"]
    assert (judgement.verdict, judgement.findings, judgement.unknowns) == ("right", [], [])
