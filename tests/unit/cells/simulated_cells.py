"""Whole cells in one process, on virtual time: real doors and workers; only sockets, processes and Ray are left out.

What dies reaches nothing any more: whatever it has under way hangs at its next call of a store, a shelf or a peer. What
may go wrong on the way to a worker is asked of `Network`.
"""

import asyncio
import contextlib
import itertools
import logging
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

import cells.worker
from actors.bulkheads import Bulkhead
from actors.partner import PartnerActor
from actors.store import Check, Key, Mutation, Ownership, Range, Snapshot, Store
from cells.api.connection import PeerLostError, PeerTimeoutError, PeerUnavailableError, Request
from cells.api.log_budget import LogBudget
from cells.cell_book import open_book
from cells.door import Door
from cells.growth import GrowthLedger
from cells.limits import WORKER_COMMANDS_MAX
from cells.poison import Mark
from cells.remote import Endpoint
from cells.shedding import LoadShedder
from cells.worker import Worker
from cells.worker_moves import WorkerMoves
from cells.workforce import Link
from stores.memory_shelf import MemoryBooks, MemoryShelf
from tests.unit.actors import virtual_time
from tests.unit.actors.scripted_acquirer import AcquirerRecord, ScriptedAcquirer, Step

WORKER_START_S = 0.05


@contextlib.contextmanager
def on_virtual_time() -> Iterator[pytest.MonkeyPatch]:
    """Have doors, workers and actors go by the event loop's clock, and log nothing."""
    before = structlog.get_config()
    with pytest.MonkeyPatch.context() as patch:
        clock = SimpleNamespace(monotonic=lambda: asyncio.get_running_loop().time(), time=lambda: 0.0)
        for module in ("cells.door.time", "cells.ownership.time", "cells.seats.time"):
            patch.setattr(module, clock)
        patch.setattr(cells.worker, "HttpAcquirer", acquirer_of)
        patch.setattr(
            cells.worker, "PartnerActor", lambda *a, **k: PartnerActor(*a, **k, clock=virtual_time.VirtualClock())
        )
        patch.setattr(asyncio, "to_thread", _at_once)  # a thread takes real time
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
        yield patch
        structlog.configure(**before)


async def _at_once(work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    return work(*arguments, **options)


class Life:
    """One process, and whether it lives."""

    def __init__(self) -> None:
        self.is_over = False
        self._never = asyncio.Event()

    async def reach(self) -> None:
        """Go on where the process lives; else never."""
        if self.is_over:
            await self._never.wait()


class MortalStore:
    """A store that a process has open."""

    def __init__(self, store: Store, life: Life) -> None:
        self._store = store
        self._life = life

    async def acquire(self, door_epoch: int, above: int = 0) -> Ownership:
        await self._life.reach()
        taken = await self._store.acquire(door_epoch, above)
        await self._life.reach()
        return taken

    async def read(self, keys: Sequence[Key], ranges: Sequence[Range] = ()) -> Snapshot:
        await self._life.reach()
        snapshot = await self._store.read(keys, ranges)
        await self._life.reach()
        return snapshot

    async def commit(self, checks: Sequence[Check], mutations: Sequence[Mutation]) -> None:
        await self._life.reach()
        await self._store.commit(checks, mutations)
        await self._life.reach()

    async def close(self) -> None:
        await self._store.close()


class MortalShelf(MemoryShelf):
    """A shelf as a process sees it."""

    def __init__(self, books: MemoryBooks, path: str, life: Life) -> None:
        super().__init__(books, path)
        self._life = life

    async def create(self, *name: str) -> None:
        await self._life.reach()
        await super().create(*name)
        await self._life.reach()

    async def open(self, *name: str) -> MortalStore:  # type: ignore[override]
        await self._life.reach()
        return MortalStore(await super().open(*name), self._life)

    async def erase(self, *name: str) -> None:
        await self._life.reach()
        await super().erase(*name)
        await self._life.reach()

    async def adopt(self, place: Mapping[str, Any], name: Sequence[str], *, seal: Key, sealed_by: bytes | None) -> None:
        await self._life.reach()
        await super().adopt(place, name, seal=seal, sealed_by=sealed_by)
        await self._life.reach()


class MortalAcquirer(ScriptedAcquirer):
    """A worker's way to the acquirer."""

    def __init__(self, record: AcquirerRecord, step: Callable[[], Step], life: Life) -> None:
        super().__init__(record, lambda _: step())
        self._life = life

    async def _call(self, step: Step, timeout_ms: int, arrive: Callable[[], Any]) -> Any:
        await self._life.reach()
        outcome = await super()._call(step, timeout_ms, arrive)
        await self._life.reach()
        return outcome


class SimulatedWorker(Worker):
    """The worker itself, without its socket, its heartbeat and what it needs a process of its own for."""

    def __init__(
        self, name: str, books: MemoryBooks, cell: str, acquirer: Callable[[Life, str], ScriptedAcquirer]
    ) -> None:
        # Not the base's: it opens files and listens.
        self.name = name
        self.life = Life()
        self.is_lost = False  # no door has it any more
        self.lost = asyncio.Event()
        self.make_acquirer = acquirer
        self._shedder = LoadShedder(WORKER_COMMANDS_MAX)
        self._growth = GrowthLedger(lambda: 0, lambda _: None)
        self._faults = None
        self._executing = lambda _partner_id, _command_id: None
        self._bulkheads_off = frozenset({Bulkhead.BREAKER})
        self._shelf = MortalShelf(books, cell, self.life)
        self._actors = {}
        self._books = {}
        self._moves = WorkerMoves(self._shelf)
        self._changing = weakref.WeakValueDictionary()
        self._reads = asyncio.Semaphore(16)
        self._client = self  # type: ignore[assignment]  # `acquirer_of` is what is made of it
        self._reconciles = asyncio.Semaphore(1)
        self._ending = set()
        self._budget = LogBudget()
        self._door_epoch = 0

    async def handle(self, request: Request) -> bytes:
        """Answer a door."""
        return await self._handle(request)


def acquirer_of(worker: SimulatedWorker, _url: str, partner_id: str) -> ScriptedAcquirer:
    """Stand in for `HttpAcquirer`."""
    return worker.make_acquirer(worker.life, partner_id)


class Network:
    """What is on its way to doors and workers. `trouble` is told of each request of a door to a worker, and may act."""

    def __init__(self) -> None:
        self.under_way: set[asyncio.Future[Any]] = set()
        self.to_worker: Callable[[SimulatedWorker, Request], Awaitable[str]] | None = None

    def begin(self, work: "asyncio._CoroutineLike[Any]") -> "asyncio.Task[Any]":
        """Let something happen, whoever waits for it."""
        task = asyncio.ensure_future(work)
        self.under_way.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self.under_way.discard(task)
        if not task.cancelled():
            task.exception()


class SimulatedConnection:
    """A door's connection to a worker."""

    def __init__(self, network: Network, worker: SimulatedWorker, door: Life) -> None:
        self._network = network
        self._worker = worker
        self._door = door

    @property
    def is_open(self) -> bool:
        return not self._worker.is_lost

    async def request(self, method: str, partner_id: str, body: bytes, budget_ms: int) -> bytes:
        await self._door.reach()
        request = Request("door", method, partner_id, budget_ms, body)
        fate = "" if self._network.to_worker is None else await self._network.to_worker(self._worker, request)
        await self._door.reach()
        if not self.is_open:
            raise PeerUnavailableError("the connection is closed")
        handled = self._network.begin(self._worker.handle(request))
        lost = self._network.begin(self._worker.lost.wait())
        timeout_s = 0.05 if fate == "answer_lost" else (budget_ms + 250) / 1_000
        await asyncio.wait({handled, lost}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        await self._door.reach()
        lost.cancel()
        if self._worker.is_lost:
            raise PeerLostError("the connection ended")
        if fate == "answer_lost" or not handled.done():
            raise PeerTimeoutError("no answer in time")
        return bytes(handled.result())


class SimulatedWorkforce:
    """What `Workforce` is to a door: the workers of its cell, one of them spare."""

    def __init__(self, cell: "SimulatedCell", door: Door, life: Life) -> None:
        self._cell = cell
        self._door = door
        self._life = life
        self._spares: deque[Link] = deque()
        self.links: dict[str, Link] = {}

    async def find_existing(self, found: Callable[[Link], Awaitable[None]]) -> None:
        for worker in list(self._cell.workers):
            await found(self._link(worker))

    def start(self) -> None:
        self._cell.network.begin(self._keep_spare())

    def is_spare(self, link: Link) -> bool:
        return link in self._spares

    def give_back(self, link: Link) -> None:
        assert not link.partners
        if link.name in self.links and link not in self._spares:
            self._spares.append(link)

    keeps_spares = True

    def take_spare(self) -> Link | None:
        while self._spares:
            link = self._spares.popleft()
            if link.connection.is_open:
                self._cell.network.begin(self._keep_spare())
                return link
        return None

    async def take(self) -> Link:
        return self.take_spare() or await self._start_worker()

    def bury(self, link: Link, cause: str) -> None:
        if self._life.is_over or self.links.pop(link.name, None) is None:
            return
        if link in self._spares:
            self._spares.remove(link)
        mark: Mark | None = None
        self._cell.end_worker(link.connection._worker)
        self._door.worker_died(link, cause, mark)
        self._cell.network.begin(self._keep_spare())

    async def wait_dead(self, _link: Link, _timeout_ms: int) -> bool:
        await self._life.reach()
        return True

    async def _keep_spare(self) -> None:
        await asyncio.sleep(WORKER_START_S)
        if not self._life.is_over and not self._spares:
            self.give_back(await self._start_worker())

    async def _start_worker(self) -> Link:
        await asyncio.sleep(WORKER_START_S)
        await self._life.reach()
        return self._link(self._cell.start_worker())

    def _link(self, worker: SimulatedWorker) -> Link:
        connection: Any = SimulatedConnection(self._cell.network, worker, self._life)
        nothing: Any = None
        link = Link(Endpoint(worker.name, 0, "", 0, 0), 0, Path(), connection, nothing, -1)
        self.links[link.name] = link
        return link


class SimulatedCell:
    """A cell: its door, which is started anew when it ended, and its workers."""

    def __init__(
        self, name: str, books: MemoryBooks, network: Network, acquirer: Callable[[Life, str], ScriptedAcquirer]
    ) -> None:
        self.name = name
        self.books = books
        self.network = network
        self.workers: list[SimulatedWorker] = []
        self.zombies: list[SimulatedWorker] = []
        # Who died is kept, or what hangs in it would be found to be lost.
        self.ever: list[object] = []
        self.is_up = False
        self.door: Door
        self.workforce: SimulatedWorkforce
        self._acquirer = acquirer
        self._life = Life()
        self._numbers = itertools.count()

    async def open(self) -> None:
        """Start a door."""
        life = self._life = Life()
        shelf = MortalShelf(self.books, self.name, life)
        door = Door(
            self.name,
            shelf,
            await open_book(shelf),
            {"main": "acquirer"},
            lambda: self.end_door(life, 0.1),
            bulkheads_off={Bulkhead.BREAKER},
        )
        await door.open()
        self.door = door
        self.workforce = SimulatedWorkforce(self, door, life)
        self.ever.append((door, life))
        self.is_up = True
        self.network.begin(door.staff(self.workforce))  # type: ignore[arg-type]

    async def handle(self, request: Request) -> bytes:
        """Ask the door. Raises PeerUnavailableError, and PeerLostError where it ended meanwhile."""
        if not self.is_up:
            raise PeerUnavailableError("no door")
        life = self._life
        handled = self.network.begin(self.door.handle(request))
        while not handled.done():
            if life.is_over:
                raise PeerLostError("the door ended")
            await asyncio.wait({handled}, timeout=0.05)
        if life.is_over:
            raise PeerLostError("the door ended")
        return bytes(handled.result())

    def kill_door(self, away_s: float) -> None:
        """Kill the door, and start the next one after a while."""
        self.end_door(self._life, away_s)

    def kill(self) -> None:
        """Kill the door and all workers; nothing is started anew before `open`."""
        self._life.is_over = True
        self.is_up = False
        for worker in list(self.workers):
            self.end_worker(worker)

    def end_door(self, life: Life, away_s: float) -> None:
        """End one door, if it has not ended."""
        if life.is_over or not self.is_up:
            return
        life.is_over = True
        self.is_up = False
        self.network.begin(self._start_again(away_s))

    async def _start_again(self, away_s: float) -> None:
        await asyncio.sleep(away_s)
        while not self.is_up:
            try:
                await self.open()
            except Exception:  # noqa: BLE001 - as a supervisor does: it is started anew
                await asyncio.sleep(0.1)

    def start_worker(self) -> SimulatedWorker:
        """Give a new worker."""
        worker = SimulatedWorker(f"{self.name}-w{next(self._numbers)}", self.books, self.name, self._acquirer)
        self.workers.append(worker)
        self.ever.append(worker)
        return worker

    def kill_worker(self, partner_id: str, goes_on_s: float) -> None:
        """Kill the worker that has the partner, or any; its door hears of it. It may go on for a while all the same."""
        workers = [worker for worker in self.workers if partner_id in worker._actors] or self.workers
        if workers:
            self.end_worker(workers[0], goes_on_s)

    def end_worker(self, worker: SimulatedWorker, goes_on_s: float = 0.0) -> None:
        """End a worker."""
        if worker.is_lost:
            return
        worker.is_lost = True
        worker.lost.set()
        self.workers.remove(worker)
        if goes_on_s:
            self.zombies.append(worker)
            asyncio.get_running_loop().call_later(goes_on_s, self._end_zombie, worker)
        else:
            worker.life.is_over = True
        if self.is_up:
            link = self.workforce.links.get(worker.name)
            if link is not None:
                asyncio.get_running_loop().call_soon(self.workforce.bury, link, "connection_lost")

    def _end_zombie(self, worker: SimulatedWorker) -> None:
        worker.life.is_over = True
        self.zombies.remove(worker)

    def owners(self, partner_id: str) -> list[int]:
        """Give the epochs of this cell's actors that can commit to the partner's book now."""
        book = self.books.by_path.get((self.name, "partners", partner_id))
        return [
            worker._actors[partner_id].epoch
            for worker in [*self.workers, *self.zombies]
            if partner_id in worker._actors and book is not None
            if worker._actors[partner_id].epoch == book.ownership.epoch
        ]
