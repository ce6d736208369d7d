"""Measures a partner's move between cells, at several lengths of its history: `python -m bench.moves`.

A gateway of its own with two cells. For each length: how long the copy takes, how long the partner waits, what its
slowest request took and what its neighbours saw meanwhile. Open loop, clients ask once, never twice.
"""

import argparse
import asyncio
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import httpx

from bench import machine
from bench.history import History
from chaos.experiment import onboard
from chaos.gateway import Gateway
from control_plane.following import follow_move
from stores.shelf import open_shelf

MARKS: Final = (100, 10_000, 100_000)
FILL_AT_ONCE: Final = 64
MOVES: Final = 2
MOVE_TIMEOUT_S: Final = 900
REQUESTS_PER_SECOND: Final = 40
NEIGHBOURS: Final = ("neighbour_a", "neighbour_b", "neighbour_c")


async def _fill(gateway: Gateway, cell: str, partner: str, payments: int) -> None:
    """Give a partner a history, in its book and by its own actor, while nothing else runs."""
    shelf = open_shelf({"store": "sqlite", "folder": str(gateway.folder.cell_folder(cell))})
    history = History(shelf, "partners", partner)
    await history.take_over()
    await history.pay(payments, FILL_AT_ONCE)
    await history.stop()


def _move(gateway: Gateway, partner: str, to: str) -> dict[str, Any]:
    began = time.monotonic()
    moved = follow_move(gateway.folder, partner, to, MOVE_TIMEOUT_S, lambda _: None)
    return {**moved, "took_s": time.monotonic() - began}


class _Clients:
    """Pays for one partner and its neighbours in turn, open loop, until it is told to stop."""

    def __init__(self, gateway: Gateway, keys: dict[str, str], partner: str) -> None:
        self._gateway = gateway
        self._keys = keys
        self._partner = partner
        self._stopped = asyncio.Event()
        self.calls: list[tuple[str, int, float]] = []

    async def run(self) -> None:
        bounds = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(
            base_url=self._gateway.base_url, timeout=15, limits=bounds, trust_env=False
        ) as session:
            under_way = set()
            began = time.monotonic()
            number = 0
            while not self._stopped.is_set():
                await asyncio.sleep(max(began + number / REQUESTS_PER_SECOND - time.monotonic(), 0))
                partner = self._partner if number % 2 else NEIGHBOURS[number // 2 % len(NEIGHBOURS)]
                under_way.add(asyncio.create_task(self._pay(session, partner)))
                number += 1
            await asyncio.gather(*under_way)

    def stop(self) -> None:
        self._stopped.set()

    async def _pay(self, session: httpx.AsyncClient, partner: str) -> None:
        body = {"amount": 1_000, "currency": "EUR", "payment_method": "tok_approve"}
        began = time.monotonic()
        answer = await session.post(
            "/v1/payments", json=body, headers={"Authorization": f"Bearer {self._keys[partner]}"}
        )
        self.calls.append((partner, answer.status_code, (time.monotonic() - began) * 1_000))


def _percentile(values: list[float], percent: int) -> float:
    ordered = sorted(values)
    return round(ordered[min(len(ordered) * percent // 100, len(ordered) - 1)], 1) if ordered else 0.0


async def _measure_one(gateway: Gateway, keys: dict[str, str], partner: str) -> dict[str, Any]:
    homes = {row["partner"]: row["cell"] for row in (await asyncio.to_thread(gateway.status))["partners"]}
    calm = _Clients(gateway, keys, partner)
    task = asyncio.create_task(calm.run())
    await asyncio.sleep(5)
    calm.stop()
    await task
    clients = _Clients(gateway, keys, partner)
    task = asyncio.create_task(clients.run())
    moves = []
    other = "cell-1" if homes[partner] == "cell-0" else "cell-0"
    for number in range(MOVES):
        moves.append(await asyncio.to_thread(_move, gateway, partner, homes[partner] if number % 2 else other))
        await asyncio.sleep(0.5)
    clients.stop()
    await task
    return {
        "rows": moves[-1]["rows"],
        "took_s": [round(move["took_s"], 1) for move in moves],
        "pause_ms": sorted(move["pause_ms"] for move in moves),
        "errors": sum(status >= 300 for _, status, _ in clients.calls),
        "slowest_ms": _percentile([took for name, _, took in clients.calls if name == partner], 100),
        "neighbours_p99_ms": [
            _percentile([took for name, _, took in run.calls if name in NEIGHBOURS], 99) for run in (calm, clients)
        ],
    }


def measure(root: Path, marks: list[int], isolation: str) -> list[dict[str, Any]]:
    """Measure and give a row for each length."""
    gateway = Gateway(root, cells=2)
    partners = {f"history_{payments}": payments for payments in marks}
    found = []
    try:
        gateway.start()
        gateway.wait_ready()
        keys = asyncio.run(onboard(gateway, [*partners, *NEIGHBOURS]))
        homes = {row["partner"]: row["cell"] for row in gateway.status()["partners"]}
        if isolation == "pooled":
            for partner in (*partners, *NEIGHBOURS):
                gateway.run("partner", "pool", partner)
        gateway.interrupt()
        for partner, payments in partners.items():
            print(f"{partner}: {payments} payments are made")
            asyncio.run(_fill(gateway, homes[partner], partner, payments))
        gateway.start()
        gateway.wait_ready()
        gateway.wait_spares()
        for partner, payments in partners.items():
            row = asyncio.run(_measure_one(gateway, keys, partner))
            found.append({"payments": payments, **row})
            print(json.dumps(found[-1]))
    finally:
        gateway.kill_everything()
    return found


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description="Measure moves of partners between two cells on this machine.")
    parser.add_argument("--payments", type=int, nargs="+", default=list(MARKS))
    parser.add_argument("--isolation", choices=["dedicated", "pooled"], default="dedicated")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="bench-moves-"))
    try:
        print(*machine.lines(machine.describe(root)), sep="\n")
        measure(root, arguments.payments, arguments.isolation)
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
