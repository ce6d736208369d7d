"""`python -m chaos.rebalance`: a cell is added, partners rebalanced, a cell drained and removed, under load; judged.

A gateway of its own below ./.rebalance, pooled partners, an open-loop load of clients that ask once. With --kills the
control plane is killed so often on the way. Exit codes: 0 as promised, 1 not so, 2 it could not be run.
"""

import asyncio
import json
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cells.api import limits as api_limits
from chaos import machine
from chaos.checker import error_of, finding_json, latency
from chaos.command_line import Parser, add_store_options, store_chosen
from chaos.experiment import bring_to_rest, judge_at_rest, plan_for
from chaos.gateway import Gateway
from chaos.history import Call
from chaos.installation import GatewayError
from chaos.load_process import LoadProcess
from chaos.offenders import name_of
from chaos.screen import make_console
from chaos.store_choice import StoreChoice
from control_plane import client
from control_plane.errors import ControlPlaneError, RefusedError
from router.directory import Cell, rendezvous

ROOT: Final = Path(".rebalance")
START_MS: Final = 300_000
STEP_MS: Final = 600_000
LOOK_INTERVAL_MS: Final = 2_000
CALM_S: Final = 10
PAUSE_GOAL_MS: Final = 250
MOVES_TOLERANCE: Final = 0.1


@dataclass(frozen=True, slots=True)
class Options:
    """What is run."""

    cells: int
    partners: int
    requests_per_second: float
    kills: int
    seed: int
    store: StoreChoice


class _Killer:
    """Kills the control plane again and again, at moments that its dice choose, and starts it anew."""

    def __init__(self, gateway: Gateway, kills: int, seed: int) -> None:
        self._gateway = gateway
        self._left = kills
        self._dice = random.Random(seed)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="killer")
        self.lock = threading.Lock()
        self.killed = 0

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for it."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while self._left and not self._stopped.wait(self._dice.uniform(2, 6)):
            self._gateway.kill_control_plane()
            self.killed += 1
            self._left -= 1
            self._gateway.start()
            self._gateway.wait_ready(START_MS)


def import_pooled(gateway: Gateway, names: list[str], root: Path) -> dict[str, str]:
    """Onboard pooled partners from a file; give their keys."""
    file, keys = root / "partners.csv", root / "keys.jsonl"
    rows = [f"{name},pooled,{api_limits.PARTNER_RATE_PER_SECOND_DEFAULT * 4}" for name in names]
    file.write_text("\n".join(["id,isolation,rate_per_second", *rows]) + "\n")
    done = gateway.run("partner", "import", file, "--keys-to", keys)
    if done.returncode:
        raise GatewayError(f"the partners could not be imported: {done.stderr or done.stdout}")
    found = [json.loads(line) for line in keys.read_text().splitlines()]
    return {row["partner"]: row["api_key"] for row in found}


class _Run:
    """One run on a gateway that is up."""

    def __init__(self, gateway: Gateway, options: Options, console: Any) -> None:
        self._gateway = gateway
        self._options = options
        self._console = console
        self.steps: list[dict[str, Any]] = []

    def change(self, path: str, body: dict[str, Any] | None = None) -> None:
        """Have the admin API change something, as `bulkhead` does, until it says so: the control plane may be dead now.

        An answer that was lost is found out by asking again: what was taken before is refused, and nothing done twice.
        Not by `bulkhead` itself, whose start takes a second of the CPU that the gateway needs.
        """
        until = time.monotonic() + STEP_MS / 1_000
        is_again = False
        while True:
            try:
                client.ask(self._gateway.folder, "POST", path, body)
            except RefusedError as error:
                if not is_again:
                    raise GatewayError(f"{path}: {error.what}") from error
                return
            except ControlPlaneError as error:
                if time.monotonic() > until:
                    raise GatewayError(f"{path}: {error.what}") from error
            else:
                return
            is_again = True
            time.sleep(0.5)

    def ask(self, path: str) -> dict[str, Any]:
        """Ask the admin API until it answers."""
        until = time.monotonic() + STEP_MS / 1_000
        while True:
            try:
                return client.ask(self._gateway.folder, "GET", path)
            except ControlPlaneError as error:
                if time.monotonic() > until:
                    raise GatewayError(f"{path}: {error.what}") from error
            time.sleep(0.5)

    def cells(self) -> dict[str, dict[str, Any]]:
        """Give the cells by name."""
        return {cell["name"]: cell for cell in self.ask("/cells")["cells"]}

    def homes(self) -> dict[str, str]:
        """Give each partner's cell, as the registry says."""
        return {row["id"]: row["cell"] for row in self.ask("/partners")["partners"]}

    def rebalance(self, by: str, ideal: int, cells: int) -> None:
        """Rebalance and wait for its end. `ideal`: how many partners the hash sends elsewhere; 1/`cells` on average."""
        before, began = self.homes(), time.monotonic()
        self.change("/rebalance/apply", {"by": by})
        _wait(self._has_ended, "the rebalancing has ended")
        after = self.homes()
        moved = sum(after[name] != home for name, home in before.items())
        seconds = time.monotonic() - began
        average = round(len(before) / cells, 1)
        self.steps.append(
            {"step": f"rebalance by {by}", "moves": moved, "ideal": ideal, f"1/{cells}": average, "seconds": seconds}
        )
        self._console.print(
            f"  {moved} moves in {seconds:.1f} s; ideal by the hash: {ideal}; 1/{cells} of {len(before)}: {average}"
        )

    def _has_ended(self) -> bool:
        found = self.ask("/rebalance")
        run = found.get("run") or found
        if run.get("state") in {"stopped", "failed"}:
            raise GatewayError(f"the rebalancing stopped: {json.dumps(run)[:600]}")
        return run.get("state") in {"done", "ended", "finished", None}

    def go(self) -> None:
        """Add a cell, rebalance, drain one, remove it."""
        names = list(self.cells())
        self._console.print(f"adding a cell to {len(names)}")
        new = f"cell-{len(names)}"
        self.change("/cells", {"name": new})
        _wait(lambda: self.cells().get(new, {}).get("state") == "active", f"{new} is active")
        told = [Cell(name=name, weight=1.0, host="h", port=1) for name in [*names, new]]
        ideal = sum(rendezvous(name, told) == new for name in self.homes())
        self.rebalance("hash", ideal, len(told))
        self._console.print(f"draining {names[0]}")
        self.change(f"/cells/{names[0]}/drain", {})
        self.rebalance("drain", sum(home == names[0] for home in self.homes().values()), len(told))
        self.change(f"/cells/{names[0]}/remove", {})
        _wait(lambda: names[0] not in self._alive(), f"{names[0]} is removed")

    def _alive(self) -> set[str]:
        return {name for name, cell in self.cells().items() if cell["state"] != "removed"}

    def pauses_ms(self, partners: list[str]) -> tuple[list[int], int]:
        """Give how long partners' requests waited for moves, from the audit log, and of how many that is not known."""
        changes = [change for partner in partners for change in _shown(self._gateway, partner)["changes"]]
        moved = [change["detail"]["pause_ms"] for change in changes if change["what"] == "partner_moved"]
        stayed = [change["detail"]["pause_ms"] for change in changes if change["what"] == "partner_not_moved"]
        told = moved + [pause_ms for pause_ms in stayed if pause_ms != 0]
        return sorted(int(pause_ms) for pause_ms in told if pause_ms is not None), told.count(None)


def _wait(is_so: Callable[[], bool], what: str) -> None:
    """Look every two seconds until it is so: looks cost CPU that the gateway needs."""
    until = time.monotonic() + STEP_MS / 1_000
    while not is_so():
        if time.monotonic() > until:
            raise GatewayError(f"waited {STEP_MS} ms in vain until {what}")
        time.sleep(LOOK_INTERVAL_MS / 1_000)


def _shown(gateway: Gateway, partner: str) -> dict[str, Any]:
    return client.ask(gateway.folder, "GET", f"/partners/{partner}")


async def run(options: Options, root: Path, console: Any) -> bool:
    """Run it; say whether everything was as promised."""
    gateway = Gateway(root, cells=options.cells, store=options.store)
    try:
        console.print(f"starting {options.cells} cells")
        await asyncio.to_thread(gateway.start)
        await asyncio.to_thread(gateway.wait_ready, START_MS)
        names = [f"shop_{number:03}" for number in range(options.partners)]
        console.print(f"onboarding {len(names)} pooled partners")
        keys = await asyncio.to_thread(import_pooled, gateway, names, root)
        await asyncio.to_thread(gateway.wait_ready, START_MS)
        plan = plan_for(
            gateway,
            keys,
            run="load",
            seed=options.seed,
            requests_per_second=options.requests_per_second,
            seconds=STEP_MS / 1_000,
            begin_s=time.monotonic() + 5,
        )
        load = LoadProcess(root, plan)
        load.start()
        await asyncio.sleep(5 + CALM_S)
        moving = _Run(gateway, options, console)
        killer = _Killer(gateway, options.kills, options.seed)
        began_s = time.monotonic()
        killer.start()
        try:
            await asyncio.to_thread(moving.go)
        finally:
            await asyncio.to_thread(killer.stop)
        ended_s = time.monotonic()
        await asyncio.sleep(3)
        calls = await asyncio.to_thread(load.finish)
        return await _judge(gateway, moving, keys, calls, (began_s, ended_s), killer.killed, console)
    finally:
        await asyncio.to_thread(gateway.kill_everything)


async def _judge(
    gateway: Gateway,
    moving: _Run,
    keys: dict[str, str],
    calls: list[Call],
    span_s: tuple[float, float],
    killed: int,
    console: Any,
) -> bool:
    errors = [f"{call.partner}: {name_of(call)}: {error}" for call in calls if (error := error_of(call))]
    pauses, unknown = await asyncio.to_thread(moving.pauses_ms, list(keys))
    calls += await bring_to_rest(gateway, keys, calls)
    judgement, audit = await judge_at_rest(gateway, keys, calls)
    p99 = pauses[min(len(pauses) * 99 // 100, len(pauses) - 1)] if pauses else None
    is_near = all(
        abs(step["moves"] - step["ideal"]) <= MOVES_TOLERANCE * max(step["ideal"], 1) for step in moving.steps
    )
    calm = latency([call for call in calls if call.due_s < span_s[0]])
    during = latency([call for call in calls if span_s[0] <= call.due_s < span_s[1]])
    facts = {
        "calls": len(calls),
        "requests_per_second": round(
            len([c for c in calls if span_s[0] <= c.due_s < span_s[1]]) / (span_s[1] - span_s[0]), 1
        ),
        "errors": len(errors),
        "first_errors": errors[:10],
        "steps": moving.steps,
        "pauses_ms": {
            "moves": len(pauses),
            "unknown": unknown,
            "median": pauses[len(pauses) // 2] if pauses else None,
            "p99": p99,
        },
        "tail_ms": {"calm": calm.tail_ms, "during": during.tail_ms},
        "control_plane_killed": killed,
        "judgement": judgement.verdict,
        "findings": [finding_json(finding, calls[0].due_s) for finding in judgement.findings[:10]],
        "audit_ok": audit["ok"],
        "seconds": round(span_s[1] - span_s[0], 1),
        **machine.describe(),
    }
    console.print_json(json.dumps(facts, default=str))
    return bool(
        not errors
        and is_near
        and p99 is not None
        and p99 <= PAUSE_GOAL_MS
        and judgement.verdict == "right"
        and audit["ok"]
    )


def main() -> None:
    """Run it."""
    parser = Parser(prog="python -m chaos.rebalance", description="Rebalance a gateway under load, and judge it.")
    parser.add_argument("--cells", type=int, default=8)
    parser.add_argument("--partners", type=int, default=200)
    parser.add_argument("--per-second", type=float, default=300, help="requests a second, over all partners")
    parser.add_argument("--kills", type=int, default=0, help="how often the control plane is killed on the way")
    parser.add_argument("--seed", type=int, default=1)
    add_store_options(parser)
    arguments = parser.parse_args()
    options = Options(
        arguments.cells,
        arguments.partners,
        arguments.per_second,
        arguments.kills,
        arguments.seed,
        store_chosen(parser, arguments),
    )
    console = make_console()
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir()
    try:
        is_right = asyncio.run(run(options, ROOT.absolute(), console))
    except GatewayError as error:
        console.print(f"it could not be run: {error}")
        sys.exit(2)
    console.print("as promised" if is_right else "NOT as promised")
    sys.exit(0 if is_right else 1)


if __name__ == "__main__":
    main()
