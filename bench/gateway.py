"""Measures the whole gateway, HTTP to fsync, and finds its knee: `python -m bench.gateway [--rates 100,300]`.

Open loop (load.py): latencies count from a schedule fixed in advance. Every payment is two durable commits here and one
at the acquirer simulator. All of it, load generator included, runs on this machine; CPU is reported by process role.
`--stores sqlite,fdb` puts both stores into one table of one run.
"""

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import psutil
from rich.console import Console
from rich.table import Table

from actors.errors import StoreError
from bench import machine
from bench.load import LoadPlan, LoadResults
from chaos.command_line import Parser, add_store_options, check_store, store_chosen
from chaos.gateway import Gateway
from chaos.installation import GatewayError
from chaos.store_choice import NO_DISK_FIGURE, StoreChoice
from control_plane.errors import ControlPlaneError
from stores.shelf import KINDS

LEAD_S: Final = 1.5
ROLES: Final = ("router", "door", "worker", "ray", "acquirer", "control plane")
FDBSERVER: Final = "fdbserver"  # the servers' processes, where they run on this machine
QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
FIRST_RATE: Final = 200.0
RATE_MAX: Final = 10_000.0
NARROWINGS: Final = 3
SHARE_HELD: Final = 0.97
IDLE_S: Final = 10.0
RATES_BESIDE: Final = "100,300,500,700,900"
BESIDE: Final = (
    "Both gateways ran all the time: the idle CPU of the other one and of its store is among others' cores. Each rate "
    "was measured of each store before the next rate, and who began changed with it."
)


@dataclass(frozen=True, slots=True)
class Step:
    """What one rate came to. Times in ms, CPU in ms a payment, by role."""

    store: str
    asked_per_second: float
    sent: int
    captured: int
    other_answers: dict[str, int]
    per_second: float
    latency_ms: dict[str, float | None]
    cpu_ms_per_payment: dict[str, float]
    client_cpu_ms_per_payment: float
    client_late_ms_max: float
    machine_busy_cores: float
    others_busy_cores: float

    def holds(self, p99_ms: float) -> bool:
        """Say whether the gateway keeps up: all paid, as fast as asked, with the tail within its bound."""
        tail = self.latency_ms["p99"]
        keeps_up = self.per_second >= SHARE_HELD * self.asked_per_second
        return not self.other_answers and keeps_up and tail is not None and tail <= p99_ms


def main() -> None:
    """Run the rates one after the other, or look for the knee, and print the table."""
    options = _parse()
    console = Console(width=180)
    with tempfile.TemporaryDirectory(prefix="bulkhead-bench-") as folder:
        try:
            report = _measure(Path(folder), options, console)
        except (GatewayError, ControlPlaneError, StoreError) as error:
            sys.exit(f"it could not be measured: {error}")
    console.print(_table(report["steps"]))
    for line in machine.lines(report["machine"]):
        console.print(line)
    for row in report["stores"]:
        console.print(
            f"{row['store']}: {row['durability']}; two commits a payment, and the acquirer simulator fsyncs as well. "
            f"Highest rate held (p99 within {options.p99_ms:.0f} ms): {row['knee_per_second']}/s; most captured in a "
            f"second: {row['most_per_second']}. Idle CPU in cores: {row['idle_cpu_cores']}. A worker takes "
            f"{row['worker_memory_mib']:.0f} MiB.",
            soft_wrap=True,
        )
        disk = row["disk_bytes_per_payment"]
        told = NO_DISK_FIGURE if disk is None else f"A payment: {disk:.0f} bytes of disk, write-ahead log included."
        console.print(told, soft_wrap=True)
    if len(report["stores"]) > 1:
        console.print(BESIDE, soft_wrap=True)
    if options.report:
        options.report.write_text(json.dumps(report, indent=2))


def _parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m bench.gateway",
        description="Measure the whole gateway with open-loop load: given rates, or a search for the highest it holds.",
    )
    parser.add_argument("--rates", help="payments a second, one step after the other: 100,300 (default: find the knee)")
    parser.add_argument("--seconds", type=float, default=15.0, help="length of each step")
    parser.add_argument("--partners", type=int, default=8)
    parser.add_argument("--cells", type=int, default=2)
    parser.add_argument("--p99-ms", type=float, default=250.0, help="a rate is held while its p99 is within this")
    parser.add_argument("--report", type=Path, help="write the figures as JSON")
    add_store_options(parser)
    parser.add_argument(
        "--stores", help=f"sqlite,fdb: both at the same rates, in one table (--rates is {RATES_BESIDE} then by default)"
    )
    options = parser.parse_args(arguments)
    options.stores, options.rates = _stores_and_rates(parser, options)
    return options


def _stores_and_rates(parser: Parser, options: argparse.Namespace) -> tuple[tuple[StoreChoice, ...], tuple[float, ...]]:
    """Give what is measured; no rates: the knee is looked for."""
    if options.stores is None:
        stores: tuple[StoreChoice, ...] = (store_chosen(parser, options),)
    else:
        kinds = options.stores.split(",")
        if sorted(kinds) != sorted(KINDS):
            parser.error(f"--stores is {','.join(KINDS)}; for one of them say --store")
        stores = tuple(check_store(parser, kind, None if kind == "sqlite" else options.cluster_file) for kind in kinds)
        options.rates = options.rates or RATES_BESIDE
    try:
        rates = tuple(float(rate) for rate in options.rates.split(",")) if options.rates else ()
    except ValueError:
        parser.error(f"--rates is payments a second with commas between, not {options.rates!r}")
    if not all(0 < rate <= RATE_MAX for rate in rates):
        parser.error(f"--rates are above 0, and {RATE_MAX:.0f} at most")
    return stores, rates


def _measure(folder: Path, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure each store's gateway. Raises GatewayError, ControlPlaneError, StoreError."""
    with contextlib.ExitStack() as ends:
        benches = [_Bench(folder / store.kind, store, options, console) for store in options.stores]
        for bench in benches:
            ends.callback(bench.end)
            bench.start()
        for bench in benches:
            bench.warm_up()
        # Each rate is measured of each store before the next one; who begins changes with it.
        for number, rate in enumerate(options.rates):
            for bench in benches if number % 2 == 0 else reversed(benches):
                bench.step(rate)
        if not options.rates:
            for bench in benches:
                bench.find_knee()
        stores = [bench.summary() for bench in benches]
    by_rate = sorted((step for bench in benches for step in bench.steps), key=lambda step: step.asked_per_second)
    return {
        "steps": [_as_map(step) for step in (by_rate if len(benches) > 1 else benches[0].steps)],
        "stores": stores,
        "cells": options.cells,
        "partners": options.partners,
        "machine": machine.describe(folder),
    }


class _Bench:
    """One gateway under one load after the other."""

    def __init__(self, folder: Path, store: StoreChoice, options: argparse.Namespace, console: Console) -> None:
        self._store = store
        self._gateway = Gateway(folder, cells=options.cells, store=store)
        self._folder = folder
        self._keys: dict[str, str] = {}
        self._options = options
        self._console = console
        self._durability = ""
        self._idle_cores: dict[str, float] = {}
        self.steps: list[Step] = []
        self.paid = 0

    def start(self) -> None:
        """Start the gateway and onboard its partners. Raises GatewayError, ControlPlaneError, StoreError."""
        self._durability = asyncio.run(self._store.durability())
        self._gateway.start()
        self._gateway.wait_ready()
        limits = {"rate_per_second": 10_000, "rate_burst": 10_000, "in_flight_max": 2_000}
        names = [f"bench_{number}" for number in range(self._options.partners)]
        self._keys = {name: self._gateway.create_partner(name, **limits) for name in names}
        self._gateway.wait_ready()

    def warm_up(self) -> None:
        """Bring connections, caches and files to how they are in use, then see what all that uses without any load."""
        self.step(FIRST_RATE / 4, report=False)
        before = self._cpu_seconds()
        time.sleep(IDLE_S)
        after = self._cpu_seconds()
        self._idle_cores = {role: round((after[role] - before[role]) / IDLE_S, 3) for role in self._roles}

    def end(self) -> None:
        """Stop the gateway; leave nothing running."""
        if self._gateway.up is not None and self._gateway.up.poll() is None:
            self._gateway.interrupt()
        self._gateway.kill_everything()

    def find_knee(self) -> None:
        """Double the rate until it is not held, then narrow down."""
        low, high = 0.0, FIRST_RATE
        while high <= RATE_MAX and self.step(high).holds(self._options.p99_ms):
            low, high = high, high * 2
        for _ in range(NARROWINGS):
            middle = round((low + high) / 2)
            if self.step(middle).holds(self._options.p99_ms):
                low = middle
            else:
                high = middle

    def summary(self) -> dict[str, Any]:
        """Sum up all steps."""
        held = [step.asked_per_second for step in self.steps if step.holds(self._options.p99_ms)]
        workers = [process for process in self._gateway.processes() if role_of(process) == "worker"]
        memory = [process.memory_full_info().uss for process in workers]
        disk = sum(file.stat().st_size for file in self._gateway.folder.root.glob("cells/*/partners/*"))
        return {
            "store": self._store.kind,
            "durability": self._durability,
            "knee_per_second": max(held, default=None),
            "most_per_second": max((step.per_second for step in self.steps), default=None),
            "idle_cpu_cores": self._idle_cores,
            "worker_memory_mib": sum(memory) / len(memory) / 2**20,
            "disk_bytes_per_payment": disk / max(self.paid, 1) if self._store.kind == "sqlite" else None,
        }

    @property
    def _roles(self) -> tuple[str, ...]:
        return ROLES if self._store.kind == "sqlite" else (*ROLES, FDBSERVER)

    def step(self, rate: float, *, report: bool = True) -> Step:
        """Send one rate and take its figures."""
        address = urlsplit(self._gateway.base_url)
        run = f"s{len(self.steps)}r{rate:.0f}" if report else "warm"
        plan = LoadPlan(
            host=str(address.hostname),
            port=int(address.port or 80),
            keys=self._keys,
            per_second=rate,
            begin_s=time.monotonic() + LEAD_S,
            seconds=self._options.seconds if report else 5.0,
            run=run,
        )
        plan_file, results_file = self._folder / f"{run}.json", self._folder / f"{run}.results"
        plan_file.write_bytes(plan.encode())
        before, busy_before, began = self._cpu_seconds(), _machine_busy_seconds(), time.monotonic()
        command = [sys.executable, "-m", "bench.load", "--plan", str(plan_file), "--results", str(results_file)]
        client = subprocess.Popen(command)
        _, status, usage = os.wait4(client.pid, 0)
        client.returncode = os.waitstatus_to_exitcode(status)
        if client.returncode:
            raise SystemExit(f"the load generator ended with {client.returncode}")
        after, busy, took_s = self._cpu_seconds(), _machine_busy_seconds() - busy_before, time.monotonic() - began
        results = LoadResults.read(results_file.read_bytes())
        client_s = usage.ru_utime + usage.ru_stime
        ours_s = sum(after.values()) - sum(before.values()) + client_s
        cpu_s = {role: after[role] - before[role] for role in self._roles}
        step = _step_of(
            self._store.kind, plan, results, cpu_s, client_s, (busy / took_s, max(busy - ours_s, 0.0) / took_s)
        )
        self.paid += step.captured
        if report:
            self.steps.append(step)
            self._console.print(f"{self._store.kind}, {rate:.0f}/s asked: {step.per_second}/s, {step.latency_ms}")
        return step

    def _cpu_seconds(self) -> dict[str, float]:
        used = dict.fromkeys(self._roles, 0.0)
        for process in self._gateway.processes():
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            used[role_of(process)] += times.user + times.system
        assert self._gateway.up is not None
        times = psutil.Process(self._gateway.up.pid).cpu_times()
        used["control plane"] = times.user + times.system
        for process in self._store.servers_here():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                used[FDBSERVER] += times.user + times.system
        return used


def _step_of(
    store: str,
    plan: LoadPlan,
    results: LoadResults,
    cpu_s: dict[str, float],
    client_s: float,
    busy_cores: tuple[float, float],  # of the whole machine, and of what else ran on it
) -> Step:
    captured = results.outcomes.get("201 captured", 0)
    latencies = sorted(results.latencies_ms)
    lasted_s = max(results.last_answer_s - plan.begin_s, plan.seconds)
    return Step(
        store=store,
        asked_per_second=plan.per_second,
        sent=results.sent,
        captured=captured,
        other_answers={outcome: count for outcome, count in results.outcomes.items() if outcome != "201 captured"},
        per_second=round(captured / lasted_s, 1),
        latency_ms={name: _quantile(latencies, share) for name, share in QUANTILES.items()},
        cpu_ms_per_payment={role: round(used * 1e3 / max(captured, 1), 3) for role, used in cpu_s.items()},
        client_cpu_ms_per_payment=round(client_s * 1e3 / max(results.sent, 1), 3),
        client_late_ms_max=results.late_ms_max,
        machine_busy_cores=round(busy_cores[0], 2),
        others_busy_cores=round(busy_cores[1], 2),
    )


def _quantile(values: list[float], share: float) -> float | None:
    return round(values[min(int(len(values) * share), len(values) - 1)], 1) if values else None


def role_of(process: psutil.Process) -> str:
    """Say which part of a gateway one of its processes is: one of ROLES."""
    try:
        arguments = process.cmdline()
    except psutil.Error:
        return "ray"
    if arguments and arguments[0].startswith("ray::WorkerActor"):
        return "worker"
    names = {"router": "router", "cells.door": "door", "acquirer_simulator": "acquirer"}
    return next((names[argument] for argument in arguments if argument in names), "ray")


def _machine_busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait)


def _as_map(step: Step) -> dict[str, Any]:
    return {name: getattr(step, name) for name in Step.__slots__}


def _table(steps: list[dict[str, Any]]) -> Table:
    table = Table(title="Durable payments over HTTP, open loop; latencies in ms, CPU in ms a payment")
    roles = [*ROLES, *([FDBSERVER] if any(FDBSERVER in step["cpu_ms_per_payment"] for step in steps) else [])]
    table.add_column("store")
    for heading in ("asked/s", "got/s", "other", *QUANTILES, *roles, "client", "all", "busy cores", "others' cores"):
        table.add_column(heading, justify="right")
    for step in steps:
        cpu = step["cpu_ms_per_payment"]
        table.add_row(
            step["store"],
            f"{step['asked_per_second']:.0f}",
            str(step["per_second"]),
            str(sum(step["other_answers"].values())),
            *(str(step["latency_ms"][name]) for name in QUANTILES),
            *(f"{cpu[role]:.2f}" if role in cpu else "-" for role in roles),
            f"{step['client_cpu_ms_per_payment']:.2f}",
            f"{sum(cpu.values()) + step['client_cpu_ms_per_payment']:.2f}",
            str(step["machine_busy_cores"]),
            str(step["others_busy_cores"]),
        )
    return table


if __name__ == "__main__":
    main()
