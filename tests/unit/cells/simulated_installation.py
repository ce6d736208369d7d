"""A whole installation in one process, on virtual time, in which messages get lost, doubled and late, and all may die.

The control plane's moves and registry, the cells' doors and workers, the partners' actors and the routers' way to the
cells are the real ones, over books in memory (simulated_cells.py). Who makes a `Simulation` orders what goes wrong.
Every run ends in peace, and then everything is held against what was promised; some of it after each message.
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgpack
import orjson
from hypothesis import strategies as st

from actors import codec, keyspace
from cells.api import messages
from cells.api.connection import PeerError, PeerUnavailableError, Request
from cells.api.messages import Answer, Command, Method, Refused
from control_plane.burials import Burials
from control_plane.door_moves import DoorMoves
from control_plane.doors import Doors
from control_plane.errors import ControlPlaneError, DoorError
from control_plane.move_record import Burial, Move
from control_plane.moves import Moves
from control_plane.partners import to_profile
from control_plane.registry import Registry
from control_plane.registry_records import Cell, Partner
from router import directory
from router.cells_client import CellsClient, _Link
from stores import tuple_keys
from stores.memory_shelf import MemoryBooks, MemoryShelf
from stores.memory_store import Fault, MemoryBook
from stores.requests import EncodedCommit
from tests.unit.actors.partner_bench import check_books, check_record, read_books
from tests.unit.actors.scripted_acquirer import APPROVE, AcquirerRecord, Step
from tests.unit.cells.simulated_cells import (
    Life,
    MortalAcquirer,
    MortalStore,
    Network,
    SimulatedCell,
    SimulatedWorker,
)

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
    Method.BURY_MOVED,
)
# More than any wait in the code, in virtual time: what is not over by then never is.
PATIENCE_S = 3_600
DELAYS = st.sampled_from([0.02, 0.3, 1.5, 4.0, 9.0])
_ARRIVAL_KEY = tuple_keys.encode(keyspace.ARRIVAL)


@dataclass(frozen=True)
class Trouble:
    """What befalls one message. `after_s`: how long it, or its double, or whoever died, is away."""

    kind: str  # lost, answer_lost, doubled, late, slow, dies, zombie, store
    after_s: float = 0.0
    victim: str = ""  # control, door 0, worker 0, ...
    is_before: bool = False
    book: tuple[str, ...] = ()
    fault: Fault = Fault.UNAVAILABLE


@dataclass(frozen=True)
class Wish:
    """What a client asks for after a while. `router`: 0 has the newest directory, 1 the first one for ever."""

    after_s: float
    kind: str  # pay, authorize, capture, again
    router: int
    number: int
    partner: int = 0


def messages_in_trouble(cells: Sequence[str], partners: Sequence[str]) -> st.SearchStrategy[Trouble]:
    """Give what may befall a message of the control plane."""
    workers = [f"worker {index}" for index in range(len(cells))]
    victims = ["control", *(f"door {index}" for index in range(len(cells))), *workers]
    names = [("cell",), *(("partners", partner) for partner in partners)]
    books = [("control",), *((cell, *name) for cell in cells for name in names)]
    return st.one_of(
        st.builds(Trouble, st.sampled_from(["lost", "answer_lost"])),
        st.builds(Trouble, st.sampled_from(["doubled", "late", "slow"]), DELAYS),
        st.builds(Trouble, st.just("dies"), DELAYS, st.sampled_from(victims), st.booleans()),
        st.builds(Trouble, st.just("zombie"), DELAYS, st.sampled_from(workers), st.booleans()),
        st.builds(
            Trouble,
            st.just("store"),
            book=st.sampled_from(books),
            fault=st.sampled_from(
                [Fault.UNAVAILABLE, Fault.CONFLICT, Fault.UNKNOWN_WRITTEN, Fault.UNKNOWN_NOT_WRITTEN, Fault.TIMEOUT]
            ),
        ),
    )


def workers_in_trouble(cells: Sequence[str]) -> st.SearchStrategy[Trouble]:
    """Give what may befall a message of a door to a worker."""
    victims = [f"{kind} {index}" for kind in ("door", "worker") for index in range(len(cells))]
    return st.one_of(
        st.builds(Trouble, st.sampled_from(["answer_lost"])),
        st.builds(Trouble, st.just("slow"), DELAYS),
        st.builds(Trouble, st.sampled_from(["dies", "zombie"]), DELAYS, st.sampled_from(victims)),
    )


def places(at_most: int, each_at_most: int) -> st.SearchStrategy[Place]:
    """Give which messages may be in trouble."""
    return st.integers(0, at_most) | st.tuples(st.sampled_from(STEPS), st.integers(0, each_at_most))


def wishes(partners: int, at_most: int) -> st.SearchStrategy[list[Wish]]:
    """Give what clients of so many partners ask for."""
    return st.lists(
        st.builds(
            Wish,
            st.sampled_from([0.0, 0.01, 0.1, 0.5, 2.0]),
            st.sampled_from(["pay", "pay", "authorize", "capture", "capture", "again"]),
            st.integers(0, 1),
            st.integers(0, 20),
            st.integers(0, partners - 1),
        ),
        min_size=3,
        max_size=at_most,
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

    async def cell_status(self, cell: str) -> Any:
        """Say whether a door answers; who dies meanwhile is none of these messages' troubles."""
        await self._life.reach()
        if cell in self._simulation.cut_off or not self._simulation.cells[cell].is_up:
            raise DoorError(f"{cell} does not answer")

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
        if trouble.kind in ("lost", "late") or cell in simulation.cut_off:
            raise DoorError(f"{method} is {trouble.kind or 'cut off'}")
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
            simulation.check_now(method)
        if trouble.kind == "answer_lost":
            raise DoorError(f"{method}'s answer is lost")
        return messages.decode_answer(answer)

    async def _later(self, after_s: float, cell: str, request: Request) -> None:
        await asyncio.sleep(after_s)
        try:
            await self._simulation.cells[cell].handle(request)
        except PeerError:
            return
        self._simulation.check_now(f"late {request.method}")


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

    partner: str
    method: str
    arguments: dict[str, Any]
    key: str
    payment_id: str | None = None
    status: int | None = None


class Simulation:
    """One run. Partners are onboarded in `homes`, by their names."""

    def __init__(
        self,
        troubles: dict[Place, Trouble],
        to_workers: dict[int, Trouble],
        acquirer: list[Step],
        *,
        cells: Sequence[str],
        homes: dict[str, str],
        shares: bool,
    ) -> None:
        self.troubles = dict(troubles)
        self.worker_troubles = dict(to_workers)
        self.told = 0
        self.told_workers = 0
        self.calm = True
        self.wrong: list[BaseException] = []
        self.homes = homes
        self.histories = {partner: History() for partner in homes}
        self.records = {partner: AcquirerRecord() for partner in homes}
        self.steps = list(acquirer)
        self.network = Network()
        self.network.to_worker = self._to_worker
        self.books = MemoryBooks(
            lambda path: WatchedBook(path, self.histories[path[2]]) if path[1:2] == ("partners",) else MemoryBook()
        )
        self.cells = {name: SimulatedCell(name, self.books, self.network, self._acquirer) for name in cells}
        self.cut_off: set[str] = set()  # cells that the control plane can't reach, and that go on all the same
        store = {"store": "fdb", "cluster_file": "one"} if shares else {"store": "sqlite"}
        self.places: dict[str, dict[str, Any]] = {name: {**store, "path": [name]} for name in cells}
        self.published = dict(homes)
        self.sent: list[Sent] = []
        self.asking: list[asyncio.Task[None]] = []
        self.methods: list[str] = []
        self.ever: list[object] = []  # who died is kept, or what hangs in it would be found to be lost
        self.life = Life()
        self.up = asyncio.Event()
        self.registry: Registry
        self.moves: Moves
        self.burials: Burials

    # The installation

    async def open(self) -> None:
        await MemoryShelf(self.books).create("control")
        for cell in self.cells.values():
            await cell.open()
        await self.start_control_plane(new=True)
        rows = [Cell(name, slot, "active", 1.0, "h", 1, 1, 1, 1, "", "") for slot, name in enumerate(self.cells)]
        await self.registry.write_cells(rows, "ann", "cells_written")
        for partner_id, home in self.homes.items():
            await self._onboard(partner_id, home)
        self.routers = [self._router(), self._router()]
        self.told = self.told_workers = 0
        self.methods.clear()
        self.calm = False

    async def _onboard(self, partner_id: str, home: str) -> None:
        partner = Partner(partner_id, partner_id, "onboarding", "test", home, 1_000, 1_000, 256, "2026-11-22", 1, "")
        await self.registry.begin_onboarding(replace(partner, isolation="dedicated"), "ann")
        profile = messages.encode_profile(to_profile(await self.registry.activate(partner_id, "ann")))
        body = msgpack.packb({"profile": profile})
        answer = await SimulatedDoors(self, self.life).ask(home, Method.ONBOARD, partner_id, body, 10_000)
        assert isinstance(answer, Answer), answer

    def _router(self) -> CellsClient:
        async def nothing_new(version: int, timeout_ms: int) -> None:
            """All cells are known from the beginning."""

        client = CellsClient({}, nothing_new, now=asyncio.get_running_loop().time)
        for name, cell in self.cells.items():
            peer: Any = SimulatedPeer(cell)
            client._links[name] = _Link(peer, directory.Cell(name=name, host="here", port=1), None)
        return client

    async def start_control_plane(self, *, new: bool = False) -> None:
        life = self.life = Life()
        store = MortalStore(await MemoryShelf(self.books).open("control"), life)
        self.registry = await Registry.open(store, "here", audit_key=b"k" * 32, new=new)
        self.make_control_plane(life)
        self.ever.append((life, self.moves, self.registry))
        self.up.set()
        self.network.begin(self._go_on(life))

    def make_control_plane(self, life: Life) -> None:
        """Make what works over the registry."""
        registry = self.registry

        async def publish() -> None:
            await life.reach()
            self.published = {partner.id: partner.cell for partner in registry.partners()}

        doors = DoorMoves(SimulatedDoors(self, life))
        monotonic = asyncio.get_running_loop().time
        clocks: dict[str, Any] = {"monotonic": monotonic, "now_ms": lambda: int(monotonic() * 1_000)}
        self.moves = Moves(registry, doors, publish, lambda: 1, to_profile, lambda: self.places, **clocks)
        self.burials = Burials(registry, doors)

    async def _go_on(self, life: Life) -> None:
        """Go on as `up` does, which ends where its registry is another's or in doubt."""
        while not life.is_over:
            await asyncio.sleep(0.5)
            if not life.is_over:
                await self.look()

    async def look(self) -> None:
        """Do once what the control plane does again and again."""
        await self.moves.resume()
        await self.burials.tell()

    def _acquirer(self, life: Life, partner_id: str) -> MortalAcquirer:
        return MortalAcquirer(self.records[partner_id], lambda: self.steps.pop() if self.steps else APPROVE, life)

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
                partners = list(self.homes)
                self.cells[f"cell-{index}"].kill_worker(partners[self.told % len(partners)], goes_on_s)

    async def _control_plane_again(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        while not self.is_up:
            try:
                await self.start_control_plane()
            except ControlPlaneError:
                await asyncio.sleep(0.1)

    # Who asks

    async def wish(self, wishes: Sequence[Wish]) -> None:
        for wish in wishes:
            await asyncio.sleep(wish.after_s)
            sent = self._command(wish)
            if sent is not None:
                self.asking.append(asyncio.create_task(self.ask(sent, wish.router)))

    def _command(self, wish: Wish) -> Sent | None:
        partner = list(self.homes)[wish.partner]
        before = [sent for sent in self.sent if sent.partner == partner]
        if wish.kind == "again":
            return before[wish.number % len(before)] if before else None
        if wish.kind == "capture":
            known = [sent.payment_id for sent in before if sent.payment_id is not None]
            if not known:
                return None
            arguments: dict[str, Any] = {"payment_id": known[wish.number % len(known)], "amount": None}
            sent = Sent(partner, Method.CAPTURE_PAYMENT, arguments, f"key-{len(self.sent)}")
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
            sent = Sent(partner, Method.CREATE_PAYMENT, arguments, f"key-{len(self.sent)}")
        self.sent.append(sent)
        return sent

    async def ask(self, sent: Sent, router: int) -> None:
        home = self.homes[sent.partner] if router else self.published[sent.partner]
        fingerprint = orjson.dumps(sent.arguments)[:32].ljust(32)
        command = Command(f"{sent.key}-{random.getrandbits(64):x}", "r", sent.arguments, sent.key, fingerprint)
        answer = await self.routers[router].ask(home, sent.partner, sent.method, command, writes=True)
        if not isinstance(answer, Answer):
            return
        payment_id = str(orjson.loads(answer.body)["id"])
        if sent.payment_id not in (None, payment_id):
            self.wrong.append(AssertionError(f"{sent} made a second payment: {payment_id}"))
        sent.payment_id, sent.status = payment_id, answer.status

    # What is promised at every moment

    def check_now(self, after: str) -> None:
        for partner in self.homes:
            owners = {name: cell.owners(partner) for name, cell in self.cells.items()}
            if sum(len(epochs) for epochs in owners.values()) > 1:
                self.wrong.append(AssertionError(f"after {after} these can write of {partner}: {owners}"))
            self._check_road(partner, after)

    def _check_road(self, partner: str, after: str) -> None:
        """See that a partner on no move is where the registry says, or will be served there once its door is up."""
        if not self.is_up or partner not in {one.id for one in self.registry.partners()}:
            return
        if self.calm or self.registry.move(partner) is not None:
            return
        home = self.registry.partner(partner).cell
        if (home, "partners", partner) not in self.books.by_path:
            self.wrong.append(AssertionError(f"after {after} there is no book of {partner} in {home}"))
        if self.cells[home].is_up and partner not in self.cells[home].door._seats:
            self.wrong.append(AssertionError(f"after {after} {home} knows nothing of {partner}"))

    # The end

    async def calm_down(self) -> None:
        """Let everything end; then hold it against what was promised."""
        self.calm = True
        self.cut_off.clear()
        for book in self.books.by_path.values():
            book._faults.clear()
        await asyncio.gather(*self.asking)
        await asyncio.sleep(10)  # what is late arrives
        for book in self.books.by_path.values():
            book.deliver_late()
        await self.settled()

    async def settled(self) -> None:
        """Wait until nothing is under way any more."""
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE_S
        while not self.is_up or self.on_the_way() or not all(cell.is_up for cell in self.cells.values()):
            assert loop.time() < until, f"it does not end: {self.is_up and self.on_the_way()}"
            await asyncio.sleep(1)
        await asyncio.sleep(30)

    def on_the_way(self) -> list[Move | Burial]:
        """Give what the control plane still has to do."""
        return [*self.registry.moves(), *self.registry.burials()]

    async def check(self) -> None:
        """Hold all that there is against what was promised."""
        for partner in self.homes:
            await self._check_partner(partner)
        for cell in self.cells.values():
            assert not cell.door._arrivals.expected
            assert not cell.door._ownership._held
            for link in cell.door._ownership.workforce.links.values():  # type: ignore[union-attr]
                assert link.partners <= cell.door._seats.keys()
        assert not self.wrong, self.wrong

    async def _check_partner(self, partner: str) -> None:
        home = self.registry.partner(partner).cell
        assert self.published[partner] == home
        seat = self.cells[home].door._seats[partner]
        assert seat.state == "active"
        assert [name for name, cell in self.cells.items() if partner in cell.door._seats] == [home]
        assert [path[0] for path in self.books.by_path if path[1:] == ("partners", partner)] == [home]
        (epoch,) = self.cells[home].owners(partner)
        assert seat.epoch is not None
        assert epoch >= seat.epoch  # after a commit whose outcome it did not know an actor raises it by itself
        mine = [sent for sent in self.sent if sent.partner == partner]
        for sent in mine:
            for router in (0, 1):
                before = sent.payment_id
                await self.ask(sent, router)
                assert sent.payment_id is not None or sent.method == Method.CAPTURE_PAYMENT, f"{sent}: {before}"
        book = self.books.by_path[home, "partners", partner]
        books = await read_books(book)
        while books.standing.open_operations:
            await asyncio.sleep(10)
            books = await read_books(book)
        check_books(books)
        check_record(books, self.records[partner])
        created = [sent.payment_id for sent in mine if sent.method == Method.CREATE_PAYMENT]
        assert sorted(str(made) for made in created) == sorted(books.payments)
        assert len(self.histories[partner].epochs) == books.standing.sequence
