"""The way to the cells: a command goes out twice at most, under its own id, and nobody waits past the deadline."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from cells.api import limits as wire
from cells.api import moves
from cells.api.connection import FrameServer, Request
from cells.api.messages import (
    Answer,
    Command,
    Method,
    Refusal,
    RefusalCode,
    Refused,
    decode_command,
    encode_answer,
)
from cells.api.moves import Receipt
from router import cells_client, limits
from router.cells_client import CellsClient
from router.directory import Cell
from router.settings import SettingsError
from tests.eventually import eventually

KEY = b"k" * 32
COMMAND = Command("01JD8Z6V3H4K5M6N7P8Q9R0S1T", "req_1", {"amount": 1}, "key-1", b"f")
PAID = Answer(201, b'{"id":"pay_1"}')


class Door:
    """A stand-in of a cell's door over a real socket: notes what it is asked, answers as the test says."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Command, int]] = []
        self.was_asked = asyncio.Event()
        self.port = 0
        self.answer: Callable[[Request], Awaitable[bytes]] = self.pay
        self._server: FrameServer | None = None

    async def pay(self, request: Request) -> bytes:
        return encode_answer(PAID)

    async def hang(self, request: Request) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError

    async def die(self, request: Request) -> bytes:
        await self.stop()
        await asyncio.Event().wait()
        raise AssertionError

    async def take(self, request: Request) -> bytes:
        self.asked.append((request.method, request.partner_id, decode_command(request.body), request.budget_ms))
        self.was_asked.set()
        return await self.answer(request)

    async def _ask(self, request: Request) -> bytes:
        return await self.take(request)  # looked up now: a test may have put its own there

    async def start(self) -> None:
        self._server = FrameServer({"router": KEY}, self._ask)
        self.port = await self._server.start("127.0.0.1", self.port)

    async def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.aclose()

    def cell(self, name: str = "cell-0") -> Cell:
        return Cell(name=name, host="127.0.0.1", port=self.port)


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    made = Door()
    await made.start()
    yield made
    await made.stop()


def key_of(cell: str) -> bytes:
    if cell not in {"cell-0", "cell-1"}:
        raise SettingsError(f"{cell} has no key")
    return KEY


async def nothing_new(version: int, timeout_ms: int) -> None:
    """No newer directory comes."""


@pytest.fixture
async def client() -> AsyncIterator[CellsClient]:
    made = CellsClient(key_of, nothing_new)
    yield made
    await made.aclose()


@pytest.fixture
def short_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells_client, "_DEADLINE_MS", 300)


async def connected(client: CellsClient, cell: Cell) -> None:
    await client.use([cell])
    async with asyncio.timeout(5):
        while not client.connected()[cell.name]:
            await client._links[cell.name].peer.wait_connected(100)


async def ask(client: CellsClient, *, writes: bool = True) -> Answer | Refused:
    method = Method.CREATE_PAYMENT if writes else Method.GET_PAYMENT
    return await client.ask("cell-0", "acme", method, COMMAND, writes=writes)


def code_of(outcome: Answer | Refused) -> RefusalCode:
    assert isinstance(outcome, Refused)
    return outcome.refusal.code


async def test_an_answer_comes_back(client: CellsClient, door: Door) -> None:
    await connected(client, door.cell())
    assert await ask(client) == PAID
    ((method, partner, command, budget_ms),) = door.asked
    assert (method, partner, command) == (Method.CREATE_PAYMENT, "acme", COMMAND)
    assert budget_ms <= limits.actor_limits.COMMAND_DEADLINE_MS
    assert budget_ms > limits.actor_limits.COMMAND_DEADLINE_MS - 1_000


async def test_a_refusal_comes_back_and_is_not_tried_again(client: CellsClient, door: Door) -> None:
    refused = Refused(Refusal(RefusalCode.PARTNER_UNAVAILABLE, "No worker.", retry_after_ms=250))

    async def refuse(request: Request) -> bytes:
        return encode_answer(refused)

    door.answer = refuse
    await connected(client, door.cell())
    assert await ask(client) == refused
    assert len(door.asked) == 1


async def test_it_waits_for_a_door_that_is_not_up_yet(client: CellsClient, door: Door) -> None:
    cell = door.cell()
    await door.stop()
    await client.use([cell])
    asking = asyncio.create_task(ask(client))
    await asyncio.sleep(0)
    await door.start()
    assert await asking == PAID
    assert len(door.asked) == 1


async def test_a_door_that_dies_gets_the_same_command_again(client: CellsClient, door: Door) -> None:
    async def die_once(request: Request) -> bytes:
        door.answer = door.pay
        await door.stop()
        await door.start()
        return encode_answer(PAID)  # to nobody: its connection is gone

    door.answer = die_once
    await connected(client, door.cell())
    assert await ask(client) == PAID
    first, second = door.asked
    assert first[2] == second[2] == COMMAND
    assert second[3] < first[3], "the budget is what is left"
    assert client.resent == 1


async def test_a_command_whose_door_dies_at_its_deadline_is_asked_about_after_it(
    client: CellsClient, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker lives on and has written "202, processing" by then: that is an answer, "outcome unknown" is none."""
    monkeypatch.setattr(cells_client, "_DEADLINE_MS", 300)
    monkeypatch.setattr(limits, "ASK_AGAIN_MS", 5_000)

    async def die_late(request: Request) -> bytes:
        door.answer = door.pay
        await asyncio.sleep(0.25)
        await door.stop()
        await asyncio.sleep(0.2)
        await door.start()
        return b""

    door.answer = die_late
    await connected(client, door.cell())
    assert await ask(client) == PAID
    assert door.asked[1][3] == limits.ASK_AGAIN_BUDGET_MS


async def test_it_goes_out_twice_at_most(client: CellsClient, door: Door) -> None:
    async def die(request: Request) -> bytes:
        await door.stop()
        await door.start()
        return b""

    door.answer = die
    await connected(client, door.cell())
    assert code_of(await ask(client)) is RefusalCode.OUTCOME_UNKNOWN
    assert len(door.asked) == wire.COMMAND_SENDS_MAX


@pytest.mark.usefixtures("short_deadline")
@pytest.mark.parametrize(
    ("writes", "code"), [(True, RefusalCode.OUTCOME_UNKNOWN), (False, RefusalCode.PARTNER_UNAVAILABLE)]
)
async def test_a_door_that_hangs_ends_at_the_deadline(
    client: CellsClient, door: Door, *, writes: bool, code: RefusalCode
) -> None:
    door.answer = door.hang
    await connected(client, door.cell())
    outcome = await ask(client, writes=writes)
    assert code_of(outcome) is code
    assert isinstance(outcome, Refused)
    assert outcome.refusal.retry_after_ms
    assert len(door.asked) == 1, "what hangs is not sent again"


@pytest.mark.usefixtures("short_deadline")
async def test_sent_and_then_gone_is_unknown(client: CellsClient, door: Door) -> None:
    door.answer = door.die
    await connected(client, door.cell())
    assert code_of(await ask(client)) is RefusalCode.OUTCOME_UNKNOWN
    assert len(door.asked) == 1


@pytest.mark.usefixtures("short_deadline")
async def test_never_sent_is_unavailable(client: CellsClient, door: Door) -> None:
    cell = door.cell()
    await door.stop()
    await client.use([cell])
    assert code_of(await ask(client)) is RefusalCode.PARTNER_UNAVAILABLE


async def test_a_cell_long_gone_is_not_waited_for(door: Door) -> None:
    now = 100.0
    client = CellsClient(key_of, nothing_new, lambda: now)
    cell = door.cell()
    await door.stop()
    await client.use([cell])
    now += limits.CELL_ABSENT_MS_MAX / 1000 + 1
    async with asyncio.timeout(1):
        assert code_of(await ask(client)) is RefusalCode.PARTNER_UNAVAILABLE
    await client.aclose()


@pytest.mark.parametrize("reply", [b"", b"garbage", b"\x93\x01\x02\x03", b"\xc1"])
async def test_an_answer_that_can_t_be_read_is_unknown(client: CellsClient, door: Door, reply: bytes) -> None:
    async def babble(request: Request) -> bytes:
        return reply

    door.answer = babble
    await connected(client, door.cell())
    assert code_of(await ask(client)) is RefusalCode.OUTCOME_UNKNOWN


async def test_a_full_connection_refuses_at_once(
    client: CellsClient, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    door.answer = door.hang
    await connected(client, door.cell())
    monkeypatch.setattr(wire, "CONNECTION_REQUESTS_MAX", 1)
    hanging = asyncio.create_task(ask(client))
    async with asyncio.timeout(5):
        await door.was_asked.wait()
        assert code_of(await ask(client)) is RefusalCode.PARTNER_UNAVAILABLE
    hanging.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await hanging


async def test_a_cell_without_a_key_is_not_connected_to(client: CellsClient, door: Door) -> None:
    await client.use([door.cell("cell-7")])
    assert client.connected() == {}
    outcome = await client.ask("cell-7", "acme", Method.GET_BALANCE, COMMAND, writes=False)
    assert code_of(outcome) is RefusalCode.PARTNER_UNAVAILABLE


async def test_a_door_with_another_key_gets_no_command(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells_client, "_DEADLINE_MS", 200)
    client = CellsClient(lambda _: b"x" * 32, nothing_new)
    await client.use([door.cell()])
    assert code_of(await ask(client)) is RefusalCode.PARTNER_UNAVAILABLE
    assert door.asked == []
    await client.aclose()


async def test_a_door_that_moved_to_another_port_is_found(client: CellsClient, door: Door) -> None:
    await connected(client, door.cell())
    other = Door()
    await other.start()
    finishing = asyncio.Event()

    async def slow(request: Request) -> bytes:
        await finishing.wait()
        return encode_answer(PAID)

    door.answer = slow
    old = asyncio.create_task(ask(client))
    async with asyncio.timeout(5):
        await door.was_asked.wait()
    await connected(client, other.cell())
    assert await ask(client) == PAID
    assert len(other.asked) == 1
    finishing.set()
    assert await old == PAID, "what ran over the old connection was served out"
    await other.stop()


async def test_a_cell_that_left_the_directory_is_let_go(client: CellsClient, door: Door) -> None:
    await connected(client, door.cell())
    await client.use([])
    assert client.connected() == {}
    assert code_of(await ask(client)) is RefusalCode.PARTNER_UNAVAILABLE


async def test_the_same_directory_again_keeps_the_connection(client: CellsClient, door: Door) -> None:
    await connected(client, door.cell())
    peer: Any = client._links["cell-0"].peer
    await client.use([door.cell()])
    assert client._links["cell-0"].peer is peer
    assert client.connected() == {"cell-0": True}


# Partners that moved


def gone(to: str, epoch: int, *, tried: bool = False, directory_version: int = 0) -> bytes:
    receipt = moves.encode_receipt(
        Receipt("move_1", to, "t" * 64, epoch, 7, 3, moves.NO_STREAM, directory_version=directory_version)
    )
    context = {"to": to, "epoch": epoch, "receipt": receipt.hex(), "tried": int(tried)}
    return encode_answer(Refused(Refusal(RefusalCode.PARTNER_MOVED, "It moved.", context=context)))


@pytest.fixture
async def two(client: CellsClient, door: Door) -> AsyncIterator[tuple[Door, Door]]:
    other = Door()
    await other.start()
    await client.use([door.cell(), other.cell("cell-1")])
    await eventually(lambda: all(client.connected().values()))
    yield door, other
    await other.stop()


async def test_a_command_follows_its_partner_under_its_own_id(client: CellsClient, two: tuple[Door, Door]) -> None:
    old, new = two

    async def left(request: Request) -> bytes:
        return gone("cell-1", 4)

    old.answer = left
    assert await ask(client) == PAID
    assert [command for _, _, command, _ in new.asked] == [COMMAND]
    assert await ask(client) == PAID
    assert len(old.asked) == 1, "what it was told once it knows"


async def test_a_new_cell_that_waits_for_the_proof_is_shown_it(client: CellsClient, two: tuple[Door, Door]) -> None:
    old, new = two
    shown: list[bytes] = []

    async def left(request: Request) -> bytes:
        return gone("cell-1", 4)

    async def arriving(request: Request) -> bytes:
        if shown:
            return encode_answer(PAID)
        return encode_answer(Refused(Refusal(RefusalCode.PARTNER_MOVED, "It is not of this cell.")))

    async def take(request: Request) -> bytes:
        if request.method == Method.OPEN_ARRIVAL:
            shown.append(request.body)
            return encode_answer(Answer(200, b"{}"))
        return await arriving(request)

    old.answer = left
    new.take = take  # type: ignore[method-assign]
    assert await ask(client) == PAID
    assert len(shown) == 1


async def test_partners_never_see_the_proof(client: CellsClient, two: tuple[Door, Door]) -> None:
    old, new = two

    async def left(request: Request) -> bytes:
        return gone("cell-1", 4)

    async def unknown(request: Request) -> bytes:
        if request.method == Method.OPEN_ARRIVAL:
            return encode_answer(Refused(Refusal(RefusalCode.PARTNER_UNAVAILABLE, "no")))
        return encode_answer(Refused(Refusal(RefusalCode.PARTNER_MOVED, "It is not of this cell.")))

    old.answer = left
    new.take = unknown  # type: ignore[method-assign]
    answer = await ask(client)
    assert code_of(answer) is RefusalCode.PARTNER_MOVED
    assert isinstance(answer, Refused)
    assert not answer.refusal.context


async def test_what_was_tried_before_its_partner_left_is_not_known_when_its_new_cell_says_nothing(
    client: CellsClient, two: tuple[Door, Door]
) -> None:
    old, new = two

    async def left(request: Request) -> bytes:
        return gone("cell-1", 4, tried=True)

    async def refuse(request: Request) -> bytes:
        return encode_answer(Refused(Refusal(RefusalCode.PARTNER_UNAVAILABLE, "No worker.")))

    old.answer = left
    new.answer = refuse
    assert code_of(await ask(client)) is RefusalCode.OUTCOME_UNKNOWN
    assert code_of(await ask(client, writes=False)) is RefusalCode.PARTNER_UNAVAILABLE


class Behind:
    """A router's directory that comes late: it names cell-1 from `version` on, once somebody waits for it."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.asked: list[tuple[int, int]] = []
        self.cells: list[Cell] = []
        self.later_s = 0.0
        self.client = CellsClient(key_of, self.wait, lambda: time.monotonic() + self.later_s)

    async def wait(self, version: int, timeout_ms: int) -> None:
        self.asked.append((version, timeout_ms))
        await asyncio.sleep(0)
        if version <= self.version:
            await self.client.use(self.cells)


@pytest.fixture
async def behind(door: Door) -> AsyncIterator[tuple[Behind, Door]]:
    other = Door()
    await other.start()
    made = Behind(7)
    await connected(made.client, door.cell())
    made.cells = [door.cell(), other.cell("cell-1")]
    yield made, other
    await made.client.aclose()
    await other.stop()


def leaving(directory_version: int) -> Callable[[Request], Awaitable[bytes]]:
    async def left(request: Request) -> bytes:
        return gone("cell-1", 4, directory_version=directory_version)

    return left


@pytest.mark.parametrize("told", [7, 0])
async def test_a_router_that_is_behind_waits_for_the_directory_that_it_is_told_and_sends_again(
    behind: tuple[Behind, Door], door: Door, told: int
) -> None:
    router, new = behind
    door.answer = leaving(told)
    assert await ask(router.client) == PAID
    assert [command for _, _, command, _ in new.asked] == [COMMAND]
    ((version, timeout_ms),) = router.asked
    assert version == told
    assert 0 < timeout_ms <= limits.DIRECTORY_WAIT_MS_MAX
    assert await ask(router.client) == PAID
    assert len(router.asked) == 1, "it knows that cell by now"


async def test_many_that_are_told_at_once_are_all_served(behind: tuple[Behind, Door], door: Door) -> None:
    router, new = behind
    door.answer = leaving(7)
    assert await asyncio.gather(*(ask(router.client) for _ in range(20))) == [PAID] * 20
    assert len(new.asked) == 20


async def test_a_cell_that_no_directory_names_is_refused_each_time(behind: tuple[Behind, Door], door: Door) -> None:
    router, new = behind
    door.answer = leaving(8)
    assert code_of(await ask(router.client)) is RefusalCode.PARTNER_MOVED
    # From now on it is known where the partner went, and the old cell is not asked any more.
    assert code_of(await ask(router.client)) is RefusalCode.PARTNER_UNAVAILABLE
    assert [version for version, _ in router.asked] == [8], "the second one is refused at once"
    router.later_s = limits.DIRECTORY_WAIT_MS_MAX / 1_000 + 0.1
    assert code_of(await ask(router.client)) is RefusalCode.PARTNER_UNAVAILABLE
    assert [version for version, _ in router.asked] == [8, 8], "after a while one looks again"
    assert (len(door.asked), len(new.asked)) == (1, 0)
    router.version = 8
    router.later_s *= 2
    assert await ask(router.client) == PAID


async def test_a_directory_that_came_after_all_ends_the_refusals(behind: tuple[Behind, Door], door: Door) -> None:
    router, new = behind
    door.answer = leaving(8)
    assert code_of(await ask(router.client)) is RefusalCode.PARTNER_MOVED
    await router.client.use(router.cells)
    assert await ask(router.client) == PAID
    assert len(new.asked) == 1


async def test_what_was_tried_before_its_partner_went_to_a_cell_that_is_not_known_is_unknown(
    behind: tuple[Behind, Door], door: Door
) -> None:
    async def left(request: Request) -> bytes:
        return gone("cell-1", 4, tried=True, directory_version=8)

    door.answer = left
    assert code_of(await ask(behind[0].client)) is RefusalCode.OUTCOME_UNKNOWN


@pytest.mark.usefixtures("short_deadline")
async def test_a_directory_is_not_waited_for_past_the_deadline(behind: tuple[Behind, Door], door: Door) -> None:
    door.answer = leaving(8)
    await ask(behind[0].client)
    ((_, timeout_ms),) = behind[0].asked
    assert timeout_ms <= 300
