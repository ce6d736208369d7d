"""The cell's door: who owns which partner, each partner's share, and commands on their way to the partner's worker.

`python -m cells.door --config FILE` runs it. A body is forwarded unread. A command is sent at most
COMMAND_SENDS_MAX times, under the same command id, so that a worker's death costs its partner a delay.
"""

import argparse
import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgpack
import orjson
import structlog
import uvloop

from actors.errors import StoreError
from actors.store import Put, Range
from cells import door_metrics
from cells.api import frames, limits, logs, messages
from cells.api.connection import FrameServer, PeerError, PeerLostError, PeerTimeoutError, PeerUnavailableError, Request
from cells.api.messages import NOT_MINE, Answer, Method, Profile, Refusal, RefusalCode, Refused
from cells.poison import Suspects
from cells.remote import Cluster, ClusterError
from cells.sqlite_file import StoreExistsError
from cells.sqlite_store import SqliteStore
from cells.workforce import Link, Workforce

log = structlog.get_logger()

_CONTROL_ONLY: Final = frozenset({Method.ONBOARD, Method.CONFIGURE, Method.CELL_STATUS, Method.RESOLVE_OPERATION})
_UNANSWERED_MAX: Final = 3
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
    unanswered: int = 0
    takeovers: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    activation: asyncio.Task[None] | None = None


class Door:
    """Owns the assignment of its cell's partners while its epoch is the newest."""

    def __init__(self, cell: str, folder: Path, book: SqliteStore, on_superseded: Callable[[], None]) -> None:
        self.cell = cell
        self._partners_folder = folder / "partners"
        self._partners_folder.mkdir(parents=True, exist_ok=True)
        self._book = book
        self._on_superseded = on_superseded
        self._seats: dict[str, Seat] = {}
        self._suspects = Suspects()
        self._activations = asyncio.Semaphore(limits.TAKEOVERS_AT_ONCE_MAX)
        self._started_ms = int(time.time() * 1_000)
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
                profile = messages.decode_profile(msgpack.unpackb(row.value))
                self._seats[profile.partner_id] = Seat(profile)
            if len(rows) < page.limit:
                break
            begin = ("partner", str(rows[-1].key[-1]), "")
        log.info("door_opened", door_epoch=self.door_epoch, partners=len(self._seats))

    async def staff(self, workforce: Workforce) -> None:
        """Give each partner its worker: the one that has it from before, or a fresh one."""
        self._workforce = workforce
        for link in await workforce.find_existing():
            for partner_id in await self._hosted(link):
                seat = self._seats.get(partner_id)
                if seat is not None and seat.link is None:
                    await self._assign(seat, link)
            if not link.partners:
                workforce.give_back(link)
        for seat in self._seats.values():
            if seat.link is None:
                self._activate_soon(seat, "start")
        workforce.start()

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
            return _refused(RefusalCode.INTERNAL_ERROR, f"{method} is for the control plane only.")
        if method in messages.WRITES or method in messages.READS:
            return await self._forward(request)
        match method:
            case Method.ONBOARD:
                return await self._onboard(_profile(request))
            case Method.CONFIGURE:
                return await self._configure(_profile(request))
            case Method.CELL_STATUS:
                return _ok(await self._status())
            case _:
                return _refused(RefusalCode.INTERNAL_ERROR, f"A door has no method {method!r}.")

    async def _forward(self, request: Request) -> bytes:
        seat = self._seats.get(request.partner_id)
        if seat is None:
            return _refused(RefusalCode.PARTNER_MOVED, f"{request.partner_id} is not of cell {self.cell}.")
        if seat.in_flight >= limits.DOOR_PARTNER_COMMANDS_MAX:
            door_metrics.REFUSED.labels(request.partner_id).inc()
            return _refused(
                RefusalCode.MAILBOX_FULL,
                f"The partner has {seat.in_flight} requests under way, more are not taken.",
                retry_after_ms=1_000,
            )
        seat.in_flight += 1
        began = time.monotonic()
        try:
            return await self._deliver(seat, request)
        finally:
            seat.in_flight -= 1
            door_metrics.COMMAND_SECONDS.labels(request.method).observe(time.monotonic() - began)
            door_metrics.COMMANDS.labels(request.partner_id, request.method).inc()

    async def _deliver(self, seat: Seat, request: Request) -> bytes:
        deadline = time.monotonic() + request.budget_ms / 1_000
        sends = 0
        while True:
            link = await self._wait_active(seat, deadline)
            if link is None:
                return _outcome_unknown() if sends else _unavailable(seat.why)
            if self._suspects.any and self._is_quarantined(request):
                return _refused(
                    RefusalCode.COMMAND_QUARANTINED, "This command ended its worker twice; it is not tried again."
                )
            budget_ms = int((deadline - time.monotonic()) * 1_000)
            try:
                body = await link.connection.request(request.method, request.partner_id, request.body, budget_ms)
            except PeerUnavailableError:
                if link.connection.is_open:
                    return _refused(RefusalCode.MAILBOX_FULL, "The worker takes no more.", retry_after_ms=1_000)
                await asyncio.sleep(0)  # its end is being told: worker_died() follows
                continue
            except PeerLostError:
                sends += 1
                door_metrics.SENT_AGAIN.inc()
                if sends >= limits.COMMAND_SENDS_MAX:
                    return _outcome_unknown()
                continue
            except PeerTimeoutError:
                self._unanswered(seat, link)
                return _outcome_unknown()
            seat.unanswered = 0
            if body == NOT_MINE:
                self._given_up(seat, link)
                continue
            return body

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
        if request.method not in messages.WRITES:
            return False
        try:
            return self._suspects.is_quarantined(messages.decode_command(request.body).command_id)
        except messages.MessageError:
            return False  # the worker says what is wrong with it

    def _unanswered(self, seat: Seat, link: Link) -> None:
        seat.unanswered += 1
        log.warning("command_unanswered", partner=seat.profile.partner_id, worker=link.name, times=seat.unanswered)
        if seat.unanswered >= _UNANSWERED_MAX and seat.link is link:
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
                    link = await self._workforce.take()
                except (ClusterError, PeerError, ProcessLookupError) as error:
                    seat.why = str(error)
                else:
                    if await self._assign(seat, link):
                        break
                    if link.connection.is_open and not link.partners:
                        self._workforce.give_back(link)
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

    async def _assign(self, seat: Seat, link: Link) -> bool:
        """Have the worker own the partner; say whether it does."""
        partner_id = seat.profile.partner_id
        profile = seat.profile
        body = msgpack.packb(
            {
                "profile": messages.encode_profile(profile),
                "door_epoch": self.door_epoch,
                "book": str(self._partners_folder / f"{partner_id}.sqlite"),
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
            return False
        except PeerError as error:
            seat.why = str(error)
            link.partners.discard(partner_id)
            return False
        if isinstance(answer, Refused):
            link.partners.discard(partner_id)
            seat.state, seat.why = "unavailable", answer.refusal.detail
            log.error("partner_unavailable", partner=partner_id, why=seat.why)
            seat.changed.set()
            return False
        seat.link = link
        seat.epoch = int(orjson.loads(answer.body)["epoch"])
        seat.state, seat.why = "active", ""
        seat.changed.set()
        if seat.profile.version > profile.version:
            await self._configure_worker(seat)
        return True

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
        if partner_id not in self._seats:
            path = self._partners_folder / f"{partner_id}.sqlite"
            try:
                await SqliteStore.create(path)
            except StoreExistsError:
                log.info("book_is_there_already", partner=partner_id)
            except StoreError as error:
                return _refused(RefusalCode.PARTNER_UNAVAILABLE, f"{type(error).__name__}: {error}")
            refused = await self._keep(profile)
            if refused is not None:
                return refused
            seat = self._seats[partner_id] = Seat(profile)
            self._activate_soon(seat, "onboarding")
        seat = self._seats[partner_id]
        deadline = time.monotonic() + limits.WORKER_START_TIMEOUT_MS / 1_000
        if await self._wait_active(seat, deadline) is None:
            return _unavailable(seat.why)
        return _ok({"epoch": seat.epoch})

    async def _configure(self, profile: Profile) -> bytes:
        seat = self._seats.get(profile.partner_id)
        if seat is None:
            return _refused(RefusalCode.PARTNER_MOVED, f"{profile.partner_id} is not of cell {self.cell}.")
        if profile.version > seat.profile.version:
            refused = await self._keep(profile)
            if refused is not None:
                return refused
            seat.profile = profile
            await self._configure_worker(seat)
        return _ok({"profile_version": seat.profile.version})

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
        try:
            await self._book.commit((), [Put(("partner", profile.partner_id), value)])
        except StoreError as error:
            log.exception("profile_not_kept", partner=profile.partner_id)
            self._on_superseded()
            return _refused(RefusalCode.PARTNER_UNAVAILABLE, f"{type(error).__name__}: {error}")
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
                    "profile_version": seat.profile.version,
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


def _profile(request: Request) -> Profile:
    return messages.decode_profile(msgpack.unpackb(request.body)["profile"])


def _ok(fields: dict[str, Any]) -> bytes:
    return messages.encode_answer(Answer(200, orjson.dumps({"ok": True, **fields})))


def _refused(code: RefusalCode, detail: str, retry_after_ms: int | None = None) -> bytes:
    return messages.encode_answer(Refused(Refusal(code, detail, retry_after_ms=retry_after_ms)))


def _unavailable(why: str) -> bytes:
    detail = "The partner can't be served now; nothing was written."
    return _refused(RefusalCode.PARTNER_UNAVAILABLE, f"{detail} {why}".strip(), 1_000)


def _outcome_unknown() -> bytes:
    detail = "It is not known whether this was done; ask again with the same idempotency key."
    return _refused(RefusalCode.OUTCOME_UNKNOWN, detail, 1_000)


async def _open_book(folder: Path) -> SqliteStore:
    """Open the cell's own book; the first door of a cell makes it."""
    path = folder / "cell.sqlite"
    try:
        await SqliteStore.create(path)
    except StoreExistsError:
        log.info("cell_is_known")
    return await SqliteStore.open(path)


async def _run(config: dict[str, Any], secret: bytes) -> int:
    """Be the door until SIGTERM, or until a newer door or a lost cluster says that this one is of no use."""
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def end(code: int, why: str) -> None:
        if not ended.done():
            log.warning("door_ends", why=why, code=code)
            ended.set_result(code)

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end, 0, "signal")
    folder = Path(config["folder"])
    book = await _open_book(folder)
    door = Door(config["cell"], folder, book, lambda: end(4, "its book is another door's"))
    await door.open()
    cluster = Cluster(config["ray_address"], Path(config["token_file"]))
    await asyncio.to_thread(cluster.connect)
    workforce = Workforce(
        cell=config["cell"],
        host=config["host"],
        folder=folder,
        logs_folder=Path(config["logs_folder"]),
        secret_file=Path(config["secret_file"]),
        key=frames.role_key(secret, "door"),
        cluster=cluster,
        spares=config["spares"],
        on_dead=door.worker_died,
        on_cluster_lost=lambda: end(3, "Ray starts no workers; a new door joins it anew"),
    )
    server = FrameServer({role: frames.role_key(secret, role) for role in ("router", "control")}, door.handle)
    await door.staff(workforce)
    await server.start(config["host"], config["port"])
    metrics = await door_metrics.serve(config["host"], config["metrics_port"], workforce)
    log.info("door_listens", port=config["port"], pid=os.getpid())
    code = await ended
    await server.aclose()
    await metrics.cleanup()
    await workforce.stop()
    return code


def main() -> None:
    """Run a cell's door."""
    parser = argparse.ArgumentParser(description="Run one cell's door.")
    parser.add_argument("--config", type=Path, required=True, help="JSON, as the control plane writes it")
    config = json.loads(parser.parse_args().config.read_text())
    logs.configure(config["log_file"], process=f"{config['cell']}.door", cell=config["cell"])
    Path(config["folder"]).mkdir(parents=True, exist_ok=True)
    code = uvloop.run(_run(config, Path(config["secret_file"]).read_bytes()))
    # Ray's threads would hold the process up; everything of ours is closed.
    os._exit(code)


if __name__ == "__main__":
    main()
