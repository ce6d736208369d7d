"""A partner moves between two doors over real worker processes: the steps, and what is dead, late or doubled between.

The way between them is the control plane's own (control_plane/moves.py) over a real registry; only the sockets to the
doors and Ray are left out.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgpack
import orjson
import pytest

from actors import keyspace
from actors.errors import StoreError, StoreUnavailableError
from actors.store import Mutation, Range
from cells import limits as cell_limits
from cells.api import messages, moves
from cells.api.bulkheads import Bulkhead
from cells.api.connection import Request
from cells.api.messages import Answer, Command, Method, RefusalCode, Refused
from cells.escalation import QUARANTINED, Escalation
from control_plane import limits
from control_plane.burials import Burials
from control_plane.door_moves import CopyLostError, DoorMoves
from control_plane.doors import Doors
from control_plane.errors import DoorError, NotFoundError, RefusedError
from control_plane.move_record import Move
from control_plane.moves import MoveAbortedError, Moves
from control_plane.partners import to_profile
from control_plane.registry import Registry
from control_plane.registry_records import Partner
from stores.sqlite_shelf import SqliteShelf
from tests.stand_in_cluster import StandInCluster, WorkerMaker
from tests.unit.cells.test_door import OpenCell, code

PARTNER = "alpha"
DIRECTORY_VERSION = 41


class TwoDoors(Doors):
    """Asks the doors directly, in the control plane's role; `fails` and `holds` order what goes wrong."""

    def __init__(self, cells: dict[str, OpenCell]) -> None:
        self.cells = cells
        self.asked: list[str] = []
        self.dead: set[str] = set()
        self.before: dict[str, Callable[[], Awaitable[None]]] = {}
        self.after: dict[str, Callable[[], Awaitable[None]]] = {}
        self.left = asyncio.Event()  # set: the connections of this control plane have ended

    async def ask(self, cell: str, method: str, partner_id: str, body: bytes, budget_ms: int) -> Answer | Refused:
        self.asked.append(method)
        if cell in self.dead:
            raise DoorError(f"{cell} is dead")
        before = self.before.pop(method, None)
        if before is not None:
            await before()
        request = Request("control", method, partner_id, budget_ms, body, self.left)
        answer = await self.cells[cell].door.handle(request)
        after = self.after.pop(method, None)
        if after is not None:
            await after()
        return messages.decode_answer(answer)


@dataclass
class Installed:
    """Two cells, the registry, and the moves between them."""

    cells: dict[str, OpenCell]
    registry: Registry
    doors: TwoDoors
    moves: Moves
    published: list[str]
    folder: Path
    places: dict[str, dict[str, Any]]

    @property
    def source(self) -> OpenCell:
        return self.cells["cell-0"]

    @property
    def target(self) -> OpenCell:
        return self.cells["cell-1"]

    async def onboard(self, partner_id: str = PARTNER, isolation: str = "dedicated") -> None:
        partner = Partner(
            partner_id, partner_id, "onboarding", "test", "cell-0", 1_000, 1_000, 256, "2026-11-22", 1, ""
        )
        partner = replace(partner, isolation=isolation)
        await self.registry.begin_onboarding(partner, "ann")
        partner = await self.registry.activate(partner_id, "ann")
        profile = messages.encode_profile(to_profile(partner))
        assert isinstance(await self.source.control(Method.ONBOARD, {"profile": profile}), Answer)

    async def write(self, cell: OpenCell, command_id: str, budget_ms: int = 700, **arguments: Any) -> Answer | Refused:
        """Make a payment that needs no acquirer's answer to be in the book: nobody is at the acquirer's address."""
        said = {
            "amount": 100,
            "currency": "EUR",
            "payment_method": "tok_approve",
            "capture_method": "automatic",
            "reference": None,
            "description": None,
            "metadata": {},
            **arguments,
        }
        return await cell.ask(Method.CREATE_PAYMENT, PARTNER, command_id=command_id, budget_ms=budget_ms, **said)

    async def payments(self, cell: OpenCell) -> list[str]:
        answer = await cell.ask(Method.LIST_PAYMENTS, PARTNER, limit=100)
        assert isinstance(answer, Answer), answer
        return [payment["id"] for payment in orjson.loads(answer.body)["data"]]

    def again(self, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        """Start the control plane anew, over what it wrote down."""
        self.doors.left = asyncio.Event()
        self.moves = self._moves(now_ms)

    def _moves(self, now_ms: Callable[[], int]) -> Moves:
        async def publish() -> None:
            self.published.append(self.registry.partner(PARTNER).cell)

        doors = DoorMoves(self.doors)
        return Moves(
            self.registry, doors, publish, lambda: DIRECTORY_VERSION, to_profile, lambda: self.places, now_ms=now_ms
        )


@pytest.fixture
def clusters(worker_maker: WorkerMaker) -> Iterator[list[StandInCluster]]:
    made = [StandInCluster(worker_maker) for _ in range(2)]
    yield made
    for cluster in made:
        cluster.end()


@pytest.fixture
async def installed(tmp_path: Path, clusters: list[StandInCluster]) -> AsyncIterator[Installed]:
    async with installed_at(tmp_path, clusters) as made:
        yield made


@contextlib.asynccontextmanager
async def installed_at(
    tmp_path: Path,
    clusters: list[StandInCluster],
    places: dict[str, dict[str, Any]] | None = None,
    spares: int = 1,
) -> AsyncIterator[Installed]:
    """Give a cell for each cluster, whose books stand in folders of their own or at the places given."""
    cells = {}
    for index, cluster in enumerate(clusters):
        folder = tmp_path / f"cell-{index}"
        folder.mkdir()
        cells[f"cell-{index}"] = OpenCell(folder, cluster, f"cell-{index}")
        # Nobody is at the acquirer's address: a breaker would turn payments away, and these are to be written.
        cells[f"cell-{index}"].bulkheads_off = {Bulkhead.BREAKER}
        if places is not None:
            cells[f"cell-{index}"].place = places[f"cell-{index}"]
        await cells[f"cell-{index}"].open(spares)
    places = {name: cell.place for name, cell in cells.items()}
    shelf = SqliteShelf(tmp_path)
    await shelf.create("control")
    registry = await Registry.open(await shelf.open("control"), "here", new=True)
    made = Installed(cells, registry, TwoDoors(cells), None, [], tmp_path, places)  # type: ignore[arg-type]
    made.again()
    yield made
    await made.moves.stop()
    for cell in cells.values():
        await cell.close()
    await registry.close()


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOVE_RETRY_DELAY_MS_MIN", 10)
    monkeypatch.setattr(cell_limits, "QUIESCE_LEASE_MS", 400)


async def rows(cell: OpenCell) -> dict[Any, bytes]:
    store = await SqliteShelf(cell.folder).open("partners", PARTNER)
    try:
        (page,) = (await store.read([], [Range(("",), (keyspace.LAST,), 1_000)])).ranges
    finally:
        await store.close()
    return {row.key: row.value for row in page if row.key not in (keyspace.ARRIVAL, keyspace.MOVED)}


# The way on which nothing fails


async def test_a_partner_lives_in_its_new_cell_with_all_that_it_had(installed: Installed) -> None:
    await installed.onboard()
    for number in range(3):
        await installed.write(installed.source, f"c{number}")
    before = await installed.payments(installed.source)
    held = await rows(installed.source)
    epoch = installed.source.door._seats[PARTNER].epoch
    ended = await installed.moves.move(PARTNER, "cell-1", "ann")
    assert ended.rows == len(held)
    assert await installed.payments(installed.target) == before
    assert installed.registry.partner(PARTNER).cell == "cell-1"
    assert installed.registry.move(PARTNER) is None
    assert installed.published[-1] == "cell-1"
    assert not installed.source.book(PARTNER).exists()
    status = await installed.target.partner(PARTNER)
    assert epoch is not None
    assert status["epoch"] > epoch + 1
    changes = await installed.registry.changes(PARTNER)
    assert changes[0].what == "partner_moved"
    assert 0 <= changes[0].detail["pause_ms"] < 5_000
    assert "token" not in changes[0].detail


async def test_the_old_cell_tells_where_it_went_with_the_proof(installed: Installed) -> None:
    await installed.onboard()
    await installed.moves.move(PARTNER, "cell-1", "ann")
    answer = await installed.write(installed.source, "late")
    assert code(answer) is RefusalCode.PARTNER_MOVED
    assert isinstance(answer, Refused)
    receipt = moves.decode_receipt(bytes.fromhex(str(answer.refusal.context["receipt"])))
    assert (receipt.to, answer.refusal.context["to"], answer.refusal.context["tried"]) == ("cell-1", "cell-1", 0)
    assert receipt.directory_version == DIRECTORY_VERSION, "a router that does not know that cell needs this one"


async def test_a_command_that_waits_for_the_move_is_sent_on_and_one_that_was_under_way_is_found(
    installed: Installed,
) -> None:
    await installed.onboard()
    # Its acquirer does not answer, so that it is open when the partner moves.
    first = asyncio.create_task(installed.write(installed.source, "open"))
    await asyncio.sleep(0.1)
    waiting: list[asyncio.Task[Answer | Refused]] = []

    async def come() -> None:
        waiting.append(asyncio.create_task(installed.write(installed.source, "waits")))
        await asyncio.sleep(0)

    installed.doors.before[Method.SEAL] = come
    await installed.moves.move(PARTNER, "cell-1", "ann")
    told = await waiting[0]
    assert code(told) is RefusalCode.PARTNER_MOVED
    sent_again = await first
    if isinstance(sent_again, Refused):  # it was under way: its door can't know what became of it there
        assert sent_again.refusal.code is RefusalCode.PARTNER_MOVED
        assert sent_again.refusal.context["tried"] == 1
    there = await installed.write(installed.target, "open")
    assert isinstance(there, Answer)
    assert len(await installed.payments(installed.target)) == 1


async def test_what_is_written_while_it_is_copied_is_there_too(installed: Installed) -> None:
    await installed.onboard()
    book: dict[Any, bytes] = {}
    # A busy machine refuses some of them, so that the rows decide how many are enough: more than two batches.
    for number in range(100):
        await asyncio.gather(*(installed.write(installed.source, f"c{number}-{each}") for each in range(20)))
        book = await rows(installed.source)
        if len(book) > 2 * cell_limits.COPY_ROWS_MAX:
            break

    async def pay() -> None:
        await installed.write(installed.source, f"during-{len(installed.doors.asked)}")
        if len(installed.doors.asked) < 8:
            installed.doors.before[Method.COPY_ROWS] = pay

    installed.doors.before[Method.COPY_ROWS] = pay
    await installed.moves.move(PARTNER, "cell-1", "ann")
    assert installed.doors.asked.count(Method.COPY_ROWS) >= 3
    made = await rows(installed.target)
    assert sum(key[0] == "payment" for key in made) > sum(key[0] == "payment" for key in book)


async def test_who_writes_faster_than_it_is_copied_stays_and_is_served(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MOVE_ROWS_LEFT_MAX", 0)
    monkeypatch.setattr(limits, "MOVE_CATCH_UP_BATCHES_MAX", 2)
    await installed.onboard()

    async def pay() -> None:
        """Change more rows than the next batch takes."""
        made = 0
        for number in range(100):
            name = f"c{len(installed.doors.asked)}-{number}"
            writes = (installed.write(installed.source, f"{name}-{each}") for each in range(20))
            made += sum(isinstance(answer, Answer) for answer in await asyncio.gather(*writes))
            if made >= 60:
                break
        installed.doors.before[Method.COPY_ROWS] = pay

    installed.doors.before[Method.COPY_ROWS] = pay
    with pytest.raises(MoveAbortedError, match="changes faster than it is copied"):
        await installed.moves.move(PARTNER, "cell-1", "ann")
    assert installed.registry.partner(PARTNER).cell == "cell-0"
    assert isinstance(await installed.write(installed.source, "after"), Answer)


async def test_nobody_is_moved_to_where_no_worker_is_ready(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    await installed.onboard()
    take_spare = installed.target.workforce.take_spare
    monkeypatch.setattr(installed.target.workforce, "take_spare", lambda: None)
    moving = asyncio.create_task(installed.moves.move(PARTNER, "cell-1", "ann"))
    for _ in range(200):
        move = installed.registry.move(PARTNER)
        if move is not None and "no worker is ready" in move.why:
            break
        await asyncio.sleep(0.01)
    assert "no worker is ready" in installed.registry.moves()[0].why
    assert isinstance(await installed.write(installed.source, "c1"), Answer)
    assert not {Method.BEGIN_LEAVING, Method.QUIESCE} & set(installed.doors.asked)
    monkeypatch.setattr(installed.target.workforce, "take_spare", take_spare)
    await asyncio.wait_for(moving, 30)
    assert len(await installed.payments(installed.target)) == 1


async def test_a_place_is_held_for_who_comes_and_given_back_where_it_does_not(installed: Installed) -> None:
    await installed.onboard()
    (spare,) = [link for link in installed.target.workforce.links.values() if not link.partners]

    async def die() -> None:
        assert spare.partners == {PARTNER}
        raise DoorError("as the test ordered")

    installed.doors.before[Method.BEGIN_LEAVING] = die
    await installed.moves.move(PARTNER, "cell-1", "ann")
    assert installed.target.link(PARTNER) is spare
    await installed.moves.move(PARTNER, "cell-0", "ann")
    assert not spare.partners

    async def abort() -> None:
        asked.append(asyncio.create_task(installed.moves.abort(PARTNER, "ann")))
        raise DoorError("as the test ordered")

    asked: list[asyncio.Task[Any]] = []
    installed.doors.before[Method.BEGIN_LEAVING] = abort
    with pytest.raises(MoveAbortedError):
        await installed.moves.move(PARTNER, "cell-1", "ann")
    await asked[0]
    assert PARTNER not in {name for link in installed.target.workforce.links.values() for name in link.partners}


async def test_the_pause_that_is_told_lasts_until_the_partner_is_served(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    await installed.onboard()
    activate = installed.target.door._ownership._activate

    async def slowly(*arguments: Any) -> None:
        await asyncio.sleep(0.6)
        await activate(*arguments)

    monkeypatch.setattr(installed.target.door._ownership, "_activate", slowly)
    ended = await installed.moves.move(PARTNER, "cell-1", "ann")
    assert ended.pause_ms is not None
    assert ended.pause_ms >= 600
    assert isinstance(await installed.write(installed.target, "c1"), Answer)


async def test_there_and_back_again(installed: Installed) -> None:
    await installed.onboard()
    await installed.write(installed.source, "c1")
    await installed.moves.move(PARTNER, "cell-1", "ann")
    await installed.write(installed.target, "c2")
    first = (await installed.target.partner(PARTNER))["epoch"]
    await installed.moves.move(PARTNER, "cell-0", "ann")
    assert len(await installed.payments(installed.source)) == 2
    assert code(await installed.write(installed.target, "c3")) is RefusalCode.PARTNER_MOVED
    assert (await installed.source.partner(PARTNER))["epoch"] > first


async def test_a_pooled_partner_leaves_its_mates_alone(installed: Installed) -> None:
    await installed.onboard(isolation="pooled")
    for mate in ("beta", "gamma"):
        profile = {"partner_id": mate, "version": 1, "isolation": "pooled"}
        await installed.source.control(Method.ONBOARD, {"profile": profile})
    pool = installed.source.link("beta")
    await installed.moves.move(PARTNER, "cell-1", "ann")
    assert installed.source.link("beta") is pool
    assert pool.partners == {"beta", "gamma"}
    for mate in ("beta", "gamma"):
        await installed.source.serves(mate)


# What can't be moved


async def test_who_is_not_there_and_where_nobody_lives(installed: Installed) -> None:
    await installed.onboard()
    with pytest.raises(NotFoundError, match="there is no cell"):
        await installed.moves.move(PARTNER, "cell-7", "ann")
    with pytest.raises(RefusedError, match="is in cell-0 already"):
        await installed.moves.move(PARTNER, "cell-0", "ann")
    with pytest.raises(NotFoundError):
        await installed.moves.move("nobody", "cell-1", "ann")
    with pytest.raises(NotFoundError):
        await installed.moves.abort(PARTNER, "ann")


# What dies, is late or comes twice


async def kill(cell: OpenCell, partner_id: str) -> None:
    os.kill(cell.link(partner_id).endpoint.pid, signal.SIGKILL)
    await asyncio.sleep(0.05)


@pytest.mark.parametrize("method", [Method.COPY_ROWS, Method.QUIESCE, Method.SEAL])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_its_worker_dies_at_a_step(installed: Installed, method: str, when: str) -> None:
    await installed.onboard()
    await installed.write(installed.source, "c1")
    pid = installed.source.link(PARTNER).endpoint.pid

    async def die() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.05)

    getattr(installed.doors, when)[method] = die
    await asyncio.wait_for(installed.moves.move(PARTNER, "cell-1", "ann"), 20)
    assert len(await installed.payments(installed.target)) == 1


STEPS = (
    Method.BEGIN_ARRIVAL,
    Method.BEGIN_LEAVING,
    Method.COPY_ROWS,
    Method.TAKE_ROWS,
    Method.QUIESCE,
    Method.SEAL,
    Method.OPEN_ARRIVAL,
    Method.ARRIVAL_STATUS,
    Method.SUM_ROWS,
    Method.ERASE_MOVED,
)


class Killed(BaseException):
    """The control plane dies here."""


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_the_control_plane_dies_at_a_step_and_the_next_one_goes_on(
    installed: Installed, step: str, when: str
) -> None:
    await installed.onboard()
    await installed.write(installed.source, "c1")

    async def die() -> None:
        raise asyncio.CancelledError  # ends the move's task where it stands

    getattr(installed.doors, when)[step] = die
    with contextlib.suppress(asyncio.CancelledError):
        await (await installed.moves.start(PARTNER, "cell-1", "ann"))
    assert installed.registry.move(PARTNER) is not None
    await installed.moves.stop()
    installed.again()
    await installed.moves.resume()
    await asyncio.wait_for(asyncio.gather(*installed.moves._tasks.values()), 20)
    assert installed.registry.move(PARTNER) is None
    assert installed.registry.partner(PARTNER).cell == "cell-1"
    assert len(await installed.payments(installed.target)) == 1


@pytest.mark.parametrize("step", STEPS)
async def test_an_answer_is_lost_and_the_step_is_taken_again(installed: Installed, step: str) -> None:
    await installed.onboard()
    await installed.write(installed.source, "c1")

    async def lose() -> None:
        raise DoorError("the answer was lost")

    installed.doors.after[step] = lose
    await asyncio.wait_for(installed.moves.move(PARTNER, "cell-1", "ann"), 20)
    assert len(await installed.payments(installed.target)) == 1


@pytest.mark.parametrize("side", ["cell-0", "cell-1"])
@pytest.mark.parametrize("step", [Method.COPY_ROWS, Method.QUIESCE, Method.SEAL, Method.OPEN_ARRIVAL])
async def test_a_door_dies_at_a_step(installed: Installed, side: str, step: str) -> None:
    await installed.onboard()
    await installed.write(installed.source, "c1")

    async def die() -> None:
        cell = installed.cells[side]
        await cell.close()
        await cell.open(1)

    installed.doors.before[step] = die
    await asyncio.wait_for(installed.moves.move(PARTNER, "cell-1", "ann"), 30)
    assert len(await installed.payments(installed.target)) == 1


async def test_nobody_comes_back_and_the_partner_is_served_again(installed: Installed) -> None:
    await installed.onboard()

    async def die() -> None:
        raise asyncio.CancelledError

    installed.doors.after[Method.QUIESCE] = die
    with contextlib.suppress(asyncio.CancelledError):
        await (await installed.moves.start(PARTNER, "cell-1", "ann"))
    began = asyncio.get_running_loop().time()
    assert isinstance(await installed.write(installed.source, "c1", budget_ms=4_000), Answer)
    assert asyncio.get_running_loop().time() - began < 5


async def test_a_control_plane_that_dies_leaves_nobody_waiting(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell_limits, "QUIESCE_LEASE_MS", 3_600_000)
    await installed.onboard()
    waiting: list[asyncio.Task[Answer | Refused]] = []

    async def die() -> None:
        waiting.append(asyncio.create_task(installed.write(installed.source, "c1", budget_ms=20_000)))
        await asyncio.sleep(0.1)
        assert not waiting[0].done()
        installed.doors.left.set()
        raise asyncio.CancelledError

    installed.doors.before[Method.SEAL] = die
    with contextlib.suppress(asyncio.CancelledError):
        await (await installed.moves.start(PARTNER, "cell-1", "ann"))
    assert isinstance(await waiting[0], Answer), "served where it was, long before the lease ends"
    installed.again()
    await installed.moves.resume()
    await asyncio.wait_for(asyncio.gather(*installed.moves._tasks.values()), 20)
    assert installed.registry.partner(PARTNER).cell == "cell-1"
    told_ms = await told_pause_ms(installed)
    assert told_ms is not None
    assert 100 <= told_ms < 20_000


async def test_a_connection_that_ends_under_the_seal_undoes_nothing(installed: Installed) -> None:
    await installed.onboard()

    async def leave() -> None:
        installed.doors.left.set()

    installed.doors.before[Method.SEAL] = leave
    await asyncio.wait_for(installed.moves.move(PARTNER, "cell-1", "ann"), 20)
    assert await installed.payments(installed.target) == []
    assert code(await installed.write(installed.source, "late")) is RefusalCode.PARTNER_MOVED


async def test_a_seal_that_comes_after_the_lease_seals_nothing(installed: Installed) -> None:
    await installed.onboard()

    async def late() -> None:
        await asyncio.sleep(cell_limits.QUIESCE_LEASE_MS / 1_000 + 0.3)

    installed.doors.before[Method.SEAL] = late
    await asyncio.wait_for(installed.moves.move(PARTNER, "cell-1", "ann"), 20)
    assert installed.doors.asked.count(Method.SEAL) == 2
    assert len(await installed.payments(installed.target)) == 0


async def test_a_move_is_aborted_while_it_copies_and_nothing_is_left_of_it(installed: Installed) -> None:
    await installed.onboard()
    held = asyncio.Event()

    async def hold() -> None:
        held.set()
        await asyncio.sleep(0.2)

    installed.doors.before[Method.TAKE_ROWS] = hold
    task = await installed.moves.start(PARTNER, "cell-1", "ann")
    await held.wait()
    # What is under way is caught up with its first batch: so that it can be aborted, its seal is turned away once.
    installed.doors.before[Method.SEAL] = _lost
    await installed.moves.abort(PARTNER, "ann")
    with pytest.raises(MoveAbortedError):
        await task
    assert installed.registry.move(PARTNER) is None
    assert installed.registry.partner(PARTNER).cell == "cell-0"
    assert not installed.target.book(PARTNER).exists()
    assert isinstance(await installed.write(installed.source, "c1"), Answer)
    assert code(await installed.write(installed.target, "c2")) is RefusalCode.PARTNER_MOVED


async def test_a_move_whose_target_died_is_given_up_and_the_target_is_told_when_it_is_back(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MOVE_ATTEMPTS_MAX", 2)
    await installed.onboard()
    await installed.write(installed.source, "c1")

    async def die() -> None:
        installed.doors.dead.add("cell-1")

    installed.doors.after[Method.TAKE_ROWS] = die
    with pytest.raises(MoveAbortedError, match="stays in cell-0"):
        await asyncio.wait_for(installed.moves.move(PARTNER, "cell-1", "ann"), 20)
    assert installed.registry.move(PARTNER) is None
    assert isinstance(await installed.write(installed.source, "c2"), Answer)
    assert installed.target.book(PARTNER).exists(), "what arrived lies there still"
    with pytest.raises(RefusedError, match="cell-1 was not told yet"):
        await installed.moves.start(PARTNER, "cell-1", "ann")

    burials = Burials(installed.registry, DoorMoves(installed.doors))
    await burials.tell()
    await asyncio.gather(*burials._telling.values())
    assert len(installed.registry.burials()) == 1, "it is dead still"
    installed.doors.dead.clear()
    for _ in range(2):
        await burials.tell()
        await asyncio.gather(*burials._telling.values())
        assert not installed.registry.burials()
        assert not installed.target.book(PARTNER).exists()
    assert code(await installed.write(installed.target, "c3")) is RefusalCode.PARTNER_MOVED
    await installed.moves.move(PARTNER, "cell-1", "ann")
    assert len(await installed.payments(installed.target)) == 2


async def _lost() -> None:
    raise CopyLostError("as the test ordered")


async def test_a_router_opens_the_arrival_when_the_control_plane_is_gone(installed: Installed) -> None:
    await installed.onboard()
    await installed.write(installed.source, "c1")

    async def die() -> None:
        raise asyncio.CancelledError

    installed.doors.before[Method.OPEN_ARRIVAL] = die
    with contextlib.suppress(asyncio.CancelledError):
        await (await installed.moves.start(PARTNER, "cell-1", "ann"))
    answer = await installed.write(installed.source, "c2")
    assert isinstance(answer, Refused)
    receipt = bytes.fromhex(str(answer.refusal.context["receipt"]))
    forged = moves.encode_receipt(replace(moves.decode_receipt(receipt), token="0" * 64))
    for proof, is_opened in ((forged, False), (receipt, True), (receipt, True)):
        request = Request("router", Method.OPEN_ARRIVAL, PARTNER, 5_000, msgpack.packb({"receipt": proof}))
        opened = messages.decode_answer(await installed.target.door.handle(request))
        assert isinstance(opened, Answer) is is_opened
    assert len(await installed.payments(installed.target)) == 1
    # And the next control plane finds it done.
    installed.again()
    await installed.moves.resume()
    await asyncio.wait_for(asyncio.gather(*installed.moves._tasks.values()), 20)
    assert installed.registry.partner(PARTNER).cell == "cell-1"
    told_ms = await told_pause_ms(installed)
    assert told_ms is not None
    assert 0 <= told_ms < 20_000, "until the seal, and for as long as the router's opening took"


# What a pause was, where nobody watched it to its end


async def told_pause_ms(installed: Installed) -> int | None:
    (ended, *_) = await installed.registry.changes(PARTNER)
    pause_ms: int | None = ended.detail["pause_ms"]
    return pause_ms


async def die_and_go_on(installed: Installed, before: str, later_ms: int, *, doors_too: bool = False) -> None:
    """Have the control plane die before a step, and the next one go on, so much later by the wall clock."""

    async def die() -> None:
        raise asyncio.CancelledError

    installed.doors.before[before] = die
    await asyncio.wait([await installed.moves.start(PARTNER, "cell-1", "ann")])
    move = installed.registry.move(PARTNER)
    assert move is not None
    assert move.quiesced_at_ms is not None
    if doors_too:
        await installed.source.close()
        await installed.source.open(1)
    then_ms = move.quiesced_at_ms + later_ms
    installed.again(lambda: then_ms)
    await installed.moves.resume()
    await asyncio.wait_for(asyncio.gather(*installed.moves._tasks.values()), 20)
    assert installed.registry.partner(PARTNER).cell == "cell-1"


@pytest.mark.parametrize("before", [Method.QUIESCE, Method.SEAL, Method.OPEN_ARRIVAL])
async def test_the_doors_tell_for_how_long_a_partner_waited(installed: Installed, before: str) -> None:
    await installed.onboard()
    await die_and_go_on(installed, before, 3_600_000)
    told_ms = await told_pause_ms(installed)
    assert told_ms is not None
    assert 0 <= told_ms < 20_000


@pytest.mark.parametrize(("later_ms", "told_ms"), [(5_000, 5_000), (-1, None)])
async def test_where_its_door_died_too_the_row_tells_since_when_a_sealed_partner_can_have_waited(
    installed: Installed, later_ms: int, told_ms: int | None
) -> None:
    await installed.onboard()
    await die_and_go_on(installed, Method.OPEN_ARRIVAL, later_ms, doors_too=True)
    assert await told_pause_ms(installed) == told_ms


async def test_where_its_door_died_too_who_is_not_sealed_waited_no_longer_than_the_lease(installed: Installed) -> None:
    await installed.onboard()
    await die_and_go_on(installed, Method.SEAL, 3_600_000, doors_too=True)
    assert await told_pause_ms(installed) == limits.QUIESCE_LEASE_MS


async def test_a_move_that_comes_to_nothing_tells_the_pause_that_it_cost(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MOVE_ATTEMPTS_MAX", 2)
    await installed.onboard()

    async def refuse() -> None:
        await asyncio.sleep(0.2)
        installed.doors.before[Method.COPY_ROWS] = _lost
        await _lost()

    installed.doors.before[Method.SEAL] = refuse
    with pytest.raises(MoveAbortedError) as found:
        await installed.moves.move(PARTNER, "cell-1", "ann")
    assert found.value.pause_ms is not None
    assert 200 <= found.value.pause_ms <= limits.QUIESCE_LEASE_MS
    assert await told_pause_ms(installed) == found.value.pause_ms
    installed.doors.before[Method.BEGIN_LEAVING] = _lost
    monkeypatch.setattr(limits, "MOVE_ATTEMPTS_MAX", 1)
    with pytest.raises(MoveAbortedError) as found:
        await installed.moves.move(PARTNER, "cell-1", "ann")
    assert found.value.pause_ms == 0, "it was served all the time"


@pytest.mark.parametrize("method", [Method.SEAL, Method.BEGIN_ARRIVAL, Method.TAKE_ROWS, Method.ERASE_MOVED])
async def test_only_the_control_plane_moves_partners(installed: Installed, method: str) -> None:
    await installed.onboard()
    request = Request("router", method, PARTNER, 1_000, messages.encode_command(Command("c", "r", {})))
    assert code(messages.decode_answer(await installed.source.door.handle(request))) is RefusalCode.INTERNAL_ERROR


async def test_a_batch_that_comes_twice_or_out_of_turn(installed: Installed) -> None:
    await installed.onboard()
    await installed.write(installed.source, "c1")
    doors = DoorMoves(installed.doors)
    move = Move("move_1", PARTNER, "cell-0", "cell-1", "t" * 64, "copying", 1, "ann", "")
    await doors.begin_arrival(move, to_profile(installed.registry.partner(PARTNER)))
    await doors.begin_leaving(move)
    first = await doors.copy_rows(move, 0)
    assert (await doors.copy_rows(move, 0)).data == first.data
    arrived = await doors.take_rows(move, first.data)
    assert await doors.take_rows(move, first.data) == arrived
    second = await doors.copy_rows(move, 1)
    third = await doors.copy_rows(move, 2)
    with pytest.raises(CopyLostError, match="batch 1 comes next"):
        await doors.take_rows(move, third.data)
    await doors.take_rows(move, second.data)
    with pytest.raises(CopyLostError, match="attempt 1"):
        await doors.begin_arrival(move, to_profile(installed.registry.partner(PARTNER)))


async def test_a_damaged_copy_is_never_sealed(installed: Installed) -> None:
    await installed.onboard()
    await installed.write(installed.source, "c1")
    doors = DoorMoves(installed.doors)
    move = Move("move_1", PARTNER, "cell-0", "cell-1", "t" * 64, "copying", 1, "ann", "")
    await doors.begin_arrival(move, to_profile(installed.registry.partner(PARTNER)))
    await doors.begin_leaving(move)
    batch = (await doors.copy_rows(move, 0)).batch
    altered = replace(batch, rows=(*batch.rows[:-1], (batch.rows[-1][0], b"other")))
    await doors.take_rows(move, moves.encode_batch(altered))
    last = await doors.quiesce(move, 1)
    arrival = await doors.take_rows(move, last.data)
    with pytest.raises(CopyLostError):
        await doors.seal(move, arrival, DIRECTORY_VERSION)
    await asyncio.sleep(0.1)
    assert isinstance(await installed.write(installed.source, "c2"), Answer)


# A control plane that was stopped and goes on, and what is lost in the wrong moment


async def test_a_beginning_that_is_late_erases_no_sealed_book(installed: Installed) -> None:
    await installed.onboard()
    await installed.write(installed.source, "c1")
    first = await installed.moves.move(PARTNER, "cell-1", "ann")

    async def die() -> None:
        raise asyncio.CancelledError

    installed.doors.before[Method.OPEN_ARRIVAL] = die
    await asyncio.wait([await installed.moves.start(PARTNER, "cell-0", "ann")])
    held = await rows(installed.target)
    with pytest.raises(CopyLostError, match=r"nothing says that it may be erased|has ended here"):
        await DoorMoves(installed.doors).begin_arrival(first, to_profile(installed.registry.partner(PARTNER)))
    assert await rows(installed.target) == held
    await go_on(installed)
    assert len(await installed.payments(installed.source)) == 1


async def test_a_beginning_that_is_late_takes_no_later_moves_place(installed: Installed) -> None:
    await installed.onboard()
    await installed.write(installed.source, "c1")

    async def die() -> None:
        raise asyncio.CancelledError

    installed.doors.before[Method.OPEN_ARRIVAL] = die
    await asyncio.wait([await installed.moves.start(PARTNER, "cell-1", "ann")])
    late = Move("move_0", PARTNER, "cell-0", "cell-1", "t" * 64, "copying", 1, "ann", "")
    with pytest.raises(CopyLostError, match="later move"):
        await DoorMoves(installed.doors).begin_arrival(late, to_profile(installed.registry.partner(PARTNER)))
    await go_on(installed)
    assert len(await installed.payments(installed.target)) == 1


async def go_on(installed: Installed) -> None:
    installed.again()
    await installed.moves.resume()
    await asyncio.wait_for(asyncio.gather(*installed.moves._tasks.values()), 20)


async def test_a_tombstone_that_was_not_kept_is_kept_before_anything_follows(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    await installed.onboard()
    await installed.write(installed.source, "c1")
    book = installed.source.door._book
    write = book.write

    async def fail_once(*mutations: Mutation) -> StoreError | None:
        monkeypatch.setattr(book, "write", write)
        return StoreUnavailableError("as the test ordered")

    async def order() -> None:
        monkeypatch.setattr(book, "write", fail_once)

    installed.doors.before[Method.SEAL] = order
    await asyncio.wait_for(installed.moves.move(PARTNER, "cell-1", "ann"), 20)
    assert installed.doors.asked.count(Method.END_LEAVING) == 1
    await installed.source.close()
    await installed.source.open(1)
    answer = await installed.write(installed.source, "late")
    assert code(answer) is RefusalCode.PARTNER_MOVED
    assert isinstance(answer, Refused)
    assert answer.refusal.context["to"] == "cell-1"
    await installed.moves.move(PARTNER, "cell-0", "ann")
    assert len(await installed.payments(installed.source)) == 1


async def test_a_partner_that_is_quarantined_as_it_is_sealed_goes_forward(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    await installed.onboard()
    await installed.write(installed.source, "c1")
    seat = installed.source.door._seats[PARTNER]
    link = installed.source.link(PARTNER)
    request = link.connection.request

    async def lose(method: str, *rest: Any) -> bytes:
        answer = await request(method, *rest)
        if method == Method.SEAL:
            os.kill(link.endpoint.pid, signal.SIGKILL)
            installed.source.door._ownership._set_escalation(seat, Escalation(QUARANTINED, 0, "as the test ordered"))
            await asyncio.sleep(0.1)
            return messages.encode_answer(Refused(messages.Refusal(RefusalCode.PARTNER_UNAVAILABLE, "lost")))
        return answer

    monkeypatch.setattr(link.connection, "request", lose)
    await asyncio.wait_for(installed.moves.move(PARTNER, "cell-1", "ann"), 20)
    assert len(await installed.payments(installed.target)) == 1


async def test_an_abort_that_came_too_late_aborts_no_later_move(installed: Installed) -> None:
    await installed.onboard()
    aborting: list[asyncio.Task[Move]] = []

    async def abort() -> None:
        aborting.append(asyncio.create_task(installed.moves.abort(PARTNER, "ann")))
        await asyncio.sleep(0)

    installed.doors.before[Method.SEAL] = abort
    await installed.moves.move(PARTNER, "cell-1", "ann")
    await asyncio.gather(*aborting, return_exceptions=True)
    await installed.moves.move(PARTNER, "cell-0", "ann")
    assert installed.registry.partner(PARTNER).cell == "cell-0"


async def test_a_worker_dies_that_holds_a_place_for_a_partner_that_left(installed: Installed) -> None:
    await installed.onboard(isolation="pooled")
    for mate in ("beta", "gamma"):
        profile = {"partner_id": mate, "version": 1, "isolation": "pooled"}
        await installed.source.control(Method.ONBOARD, {"profile": profile})
    await installed.moves.move(PARTNER, "cell-1", "ann")
    installed.source.link("beta").partners.add(PARTNER)
    await kill(installed.source, "beta")
    for mate in ("beta", "gamma"):
        await installed.source.serves(mate)


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def test_a_seal_that_is_refused_leaves_no_book_open(installed: Installed) -> None:
    await installed.onboard()
    doors = DoorMoves(installed.doors)
    link = installed.source.link(PARTNER)
    move = Move("move_1", PARTNER, "cell-0", "cell-1", "t" * 64, "copying", 1, "ann", "")

    async def refused() -> int:
        await doors.begin_leaving(move)
        await doors.copy_rows(move, 0)
        await doors.quiesce(move, 1)
        with pytest.raises(CopyLostError):
            await doors.seal(move, moves.Arrival(move.id, 1), DIRECTORY_VERSION)
        await doors.end_leaving(move)
        return open_files(link.endpoint.pid)

    first = await refused()
    assert [await refused() for _ in range(3)][-1] <= first
