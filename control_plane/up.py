"""`bulkhead up`: puts the parts together, runs them until told to stop, and stops them. Decides nothing itself."""

import asyncio
import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Any, Final

import structlog
import uvloop

from cells.api import logs
from control_plane import (
    admin,
    data_folder,
    fleet_api,
    limits,
    listening,
    memory,
    opening,
    rebalance_api,
    redis_server,
    status,
    users,
)
from control_plane.access import AccessLog
from control_plane.actions import all_actions
from control_plane.approving import Approvals
from control_plane.audit_copy import HeadCopy
from control_plane.burials import Burials
from control_plane.cell_rules import first_cells, follow_settings
from control_plane.data_folder import DataFolder, Instance
from control_plane.directory_spreading import spread_by
from control_plane.door_moves import DoorMoves
from control_plane.doors import Doors, cell_addresses
from control_plane.errors import ControlPlaneError, FolderError, RefusedError, SettingsError
from control_plane.evacuation import Evacuation
from control_plane.exposure import insecurities, require_secure
from control_plane.failed_keys import FailedKeysOfRouters
from control_plane.fleet import Fleet, Ground, is_free
from control_plane.gate import Gate
from control_plane.informing import Informer
from control_plane.load import Load, routers_of
from control_plane.moves import Moves
from control_plane.moves_mover import MovesMover
from control_plane.operators import Operators
from control_plane.partners import Partners, to_profile
from control_plane.places import place_of_cell
from control_plane.process_table import boot_id, read_start_ticks
from control_plane.processes import ProcessSpec, SecretsDigest, plan
from control_plane.publishing import Publisher
from control_plane.rebalancer import Rebalancer
from control_plane.registry import Registry
from control_plane.registry_records import Cell, Partner
from control_plane.settings import MAIN_ACQUIRER, Settings
from control_plane.supervisor import Supervisor
from control_plane.users import Users
from router.directory_file import write_atomically

log = structlog.get_logger()

_PACKAGES_OF_PROCESSES: Final = ("acquirer_simulator", "actors", "cells", "listeners", "router", "stores")
# Settings, data folder, instance, cells, version of the code, digests of the secrets; as processes.plan.
Planner = Callable[[Settings, DataFolder, Instance, Sequence[Cell], str, SecretsDigest], tuple[ProcessSpec, ...]]


@dataclass(frozen=True, slots=True)
class Console:
    """What a person is told: single lines while it runs, and the summary once everything is ready."""

    tell: Callable[[str], None]
    tell_process: Callable[[ProcessSpec, str], None]
    tell_ready: Callable[[Settings, DataFolder, int, Sequence[Cell]], None]


def version() -> str:
    """Give the version of this installation of Bulkhead."""
    return distribution_version("bulkhead-gateway")


@functools.cache
def code_version() -> str:
    """Give the version of the code that processes run. One that runs other code is started anew, never adopted.

    What control plane, doors, workers and routers say to each other is of one version of the code.
    """
    digest = hashlib.sha256(version().encode())
    for package in _PACKAGES_OF_PROCESSES:
        found = importlib.util.find_spec(package)
        assert found is not None, package
        for folder in found.submodule_search_locations or ():
            for file in sorted(Path(folder).rglob("*.py")):
                digest.update(f"{package}/{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def run(settings: Settings, console: Console, make_plan: Planner = plan) -> int:
    """Run until SIGINT, SIGTERM or SIGHUP; give the exit code. Raises ControlPlaneError where it can't start."""
    require_secure(settings)
    folder = DataFolder(settings.data_folder)
    settings = with_redis_that_is_there(settings, console)
    with data_folder.locked(folder):
        first_start = data_folder.read_instance(folder) is None
        try:
            instance = data_folder.prepare(folder, settings)
            _write_settings(folder, settings)
            logs.configure(str(folder.log_file("control_plane")), process="control_plane")
        except OSError as error:
            raise FolderError(
                f"the data folder can't be written: {error}", where=str(folder.root), hint="mend that, then try again"
            ) from error
        return uvloop.run(_run(settings, folder, instance, console, make_plan, first_start=first_start))


def with_redis_that_is_there(settings: Settings, console: Console) -> Settings:
    """Go without a Redis of our own where its program is missing, and say so: nothing depends on it."""
    if not settings.starts_redis or redis_server.is_installed():
        return settings
    console.tell(f"{redis_server.PROGRAM} is not installed, so routers go without Redis: {redis_server.WITHOUT}")
    return settings.model_copy(update={"redis_url": "none"})


async def _run(
    settings: Settings,
    folder: DataFolder,
    instance: Instance,
    console: Console,
    make_plan: Planner,
    *,
    first_start: bool,
) -> int:
    opening.require_clients(settings, folder, instance, first_cells(settings, ""))
    registry = await opening.open_registry(settings, folder, instance, first_start=first_start)
    try:
        opening.require_clients(settings, folder, instance, registry.cells())
        moved = follow_settings(settings, registry.cells())
        if moved:
            await registry.write_cells(moved, "up", "cells_follow_settings", cells=[cell.name for cell in moved])
        data_folder.prepare_cells(folder, registry.cells(), first_start=first_start)
        data_folder.finish_first_start(folder, instance)
        found = await asyncio.to_thread(users.find, settings, folder, instance)
        return await _Up(settings, folder, instance, registry, console, make_plan, found).run()
    finally:
        await registry.close()


def _write_settings(folder: DataFolder, settings: Settings) -> None:
    """Leave for the other commands what this run was started with, and who it is."""
    write_atomically(folder.settings_file, settings.model_dump_json(indent=2).encode())
    record = {
        "pid": os.getpid(),
        "start_time": read_start_ticks(os.getpid()),
        "boot_id": boot_id(),
        "started_at": data_folder.timestamp(),
    }
    write_atomically(folder.control_record_file, json.dumps(record).encode())


def require_acquirers(settings: Settings, partners: Sequence[Partner]) -> None:
    """Refuse to start without an acquirer that a partner's profile names, or with a simulator that a live one has.

    Raises SettingsError.
    """
    for partner in partners:
        simulated = settings.simulators.intersection(partner.acquirers or (MAIN_ACQUIRER,))
        if partner.mode == "live" and simulated:
            raise SettingsError(
                f"partner {partner.id!r} is live, and its acquirer {min(simulated)!r} is a simulator",
                where="acquirer_url and second_acquirer_port in the settings",
                hint="name real acquirers in the settings; a simulator is for partners of mode test",
            )
        for name in partner.acquirers:
            if name not in settings.acquirer_urls:
                raise SettingsError(
                    f"partner {partner.id!r} has the acquirer {name!r}, which the settings don't name",
                    where=f"the settings' acquirers: {', '.join(settings.acquirer_urls)}",
                    hint=f"name it; then `bulkhead partner set-acquirers {partner.id} {MAIN_ACQUIRER}` takes it away",
                )


class _Up:
    """One run of the control plane."""

    def __init__(
        self,
        settings: Settings,
        folder: DataFolder,
        instance: Instance,
        registry: Registry,
        console: Console,
        make_plan: Planner,
        users: Users,
    ) -> None:
        self._users = users
        self._settings = settings
        self._folder = folder
        self._instance = instance
        self._registry = registry
        self._console = console
        self._make_plan = make_plan
        self._started_at = data_folder.timestamp()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._refused: RefusedError | None = None
        self._listens_beyond: list[listening.Listener] = []

    async def run(self) -> int:
        self._watch_signals()
        if self._users.weakness:
            self._console.tell(f"WEAK: {self._users.weakness}")
        for name, what, _ in insecurities(self._settings):
            self._console.tell(f"INSECURE: {name} {what}")
        self._require_memory()
        self._require_test_partners()
        require_acquirers(self._settings, self._registry.partners())
        spread = spread_by(self._settings, self._folder)
        publisher = Publisher(self._registry, self._folder, self._settings.router_names, spread)
        await publisher.publish()
        doors = await Doors.connect(cell_addresses(self._registry.cells()), self._folder)
        try:
            supervisor = Supervisor(self._plan(), self._folder, self._instance.id, _probe, self._console.tell_process)
            _require_free_ports(await supervisor.take_over())
            return await self._supervise(supervisor, doors, publisher)
        finally:
            await doors.aclose()

    async def _supervise(self, supervisor: Supervisor, doors: Doors, publisher: Publisher) -> int:
        partners = Partners(
            self._registry,
            doors,
            publisher,
            data_folder.read_secret(self._folder.pepper_file),
            acquirers=self._settings.acquirer_urls,
            simulators=self._settings.simulators,
            require_room=lambda dedicated, pooled: memory.require_room_for_more(
                dedicated, pooled, memory.available_bytes()
            ),
            test_only=self._settings.fault_injection,
        )

        load = Load(self._registry, self._folder, routers_of(self._settings))
        moves = Moves(
            self._registry,
            DoorMoves(doors),
            publisher.publish,
            lambda: publisher.version,
            to_profile,
            self._places,
        )
        burials = Burials(self._registry, DoorMoves(doors))
        informer = Informer(self._registry, doors)
        rebalancer = Rebalancer(self._registry, MovesMover(moves), load)
        fleet = self._make_fleet(publisher, doors, supervisor, moves)
        after_s = self._settings.evacuate_after_s
        evacuation = Evacuation(self._registry, fleet, moves, doors, self._places, after_s=after_s)

        async def collect() -> dict[str, Any]:
            cells = self._registry.cells()
            return status.build(
                control_plane=self._describe(),
                states=supervisor.states,
                answers=await status.ask_cells(doors, [cell.name for cell in cells if cell.is_running]),
                partners=self._registry.partners(),
                cells=cells,
                directory_version=publisher.version,
            )

        operators = Operators(self._registry, data_folder.read_secret(self._folder.pepper_file))
        await operators.ensure_local(self._folder.operator_key_file)
        pepper = data_folder.read_secret(self._folder.pepper_file)
        actions = all_actions(self._registry, partners, operators, doors)
        approvals = Approvals(self._registry, actions, self._settings.two_person_approval, pepper)
        self._tell_approvals(approvals)
        more = [fleet_api.routes(fleet, evacuation), rebalance_api.routes(rebalancer)]
        accesses = AccessLog(self._registry)
        failed_keys = FailedKeysOfRouters(self._folder, self._settings.router_names, accesses)
        routes = admin.make_routes(self._registry, partners, doors, moves, collect, operators, approvals, more)
        app = Gate(routes, operators, accesses)
        supervisor.start()
        async with (
            self._serving(app),
            _repeating(partners.reconcile, limits.RECONCILE_INTERVAL_MS),
            _repeating(moves.resume, limits.RECONCILE_INTERVAL_MS),
            _repeating(burials.tell, limits.BURIAL_INTERVAL_MS),
            _repeating(informer.tell, limits.INFORM_INTERVAL_MS),
            _repeating(approvals.work, limits.APPROVALS_INTERVAL_MS),
            _repeating(fleet.converge, limits.CELL_STEP_INTERVAL_MS),
            _repeating(evacuation.watch, limits.EVACUATION_LOOK_MS),
            _repeating(load.remember, limits.LOAD_INTERVAL_MS),
            _repeating(rebalancer.work, limits.REBALANCE_STEP_INTERVAL_MS),
            _repeating(supervisor.trim_outputs, limits.TRIM_INTERVAL_MS),
            _repeating(accesses.work, limits.ACCESS_INTERVAL_MS),
            _repeating(failed_keys.work, limits.FAILED_KEYS_TAKE_INTERVAL_MS),
            self._copying_heads(),
            _repeating(functools.partial(self._look_who_listens, supervisor), limits.LISTENING_LOOK_INTERVAL_MS),
        ):
            announcing = asyncio.create_task(self._announce(supervisor))
            try:
                failure = await self._wait_stopped(supervisor)
            finally:
                announcing.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await announcing
            await rebalancer.aclose()  # first: it would begin them again
            await moves.stop()
            await burials.stop()
            await informer.stop()
            if self._registry.lost is not None and not self._stop.is_set():
                raise self._registry.lost  # the processes are left to themselves, as after a crash
            if failure is not None:
                # A bug of ours. Payments need no supervisor, so the processes stay; the next `up` adopts them.
                log.error("supervisor_failed", exc_info=failure)
                raise ControlPlaneError(
                    f"the supervisor failed: {failure!r}; the processes go on without it",
                    where=str(self._folder.log_file("control_plane")),
                    hint="start it again: bulkhead up",
                )
            self._console.tell("stopping: routers first, then doors, then the rest (Ctrl-C again: at once)")
            await supervisor.stop(self._hurry)
        await failed_keys.work()
        await accesses.work()
        self._console.tell("stopped; nothing is left running")
        if self._refused is not None:
            raise self._refused
        return 0

    async def _wait_stopped(self, supervisor: Supervisor) -> BaseException | None:
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limits.PROBE_INTERVAL_MS / 1000):
                    await self._stop.wait()
            failure = supervisor.failed()
            if failure is not None or self._registry.lost is not None:
                return failure
        return None

    async def _announce(self, supervisor: Supervisor) -> None:
        not_ready = await supervisor.wait_ready(limits.START_TIMEOUT_MS)
        while not_ready:
            log.error("not_ready", processes=not_ready)
            self._console.tell(
                f"not ready yet: {', '.join(not_ready)}. What ends is started again; why stands in {self._folder.logs}"
            )
            not_ready = await supervisor.wait_ready(limits.START_TIMEOUT_MS)
        strangers = await self._look_who_listens(supervisor)
        if strangers:
            self._refused = RefusedError(
                f"{'; '.join(map(str, strangers))}: the settings say nothing of that, so all was ended again",
                where="what the installation's processes listen on",
                hint="set the host and port in the settings where it should; else mend what listens there",
            )
            self._stop.set()
            return
        log.info("all_ready")
        self._console.tell_ready(self._settings, self._folder, os.getpid(), self._registry.cells())

    async def _look_who_listens(self, supervisor: Supervisor) -> list[listening.Listener]:
        """Return what listens beyond what the settings say, and tell of what is new."""
        specs = [state.spec for state in supervisor.states]
        rows = await asyncio.to_thread(listening.rows_of, self._settings, specs)
        seen = await asyncio.to_thread(listening.read_listeners, self._instance.id, os.getpid())
        found = listening.beyond(seen.listeners, rows)
        for listener in found:
            if listener not in self._listens_beyond:
                log.error("listens_beyond_settings", **asdict(listener))
                self._console.tell(f"NOT IN THE SETTINGS: {listener}")
        self._listens_beyond = found
        return found

    def _plan(self) -> tuple[ProcessSpec, ...]:
        planned = self._make_plan(
            self._settings,
            self._folder,
            self._instance,
            self._registry.cells(),
            code_version(),
            lambda cell: data_folder.secrets_digest(self._folder, self._settings, cell),
        )
        return tuple(map(self._users.dressed, planned))

    def _places(self) -> dict[str, dict[str, Any]]:
        """Give where the books of each cell stand to which partners may go."""
        return {
            cell.name: place_of_cell(self._settings, self._folder, self._instance, cell)
            for cell in self._registry.cells()
            if cell.is_in_use
        }

    def _make_fleet(self, publisher: Publisher, doors: Doors, supervisor: Supervisor, moves: Moves) -> Fleet:
        def require_room() -> None:
            spares = self._settings.spares_per_cell
            memory.require_room(dedicated=0, pooled=0, spares=spares, cells=1, available=memory.available_bytes())

        ground = Ground(
            self._settings,
            self._folder,
            lambda cell: [spec for spec in self._plan() if spec.cell == cell.name],
            require_room,
            is_free,
        )

        def moving() -> set[str]:
            return {cell for move in moves.running() for cell in (*move.left, move.target)}

        return Fleet(ground, self._registry, publisher, doors, supervisor, moving=moving)

    def _tell_approvals(self, approvals: Approvals) -> None:
        if not approvals.kinds:
            return
        admins = [one.id for one in self._registry.operators() if (one.role, one.status) == ("admin", "active")]
        self._console.tell(f"two persons are needed for: {', '.join(sorted(approvals.kinds))}")
        if len(admins) < 2:
            self._console.tell(
                f"{', '.join(admins) or 'nobody'} is the only admin, so nobody can approve what that one asks for. "
                "Start without two_person_approval, add another (bulkhead operator add NAME --role admin), start again"
            )

    def _require_memory(self) -> None:
        partners = self._registry.partners()
        cells = sum(cell.is_running for cell in self._registry.cells())
        pooled = sum(partner.isolation == "pooled" for partner in partners)
        self._console.tell(f"partners: {len(partners) - pooled} dedicated, {pooled} pooled")
        memory.require_room(
            dedicated=len(partners) - pooled,
            pooled=pooled,
            spares=self._settings.spares_per_cell * cells,
            cells=cells,
            available=memory.available_bytes() + memory.bytes_of_instance(self._instance.id),
        )

    def _require_test_partners(self) -> None:
        if not self._settings.fault_injection:
            return
        live = sorted(partner.id for partner in self._registry.partners() if partner.mode == "live")
        if live:
            raise RefusedError(
                f"fault injection is for test installations; {len(live)} partners here are live, {live[0]!r} first",
                where="fault_injection in the settings",
                hint="start it without --fault-injection, or on a data folder of its own",
            )
        self._console.tell("FAULT INJECTION IS ON: a payment's metadata can crash its worker. For tests only.")
        if self._settings.bulkheads_off:
            self._console.tell(f"BULKHEADS ARE OFF: {', '.join(self._settings.bulkheads_off)}")

    def _describe(self) -> dict[str, Any]:
        return {
            "running": True,
            "pid": os.getpid(),
            "version": version(),
            "data_folder": str(self._folder.root),
            "endpoint": str(self._folder.control_socket),
            "started_at": self._started_at,
            **status.weaknesses(self._settings, self._users.weakness),
        }

    def _watch_signals(self) -> None:
        def told() -> None:
            if self._stop.is_set():
                self._hurry.set()  # a second Ctrl-C: don't wait for anybody
            self._stop.set()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # started with nohup: the end of the terminal is not ours
            asyncio.get_running_loop().add_signal_handler(number, told)

    @contextlib.asynccontextmanager
    async def _serving(self, app: Gate) -> AsyncIterator[None]:
        server = admin.make_server(app)
        listeners = [*self._listen_on_port(), data_folder.listen_on(self._folder.control_socket)]
        task = asyncio.create_task(server.serve(sockets=listeners))
        try:
            yield
        finally:
            server.should_exit = True
            await task
            for listener in listeners:
                listener.close()
            self._folder.control_socket.unlink(missing_ok=True)

    def _copying_heads(self) -> contextlib.AbstractAsyncContextManager[None]:
        place = self._settings.audit_head_copy
        if not place:
            return contextlib.nullcontext()
        copy = HeadCopy(self._registry, place, self._instance.data_id)
        return _repeating(copy.work, limits.AUDIT_COPY_INTERVAL_MS)

    def _listen_on_port(self) -> list[socket.socket]:
        host, port = self._settings.admin_host, self._settings.admin_port
        if port is None:
            return []
        try:
            return [socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)]
        except OSError as error:
            raise RefusedError(
                f"the admin API can't listen on {host}:{port}: {error.strerror}",
                where="admin_host and admin_port in the settings",
                hint="end what listens there, or move the port",
            ) from error


@contextlib.asynccontextmanager
async def _repeating(work: Callable[[], Any], interval_ms: int) -> AsyncIterator[None]:
    """Do some work again and again beside the rest. A failure is logged and tried again: others depend on the rest."""

    async def repeat() -> None:
        while True:
            try:
                await work()
            except Exception:
                log.exception("repeated_work_failed", work=getattr(work, "__qualname__", str(work)))
            await asyncio.sleep(interval_ms / 1000)

    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _probe(spec: ProcessSpec) -> bool:
    """Ask a process whether it is well, in the cheapest way that needs its event loop to turn.

    By hand: asked every second of each process, a client library would be most of what an idle control plane costs.
    """
    try:
        reader, writer = await asyncio.open_connection(spec.host, spec.port)
        try:
            if spec.role == "ray":
                return True  # of Ray a connection is all that is asked
            if spec.role == "door":
                return bool(await reader.read(1))  # a door speaks first, with a challenge
            if spec.role == "redis":
                writer.write(b"PING\r\n")
                # That it asks for its password is an answer, too; so no secret is needed here.
                return (await reader.readline()).startswith((b"+PONG", b"-NOAUTH"))
            writer.write(f"GET /livez HTTP/1.1\r\nHost: {spec.host}\r\nConnection: close\r\n\r\n".encode())
            # Any answer is one: who has as many connections as it lets in (503) is not dead.
            return (await reader.readline()).startswith(b"HTTP/1.")
        finally:
            writer.close()
    except (OSError, ValueError):  # ValueError: a line without an end
        return False


def _require_free_ports(specs: list[ProcessSpec]) -> None:
    """Say it now where a port is taken, rather than by a process that ends again and again. Raises RefusedError."""
    wanted = [(spec, port) for spec in specs for port in {spec.port, spec.config.get("metrics_port", spec.port)}]
    for spec, port in wanted:
        with socket.socket(socket.AF_INET6 if ":" in spec.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((spec.host, port))
            except OSError as error:
                raise RefusedError(
                    f"{spec.name} can't listen on {spec.host}:{port}: {error.strerror}",
                    where="the ports in the settings",
                    hint="end what listens there, or move the port: http_port, door_port, metrics_port, ray_port, "
                    "acquirer_port, redis_port",
                ) from error
