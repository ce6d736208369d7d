"""A whole gateway whose FoundationDB server dies or stands still under load: 503 meanwhile, and then all is as before.

On a server of its own, which is all of the cluster. The gateway is left alone: what it does not do by itself fails.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chaos import faults, limits
from chaos.checker import error_of
from chaos.experiment import bring_to_rest, judge_at_rest, onboard, plan_for
from chaos.faults import Fault
from chaos.fdb_server import FdbServer
from chaos.gateway import Gateway
from chaos.history import Call
from chaos.impact import Happened, impacts_of
from chaos.store_choice import StoreChoice
from chaos.workload import Load
from tests.store_choices import needs_server

CELLS = 2
PARTNERS = [f"shop_{number}" for number in range(4)]
REQUESTS_PER_SECOND = 30
CALM_FIRST_S = 6
CALM_LAST_S = 6
# How long the server is gone, and what of it the load goes on.
AWAY_S = {"killed": 3, "stopped": 20}
BACK_S_MAX = 45
QUIET_S = 2.0
# While the gateway knows that its store is gone nobody waits for it; it takes a transaction's time to know.
KNOWN_AFTER_S = 9.0
# For a CI machine that is busy.
PATIENCE = 4.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FdbServer]:
    made = FdbServer(tmp_path / "fdb")
    made.start()
    yield made
    made.end()


@needs_server
@pytest.mark.timeout(400)
@pytest.mark.parametrize("blow", ["killed", "stopped"])
async def test_a_server_that_goes_and_comes_back_costs_delays_and_503s_and_nothing_else(
    server: FdbServer, make_gateway: Callable[..., Gateway], blow: str
) -> None:
    gateway = await asyncio.to_thread(make_gateway, CELLS, StoreChoice("fdb", server.cluster_file))
    keys = await onboard(gateway, PARTNERS)
    await asyncio.to_thread(gateway.wait_spares)
    before = await asyncio.to_thread(gateway.status)
    seconds = CALM_FIRST_S + AWAY_S[blow] + BACK_S_MAX
    load = Load(plan_for(gateway, keys, run="load", seed=1, requests_per_second=REQUESTS_PER_SECOND, seconds=seconds))

    running = asyncio.create_task(load.run())
    await asyncio.sleep(CALM_FIRST_S)
    acknowledged = sum(call.acknowledged for call in load.calls)
    assert acknowledged > CALM_FIRST_S, "payments flow"
    happened = Happened(fault_of(blow), time.monotonic())
    await strike(server, blow)
    back_s = time.monotonic()
    await asyncio.to_thread(gateway.wait_ready, BACK_S_MAX * 1_000)
    happened.calm_s = await wait_all_served(load, back_s)
    await asyncio.sleep(CALM_LAST_S)
    load.stop()
    calls = await running

    cells = {row["partner"]: row["cell"] for row in before["partners"]}
    ((impact,), in_calm) = impacts_of([happened], calls, cells, PATIENCE)
    told = f"{impact.struck.excused}; back {happened.calm_s - back_s:.1f} s after the server"
    print(f"server {blow}: {told}")  # noqa: T201 - pytest shows it where the test fails
    assert (impact.broken(), in_calm) == ([], []), told
    assert [call for call in calls if call.answered_s is None] == [], "everybody was answered"
    while_gone = [call for call in calls if happened.struck_s < call.due_s < back_s]
    assert any(call.status == 503 and call.retry_after for call in while_gone), "the server was not missed"
    late = [call for call in while_gone if call.due_s > happened.struck_s + KNOWN_AFTER_S and waited_s(call) > 1]
    assert late == [], "who calls a store that is known to be gone is told so at once"
    assert pids_of(await asyncio.to_thread(gateway.status)) == pids_of(before), "nothing had to be started again"
    calls += await bring_to_rest(gateway, keys, calls)
    judgement, audit = await judge_at_rest(gateway, keys, [call for call in calls if call.run == "load"])
    assert audit["ok"], audit
    assert (judgement.verdict, judgement.findings, judgement.unknowns) == ("right", [], [])


def fault_of(blow: str) -> Fault:
    """Give the row of the table, with the time that the server is away here."""
    kind = faults.kind_named(f"FoundationDB server {blow}")
    kind = replace(kind, goal_ms=AWAY_S[blow] * 1_000 + limits.GOAL_FDB_SERVER_BACK_MS)
    return Fault(0, kind, None, None, 0, ())


async def strike(server: FdbServer, blow: str) -> None:
    """Kill or stop the server, and let it come back after its time."""
    await asyncio.to_thread(server.kill if blow == "killed" else server.stop)
    await asyncio.sleep(AWAY_S[blow])
    if blow == "killed":
        await asyncio.to_thread(server.start, wait=False)
    else:
        server.continue_()


async def wait_all_served(load: Load, back_s: float) -> float:
    """Wait until every partner wrote something since then, and nobody was turned away of late; give when it was so."""
    while time.monotonic() < back_s + BACK_S_MAX:
        await asyncio.sleep(0.2)
        now_s = time.monotonic()
        wrote = {call.partner for call in load.calls if call.key and call.acknowledged and call.sent_s > back_s}
        turned_away = [call for call in load.calls if error_of_ended(call) and (call.ended_s or 0) > now_s - QUIET_S]
        if wrote == set(PARTNERS) and not turned_away:
            return now_s
    raise AssertionError(f"not all are served {BACK_S_MAX} s after the server is back")


def error_of_ended(call: Call) -> str | None:
    """Say what is wrong with a call that came to its end."""
    return None if call.ended_s is None else error_of(call)


def waited_s(call: Call) -> float:
    """Say how long its client waited."""
    assert call.answered_s is not None
    return call.answered_s - call.sent_s


def pids_of(status: dict[str, Any]) -> set[tuple[str, str, int]]:
    """Give all processes; a spare and a worker may have changed places."""
    return {
        ("worker" if row["role"] == "spare" else row["role"], row["cell"] or "", row["pid"])
        for row in status["processes"]
    }
