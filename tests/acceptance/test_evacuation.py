"""A cell is killed under load and its partners are evacuated: others notice nothing, nothing is lost or doubled."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import pytest

from chaos import victims
from chaos.checker import error_of
from chaos.experiment import bring_to_rest, judge_at_rest, onboard, plan_for
from chaos.faults import Target
from chaos.gateway import Gateway
from chaos.history import Call
from chaos.workload import Load
from control_plane import client
from tests.store_choices import chosen, needs_cluster

PARTNERS = [f"shop_{number}" for number in range(9)]
SECONDS = 30


@dataclass
class Loaded:
    """A gateway of three cells under load, and where its partners were."""

    gateway: Gateway
    keys: dict[str, str]
    homes: dict[str, str]
    running: "asyncio.Task[list[Call]]"

    async def processes_of(self, cell: str) -> list[psutil.Process]:
        """Find a cell's door, Ray and workers."""
        return victims.find(await asyncio.to_thread(self.gateway.status), Target.CELL, cell=cell)

    async def evacuate(self, cell: str) -> dict[str, str]:
        """Begin to evacuate a cell; give who is on the way to where."""
        body = {"force": True, "dry_run": False}
        found = await asyncio.to_thread(client.ask, self.gateway.folder, "POST", f"/cells/{cell}/evacuate", body)
        targets: dict[str, str] = found["targets"]
        assert not found["staying"]
        return targets

    async def wait_served(self, struck: set[str], *, outside: set[str], timeout_s: float = 60) -> None:
        """Wait until all of these have a worker in another cell than those."""
        until_s = time.monotonic() + timeout_s
        served: set[str] = set()
        while not struck <= served:
            assert time.monotonic() < until_s, (struck, served)
            await asyncio.sleep(0.1)
            status = await asyncio.to_thread(self.gateway.status)
            served = {row["partner"] for row in status["partners"] if row["cell"] not in outside and row.get("worker")}

    async def judge(self, struck: set[str]) -> list[Call]:
        """See that nobody else had an error, and that nothing was lost or doubled; give who had one."""
        calls = await self.running
        errors = [call for call in calls if error_of(call)]
        assert not [f"{call.partner}: {error_of(call)}" for call in errors if call.partner not in struck]
        calls += await bring_to_rest(self.gateway, self.keys, calls)
        judgement, audit = await judge_at_rest(self.gateway, self.keys, calls)
        assert audit["ok"]
        assert (judgement.verdict, judgement.findings, judgement.unknowns) == ("right", [], [])
        return errors


async def under_load(make_gateway: Callable[..., Gateway], seconds: float) -> Loaded:
    gateway = await asyncio.to_thread(make_gateway, 3, chosen("fdb"))
    keys = await onboard(gateway, PARTNERS, isolation="pooled")
    await asyncio.to_thread(gateway.wait_spares)
    status = await asyncio.to_thread(gateway.status)
    homes = {row["partner"]: row["cell"] for row in status["partners"]}
    load = Load(plan_for(gateway, keys, run="load", seed=1, requests_per_second=40, seconds=seconds))
    running = asyncio.create_task(load.run())
    await asyncio.sleep(8)
    return Loaded(gateway, keys, homes, running)


@needs_cluster
@pytest.mark.timeout(400)
async def test_a_killed_cells_partners_are_served_by_others_in_seconds(make_gateway: Callable[..., Gateway]) -> None:
    loaded = await under_load(make_gateway, SECONDS)
    dead = loaded.homes[PARTNERS[0]]
    struck = {name for name, home in loaded.homes.items() if home == dead}
    killed_s = time.monotonic()
    for process in await loaded.processes_of(dead):
        process.kill()
    await loaded.evacuate(dead)
    await loaded.wait_served(struck, outside={dead})
    took_s = time.monotonic() - killed_s
    errors = await loaded.judge(struck)
    last_s = max((call.due_s for call in errors), default=killed_s)
    told = f"{len(errors)} errors, the last one {last_s - killed_s:.1f} s after it"
    print(f"{len(struck)} partners, served again after {took_s:.1f} s; {told}")  # noqa: T201


@needs_cluster
@pytest.mark.timeout(400)
async def test_a_cell_that_is_stopped_while_it_takes_partners_over_is_passed_over_and_harms_nobody_later(
    make_gateway: Callable[..., Gateway],
) -> None:
    loaded = await under_load(make_gateway, 2 * SECONDS)
    dead = loaded.homes[PARTNERS[0]]
    others = {cell: await loaded.processes_of(cell) for cell in set(loaded.homes.values()) - {dead}}
    for process in await loaded.processes_of(dead):
        process.kill()
    targets = await loaded.evacuate(dead)
    stopped = Counter(targets.values()).most_common(1)[0][0]
    try:
        for process in others[stopped]:
            process.suspend()
        struck = {name for name, home in loaded.homes.items() if home in {dead, stopped}}
        await loaded.evacuate(stopped)
        await loaded.wait_served(struck, outside={dead, stopped})
    finally:
        for process in others[stopped]:
            with contextlib.suppress(psutil.NoSuchProcess):  # what was silent was ended by its supervisor
                process.resume()
    # What wakes goes on with what it had begun: its partners are another cell's by now.
    await asyncio.sleep(5)
    await loaded.wait_served(struck, outside={dead, stopped}, timeout_s=5)
    await loaded.judge(struck)
