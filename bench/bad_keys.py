"""Measures what a bad API key costs, beside what a payment costs, on a whole gateway: `python -m bench.bad_keys`.

Open loop (load.py), one run: nothing, payments, as many keys that are none, and five times as many, past the bound of
their address. CPU of the router is taken a payment and a refusal, less what it uses idle; that of the cells' processes
by second, beside idle.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import psutil
from rich.console import Console

from bench import machine
from bench.gateway import role_of
from bench.load import LoadPlan, LoadResults
from chaos.command_line import Parser
from chaos.gateway import Gateway
from chaos.installation import GatewayError
from control_plane.errors import ControlPlaneError
from router.directory import KEY_SECRET_CHARACTERS

LEAD_S: Final = 1.5
CELLS: Final = 2
PARTNERS: Final = 4
OF_CELLS: Final = ("door", "worker", "ray")
FLOOD_FACTOR: Final = 5
NOBODY: Final = "nobody"


@dataclass(frozen=True, slots=True)
class Phase:
    """What one phase came to. CPU in seconds: of the router, of the cells' processes; `idle`: nothing was sent."""

    name: str
    seconds: float
    answers: dict[str, int]
    router_cpu_s: float
    cells_cpu_s: float


@dataclass(frozen=True, slots=True)
class Costs:
    """The figures. Milliseconds of the router's CPU, and cores of the cells' processes."""

    payment_ms: float
    refusal_ms: float
    ratio: float
    flood_refusal_ms: float
    flood_ratio: float
    cells_idle_cores: float
    cells_flooded_cores: float


def costs_of(idle: Phase, paying: Phase, refused: Phase, flooded: Phase) -> Costs:
    """Work the figures out."""
    idle_router = idle.router_cpu_s / idle.seconds

    def each_ms(phase: Phase) -> float:
        return (phase.router_cpu_s - idle_router * phase.seconds) * 1_000 / max(sum(phase.answers.values()), 1)

    payment_ms, refusal_ms, flood_ms = each_ms(paying), each_ms(refused), each_ms(flooded)
    return Costs(
        round(payment_ms, 3),
        round(refusal_ms, 3),
        round(refusal_ms / payment_ms, 2),
        round(flood_ms, 3),
        round(flood_ms / payment_ms, 2),
        round(idle.cells_cpu_s / idle.seconds, 3),
        round(flooded.cells_cpu_s / flooded.seconds, 3),
    )


def main() -> None:
    """Measure, and print the figures."""
    options = _parse()
    console = Console(width=180)
    with tempfile.TemporaryDirectory(prefix="bulkhead-bench-") as folder:
        gateway = Gateway(Path(folder), cells=CELLS)
        try:
            phases = _measure(gateway, Path(folder), options)
        except (GatewayError, ControlPlaneError) as error:
            sys.exit(f"it could not be measured: {error}")
        finally:
            gateway.kill_everything()
        described = machine.describe(Path(folder))
    costs = costs_of(*phases)
    for phase in phases:
        console.print(f"{phase.name}: {phase.seconds:.1f} s, answers {phase.answers}", soft_wrap=True)
    console.print(
        f"Router CPU: {costs.payment_ms} ms a payment, {costs.refusal_ms} ms a bad key at the same rate "
        f"({costs.ratio:.0%}), {costs.flood_refusal_ms} ms at {FLOOD_FACTOR} times as many ({costs.flood_ratio:.0%}). "
        f"Cells' processes: {costs.cells_idle_cores} cores idle, {costs.cells_flooded_cores} under the flood.",
        soft_wrap=True,
    )
    for line in machine.lines(described):
        console.print(line)
    if options.report:
        report = {"costs": asdict(costs), "phases": [asdict(phase) for phase in phases], "machine": described}
        options.report.write_text(json.dumps(report, indent=2))


def _parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m bench.bad_keys", description="Measure what a bad key costs, beside a payment.")
    parser.add_argument("--per-second", type=float, default=300.0, help="payments, and then bad keys, a second")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each phase")
    parser.add_argument("--report", type=Path, help="write the figures as JSON")
    return parser.parse_args(arguments)


def _measure(gateway: Gateway, folder: Path, options: argparse.Namespace) -> tuple[Phase, Phase, Phase, Phase]:
    gateway.start()
    gateway.wait_ready()
    limits = {"rate_per_second": 10_000, "rate_burst": 10_000, "in_flight_max": 2_000}
    names = [f"bench_{number}" for number in range(PARTNERS)]
    good = {name: gateway.create_partner(name, **limits) for name in names}
    gateway.wait_ready()
    gateway.wait_spares()
    bad = {NOBODY: f"sk_test_{NOBODY}_{'x' * KEY_SECRET_CHARACTERS}"}
    rate = options.per_second
    _phase(gateway, folder, options, "warm", good, rate)
    idle = _phase(gateway, folder, options, "idle", {}, 0)
    paying = _phase(gateway, folder, options, "payments", good, rate)
    refused = _phase(gateway, folder, options, "bad keys", bad, rate)
    flooded = _phase(gateway, folder, options, "flood of bad keys", bad, rate * FLOOD_FACTOR)
    return idle, paying, refused, flooded


def _phase(
    gateway: Gateway, folder: Path, options: argparse.Namespace, name: str, keys: dict[str, str], per_second: float
) -> Phase:
    before, began = _cpu_seconds(gateway), time.monotonic()
    answers: dict[str, int] = {}
    if keys:
        answers = _send(gateway, folder, name.replace(" ", "-"), keys, per_second, options.seconds)
    else:
        time.sleep(options.seconds)
    after, ended = _cpu_seconds(gateway), time.monotonic()
    router, cells = (after[part] - before[part] for part in ("router", "cells"))
    return Phase(name, ended - began, answers, router, cells)


def _send(
    gateway: Gateway, folder: Path, run: str, keys: dict[str, str], per_second: float, seconds: float
) -> dict[str, int]:
    address = urlsplit(gateway.base_url)
    plan = LoadPlan(
        host=str(address.hostname),
        port=int(address.port or 80),
        keys=keys,
        per_second=per_second,
        begin_s=time.monotonic() + LEAD_S,
        seconds=seconds,
        run=run,
    )
    plan_file, results_file = folder / f"{run}.json", folder / f"{run}.results"
    plan_file.write_bytes(plan.encode())
    subprocess.run(
        [sys.executable, "-m", "bench.load", "--plan", str(plan_file), "--results", str(results_file)], check=True
    )
    return LoadResults.read(results_file.read_bytes()).outcomes


def _cpu_seconds(gateway: Gateway) -> dict[str, float]:
    used = {"router": 0.0, "cells": 0.0}
    for process in gateway.processes():
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        role = role_of(process)
        part = "cells" if role in OF_CELLS else role
        if part in used:
            used[part] += times.user + times.system
    return used


if __name__ == "__main__":
    main()
