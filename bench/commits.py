"""Measures a store alone: fenced commits of six rows, so many in flight, without a gateway.

`python -m bench.commits [--store fdb --cluster-file FILE]`. Each book has one commit under way at a time, as a
partner's actor has, so commits in flight are books. "Begins" has a check, as what begins a payment; "ends" has none.
"""

import asyncio
import contextlib
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import uvloop
from rich.console import Console
from rich.table import Table

from actors.errors import StoreError
from actors.store import Check, Put, Store
from bench import machine
from chaos import command_line
from chaos.store_choice import StoreChoice
from stores.shelf import open_shelf

BOOKS: Final = (1, 16, 256)
ROW_BYTES: Final = (90, 250, 200, 450, 0, 120)
SECONDS: Final = 5.0


def main() -> None:
    """Measure each number of books, with and without a check, and print the table."""
    parser = command_line.Parser(prog="python -m bench.commits", description=__doc__)
    command_line.add_store_options(parser)
    parser.add_argument("--books", default=",".join(map(str, BOOKS)), help="how many at once: 1,16,256")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="length of each step")
    options = parser.parse_args()
    choice = command_line.store_chosen(parser, options)
    try:
        uvloop.run(_measure(choice, [int(count) for count in options.books.split(",")], options.seconds))
    except StoreError as error:
        sys.exit(f"bench.commits: {error}")


async def _measure(choice: StoreChoice, books: list[int], seconds: float) -> None:
    console = Console(width=120)
    table = Table(
        "commit", "in flight", "a second", "p50 ms", "p90 ms", "p99 ms", "client CPU ms", title="Fenced commits"
    )
    with tempfile.TemporaryDirectory(prefix="bulkhead-commits-") as folder:
        for count in books:
            async with _books(choice, Path(folder) / str(count), count) as stores:
                for name in ("ends", "begins"):
                    table.add_row(name, str(count), *await _step(stores, seconds, checked=name == "begins"))
        console.print(table)
        for line in machine.lines(machine.describe(Path(folder))):
            console.print(line)
    console.print(f"Durability: {await choice.durability()}.")


@contextlib.asynccontextmanager
async def _books(choice: StoreChoice, folder: Path, count: int) -> AsyncIterator[list[Store]]:
    place: dict[str, Any] = {"store": "sqlite", "folder": str(folder)}
    if choice.kind == "fdb":
        path = ["bulkhead-bench", secrets.token_hex(8)]
        place = {"store": "fdb", "cluster_file": str(choice.cluster_file), "path": path}
    shelf = open_shelf(place)
    await shelf.wait_answers()
    stores: list[Store] = []
    try:
        for number in range(count):
            await shelf.create("partners", f"p{number}")
            store = await shelf.open("partners", f"p{number}")
            stores.append(store)
            await store.acquire(1)
        yield stores
    finally:
        await asyncio.gather(*(store.close() for store in stores))


async def _step(stores: list[Store], seconds: float, *, checked: bool) -> list[str]:
    took_s: list[float] = []
    until = time.monotonic() + seconds

    async def write(store: Store) -> None:
        while (began := time.monotonic()) < until:
            key = ("once", secrets.token_hex(18))
            rows = [Put(("row", number, *key), b"x" * size) for number, size in enumerate(ROW_BYTES)]
            await store.commit([Check(key, None)] if checked else [], rows)
            took_s.append(time.monotonic() - began)

    cpu_before = time.process_time()
    await asyncio.gather(*(write(store) for store in stores))
    cpu_ms = (time.process_time() - cpu_before) * 1_000 / len(took_s)
    took_s.sort()
    quantiles = [took_s[min(int(len(took_s) * share), len(took_s) - 1)] * 1_000 for share in (0.5, 0.9, 0.99)]
    return [f"{len(took_s) / seconds:,.0f}", *(f"{quantile:.1f}" for quantile in quantiles), f"{cpu_ms:.2f}"]


if __name__ == "__main__":
    main()
