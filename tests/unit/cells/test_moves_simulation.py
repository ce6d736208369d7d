"""Partners that move there and back while messages get lost, doubled and late, and everything dies: a simulation.

The control plane's moves and registry, both cells' doors and workers, the partner's actor and the router's way to the
cells are the real ones, on virtual time over books in memory (simulated_cells.py). Hypothesis orders what goes wrong;
every run ends in peace, and then everything is held against what was promised.
"""

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import msgpack
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from actors import codec, keyspace
from cells import limits as cell_limits
from cells.api import messages
from cells.api.connection import PeerError, PeerUnavailableError, Request
from cells.api.messages import Answer, Command, Method, Refused
from control_plane import limits, registry_moves
from control_plane.burials import Burials
from control_plane.door_moves import DoorMoves
from control_plane.doors import Doors
from control_plane.errors import ControlPlaneError, DoorError
from control_plane.move_record import Burial, Move
from control_plane.moves import MoveAbortedError, Moves
from control_plane.partners import to_profile
from control_plane.registry import Registry
from control_plane.registry_records import Partner
from router.cells_client import CellsClient, _Link
from router.directory import Cell
from stores import tuple_keys
from stores.memory_shelf import MemoryBooks, MemoryShelf
from stores.memory_store import Fault, MemoryBook
from stores.requests import EncodedCommit
from tests.unit.actors import virtual_time
from tests.unit.actors.partner_bench import check_books, check_record, read_books
from tests.unit.actors.scripted_acquirer import APPROVE, TIMEOUT_CHARGED, AcquirerRecord, Step
from tests.unit.cells.simulated_cells import (
    Life,
    MortalAcquirer,
    MortalStore,
    Network,
    SimulatedCell,
    SimulatedWorker,
    on_virtual_time,
)

PARTNER = "alpha"
CELLS = ("cell-0", "cell-1")
VICTIMS = ("control", "door 0", "door 1", "worker 0", "worker 1")
# Which message of the control plane: the nth of all, or of its kind.
Place = int | tuple[str, int]
STEPS = (
    Method.BEGIN_ARRIVAL,
    Method.BEGIN_LEAVING,
    Method.COPY_ROWS,
    Method.TAKE_ROWS,
    Method.HOLD_PLACE,
    Method.QUIESCE,
    Method.SEAL,
    Method.OPEN_ARRIVAL,
    Method.END_LEAVING,
    Method.END_ARRIVAL,
    Method.SUM_ROWS,
    Method.ERASE_MOVED,
)
PLACES: st.SearchStrategy[Place] = st.integers(0, 50) | st.tuples(st.sampled_from(STEPS), st.integers(0, 3))
BOOKS = (("control",), *((cell, *name) for cell in CELLS for name in (("cell",), ("partners", PARTNER))))
# More than any wait in the code, in virtual time: what is not over by then never is.
PATIENCE_S = 3_600
_ARRIVAL_KEY = tuple_keys.encode(keyspace.ARRIVAL)


@dataclass(frozen=True)
class Trouble:
    """What befalls one message. `after_s`: how long it, or its double, or whoever died, is away."""

    kind: str  # lost, answer_lost, doubled, late, slow, dies, zombie, store
    after_s: float = 0.0
    victim: str = ""
    is_before: bool = False
    book: tuple[str, ...] = ()
    fault: Fault = Fault.UNAVAILABLE


@dataclass(frozen=True)
class Order:
    """What an operator does after a while."""

    after_s: float
    action: str  # move, abort, evacuate


@dataclass(frozen=True)
class Wish:
    """What a client asks for after a while. `router`: 0 has the newest directory, 1 the first one for ever."""

    after_s: float
    kind: str  # pay, authorize, capture, again
    router: int
    number: int


DELAYS = st.sampled_from([0.02, 0.3, 1.5, 4.0, 9.0])
MESSAGES = st.one_of(
    st.builds(Trouble, st.sampled_from(["lost", "answer_lost"])),
    st.builds(Trouble, st.sampled_from(["doubled", "late", "slow"]), DELAYS),
    st.builds(Trouble, st.just("dies"), DELAYS, st.sampled_from(VICTIMS), st.booleans()),
    st.builds(Trouble, st.just("zombie"), DELAYS, st.sampled_from(VICTIMS[3:]), st.booleans()),
    st.builds(
        Trouble,
        st.just("store"),
        book=st.sampled_from(BOOKS),
        fault=st.sampled_from(
            [Fault.UNAVAILABLE, Fault.CONFLICT, Fault.UNKNOWN_WRITTEN, Fault.UNKNOWN_NOT_WRITTEN, Fault.TIMEOUT]
        ),
    ),
)
TO_WORKERS = st.one_of(
    st.builds(Trouble, st.sampled_from(["answer_lost"])),
    st.builds(Trouble, st.just("slow"), DELAYS),
    st.builds(Trouble, st.sampled_from(["dies", "zombie"]), DELAYS, st.sampled_from(VICTIMS[1:])),
)
ORDERS = st.lists(
    st.builds(
        Order,
        st.sampled_from([0.1, 0.5, 3.0, 12.0]),
        st.sampled_from(["move", "move", "move", "move", "abort", "evacuate"]),
    ),
    min_size=1,
    max_size=5,
)
WISHES = st.lists(
    st.builds(
        Wish,
        st.sampled_from([0.0, 0.01, 0.1, 0.5, 2.0]),
        st.sampled_from(["pay", "pay", "authorize", "capture", "capture", "again"]),
        st.integers(0, 1),
        st.integers(0, 20),
    ),
    min_size=3,
    max_size=25,
)


class WatchedBook(MemoryBook):
    """A partner's book, whose commits are told as they take place."""

    def __init__(self, path: tuple[str, ...], history: "History") -> None:
        super().__init__()
        self.path = path
        self.history = history

    def _apply(self, epoch: int, request: EncodedCommit) -> None:
        super()._apply(epoch, request)
        # What comes from another book with its journal was committed there.
        if _ARRIVAL_KEY not in request.writes:
            for key, value in request.writes.items():
                if value is not None and tuple_keys.decode(key)[0] == "journal":
                    self.history.committed(codec.decode_entry(value).sequence, epoch)


class History:
    """All that was ever committed to a partner's journal, wherever that was."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def committed(self, sequence: int, epoch: int) -> None:
        assert sequence == len(self.epochs) + 1, f"entry {sequence} is written when {len(self.epochs)} are there"
        assert epoch >= max(self.epochs, default=0), f"epoch {epoch} writes after {self.epochs[-1]} did"
        self.epochs.append(epoch)


class SimulatedDoors(Doors):
    """The control plane's way to the doors, on which messages meet their troubles."""

    def __init__(self, simulation: "Simulation", life: Life) -> None:
        self._simulation = simulation
        self._life = life

    async def ask(self, cell: str, method: str, partner_id: str, body: bytes, budget_ms: int) -> Answer | Refused:
        await self._life.reach()
        simulation = self._simulation
        trouble = simulation.next_trouble(method)
        request = Request("control", method, partner_id, budget_ms, body)
        is_before = trouble.is_before or trouble.kind == "store"
        if is_before:
            simulation.befall(trouble)
            await self._life.reach()
        if trouble.kind in ("doubled", "late"):
            simulation.network.begin(self._later(trouble.after_s, cell, request))
        # Each takes a little, so that a copy lasts while its partner is served.
        await asyncio.sleep(trouble.after_s if trouble.kind == "slow" else 0.02)
        if trouble.kind in ("lost", "late"):
            raise DoorError(f"{method} is {trouble.kind}")
        try:
            async with asyncio.timeout(budget_ms / 1_000):
                answer = await simulation.cells[cell].handle(request)
        except (PeerError, TimeoutError) as error:
            raise DoorError(f"{method}: {error!r}") from error
        finally:
            await self._life.reach()
            if not is_before:
                simulation.befall(trouble)
                await self._life.reach()
            simulation.check_one_owner(method)
        if trouble.kind == "answer_lost":
            raise DoorError(f"{method}'s answer is lost")
        return messages.decode_answer(answer)

    async def _later(self, after_s: float, cell: str, request: Request) -> None:
        await asyncio.sleep(after_s)
        try:
            await self._simulation.cells[cell].handle(request)
        except PeerError:
            return
        self._simulation.check_one_owner(f"late {request.method}")


class SimulatedPeer:
    """A router's connection to a cell's door."""

    def __init__(self, cell: SimulatedCell) -> None:
        self._cell = cell

    @property
    def connected(self) -> bool:
        return self._cell.is_up

    async def wait_connected(self, timeout_ms: int) -> bool:
        for _ in range(timeout_ms // 20):
            if self._cell.is_up:
                return True
            await asyncio.sleep(0.02)
        return self._cell.is_up

    async def request(self, method: str, partner_id: str, body: bytes, budget_ms: int) -> bytes:
        if not self._cell.is_up:
            raise PeerUnavailableError("no connection")
        return await self._cell.handle(Request("router", method, partner_id, budget_ms, body))


@dataclass
class Sent:
    """A command of a client, and the answer that was given first."""

    method: str
    arguments: dict[str, Any]
    key: str
    payment_id: str | None = None
    status: int | None = None


class Simulation:
    """One run."""

    def __init__(
        self, troubles: dict[Place, Trouble], to_workers: dict[int, Trouble], acquirer: list[Step], *, shares: bool
    ) -> None:
        self.troubles = dict(troubles)
        self.worker_troubles = dict(to_workers)
        self.told = 0
        self.told_workers = 0
        self.calm = True
        self.wrong: list[BaseException] = []
        self.history = History()
        self.record = AcquirerRecord()
        self.steps = list(acquirer)
        self.network = Network()
        self.network.to_worker = self._to_worker
        self.books = MemoryBooks(
            lambda path: WatchedBook(path, self.history) if path[1:2] == ("partners",) else MemoryBook()
        )
        self.cells = {name: SimulatedCell(name, self.books, self.network, self._acquirer) for name in CELLS}
        store = {"store": "fdb", "cluster_file": "one"} if shares else {"store": "sqlite"}
        self.places: dict[str, dict[str, Any]] = {name: {**store, "path": [name]} for name in CELLS}
        self.published = CELLS[0]
        self.expected: set[str] = {CELLS[0]}
        self.sent: list[Sent] = []
        self.asking: list[asyncio.Task[None]] = []
        self.methods: list[str] = []
        self.ever: list[object] = []  # who died is kept, or what hangs in it would be found to be lost
        self.life = Life()
        self.up = asyncio.Event()
        self.registry: Registry
        self.moves: Moves

    # The installation

    async def open(self) -> None:
        await MemoryShelf(self.books).create("control")
        for cell in self.cells.values():
            await cell.open()
        await self.start_control_plane(new=True)
        partner = Partner(PARTNER, PARTNER, "onboarding", "test", CELLS[0], 1_000, 1_000, 256, "2026-11-22", 1, "")
        await self.registry.begin_onboarding(replace(partner, isolation="dedicated"), "ann")
        profile = messages.encode_profile(to_profile(await self.registry.activate(PARTNER, "ann")))
        body = msgpack.packb({"profile": profile})
        answer = await SimulatedDoors(self, self.life).ask(CELLS[0], Method.ONBOARD, PARTNER, body, 10_000)
        assert isinstance(answer, Answer), answer
        self.routers = [self._router(), self._router()]
        self.told = self.told_workers = 0
        self.calm = False
        self.network.begin(self._resume())

    def _router(self) -> CellsClient:
        async def nothing_new(version: int, timeout_ms: int) -> None:
            """All cells are known from the beginning."""

        client = CellsClient({}, nothing_new, now=asyncio.get_running_loop().time)
        for name, cell in self.cells.items():
            peer: Any = SimulatedPeer(cell)
            client._links[name] = _Link(peer, Cell(name=name, host="here", port=1), None)
        return client

    async def start_control_plane(self, *, new: bool = False) -> None:
        life = self.life = Life()
        store = MortalStore(await MemoryShelf(self.books).open("control"), life)
        self.registry = await Registry.open(store, "here", new=new)

        async def publish() -> None:
            await life.reach()
            self.published = self.registry.partner(PARTNER).cell

        doors = DoorMoves(SimulatedDoors(self, life))
        monotonic = asyncio.get_running_loop().time
        clocks: dict[str, Any] = {"monotonic": monotonic, "now_ms": lambda: int(monotonic() * 1_000)}
        self.moves = Moves(self.registry, doors, publish, lambda: 1, to_profile, lambda: self.places, **clocks)
        self.burials = Burials(self.registry, doors)
        self.ever.append((life, self.moves, self.registry))
        self.up.set()

    async def _resume(self) -> None:
        """Go on with moves as `up` does, which ends where its registry is another's or in doubt."""
        while True:
            await asyncio.sleep(0.5)
            if self.is_up:
                await self.moves.resume()
                await self.burials.tell()

    def _acquirer(self, life: Life) -> MortalAcquirer:
        return MortalAcquirer(self.record, lambda: self.steps.pop() if self.steps else APPROVE, life)

    @property
    def is_up(self) -> bool:
        """Whether there is a control plane."""
        return self.up.is_set()

    # What goes wrong

    def next_trouble(self, method: str) -> Trouble:
        nth = self.methods.count(method)
        self.methods.append(method)
        self.told += 1
        if self.calm:
            return Trouble("")
        return self.troubles.get(self.told - 1) or self.troubles.get((method, nth), Trouble(""))

    async def _to_worker(self, _worker: SimulatedWorker, request: Request) -> str:
        if request.method in messages.WRITES or request.method in messages.READS or self.calm:
            return ""
        self.told_workers += 1
        trouble = self.worker_troubles.get(self.told_workers - 1)
        if trouble is None:
            return ""
        if trouble.kind == "slow":
            await asyncio.sleep(trouble.after_s)
        else:
            self.befall(trouble)
        return trouble.kind

    def befall(self, trouble: Trouble) -> None:
        if trouble.kind == "store":
            book = self.books.by_path.get(trouble.book)
            if book is not None:
                book.inject(trouble.fault)
        if trouble.kind not in ("dies", "zombie"):
            return
        kind, _, index = trouble.victim.partition(" ")
        goes_on_s = trouble.after_s if trouble.kind == "zombie" else 0.0
        match kind:
            case "control" if self.is_up:
                self.life.is_over = True
                self.up.clear()
                self.network.begin(self._control_plane_again(trouble.after_s))
            case "door":
                self.cells[f"cell-{index}"].kill_door(trouble.after_s)
            case "worker":
                self.cells[f"cell-{index}"].kill_worker(PARTNER, goes_on_s)

    async def _control_plane_again(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        while not self.is_up:
            try:
                await self.start_control_plane()
            except ControlPlaneError:
                await asyncio.sleep(0.1)

    def check_one_owner(self, after: str) -> None:
        owners = {name: cell.owners(PARTNER) for name, cell in self.cells.items()}
        if sum(len(epochs) for epochs in owners.values()) > 1:
            self.wrong.append(AssertionError(f"after {after} these can write: {owners}"))

    # Who asks

    async def operate(self, orders: list[Order]) -> None:
        for order in orders:
            await asyncio.sleep(order.after_s)
            await self.up.wait()
            home = self.registry.partner(PARTNER).cell
            other = CELLS[1 - CELLS.index(home)]
            # Until the answer is known it may be in either.
            self.expected = set(CELLS)
            work: Any = {
                "move": lambda target=other: self.moves.move(PARTNER, target, "ann"),
                "evacuate": lambda target=other: self._evacuate(target),
                "abort": lambda: self.moves.abort(PARTNER, "ann"),
            }[order.action]()
            asked = self.network.begin(work)
            await asyncio.wait({asked}, timeout=30)
            if not asked.done():
                continue
            error = asked.exception()
            if isinstance(error, MoveAbortedError):
                self.expected = {home}
            elif error is None and order.action != "abort":
                self.expected = {cast("Move", asked.result()).target}
            elif error is not None and not isinstance(error, ControlPlaneError):
                self.wrong.append(error)

    async def _evacuate(self, target: str) -> Move:
        """Take the partner over from its cell, though that may be alive."""
        if self.registry.move(PARTNER) is None:
            await registry_moves.begin_move(self.registry, self.moves.new_evacuation(PARTNER, target, "ann"))
        return await self.moves.move(PARTNER, target, "ann")

    async def wish(self, wishes: list[Wish]) -> None:
        for wish in wishes:
            await asyncio.sleep(wish.after_s)
            sent = self._command(wish)
            if sent is not None:
                self.asking.append(asyncio.create_task(self.ask(sent, wish.router)))

    def _command(self, wish: Wish) -> Sent | None:
        if wish.kind == "again":
            return self.sent[wish.number % len(self.sent)] if self.sent else None
        if wish.kind == "capture":
            known = [sent.payment_id for sent in self.sent if sent.payment_id is not None]
            if not known:
                return None
            arguments: dict[str, Any] = {"payment_id": known[wish.number % len(known)], "amount": None}
            sent = Sent(Method.CAPTURE_PAYMENT, arguments, f"key-{len(self.sent)}")
        else:
            arguments = {
                "amount": 100,
                "currency": "EUR",
                "payment_method": "tok_approve",
                "capture_method": "automatic" if wish.kind == "pay" else "manual",
                "reference": None,
                "description": None,
                "metadata": {},
            }
            sent = Sent(Method.CREATE_PAYMENT, arguments, f"key-{len(self.sent)}")
        self.sent.append(sent)
        return sent

    async def ask(self, sent: Sent, router: int) -> None:
        home = CELLS[0] if router else self.published
        fingerprint = orjson.dumps(sent.arguments)[:32].ljust(32)
        command = Command(f"{sent.key}-{random.getrandbits(64):x}", "r", sent.arguments, sent.key, fingerprint)
        answer = await self.routers[router].ask(home, PARTNER, sent.method, command, writes=True)
        if not isinstance(answer, Answer):
            return
        payment_id = str(orjson.loads(answer.body)["id"])
        if sent.payment_id not in (None, payment_id):
            self.wrong.append(AssertionError(f"{sent} made a second payment: {payment_id}"))
        sent.payment_id, sent.status = payment_id, answer.status

    # The end

    async def calm_down(self) -> None:
        """Let everything end; then hold it against what was promised."""
        loop = asyncio.get_running_loop()
        self.calm = True
        for book in self.books.by_path.values():
            book._faults.clear()
        await asyncio.gather(*self.asking)
        await asyncio.sleep(10)  # what is late arrives
        for book in self.books.by_path.values():
            book.deliver_late()
        until = loop.time() + PATIENCE_S
        while not self.is_up or self.on_the_way() or not all(cell.is_up for cell in self.cells.values()):
            assert loop.time() < until, f"it does not end: {self.is_up and self.on_the_way()}"
            await asyncio.sleep(1)
        await asyncio.sleep(30)
        await self.check()

    def on_the_way(self) -> list[Move | Burial]:
        """Give what the control plane still has to do."""
        return [*self.registry.moves(), *self.registry.burials()]

    async def check(self) -> None:
        home = self.registry.partner(PARTNER).cell
        other = CELLS[1 - CELLS.index(home)]
        assert home in self.expected
        assert self.published == home
        seat = self.cells[home].door._seats[PARTNER]
        assert seat.state == "active"
        assert PARTNER not in self.cells[other].door._seats
        assert sorted(path[0] for path in self.books.by_path if path[1:2] == ("partners",)) == [home]
        for cell in self.cells.values():
            assert not cell.door._arrivals.expected
            assert not cell.door._ownership._held
            for link in cell.door._ownership.workforce.links.values():  # type: ignore[union-attr]
                assert link.partners <= cell.door._seats.keys()
        assert self.cells[home].owners(PARTNER) == [seat.epoch]
        for sent in self.sent:
            for router in (0, 1):
                before = sent.payment_id
                await self.ask(sent, router)
                assert sent.payment_id is not None or sent.method == Method.CAPTURE_PAYMENT, f"{sent}: {before}"
        book = self.books.by_path[home, "partners", PARTNER]
        books = await read_books(book)
        while books.standing.open_operations:
            await asyncio.sleep(10)
            books = await read_books(book)
        check_books(books)
        check_record(books, self.record)
        created = [sent.payment_id for sent in self.sent if sent.method == Method.CREATE_PAYMENT]
        assert sorted(str(made) for made in created) == sorted(books.payments)
        assert len(self.history.epochs) == books.standing.sequence
        assert not self.wrong, self.wrong


@pytest.fixture(autouse=True, scope="module")
def _simulated() -> Iterator[None]:
    with on_virtual_time() as patch:
        # Several batches of a book that is small.
        patch.setattr(cell_limits, "COPY_ROWS_MAX", 10)
        patch.setattr(limits, "MOVE_ROWS_LEFT_MAX", 4)
        yield


THERE_AND_BACK = [Order(0.1, "move"), Order(0.5, "move")]
PAYMENTS = [Wish(0.1, "pay", number % 2, 0) for number in range(8)]
LATE, LEAVING = Trouble("doubled", 1.5), Trouble("doubled", 0.7)


# What it found, or was made to find: a word of an earlier move comes late, when its partner left or is leaving again.
@example(troubles={0: LATE}, to_workers={}, orders=THERE_AND_BACK, wishes=PAYMENTS, acquirer=[], shares=False)
@example(troubles={0: LATE}, to_workers={}, orders=THERE_AND_BACK, wishes=PAYMENTS, acquirer=[], shares=True)
@example(
    troubles={0: LEAVING, (Method.OPEN_ARRIVAL, 1): Trouble("slow", 4.0)},
    to_workers={},
    orders=THERE_AND_BACK,
    wishes=PAYMENTS,
    acquirer=[],
    shares=True,
)
@given(
    troubles=st.dictionaries(PLACES, MESSAGES, max_size=8),
    to_workers=st.dictionaries(st.integers(0, 60), TO_WORKERS, max_size=4),
    orders=ORDERS,
    wishes=WISHES,
    acquirer=st.lists(st.sampled_from([APPROVE, TIMEOUT_CHARGED, Step(delay_ms=300)]), max_size=20),
    shares=st.booleans(),
)
def test_a_partner_on_the_move_in_trouble(
    troubles: dict[Place, Trouble],
    to_workers: dict[int, Trouble],
    orders: list[Order],
    wishes: list[Wish],
    acquirer: list[Step],
    shares: bool,
) -> None:
    async def run() -> None:
        simulation = Simulation(troubles, to_workers, acquirer, shares=shares)
        await simulation.open()
        await asyncio.gather(simulation.operate(orders), simulation.wish(wishes))
        await simulation.calm_down()

    virtual_time.run(run())
