"""Measures how soon a router goes by a change of the directory: `python -m bench.directory`.

Two gateways of their own, one with Redis, one without, each with few partners and then with many. One partner's keys
are issued and revoked, its limits changed, it is suspended and resumed, by the admin API. Meanwhile probes go to the
router at fixed times (open loop, every PROBE_INTERVAL_MS): a change is in effect when a first probe is answered by it.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import httpx
from rich.console import Console
from rich.table import Table

from bench import machine
from chaos.command_line import Parser
from chaos.gateway import Gateway
from chaos.installation import GatewayError
from chaos.rebalance import import_pooled
from control_plane import client
from control_plane.data_folder import short_socket_path
from control_plane.errors import ControlPlaneError
from router import limits

CELLS: Final = 2
PROBE_INTERVAL_MS: Final = 5
PROBE_TIMEOUT_S: Final = 10
READY_MS: Final = 300_000
CHANGES: Final = ("key issued", "key revoked", "limits changed", "suspended", "resumed")
ALL: Final = "all of these"
# By the directory's promise, from its publication on.
GOAL_MS: Final = {True: 100, False: 1_000}


@dataclass(frozen=True, slots=True)
class Probe:
    """What is asked of the router, and by which answers one sees that it goes by the change."""

    method: str
    path: str
    key: str
    is_new: Callable[[int, bytes], bool]


@dataclass(frozen=True, slots=True)
class Seen:
    """One change, in milliseconds: until it was in effect, since three moments.

    `asked`: the request to the admin API; `published`: the directory's file was written (the kernel's clock of files is
    exact to some milliseconds); `answered`: the admin API's answer, negative where the change was in effect before.
    """

    change: str
    asked_ms: float
    published_ms: float
    answered_ms: float


@dataclass(frozen=True, slots=True)
class Row:
    """The changes of one kind, or of all, on one gateway."""

    partners: int
    has_redis: bool
    change: str
    count: int
    asked_ms: tuple[float, float, float]  # median, p99, max, as the others
    published_ms: tuple[float, float, float]
    answered_ms_max: float
    after_answer: int


def row_of(partners: int, has_redis: bool, change: str, seen: list[Seen]) -> Row:
    """Sum up the changes of one kind, or of all."""
    found = [one for one in seen if change in {one.change, ALL}]
    return Row(
        partners,
        has_redis,
        change,
        len(found),
        _spread([one.asked_ms for one in found]),
        _spread([one.published_ms for one in found]),
        round(max(0.0, *(one.answered_ms for one in found)), 1),
        sum(one.answered_ms > 0 for one in found),
    )


def _spread(values: list[float]) -> tuple[float, float, float]:
    ordered = sorted(values)
    picks = (ordered[len(ordered) // 2], ordered[min(len(ordered) * 99 // 100, len(ordered) - 1)], ordered[-1])
    median, p99, highest = (round(pick, 1) for pick in picks)
    return median, p99, highest


async def first_new(session: httpx.AsyncClient, probe: Probe) -> float:
    """Send probes until one is answered by the change; give when that was, on the monotonic clock.

    Raises GatewayError where none is in time, or where a probe that was sent later was answered as before.
    """
    answers: list[tuple[float, float, bool]] = []

    async def ask() -> None:
        sent = time.monotonic()
        answer = await session.request(
            probe.method, probe.path, headers={"Authorization": f"Bearer {probe.key}"}, json={}
        )
        answers.append((sent, time.monotonic(), probe.is_new(answer.status_code, answer.content)))

    began = time.monotonic()
    under_way: list[asyncio.Task[None]] = []
    while not any(is_new for *_, is_new in answers):
        due = began + len(under_way) * PROBE_INTERVAL_MS / 1_000
        if due - began > PROBE_TIMEOUT_S:
            raise GatewayError(f"{probe.method} {probe.path} is answered as before after {PROBE_TIMEOUT_S} s")
        await asyncio.sleep(max(due - time.monotonic(), 0))
        under_way.append(asyncio.create_task(ask()))
    await asyncio.gather(*under_way)
    first = min(answered for _, answered, is_new in answers if is_new)
    if any(sent > first and not is_new for sent, _, is_new in answers):
        raise GatewayError(f"{probe.method} {probe.path} was answered as before once more")
    return first


class _Bench:
    """One gateway that is up, and the partner whose profile and keys change."""

    def __init__(self, gateway: Gateway, admin: httpx.AsyncClient, router: httpx.AsyncClient, key: str) -> None:
        self._gateway = gateway
        self._admin = admin
        self._router = router
        self._partner, self._key = "p0000", key
        self._dice = random.Random(1)

    async def round(self, number: int) -> list[Seen]:
        """Make one change of each kind."""
        path = f"/partners/{self._partner}"
        await self._wait()
        asked = time.monotonic()
        issued = (await self._change("POST", f"{path}/keys", {}))["key"]
        answered = time.monotonic()
        in_effect = await first_new(
            self._router, Probe("GET", "/v1/partner", issued["api_key"], lambda status, _: status == 200)
        )
        seen = [self._seen("key issued", asked, answered, in_effect)]
        gone = Probe("GET", "/v1/partner", issued["api_key"], lambda status, _: status in {401, 429})
        seen.append(await self._watch("key revoked", "DELETE", f"{path}/keys/{issued['id']}", None, gone))
        rate = 1_000 + number
        other = Probe("GET", "/v1/partner", self._key, lambda _, body: _rate(body) == rate)
        seen.append(await self._watch("limits changed", "PATCH", f"{path}/limits", {"rate_per_second": rate}, other))
        # A payment without an amount: who may write is told so, and none is made.
        for change, verb, status in (("suspended", "suspend", 403), ("resumed", "resume", 422)):
            write = Probe("POST", "/v1/payments", self._key, lambda found, _, wanted=status: found == wanted)  # type: ignore[misc]
            seen.append(await self._watch(change, "POST", f"{path}/{verb}", None, write))
        return seen

    async def _wait(self) -> None:
        """Wait for up to one interval of the router's looks: a change is to come at any moment between two."""
        await asyncio.sleep(self._dice.uniform(0, limits.DIRECTORY_POLL_MS) / 1_000)

    async def _watch(self, change: str, method: str, path: str, body: dict[str, Any] | None, probe: Probe) -> Seen:
        await self._wait()
        probing = asyncio.create_task(first_new(self._router, probe))
        await asyncio.sleep(4 * PROBE_INTERVAL_MS / 1_000)  # probes are on their way
        asked = time.monotonic()
        await self._change(method, path, body)
        answered = time.monotonic()
        return self._seen(change, asked, answered, await probing)

    async def _change(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """Ask the admin API. Raises GatewayError."""
        answer = await self._admin.request(method, path, json=body)
        if not answer.is_success:
            raise GatewayError(f"{method} {path}: {answer.text}")
        found: dict[str, Any] = answer.json()
        return found

    def _seen(self, change: str, asked: float, answered: float, in_effect: float) -> Seen:
        written_ago_s = time.time() - self._gateway.folder.directory_file.stat().st_mtime
        published = time.monotonic() - written_ago_s
        return Seen(change, *((in_effect - since) * 1_000 for since in (asked, published, answered)))


def _rate(body: bytes) -> int:
    found = json.loads(body)
    return int(found["limits"]["rate_per_second"]) if "limits" in found else 0


async def _measure(gateway: Gateway, key: str, rounds: int) -> list[Seen]:
    with short_socket_path(gateway.folder.control_socket) as socket:
        transport = httpx.AsyncHTTPTransport(uds=socket)
        async with (
            httpx.AsyncClient(
                transport=transport, base_url="http://control", headers=client.headers(gateway.folder), timeout=60
            ) as admin,
            httpx.AsyncClient(base_url=gateway.base_url, timeout=PROBE_TIMEOUT_S, trust_env=False) as router,
        ):
            bench = _Bench(gateway, admin, router, key)
            await bench.round(rounds)  # connections are made, code is loaded
            return [one for number in range(rounds) for one in await bench.round(number)]


def measure(root: Path, marks: list[int], rounds: int, console: Console, *, has_redis: bool) -> list[Row]:
    """Measure one gateway with so many partners, then with more. Raises GatewayError, ControlPlaneError."""
    gateway = Gateway(root, cells=CELLS, up_arguments=() if has_redis else ("--redis-url", "none"))
    rows: list[Row] = []
    keys: dict[str, str] = {}
    try:
        gateway.start()
        gateway.wait_ready()
        for mark in marks:
            console.print(f"{'with' if has_redis else 'without'} Redis, {mark} partners", soft_wrap=True)
            folder = root / f"import-{mark}"
            folder.mkdir()
            keys |= import_pooled(gateway, [f"p{number:04}" for number in range(len(keys), mark)], folder)
            gateway.wait_ready(READY_MS)
            seen = asyncio.run(_measure(gateway, keys["p0000"], rounds))
            rows += [row_of(mark, has_redis, change, seen) for change in (*CHANGES, ALL)]
    finally:
        gateway.kill_everything()
    return rows


def _table(rows: list[Row]) -> Table:
    table = Table(title="A change of the directory, until the router goes by it: ms, median / p99 / max")
    for name in ("partners", "Redis", "change", "times", "since it was asked", "since it was published", "goal"):
        table.add_column(name, justify="left" if name in {"Redis", "change"} else "right")
    table.add_column("since the answer: max", justify="right")
    table.add_column("after the answer", justify="right")
    for row in rows:
        cells = [f"{row.partners:,}", "yes" if row.has_redis else "no", row.change, str(row.count)]
        cells += [" / ".join(f"{value:.0f}" for value in spread) for spread in (row.asked_ms, row.published_ms)]
        table.add_row(*cells, str(GOAL_MS[row.has_redis]), f"{row.answered_ms_max:.0f}", str(row.after_answer))
    return table


def main() -> None:
    """Measure, and print the table."""
    options = _parse()
    console = Console(width=180)
    with tempfile.TemporaryDirectory(prefix="bulkhead-bench-") as folder:
        rows: list[Row] = []
        try:
            for has_redis in (True, False):
                root = Path(folder) / ("redis" if has_redis else "file")
                rows += measure(root, options.partners, options.rounds, console, has_redis=has_redis)
        except (GatewayError, ControlPlaneError) as error:
            sys.exit(f"it could not be measured: {error}")
        described = machine.describe(Path(folder))
    console.print(_table(rows))
    for line in machine.lines(described):
        console.print(line)
    if options.report:
        options.report.write_text(json.dumps({"rows": [asdict(row) for row in rows], "machine": described}, indent=2))


def _parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m bench.directory", description="Measure how soon routers follow the directory.")
    parser.add_argument("--partners", default="200,1000", help="how many are in the directory: a row of rising numbers")
    parser.add_argument("--rounds", type=int, default=60, help="changes of each kind")
    parser.add_argument("--report", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    try:
        options.partners = [int(mark) for mark in options.partners.split(",")]
    except ValueError:
        parser.error(f"--partners is numbers with commas between, not {options.partners!r}")
    if options.partners != sorted(set(options.partners)) or options.partners[0] < 1:
        parser.error("--partners rise, from 1 on")
    if options.rounds < 1:
        parser.error("--rounds is 1 or more")
    return options


if __name__ == "__main__":
    main()
