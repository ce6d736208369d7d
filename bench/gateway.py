"""Measures the whole gateway, HTTP to fsync: `python -m bench.gateway [--rates 100,300] [--seconds 10]`.

Open loop: each payment has its moment in a schedule fixed in advance, and its latency counts from that moment, so a
slow gateway can't slow its own load down. Every payment is two durable commits. The load generator runs in a process of
its own; its CPU is reported apart.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import psutil
from rich.console import Console
from rich.table import Table

from chaos import history
from chaos.gateway import Gateway
from chaos.workload import PartnerLoad, Plan, plan_json

LEAD_S: Final = 3.0
ROLES: Final = ("router", "door", "worker", "ray", "acquirer", "control plane")


def main() -> None:
    """Run the rates one after the other and print the table."""
    parser = argparse.ArgumentParser(description="Measure the whole gateway with open-loop load.")
    parser.add_argument("--rates", default="50,100,200,400,600,800", help="payments a second, one step after the other")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each step")
    parser.add_argument("--partners", type=int, default=8)
    parser.add_argument("--cells", type=int, default=2)
    parser.add_argument("--report", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    console = Console(width=150)
    with tempfile.TemporaryDirectory(prefix="bulkhead-bench-") as folder:
        report = _measure(Path(folder), options, console)
    console.print(_table(report["steps"]))
    console.print(f"{report['machine']}; {report['durability']}. CPU is in ms a payment, by process role.")
    console.print(
        f"Idle: {report['idle_cpu_cores']}. Memory of a worker: {report['worker_memory_mib']:.0f} MiB. "
        f"Disk: {report['disk_bytes_per_payment']:.0f} bytes a payment, log included."
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
        idle = _idle(gateway)
        steps = [
            _step(gateway, folder, keys, float(rate), options.seconds, console) for rate in options.rates.split(",")
        ]
        payments = sum(step["acknowledged"] for step in steps)
        disk = sum(file.stat().st_size for file in gateway.folder.root.glob("cells/*/partners/*"))
        memory = [process.memory_full_info().uss for process in gateway.processes() if _role(process) == "worker"]
    finally:
        if gateway.up is not None:
            gateway.interrupt()
    return {
        "steps": steps,
        "idle_cpu_cores": idle,
        "worker_memory_mib": sum(memory) / len(memory) / 2**20,
        "disk_bytes_per_payment": disk / max(payments, 1),
        "machine": f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"Python {platform.python_version()}",
        "durability": "SQLite WAL, synchronous=FULL, two commits a payment; the simulator fsyncs too",
    }


def _step(
    gateway: Gateway, folder: Path, keys: dict[str, str], rate: float, seconds: float, console: Console
) -> dict[str, Any]:
    loads = tuple(PartnerLoad(partner, key, rate / len(keys)) for partner, key in keys.items())
    begin_s = time.monotonic() + LEAD_S
    plan = Plan(f"r{rate:.0f}", gateway.base_url, 1, begin_s, seconds, loads, mix="flood")
    plan_file, history_file = folder / f"{plan.run}.json", folder / f"{plan.run}.history"
    plan_file.write_bytes(plan_json(plan))
    before = _cpu_seconds(gateway)
    client = subprocess.Popen(
        [sys.executable, "-m", "chaos.workload", "--plan", str(plan_file), "--history", str(history_file)],
        stdout=subprocess.DEVNULL,
    )
    usage = os.wait4(client.pid, 0)[2]
    client.returncode = 0
    after = _cpu_seconds(gateway)
    calls = history.load(history_file)
    answered = [call for call in calls if call.acknowledged]
    last_s = max((call.answered_s or 0.0 for call in calls), default=begin_s)
    latencies = sorted(call.latency_ms for call in answered if call.latency_ms is not None)
    step = {
        "asked_per_second": rate,
        "sent": len(calls),
        "acknowledged": len(answered),
        "other_answers": len(calls) - len(answered),
        "per_second": round(len(answered) / max(last_s - begin_s, 0.001), 1),
        "latency_ms": {name: _quantile(latencies, share) for name, share in QUANTILES.items()},
        "cpu_ms_per_payment": {
            role: round((after[role] - before[role]) * 1e3 / max(len(answered), 1), 3) for role in ROLES
        },
        "client_cpu_ms_per_payment": round((usage.ru_utime + usage.ru_stime) * 1e3 / max(len(calls), 1), 3),
    }
    console.print(f"{rate:.0f}/s asked: {step['per_second']}/s, {step['latency_ms']}")
    return step


QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}


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


def _cpu_seconds(gateway: Gateway) -> dict[str, float]:
    used = dict.fromkeys(ROLES, 0.0)
    for process in gateway.processes():
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        used[_role(process)] += times.user + times.system
    assert gateway.up is not None
    times = psutil.Process(gateway.up.pid).cpu_times()
    used["control plane"] = times.user + times.system
    return used


def _idle(gateway: Gateway, seconds: float = 10.0) -> dict[str, float]:
    """Give what each role uses without any load, in cores."""
    before = _cpu_seconds(gateway)
    time.sleep(seconds)
    after = _cpu_seconds(gateway)
    return {role: round((after[role] - before[role]) / seconds, 3) for role in ROLES}


def _table(steps: list[dict[str, Any]]) -> Table:
    table = Table(title="Durable payments over HTTP, open loop")
    for heading in ("asked/s", "got/s", "other", *QUANTILES, *ROLES, "all", "client"):
        table.add_column(heading, justify="right")
    for step in steps:
        cpu = step["cpu_ms_per_payment"]
        table.add_row(
            f"{step['asked_per_second']:.0f}",
            str(step["per_second"]),
            str(step["other_answers"]),
            *(str(step["latency_ms"][name]) for name in QUANTILES),
            *(str(cpu[role]) for role in ROLES),
            f"{sum(cpu.values()):.2f}",
            str(step["client_cpu_ms_per_payment"]),
        )
    return table


if __name__ == "__main__":
    main()
