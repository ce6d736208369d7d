"""Measures whether a payment costs the same at any length of its partner's history: `python -m bench.history`.

One partner's actor over its real book, without HTTP and with an acquirer that answers at once (the rest of the path
knows no history). At each mark it reports CPU and time a payment, the book's size, and what reading and taking over
cost then.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import orjson
import uvloop
from rich.console import Console
from rich.table import Table

from actors import queries
from actors.acquirer import Approved, Declined, Instruction, NeverPerformed
from actors.answers import Answer
from actors.commands import CreatePayment, Envelope
from actors.errors import StoreError
from actors.partner import PartnerActor
from actors.profile import MAIN_ACQUIRER, Profile
from bench import machine
from cells.api import logs
from chaos.command_line import Parser, add_store_options, store_chosen
from chaos.store_choice import NO_DISK_FIGURE, StoreChoice
from stores.shelf import Shelf, open_shelf

MARKS: Final = (1_000, 10_000, 100_000, 300_000, 1_000_000)
AT_ONCE: Final = 64
SAMPLE_PAYMENTS: Final = 2_000
SAMPLE_AT_ONCE: Final = 4
READS: Final = 50
PARTNER: Final = ("partners", "history")


class ApprovingAcquirer:
    """An acquirer that approves at once; there is no network in this measurement."""

    async def perform(self, instruction: Instruction, timeout_ms: int) -> Approved | Declined:  # noqa: ARG002
        """Approve."""
        return Approved(f"reference_{instruction.key}")

    async def close_key(self, instruction: Instruction, timeout_ms: int) -> Approved | Declined | NeverPerformed:
        """Approve."""
        return await self.perform(instruction, timeout_ms)

    async def aclose(self) -> None:
        """Give back nothing."""


class History:
    """One partner whose history grows."""

    def __init__(self, shelf: Shelf, *book: str) -> None:
        self._shelf = shelf
        self._book = book or PARTNER
        self._actor: PartnerActor | None = None
        self._epoch = 0
        self.payments = 0

    async def take_over(self) -> float:
        """Let a new owner take the partner over; give the milliseconds that it took."""
        if self._actor is not None:
            await self._actor.stop()
        began = time.perf_counter()
        profile = Profile("history", 1, rate_per_second=10_000, rate_burst=100_000, in_flight_max=10_000)
        self._actor = PartnerActor(profile, await self._shelf.open(*self._book), {MAIN_ACQUIRER: ApprovingAcquirer()})
        self._epoch += 1
        await self._actor.start(self._epoch)
        return (time.perf_counter() - began) * 1e3

    async def pay(self, count: int, at_once: int) -> tuple[float, float]:
        """Make payments; give CPU and wall-clock seconds."""
        cpu, wall = time.process_time(), time.perf_counter()
        for first in range(0, count, at_once):
            await asyncio.gather(*(self._pay_one() for _ in range(min(at_once, count - first))))
        return time.process_time() - cpu, time.perf_counter() - wall

    async def read(self) -> dict[str, float]:
        """Give the milliseconds that a page, an old payment and a filtered page take."""
        assert self._actor is not None
        oldest = await self._read("list_payments", limit=1)
        payment_id = orjson.loads(oldest.body)["data"][0]["id"]
        return {
            "get_payment": await self._time("get_payment", payment_id=payment_id),
            "list_payments": await self._time("list_payments", limit=100),
            "list_by_status": await self._time("list_payments", limit=100, status="captured"),
            "list_by_reference": await self._time("list_payments", limit=100, reference=f"r{self.payments // 2}"),
        }

    async def stop(self) -> None:
        """End."""
        if self._actor is not None:
            await self._actor.stop()

    async def _pay_one(self) -> None:
        assert self._actor is not None
        self.payments += 1
        name = f"r{self.payments}"
        command = CreatePayment(1_000, "EUR", "tok_approve", reference=name)
        answer = await self._actor.ask("create_payment", Envelope(f"c{name}", f"req_{name}", command, name), 8_000)
        assert isinstance(answer, Answer), answer

    async def _read(self, method: str, **arguments: Any) -> Answer:
        assert self._actor is not None
        answer = await queries.query(self._actor, method, arguments)
        assert isinstance(answer, Answer), answer
        return answer

    async def _time(self, method: str, **arguments: Any) -> float:
        began = time.perf_counter()
        for _ in range(READS):
            await self._read(method, **arguments)
        return round((time.perf_counter() - began) * 1e3 / READS, 2)


def _shelf_of(store: StoreChoice, folder: Path) -> Shelf:
    if store.kind == "sqlite":
        return open_shelf({"store": "sqlite", "folder": str(folder)})
    # A directory of its own each time; what is in it stays in the cluster.
    path = ["bulkhead", f"history-{uuid4().hex}"]
    return open_shelf({"store": "fdb", "cluster_file": str(store.cluster_file), "path": path})


def _bytes_below(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


async def _measure(
    folder: Path, store: StoreChoice, payments_max: int, console: Console
) -> tuple[str, list[dict[str, Any]]]:
    """Give the durability in words, and a row for each mark."""
    durability = await store.durability()
    shelf = _shelf_of(store, folder)
    await shelf.create(*PARTNER)
    history = History(shelf)
    await history.take_over()
    rows: list[dict[str, Any]] = []
    for mark in (*(mark for mark in MARKS if mark < payments_max), payments_max):
        await history.pay(max(mark - history.payments, 0), AT_ONCE)
        take_over_ms = await history.take_over()
        cpu_s, wall_s = await history.pay(SAMPLE_PAYMENTS, SAMPLE_AT_ONCE)
        size = _bytes_below(folder)
        row = {
            "payments": mark,
            "cpu_ms_per_payment": round(cpu_s * 1e3 / SAMPLE_PAYMENTS, 3),
            "ms_per_payment": round(wall_s * 1e3 / SAMPLE_PAYMENTS, 3),
            "take_over_ms": round(take_over_ms, 1),
            "bytes_per_payment": round(size / history.payments) if store.kind == "sqlite" else None,
            "read_ms": await history.read(),
        }
        rows.append(row)
        console.print(row)
    await history.stop()
    return durability, rows


def main() -> None:
    """Let a history grow and print the table."""
    parser = Parser(prog="python -m bench.history", description="Measure payments by history length.")
    add_store_options(parser)
    parser.add_argument("--payments", type=int, default=100_000, help="how long the history gets at last")
    parser.add_argument("--report", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    store = store_chosen(parser, options)
    console = Console(width=150)
    with tempfile.TemporaryDirectory(prefix="bulkhead-history-") as name:
        folder = Path(name)
        logs.configure(os.devnull, level="warning")
        try:
            durability, rows = uvloop.run(_measure(folder, store, options.payments, console))
        except StoreError as error:
            sys.exit(f"it could not be measured: {error}")
        described = machine.describe(folder)
    table = Table(title=f"One partner, {SAMPLE_PAYMENTS} payments at each mark, {SAMPLE_AT_ONCE} at once; times in ms")
    for heading in ("payments", "CPU", "CPU, first = 1", "wall", "take over", "bytes each", *rows[0]["read_ms"]):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            f"{row['payments']:,}",
            str(row["cpu_ms_per_payment"]),
            f"{row['cpu_ms_per_payment'] / rows[0]['cpu_ms_per_payment']:.2f}",
            str(row["ms_per_payment"]),
            str(row["take_over_ms"]),
            "-" if row["bytes_per_payment"] is None else str(row["bytes_per_payment"]),
            *map(str, row["read_ms"].values()),
        )
    console.print(table)
    for line in machine.lines(described):
        console.print(line)
    console.print(f"Durability: {durability}.", soft_wrap=True)
    if store.kind != "sqlite":
        console.print(NO_DISK_FIGURE)
    if options.report:
        report = {"machine": described, "store": store.kind, "durability": durability, "marks": rows}
        options.report.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
