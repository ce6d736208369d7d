"""A pool on real Ray: its worker killed and stopped, its door killed in the middle of a handover. The books agree."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator

import msgpack
import pytest

from cells.api import messages
from cells.api.messages import Answer, Method, Profile
from cells.audit import audit_cell
from stores.sqlite_shelf import SqliteShelf
from tests.acquirer_process import AcquirerProcess, start_acquirer
from tests.cell_process import CellProcess, start_cell
from tests.eventually import eventually_true
from tests.integration.test_cell import asking, pay, spare_is_warm

PARTNERS = tuple(f"shop_{number}" for number in range(8))


@pytest.fixture(scope="module")
def acquirer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AcquirerProcess]:
    with start_acquirer(tmp_path_factory.mktemp("acquirer")) as running:
        yield running


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory, acquirer: AcquirerProcess) -> Iterator[CellProcess]:
    with start_cell(tmp_path_factory.mktemp("cell"), acquirer.url) as running:
        for partner_id in PARTNERS:
            asyncio.run(set_profile(running, Method.ONBOARD, partner_id, 1, "pooled"))
        yield running
    assert running.processes() == {}


async def set_profile(cell: CellProcess, method: str, partner_id: str, version: int, isolation: str) -> None:
    profile = Profile(partner_id, version, isolation=isolation, rate_per_second=5_000, rate_burst=5_000)
    async with asking(cell, "control") as control:
        body = msgpack.packb({"profile": messages.encode_profile(profile)})
        answer = messages.decode_answer(await control.request(method, partner_id, body, 60_000))
        assert isinstance(answer, Answer), answer


async def pay_during(cell: CellProcess, trouble: Callable[[], Awaitable[None]]) -> dict[str, float]:
    """Pay for every partner in turn, each once, while there is trouble; give the slowest of each in seconds."""
    slowest = dict.fromkeys(PARTNERS, 0.0)
    over = asyncio.Event()

    async def client(partner_id: str) -> None:
        async with asking(cell) as router:
            left = 2
            while left:
                left -= over.is_set()
                began = time.monotonic()
                assert (await pay(router, partner_id))["status"] == "captured"
                slowest[partner_id] = max(slowest[partner_id], time.monotonic() - began)
                await asyncio.sleep(0.1)

    clients = [asyncio.create_task(client(partner_id)) for partner_id in PARTNERS]
    await asyncio.sleep(0.5)
    await trouble()
    over.set()
    await asyncio.gather(*clients)
    return slowest


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_pool_that_is_killed_or_stopped_costs_its_partners_a_delay(
    cell: CellProcess, acquirer: AcquirerProcess, number: signal.Signals
) -> None:
    await spare_is_warm(cell)
    lost = await cell.worker_of(PARTNERS[0])
    assert set(lost["partners"]) == set(PARTNERS)

    async def trouble() -> None:
        os.kill(lost["pid"], number)
        await asyncio.sleep(2.5)

    slowest = await pay_during(cell, trouble)
    print(f"{number.name}: slowest {max(slowest.values()):.3f} s")  # noqa: T201
    found = await cell.worker_of(PARTNERS[0])
    assert found["pid"] != lost["pid"]
    assert set(found["partners"]) == set(PARTNERS)
    report = await audit_cell(SqliteShelf(cell.cell_folder), acquirer.url)
    assert report["ok"], report


async def test_a_handover_whose_door_is_killed_is_ended_by_the_next(cell: CellProcess) -> None:
    await spare_is_warm(cell)
    await set_profile(cell, Method.CONFIGURE, PARTNERS[0], 2, "dedicated")
    cell.restart_door()

    async def is_apart() -> bool:
        status = await cell.status()
        with_it = [worker["partners"] for worker in status["workers"] if PARTNERS[0] in worker["partners"]]
        return with_it == [[PARTNERS[0]]]

    await eventually_true(is_apart, 20)
    async with asking(cell) as router:
        for partner_id in PARTNERS:
            assert (await pay(router, partner_id))["status"] == "captured"
