"""A worker: the process that hosts partners' actors. A plain asyncio class; remote.py puts it on Ray.

It listens on a socket for its door's frames and hands each to the partner's actor. An empty answer tells the door
"not mine (any more)": the actor was never here, or gave its partner up.
"""

import asyncio
import os
import weakref
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgpack
import orjson
import structlog
from prometheus_client import REGISTRY, Counter, Gauge

from actors import commands, metrics
from actors.answers import Answer, Refused
from actors.bulkheads import Bulkhead
from actors.errors import ActorStoppedError, PartnerMovedError, StoreError
from actors.partner import PartnerActor
from actors.payment import OperationState
from actors.profile import MAIN_ACQUIRER
from actors.queries import query
from actors.refusals import Refusal, RefusalCode
from cells import limits as cell_limits
from cells import worker_limits, worker_metrics
from cells.api import frames, limits, messages
from cells.api.connection import FrameServer, Request
from cells.api.log_budget import LogBudget
from cells.api.messages import NOT_MINE, Method
from cells.api.saturation import Saturation
from cells.growth import GrowthLedger
from cells.heartbeat import HeartbeatThread
from cells.http_acquirer import HttpAcquirer
from cells.http_client import HttpClient
from cells.poison import Marker
from cells.process_config import read_secret
from cells.process_use import ProcessUse
from cells.shedding import WORK, LoadShedder
from cells.worker_moves import METHODS as MOVES
from cells.worker_moves import WorkerMoves
from stores.shelf import open_shelf
from stores.tracked_store import TrackedStore

log = structlog.get_logger()

_SHED: Final = Counter("bulkhead_worker_shed", "Commands shed by workers, by class of work.", ["work"])
_UNDER_WAY: Final = Gauge(
    "bulkhead_worker_commands_under_way_max",
    f"What the fullest worker has under way, of its room of {cell_limits.WORKER_COMMANDS_MAX} commands.",
)


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What a worker is started with. The secret is read from its file, so that Ray never carries it.

    `place` is where the cell's books stand (stores.shelf).
    """

    name: str
    cell: str
    host: str
    secret_file: str
    mark_file: str
    log_file: str
    place: dict[str, Any]
    fault_injection: bool = False
    bulkheads_off: tuple[str, ...] = ()


def _fault_injector(marker: Marker) -> Any:
    # Imported here, so that a worker of a production installation holds no code that ends it on a partner's word.
    from cells.fault_injection import FaultInjector  # noqa: PLC0415

    return FaultInjector(marker.executing)


class Worker:
    """Hosts the actors that its door assigns."""

    def __init__(self, config: WorkerConfig) -> None:
        self.config = config
        key = frames.role_key(read_secret(Path(config.secret_file)), "door")
        self._server = FrameServer({"door": key}, self._handle)
        self._heartbeat = HeartbeatThread(key, config.host)
        self._saturation = Saturation("worker", REGISTRY, self._turned)
        self._shedder = LoadShedder(cell_limits.WORKER_COMMANDS_MAX, lambda: self._saturation.late_ms)
        self._marker = Marker(Path(config.mark_file))
        self._use = ProcessUse()
        self._growth = GrowthLedger(self._use.resident_bytes, self._marker.grew)
        self._faults = _fault_injector(self._marker) if config.fault_injection else None
        self._executing = self._marker.executing if self._faults is None else self._faults.executing
        self._bulkheads_off = frozenset(map(Bulkhead, config.bulkheads_off))
        self._shelf = open_shelf(config.place)
        self._actors: dict[str, PartnerActor] = {}
        self._books: dict[str, TrackedStore] = {}
        self._moves = WorkerMoves(self._shelf)
        # A partner is assigned and released one after the other, different ones side by side.
        self._changing: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._reads = asyncio.Semaphore(limits.WORKER_READS_AT_ONCE_MAX)
        self._client: HttpClient | None = None
        self._reconciles = asyncio.Semaphore(limits.WORKER_RECONCILES_AT_ONCE_MAX)
        self._ending: set[asyncio.Task[None]] = set()
        self._budget = LogBudget()
        self._door_epoch = 0
        self.port = 0

    async def start(self) -> tuple[int, int]:
        """Listen; give the ports of commands and of heartbeats."""
        self._client = HttpClient()
        self.port = await self._server.start(self.config.host, 0)
        self._heartbeat.start()
        self._saturation.start()
        self._marker.listens(self.port, self._heartbeat.port)
        log.info("worker_started", pid=os.getpid(), port=self.port)
        return self.port, self._heartbeat.port

    async def stop(self) -> None:
        """Give up all partners and end."""
        await self._server.aclose()
        actors = list(self._actors.values())
        self._actors.clear()
        self._books.clear()
        await asyncio.gather(*(actor.stop("worker stops") for actor in actors), *self._ending)
        if self._client is not None:
            await self._client.aclose()
        self._saturation.stop()
        self._heartbeat.stop()
        self._marker.close()
        self._use.close()

    def _turned(self, now: float) -> None:
        self._heartbeat.loop_turned = now

    async def _handle(self, request: Request) -> bytes:
        method = request.method
        if method in messages.WRITES or method in messages.READS:
            return await self._command(request)
        try:
            return await self._serve_door(request)
        except (messages.MessageError, KeyError, TypeError, ValueError) as error:
            self._budget.warning("request_malformed", method=method, partner=request.partner_id, exc_info=True)
            return _refused(RefusalCode.INTERNAL_ERROR, f"A worker can't read this {method}: {error!r:.200}")

    async def _serve_door(self, request: Request) -> bytes:
        if request.method in MOVES:
            actor = self._actors.get(request.partner_id)
            owned = None if actor is None else (actor, self._books[request.partner_id])
            return await self._moves.handle(request, owned)
        match request.method:
            case Method.ASSIGN:
                return await self._assign(request)
            case Method.RELEASE:
                async with self._alone(request.partner_id):
                    await self._release(request.partner_id, "released")
                return _ok({})
            case Method.CONFIGURE:
                fields = msgpack.unpackb(request.body)
                actor = self._actors.get(request.partner_id)
                if actor is None:
                    return NOT_MINE
                actor.configure(messages.decode_profile(fields["profile"]))
                return _ok({})
            case Method.WORKER_STATUS:
                return _ok({"partners": {name: self._status(actor) for name, actor in self._actors.items()}})
            case Method.METRICS:
                self._observe()
                return bytes(msgpack.packb(worker_metrics.dump()))
            case _:
                return _refused(RefusalCode.INTERNAL_ERROR, f"A worker has no method {request.method!r}.")

    async def _command(self, request: Request) -> bytes:
        actor = self._actors.get(request.partner_id)
        if actor is None:
            return NOT_MINE
        work = WORK[request.method]
        if not self._shedder.enter(request.partner_id, work):
            _SHED.labels(work).inc()
            detail = "The partner's worker has too much to do, so this was not looked at. Its idempotency key is free."
            return _refused(RefusalCode.WORKER_OVERLOADED, detail)
        try:
            return _fitting(await self._ask(actor, request))
        except ActorStoppedError:
            return NOT_MINE
        except MemoryError:
            worker_limits.end_out_of_memory()
        except Exception as error:  # noqa: BLE001 - logged, trace and all
            # It is answered, because a worker that answers too little is taken for broken and killed.
            self._budget.warning("command_failed", partner=request.partner_id, method=request.method, exc_info=True)
            return _refused(RefusalCode.INTERNAL_ERROR, f"The cell failed at this command: {type(error).__name__}.")
        finally:
            self._shedder.leave(request.partner_id)

    async def _ask(self, actor: PartnerActor, request: Request) -> Answer | Refused:
        try:
            message = messages.decode_command(request.body)
            if request.method in messages.READS:
                async with self._reads:
                    return await query(actor, request.method, message.arguments)
            envelope = commands.Envelope(
                message.command_id,
                message.request_id,
                commands.parse(request.method, message.arguments),
                message.idempotency_key,
                message.fingerprint,
            )
        except StoreError as error:
            log.warning("read_failed", partner=request.partner_id, error=str(error))
            return _refusal(RefusalCode.PARTNER_UNAVAILABLE, "The partner's book can't be read now.", 1_000)
        except (messages.MessageError, commands.CommandError, KeyError, TypeError, ValueError) as error:
            # The router validates; what arrives here wrong is a fault on our side of the edge.
            self._budget.warning("command_malformed", partner=request.partner_id, method=request.method, exc_info=True)
            return _refusal(RefusalCode.INTERNAL_ERROR, f"The cell can't read this command: {error!r:.200}", None)
        if request.method == Method.RECONCILE_OPERATIONS:
            return await self._reconcile(actor, envelope, request.budget_ms)
        if self._faults is None:
            return await actor.ask(request.method, envelope, request.budget_ms)
        with self._faults.ordered(message.command_id, message.arguments):
            return await actor.ask(request.method, envelope, request.budget_ms)

    async def _reconcile(self, actor: PartnerActor, envelope: commands.Envelope, budget_ms: int) -> Answer | Refused:
        """Post a batch of a settlement file when it is its turn; half of its time may pass until then."""
        try:
            async with asyncio.timeout(budget_ms / 2_000):
                await self._reconciles.acquire()
        except TimeoutError:
            return _refusal(RefusalCode.MAILBOX_FULL, "Other batches of settlement files are under way.", 1_000)
        try:
            return await actor.ask(Method.RECONCILE_OPERATIONS, envelope, budget_ms // 2)
        finally:
            self._reconciles.release()

    async def _assign(self, request: Request) -> bytes:
        fields = msgpack.unpackb(request.body)
        profile = messages.decode_profile(fields["profile"])
        door_epoch = int(fields["door_epoch"])
        assert self._client is not None, "assigned before start"
        if door_epoch < self._door_epoch:
            # The store would refuse it, too; but here the rightful actor would have been stopped for it by then.
            return _refused(RefusalCode.PARTNER_UNAVAILABLE, f"FencedError: door {self._door_epoch} was here already")
        self._door_epoch = door_epoch
        async with self._alone(profile.partner_id):
            await self._release(profile.partner_id, "assigned again")
            try:
                urls = fields["acquirers"] | ({MAIN_ACQUIRER: profile.acquirer_url} if profile.acquirer_url else {})
                acquirers = {name: HttpAcquirer(self._client, url, profile.partner_id) for name, url in urls.items()}
                store = TrackedStore(await self._shelf.open("partners", profile.partner_id))
            except (StoreError, ValueError) as error:
                log.exception("partner_cannot_be_opened", partner=profile.partner_id)
                return _refused(RefusalCode.PARTNER_UNAVAILABLE, f"{type(error).__name__}: {error}")
            actor = PartnerActor(
                profile,
                store,
                acquirers,
                executing=partial(self._executing, profile.partner_id),
                weighed=partial(self._growth.weighed, profile.partner_id),
                on_out_of_memory=worker_limits.end_out_of_memory,
                on_stopped=lambda why: self._forget(profile.partner_id, why),
                bulkheads_off=self._bulkheads_off,
            )
            try:
                epoch = await actor.start(door_epoch)
            except PartnerMovedError as error:
                await actor.stop("moved")
                return _moved(error.receipt)
            except MemoryError:
                worker_limits.end_out_of_memory()
            except Exception as error:
                # Whatever it is, this partner's book is at fault, not the worker: answered, so that nobody dies of it.
                log.exception("partner_cannot_be_activated", partner=profile.partner_id)
                await actor.stop("not activated")
                return _refused(RefusalCode.PARTNER_UNAVAILABLE, f"{type(error).__name__}: {error}")
            self._actors[profile.partner_id] = actor
            self._books[profile.partner_id] = store
        return _ok({"epoch": epoch})

    def _alone(self, partner_id: str) -> asyncio.Lock:
        return self._changing.setdefault(partner_id, asyncio.Lock())

    async def _release(self, partner_id: str, why: str) -> None:
        await self._moves.end(partner_id)
        actor = self._actors.pop(partner_id, None)
        self._books.pop(partner_id, None)
        if actor is not None:
            await actor.stop(why)
            self._growth.forget(partner_id)

    def _forget(self, partner_id: str, why: str) -> None:
        """Let go of an actor that stopped by itself; the door hears it at its next command or look."""
        actor = self._actors.pop(partner_id, None)
        self._books.pop(partner_id, None)
        if actor is not None:
            task = asyncio.create_task(actor.stop(why))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    def _status(self, actor: PartnerActor) -> dict[str, Any]:
        breakers = actor.acquirers.states(actor.monotonic_ms())
        return {
            "epoch": actor.epoch,
            "profile_version": actor.profile.version,
            "in_flight": len(actor.opens),
            "unknowns": len(self._unknown_ages_ms(actor)),
            "mailbox": actor.mailbox_depth,
            # The first choice's, in a word; and each acquirer's.
            "breaker": breakers.get(actor.profile.choices[0], "closed"),
            "breakers": breakers,
            "sequence": actor.standing.sequence,
        }

    def _observe(self) -> None:
        """Bring the gauges up to date."""
        actors = list(self._actors.values())
        ages_ms = [age_ms for actor in actors for age_ms in self._unknown_ages_ms(actor)]
        _UNDER_WAY.set(self._shedder.under_way)
        metrics.MAILBOX_DEPTH.set(sum(actor.mailbox_depth for actor in actors))
        metrics.OPEN_OPERATIONS.set(sum(len(actor.opens) for actor in actors))
        metrics.UNKNOWN_OPERATIONS.set(len(ages_ms))
        metrics.UNKNOWN_AGE_SECONDS.set(max(ages_ms, default=0) / 1_000)
        states = [actor.acquirers.states(actor.monotonic_ms()) for actor in actors]
        for name in {name for of_actor in states for name in of_actor}:
            is_open = [of_actor.get(name, "closed") != "closed" for of_actor in states]
            metrics.BREAKERS_OPEN.labels(name).set(sum(is_open))

    def _unknown_ages_ms(self, actor: PartnerActor) -> list[int]:
        now_ms = actor.now_ms()
        ages = []
        for opened in actor.opens.values():
            payment = actor.cached_payment(opened.payment_id)
            if payment is not None and payment.operation(opened.operation_id).state is OperationState.UNKNOWN:
                ages.append(now_ms - opened.first_asked_ms)
        return ages


def _ok(fields: dict[str, Any]) -> bytes:
    return messages.encode_answer(Answer(200, orjson.dumps({"ok": True, **fields})))


def _fitting(answer: Answer | Refused) -> bytes:
    """Give the answer's bytes, or a refusal where they would not fit into a frame (a page of very large payments)."""
    data = messages.encode_answer(answer)
    if len(data) <= limits.ANSWER_BYTES_MAX:
        return data
    detail = f"The answer has {len(data)} bytes, {limits.ANSWER_BYTES_MAX} are possible: ask for a smaller page."
    return _refused(RefusalCode.COMMAND_TOO_LARGE, detail)


def _moved(receipt: bytes) -> bytes:
    """Say that the book is sealed, with the receipt that it holds: its door makes the tombstone of it."""
    detail = "The partner moved to another cell."
    return messages.encode_answer(
        Refused(Refusal(RefusalCode.PARTNER_MOVED, detail, context={"receipt": receipt.hex()}))
    )


def _refusal(code: RefusalCode, detail: str, retry_after_ms: int | None) -> Refused:
    return Refused(Refusal(code, detail, retry_after_ms=retry_after_ms))


def _refused(code: RefusalCode, detail: str) -> bytes:
    return messages.encode_answer(_refusal(code, detail, 1_000))
