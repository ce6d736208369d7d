"""An acquirer's notifications at the router: signatures, shapes, bounds, and what becomes of each answer of a cell."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import orjson
import pytest
from fastapi import FastAPI
from standardwebhooks import Webhook

from cells.api.log_budget import LogBudget
from cells.api.messages import Answer, Command, Method, Refusal, RefusalCode, Refused
from router import limits
from router.directory import Cell
from router.edge import BareRoute, Edge
from router.metrics import Metrics
from router.notifications import Notifications

KEY = b"k" * 32
URL = "/v1/acquirers/main/notifications"
OPERATION = "op_01JD8Z6V3H4K5M6N7P8Q9R0S1T"
REFUND = "re_01JD8Z6V3H4K5M6N7P8Q9R0S1T"
CARD = "4242424242424242"
TAKEN = Answer(200, b'{"object":"acknowledgement","taken":true}')
SUBJECT = {"partner": "acme", "key": OPERATION, "original_key": None}
APPROVED: dict[str, Any] = {
    "type": "operation.result",
    "timestamp": "2026-11-22T17:00:00Z",
    "data": {**SUBJECT, "result": "approved", "reference": "acq_1", "code": None, "expires_at_ms": None},
}
DECLINED: dict[str, Any] = {
    "type": "operation.result",
    "data": {**SUBJECT, "result": "declined", "code": "stolen_card", "retryable": False},
}
DISPUTE: dict[str, Any] = {
    "id": "dp_1",
    "amount": 5,
    "currency": "EUR",
    "reason": "fraudulent",
    "status": "open",
    "opened_at_ms": 1,
    "closed_at_ms": None,
}
OPENED: dict[str, Any] = {"type": "dispute.opened", "data": {**SUBJECT, "dispute": DISPUTE}}
WON: dict[str, Any] = {
    "type": "dispute.won",
    "data": {**SUBJECT, "dispute": {**DISPUTE, "status": "won", "closed_at_ms": 2}},
}


class StandInDirectory:
    """A directory with one partner."""

    def __init__(self) -> None:
        self.partners = {"acme": object()}

    def cell_of(self, partner_id: str) -> Cell | None:
        return Cell(name="cell-0", weight=1.0, host="127.0.0.1", port=1)


class StandInWatcher:
    def __init__(self) -> None:
        self.current: StandInDirectory | None = StandInDirectory()


class StandInCells:
    """Notes what is asked and answers what it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str, Command, bool]] = []
        self.reply: Answer | Refused = TAKEN
        self.gate: asyncio.Event | None = None
        self.arrived = asyncio.Semaphore(0)

    async def ask(self, cell: str, partner_id: str, method: str, command: Command, *, writes: bool) -> Answer | Refused:
        self.asked.append((cell, partner_id, method, command, writes))
        self.arrived.release()
        if self.gate is not None:
            await self.gate.wait()
        return self.reply


class Endpoint:
    """The endpoint behind the router's edge."""

    def __init__(self) -> None:
        self.cells = StandInCells()
        self.watcher = StandInWatcher()
        budget = LogBudget()
        notifications = Notifications(
            self.watcher,  # type: ignore[arg-type]
            self.cells,  # type: ignore[arg-type]
            {"main": KEY},
            budget,
        )
        app = FastAPI(openapi_url=None)
        app.router.route_class = BareRoute
        app.add_api_route(
            "/v1/acquirers/{acquirer}/notifications", notifications.serve, methods=["POST"], response_model=None
        )
        self.notifications = notifications
        self.edge = Edge(app, Metrics(), budget)
        self.come_from("127.0.0.1")

    def come_from(self, address: str) -> None:
        """Send what follows from another address."""
        transport = httpx.ASGITransport(self.edge, client=(address, 1))  # type: ignore[arg-type]
        self.client = httpx.AsyncClient(transport=transport, base_url="http://router")

    async def send(
        self,
        fields: Any,
        *,
        name: str = "msg_1",
        key: bytes = KEY,
        late: timedelta = timedelta(),
        url: str = URL,
        **headers: str,
    ) -> httpx.Response:
        body = fields if isinstance(fields, bytes) else orjson.dumps(fields)
        moment = datetime.now(UTC).replace(microsecond=0) - late
        text = body.decode("latin-1" if isinstance(fields, bytes) else "utf-8")
        signature = Webhook(key).sign(name, moment, text)
        signed = {
            "webhook-id": name,
            "webhook-timestamp": str(int(moment.timestamp())),
            "webhook-signature": signature,
        }
        return await self.client.post(url, content=body, headers=signed | headers)


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    made = Endpoint()
    async with made.client:
        yield made


async def test_a_result_becomes_a_command_and_the_cell_s_answer_is_given(endpoint: Endpoint) -> None:
    answer = await endpoint.send(APPROVED)
    assert (answer.status_code, answer.content) == (200, TAKEN.body)
    assert "ratelimit" not in answer.headers
    ((cell, partner_id, method, command, writes),) = endpoint.cells.asked
    assert (cell, partner_id, method, writes) == ("cell-0", "acme", Method.NOTIFY_RESULT, True)
    assert command.arguments == {
        "notification_id": "msg_1",
        "operation_id": OPERATION,
        "original_id": None,
        "result": "approved",
        "reference": "acq_1",
        "expires_ms": None,
        "acquirer": "main",
    }
    assert command.idempotency_key is None
    assert len(command.fingerprint) == 32


async def test_a_refund_s_decline_names_its_original(endpoint: Endpoint) -> None:
    told = {**DECLINED, "data": {**DECLINED["data"], "key": REFUND, "original_key": OPERATION}}
    assert (await endpoint.send(told)).status_code == 200
    command = endpoint.cells.asked[0][3]
    assert command.arguments == {
        "notification_id": "msg_1",
        "operation_id": REFUND,
        "original_id": OPERATION,
        "result": "declined",
        "code": "stolen_card",
        "retryable": False,
        "acquirer": "main",
    }


@pytest.mark.parametrize(("told", "status", "closed_ms"), [(OPENED, "open", None), (WON, "won", 2)])
async def test_a_dispute_becomes_a_command(
    endpoint: Endpoint, told: dict[str, Any], status: str, closed_ms: int | None
) -> None:
    assert (await endpoint.send(told)).status_code == 200
    _, _, method, command, _ = endpoint.cells.asked[0]
    assert method == Method.NOTIFY_DISPUTE
    assert (command.arguments["status"], command.arguments["closed_ms"]) == (status, closed_ms)


async def test_the_same_news_has_the_same_fingerprint_however_it_is_written(endpoint: Endpoint) -> None:
    await endpoint.send(APPROVED)
    await endpoint.send(json.dumps(APPROVED, indent=2, sort_keys=True).encode())
    await endpoint.send(DECLINED)
    prints = [command.fingerprint for _, _, _, command, _ in endpoint.cells.asked]
    assert prints[0] == prints[1] != prints[2]
    ids = {command.command_id for _, _, _, command, _ in endpoint.cells.asked}
    assert len(ids) == 3


@pytest.mark.parametrize(
    "send",
    [
        lambda e: e.send(APPROVED, key=b"x" * 32),
        lambda e: e.send(APPROVED, late=timedelta(minutes=6)),
        lambda e: e.send(APPROVED, late=timedelta(minutes=-6)),
        lambda e: e.send(APPROVED, **{"webhook-id": "msg_2"}),
        lambda e: e.send(APPROVED, **{"webhook-id": ""}),
        lambda e: e.send(APPROVED, name="m" * 256),
        lambda e: e.send(APPROVED, **{"webhook-timestamp": str(int(time.time()) + 7)}),
        lambda e: e.send(APPROVED, **{"webhook-timestamp": "nan"}),
        lambda e: e.send(APPROVED, **{"webhook-timestamp": "1e400"}),
        lambda e: e.send(APPROVED, **{"webhook-timestamp": ""}),
        lambda e: e.send(APPROVED, **{"webhook-signature": ""}),
        lambda e: e.send(APPROVED, **{"webhook-signature": "v1"}),
        lambda e: e.send(APPROVED, **{"webhook-signature": "v1,!"}),
        lambda e: e.send(APPROVED, **{"webhook-signature": "v1a,AAAA v2,AAAA ,"}),
        lambda e: e.send(b"\xff\xfe{}"),
        lambda e: e.client.post(URL, json=APPROVED),
        lambda e: e.client.post(URL, json=APPROVED, headers={"authorization": "Bearer sk_test_acme_x"}),
    ],
)
async def test_what_the_acquirer_did_not_sign_just_now_is_refused(
    endpoint: Endpoint, send: Callable[[Endpoint], Awaitable[httpx.Response]]
) -> None:
    answer = await send(endpoint)
    assert answer.status_code == 401
    assert answer.json()["code"] == "signature_invalid"
    assert "StandardWebhooks" in answer.headers["www-authenticate"]
    assert endpoint.cells.asked == []


async def test_one_of_several_signatures_is_enough(endpoint: Endpoint) -> None:
    body = orjson.dumps(APPROVED)
    moment = datetime.now(UTC).replace(microsecond=0)
    signatures = [Webhook(key).sign("msg_1", moment, body.decode()) for key in (b"old" * 11, KEY)]
    answer = await endpoint.send(APPROVED, **{"webhook-signature": " ".join(signatures)})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("told", "status", "code"),
    [
        (b"{", 400, "body_invalid"),
        (b"[]", 422, "validation_failed"),
        (b"{}", 422, "validation_failed"),
        (b'{"type":5}', 422, "validation_failed"),
        ({**APPROVED, "data": {}}, 422, "validation_failed"),
        ({**APPROVED, "data": {**APPROVED["data"], "result": "pending"}}, 422, "validation_failed"),
        ({**APPROVED, "data": {**APPROVED["data"], "reference": ""}}, 422, "validation_failed"),
        ({**APPROVED, "data": {**APPROVED["data"], "key": "op_1"}}, 422, "validation_failed"),
        ({**APPROVED, "data": {**APPROVED["data"], "original_key": REFUND}}, 422, "validation_failed"),
        ({**APPROVED, "data": {**APPROVED["data"], "expires_at_ms": 253_402_300_800_000}}, 422, "validation_failed"),
        ({**APPROVED, "data": {**APPROVED["data"], "reference": f"card {CARD}"}}, 422, "card_data_refused"),
        ({**DECLINED, "data": {**DECLINED["data"], "retryable": "no"}}, 422, "validation_failed"),
        ({**OPENED, "data": {**SUBJECT, "dispute": {**DISPUTE, "amount": 0}}}, 422, "validation_failed"),
        ({**OPENED, "data": {**SUBJECT, "dispute": {**DISPUTE, "amount": 1.0}}}, 422, "validation_failed"),
        ({**OPENED, "data": {**SUBJECT, "dispute": {**DISPUTE, "status": "won"}}}, 422, "validation_failed"),
        ({**OPENED, "data": {**SUBJECT, "dispute": {**DISPUTE, "closed_at_ms": 3}}}, 422, "validation_failed"),
        ({**APPROVED, "data": {**APPROVED["data"], "partner": "nobody"}}, 404, "payment_not_found"),
        (b'{"a":"' + b"x" * limits.BODY_BYTES_MAX + b'"}', 413, "body_too_large"),
    ],
)
async def test_what_has_not_the_form_of_a_notification(endpoint: Endpoint, told: Any, status: int, code: str) -> None:
    answer = await endpoint.send(told)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert CARD not in answer.text
    assert endpoint.cells.asked == []


async def test_a_card_number_as_an_id_is_refused(endpoint: Endpoint) -> None:
    answer = await endpoint.send(APPROVED, name=CARD)
    assert answer.json()["code"] == "card_data_refused"


async def test_fields_that_are_not_known_are_passed_over_and_so_are_kinds(endpoint: Endpoint) -> None:
    more = {**APPROVED, "version": 2, "data": {**APPROVED["data"], "scheme": "visa"}}
    assert (await endpoint.send(more)).status_code == 200
    endpoint.cells.asked.clear()
    answer = await endpoint.send({"type": "payout.made", "data": {}})
    assert (answer.status_code, answer.json()["taken"]) == (200, False)
    assert endpoint.cells.asked == []


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (RefusalCode.PAYMENT_NOT_FOUND, 404),
        (RefusalCode.OPERATION_NOT_FOUND, 404),
        (RefusalCode.PAYMENT_PROCESSING, 409),
        (RefusalCode.IDEMPOTENCY_KEY_REUSED, 422),
        (RefusalCode.MAILBOX_FULL, 429),
        (RefusalCode.PARTNER_UNAVAILABLE, 503),
        (RefusalCode.OUTCOME_UNKNOWN, 503),
    ],
)
async def test_what_a_cell_refuses_is_told_again_later(endpoint: Endpoint, code: RefusalCode, status: int) -> None:
    endpoint.cells.reply = Refused(Refusal(code, "Not now.", retry_after_ms=1_000))
    answer = await endpoint.send(APPROVED)
    assert (answer.status_code, answer.json()["code"]) == (status, code.value)


async def test_an_acquirer_that_is_not_known(endpoint: Endpoint) -> None:
    answer = await endpoint.send(APPROVED, url="/v1/acquirers/other/notifications")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_a_router_without_a_directory(endpoint: Endpoint) -> None:
    endpoint.watcher.current = None
    answer = await endpoint.send(APPROVED)
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")


async def test_who_proves_nothing_holds_up_only_its_own_address(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "NOTIFICATIONS_MAX", 1)
    for _ in range(limits.ADDRESS_BODIES_AWAITED_MAX):
        assert endpoint.notifications._awaited.place("127.0.0.1") is not None  # bodies that never come
    refused = await endpoint.send(APPROVED)
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_slow_bodies")
    endpoint.come_from("192.0.2.9")
    assert (await endpoint.send(APPROVED)).status_code == 200
    assert (await endpoint.send(APPROVED, key=bytes(32))).status_code == 401
    assert (await endpoint.send(APPROVED)).status_code == 200, "what was not signed keeps no place"


async def test_a_stale_one_is_refused_before_its_body_is_waited_for(endpoint: Endpoint) -> None:
    for _ in range(limits.ADDRESS_BODIES_AWAITED_MAX):
        assert endpoint.notifications._awaited.place("127.0.0.1") is not None
    assert (await endpoint.send(APPROVED, late=timedelta(minutes=6))).status_code == 401


async def test_a_flood_is_bounded(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "NOTIFICATIONS_MAX", 2)
    endpoint.cells.gate = asyncio.Event()
    waiting = [asyncio.create_task(endpoint.send(APPROVED, name=f"msg_{number}")) for number in range(2)]
    for _ in waiting:
        await endpoint.cells.arrived.acquire()
    refused = await endpoint.send(APPROVED)
    assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
    assert refused.headers["retry-after"] == "1"
    endpoint.cells.gate.set()
    assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [200, 200]
    assert (await endpoint.send(APPROVED)).status_code == 200, "its places are given back"
