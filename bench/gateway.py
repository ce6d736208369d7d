"""Measures the whole gateway, HTTP to fsync, and finds its knee: `python -m bench.gateway [--rates 100,300]`.

Open loop (load.py): latencies count from a schedule fixed in advance. Every payment is two durable commits here and one
at the acquirer simulator. All of it, load generator included, runs on this machine; CPU is reported by process role.
"""

import argparse
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

from bench import machine
from bench.load import LoadPlan, LoadResults
from chaos.gateway import Gateway

LEAD_S: Final = 1.5
ROLES: Final = ("router", "door", "worker", "ray", "acquirer", "control plane")
QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
FIRST_RATE: Final = 200.0
RATE_MAX: Final = 10_000.0
NARROWINGS: Final = 3
SHARE_HELD: Final = 0.97
IDLE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Step:
    """What one rate came to. Times in ms, CPU in ms a payment, by role."""

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
    parser = argparse.ArgumentParser(
        prog="python -m bench.gateway",
        description="Measure the whole gateway with open-loop load: given rates, or a search for the highest it holds.",
    )
    parser.add_argument("--rates", help="payments a second, one step after the other: 100,300 (default: find the knee)")
    parser.add_argument("--seconds", type=float, default=15.0, help="length of each step")
    parser.add_argument("--partners", type=int, default=8)
    parser.add_argument("--cells", type=int, default=2)
    parser.add_argument("--p99-ms", type=float, default=250.0, help="a rate is held while its p99 is within this")
    parser.add_argument("--report", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    console = Console(width=170)
    with tempfile.TemporaryDirectory(prefix="bulkhead-bench-") as folder:
        report = _measure(Path(folder), options, console)
    console.print(_table(report["steps"]))
    for line in machine.lines(report["machine"]):
        console.print(line)
    console.print(f"Durability: {report['durability']}.")
    console.print(
        f"Highest rate held (p99 within {options.p99_ms:.0f} ms): {report['knee_per_second']}/s; "
        f"most captured in a second: {report['most_per_second']}."
    )
    console.print(
        f"Idle CPU in cores: {report['idle_cpu_cores']}. A worker takes {report['worker_memory_mib']:.0f} MiB; "
        f"a payment {report['disk_bytes_per_payment']:.0f} bytes of disk, write-ahead log included."
    )
    if options.report:
        options.report.write_text(json.dumps(report, indent=2))


def _measure(folder: Path, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    gateway = Gateway(folder, cells=options.cells)
    gateway.start()
    try:
        gateway.wait_ready()
        limits = {"rate_per_second": 10_000, "rate_burst": 10_000, "in_flight_max": 2_000}
        keys = {f"bench_{i}": gateway.create_partner(f"bench_{i}", **limits) for i in range(options.partners)}
        gateway.wait_ready()
        bench = _Bench(gateway, folder, keys, options, console)
        bench.step(FIRST_RATE / 4, report=False)  # connections, caches and files as they are in use
        idle = bench.idle()
        if options.rates:
            for rate in options.rates.split(","):
                bench.step(float(rate))
        else:
            bench.find_knee()
        disk = sum(file.stat().st_size for file in gateway.folder.root.glob("cells/*/partners/*"))
        memory = [process.memory_full_info().uss for process in gateway.processes() if _role(process) == "worker"]
    finally:
        if gateway.up is not None:
            gateway.interrupt()
    held = [step.asked_per_second for step in bench.steps if step.holds(options.p99_ms)]
    return {
        "steps": [_as_map(step) for step in bench.steps],
        "knee_per_second": max(held, default=None),
        "most_per_second": max((step.per_second for step in bench.steps), default=None),
        "idle_cpu_cores": idle,
        "worker_memory_mib": sum(memory) / len(memory) / 2**20,
        "disk_bytes_per_payment": disk / max(bench.paid, 1),
        "cells": options.cells,
        "partners": options.partners,
        "machine": machine.describe(folder),
        "durability": "SQLite WAL, synchronous=FULL, two commits a payment; the acquirer simulator fsyncs as well",
    }


class _Bench:
    """One gateway under one load after the other."""

    def __init__(
        self, gateway: Gateway, folder: Path, keys: dict[str, str], options: argparse.Namespace, console: Console
    ) -> None:
        self._gateway = gateway
        self._folder = folder
        self._keys = keys
        self._options = options
        self._console = console
        self.steps: list[Step] = []
        self.paid = 0

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

    def idle(self) -> dict[str, float]:
        """Give what each role uses without any load, in cores."""
        before = self._cpu_seconds()
        time.sleep(IDLE_S)
        after = self._cpu_seconds()
        return {role: round((after[role] - before[role]) / IDLE_S, 3) for role in ROLES}

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
        cpu_s = {role: after[role] - before[role] for role in ROLES}
        step = _step_of(plan, results, cpu_s, client_s, (busy / took_s, max(busy - ours_s, 0.0) / took_s))
        self.paid += step.captured
        if report:
            self.steps.append(step)
            self._console.print(f"{rate:.0f}/s asked: {step.per_second}/s, {step.latency_ms}")
        return step

    def _cpu_seconds(self) -> dict[str, float]:
        used = dict.fromkeys(ROLES, 0.0)
        for process in self._gateway.processes():
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            used[_role(process)] += times.user + times.system
        assert self._gateway.up is not None
        times = psutil.Process(self._gateway.up.pid).cpu_times()
        used["control plane"] = times.user + times.system
        return used


def _step_of(
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


def _role(process: psutil.Process) -> str:
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
    for heading in ("asked/s", "got/s", "other", *QUANTILES, *ROLES, "client", "all", "busy cores", "others' cores"):
        table.add_column(heading, justify="right")
    for step in steps:
        cpu = step["cpu_ms_per_payment"]
        table.add_row(
            f"{step['asked_per_second']:.0f}",
            str(step["per_second"]),
            str(sum(step["other_answers"].values())),
            *(str(step["latency_ms"][name]) for name in QUANTILES),
            *(f"{cpu[role]:.2f}" for role in ROLES),
            f"{step['client_cpu_ms_per_payment']:.2f}",
            f"{sum(cpu.values()) + step['client_cpu_ms_per_payment']:.2f}",
            str(step["machine_busy_cores"]),
            str(step["others_busy_cores"]),
        )
    return table


if __name__ == "__main__":
    main()
