"""One run of an experiment: its gateway, its partners, its loads, its phases and its end. One at a time in a process.

Chaos Toolkit calls it through `chaos/controls.py` (begin and end), `chaos/actions.py` and `chaos/probes.py`, in threads
of its own. What is judged stands in `chaos/containment.py`, what is written in `chaos/run_report.py`.
"""

import asyncio
import contextlib
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

import orjson
import psutil

from cells.fault_injection import METADATA_KEY
from chaos import attack_stranger, limits, limits_checker, machine, needs, partners, run_checkers, safeguards
from chaos.attack_partner import Attack, Orders
from chaos.bounds_reader import BoundsReader
from chaos.catalogue import Experiment, Scope, Sign
from chaos.checker import Judgement, judge_money, judge_ordered
from chaos.clocks import Clock
from chaos.containment import Circumstances, Moments, Target
from chaos.door_proxies import DoorProxies
from chaos.experiment import bring_to_rest, plan_for
from chaos.faults import NO_ERROR
from chaos.fdb_server import FdbServer
from chaos.gateway import Gateway
from chaos.history import Call, Outcome
from chaos.installation import Attached, GatewayError, Installation, wait_for
from chaos.load_process import LoadError, LoadProcess
from chaos.own_gateway import ROOT, OwnGateway
from chaos.run_settings import POOLED_PREFIX, RunSettings
from chaos.signs import Seen, Watcher, first_sign
from chaos.undo import Undo
from chaos.workload import means_again, read_book, repeat_unanswered, send_one
from control_plane.data_folder import DataFolder
from control_plane.errors import ControlPlaneError

NOBODY: Final = "chaos_nobody"  # whose keys are none


class AbortedError(Exception):
    """A safeguard ended the experiment; the message says why."""


class Session:
    """One run. `lent`: a gateway that several runs share, and that none of them ends."""

    def __init__(self, experiment: Experiment, settings: RunSettings, lent: OwnGateway | None = None) -> None:
        self.experiment = experiment
        self.settings = settings
        self.undo = Undo()
        self.name = f"{experiment.name}-{secrets.token_hex(4)}"
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        self.folder = settings.runs_folder / f"{stamp}-{experiment.name}"
        self.own = lent
        self._ends_own = False
        self.gateway: Installation | None = None
        self.target = Target("", "", {})
        self.moments = Moments(0.0, 0.0)
        self.phase = "preparing"
        self.aborted: str | None = None
        self.failure: str | None = None
        self.ends_early = False
        self.calls: list[Call] = []
        self.flood_calls: list[Call] = []
        self.flood_limits: limits_checker.Limits | None = None
        self.leftovers: list[str] = []
        self.keys: dict[str, str] = {}
        self._old_books: dict[str, set[str]] = {}
        self._old_keys: dict[str, set[str]] = {}
        self._load: LoadProcess | None = None
        self._flood: LoadProcess | None = None
        self._attack: Attack | None = None
        self._readings: dict[str, machine.Reading] = {}
        self._watcher: Watcher | None = None
        self._guards = safeguards.Safeguards({})
        self._watching: threading.Thread | None = None
        self._bounds: BoundsReader | None = None
        self._over = threading.Event()

    # What actions ask for

    def require_gateway(self) -> Installation:
        """Give the gateway under test."""
        assert self.gateway is not None, "the session has not begun"
        return self.gateway

    def require_server(self) -> FdbServer:
        """Give its FoundationDB server. Raises GatewayError."""
        if self.own is None or self.own.server is None:
            raise GatewayError("there is no FoundationDB server of the experiment's own: run it with --own")
        return self.own.server

    def require_proxies(self) -> DoorProxies:
        """Give the fault proxies before its doors. Raises GatewayError."""
        if self.own is None or self.own.proxies is None:
            raise GatewayError("there are no fault proxies before this gateway's doors: run it with --own")
        return self.own.proxies

    def require_clock(self) -> Clock:
        """Give the clock of its processes. Raises GatewayError."""
        if self.own is None or self.own.clock is None:
            raise GatewayError("this gateway's clock can't be moved: run it with --own")
        return self.own.clock

    @property
    def protected(self) -> dict[str, str]:
        """Those partners whom the fault may cost nothing, and their cells."""
        groups = self.target.groups(self.experiment.scope)
        return {
            partner: self.target.cells[partner]
            for partner, group in groups.items()
            if self.experiment.excuses(group) == NO_ERROR
        }

    @property
    def errors_outside(self) -> int:
        """How many errors bystanders have met so far."""
        return self._guards.errors

    def silent_cells(self) -> list[str]:
        """Name the cells outside the target that give no answers."""
        return [] if self._load is None else self._guards.silent_cells(self._load.counts, time.monotonic())

    def strike(self) -> None:
        """Take note that the fault is made now."""
        self._say("fault")
        self.moments.struck_s = time.monotonic()

    def end_fault(self) -> None:
        """Take note that what there was of the fault is taken away."""
        if self.moments.struck_s is not None and self.moments.ended_s is None:
            self.moments.ended_s = time.monotonic()

    def wait(self, seconds: float) -> None:
        """Wait, unless a safeguard ends it. Raises AbortedError."""
        until_s = time.monotonic() + seconds
        while (left_s := until_s - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left_s, limits.CHAOS_LOOK_MS / 1_000))
        self.check()

    def check(self) -> None:
        """See whether it may go on. Raises AbortedError, LoadError."""
        if self.aborted is not None:
            raise AbortedError(self.aborted)

    def start_flood(self, keys: Mapping[str, str], per_second: float, mix: str) -> None:
        """Run a second load in a process of its own until the fault is taken away."""
        plan = plan_for(
            self.require_gateway(),
            dict(keys),
            run=f"{self.name}-flood",
            seed=self.settings.seed,
            requests_per_second=per_second,
            seconds=self.settings.duration_s,
            begin_s=time.monotonic() + limits.CHAOS_FLOOD_START_MS / 1_000,
            mix=mix,
            first_amount=limits.CHAOS_FLOOD_FIRST_AMOUNT,
        )
        self._flood = LoadProcess(self.folder, plan)
        self.undo.add("end the flood", self._end_flood)
        self._flood.start()

    def start_attack(self, partner: str) -> None:
        """Run the attack of a partner in a process of its own until the fault is taken away."""
        orders = Orders(
            self.require_gateway().base_url,
            self.keys[partner],
            limits.CHAOS_HOSTILE_CONNECTIONS,
            limits.CHAOS_HOSTILE_AT_ONCE,
            limits.CHAOS_HOSTILE_PER_SECOND,
            self.settings.duration_s + limits.CHAOS_LOAD_MORE_S,
        )
        self._start_attack(Attack("chaos.attack_partner", orders))

    def start_stranger(self) -> None:
        """Run the attack of a stranger in a process of its own until the fault is taken away."""
        seconds = self.settings.duration_s + limits.CHAOS_LOAD_MORE_S
        orders = attack_stranger.Orders(self.require_gateway().base_url, limits.CHAOS_STRANGER_CONNECTIONS, seconds)
        self._start_attack(Attack("chaos.attack_stranger", orders))

    def _start_attack(self, attack: Attack) -> None:
        self._attack = attack
        self.undo.add("end the attack", attack.end)
        attack.start()

    def order_fault(self, partner: str, fault: str) -> None:
        """Send one payment that orders a fault of its partner's worker, and wait for what its client is told."""
        now_s = time.monotonic()
        name = f"{self.name}-ordered"
        body = {
            "amount": limits.CHAOS_FLOOD_FIRST_AMOUNT - 1,
            "currency": "EUR",
            "payment_method": "tok_approve",
            "reference": name,
            "metadata": {METADATA_KEY: fault},
        }
        call = Call(
            run=name,
            partner=partner,
            scenario="ordered",
            step="create_payment",
            method="POST",
            path="/v1/payments",
            key=name,
            body=orjson.dumps(body),
            expected=(Outcome(201, "captured"), Outcome(500, "command_quarantined")),
            usual=False,
            due_s=now_s,
        )
        asyncio.run(send_one(self.require_gateway().base_url, self.keys[partner], call))
        self.flood_calls.append(call)

    def _end_flood(self) -> None:
        flood, self._flood = self._flood, None
        if flood is not None:
            try:
                self.flood_calls += flood.finish()
            except LoadError as error:
                self.failure = str(error)  # there was no flood, or not the one that was meant

    # Phases

    def begin(self) -> None:
        """Find or start the gateway, onboard, start the load, warm up and be calm. Raises what then is in the way."""
        self.folder.mkdir(parents=True)
        self._find_gateway()
        gateway = self.require_gateway()
        self._say("onboarding")
        self._choose()
        self._onboard()
        begin_s = time.monotonic() + limits.LOAD_START_MS / 1_000
        seconds = self.settings.duration_s + limits.CHAOS_LOAD_MORE_S
        plan = plan_for(
            gateway,
            self.keys,
            run=self.name,
            seed=self.settings.seed,
            requests_per_second=self.settings.load_per_second,
            seconds=seconds,
            begin_s=begin_s,
            series=self.experiment.name,
        )
        self._load = LoadProcess(self.folder, plan)
        self.moments = Moments(begin_s, begin_s + limits.CHAOS_WARM_UP_S)
        self._load.start()
        self._guards = safeguards.Safeguards(self.protected)
        self._watcher = Watcher(gateway, self._signs(), self.target.partner)
        self._watching = threading.Thread(target=self._watch, name="chaos-watch", daemon=True)
        self._watching.start()
        self._bounds = BoundsReader(gateway, self.keys)
        self._bounds.start()
        self._say("warming up")
        self.wait(self.moments.warm_s - time.monotonic())
        self._say("calm")
        self._read("calm")
        self.wait(self.settings.calm_s)
        self._watcher.begin()
        self._read("fault")

    def recover(self) -> None:
        """Wait until all is as ever again, and has been for a while. What it waits for has a bound."""
        self.end_fault()
        self._say("recovering")
        until_s = time.monotonic() + limits.CHAOS_RECOVERY_MS_MAX / 1_000
        well_s: float | None = None
        errors = self._errors_so_far()
        while time.monotonic() < until_s:
            self.wait(limits.CHAOS_LOOK_MS / 1_000)
            now_s, errors_now = time.monotonic(), self._errors_so_far()
            if errors_now != errors or not self._is_well():
                well_s, errors = None, errors_now
            elif well_s is None:
                well_s = now_s
            elif now_s - well_s >= limits.CHAOS_QUIET_MS / 1_000:
                self.moments.calm_s = time.monotonic()
                self._read("recovered")
                return

    def be_calm(self) -> None:
        """Let the load go on for a while."""
        self._say("calm again")
        self.wait(limits.CHAOS_CALM_AGAIN_S)

    def stop_load(self) -> None:
        """Take away what is left of the fault, and let the load come to its end."""
        self.undo.all()
        self.end_fault()
        self._over.set()
        if self._watching is not None:
            self._watching.join()
        if self._bounds is not None:
            self._bounds.stop()
        self.moments.end_s = time.monotonic()
        if self._load is not None:
            self._say("the load comes to its end")
            load, self._load = self._load, None
            self.calls = load.finish()

    def judge(self) -> tuple[Judgement, dict[str, Any], list[Call]]:
        """Bring everything to rest, read books, record and audit; give what they say of money, and the repeats."""
        gateway = self.require_gateway()
        calls = [*self.calls, *(call for call in self.flood_calls if call.partner in self.keys)]
        self._say("bringing everything to rest")
        names = sorted(self.keys)
        open_calls = [call for call in calls if means_again(call)]
        # Where it is never set aside, each attempt at a command that orders a fault costs its partner two workers.
        ordered = [call for call in open_calls if call.key == f"{self.name}-ordered"]
        most = limits.CHAOS_ORDERED_REPEATS_MAX
        repeats = asyncio.run(repeat_unanswered(ordered, gateway.base_url, self.keys, repeats_max=most))
        others = [call for call in open_calls if call not in ordered]
        repeats += asyncio.run(bring_to_rest(gateway, self.keys, others, names))
        self._say("checkers and audit")
        books = asyncio.run(self._read_books())
        record = [
            row
            for partner in names
            for row in gateway.acquirer_record(partner)
            if row["key"] not in self._old_keys[partner]
        ]
        audit = gateway.audit()
        # What is in doubt at partners that are none of ours is theirs; what differs is everybody's.
        rows = [row if row["partner"] in self.keys else {**row, "in_doubt": 0} for row in audit["partners"]]
        everything = [*calls, *repeats]
        judgement = judge_money(everything, books, record, {**audit, "partners": rows})
        run_checkers.judge_order(judgement, everything)
        run_checkers.judge_limits(judgement, everything, self.keys, self.flood_calls, self.flood_limits)
        readings = () if self._bounds is None else self._bounds.readings
        run_checkers.judge_bounds(judgement, everything, readings, self.target.cells, self.settings.patience)
        moments, fails_after_ms = self.moments, self.experiment.fails_after_ms
        if fails_after_ms is not None and moments.struck_s is not None and moments.ended_s is not None:
            offset_s = time.time() - time.monotonic()
            begin_ms, end_ms = ((at_s + offset_s) * 1_000 for at_s in (moments.struck_s, moments.ended_s))
            run_checkers.judge_breaker(judgement, everything, self.target.partner, begin_ms, end_ms, fails_after_ms)
        ordered = [call for call in everything if call.key == f"{self.name}-ordered"]
        if ordered:
            judge_ordered(judgement, ordered)
        return judgement, audit, repeats

    def circumstances(self, *, interrupted: bool) -> Circumstances:
        """Sum up what else counts for the verdict."""
        cores: dict[str, float] = {}
        for name, begin, end in (("calm", "calm", "fault"), ("fault", "fault", "recovered")):
            if begin in self._readings and end in self._readings:
                cores[name] = round(machine.others_cores(self._readings[begin], self._readings[end]), 2)
        return Circumstances(
            self.aborted,
            cores,
            self._first_sign(),
            self.leftovers,
            self.undo.failed,
            self.settings.patience,
            psutil.cpu_count() or 1,
            self.aborted is None and (interrupted or self.failure is not None),
        )

    def end(self) -> None:
        """Leave nothing behind: no load, no fault, our partners suspended, a gateway of our own stopped."""
        self.undo.all()
        self._over.set()
        if self._bounds is not None:
            self._bounds.stop()
        for load in (self._load, self._flood):
            if load is not None:
                load.kill()
        if self._ends_own and self.own is not None:
            self._say("stopping the gateway")
            self._ends_own = False
            self.leftovers = self.own.stop()
        elif self.own is None and self.gateway is not None:
            with contextlib.suppress(ControlPlaneError):  # it is gone, and its partners with it
                partners.suspend(self.gateway, sorted(self.keys))

    # Parts

    def _find_gateway(self) -> None:
        settings, needed = self.settings, self.experiment.needs
        missing = needs.missing_here(needed, own=self.own is not None or settings.own)
        if missing is not None:
            raise GatewayError(missing)
        if self.own is None and settings.own:
            self._say("starting a gateway")
            self.own = OwnGateway(ROOT, needs=needed, bulkheads_off=settings.bulkheads_off)
            self._ends_own = True
            self.own.start()
        if self.own is not None:
            self.gateway = self.own.gateway
        else:
            self.gateway = Attached(DataFolder(settings.data_folder))
        missing = needs.missing_there(needed, self.gateway.status(), self.gateway.store_kind)
        if missing is not None:
            raise GatewayError(missing)

    def _choose(self) -> None:
        """Choose the target, as the seed has it where nobody was named; name the partners. Raises GatewayError."""
        gateway, settings = self.require_gateway(), self.settings
        status = gateway.status()
        if not status["ready"]:
            raise GatewayError("the gateway is not ready: see `bulkhead status`, and strike it when all is well")
        cells = sorted(cell["cell"] for cell in status["cells"])
        if settings.cell and settings.cell not in cells:
            raise GatewayError(f"there is no cell {settings.cell!r}; there are {', '.join(cells)}")
        homes = partners.names_for(cells, limits.CHAOS_PARTNERS_PER_CELL)
        pooled = partners.names_for(cells, limits.CHAOS_POOLED_PER_CELL, POOLED_PREFIX)
        if settings.partner:
            known = pooled if partners.is_pooled(settings.partner) else homes
            known.setdefault(settings.partner, partners.home_of(settings.partner, cells))
        dice = random.Random(settings.seed)
        everybody = homes | pooled
        cell = settings.cell or (everybody[settings.partner] if settings.partner else dice.choice(cells))
        more = partners.names_for(cells, self.experiment.partners_in_cell)
        more = {name: home for name, home in more.items() if home == cell}
        homes, everybody = homes | more, everybody | more
        wanted = pooled if self.experiment.scope is Scope.POOL else homes
        there = sorted(partner for partner, home in wanted.items() if home == cell)
        partner = settings.partner or dice.choice(there)
        if everybody[partner] != cell:
            raise GatewayError(f"{partner} lives in {everybody[partner]}, not in {cell}: leave --cell out")
        if self.experiment.scope is Scope.POOL and not partners.is_pooled(partner):
            raise GatewayError(f"{partner} shares no worker; those that do are called {POOLED_PREFIX}…")
        if not settings.force:
            partners.require_harmless(partners.list_all(gateway), self.experiment.scope, cell)
        self.target = Target(partner, cell, everybody)

    def _onboard(self) -> None:
        gateway = self.require_gateway()
        there = {str(row["id"]): row for row in partners.list_all(gateway)}
        names = sorted(self.target.cells)
        with ThreadPoolExecutor(limits.PARTNERS_CREATED_AT_ONCE_MAX) as pool:
            keys = list(pool.map(lambda name: partners.take(gateway, name, there), names))
        self.keys = dict(zip(names, keys, strict=True))
        gateway.wait_well(names)
        rows = [row for row in gateway.status()["partners"] if row["partner"] in self.keys]
        found = {row["partner"]: row["cell"] for row in rows}
        if found != dict(self.target.cells):
            raise GatewayError(f"partners live elsewhere than their names say: {found}")
        if self.experiment.scope is Scope.POOL:
            mates = wait_for(self._mates, f"{self.target.partner} shares its worker", limits.CHAOS_POOLED_MS_MAX)
            self.target = replace(self.target, mates=mates)
        for name in names:
            self._old_books[name], self._old_keys[name] = set(), set()
            if name in there:
                book = asyncio.run(read_book(gateway.base_url, self.keys[name]))
                self._old_books[name] = {str(payment["id"]) for payment in book}
                self._old_keys[name] = {str(row["key"]) for row in gateway.acquirer_record(name)}

    def _mates(self) -> frozenset[str] | None:
        """Give those of our partners who share the target's worker, itself among them; None: not all that should."""
        workers = {row["partner"]: row["worker"] for row in self.require_gateway().status()["partners"]}
        mates = frozenset(name for name in self.keys if workers.get(name) == workers[self.target.partner])
        return mates if len(mates) >= limits.CHAOS_POOLED_PER_CELL else None

    async def _read_books(self) -> dict[str, list[dict[str, Any]]]:
        base_url = self.require_gateway().base_url
        return {
            name: [row for row in await read_book(base_url, key) if row["id"] not in self._old_books[name]]
            for name, key in self.keys.items()
        }

    def _watch(self) -> None:
        """Once a second: figures, safeguards, signs. Ends the experiment where its damage leaves the target."""
        assert self._watcher is not None
        while not self._over.wait(limits.CHAOS_WATCH_MS / 1_000):
            load = self._load
            if load is None:
                return
            why = self._guards.look(load.counts, time.monotonic())
            if why is None and load.has_ended():
                why = self.failure = "the load ended by itself"
            if why is not None and self.aborted is None:
                self.aborted = why
                self.undo.all()
                self.end_fault()
            if self.moments.struck_s is not None:
                self._watcher.look()

    def _errors_so_far(self) -> float:
        assert self._load is not None
        return sum(row["errors"] + row["refused_429"] for row in self._load.counts.values())

    def _is_well(self) -> bool:
        """Say whether all processes are there and ready, each cell has its spare, and our partners are served."""
        try:
            return self.require_gateway().is_well(self.keys)
        except ControlPlaneError:
            return False

    def _first_sign(self) -> Seen | None:
        if self.moments.struck_s is None or self._watcher is None:
            return None
        return first_sign(self.require_gateway().folder.logs, self._signs(), self._watcher.seen, self.moments.struck_s)

    def _signs(self) -> list[Sign]:
        return [sign.of(self.target.cell, self.target.partner) for sign in self.experiment.signs]

    def _read(self, name: str) -> None:
        ours = [*self.require_gateway().processes(), *self._programs()]
        self._readings[name] = machine.read(ours)

    def _programs(self) -> Iterator[psutil.Process]:
        pids = [load.pid for load in (self._load, self._flood, self._attack) if load is not None]
        if isinstance(self.gateway, Gateway) and self.gateway.up is not None:
            pids.append(self.gateway.up.pid)
        if self.own is not None and self.own.server is not None:
            pids.append(self.own.server.pid)
        if self.own is not None and self.own.proxies is not None:
            pids.append(self.own.proxies.pid)
        for pid in pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                if pid is not None:
                    yield psutil.Process(pid)

    def _say(self, phase: str) -> None:
        self.phase = phase
        if _Held.tell is not None:
            _Held.tell(self, phase)


# One run at a time: Chaos Toolkit's functions know no other way to find it.


class _Held:
    """What Chaos Toolkit's functions find. `lent`: a gateway that runs share; `tell`: told of each phase."""

    session: Session | None = None
    lent: OwnGateway | None = None
    tell: Callable[[Session, str], None] | None = None


def hold(session: Session | None) -> None:
    """Let actions and probes find this run; None: there is none any more."""
    _Held.session = session


def held() -> Session | None:
    """Give the run; None where none has begun."""
    return _Held.session


def current() -> Session:
    """Give the run. Raises GatewayError where there is none."""
    if _Held.session is None:
        raise GatewayError("no run has begun: the experiment needs its control, chaos.controls")
    return _Held.session


def lend(own: OwnGateway | None) -> None:
    """Let the runs to come share a gateway; None: each has its own, or one that is up."""
    _Held.lent = own


def lent() -> OwnGateway | None:
    """Give the gateway that runs share."""
    return _Held.lent


def tell_with(tell: Callable[[Session, str], None] | None) -> None:
    """Have somebody told of each run's phases."""
    _Held.tell = staticmethod(tell) if tell is not None else None
