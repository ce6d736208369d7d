"""A cell that is driven past its bound, with real processes: what it sheds first, what gets through, who is untouched.

Partners whose acquirer does not answer fill the door with payments that wait. Each may hold a part of it, and none
more than its share once others came, so it takes several; then the door is short of room for reads, and then for new
payments, and still has some for what ends payments that were made.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import httpx
import msgpack
import pytest

from actors import limits as actor_limits
from cells import limits
from cells.api import limits as api_limits
from cells.api import messages
from cells.api.connection import Peer
from cells.api.messages import Answer, Method, Profile, RefusalCode, Refused
from cells.audit import audit_cell
from cells.shedding import Work, bounds
from stores.sqlite_shelf import SqliteShelf
from tests.acquirer_process import AcquirerProcess, start_acquirer
from tests.cell_process import CellProcess, start_cell
from tests.eventually import eventually_true
from tests.integration.test_cell import ask, asking, command, pay, payment

FILLING = tuple(f"stuck_{number}" for number in range(6))
WELL = "well"
ELSEWHERE = "elsewhere"
ROOM = bounds(limits.DOOR_COMMANDS_MAX)
MORE = 20
# Where nothing was answered for so long, what is left waits for the acquirer.
QUIET_S = 0.2
Waiting = asyncio.Task[Answer | Refused]


@pytest.fixture(scope="module")
def acquirer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AcquirerProcess]:
    with start_acquirer(tmp_path_factory.mktemp("acquirer")) as running:
        yield running


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory, acquirer: AcquirerProcess) -> Iterator[CellProcess]:
    with start_cell(tmp_path_factory.mktemp("cell"), acquirer.url, spares=0) as running:
        asyncio.run(onboard(running, (*FILLING, WELL)))
        yield running
    assert running.processes() == {}


@pytest.fixture(scope="module")
def other_cell(tmp_path_factory: pytest.TempPathFactory, acquirer: AcquirerProcess) -> Iterator[CellProcess]:
    with start_cell(tmp_path_factory.mktemp("other"), acquirer.url, spares=0) as running:
        asyncio.run(onboard(running, (ELSEWHERE,)))
        yield running
    assert running.processes() == {}


async def onboard(cell: CellProcess, partners: tuple[str, ...]) -> None:
    async with asking(cell, "control") as control:
        for partner_id in partners:
            profile = Profile(partner_id, 1, rate_per_second=5_000, rate_burst=5_000, in_flight_max=5_000)
            body = msgpack.packb({"profile": messages.encode_profile(profile)})
            answer = messages.decode_answer(await control.request(Method.ONBOARD, partner_id, body, 60_000))
            assert isinstance(answer, Answer), answer


@contextlib.asynccontextmanager
async def hanging(acquirer: AcquirerProcess) -> AsyncIterator[None]:
    """Let the acquirer answer none of those who fill the door."""
    async with httpx.AsyncClient(base_url=acquirer.url, trust_env=False) as client:
        for partner_id in FILLING:
            (await client.put(f"/faults/{partner_id}", json={"mode": "hang"})).raise_for_status()
        yield
        for partner_id in FILLING:
            (await client.delete(f"/faults/{partner_id}")).raise_for_status()


async def fill(router: Peer, partner_id: str, under_way: list[Waiting]) -> Counter[str]:
    """Send more new payments than the partner has places; give what was answered at once. The others wait."""
    tasks = [
        asyncio.create_task(ask(router, Method.CREATE_PAYMENT, partner_id, payment()))
        for _ in range(api_limits.DOOR_PARTNER_COMMANDS_MAX + MORE)
    ]
    left, answered = set(tasks), True
    while answered:
        done, left = await asyncio.wait(left, timeout=QUIET_S, return_when=asyncio.FIRST_COMPLETED)
        answered = bool(done)
    under_way += left
    return Counter(word(task.result()) for task in tasks if task.done())


def waiting(under_way: list[Waiting]) -> int:
    return sum(not task.done() for task in under_way)


def word(answer: Answer | Refused) -> str:
    return answer.refusal.code if isinstance(answer, Refused) else str(answer.status)


async def is_at_rest(cell: CellProcess) -> bool:
    return not any(partner["in_flight"] for partner in (await cell.status())["partners"])


async def pay_on(router: Peer, over: asyncio.Event) -> list[float]:
    """Pay in the other cell until it is over; give how long each took."""
    took_s = []
    while not over.is_set():
        began = time.monotonic()
        assert (await pay(router, ELSEWHERE))["status"] == "captured"
        took_s.append(time.monotonic() - began)
        await asyncio.sleep(0.05)
    return took_s


@pytest.mark.timeout(120)
async def test_reads_are_shed_before_payments_and_those_before_what_ends_them(
    cell: CellProcess, other_cell: CellProcess, acquirer: AcquirerProcess
) -> None:
    async with asking(cell) as router, asking(other_cell) as elsewhere:
        held = [await pay(router, WELL, capture_method="manual") for _ in range(3)]
        paid = await pay(router, WELL)
        over = asyncio.Event()
        under_way: list[Waiting] = []
        bystander = asyncio.create_task(pay_on(elsewhere, over))
        async with hanging(acquirer):
            told = [await fill(router, partner_id, under_way) for partner_id in FILLING[:-1]]

            # Nobody holds more than its places, nor more than its share once others came.
            assert told[0] == {RefusalCode.MAILBOX_FULL: MORE}
            assert told[-1] == {RefusalCode.CELL_OVERLOADED: told[-1].total()}
            assert ROOM[Work.READ].within_share <= waiting(under_way) < ROOM[Work.NEW_PAYMENT].within_share, told

            # Reads are shed of everybody, also of who has nothing under way.
            read = await ask(router, Method.GET_PAYMENT, WELL, command(payment_id=paid["id"]))
            assert word(read) == RefusalCode.CELL_OVERLOADED
            assert isinstance(read, Refused)
            assert read.refusal.retry_after_ms, "it says when to come again"

            # New payments of who has nothing under way are taken, those of who has more than its share are not.
            assert (await pay(router, WELL))["status"] == "captured"
            assert word(await ask(router, Method.CREATE_PAYMENT, FILLING[3], payment())) == RefusalCode.CELL_OVERLOADED

            # Then new payments are shed of everybody; what ends payments that were made still gets through.
            await fill(router, FILLING[-1], under_way)
            assert waiting(under_way) == ROOM[Work.NEW_PAYMENT].within_share
            assert word(await ask(router, Method.CREATE_PAYMENT, WELL, payment())) == RefusalCode.CELL_OVERLOADED
            capture = command(payment_id=held[0]["id"], amount=None)
            void = command(payment_id=held[1]["id"])
            refund = command(payment_id=paid["id"], amount=None)
            ended = [
                word(await ask(router, Method.CAPTURE_PAYMENT, WELL, capture)),
                word(await ask(router, Method.VOID_PAYMENT, WELL, void)),
                word(await ask(router, Method.REFUND_PAYMENT, WELL, refund)),
            ]
            assert ended == ["200", "200", "201"]

            over.set()
            took_s = await bystander
            assert len(took_s) > 20
            assert max(took_s) < 1.0, "the other cell is untouched"

        # What was taken on is answered in time, and what was shed can be asked for again.
        answers = Counter(map(word, await asyncio.gather(*under_way)))
        assert set(answers) <= {"201", "202", RefusalCode.MAILBOX_FULL}, answers  # the last answered while it was quiet
        assert answers[RefusalCode.MAILBOX_FULL] <= MORE * len(FILLING)
        read = await ask(router, Method.GET_PAYMENT, WELL, command(payment_id=held[2]["id"]))
        assert word(read) == "200"
    await eventually_true(lambda: is_at_rest(cell), actor_limits.CLIENT_DEADLINE_MS / 1_000 * 3)
    report = await audit_cell(SqliteShelf(cell.cell_folder), acquirer.url)
    assert report["ok"], [partner for partner in report["partners"] if not partner["ok"]]
