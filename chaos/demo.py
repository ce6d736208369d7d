"""`python -m chaos.demo`: a minute of payments from many partners, three of them in trouble, and what it did to others.

Starts a whole gateway below ./.demo, judges what its clients saw, and leaves nothing running. Exit codes: 0 contained,
1 not contained (or not to be told, or books disagree), 2 it could not be run, 130 interrupted.
"""

import asyncio
import contextlib
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import orjson
import psutil
from rich.console import Console

from actors.errors import StoreError
from chaos import drama, limits, machine, report, screen
from chaos.checker import Judgement, Role, finding_json
from chaos.command_line import Parser, add_store_options, store_chosen
from chaos.drama import Cast, Timeline
from chaos.experiment import bring_to_rest, judge_at_rest, onboard, plan_for
from chaos.gateway import Gateway
from chaos.history import Call
from chaos.installation import GatewayError
from chaos.interruption import interruptible
from chaos.load_process import LoadError, LoadProcess
from chaos.report import Moments, Row
from chaos.screen import Screen
from chaos.store_choice import StoreChoice
from chaos.workload import is_left_open
from control_plane import client, data_folder
from control_plane.errors import ControlPlaneError

ROOT: Final = Path(".demo")
_FLOOD_FIRST_AMOUNT: Final = 10_000_000


class DemoError(Exception):
    """The demo could not be run."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the demo is told."""

    seconds: int
    partners: int
    cells: int
    seed: int
    store: StoreChoice
    report_file: Path | None


@dataclass(slots=True)
class Seen:
    """All that was seen, once the load is over."""

    cast: Cast
    timeline: Timeline
    moments: Moments
    calls: list[Call] = field(default_factory=list)
    takeovers: int = 0
    open_at_end: int = 0
    # How many cores programs used that have no part in this, by phase.
    others_cores: dict[str, float] = field(default_factory=dict)


class Demo:
    """One run."""

    def __init__(self, options: Options, console: Console) -> None:
        self._options = options
        self._console = console
        self._screen = Screen(console)
        self._gateway = Gateway(ROOT.absolute(), cells=options.cells, store=options.store)
        self._durability = ""
        self._keys: dict[str, str] = {}
        self._loads: list[LoadProcess] = []
        self._readings: dict[str, machine.Reading] = {}

    async def run(self) -> int:
        """Run it all; give the exit code. Raises DemoError, LoadError, GatewayError, ControlPlaneError, StoreError."""
        options, gateway = self._options, self._gateway
        self._console.print(f"Bulkhead demo, seed {options.seed}", style="bold")
        self._durability = await options.store.durability()
        self._console.print(self._durability, soft_wrap=True)
        await asyncio.to_thread(_make_room, gateway)
        try:
            seen = await self._play()
            self._screen.say("bringing everything to rest: what was not answered is asked for again")
            open_calls = [call for call in seen.calls if is_left_open(call)]
            repeats = await bring_to_rest(gateway, self._keys, open_calls)
            seen.open_at_end = gateway.open_operations()
            self._screen.say("reading books, the acquirer's record and the audit")
            money, audit = await judge_at_rest(gateway, self._keys, [*seen.calls, *repeats])
            record = await asyncio.to_thread(gateway.acquirer_record)
        finally:
            self._screen.close()
            leftovers = await asyncio.to_thread(_stop, gateway, self._screen)
        return self._conclude(seen, repeats, money, audit, len(record), leftovers)

    async def _play(self) -> Seen:
        options, gateway, say = self._options, self._gateway, self._screen.say
        say(f"starting {options.cells} cells (data in {ROOT})")
        await asyncio.to_thread(gateway.start)
        await asyncio.to_thread(gateway.wait_ready)
        say(f"onboarding {options.partners} partners, each with a worker process of its own")
        self._keys = await onboard(gateway, drama.partner_names(options.partners))
        await asyncio.to_thread(gateway.wait_spares)
        cells = {row["partner"]: row["cell"] for row in gateway.status()["partners"]}
        cast = drama.choose(cells, options.seed)
        allowed = {"rate_per_second": limits.FLOODER_RATE_PER_SECOND, "rate_burst": limits.FLOODER_RATE_BURST}
        await asyncio.to_thread(client.ask, gateway.folder, "PATCH", f"/partners/{cast.flooding}/limits", allowed)
        timeline = Timeline.of(options.seconds)
        begin_s = time.monotonic() + limits.LOAD_START_MS / 1_000
        say(f"to be killed: {cast.killed}; to flood: {cast.flooding}; whose acquirer will hang: {cast.hanging}")
        self._loads = self._plan_loads(cast, timeline, begin_s)
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(_run(load)) for load in self._loads]
                await _sleep_until(begin_s)
                self._screen.open(cast, timeline, begin_s)
                drawing = tasks.create_task(self._draw())
                moments = await self._make_trouble(cast, timeline, begin_s)
                calls = [call for load in running for call in await load]
                drawing.cancel()
        except ExceptionGroup as group:
            raise group.exceptions[0] from group  # one is enough to say why
        self._screen.close()
        (killed,) = [row for row in gateway.status()["partners"] if row["partner"] == cast.killed]
        # A flood is over when its last answer has come.
        answered_s = [call.answered_s for call in calls if call.run == "flood" and call.answered_s is not None]
        moments = replace(moments, flood_end_s=max([moments.flood_end_s, *answered_s]))
        seen = Seen(cast, timeline, moments, calls, takeovers=killed["takeovers"])
        for phase, (before, after) in {"calm": ("warm", "kill"), "trouble": ("kill", "end")}.items():
            cores = machine.others_cores(self._readings[before], self._readings[after])
            seen.others_cores[phase] = round(cores, 2)
        return seen

    def _plan_loads(self, cast: Cast, timeline: Timeline, begin_s: float) -> list[LoadProcess]:
        gateway, options = self._gateway, self._options
        mixed = plan_for(
            gateway,
            self._keys,
            run="mixed",
            seed=options.seed,
            requests_per_second=limits.DEMO_REQUESTS_PER_SECOND,
            seconds=options.seconds,
            begin_s=begin_s,
        )
        flood = plan_for(
            gateway,
            {cast.flooding: self._keys[cast.flooding]},
            run="flood",
            seed=options.seed,
            requests_per_second=limits.FLOOD_REQUESTS_PER_SECOND,
            seconds=timeline.flood_end_s - timeline.flood_s,
            begin_s=begin_s + timeline.flood_s,
            first_amount=_FLOOD_FIRST_AMOUNT,
            mix="flood",
        )
        return [LoadProcess(ROOT, mixed), LoadProcess(ROOT, flood)]

    async def _make_trouble(self, cast: Cast, timeline: Timeline, begin_s: float) -> Moments:
        """Do what the timeline says, and note when it was really done."""
        gateway, say = self._gateway, self._screen.say
        at: dict[str, float] = {"begin_s": begin_s, "flood_s": begin_s + timeline.flood_s}

        async def act(name: str, at_s: float, what: str, action: Callable[[], Awaitable[None]]) -> None:
            await _sleep_until(begin_s + at_s)
            at[name] = time.monotonic()
            await action()
            say(what)

        async def kill() -> None:
            worker.kill()

        async def nothing() -> None:
            """Do nothing: the flood has a schedule and a client of its own."""

        async def hang() -> None:
            await asyncio.to_thread(gateway.set_fault, cast.hanging, "hang")

        async def answer_again() -> None:
            await asyncio.to_thread(gateway.clear_fault, cast.hanging)

        await _sleep_until(begin_s + timeline.warm_s)
        await self._take_reading("warm")
        worker = await asyncio.to_thread(gateway.worker_of, cast.killed)
        flood = f"{cast.flooding} floods: {limits.FLOOD_REQUESTS_PER_SECOND} payments a second"
        await _sleep_until(begin_s + timeline.kill_s - limits.READING_MS / 1_000)
        await self._take_reading("kill")
        await act("kill_s", timeline.kill_s, f"SIGKILL of {cast.killed}'s worker, pid {worker.pid}", kill)
        await act("flood_said_s", timeline.flood_s, flood, nothing)
        await act("hang_s", timeline.hang_s, f"{cast.hanging}'s acquirer hangs", hang)
        await act("flood_end_s", timeline.flood_end_s, f"{cast.flooding} stops flooding", nothing)
        await act("hang_end_s", timeline.hang_end_s, f"{cast.hanging}'s acquirer answers again", answer_again)
        await self._take_reading("end")
        await act("end_s", timeline.end_s, "no new journeys; those under way come to their end", nothing)
        del at["flood_said_s"]  # its client has a clock of its own
        return Moments(**at)

    async def _take_reading(self, name: str) -> None:
        def take() -> machine.Reading:
            ours = self._gateway.processes()
            assert self._gateway.up is not None
            pids = [self._gateway.up.pid, *(load.pid for load in self._loads if load.pid is not None)]
            # FoundationDB's servers have a part in it, where they run on this machine.
            ours += self._options.store.servers_here()
            return machine.read([*ours, *(psutil.Process(pid) for pid in pids if psutil.pid_exists(pid))])

        self._readings[name] = await asyncio.to_thread(take)

    async def _draw(self) -> None:
        every = 1 if self._console.is_terminal else limits.PLAIN_LINE_EVERY
        number = 0
        while True:
            await asyncio.sleep(limits.SCREEN_INTERVAL_MS / 1_000)
            self._screen.counts = _merge([load.counts for load in self._loads])
            number += 1
            if number % every == 0:
                self._screen.refresh()

    def _conclude(
        self,
        seen: Seen,
        repeats: list[Call],
        money: Judgement,
        audit: dict[str, Any],
        acquirer_operations: int,
        leftovers: list[str],
    ) -> int:
        rows = report.rows_of(seen.calls, seen.cast, seen.moments)
        delay = report.killed_delay(seen.calls, seen.cast, seen.moments)
        groups = report.bystander_groups(rows, seen.calls, seen.cast, seen.moments)
        verdict = report.judge(rows, delay, seen.takeovers, money, audit, seen.others_cores, leftovers, groups)
        whole = {
            "verdict": verdict.word,
            "broken": verdict.broken,
            "not_known": verdict.unknown,
            "seed": self._options.seed,
            "machine": machine.describe(),
            "others_cores": seen.others_cores,
            "store": self._options.store.kind,
            "durability": self._durability,
            "options": {**asdict(self._options), "store": self._options.store.kind, "report_file": None},
            "happened": report.moments_json(seen.moments, seen.timeline),
            "partners": [report.row_json(row) for row in rows],
            "bystanders": groups,
            **self._victims(seen, {row.role: row for row in rows}),
            "open_at_end": seen.open_at_end,
            "audit": {name: audit[name] for name in ("ok", "payments", "operations", "in_doubt")},
            "money": {
                "verdict": money.verdict,
                "findings": [finding_json(finding, seen.moments.begin_s) for finding in money.findings],
                "unknowns": money.unknowns,
                "calls": len(seen.calls),
                "repeats": len(repeats),
                "acquirer_operations": acquirer_operations,
            },
            "answers": report.outcomes(seen.calls),
            "client_late_ms_max": round(max((call.sent_s - call.due_s) * 1_000 for call in seen.calls), 1),
        }
        screen.show_table(self._console, rows)
        screen.show_summary(self._console, whole, verdict)
        if self._options.report_file is not None:
            self._options.report_file.write_bytes(orjson.dumps(whole, option=orjson.OPT_INDENT_2))
            self._console.print(f"report: {self._options.report_file}", style="dim", soft_wrap=True)
        return 0 if verdict.word == "contained" else 1

    def _victims(self, seen: Seen, by_role: dict[Role, Row]) -> dict[str, Any]:
        """Sum up what the three in trouble met."""
        cast, moments = seen.cast, seen.moments
        delay = report.killed_delay(seen.calls, cast, moments)
        met = Counter(
            call.status
            for call in seen.calls
            if call.partner == cast.hanging and call.answered_s is not None and call.answered_s >= moments.hang_s
        )
        flood = [call for call in seen.calls if call.run == "flood"]
        return {
            "killed": {
                "partner": cast.killed,
                "cell": cast.cells[cast.killed],
                "errors": len(by_role[Role.KILLED].errors),
                "calls_around": delay.count,
                "delay_ms_max": delay.max_ms,
                "takeovers": seen.takeovers,
                "took_ms": _took_ms(self._gateway, cast),
            },
            "flood": {
                "partner": cast.flooding,
                "requests_per_second": limits.FLOOD_REQUESTS_PER_SECOND,
                "allowed_per_second": limits.FLOODER_RATE_PER_SECOND,
                "sent": len(flood),
                "acknowledged": sum(call.acknowledged for call in flood),
                "refused_429": sum(call.status == 429 for call in flood),
                "errors": len(by_role[Role.FLOODING].errors),
            },
            "hang": {
                "partner": cast.hanging,
                "seconds": moments.hang_end_s - moments.hang_s,
                "processing_202": met[202],
                "unavailable_503": met[503],
                "errors": len(by_role[Role.HANGING].errors),
            },
        }


def _make_room(gateway: Gateway) -> None:
    """Wipe what an earlier demo left, unless a gateway runs on it. Raises DemoError."""
    if not gateway.root.exists():
        gateway.root.mkdir(mode=0o700)
        return
    if gateway.folder.root.exists():
        try:
            with data_folder.locked(gateway.folder):
                # Nobody supervises it: what still runs there was left by a demo that was killed.
                gateway.kill_everything()
        except ControlPlaneError as error:
            raise DemoError(f"a gateway runs on {gateway.folder.root}: {error.what}") from error
    shutil.rmtree(gateway.root)
    gateway.root.mkdir(mode=0o700)


def _stop(gateway: Gateway, shown: Screen) -> list[str]:
    """Stop the gateway as its user would, then make sure; give what had to be killed."""
    leftovers: list[str] = []
    if gateway.up is not None and gateway.up.poll() is None:
        shown.say("stopping")
        with contextlib.suppress(GatewayError):
            gateway.interrupt()
        leftovers = [str(process) for process in gateway.leftovers()]
    gateway.kill_everything()
    return leftovers


async def _run(load: LoadProcess) -> list[Call]:
    """Run a load to its end; give its history. Raises LoadError. Cancelled, it is ended."""
    load.start()
    try:
        return await asyncio.to_thread(load.wait)
    finally:
        load.kill()


async def _sleep_until(at_s: float) -> None:
    await asyncio.sleep(max(at_s - time.monotonic(), 0))


def _merge(counts: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Put several loads' figures together, by partner."""
    merged: dict[str, dict[str, float]] = {}
    for load in counts:
        for partner, row in load.items():
            before = merged.get(partner)
            merged[partner] = (
                row
                if before is None
                else {
                    name: max(value, before[name]) if name == "slowest_ms" else value + before[name]
                    for name, value in row.items()
                }
            )
    return merged


def _took_ms(gateway: Gateway, cast: Cast) -> list[int]:
    """Read from its door's log how long the killed partner's takeovers took."""
    log_file = gateway.folder.log_file(f"{cast.cells[cast.killed]}.door")
    taken = []
    for line in log_file.read_text().splitlines():
        entry = json.loads(line)
        found = entry.get("event") == "partner_activated" and entry.get("partner") == cast.killed
        if found and entry.get("cause") != "onboarding":
            taken.append(int(entry["took_ms"]))
    return taken


async def _main(options: Options, console: Console) -> int:
    async with interruptible():
        return await Demo(options, console).run()


def parse(arguments: list[str] | None = None) -> Options:
    """Read the command line; REPORT in the environment counts where --report is not given."""
    parser = Parser(prog="python -m chaos.demo", description="Partners in trouble, and bystanders.")
    add_store_options(parser)
    parser.add_argument("--seconds", type=int, default=limits.DEMO_SECONDS, help="how long journeys begin")
    parser.add_argument("--partners", type=int, default=limits.DEMO_PARTNERS)
    parser.add_argument("--cells", type=int, default=limits.DEMO_CELLS)
    parser.add_argument("--seed", type=int, default=1, help="of the schedule and of the choice of victims")
    parser.add_argument("--report", type=Path, default=os.environ.get("REPORT") or None, help="write the figures there")
    given = parser.parse_args(arguments)
    for name, low, high in (
        ("seconds", limits.DEMO_SECONDS_MIN, limits.DEMO_SECONDS_MAX),
        ("partners", limits.DEMO_PARTNERS_MIN, limits.DEMO_PARTNERS_MAX),
        ("cells", 1, limits.DEMO_CELLS_MAX),
    ):
        if not low <= getattr(given, name) <= high:
            parser.error(f"--{name} is from {low} to {high}")
    report_file = None if given.report is None else Path(given.report).absolute()
    return Options(given.seconds, given.partners, given.cells, given.seed, store_chosen(parser, given), report_file)


def main() -> int:
    """Run the demo."""
    options = parse()
    console = screen.make_console()
    try:
        return asyncio.run(_main(options, console))
    except (DemoError, LoadError, GatewayError, ControlPlaneError, StoreError) as error:
        console.print(f"the demo could not be run: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    except asyncio.CancelledError:
        console.print("interrupted; nothing is left running")
        return 130


if __name__ == "__main__":
    sys.exit(main())
