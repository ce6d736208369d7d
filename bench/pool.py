"""Measures pooled partners: `python -m bench.pool --partners 1000 --cells 4`. A gateway of its own, nothing is left.

Memory and idle CPU a partner, the time to onboard and to be active again after a start, and how long the mates of a
pool wait whose worker is killed under a light load. Clients ask once, never twice.
"""

import argparse
import asyncio
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import httpx
import psutil

from bench import machine
from chaos.gateway import Gateway
from control_plane import client
from control_plane.data_folder import short_socket_path

ONBOARDS_AT_ONCE: Final = 8
IDLE_S: Final = 20
LOAD_S: Final = 12
KILL_AFTER_S: Final = 5
REQUESTS_PER_SECOND: Final = 60
START_TIMEOUT_MS: Final = 300_000


async def _onboard(gateway: Gateway, partner_ids: list[str]) -> dict[str, str]:
    keys: dict[str, str] = {}
    left = iter(partner_ids)
    with short_socket_path(gateway.folder.control_socket) as short:
        transport = httpx.AsyncHTTPTransport(uds=short)
        async with httpx.AsyncClient(
            transport=transport, timeout=60, headers=client.headers(gateway.folder)
        ) as session:

            async def onboard() -> None:
                for partner_id in left:
                    body = {"id": partner_id, "isolation": "pooled"}
                    answer = await session.post("http://control/partners", json=body)
                    answer.raise_for_status()
                    keys[partner_id] = answer.json()["key"]["api_key"]

            await asyncio.gather(*(onboard() for _ in range(ONBOARDS_AT_ONCE)))
    return keys


def _used(pids: list[int]) -> tuple[int, float]:
    """Give memory (PSS, so that shared pages count once) and CPU seconds so far."""
    memory_bytes, cpu_s = 0, 0.0
    for pid in pids:
        process = psutil.Process(pid)
        memory_bytes += process.memory_full_info().pss
        times = process.cpu_times()
        cpu_s += times.user + times.system
    return memory_bytes, cpu_s


async def _load(gateway: Gateway, keys: dict[str, str], victims: list[str], worker_pid: int) -> dict[str, Any]:
    """Pay for partners in turn, open loop, half of them of the pool that is killed; give the delays of its partners."""
    others = [partner_id for partner_id in keys if partner_id not in victims]
    calm_ms: list[float] = []
    delays_ms: dict[bool, list[float]] = {True: [], False: []}
    outcomes: Counter[int] = Counter()
    killed_s = time.monotonic() + KILL_AFTER_S

    async def pay(session: httpx.AsyncClient, partner_id: str) -> None:
        body = {"amount": 1_000, "currency": "EUR", "payment_method": "tok_approve"}
        began = time.monotonic()
        answer = await session.post("/v1/payments", json=body, headers={"Authorization": f"Bearer {keys[partner_id]}"})
        outcomes[answer.status_code] += 1
        took_ms = (time.monotonic() - began) * 1_000
        if time.monotonic() < killed_s:
            calm_ms.append(took_ms)
        elif began < killed_s + 2:
            delays_ms[partner_id in victims].append(took_ms)

    bounds = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=gateway.base_url, timeout=15, limits=bounds, trust_env=False) as session:
        asyncio.get_running_loop().call_later(KILL_AFTER_S, lambda: psutil.Process(worker_pid).kill())
        under_way = set()
        began = time.monotonic()
        for number in range(LOAD_S * REQUESTS_PER_SECOND):
            await asyncio.sleep(max(began + number / REQUESTS_PER_SECOND - time.monotonic(), 0))
            group = victims if number % 2 else others
            under_way.add(asyncio.create_task(pay(session, group[(number // 2) % len(group)])))
        await asyncio.gather(*under_way)
    return {
        "outcomes": dict(outcomes),
        "calm_slowest_ms": [round(delay) for delay in sorted(calm_ms)[-3:]],
        "mates_slowest_ms": [round(delay) for delay in sorted(delays_ms[True])[-3:]],
        "others_slowest_ms": [round(delay) for delay in sorted(delays_ms[False])[-3:]],
    }


def _workers(status: dict[str, Any], role: str) -> list[int]:
    return [row["pid"] for row in status["processes"] if row["role"] == role]


def measure(root: Path, partners: int, cells: int) -> None:
    """Measure and print."""
    gateway = Gateway(root, cells=cells)
    try:
        gateway.start()
        gateway.wait_ready(START_TIMEOUT_MS)
        gateway.wait_spares()
        empty = _used(_workers(gateway.status(), "spare"))[0] / max(len(_workers(gateway.status(), "spare")), 1)
        all_before = _used([process.pid for process in gateway.processes()])[0]
        began = time.monotonic()
        keys = asyncio.run(_onboard(gateway, [f"p{number:04}" for number in range(partners)]))
        print(f"onboarded: {partners} in {time.monotonic() - began:.1f} s")
        gateway.wait_ready(START_TIMEOUT_MS)
        gateway.wait_spares()
        status = gateway.status()
        pools = _workers(status, "pool")
        memory, _ = _used(pools)
        all_after = _used([process.pid for process in gateway.processes()])[0]
        print(f"pools: {len(pools)}, {memory / len(pools) / 1e6:.0f} MB each, a spare {empty / 1e6:.0f} MB")
        of_pools_mb, in_all_mb = memory / partners / 1e6, (all_after - all_before) / partners / 1e6
        print(f"memory a partner: {of_pools_mb:.2f} MB of pools; {in_all_mb:.2f} MB in all")
        time.sleep(5)
        everything = [process.pid for process in gateway.processes()]
        before, before_all = _used(pools)[1], _used(everything)[1]
        time.sleep(IDLE_S)
        spent, spent_all = _used(pools)[1] - before, _used(everything)[1] - before_all
        print(f"idle CPU a partner: {spent / IDLE_S / partners * 1e6:.0f} us a second of its pool")
        print(f"idle CPU of all processes: {spent_all / IDLE_S:.2f} cores")
        status = gateway.status()
        worker = status["partners"][0]["worker"]
        mates = [row["partner"] for row in status["partners"] if row["worker"] == worker]
        pid = next(row["pid"] for row in status["processes"] if row["process"] == worker)
        print(f"killed a pool of {len(mates)}: {asyncio.run(_load(gateway, keys, mates, pid))}")
        gateway.interrupt()
        began = time.monotonic()
        gateway.start()
        gateway.wait_ready(START_TIMEOUT_MS)
        print(f"started again: all active after {time.monotonic() - began:.1f} s")
    finally:
        gateway.kill_everything()


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description="Measure pooled partners on this machine.")
    parser.add_argument("--partners", type=int, default=1_000)
    parser.add_argument("--cells", type=int, default=4)
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="bench-pool-"))
    try:
        print(*machine.lines(machine.describe(root)), sep="\n")
        measure(root, arguments.partners, arguments.cells)
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
