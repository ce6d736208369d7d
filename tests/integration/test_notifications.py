"""The acquirer's process and its notifications: signed, told again until they are taken, whatever dies meanwhile."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from standardwebhooks import Webhook

from actors.acquirer import Accepted, Approved, Challenged, Declined, Instruction, NeverPerformed
from cells.http_acquirer import HttpAcquirer
from cells.http_client import HttpClient
from tests.acquirer_process import NOTIFICATION_KEY, AcquirerProcess, start_acquirer

PATIENCE_MS = 10_000
PATIENCE_S = 20.0
_numbers = itertools.count(1)


class Gateway:
    """Takes notifications, or doesn't: `answers` are the statuses of the next ones, then 200."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.taken: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
        self.refused = 0
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def start(self, port: int = 0) -> None:
        app = web.Application()
        app.router.add_post("/notifications", self._take)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/notifications"

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def next(self) -> tuple[str, dict[str, Any]]:
        async with asyncio.timeout(PATIENCE_S):
            return await self.taken.get()

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        Webhook(NOTIFICATION_KEY).verify(body, dict(request.headers))  # raises, and so answers 500, if it isn't signed
        status = self.answers.pop(0) if self.answers else 200
        if status == 200:
            self.taken.put_nowait((request.headers["webhook-id"], orjson.loads(body)))
        else:
            self.refused += 1
        return web.Response(status=status)


class Bank:
    """A simulator's process that tells a gateway, asked through the port that workers use."""

    def __init__(self, folder: Path, gateway: Gateway, session: aiohttp.ClientSession, client: HttpClient) -> None:
        self.folder = folder
        self.gateway = gateway
        self.session = session
        self.client = client
        self.partner = "acme"
        self.process: AcquirerProcess
        self.port: HttpAcquirer

    def start(self, port: int = 0) -> None:
        self.process = start_acquirer(self.folder, port, self.gateway.url)
        self.port = HttpAcquirer(self.client, self.process.url, self.partner)

    def operation(self, token: str, kind: str = "purchase") -> Instruction:
        return Instruction(f"op_{next(_numbers)}", self.partner, kind, 1_000, "EUR", token, None)

    async def get(self, path: str) -> Any:
        async with self.session.get(self.process.url + path) as response:
            return response.status, await response.read()


@pytest.fixture
async def bank(tmp_path: Path) -> AsyncIterator[Bank]:
    gateway = Gateway()
    await gateway.start()
    async with aiohttp.ClientSession() as session, HttpClient() as client:
        made = Bank(tmp_path, gateway, session, client)
        made.start()
        try:
            yield made
        finally:
            made.process.kill()
            await gateway.stop()


@pytest.mark.parametrize(
    ("token", "outcome"),
    [("tok_challenge", Approved), ("tok_challenge_decline", Declined), ("tok_challenge_abandoned", Challenged)],
)
async def test_a_challenge_over_http(bank: Bank, token: str, outcome: type[object]) -> None:
    operation = bank.operation(token)
    challenged = await bank.port.perform(operation, PATIENCE_MS)
    assert isinstance(challenged, Challenged)
    assert await bank.port.perform(operation, PATIENCE_MS) == challenged, "the same address each time"
    path = challenged.url.removeprefix(bank.process.url)
    status, page = await bank.get(path)
    assert (status, b"/confirm" in page) == (200, True)
    assert isinstance(await bank.port.confirm(operation, PATIENCE_MS), outcome)
    closed = await bank.port.close_key(operation, PATIENCE_MS)
    assert isinstance(closed, NeverPerformed if outcome is Challenged else outcome)


async def test_a_page_for_what_has_no_challenge(bank: Bank) -> None:
    operation = bank.operation("tok_approve")
    await bank.port.perform(operation, PATIENCE_MS)
    assert (await bank.get(f"/challenges/{operation.key}"))[0] == 404
    assert (await bank.get("/challenges/op_none"))[0] == 404


async def test_a_result_is_told_twice_under_one_id_and_signed(bank: Bank) -> None:
    operation = bank.operation("tok_async_approve")
    assert await bank.port.perform(operation, PATIENCE_MS) == Accepted()
    first, again = await bank.gateway.next(), await bank.gateway.next()
    assert first == again
    _, news = first
    outcome = await bank.port.perform(operation, PATIENCE_MS)
    assert isinstance(outcome, Approved)
    data = news["data"]
    assert (news["type"], data["partner"], data["key"]) == ("operation.result", "acme", operation.key)
    assert (data["result"], data["reference"]) == ("approved", outcome.reference)


async def test_what_is_refused_is_told_again(bank: Bank) -> None:
    bank.gateway.answers = [503, 404, 302]
    await bank.port.perform(bank.operation("tok_async_decline"), PATIENCE_MS)
    _, news = await bank.gateway.next()
    assert news["data"]["code"] == "insufficient_funds"
    assert bank.gateway.refused == 3


async def test_a_killed_acquirer_tells_when_it_is_back_and_a_gateway_that_was_away_hears_it(bank: Bank) -> None:
    operation = bank.operation("tok_dispute_lost")
    await bank.port.perform(operation, PATIENCE_MS)
    bank.process.kill()
    await bank.gateway.stop()
    bank.start(bank.process.port)
    await asyncio.sleep(1.5)  # the dispute opens, and nobody is there
    await bank.gateway.start(int(bank.gateway.url.split(":")[2].partition("/")[0]))
    told = {(await bank.gateway.next())[1]["type"] for _ in range(4)}
    assert told == {"dispute.opened", "dispute.lost"}
    status, body = await bank.get("/disputes?partner=acme")
    (dispute,) = orjson.loads(body)["disputes"]
    assert (status, dispute["key"], dispute["status"]) == (200, operation.key, "lost")


async def test_what_lists_take(bank: Bank) -> None:
    for path in ("/disputes", "/disputes?partner=ACME", "/disputes?partner=acme&limit=0", "/notifications"):
        assert (await bank.get(path))[0] == 400, path
    assert orjson.loads((await bank.get("/notifications?partner=acme"))[1]) == {"notifications": []}
