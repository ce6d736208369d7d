"""A partner that sends its worst, at a router as a process of its own: it is refused, another one is served."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from chaos.attack_partner import Orders, requests
from router import budgets, limits
from tests.integration.test_router import BODY, Installation, installed

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONNECTIONS = 60
PAYMENTS = 100


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def router(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Installation]:
    async with installed(tmp_path_factory.mktemp("router")) as made:
        yield made


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[int, bytes]:
    """Send one request; give the status and the body of its answer."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    (length,) = (line.partition(b":")[2] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return int(head[9:12]), await reader.readexactly(int(length))


@contextlib.asynccontextmanager
async def connected(router: Installation) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def attack(router: Installation, answers: Counter[str]) -> None:
    """Send the worst as fast as answers come, until cancelled."""
    orders = Orders(f"http://127.0.0.1:{router.port}", router.keys["acme"], 1, 1, 1.0, 1.0)
    async with connected(router) as (reader, writer):
        for request in requests(orders):
            status, body = await exchange(reader, writer, request)
            answers["cpu_budget_exhausted" if b"cpu_budget_exhausted" in body else str(status)] += 1


async def test_its_worst_is_refused_past_its_budget_and_costs_another_partner_no_answer(router: Installation) -> None:
    answers: Counter[str] = Counter()
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    tasks = [asyncio.create_task(attack(router, answers)) for _ in range(CONNECTIONS)]
    try:
        async with router.client("busy") as client:
            for _ in range(PAYMENTS):
                assert (await client.post("/v1/payments", json=BODY)).status_code == 200
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(one) for one in ended} == {asyncio.CancelledError}, "no connection of its was dropped"
    refused = answers.pop("cpu_budget_exhausted")
    lasted_s = loop.time() - began_s
    # What it was let do is within its budget, by what alone the arrival of each is charged.
    budget_us = limits.CPU_BUDGET_BURST_US_MIN + lasted_s * 50 * limits.PAYMENT_CPU_BUDGET_US
    assert sum(answers.values()) <= budget_us / budgets.arrival_us(0)
    assert refused > 0


async def test_requests_in_a_row_behind_a_refused_one_end_with_their_connection(router: Installation) -> None:
    read = f"GET /v1/balance HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {router.keys['held']}\r\n\r\n".encode()
    async with connected(router) as (reader, writer):
        for _ in range(100_000):
            writer.write(read * 20)
            text = await reader.read(65_536)
            if not text:
                break
        assert not text, "it is answered, and dropped, past its budget"


async def test_reads_have_a_limit_of_their_own(router: Installation) -> None:
    read = f"GET /v1/partner HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {router.keys['globex']}\r\n\r\n".encode()
    async with connected(router) as (reader, writer):
        for _ in range(10 * limits.READS_BURST_MIN):
            status, body = await exchange(reader, writer, read)
            if status == 429:
                break
    assert status == 429
    assert b'"code":"too_many_reads"' in body or b'"code":"cpu_budget_exhausted"' in body
