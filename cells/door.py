"""The cell's door: each partner's share, commands on their way to the partner's worker, and the control plane's word.

Who owns which partner is in ownership.py.

`python -m cells.door --config FILE` runs it. A body is forwarded unread. A command is sent at most
COMMAND_SENDS_MAX times, under the same command id, so that a worker's death costs its partner a delay.
"""

import argparse
import asyncio
import dataclasses
import os
import signal
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import msgpack
import orjson
import structlog
import uvloop

from actors.errors import StoreError, StoreExistsError
from actors.limits import COMMAND_DEADLINE_MS
from actors.store import Put, Store
from cells import door_answers, door_metrics, process_config
from cells import limits as cell_limits
from cells.api import frames, limits, logs, messages
from cells.api.bulkheads import ALL_ON, Bulkhead
from cells.api.connection import FrameServer, PeerError, PeerLostError, PeerTimeoutError, PeerUnavailableError, Request
from cells.api.messages import NOT_MINE, Answer, Method, Profile, RefusalCode
from cells.arrivals import Arrivals, read_ended, read_expected
from cells.cell_book import CellBook, open_book
from cells.departures import Departures, read_tombstone
from cells.erasures import Erasures
from cells.ownership import Ownership
from cells.poison import Mark, Suspects
from cells.remote import Cluster
from cells.seats import Seat
from cells.shedding import WORK, LoadShedder
from cells.workforce import Link, Workforce
from stores.shelf import Shelf, open_shelf

log = structlog.get_logger()

T = TypeVar("T")

_DEPARTURES: Final = frozenset(
    {
        Method.BEGIN_LEAVING,
        Method.COPY_ROWS,
        Method.QUIESCE,
        Method.SEAL,
        Method.END_LEAVING,
        Method.SUM_ROWS,
        Method.BURY_MOVED,
        Method.ERASE_MOVED,
    }
)
_ARRIVALS: Final = frozenset(
    {
        Method.BEGIN_ARRIVAL,
        Method.HOLD_PLACE,
        Method.TAKE_ROWS,
        Method.ARRIVAL_STATUS,
        Method.OPEN_ARRIVAL,
        Method.END_ARRIVAL,
    }
)
_CONTROL_ONLY: Final = (_DEPARTURES | _ARRIVALS) - {Method.OPEN_ARRIVAL} | frozenset(
    {
        Method.ONBOARD,
        Method.CONFIGURE,
        Method.RELEASE_PARTNER,
        Method.ERASE_PARTNER,
        Method.COUNT_OPEN,
        Method.CELL_STATUS,
        Method.RESOLVE_OPERATION,
        Method.RECONCILE_OPERATIONS,
        Method.RECORD_CHANGE,
        Method.COMPARE_SETTLEMENT,
        Method.LIST_UNRECONCILED,
    }
)
# Only the router speaks for acquirers, whose signatures it checks.
_ROUTER_ONLY: Final = messages.NOTIFICATIONS
_CONFIG: Final = {
    "cell": str,
    "host": str,
    "port": int,
    "metrics_port": int,
    "ray_address": str,
    "token_file": str,
    "secret_file": str,
    "folder": str,
    "place": dict,
    "spares": int,
    "acquirers": dict,
    "log_file": str | None,
    "logs_folder": str,
    "fault_injection": bool,
    "bulkheads_off": list,
}


class Door:
    """Owns the assignment of its cell's partners while its epoch is the newest."""

    def __init__(
        self,
        cell: str,
        shelf: Shelf,
        book: Store,
        acquirers: Mapping[str, str],
        on_superseded: Callable[[], None],
        *,
        bulkheads_off: AbstractSet[Bulkhead] = ALL_ON,
    ) -> None:
        self.cell = cell
        self._bulkheads_off = bulkheads_off
        self._shelf = shelf
        self._book = CellBook(cell, book, on_superseded)
        self._seats: dict[str, Seat] = {}
        self._suspects = Suspects()
        self._shedder = LoadShedder(cell_limits.DOOR_COMMANDS_MAX)
        door_metrics.UNDER_WAY.set_function(lambda: self._shedder.under_way)
        self._started_ms = int(time.time() * 1_000)
        # Asked twice at once, it is one seat all the same; different partners' books are made side by side.
        self._onboarding: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._confirming: asyncio.Task[None] | None = None
        self._ownership = Ownership(self._seats, self._book, acquirers, self.confirm)
        self._departures = Departures(self._seats, self._book, shelf, self._ownership)
        self._arrivals = Arrivals(self._seats, self._book, shelf, self._ownership, self._departures.tombstones)
        self._departures.end_arrival = self._arrivals.end_lost
        self._erasures = Erasures(self._seats, self._book, shelf, self._ownership)

    # Start and end

    @property
    def door_epoch(self) -> int:
        """The epoch of this door; a newer door has a higher one."""
        return self._book.door_epoch

    async def open(self) -> None:
        """Raise the door's epoch and read which partners live here. Raises StoreError."""
        await self._book.own()
        profiles, escalations = await self._book.read()
        for partner_id, profile in profiles.items():
            seat = self._seats[partner_id] = Seat(profile, escalation=escalations.get(partner_id))
            if seat.is_quarantined:
                seat.state, seat.why = "quarantined", escalations[partner_id].why
        self._ownership.count_quarantined()
        left, expected, ended = await self._book.read_moves()
        self._departures.tombstones.update(known(read_tombstone, left))
        self._arrivals.expected.update(known(read_expected, expected))
        self._arrivals.ended.update(known(read_ended, ended))
        log.info("door_opened", door_epoch=self.door_epoch, partners=len(self._seats))

    async def staff(self, workforce: Workforce) -> None:
        """Give each partner its worker: the one that has it from before, or a fresh one. Requests may come already."""
        await self._ownership.staff(workforce)

    async def stop(self) -> None:
        """Begin nothing more; workers live on."""
        await self._departures.stop()
        await self._ownership.stop()

    def confirm(self) -> None:
        """Find out, soon, whether this is still the cell's door: it slept, or a worker of its own refused it."""
        if self._confirming is None or self._confirming.done():
            self._confirming = asyncio.create_task(self._confirm(), name="confirm-door")

    async def _confirm(self) -> None:
        await self._book.write(Put(("door",), msgpack.packb({"epoch": self.door_epoch, "pid": os.getpid()})))

    def worker_died(self, link: Link, cause: str, mark: Mark | None) -> None:
        """Give a dead worker's partners to others; suspect the command that it was deciding, and no other."""
        if not self._is_on(Bulkhead.POISON):
            mark = None
        if mark is not None and mark.command_id and self._suspects.accuse(mark.command_id) >= limits.POISON_DEATHS_MAX:
            log.error("command_quarantined", command_id=mark.command_id, worker=link.name)
        self._ownership.worker_died(link, cause, mark)

    # Requests

    async def handle(self, request: Request) -> bytes:
        """Answer one request of a router or of the control plane."""
        method = request.method
        if method in _CONTROL_ONLY and request.role != "control":
            return door_answers.refused(RefusalCode.INTERNAL_ERROR, f"{method} is for the control plane only.")
        if method in _ROUTER_ONLY:
            return await self._notify(request)
        if method in messages.WRITES or method in messages.READS:
            return await self._forward(request)
        try:
            return await self._serve_control(request)
        except messages.MessageError as error:
            return door_answers.refused(RefusalCode.INTERNAL_ERROR, f"The door can't read this {method}: {error}")

    async def _serve_control(self, request: Request) -> bytes:
        method = request.method
        if method in _DEPARTURES:
            return await self._departures.handle(request)
        if method in _ARRIVALS:
            return await self._arrivals.handle(request)
        match method:
            case Method.ONBOARD:
                return await self._onboard(door_answers.profile_of(request))
            case Method.CONFIGURE:
                return await self._configure(door_answers.profile_of(request))
            case Method.RELEASE_PARTNER:
                return await self._release(request)
            case Method.ERASE_PARTNER:
                if request.partner_id in self._departures.tombstones or request.partner_id in self._arrivals.expected:
                    return self._not_here(request.partner_id)
                return await self._erasures.erase(request)
            case Method.CELL_STATUS:
                return door_answers.ok(await self._status())
            case _:
                return door_answers.refused(RefusalCode.INTERNAL_ERROR, f"A door has no method {method!r}.")

    async def _forward(self, request: Request) -> bytes:
        seat = self._seats.get(request.partner_id)
        if seat is None:
            return self._not_here(request.partner_id)
        if seat.is_quarantined:
            return _not_served(seat)
        if seat.in_flight >= limits.DOOR_PARTNER_COMMANDS_MAX and self._is_on(Bulkhead.PARTNER_SHARE):
            door_metrics.REFUSED.labels(request.partner_id).inc()
            return door_answers.refused(
                RefusalCode.MAILBOX_FULL,
                f"The partner has {seat.in_flight} requests under way, more are not taken.",
                retry_after_ms=1_000,
            )
        if not self._enter(request):
            return door_answers.overloaded()
        seat.in_flight += 1
        began = time.monotonic()
        try:
            return await self._deliver(seat, request)
        finally:
            seat.in_flight -= 1
            self._shedder.leave(request.partner_id)
            seat.count(request.method, time.monotonic() - began)

    async def _notify(self, request: Request) -> bytes:
        """Forward what an acquirer tells, within a share of its own."""
        if request.role != "router":
            return door_answers.refused(RefusalCode.INTERNAL_ERROR, f"{request.method} is for routers only.")
        seat = self._seats.get(request.partner_id)
        if seat is None:
            return self._not_here(request.partner_id)
        if seat.is_quarantined:
            return _not_served(seat)
        if seat.notifying >= limits.DOOR_PARTNER_NOTIFICATIONS_MAX and self._is_on(Bulkhead.PARTNER_SHARE):
            door_metrics.REFUSED.labels(request.partner_id).inc()
            detail = f"{seat.notifying} notifications to the partner are under way, more are not taken."
            return door_answers.refused(RefusalCode.MAILBOX_FULL, detail, retry_after_ms=1_000)
        if not self._enter(request):
            return door_answers.overloaded()
        seat.notifying += 1
        try:
            return await self._deliver(seat, request)
        finally:
            seat.notifying -= 1
            self._shedder.leave(request.partner_id)
            door_metrics.COMMANDS.labels(request.partner_id, request.method).inc()

    def _not_here(self, partner_id: str) -> bytes:
        return self._departures.tombstone(partner_id) or door_answers.not_here(partner_id, self.cell)

    def _enter(self, request: Request) -> bool:
        """Take a command into the cell's room, or shed it; a cell short of room says so before it sends anything."""
        work = WORK[request.method]
        if not self._shedder.enter(request.partner_id, work):
            door_metrics.SHED.labels(work).inc()
            return False
        return True

    async def _deliver(self, seat: Seat, request: Request) -> bytes:
        budget_ms = max(min(request.budget_ms, COMMAND_DEADLINE_MS), 0)
        deadline = time.monotonic() + budget_ms / 1_000
        sends = 0
        handed_over = False
        while True:
            if self._is_quarantined(request):
                return door_answers.quarantined()
            if sends >= limits.COMMAND_SENDS_MAX:
                return _unanswered(request)
            link = await self._wait_active(seat, deadline)
            if link is None:
                return _not_served(seat, is_tried=bool(sends or handed_over) and request.method in messages.WRITES)
            budget_ms = int((deadline - time.monotonic()) * 1_000)
            handovers = seat.handovers
            seat.sent()
            try:
                body = await link.connection.request(request.method, request.partner_id, request.body, budget_ms)
            except PeerUnavailableError:
                if link.connection.is_open and sends:
                    return _unanswered(request)
                if link.connection.is_open:
                    return door_answers.refused(
                        RefusalCode.MAILBOX_FULL, "The worker takes no more.", retry_after_ms=1_000
                    )
                await asyncio.sleep(0)  # its end is being told: worker_died() follows
                continue
            except PeerLostError:
                sends += 1
                door_metrics.SENT_AGAIN.inc()
                continue
            except PeerTimeoutError:
                self._unanswered(seat, link, budget_ms, deadline)
                return _unanswered(request)
            finally:
                seat.answered()
            seat.unanswered = 0
            if body == NOT_MINE:
                # An actor that stopped in the middle of it may have written it.
                if seat.handovers != handovers:
                    handed_over = True  # nothing died of it, so it is no try of those that are counted
                    continue
                sends += 1
                self._ownership.given_up(seat, link)
                continue
            is_open = (sends or handed_over) and request.method in messages.WRITES
            return door_answers.outcome_unknown() if is_open and door_answers.says_nothing_done(body) else body

    async def _wait_active(self, seat: Seat, deadline: float) -> Link | None:
        while not seat.is_ready:
            remaining = deadline - time.monotonic()
            if (
                remaining <= 0
                or seat.is_quarantined
                or seat.receipt is not None
                or (seat.state == "unavailable" and not seat.is_handed_over)
            ):
                return None
            try:
                async with asyncio.timeout(remaining):
                    await seat.changed.wait()
            except TimeoutError:
                return None
        return seat.link if deadline > time.monotonic() and not seat.is_quarantined else None

    def _is_on(self, bulkhead: Bulkhead) -> bool:
        return bulkhead not in self._bulkheads_off

    def _is_quarantined(self, request: Request) -> bool:
        if not self._suspects.any or request.method not in messages.WRITES:
            return False
        try:
            command = messages.decode_command(request.body)
        except messages.MessageError:
            return False  # the worker says what is wrong with it
        self._suspects.meet(command.command_id, request.partner_id, command.idempotency_key)
        return self._suspects.is_quarantined(command.command_id)

    def _unanswered(self, seat: Seat, link: Link, budget_ms: int, deadline: float) -> None:
        late_ms = (time.monotonic() - deadline) * 1_000 - limits.ANSWER_GRACE_MS["door"]
        if not self._is_on(Bulkhead.HEARTBEAT):
            return
        if late_ms > limits.DOOR_LATE_MS or budget_ms < limits.UNANSWERED_MS_MIN:
            return  # the door slept, or there was no time to answer: the worker is not to blame
        seat.unanswered += 1
        log.warning("command_unanswered", partner=seat.profile.partner_id, worker=link.name, times=seat.unanswered)
        if seat.unanswered >= limits.UNANSWERED_IN_ROW_MAX and seat.link is link:
            seat.unanswered = 0
            self._ownership.unanswering(seat, link)

    # The control plane

    async def _onboard(self, profile: Profile) -> bytes:
        partner_id = profile.partner_id
        if partner_id in self._departures.tombstones or partner_id in self._arrivals.expected:
            return self._not_here(partner_id)
        async with self._onboarding.setdefault(partner_id, asyncio.Lock()):
            if partner_id not in self._seats:
                try:
                    await self._shelf.create("partners", partner_id)
                except StoreExistsError:
                    log.info("book_is_there_already", partner=partner_id)
                except StoreError as error:
                    return door_answers.refused(RefusalCode.PARTNER_UNAVAILABLE, f"{type(error).__name__}: {error}")
                refused = await self._keep(profile)
                if refused is not None:
                    return refused
                seat = self._seats[partner_id] = Seat(profile)
                self._ownership.activate_soon(seat, "onboarding")
        seat = self._seats[partner_id]
        deadline = time.monotonic() + limits.WORKER_START_TIMEOUT_MS / 1_000
        if await self._wait_active(seat, deadline) is None:
            return _not_served(seat)
        return door_answers.ok({"epoch": seat.epoch})

    async def _configure(self, profile: Profile) -> bytes:
        seat = self._seats.get(profile.partner_id)
        if seat is None:
            return self._not_here(profile.partner_id)
        if profile.version > seat.profile.version:
            refused = await self._keep(profile)
            if refused is not None:
                return refused
            seat.profile = profile
        # Also where the door knew it: the worker may have missed it.
        await self._ownership.configure(seat)
        return door_answers.ok({"profile_version": seat.profile.version})

    async def _release(self, request: Request) -> bytes:
        """Take back, as an operator wants it, what was decided about a partner of whom workers died."""
        seat = self._seats.get(request.partner_id)
        if seat is None:
            return self._not_here(request.partner_id)
        why = await self._ownership.release(seat, to_pool=door_answers.wants_pool(request))
        if why:
            return door_answers.refused(RefusalCode.PARTNER_UNAVAILABLE, why)
        return door_answers.ok({"quarantined": seat.is_quarantined})

    async def _keep(self, profile: Profile) -> bytes | None:
        error = await self._book.put_profile(profile)
        if error is None:
            return None
        return door_answers.refused(RefusalCode.PARTNER_UNAVAILABLE, f"{type(error).__name__}: {error}")

    async def _status(self) -> dict[str, Any]:
        workforce = self._ownership.workforce
        assert workforce is not None
        links = list(workforce.links.values())
        told = await asyncio.gather(*(self._worker_status(link) for link in links))
        actors = {name: status for partners in told for name, status in partners.items()}
        return {
            "cell": self.cell,
            "door_epoch": self.door_epoch,
            "started_at_ms": self._started_ms,
            "workers": [
                {
                    "worker": link.name,
                    "pid": link.endpoint.pid,
                    "endpoint": f"{link.endpoint.host}:{link.endpoint.port}",
                    "partners": sorted(link.partners),
                    "spare": workforce.is_spare(link),
                    "pool": link.is_pool,
                    "healthy": link.silent_ms <= limits.HEARTBEAT_TIMEOUT_MS,
                    "heartbeat_age_ms": link.silent_ms,
                }
                for link in links
            ],
            "partners": [
                {
                    "partner": partner_id,
                    # The worker's, where it tells: a profile that it missed is handed over again.
                    "profile_version": actors.get(partner_id, {}).get("profile_version", seat.profile.version),
                    "status": seat.profile.status,
                    "isolation": seat.profile.isolation,
                    "escalation": None if seat.escalation is None else dataclasses.asdict(seat.escalation),
                    "state": seat.state,
                    "why": seat.why,
                    "epoch": seat.epoch,
                    "worker": None if seat.link is None else seat.link.name,
                    "takeovers": seat.takeovers,
                    "commands": seat.in_flight,
                    "in_flight": actors.get(partner_id, {}).get("in_flight", 0),
                    "unknowns": actors.get(partner_id, {}).get("unknowns", 0),
                    "breaker": actors.get(partner_id, {}).get("breaker", "unknown"),
                    "breakers": actors.get(partner_id, {}).get("breakers", {}),
                }
                for partner_id, seat in sorted(self._seats.items())
            ],
            "arriving": sorted(self._arrivals.expected),
            "left": {partner_id: receipt.to for partner_id, receipt in self._departures.tombstones.items()},
        }

    async def _worker_status(self, link: Link) -> dict[str, dict[str, Any]]:
        try:
            answer = messages.decode_answer(
                await link.connection.request(Method.WORKER_STATUS, "", b"", limits.METRICS_TIMEOUT_MS)
            )
        except PeerError:
            return {}
        assert isinstance(answer, Answer)
        return dict(orjson.loads(answer.body)["partners"])


def known(read: Callable[[str, bytes], T | None], rows: Mapping[str, bytes]) -> dict[str, T]:
    """Read rows, but for those that can't be read."""
    found = {partner_id: read(partner_id, value) for partner_id, value in rows.items()}
    return {partner_id: value for partner_id, value in found.items() if value is not None}


def _unanswered(request: Request) -> bytes:
    """Say what is known of a command that was sent and not answered: of a read that nothing was changed."""
    if request.method in messages.WRITES:
        return door_answers.outcome_unknown()
    return door_answers.unavailable("A worker that was asked gave no answer.")


def _not_served(seat: Seat, *, is_tried: bool = False) -> bytes:
    if seat.receipt is not None:
        return door_answers.moved(seat.receipt, is_tried=is_tried)
    if is_tried:
        return door_answers.outcome_unknown()
    if seat.escalation is not None and seat.is_quarantined:
        return door_answers.partner_quarantined(seat.escalation)
    return door_answers.unavailable(seat.why)


async def _run(config: dict[str, Any], secret: bytes) -> NoReturn:
    """Be the door until SIGTERM, or until a newer door or a lost cluster says that this one is of no use."""
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def end(code: int, why: str) -> None:
        if not ended.done():
            log.warning("door_ends", why=why, code=code)
            ended.set_result(code)

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end, 0, "signal")
    folder = Path(config["folder"])
    bulkheads_off = frozenset(map(Bulkhead, config["bulkheads_off"]))
    shelf = open_shelf(config["place"])
    book = await open_book(shelf)
    door = Door(
        config["cell"],
        shelf,
        book,
        config["acquirers"],
        lambda: end(4, "its book is another door's"),
        bulkheads_off=bulkheads_off,
    )
    await door.open()
    cluster = Cluster(config["ray_address"], Path(config["token_file"]))
    workforce = Workforce(
        cell=config["cell"],
        host=config["host"],
        folder=folder,
        logs_folder=Path(config["logs_folder"]),
        secret_file=Path(config["secret_file"]),
        place=config["place"],
        key=frames.role_key(secret, "door"),
        cluster=cluster,
        spares=config["spares"],
        on_dead=door.worker_died,
        on_late=door.confirm,
        on_broken=lambda why: end(3, why),
        fault_injection=config["fault_injection"],
        bulkheads_off=bulkheads_off,
    )
    server = FrameServer({role: frames.role_key(secret, role) for role in ("router", "control")}, door.handle)
    # What is asked for meanwhile waits for its partner's worker.
    staffing = asyncio.create_task(door.staff(workforce), name="staff-door")
    await server.start(config["host"], config["port"])
    await staffing
    metrics = await door_metrics.serve(config["host"], config["metrics_port"], workforce, shelf)
    log.info("door_listens", port=config["port"], pid=os.getpid())
    code = await ended
    await server.aclose()
    await metrics.aclose()
    await door.stop()
    await workforce.stop()
    # Threads that wait for Ray would hold the process up; everything of ours is closed.
    os._exit(code)


def main() -> None:
    """Run a cell's door."""
    parser = argparse.ArgumentParser(description="Run one cell's door.")
    parser.add_argument("--config", type=Path, required=True, help="JSON, as the control plane writes it")
    try:
        config = process_config.read(parser.parse_args().config, _CONFIG)
        secret = process_config.read_secret(Path(config["secret_file"]))
    except process_config.ConfigError as error:
        sys.stderr.write(f"cells.door: {error}\n")
        sys.exit(process_config.EXIT_CONFIG)
    logs.configure(config["log_file"], process=f"{config['cell']}.door", cell=config["cell"])
    Path(config["folder"]).mkdir(parents=True, exist_ok=True)
    try:
        uvloop.run(_run(config, secret))
    except Exception:
        log.exception("door_failed")
        os._exit(1)


if __name__ == "__main__":
    main()
