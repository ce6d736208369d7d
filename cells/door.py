"""The cell's door: who owns which partner, each partner's share, and commands on their way to the partner's worker.

`python -m cells.door --config FILE` runs it. A body is forwarded unread. A command is sent at most
COMMAND_SENDS_MAX times, under the same command id, so that a worker's death costs its partner a delay.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NoReturn

import msgpack
import orjson
import structlog
import uvloop
from prometheus_client import Counter, Histogram

from actors.errors import CommitUnknownError, FencedError, StoreError, StoreExistsError, StoreMissingError
from actors.limits import COMMAND_DEADLINE_MS
from actors.store import Put, Range, Store
from cells import door_answers, door_metrics, process_config
from cells import limits as cell_limits
from cells.api import frames, limits, logs, messages
from cells.api.connection import FrameServer, PeerError, PeerLostError, PeerTimeoutError, PeerUnavailableError, Request
from cells.api.messages import NOT_MINE, Answer, Method, Profile, RefusalCode, Refused
from cells.poison import Suspects
from cells.remote import Cluster, ClusterError
from cells.shedding import WORK, LoadShedder
from cells.workforce import Link, Workforce
from stores.shelf import Shelf, open_shelf

log = structlog.get_logger()

_CONTROL_ONLY: Final = frozenset(
    {
        Method.ONBOARD,
        Method.CONFIGURE,
        Method.CELL_STATUS,
        Method.RESOLVE_OPERATION,
        Method.RECONCILE_OPERATIONS,
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
    "acquirer_url": str,
    "log_file": str | None,
    "logs_folder": str,
}
_KILL_WAIT_MS: Final = 500


@dataclass(eq=False, slots=True)
class Seat:
    """One partner's place at the door."""

    profile: Profile
    state: str = "activating"  # activating, active, unavailable
    why: str = ""
    link: Link | None = None
    epoch: int | None = None
    in_flight: int = 0
    notifying: int = 0
    unanswered: int = 0
    takeovers: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    activation: asyncio.Task[None] | None = None
    meters: dict[str, tuple[Counter, Histogram]] = field(default_factory=dict)

    def count(self, method: str, seconds: float) -> None:
        """Count a command; looking a series up by its labels costs more than counting, so it is kept."""
        found = self.meters.get(method)
        if found is None:
            found = self.meters[method] = (
                door_metrics.COMMANDS.labels(self.profile.partner_id, method),
                door_metrics.COMMAND_SECONDS.labels(method),
            )
        counter, histogram = found
        counter.inc()
        histogram.observe(seconds)


class Door:
    """Owns the assignment of its cell's partners while its epoch is the newest."""

    def __init__(
        self, cell: str, shelf: Shelf, book: Store, acquirer_url: str, on_superseded: Callable[[], None]
    ) -> None:
        self.cell = cell
        self._acquirer_url = acquirer_url
        self._shelf = shelf
        self._book = book
        self._on_superseded = on_superseded
        self._seats: dict[str, Seat] = {}
        self._suspects = Suspects()
        self._shedder = LoadShedder(cell_limits.DOOR_COMMANDS_MAX)
        self._activations = asyncio.Semaphore(limits.TAKEOVERS_AT_ONCE_MAX)
        self._started_ms = int(time.time() * 1_000)
        self._onboarding = asyncio.Lock()
        self._confirming: asyncio.Task[None] | None = None
        self.door_epoch = 0
        self._workforce: Workforce | None = None

    # Start and end

    async def open(self) -> None:
        """Raise the door's epoch and read which partners live here. Raises StoreError."""
        self.door_epoch = (await self._book.acquire(0)).epoch
        begin: tuple[str, ...] = ("partner",)
        while True:
            page = Range(begin, ("partner", "\U0010ffff"), 500)
            rows = (await self._book.read((), [page])).ranges[0]
            for row in rows:
                partner_id = str(row.key[-1])
                self._seats[partner_id] = Seat(door_answers.kept_profile(partner_id, row.value))
            if len(rows) < page.limit:
                break
            begin = ("partner", str(rows[-1].key[-1]), "")
        log.info("door_opened", door_epoch=self.door_epoch, partners=len(self._seats))

    async def staff(self, workforce: Workforce) -> None:
        """Give each partner its worker: the one that has it from before, or a fresh one. Requests may come already."""
        self._workforce = workforce
        claimed: set[str] = set()
        await workforce.find_existing(lambda link: self._adopt(link, claimed))
        for seat in self._seats.values():
            if seat.link is None:
                self._activate_soon(seat, "start")
        workforce.start()

    async def _adopt(self, link: Link, claimed: set[str]) -> None:
        """Assign a worker of before the partners that it has; what another has already, it gives up."""
        assert self._workforce is not None
        for partner_id in await self._hosted(link):
            seat = self._seats.get(partner_id)
            if seat is not None and partner_id not in claimed:
                claimed.add(partner_id)
                await self._assign(seat, link)
            else:
                with contextlib.suppress(PeerError):  # its end, if it is one, is told by itself
                    await link.connection.request(Method.RELEASE, partner_id, b"", limits.ACTIVATION_TIMEOUT_MS)
        if not link.partners:
            self._workforce.give_back(link)

    def confirm(self) -> None:
        """Find out, soon, whether this is still the cell's door: it slept, or a worker of its own refused it."""
        if self._confirming is None or self._confirming.done():
            self._confirming = asyncio.create_task(self._confirm(), name="confirm-door")

    async def _confirm(self) -> None:
        await self._write(Put(("door",), msgpack.packb({"epoch": self.door_epoch, "pid": os.getpid()})))

    def worker_died(self, link: Link, cause: str, executing: str) -> None:
        """Give a dead worker's partners to others; suspect the command that it was deciding, and no other."""
        if executing and self._suspects.accuse(executing) >= limits.POISON_DEATHS_MAX:
            log.error("command_quarantined", command_id=executing, worker=link.name)
        for partner_id in list(link.partners):
            seat = self._seats[partner_id]
            self._vacate(seat, link)
            seat.takeovers += 1
            door_metrics.TAKEOVERS.labels(cause).inc()
            self._activate_soon(seat, cause, after=link)

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
            match method:
                case Method.ONBOARD:
                    return await self._onboard(door_answers.profile_of(request))
                case Method.CONFIGURE:
                    return await self._configure(door_answers.profile_of(request))
                case Method.CELL_STATUS:
                    return door_answers.ok(await self._status())
                case _:
                    return door_answers.refused(RefusalCode.INTERNAL_ERROR, f"A door has no method {method!r}.")
        except messages.MessageError as error:
            return door_answers.refused(RefusalCode.INTERNAL_ERROR, f"The door can't read this {method}: {error}")

    async def _forward(self, request: Request) -> bytes:
        seat = self._seats.get(request.partner_id)
        if seat is None:
            return door_answers.refused(RefusalCode.PARTNER_MOVED, f"{request.partner_id} is not of cell {self.cell}.")
        if seat.in_flight >= limits.DOOR_PARTNER_COMMANDS_MAX:
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
            self._leave(request)
            seat.count(request.method, time.monotonic() - began)

    async def _notify(self, request: Request) -> bytes:
        """Forward what an acquirer tells, within a share of its own."""
        if request.role != "router":
            return door_answers.refused(RefusalCode.INTERNAL_ERROR, f"{request.method} is for routers only.")
        seat = self._seats.get(request.partner_id)
        if seat is None:
            return door_answers.refused(RefusalCode.PARTNER_MOVED, f"{request.partner_id} is not of cell {self.cell}.")
        if seat.notifying >= limits.DOOR_PARTNER_NOTIFICATIONS_MAX:
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
            self._leave(request)
            door_metrics.COMMANDS.labels(request.partner_id, request.method).inc()

    def _enter(self, request: Request) -> bool:
        """Take a command into the cell's room, or shed it; a cell short of room says so before it sends anything."""
        work = WORK[request.method]
        if not self._shedder.enter(request.partner_id, work):
            door_metrics.SHED.labels(work).inc()
            return False
        door_metrics.UNDER_WAY.set(self._shedder.under_way)
        return True

    def _leave(self, request: Request) -> None:
        self._shedder.leave(request.partner_id)
        door_metrics.UNDER_WAY.set(self._shedder.under_way)

    async def _deliver(self, seat: Seat, request: Request) -> bytes:
        budget_ms = max(min(request.budget_ms, COMMAND_DEADLINE_MS), 0)
        deadline = time.monotonic() + budget_ms / 1_000
        sends = 0
        while True:
            if self._is_quarantined(request):
                return door_answers.quarantined()
            if sends >= limits.COMMAND_SENDS_MAX:
                return door_answers.outcome_unknown()
            link = await self._wait_active(seat, deadline)
            if link is None:
                return door_answers.outcome_unknown() if sends else door_answers.unavailable(seat.why)
            budget_ms = int((deadline - time.monotonic()) * 1_000)
            try:
                body = await link.connection.request(request.method, request.partner_id, request.body, budget_ms)
            except PeerUnavailableError:
                if link.connection.is_open and sends:
                    return door_answers.outcome_unknown()
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
                return door_answers.outcome_unknown()
            seat.unanswered = 0
            if body == NOT_MINE:
                # An actor that stopped in the middle of it may have written it.
                sends += 1
                self._given_up(seat, link)
                continue
            return door_answers.outcome_unknown() if sends and door_answers.says_nothing_done(body) else body

    async def _wait_active(self, seat: Seat, deadline: float) -> Link | None:
        while seat.link is None:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or seat.state == "unavailable":
                return None
            try:
                async with asyncio.timeout(remaining):
                    await seat.changed.wait()
            except TimeoutError:
                return None
        return seat.link if deadline > time.monotonic() else None

    def _is_quarantined(self, request: Request) -> bool:
        if not self._suspects.any or request.method not in messages.WRITES:
            return False
        try:
            return self._suspects.is_quarantined(messages.decode_command(request.body).command_id)
        except messages.MessageError:
            return False  # the worker says what is wrong with it

    def _unanswered(self, seat: Seat, link: Link, budget_ms: int, deadline: float) -> None:
        late_ms = (time.monotonic() - deadline) * 1_000 - limits.ANSWER_GRACE_MS["door"]
        if late_ms > limits.DOOR_LATE_MS or budget_ms < limits.UNANSWERED_MS_MIN:
            return  # the door slept, or there was no time to answer: the worker is not to blame
        seat.unanswered += 1
        log.warning("command_unanswered", partner=seat.profile.partner_id, worker=link.name, times=seat.unanswered)
        if seat.unanswered >= limits.UNANSWERED_IN_ROW_MAX and seat.link is link:
            seat.unanswered = 0
            assert self._workforce is not None
            self._workforce.bury(link, "unanswering")

    def _given_up(self, seat: Seat, link: Link) -> None:
        """Activate again a partner whose actor stopped by itself, in the same process or another."""
        if seat.link is not link:
            return
        self._vacate(seat, link)
        if not link.partners:
            assert self._workforce is not None
            self._workforce.give_back(link)
        door_metrics.TAKEOVERS.labels("given_up").inc()
        seat.takeovers += 1
        self._activate_soon(seat, "given_up")

    # Ownership

    def _vacate(self, seat: Seat, link: Link) -> None:
        link.partners.discard(seat.profile.partner_id)
        if seat.link is link:
            seat.link = None
            seat.epoch = None
            seat.state = "activating"
            seat.changed.clear()

    def _activate_soon(self, seat: Seat, cause: str, after: Link | None = None) -> None:
        if seat.activation is None or seat.activation.done():
            seat.activation = asyncio.create_task(
                self._activate(seat, cause, after), name=f"activate-{seat.profile.partner_id}"
            )

    async def _activate(self, seat: Seat, cause: str, after: Link | None) -> None:
        assert self._workforce is not None
        began = time.monotonic()
        if after is not None:
            # A stopped process could hold the book's write lock: it is gone before the next one opens the book.
            await self._workforce.wait_dead(after, _KILL_WAIT_MS)
        delay_ms = limits.RECONNECT_DELAY_MS_MIN
        while seat.link is None:
            async with self._activations:
                try:
                    await self._assign_to(seat, await self._workforce.take())
                except (ClusterError, PeerError, ProcessLookupError) as error:
                    seat.why = str(error)
                except Exception as error:
                    # A bug costs this try; without a next one the partner would be gone until the door ends.
                    log.exception("activation_failed", partner=seat.profile.partner_id)
                    seat.why = repr(error)
                if seat.link is not None:
                    break  # looked at, not told: it may have been lost again since
            await asyncio.sleep(delay_ms / 1_000)
            delay_ms = min(delay_ms * 2, limits.ACTIVATION_RETRY_DELAY_MS_MAX)
        log.info(
            "partner_activated",
            partner=seat.profile.partner_id,
            cause=cause,
            epoch=seat.epoch,
            worker=seat.link.name if seat.link else None,
            took_ms=int((time.monotonic() - began) * 1_000),
        )
        door_metrics.ACTIVATION_SECONDS.observe(time.monotonic() - began)

    async def _assign_to(self, seat: Seat, link: Link) -> None:
        assert self._workforce is not None
        try:
            await self._assign(seat, link)
        finally:
            if not link.partners and link.connection.is_open:
                self._workforce.give_back(link)

    async def _assign(self, seat: Seat, link: Link) -> None:
        """Have the worker own the partner; `seat.link` says whether it does."""
        partner_id = seat.profile.partner_id
        profile = seat.profile
        body = msgpack.packb(
            {
                # A partner without an acquirer of its own uses the cell's.
                "profile": messages.encode_profile(
                    replace(profile, acquirer_url=profile.acquirer_url or self._acquirer_url)
                ),
                "door_epoch": self.door_epoch,
            }
        )
        link.partners.add(partner_id)
        try:
            answer = messages.decode_answer(
                await link.connection.request(Method.ASSIGN, partner_id, body, limits.ACTIVATION_TIMEOUT_MS)
            )
        except PeerTimeoutError:
            assert self._workforce is not None
            seat.why = "its worker did not take it over in time"
            self._workforce.bury(link, "activation_timeout")
            return
        except PeerError as error:
            seat.why = str(error)
            return
        finally:
            link.partners.discard(partner_id)
        if isinstance(answer, Refused):
            seat.state, seat.why = "unavailable", answer.refusal.detail
            log.error("partner_unavailable", partner=partner_id, why=seat.why)
            seat.changed.set()
            self.confirm()
            return
        if not link.connection.is_open:
            seat.why = "its worker died as it took it over"
            return
        link.partners.add(partner_id)
        seat.link = link
        seat.epoch = int(orjson.loads(answer.body)["epoch"])
        seat.state, seat.why = "active", ""
        seat.changed.set()
        if seat.profile.version > profile.version:
            await self._configure_worker(seat)

    async def _hosted(self, link: Link) -> list[str]:
        try:
            answer = messages.decode_answer(
                await link.connection.request(Method.WORKER_STATUS, "", b"", limits.ACTIVATION_TIMEOUT_MS)
            )
        except PeerError:
            return []
        assert isinstance(answer, Answer)
        return list(orjson.loads(answer.body)["partners"])

    # The control plane

    async def _onboard(self, profile: Profile) -> bytes:
        partner_id = profile.partner_id
        async with self._onboarding:  # asked twice at once, it is one seat all the same
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
                self._activate_soon(seat, "onboarding")
        seat = self._seats[partner_id]
        deadline = time.monotonic() + limits.WORKER_START_TIMEOUT_MS / 1_000
        if await self._wait_active(seat, deadline) is None:
            return door_answers.unavailable(seat.why)
        return door_answers.ok({"epoch": seat.epoch})

    async def _configure(self, profile: Profile) -> bytes:
        seat = self._seats.get(profile.partner_id)
        if seat is None:
            return door_answers.refused(RefusalCode.PARTNER_MOVED, f"{profile.partner_id} is not of cell {self.cell}.")
        if profile.version > seat.profile.version:
            refused = await self._keep(profile)
            if refused is not None:
                return refused
            seat.profile = profile
        # Also where the door knew it: the worker may have missed it.
        await self._configure_worker(seat)
        return door_answers.ok({"profile_version": seat.profile.version})

    async def _configure_worker(self, seat: Seat) -> None:
        link = seat.link
        if link is None:
            return  # the next activation carries the profile
        body = msgpack.packb({"profile": messages.encode_profile(seat.profile)})
        try:
            await link.connection.request(Method.CONFIGURE, seat.profile.partner_id, body, limits.ACTIVATION_TIMEOUT_MS)
        except PeerError as error:
            log.warning("profile_not_taken", partner=seat.profile.partner_id, error=str(error))

    async def _keep(self, profile: Profile) -> bytes | None:
        value = msgpack.packb(messages.encode_profile(profile))
        error = await self._write(Put(("partner", profile.partner_id), value))
        if error is None:
            return None
        return door_answers.refused(RefusalCode.PARTNER_UNAVAILABLE, f"{type(error).__name__}: {error}")

    async def _write(self, row: Put) -> StoreError | None:
        """Write to the cell's own book; end where it is another door's, or where only a new door can tell."""
        try:
            await self._book.commit((), [row])
        except (FencedError, CommitUnknownError) as error:
            log.warning("door_superseded", error=f"{type(error).__name__}: {error}")
            self._on_superseded()
            return error
        except StoreError as error:
            log.warning("cell_book_not_written", error=f"{type(error).__name__}: {error}")
            return error
        return None

    async def _status(self) -> dict[str, Any]:
        assert self._workforce is not None
        links = list(self._workforce.links.values())
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
                    "spare": self._workforce.is_spare(link),
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
                    "state": seat.state,
                    "why": seat.why,
                    "epoch": seat.epoch,
                    "worker": None if seat.link is None else seat.link.name,
                    "takeovers": seat.takeovers,
                    "in_flight": actors.get(partner_id, {}).get("in_flight", 0),
                    "unknowns": actors.get(partner_id, {}).get("unknowns", 0),
                    "breaker": actors.get(partner_id, {}).get("breaker", "unknown"),
                }
                for partner_id, seat in sorted(self._seats.items())
            ],
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


async def _open_book(shelf: Shelf) -> Store:
    """Open the cell's own book; the first door of a cell makes it. A lost one is never made anew."""
    try:
        return await shelf.open("cell")
    except StoreMissingError as error:
        if await shelf.names("partners"):
            raise StoreMissingError(
                f"the cell has partners' books and lost its own; restore it from a backup: {error}"
            ) from error
    # Of two first doors one makes it; who comes second finds it.
    with contextlib.suppress(StoreExistsError):
        await shelf.create("cell")
    return await shelf.open("cell")


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
    shelf = open_shelf(config["place"])
    book = await _open_book(shelf)
    door = Door(
        config["cell"],
        shelf,
        book,
        config["acquirer_url"],
        lambda: end(4, "its book is another door's"),
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
    await metrics.cleanup()
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
