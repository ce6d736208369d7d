"""What experiments do: Chaos Toolkit's actions, as plain functions. Each first notes down how it is undone.

One that can't be done ends the experiment: a fault that did not strike would show nothing.
"""

import contextlib
import functools
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, ParamSpec

import httpx
import psutil
from chaoslib.exceptions import InterruptExecution

from actors.errors import StoreError
from chaos import attack_ray, files, limits, partners, session, syscalls, victims
from chaos.cell_disk import CellDisk
from chaos.faults import Target
from chaos.fdb_server import FdbServerError
from chaos.gateway import Gateway
from chaos.installation import GatewayError, is_alive
from chaos.limits_checker import Limits
from chaos.load_process import LoadError
from chaos.session import NOBODY, AbortedError, Session
from chaos.workload import BookError
from control_plane.errors import ControlPlaneError

P = ParamSpec("P")

FAILURES: Final = (
    GatewayError,
    FdbServerError,
    files.FileFaultError,
    syscalls.SystemCallFaultError,
    LoadError,
    BookError,
    ControlPlaneError,
    StoreError,
    httpx.HTTPError,
    psutil.Error,
    OSError,
)


def _ending(action: Callable[P, None]) -> Callable[P, None]:
    """Have an action that can't be done end the experiment."""

    @functools.wraps(action)
    def act(*arguments: P.args, **named: P.kwargs) -> None:
        try:
            action(*arguments, **named)
        except AbortedError as error:
            raise InterruptExecution(str(error)) from error
        except FAILURES as error:
            session.current().failure = f"{action.__name__}: {error}"
            raise InterruptExecution(f"{action.__name__}: {error}") from error

    return act


@_ending
def kill(target: str, cell: str, partner: str) -> None:
    """SIGKILL the processes of a target (chaos.faults.Target). Who supervises them has to start them again."""
    run = session.current()
    found = _find(run, Target(target), cell, partner)
    run.strike()
    for process in found:
        _signal(process, signal.SIGKILL)


@_ending
def stop(target: str, cell: str, partner: str) -> None:
    """SIGSTOP the processes of a target; SIGCONT, where they are still there, undoes it."""
    run = session.current()
    found = _find(run, Target(target), cell, partner)
    for process in found:
        run.undo.add(f"SIGCONT to {target} {process.pid}", functools.partial(_signal, process, signal.SIGCONT))
    run.strike()
    for process in found:
        _signal(process, signal.SIGSTOP)


@_ending
def set_acquirer_fault(partner: str, mode: str, delay_ms: int | None = None) -> None:
    """Let the acquirer simulator hang, refuse, be slow, answer garbage or nothing for one partner."""
    run = session.current()
    gateway = run.require_gateway()
    run.undo.add(f"clear {partner}'s fault at the acquirer", functools.partial(gateway.clear_fault, partner))
    run.strike()
    gateway.set_fault(partner, mode, **({} if delay_ms is None else {"delay_ms": delay_ms}))


@_ending
def start_flood(
    partner: str,
    per_second: float,
    mix: str,
    rate_per_second: int,
    rate_burst: int,
    in_flight_max: int,
) -> None:
    """Let a partner pay more than these limits, which it has meanwhile, beside its share of the load."""
    run = session.current()
    gateway = run.require_gateway()
    allowed = Limits(rate_per_second, rate_burst, in_flight_max)
    run.undo.add(f"give {partner} its limits back", functools.partial(partners.set_limits, gateway, partner))
    partners.set_limits(gateway, partner, allowed)
    run.flood_limits = allowed
    run.strike()
    run.start_flood({partner: run.keys[partner]}, per_second, mix)


@_ending
def start_flood_of_bad_keys() -> None:
    """Let somebody flood with keys that look like keys, and are none."""
    run = session.current()
    run.strike()
    key = f"sk_test_{NOBODY}_{secrets.token_urlsafe(32)}"
    run.start_flood({NOBODY: key}, float(limits.CHAOS_BAD_KEYS_PER_SECOND), "bad_keys")


@_ending
def start_hostile_partner(partner: str) -> None:
    """Let a partner send what costs a router most, at its full limit."""
    run = session.current()
    run.strike()
    run.start_attack(partner)


@_ending
def start_stranger() -> None:
    """Let somebody without a key begin much at a router, and finish nothing."""
    run = session.current()
    run.strike()
    run.start_stranger()


@_ending
def send_empty_streams(cell: str) -> None:
    """Let a stranger on this machine send what ends a GCS, without a token, again and again."""
    run = session.current()
    rows = run.require_gateway().status()["processes"]
    host, _, port = next(row["endpoint"] for row in rows if row["process"] == f"{cell}.ray").rpartition(":")
    run.strike()
    for _ in range(limits.CHAOS_EMPTY_STREAMS):
        with contextlib.suppress(ConnectionRefusedError):  # the GCS is just being started again
            attack_ray.send_empty_stream(host, int(port))
        time.sleep(limits.CHAOS_EMPTY_STREAMS_INTERVAL_MS / 1_000)


@_ending
def hang_cell(cell: str, per_second: float) -> None:
    """SIGSTOP a cell's door and the control plane, which would replace it, while the cell's partners go on sending."""
    run = session.current()
    doors, supervisors = _find(run, Target.DOOR, cell, ""), _find(run, Target.CONTROL_PLANE, "", "")
    keys = {partner: run.keys[partner] for partner, home in run.target.cells.items() if home == cell}
    run.start_flood(keys, per_second, "flood")
    for process in [*supervisors, *doors]:  # the door goes on first
        run.undo.add(f"SIGCONT to {process.pid}", functools.partial(_signal, process, signal.SIGCONT))
    run.strike()
    for process in [*supervisors, *doors]:
        _signal(process, signal.SIGSTOP)


@_ending
def order_fault(partner: str, fault: str) -> None:
    """Send one payment of the partner's that has its worker crash, loop or leak as it is decided."""
    run = session.current()
    gateway = run.require_gateway()
    # Its strikes, too: one experiment after the other would end with the partner's quarantine, as it should.
    run.undo.add(f"release {partner}", functools.partial(partners.release, gateway, partner))
    run.strike()
    run.order_fault(partner, fault)


@_ending
def kill_control_plane() -> None:
    """SIGKILL the control plane; to undo it, the same command is run again."""
    run = session.current()
    gateway = run.require_gateway()
    if isinstance(gateway, Gateway):
        run.undo.add("start the control plane again", functools.partial(_start_own, gateway))
        run.strike()
        gateway.kill_control_plane()
        return
    (process,) = _find(run, Target.CONTROL_PLANE, "", "")
    command, folder, environment = process.cmdline(), process.cwd(), process.environ()
    run.undo.add(
        f"run again: {' '.join(command)}",
        functools.partial(_start_again, command, Path(folder), environment, run.folder / "up.out", process),
    )
    run.strike()
    _signal(process, signal.SIGKILL)


@_ending
def kill_fdb_server() -> None:
    """SIGKILL the FoundationDB server; to undo it, it is started again on the same data, and waited for."""
    run = session.current()
    server = run.require_server()

    def start() -> None:
        server.start(wait=False)  # it stays up, also where it is not waited for to the end
        server.wait_available()

    run.undo.add("start the FoundationDB server again", start)
    run.strike()
    server.kill()


@_ending
def damage_book(partner: str, damage: str) -> None:
    """Damage a partner's book on the disk; to undo it, the book is put back as it was."""
    run = session.current()
    gateway = run.require_gateway()
    book = gateway.folder.cell_folder(run.target.cells[partner]) / "partners" / f"{partner}.sqlite"
    owner, kept = gateway.worker_of(partner), run.folder / "kept-book"
    run.strike()
    damaged = files.damage(book, files.Damage[damage], seed=run.settings.seed, keep_in=kept, owner=owner)
    run.undo.add(f"put {partner}'s book back, which is kept in {kept}", damaged.put_back)


@_ending
def spoil_disk(cell: str, fault: str) -> None:
    """Let the fsyncs of a cell's workers be slow (`slow`), or their writes fail for want of room (`full`)."""
    run = session.current()
    faults = {"slow": syscalls.slow_syncs(limits.CHAOS_SYNC_DELAY_MS), "full": syscalls.DISK_FULL}
    disk = CellDisk(run.require_gateway(), cell, faults[fault])
    run.undo.add(f"{cell}'s disk is well again", disk.end)
    run.strike()
    disk.start()


@_ending
def spoil_network(cell: str, toxics: Sequence[Mapping[str, Any]]) -> None:
    """Put toxics on the way from the routers to a cell's door."""
    run = session.current()
    proxies = run.require_proxies()
    run.undo.add(f"the network of {cell} is well again", proxies.make_whole)
    run.strike()
    proxies.spoil(cell, toxics)


@_ending
def move_clock(offset_s: int) -> None:
    """Let the wall clock of all routers, doors and workers jump, and back to the right time to undo it."""
    run = session.current()
    clock = run.require_clock()
    # The acquirer is another party; Redis, which is no Python, counts what it forgets by seconds that go on.
    kept = {"acquirer", "redis"}
    rows = [row for row in run.require_gateway().status()["processes"] if row["pid"] and row["role"] not in kept]
    still = [row["process"] for row in rows if not clock.moves(row["pid"])]
    if still:
        raise GatewayError(f"these have another clock, which would not jump: {', '.join(still)}")
    run.undo.add("the clock is right again", functools.partial(clock.set_offset_s, 0))
    run.strike()
    clock.set_offset_s(offset_s)


@_ending
def hold(seconds: float) -> None:
    """Let the fault last; end early where a safeguard says so."""
    run = session.current()
    if run.moments.struck_s is None:
        run.strike()  # an experiment without a fault
    run.wait(float(seconds))


@_ending
def restore() -> None:
    """Take away what is left of the fault; nothing where nothing is left."""
    run = session.held()
    if run is not None:
        run.undo.all()
        run.end_fault()


@_ending
def recover() -> None:
    """Wait until all is as ever."""
    session.current().recover()


@_ending
def calm() -> None:
    """Let all be calm for a while."""
    session.current().be_calm()


def _find(run: Session, target: Target, cell: str, partner: str) -> list[psutil.Process]:
    server = run.own.server if run.own is not None else None
    pid_of_server = None if server is None else server.pid
    status = run.require_gateway().status()
    return victims.find(status, target, cell=cell or None, partner=partner or None, pid_of_server=pid_of_server)


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    if is_alive(process):  # psutil sees to it that it is the same process still
        process.send_signal(number)


def _start_own(gateway: Gateway) -> None:
    if gateway.up is None:
        gateway.start()


def _start_again(
    command: list[str], folder: Path, environment: dict[str, str], output: Path, killed: psutil.Process
) -> None:
    if is_alive(killed):
        return
    with output.open("ab") as out:
        subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
