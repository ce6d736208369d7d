"""`python -m chaos.soak`: a gateway under load whose processes are killed and stopped one after the other; all judged.

Starts a whole gateway below ./.soak, strikes only that one's processes, and leaves nothing running. The seed, printed
first, repeats the sequence of faults. Exit codes: 0 every promise was kept, 1 one was broken, 2 it could not be run,
130 interrupted.
"""

import asyncio
import contextlib
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

import orjson
import psutil
import uvloop
from rich.console import Console

from actors.errors import StoreError
from chaos import faults, limits, machine, victims
from chaos.checker import finding_json
from chaos.command_line import Parser, add_store_options, store_chosen
from chaos.experiment import bring_to_rest, judge_at_rest, onboard, plan_for
from chaos.faults import Blow, Blows, Fault, Target
from chaos.fdb_server import FdbServer, FdbServerError, missing_programs
from chaos.gateway import Gateway
from chaos.history import Call, save
from chaos.impact import Happened, impact_json, impacts_of, is_disturbed, line_of, verdict_of
from chaos.installation import GatewayError, is_alive
from chaos.interruption import interruptible
from chaos.screen import make_console
from chaos.store_choice import StoreChoice
from chaos.workload import BookError, Load, client_session, means_again, send
from control_plane import data_folder
from control_plane.errors import ControlPlaneError
from router.directory import Cell, rendezvous

ROOT: Final = Path(".soak")
_SIGNALS: Final = {Blow.KILL: signal.SIGKILL, Blow.STOP: signal.SIGSTOP}
_FAULTS_SHOWN: Final = 10


class SoakError(Exception):
    """The soak could not be run."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the soak is told. `only`: these kinds of faults; empty: all of them.

    Without a cluster file, FoundationDB is a server that the soak starts, and that is struck as well.
    """

    minutes: float
    seed: int
    cells: int
    partners: int  # of each cell
    patience: float
    only: tuple[str, ...]
    store: StoreChoice
    root: Path
    report_file: Path | None

    @property
    def has_own_server(self) -> bool:
        """Whether the soak starts a FoundationDB server."""
        return self.store.kind == "fdb" and self.store.cluster_file is None

    @property
    def command(self) -> str:
        """The command that repeats this run."""
        words = ["python -m chaos.soak", f"--minutes {self.minutes:g}", f"--seed {self.seed}"]
        words += [f"--cells {self.cells}", f"--partners {self.partners}", f"--patience {self.patience:g}"]
        return " ".join([*words, *self.store.arguments, *(f"--only '{name}'" for name in self.only)])


def homes(cells: int, partners: int) -> dict[str, list[str]]:
    """Name so many partners for each cell: the gateway places a partner by its name."""
    known = [Cell(name=f"cell-{number}", host="-", port=1) for number in range(cells)]
    found: dict[str, list[str]] = {cell.name: [] for cell in known}
    number = 0
    while any(len(names) < partners for names in found.values()):
        name = f"shop_{number}"
        cell = rendezvous(name, known)
        assert cell is not None
        if len(found[cell]) < partners:
            found[cell].append(name)
        number += 1
    return found


class Soak:
    """One run."""

    def __init__(self, options: Options, console: Console) -> None:
        self._options = options
        self._console = console
        root = options.root.absolute()
        self._server = FdbServer(root / "fdb") if options.has_own_server else None
        self._store = options.store if self._server is None else StoreChoice("fdb", self._server.cluster_file)
        self._gateway = Gateway(root, cells=options.cells, store=self._store)
        self._homes = homes(options.cells, options.partners)
        self._cells = {partner: cell for cell, names in self._homes.items() for partner in names}
        self._keys: dict[str, str] = {}
        self._replays: list[Call] = []
        self._happened: list[Happened] = []
        self._census: Counter[str] = Counter()
        self._load: Load | None = None

    async def run(self) -> int:
        """Run it all; give the exit code. Raises SoakError, GatewayError, FdbServerError and others."""
        options, gateway, server = self._options, self._gateway, self._server
        self._say(f"soak with seed {options.seed}: {options.cells} cells of {options.partners} partners each")
        await asyncio.to_thread(make_room, gateway, server)
        leftovers: list[str] = []
        try:
            if server is not None:
                await asyncio.to_thread(server.start)
            durability = await self._store.durability()
            self._say(durability)
            await self._start()
            before = await asyncio.to_thread(machine.read, [])
            begin_s, calls = await self._soak()
            after = await asyncio.to_thread(machine.read, [])
            self._say("bringing everything to rest: what was not answered is asked for again, and some of the rest")
            calls += self._replays
            calls += await bring_to_rest(gateway, self._keys, [call for call in calls if means_again(call)])
            calls += await self._replay_at_end(calls)
            self._say("reading books, the acquirer's record and the audit")
            money, audit = await judge_at_rest(gateway, self._keys, calls)
        finally:
            leftovers = await asyncio.to_thread(stop, gateway, server)
        first = [call for call in calls if not call.repeat]
        replays = [replace(call, repeat=0) for call in self._replays]
        impacts, calm = impacts_of(self._happened, [*first, *replays], self._cells, options.patience)
        broken = verdict_of(impacts, calm, money, leftovers)
        if options.report_file is not None:
            whole = {
                "kept": not broken,
                "broken": broken,
                "seed": options.seed,
                "command": options.command,
                "store": self._store.kind,
                "durability": durability,
                "options": {
                    **asdict(options),
                    "store": self._store.kind,
                    "root": str(options.root),
                    "report_file": None,
                },
                "machine": machine.describe(),
                "busy_cores": round((after.all_s - before.all_s) / (after.at_s - before.at_s), 2),
                "calls": len(calls),
                "answers": dict(Counter(str(call.outcome or "no answer") for call in first).most_common()),
                "audit": {name: audit[name] for name in ("ok", "payments", "operations", "in_doubt")},
                "money": {"verdict": money.verdict, "findings": [finding_json(one, begin_s) for one in money.findings]},
                "faults": [impact_json(impact, begin_s) for impact in impacts],
            }
            options.report_file.write_bytes(orjson.dumps(whole, option=orjson.OPT_INDENT_2))
            save(calls, options.report_file.with_suffix(".history.jsonl"))
            self._say(f"report: {options.report_file}, and its history beside it")
        self._say(
            f"{len(impacts)} faults, {len(calls)} calls; audit: {audit['payments']} payments, "
            f"{audit['operations']} operations, {'all books agree' if audit['ok'] else 'BOOKS DISAGREE'}"
        )
        self._say("verdict: every promise was kept" if not broken else f"verdict: {len(broken)} broken promises")
        for what in broken[:_FAULTS_SHOWN]:
            self._say(f"  {what}")
        self._say(f"again: {options.command}")
        return 1 if broken else 0

    async def _start(self) -> None:
        gateway = self._gateway
        await asyncio.to_thread(gateway.start)
        await asyncio.to_thread(gateway.wait_ready)
        self._keys = await onboard(gateway, sorted(self._cells))
        await asyncio.to_thread(gateway.wait_spares)
        placed = {row["partner"]: row["cell"] for row in (await self._status())["partners"]}
        if placed != self._cells:
            raise SoakError("the gateway placed the partners otherwise than its hash says")
        self._census = await asyncio.to_thread(gateway.census)

    async def _soak(self) -> tuple[float, list[Call]]:
        """Run the load, and the faults beside it; give when it began and what its clients saw."""
        options = self._options
        seconds = options.minutes * 60
        plan = plan_for(
            self._gateway,
            self._keys,
            run="soak",
            seed=options.seed,
            requests_per_second=limits.SOAK_REQUESTS_PER_SECOND * len(self._cells),
            seconds=seconds,
        )
        self._load = Load(plan)
        end_s = plan.begin_s + seconds
        kinds = tuple(faults.kind_named(name) for name in options.only)
        kinds = kinds or (faults.KINDS_OF_ANY_STORE if self._server is None else faults.KINDS)
        try:
            async with asyncio.TaskGroup() as tasks:
                loading = tasks.create_task(self._load.run())
                replaying = tasks.create_task(self._replay())
                await asyncio.sleep(limits.SOAK_CALM_FIRST_MS / 1_000)
                for fault in faults.plan(options.seed, self._homes, kinds):
                    room_s = end_s - time.monotonic() - (limits.SOAK_FAULT_ROOM_MS + fault.pause_ms) / 1_000
                    if room_s <= 0:
                        break
                    await asyncio.sleep(fault.pause_ms / 1_000)
                    happened = await self._strike(fault)
                    await self._wait_calm(happened)
                    # Of all calls this would take a second in the end, in which this client hears nothing.
                    met = [*_under_way_since(self._load.calls, happened), *_under_way_since(self._replays, happened)]
                    told, _ = impacts_of(self._happened, met, self._cells, options.patience)
                    impact = told[-1]
                    self._say(line_of(impact, plan.begin_s))
                    for what in impact.broken():
                        self._say(f"           BROKEN {what}")
                    if happened.calm_s is None:
                        break
                calls = await loading
                replaying.cancel()
        except ExceptionGroup as group:
            raise group.exceptions[0] from group
        return plan.begin_s, list(calls)

    # Faults

    async def _strike(self, fault: Fault) -> Happened:
        """Carry out a fault; what was stopped goes on before this ends."""
        found = await asyncio.to_thread(self._find_victims, fault)
        happened = Happened(fault, time.monotonic())
        happened.pids = {str(target): process.pid for target, (process, *_) in found.items()}
        self._happened.append(happened)
        async with asyncio.TaskGroup() as tasks:
            for blow in fault.blows:
                tasks.create_task(self._deal(blow, found[blow.target], happened))
        return happened

    async def _deal(self, blow: Blows, struck: Sequence[psutil.Process], happened: Happened) -> None:
        await asyncio.sleep(blow.after_ms / 1_000)
        if blow.target is Target.CONTROL_PLANE and blow.blow is Blow.KILL:
            await asyncio.to_thread(self._gateway.kill_control_plane)
            await asyncio.sleep(limits.CONTROL_PLANE_AWAY_MS / 1_000)
            await asyncio.to_thread(self._gateway.start)
            return
        if blow.target is Target.FDB_SERVER and blow.blow is Blow.KILL:
            assert self._server is not None
            await asyncio.to_thread(self._server.kill)
            await asyncio.sleep(limits.FDB_SERVER_AWAY_MS / 1_000)
            await asyncio.to_thread(self._server.start, wait=False)  # how soon it serves is the gateway's to find out
            return
        for process in struck:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(_SIGNALS[blow.blow])
        if blow.blow is Blow.KILL:
            return
        await asyncio.sleep(blow.stop_ms / 1_000)
        for process in struck:
            if is_alive(process):
                if happened.fault.kind.replaces:
                    happened.not_replaced.append(f"{blow.target} {process.pid}")
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGCONT)

    def _find_victims(self, fault: Fault) -> dict[Target, list[psutil.Process]]:
        """Find the processes to be struck, by their pids as `bulkhead status` tells them."""
        pid_of_server = None if self._server is None else self._server.pid
        status = self._gateway.status()
        return {
            target: victims.find(status, target, cell=fault.cell, partner=fault.partner, pid_of_server=pid_of_server)
            for target in {blow.target for blow in fault.blows}
        }

    async def _wait_calm(self, happened: Happened) -> None:
        """Wait until everything is as it was, for a while, and note when; `calm_s` stays None where it never is."""
        until_s = time.monotonic() + limits.SOAK_RECOVERY_MS_MAX / 1_000
        well_s: float | None = None
        while time.monotonic() < until_s:
            now = time.monotonic()
            if not await self._is_well() or self._was_disturbed(now - limits.SOAK_QUIET_MS / 1_000):
                well_s = None
            elif well_s is None:
                well_s = now
            elif now - well_s >= limits.SOAK_QUIET_MS / 1_000:
                census = await asyncio.to_thread(self._gateway.census)
                happened.processes = _difference(self._census, census)
                if not happened.processes:
                    happened.calm_s = time.monotonic()
                    return
            await asyncio.sleep(limits.SOAK_LOOK_MS / 1_000)

    async def _is_well(self) -> bool:
        """Say whether all processes are there and ready, all partners served, and each cell has its spare."""
        try:
            status = await self._status()
        except ControlPlaneError:
            return False
        return (
            bool(status["ready"])
            and all(cell["answers"] and cell["spares"] for cell in status["cells"])
            and all(row["state"] == "active" and row["breaker"] == "closed" for row in status["partners"])
        )

    def _was_disturbed(self, since_s: float) -> bool:
        """Say whether a call of late had no answer, a wrong one or a slow one, or still waits for its own."""
        assert self._load is not None
        patience = self._options.patience
        for call in reversed(self._load.calls):
            if call.sent_s < since_s - limits.CLIENT_DEADLINE_MS / 1_000:
                return False
            if call.ended_s is None:
                if call.usual and time.monotonic() - call.sent_s > limits.DISTURBED_MS * patience / 1_000:
                    return True
            elif call.ended_s >= since_s and is_disturbed(call, patience):
                return True
        return False

    # Replays

    async def _replay(self) -> None:
        """Send what was acknowledged again now and then, under its key, whatever is struck meanwhile."""
        assert self._load is not None
        dice = random.Random(self._options.seed)
        async with client_session() as session, asyncio.TaskGroup() as tasks:
            while True:
                await asyncio.sleep(1 / limits.REPLAYS_PER_SECOND)
                old_s = time.monotonic() - limits.REPLAY_AGE_MS_MIN / 1_000
                calls = self._load.calls
                for _ in range(limits.REPEATS_AT_ONCE_MAX if calls else 0):
                    first = dice.choice(calls)
                    if first.key is not None and first.acknowledged and (first.answered_s or old_s) < old_s:
                        again = _again(first)
                        self._replays.append(again)
                        base_url, key = self._gateway.base_url, self._keys[first.partner]
                        tasks.create_task(send(session, base_url, key, again))
                        break

    async def _replay_at_end(self, calls: Sequence[Call]) -> list[Call]:
        """Send a part of all that was acknowledged once more."""
        acknowledged = [call for call in calls if call.key is not None and call.acknowledged and not call.repeat]
        dice = random.Random(self._options.seed)
        chosen = dice.sample(acknowledged, min(len(acknowledged), limits.REPLAYS_AT_END_MAX))
        replays = [_again(call) for call in chosen]
        async with client_session() as session:
            for again in replays:
                again.due_s = time.monotonic()
                await send(session, self._gateway.base_url, self._keys[again.partner], again)
        return replays

    async def _status(self) -> dict[str, Any]:
        return await asyncio.to_thread(self._gateway.status)

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)


def _again(call: Call) -> Call:
    """Make the same request to be sent again. What it is to get is what it got."""
    outcome = call.outcome
    assert outcome is not None
    again = call.anew(time.monotonic(), call.repeat + 1)
    again.expected, again.usual = (outcome,), True
    return again


def _under_way_since(calls: Sequence[Call], happened: Happened) -> Iterator[Call]:
    """Give those that may have been under way when a fault struck, or later, from the newest on."""
    since_s = happened.struck_s - 2 * limits.CLIENT_DEADLINE_MS / 1_000
    return takewhile(lambda call: call.due_s >= since_s, reversed(calls))


def _difference(wanted: Counter[str], found: Counter[str]) -> str:
    """Say which processes are too many or missing."""
    more, less = found - wanted, wanted - found
    told = [f"{count} {name} too many" for name, count in sorted(more.items())]
    told += [f"{count} {name} missing" for name, count in sorted(less.items())]
    return ", ".join(told)


def make_room(gateway: Gateway, server: FdbServer | None) -> None:
    """Wipe what an earlier soak left, unless a gateway runs on it. Raises SoakError."""
    if gateway.folder.root.exists():
        try:
            with data_folder.locked(gateway.folder):
                gateway.kill_everything()
        except ControlPlaneError as error:
            raise SoakError(f"a gateway runs on {gateway.folder.root}: {error.what}") from error
    if server is not None:
        server.end_left_over()
    if gateway.root.exists():
        shutil.rmtree(gateway.root)
    gateway.root.mkdir(mode=0o700, parents=True)


def stop(gateway: Gateway, server: FdbServer | None) -> list[str]:
    """Stop the gateway as its user would, then make sure; give what had to be killed."""
    leftovers: list[str] = []
    if server is not None:
        server.continue_()  # an interrupted soak may have left it stopped
    if gateway.up is not None and gateway.up.poll() is None:
        gateway.up.send_signal(signal.SIGCONT)  # an interrupted soak may have left it stopped
        with contextlib.suppress(GatewayError):
            gateway.interrupt()
        gateway.census()  # knows strays, too
        leftovers = [str(process) for process in gateway.leftovers()]
    gateway.kill_everything()
    if server is not None:
        server.end()
    return leftovers


async def _main(options: Options, console: Console) -> int:
    async with interruptible():
        return await Soak(options, console).run()


def parse(arguments: list[str] | None = None) -> Options:
    """Read the command line."""
    parser = Parser(prog="python -m chaos.soak", description="Kill and stop everything under load.")
    add_store_options(parser)
    parser.add_argument("--minutes", type=float, default=limits.SOAK_MINUTES, help="how long the load lasts")
    parser.add_argument("--seed", type=int, help="of the load and of the faults; without it a new one each time")
    parser.add_argument("--cells", type=int, default=limits.SOAK_CELLS)
    parser.add_argument("--partners", type=int, default=limits.SOAK_PARTNERS_PER_CELL, help="in each cell")
    parser.add_argument("--patience", type=float, default=1.0, help="stretches the promised times, for a busy machine")
    parser.add_argument(
        "--only", action="append", default=[], metavar="FAULT", choices=[kind.name for kind in faults.KINDS]
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="where the gateway's data goes; it is wiped")
    parser.add_argument("--report", type=Path, help="write the figures there as JSON, and the history beside it")
    given = parser.parse_args(arguments)
    for name, low, high in (
        ("minutes", limits.SOAK_MINUTES_MIN, limits.SOAK_MINUTES_MAX),
        ("cells", 2, limits.SOAK_CELLS_MAX),
        ("partners", 1, limits.SOAK_PARTNERS_PER_CELL_MAX),
        ("patience", 1, 100),
    ):
        if not low <= getattr(given, name) <= high:
            parser.error(f"--{name} is from {low} to {high}")
    seed = random.SystemRandom().randrange(2**32) if given.seed is None else given.seed
    store = store_chosen(parser, given, needs_cluster=False)
    options = Options(
        minutes=given.minutes,
        seed=seed,
        cells=given.cells,
        partners=given.partners,
        patience=given.patience,
        only=tuple(given.only),
        store=store,
        root=given.root,
        report_file=None if given.report is None else given.report.absolute(),
    )
    missing = missing_programs() if options.has_own_server else None
    if missing is not None:
        parser.error(f"--store fdb without --cluster-file starts a FoundationDB server, and {missing}")
    possible = {kind.name for kind in (faults.KINDS if options.has_own_server else faults.KINDS_OF_ANY_STORE)}
    impossible = [name for name in options.only if name not in possible]
    if impossible:
        parser.error(f"--only {impossible[0]!r} is for a server that the soak starts: --store fdb, no --cluster-file")
    return options


def main() -> int:
    """Run the soak."""
    options = parse()
    console = make_console()
    try:
        return uvloop.run(_main(options, console))
    except (SoakError, GatewayError, BookError, FdbServerError, ControlPlaneError, StoreError) as error:
        console.print(f"the soak could not be run: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    except asyncio.CancelledError:
        console.print("interrupted; nothing is left running")
        return 130


if __name__ == "__main__":
    sys.exit(main())
