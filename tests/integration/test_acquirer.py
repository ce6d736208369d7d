"""The acquirer simulator as the process that it is: its tokens, its faults, its record across SIGKILL and SIGSTOP."""

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from actors.acquirer import Approved, Declined, Instruction, NeverPerformed
from actors.errors import AcquirerUnknownError
from cells.http_acquirer import HttpAcquirer
from cells.http_client import HttpClient
from tests.acquirer_process import AcquirerProcess, start_acquirer

PATIENCE_MS = 10_000
SHORT_MS = 300
_numbers = itertools.count()


@pytest.fixture(scope="module")
def acquirer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AcquirerProcess]:
    with start_acquirer(tmp_path_factory.mktemp("acquirer")) as process:
        yield process


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as opened:
        yield opened


@pytest.fixture
async def client() -> AsyncIterator[HttpClient]:
    async with HttpClient() as opened:
        yield opened


class Bank:
    """One partner at one acquirer, with what tests want to know of the record."""

    def __init__(self, session: aiohttp.ClientSession, client: HttpClient, url: str) -> None:
        self.session = session
        self.client = client
        self.url = url
        self.partner = f"partner_{next(_numbers)}"
        self.port = HttpAcquirer(client, url, self.partner)

    def operation(
        self, token: str = "tok_approve", kind: str = "purchase", amount: int = 1_000, original: str | None = None
    ) -> Instruction:
        return Instruction(f"op_{next(_numbers)}", self.partner, kind, amount, "EUR", token, original)

    async def perform(self, operation: Instruction, timeout_ms: int = PATIENCE_MS) -> Approved | Declined:
        return await self.port.perform(operation, timeout_ms)

    async def close_key(self, operation: Instruction) -> Approved | Declined | NeverPerformed:
        return await self.port.close_key(operation, PATIENCE_MS)

    async def fails(self, operation: Instruction, timeout_ms: int = PATIENCE_MS) -> str:
        with pytest.raises(AcquirerUnknownError) as caught:
            await self.port.perform(operation, timeout_ms)
        return caught.value.kind

    async def get(self, path: str, **query: str | int) -> Any:
        async with self.session.get(f"{self.url}{path}", params=query) as response:
            return await response.json()

    async def entry(self, operation: Instruction) -> dict[str, Any]:
        entry: dict[str, Any] = await self.get(f"/operations/{operation.key}")
        return entry

    async def set_fault(self, mode: str, delay_ms: int = 0) -> None:
        fault = {"mode": mode, "delay_ms": delay_ms}
        async with self.session.put(f"{self.url}/faults/{self.partner}", json=fault) as response:
            assert response.status == 200

    async def clear_fault(self) -> None:
        async with self.session.delete(f"{self.url}/faults/{self.partner}") as response:
            assert response.status == 204

    async def waiting(self) -> float:
        async with self.session.get(f"{self.url}/metrics") as response:
            lines = (await response.text()).splitlines()
        return float(next(line for line in lines if line.startswith("bulkhead_acquirer_simulator_waiting ")).split()[1])

    async def see_waiting(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_MS / 1000):
            while await self.waiting() != count:  # noqa: ASYNC110 - another process sets no event of ours
                await asyncio.sleep(0.01)


@pytest.fixture
def bank(session: aiohttp.ClientSession, client: HttpClient, acquirer: AcquirerProcess) -> Bank:
    return Bank(session, client, acquirer.url)


# Tokens.


@pytest.mark.parametrize("kind", ["authorization", "purchase", "verification"])
async def test_approve(bank: Bank, kind: str) -> None:
    operation = bank.operation(kind=kind)
    before_ms = time.time_ns() // 1_000_000

    outcome = await bank.perform(operation)

    assert isinstance(outcome, Approved)
    assert outcome == await bank.perform(operation) == await bank.close_key(operation)
    if kind == "authorization":
        assert outcome.expires_ms is not None
        assert 0 <= outcome.expires_ms - before_ms - 7 * 24 * 3_600_000 < PATIENCE_MS
    else:
        assert outcome.expires_ms is None
    entry = await bank.entry(operation)
    assert (entry["result"], entry["charged"], entry["attempts"]) == ("approved", True, 2)


@pytest.mark.parametrize(
    ("token", "code", "retryable"),
    [
        ("tok_decline_insufficient_funds", "insufficient_funds", True),
        ("tok_decline_processing_error", "processing_error", True),
        ("tok_decline_stolen_card", "stolen_card", False),
        ("tok_decline_expired_card", "expired_card", False),
        ("tok_nobody_knows", "invalid_payment_method", False),
    ],
)
async def test_declines(bank: Bank, token: str, code: str, retryable: bool) -> None:
    operation = bank.operation(token)

    assert await bank.perform(operation) == Declined(code, retryable)
    assert await bank.close_key(operation) == Declined(code, retryable)
    assert (await bank.entry(operation))["charged"] is False


async def test_slow_is_slow_once_and_performs_without_its_client(bank: Bank) -> None:
    operation = bank.operation("tok_slow_400")
    began = time.monotonic()
    assert await bank.fails(operation, SHORT_MS) == "timeout"

    async with asyncio.timeout(PATIENCE_MS / 1000):
        while (await bank.entry(operation)).get("result") != "approved":  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
    assert time.monotonic() - began >= 0.4
    assert isinstance(await bank.perform(operation, SHORT_MS), Approved)  # what is on record is told at once

    began = time.monotonic()
    assert isinstance(await bank.perform(bank.operation("tok_slow_400")), Approved)
    assert time.monotonic() - began >= 0.4


async def test_timeout_charged(bank: Bank) -> None:
    operation = bank.operation("tok_timeout_charged")

    assert await bank.fails(operation, SHORT_MS) == "timeout"
    assert (await bank.entry(operation))["charged"] is True
    outcome = await bank.perform(operation)

    assert isinstance(outcome, Approved)
    assert outcome == await bank.close_key(operation)
    assert [entry["key"] for entry in (await bank.get("/operations", partner=bank.partner))["operations"]] == [
        operation.key
    ]


async def test_timeout_not_charged(bank: Bank) -> None:
    operation = bank.operation("tok_timeout_not_charged")

    assert [await bank.fails(operation, SHORT_MS) for _ in range(2)] == ["timeout", "timeout"]
    entry = await bank.entry(operation)
    assert (entry["result"], entry["charged"], entry["attempts"]) == ("unperformed", False, 2)
    assert await bank.close_key(operation) == NeverPerformed()
    assert await bank.fails(operation, SHORT_MS) == "timeout"
    assert (await bank.entry(operation))["result"] == "closed"


async def test_error_500(bank: Bank) -> None:
    operation = bank.operation("tok_error_500")

    assert [await bank.fails(operation) for _ in range(2)] == ["server_error", "server_error"]
    assert (await bank.entry(operation))["charged"] is False
    assert await bank.close_key(operation) == NeverPerformed()


async def test_malformed(bank: Bank) -> None:
    operation = bank.operation("tok_malformed")

    assert [await bank.fails(operation) for _ in range(2)] == ["malformed", "malformed"]
    assert (await bank.entry(operation))["charged"] is True
    assert isinstance(await bank.close_key(operation), Approved)


@pytest.mark.parametrize("kind", ["capture", "refund"])
async def test_declines_of_later_operations(bank: Bank, kind: str) -> None:
    token = f"tok_{kind}_decline"
    opening = bank.operation(token, "authorization" if kind == "capture" else "purchase")

    assert isinstance(await bank.perform(opening), Approved)
    assert await bank.perform(bank.operation(token, kind, 1, opening.key)) == Declined(f"{kind}_declined", False)


@pytest.mark.parametrize("kind", ["capture", "void", "refund"])
async def test_later_operations_charged_and_unanswered(bank: Bank, kind: str) -> None:
    token = f"tok_{kind}_timeout_charged"
    opening = bank.operation(token, "purchase" if kind == "refund" else "authorization")
    later = bank.operation(token, kind, 1_000, opening.key)

    assert isinstance(await bank.perform(opening), Approved)
    assert await bank.fails(later, SHORT_MS) == "timeout"
    assert (await bank.entry(later))["charged"] is True
    assert isinstance(await bank.perform(later), Approved)
    original = await bank.entry(opening)
    figures = (original["captured"], original["refunded"], original["voided"])
    assert figures == {"capture": (1_000, 0, False), "void": (0, 0, True), "refund": (1_000, 1_000, False)}[kind]


async def test_a_slow_payment_is_slow_at_its_capture(bank: Bank) -> None:
    opening = bank.operation("tok_slow_200", "authorization")
    await bank.perform(opening)
    began = time.monotonic()

    assert isinstance(await bank.perform(bank.operation("tok_slow_200", "capture", 1, opening.key)), Approved)
    assert time.monotonic() - began >= 0.2


# Money.


async def test_a_life_of_an_authorization(bank: Bank) -> None:
    opening = bank.operation(kind="authorization")

    def later(kind: str, amount: int) -> Instruction:
        return bank.operation("tok_approve", kind, amount, opening.key)

    assert isinstance(await bank.perform(opening), Approved)
    assert await bank.perform(later("refund", 1)) == Declined("amount_exceeds_capture", False)
    assert isinstance(await bank.perform(later("capture", 600)), Approved)
    assert await bank.perform(later("capture", 401)) == Declined("amount_exceeds_authorization", False)
    assert isinstance(await bank.perform(later("refund", 200)), Approved)
    assert isinstance(await bank.perform(later("void", 400)), Approved)
    assert await bank.perform(later("void", 400)) == Declined("authorization_voided", False)
    assert await bank.perform(later("capture", 1)) == Declined("authorization_voided", False)
    assert isinstance(await bank.perform(later("refund", 400)), Approved)
    assert await bank.perform(later("refund", 1)) == Declined("amount_exceeds_capture", False)
    assert await bank.perform(bank.operation("tok_approve", "capture", 1, "nothing")) == Declined(
        "original_not_found", False
    )


async def test_an_authorization_expires(bank: Bank) -> None:
    opening = bank.operation("tok_expires_150", "authorization")
    captured = bank.operation("tok_expires_60000", "authorization")
    await bank.perform(captured)
    outcome = await bank.perform(opening)
    assert isinstance(outcome, Approved)
    assert outcome.expires_ms is not None
    assert isinstance(await bank.perform(bank.operation("tok_expires_60000", "capture", 1_000, captured.key)), Approved)

    await asyncio.sleep(max(0, outcome.expires_ms / 1000 - time.time()))  # the process has a clock of its own

    for kind in ["capture", "void"]:
        later = bank.operation("tok_expires_150", kind, 1, opening.key)
        assert await bank.perform(later) == Declined("authorization_expired", False)
    assert await bank.perform(bank.operation("tok_approve", "void", 1, captured.key)) == Declined(
        "already_captured", False
    )


# Idempotency.


async def test_fifty_requests_of_one_key_charge_once(bank: Bank) -> None:
    operation = bank.operation()

    outcomes = await asyncio.gather(*(bank.perform(operation) for _ in range(50)))

    assert len(set(outcomes)) == 1
    assert isinstance(outcomes[0], Approved)
    listed = (await bank.get("/operations", partner=bank.partner))["operations"]
    assert [(entry["key"], entry["charged"], entry["attempts"]) for entry in listed] == [(operation.key, True, 50)]


async def test_fifty_captures_at_once_take_what_is_there(bank: Bank) -> None:
    opening = bank.operation(kind="authorization")
    await bank.perform(opening)

    outcomes = await asyncio.gather(
        *(bank.perform(bank.operation("tok_approve", "capture", 30, opening.key)) for _ in range(50))
    )

    assert sum(isinstance(outcome, Approved) for outcome in outcomes) == 33
    assert (await bank.entry(opening))["captured"] == 990


async def test_another_body_under_the_key_is_refused(bank: Bank) -> None:
    operation = bank.operation()
    await bank.perform(operation)
    body = {
        "partner": bank.partner,
        "kind": "purchase",
        "amount": 1,
        "currency": "EUR",
        "payment_method": "tok_approve",
        "original_key": None,
    }

    async with bank.session.post(
        f"{bank.url}/operations", json=body, headers={"Idempotency-Key": operation.key}
    ) as response:
        assert (response.status, (await response.json())["error"]) == (422, "key_reused")
    async with bank.session.post(f"{bank.url}/operations/{operation.key}/close", json=body) as response:
        assert response.status == 422
    assert (await bank.entry(operation))["amount"] == 1_000


async def test_closing_and_performing_at_once_one_wins(bank: Bank) -> None:
    for number in range(60):
        operation = bank.operation()
        calls = [bank.perform(operation), bank.close_key(operation)]
        if number % 2:
            calls.reverse()
        outcomes = await asyncio.gather(*calls)
        if number % 2:
            outcomes.reverse()
        performed, closed = outcomes

        if closed == NeverPerformed():
            assert performed == Declined("operation_closed", True)
        else:
            assert performed == closed
            assert isinstance(performed, Approved)
        assert (await bank.entry(operation))["charged"] == isinstance(performed, Approved)
        assert await bank.perform(operation) == performed


async def test_a_close_overtakes_a_slow_operation(bank: Bank) -> None:
    operation = bank.operation("tok_slow_300")
    performing = asyncio.ensure_future(bank.perform(operation))
    await bank.see_waiting(1)

    assert await bank.close_key(operation) == NeverPerformed()
    assert await performing == Declined("operation_closed", True)
    assert (await bank.entry(operation))["charged"] is False


async def test_a_key_can_be_closed_without_a_body(bank: Bank) -> None:
    operation = bank.operation()

    async with bank.session.post(f"{bank.url}/operations/{operation.key}/close") as response:
        assert (await response.json())["result"] == "closed"
    assert (await bank.entry(operation))["partner"] is None
    assert await bank.perform(operation) == Declined("operation_closed", True)


# Faults.


async def test_a_hang_holds_for_its_partner_only_and_performs_nothing(bank: Bank, acquirer: AcquirerProcess) -> None:
    other = Bank(bank.session, bank.client, acquirer.url)
    operation = bank.operation()
    closing = bank.operation()
    await bank.set_fault("hang")

    hung = [asyncio.ensure_future(bank.fails(operation, SHORT_MS)) for _ in range(20)]
    await bank.see_waiting(20)
    assert isinstance(await other.perform(other.operation(), SHORT_MS), Approved)
    with pytest.raises(AcquirerUnknownError, match="timeout"):
        await bank.port.close_key(closing, SHORT_MS)
    assert set(await asyncio.gather(*hung)) == {"timeout"}

    await bank.see_waiting(0)  # those whose client went away are over
    assert (await bank.get("/faults"))["faults"][bank.partner] == {"mode": "hang", "delay_ms": 0}
    for untouched in [operation, closing]:
        assert (await bank.entry(untouched))["error"] == "key_not_found"
    await bank.clear_fault()
    assert bank.partner not in (await bank.get("/faults"))["faults"]
    assert isinstance(await bank.perform(operation), Approved)
    assert await bank.close_key(closing) == NeverPerformed()


async def test_refuse(bank: Bank) -> None:
    operation = bank.operation()
    await bank.set_fault("refuse")

    assert await bank.fails(operation) == "server_error"
    with pytest.raises(AcquirerUnknownError, match="server_error"):
        await bank.close_key(operation)
    assert (await bank.entry(operation))["error"] == "key_not_found"
    await bank.clear_fault()
    assert isinstance(await bank.perform(operation), Approved)


async def test_slow(bank: Bank) -> None:
    await bank.set_fault("slow", 250)
    began = time.monotonic()

    assert isinstance(await bank.perform(bank.operation()), Approved)
    assert time.monotonic() - began >= 0.25


@pytest.mark.parametrize(("mode", "kind"), [("garbage", "malformed"), ("silent", "timeout")])
async def test_it_is_done_and_not_told(bank: Bank, mode: str, kind: str) -> None:
    operation = bank.operation()
    await bank.set_fault(mode)

    assert await bank.fails(operation, SHORT_MS) == kind
    with pytest.raises(AcquirerUnknownError, match=kind):
        await bank.port.close_key(operation, SHORT_MS)
    assert (await bank.entry(operation))["charged"] is True
    await bank.clear_fault()
    assert isinstance(await bank.perform(operation), Approved)


# HTTP.


@pytest.mark.parametrize(
    ("method", "path", "key", "body", "status"),
    [
        ("POST", "/operations", None, b"{}", 400),
        ("POST", "/operations", "k", b"{}", 400),
        ("POST", "/operations", "k", b"not json", 400),
        ("POST", "/operations", "no/slash", b"{}", 400),
        ("POST", "/operations", "k", b"x" * 20_000, 413),
        ("PUT", "/operations", "k", b"{}", 405),
        ("POST", "/operations/k/close", None, b"{}", 400),
        ("GET", "/operations?limit=0", None, b"", 400),
        ("GET", "/operations?limit=1001", None, b"", 400),
        ("GET", "/operations?after=x", None, b"", 400),
        ("GET", "/operations/unheard-of", None, b"", 404),
        ("PUT", "/faults/p", None, b'{"mode": "explode"}', 400),
        ("PUT", "/faults/Not-A-Partner", None, b'{"mode": "hang"}', 400),
        ("GET", "/nothing", None, b"", 404),
        ("GET", "/livez", None, b"", 200),
    ],
)
async def test_statuses(bank: Bank, method: str, path: str, key: str | None, body: bytes, status: int) -> None:
    headers = {} if key is None else {"Idempotency-Key": key}
    async with bank.session.request(method, f"{bank.url}{path}", data=body, headers=headers) as response:
        assert response.status == status
        assert isinstance(await response.json(), dict)


async def test_the_record_is_listed_in_pages(bank: Bank) -> None:
    operations = [bank.operation() for _ in range(7)]
    for operation in operations:
        await bank.perform(operation)

    keys: list[str] = []
    pages = 0
    after = ""
    while True:
        page = await bank.get("/operations", partner=bank.partner, after=after, limit=3)
        keys += [entry["key"] for entry in page["operations"]]
        pages += 1
        after = page["next"]
        if after is None:
            break

    assert keys == [operation.key for operation in operations]
    assert pages == 3


# The process.


def test_a_second_process_on_the_record_does_not_start(acquirer: AcquirerProcess) -> None:
    with pytest.raises(RuntimeError, match="another process"):
        start_acquirer(acquirer.record_file.parent)


async def test_sigterm_ends_it_at_once_whatever_hangs(
    tmp_path: Path, session: aiohttp.ClientSession, client: HttpClient
) -> None:
    with start_acquirer(tmp_path) as process:
        bank = Bank(session, client, process.url)
        hanging = Bank(session, client, process.url)
        await hanging.set_fault("hang")
        answered = bank.operation()
        await bank.perform(answered)
        unanswered = (
            [asyncio.ensure_future(bank.fails(bank.operation("tok_timeout_charged"))) for _ in range(10)]
            + [asyncio.ensure_future(bank.fails(bank.operation("tok_slow_30000"))) for _ in range(10)]
            + [asyncio.ensure_future(hanging.fails(hanging.operation())) for _ in range(10)]
        )
        await bank.see_waiting(30)
        began = time.monotonic()

        assert await asyncio.to_thread(process.stop) == 0
        assert time.monotonic() - began < 2

        assert set(await asyncio.gather(*unanswered)) <= {"server_error", "lost"}  # unknown, never an outcome
        log = [json.loads(line) for line in (tmp_path / "acquirer.log").read_text().splitlines()]
        assert (log[0]["event"], log[-1]["event"]) == ("listening", "stopped")
        assert [entry for entry in log if entry["level"] == "error"] == []
        assert (tmp_path / "acquirer.err").read_text() == ""


async def test_a_stopped_process_is_a_timeout_and_charges_once_when_it_goes_on(
    tmp_path: Path, session: aiohttp.ClientSession, client: HttpClient
) -> None:
    with start_acquirer(tmp_path) as process:
        bank = Bank(session, client, process.url)
        await bank.perform(bank.operation())
        operation = bank.operation()
        process.pause()
        try:
            assert await bank.fails(operation, SHORT_MS) == "timeout"
        finally:
            process.resume()

        assert isinstance(await bank.perform(operation), Approved)
        entry = await bank.entry(operation)
        assert entry["charged"] is True
        assert len((await bank.get("/operations", partner=bank.partner))["operations"]) == 2


async def test_sigkill_under_load_forgets_nothing_that_was_answered(
    tmp_path: Path, session: aiohttp.ClientSession, client: HttpClient
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown with a failure
    choice = random.Random(seed)
    port = 0
    asked: list[Instruction] = []
    answered: dict[str, Approved | Declined] = {}
    for _ in range(3):
        with start_acquirer(tmp_path, port) as process:
            port = process.port
            bank = Bank(session, client, process.url)
            enough = asyncio.Event()
            answers_wanted = len(answered) + choice.randrange(50, 400)
            load = [asyncio.ensure_future(_pay(bank, asked, answered, answers_wanted, enough)) for _ in range(16)]
            await asyncio.wait_for(enough.wait(), PATIENCE_MS / 1000)
            process.kill()
            await asyncio.gather(*load)

    with start_acquirer(tmp_path, port) as process:
        bank = Bank(session, client, process.url)
        entries = await _whole_record(bank)
        assert len(answered) < len(asked) <= len(entries) + 16 * 3
        for operation in asked:
            port_of_partner = HttpAcquirer(client, process.url, operation.partner_id)
            if operation.key in answered:
                assert entries[operation.key]["charged"] is True
                assert await port_of_partner.close_key(operation, PATIENCE_MS) == answered[operation.key]
            assert isinstance(await port_of_partner.perform(operation, PATIENCE_MS), Approved)
        entries = await _whole_record(bank)
        assert entries.keys() == {operation.key for operation in asked}
        assert {entry["charged"] for entry in entries.values()} == {True}
        assert process.stop() == 0


async def _pay(
    bank: Bank,
    asked: list[Instruction],
    answered: dict[str, Approved | Declined],
    answers_wanted: int,
    enough: asyncio.Event,
) -> None:
    """Pay until the acquirer is gone."""
    while True:
        operation = bank.operation()
        asked.append(operation)
        try:
            answered[operation.key] = await bank.perform(operation)
        except AcquirerUnknownError:
            return
        if len(answered) >= answers_wanted:
            enough.set()


async def _whole_record(bank: Bank) -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = {}
    after: str | None = "0"
    while after is not None:
        page = await bank.get("/operations", after=after, limit=1_000)
        entries |= {entry["key"]: entry for entry in page["operations"]}
        after = page["next"]
    return entries
