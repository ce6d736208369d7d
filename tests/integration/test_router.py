"""The router as a process of its own, over real sockets, before a stand-in of a cell's door that the test scripts."""

import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from cells.api import moves
from cells.api.connection import FrameServer, Request
from cells.api.messages import (
    Answer,
    Command,
    Method,
    RateState,
    Refusal,
    RefusalCode,
    Refused,
    decode_command,
    encode_answer,
)
from control_plane import failed_keys
from listeners import limits as listening_limits
from router import directory, directory_file, directory_signature, limits, models
from router.directory import Payload

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).resolve().parents[2]
PAYMENT_ID = "pay_01JD8Z6V3H4K5M6N7P8Q9R0S1T"
REFUND_ID = "re_01JD8Z6V3H4K5M6N7P8Q9R0S1T"
CREATED = "2026-11-22T17:00:00Z"
BODY = {"amount": 1250, "currency": "EUR", "payment_method": "tok_approve"}
RATE = RateState(50, 100, 99, 20)
# Odd spacing and order on purpose: what the cell rendered must come through byte for byte.
RENDERED = b'{ "object":"payment",\n "id" : "pay_01JD8Z6V3H4K5M6N7P8Q9R0S1T", "description": "caf\\u00e9" }'
CARD = "4242424242424242"


class ScriptedDoor:
    """A stand-in of a cell's door: a real FrameServer that notes what it is asked and answers what it is told to."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.port = 0
        self.asked: list[tuple[str, str, Command]] = []
        self.reply: Answer | Refused = Answer(200, RENDERED, rate=RATE)
        self.script: Callable[[Request], Awaitable[bytes]] | None = None
        self.was_asked = asyncio.Event()
        self._server: FrameServer | None = None

    async def _take(self, request: Request) -> bytes:
        self.asked.append((request.method, request.partner_id, decode_command(request.body)))
        self.was_asked.set()
        return encode_answer(self.reply) if self.script is None else await self.script(request)

    async def start(self) -> None:
        self._server = FrameServer({"router": self.key}, self._take)
        self.port = await self._server.start("127.0.0.1", self.port)

    async def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.aclose()

    def reset(self) -> None:
        self.asked.clear()
        self.script = None
        self.reply = Answer(200, RENDERED, rate=RATE)
        self.was_asked.clear()

    @property
    def last(self) -> tuple[str, str, Command]:
        return self.asked[-1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Installation:
    """One data folder with a directory, two doors and a router process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pepper = secrets.token_bytes(32)
        (folder / "pepper").write_bytes(self.pepper)
        self.signing_key = Ed25519PrivateKey.generate()
        (folder / "directory.pub").write_bytes(self.signing_key.public_key().public_bytes_raw())
        self.doors: dict[str, ScriptedDoor] = {}
        for name in ("cell-0", "cell-1"):
            key = secrets.token_bytes(32)
            (folder / f"{name}.router.key").write_bytes(key)
            self.doors[name] = ScriptedDoor(key)
        self.keys = {
            name: f"sk_{mode}_{name}_{secrets.token_urlsafe(32)}"
            for name, mode in (("acme", "test"), ("globex", "live"), ("held", "test"), ("busy", "test"))
        }
        self.port, self.metrics_port = free_port(), free_port()
        self.version = 0
        self.published = folder / "directory" / "directory.json"
        self.log_file = folder / "router.log"
        self.process: asyncio.subprocess.Process | None = None
        self.environment: dict[str, str] = {}
        self.more_settings: dict[str, str] = {}

    @property
    def door(self) -> ScriptedDoor:
        """The door of cell-0, where all partners but globex are pinned."""
        return self.doors["cell-0"]

    def payload(self, **changes: dict[str, Any]) -> Payload:
        partners = {
            name: {
                "name": name.title(),
                "status": "suspended" if name == "held" else "active",
                "mode": "live" if name == "globex" else "test",
                "api_version": "2026-11-22",
                "profile_version": 1,
                "cell": "cell-1" if name == "globex" else "cell-0",
                "rate_per_second": 500 if name == "busy" else 50,
                "rate_burst": 1_000 if name == "busy" else 100,
                "in_flight_max": 256,
                "created_at": CREATED,
                "keys": [
                    {
                        "id": "key_1",
                        "hash": directory.hash_key(self.pepper, key),
                        "hint": key[-4:],
                        "created_at": CREATED,
                        "expires_at": None,
                    }
                ],
            }
            | changes.get(name, {})
            for name, key in self.keys.items()
        }
        cells = [
            {"name": name, "weight": 1.0, "host": "127.0.0.1", "port": door.port} for name, door in self.doors.items()
        ]
        return Payload.model_validate({"cells": cells, "partners": partners})

    def publish(self, **changes: dict[str, Any]) -> None:
        self.version += 1
        body = directory.encode(self.version, self.payload(**changes))
        directory_file.write_atomically(self.published, directory_signature.sign(self.signing_key, body))

    async def start(self, *, wait_for: str = "ready") -> None:
        config = {
            "name": "router-0",
            "host": "127.0.0.1",
            "port": self.port,
            "metrics_port": self.metrics_port,
            "directory_file": str(self.published),
            "data_folder": str(self.folder / "routers" / "router-0"),
            "directory_key_file": str(self.folder / "directory.pub"),
            "pepper_file": str(self.folder / "pepper"),
            "cell_keys_folder": str(self.folder),
            "log_file": str(self.log_file),
        } | self.more_settings
        (self.folder / "router.json").write_text(json.dumps(config))
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "router",
            "--config",
            str(self.folder / "router.json"),
            cwd=ROOT,
            env={**os.environ, **self.environment},
        )
        async with asyncio.timeout(30), self.client() as client:
            while True:
                assert self.process.returncode is None, "the router ended at its start"
                try:
                    await client.get("/readyz")
                    connected = [row.value for row in await self.metrics("bulkhead_router_cell_connected")]
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
                    continue
                if wait_for == "up" or (connected and all(connected)):
                    return
                await asyncio.sleep(0.05)

    async def metrics_text(self) -> str:
        """What the router tells on its metrics' own port."""
        async with httpx.AsyncClient(trust_env=False) as client:
            return (await client.get(f"http://127.0.0.1:{self.metrics_port}/metrics")).text

    async def metrics(self, name: str) -> list[Sample]:
        families = text_string_to_metric_families(await self.metrics_text())
        return [sample for family in families for sample in family.samples if sample.name == name]

    async def metric(self, name: str) -> float:
        (found,) = await self.metrics(name)
        return found.value

    async def stop(self) -> int:
        process, self.process = self.process, None
        if process is None:
            return 0
        if process.returncode is None:
            process.terminate()
        return await process.wait()

    async def kill(self) -> None:
        process, self.process = self.process, None
        assert process is not None
        process.kill()
        await process.wait()

    def client(self, partner: str | None = None) -> httpx.AsyncClient:
        headers = {} if partner is None else {"authorization": f"Bearer {self.keys[partner]}"}
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", headers=headers, timeout=12)


@asynccontextmanager
async def installed(folder: Path, *, wait_for: str = "ready", publish: bool = True) -> AsyncIterator[Installation]:
    made = Installation(folder)
    try:
        for door in made.doors.values():
            await door.start()
        if publish:
            made.publish()
        await made.start(wait_for=wait_for)
        yield made
    finally:
        await made.stop()
        for door in made.doors.values():
            await door.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Installation]:
    async with installed(tmp_path_factory.mktemp("router")) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def router(shared: Installation) -> AsyncIterator[Installation]:
    """The shared router, its doors told nothing yet."""
    for door in shared.doors.values():
        door.reset()
    yield shared


@pytest_asyncio.fixture(loop_scope="module")
async def acme(router: Installation) -> AsyncIterator[httpx.AsyncClient]:
    async with router.client("acme") as client:
        yield client


async def until(condition: Callable[[], Awaitable[bool]], seconds: float) -> float:
    """Look until the condition holds; fail after so many seconds. Gives how long it took."""
    began = time.monotonic()
    while not await condition():
        assert time.monotonic() - began < seconds, "it did not come to pass"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


def is_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["code"] == code
    assert problem["type"] == f"urn:bulkhead:problem:{code}"
    assert problem["request_id"] == answer.headers["request-id"]
    if status in (429, 503):
        assert int(answer.headers["retry-after"]) >= 1
    return problem


# Every endpoint.

ENDPOINTS = [
    (
        "POST",
        "/v1/payments",
        {**BODY, "metadata": {"a": "b"}},
        Method.CREATE_PAYMENT,
        {
            **BODY,
            "capture_method": "automatic",
            "reference": None,
            "description": None,
            "metadata": {"a": "b"},
        },
    ),
    ("GET", f"/v1/payments/{PAYMENT_ID}", None, Method.GET_PAYMENT, {"payment_id": PAYMENT_ID}),
    (
        "GET",
        "/v1/payments?limit=5&status=captured&created_from=2026-11-22T17%3A00%3A00Z",
        None,
        Method.LIST_PAYMENTS,
        {
            "limit": 5,
            "starting_after": None,
            "status": "captured",
            "reference": None,
            "created_from_ms": 1_795_366_800_000,
            "created_before_ms": None,
        },
    ),
    (
        "POST",
        f"/v1/payments/{PAYMENT_ID}/capture",
        {"amount": 5},
        Method.CAPTURE_PAYMENT,
        {"payment_id": PAYMENT_ID, "amount": 5},
    ),
    (
        "POST",
        f"/v1/payments/{PAYMENT_ID}/capture",
        None,
        Method.CAPTURE_PAYMENT,
        {"payment_id": PAYMENT_ID, "amount": None},
    ),
    ("POST", f"/v1/payments/{PAYMENT_ID}/void", None, Method.VOID_PAYMENT, {"payment_id": PAYMENT_ID}),
    ("POST", f"/v1/payments/{PAYMENT_ID}/void", {}, Method.VOID_PAYMENT, {"payment_id": PAYMENT_ID}),
    (
        "POST",
        f"/v1/payments/{PAYMENT_ID}/refunds",
        {"reason": "broken"},
        Method.REFUND_PAYMENT,
        {"payment_id": PAYMENT_ID, "amount": None, "reason": "broken"},
    ),
    ("GET", f"/v1/refunds/{REFUND_ID}", None, Method.GET_REFUND, {"refund_id": REFUND_ID}),
    ("GET", "/v1/balance", None, Method.GET_BALANCE, {}),
    (
        "GET",
        "/v1/events?type=payment.captured",
        None,
        Method.LIST_EVENTS,
        {"limit": 10, "starting_after": None, "type": "payment.captured"},
    ),
]


@pytest.mark.parametrize(("method", "path", "body", "command", "arguments"), ENDPOINTS)
async def test_every_endpoint_becomes_its_command_and_its_answer_comes_byte_for_byte(
    router: Installation,
    acme: httpx.AsyncClient,
    method: str,
    path: str,
    body: Any,
    command: str,
    arguments: dict[str, Any],
) -> None:
    router.door.reply = Answer(202 if method == "POST" else 200, RENDERED, rate=RATE)
    answer = await acme.request(method, path, json=body)
    assert answer.status_code == router.door.reply.status
    assert answer.content == RENDERED
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["bulkhead-version"] == "2026-11-22"
    limit, policy = answer.headers["ratelimit"], answer.headers["ratelimit-policy"]
    if method == "POST":
        assert (limit, policy) == ('"default";r=99;t=1', '"default";q=100;w=2')
    else:
        assert re.fullmatch('"default";r=99;t=1, "reads";r=[0-9]{3};t=[0-9]', limit), limit
        assert policy == '"default";q=100;w=2, "reads";q=400;w=2'
    assert "idempotent-replayed" not in answer.headers
    asked_method, partner, asked = router.door.last
    assert (asked_method, partner) == (command, "acme")
    assert asked.arguments == arguments
    assert asked.request_id == answer.headers["request-id"] == f"req_{asked.command_id}"


async def test_a_replay_says_so_and_a_key_goes_along(router: Installation, acme: httpx.AsyncClient) -> None:
    router.door.reply = Answer(201, RENDERED, replayed=True, rate=RATE)
    answers = [
        await acme.post("/v1/payments", json=body, headers={"idempotency-key": key})
        for key, body in (("one", BODY), ('"one"', dict(reversed(BODY.items()))), ("one", {**BODY, "amount": 1}))
    ]
    assert all(answer.headers["idempotent-replayed"] == "true" for answer in answers)
    first, same, other = (command for _, _, command in router.door.asked)
    assert first.idempotency_key == same.idempotency_key != "one"
    assert len(first.idempotency_key) == 64
    assert first.fingerprint == same.fingerprint != other.fingerprint
    assert len(first.fingerprint) == 32
    assert first.command_id != same.command_id


async def test_the_same_body_for_another_payment_is_another_request(
    router: Installation, acme: httpx.AsyncClient
) -> None:
    for path in ("capture", "void"):
        for payment in (PAYMENT_ID, PAYMENT_ID[:-1] + "V"):
            await acme.post(f"/v1/payments/{payment}/{path}", headers={"idempotency-key": "one"})
    assert len({command.fingerprint for _, _, command in router.door.asked}) == 4


async def test_partners_go_to_their_cells(router: Installation) -> None:
    for partner, cell in (("acme", "cell-0"), ("globex", "cell-1")):
        async with router.client(partner) as client:
            assert (await client.get("/v1/balance")).status_code == 200
        assert router.doors[cell].last[1] == partner
    assert len(router.doors["cell-0"].asked) == len(router.doors["cell-1"].asked) == 1


async def test_the_partner_s_own_page_has_no_hashes(router: Installation, acme: httpx.AsyncClient) -> None:
    answer = await acme.get("/v1/partner")
    assert answer.status_code == 200
    models.PartnerAccount.model_validate_json(answer.content)
    found = answer.json()
    assert found["id"] == "acme"
    assert found["limits"] == {"rate_per_second": 50, "rate_burst": 100, "in_flight_max": 256}
    assert found["keys"] == [
        {"id": "key_1", "hint": router.keys["acme"][-4:], "created_at": CREATED, "expires_at": None}
    ]
    assert directory.hash_key(router.pepper, router.keys["acme"]) not in answer.text
    assert router.door.asked == []


@pytest.mark.parametrize("code", list(RefusalCode))
async def test_every_refusal_becomes_its_problem(
    router: Installation, acme: httpx.AsyncClient, code: RefusalCode
) -> None:
    router.door.reply = Refused(Refusal(code, "Because.", "/amount", 2_500, {"left": 7}), RATE)
    # A capture: a refused payment's 429 would be remembered for the next tests.
    answer = await acme.post(f"/v1/payments/{PAYMENT_ID}/capture")
    problem = is_problem(answer, answer.status_code, code.value)
    assert 400 <= answer.status_code <= 503
    assert problem["detail"] == "Because."
    assert problem["pointer"] == "/amount"
    assert problem["context"] == {"left": 7}
    assert problem["retry_after_ms"] == 2_500
    assert answer.headers["retry-after"] == "3"
    assert answer.headers["ratelimit"] == '"default";r=99;t=1'


# What is wrong with a request.

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"", JSON, 400, "body_invalid"),
        (b"{", JSON, 400, "body_invalid"),
        (b'{"amount":NaN}', JSON, 400, "body_invalid"),
        (b'{"reference":"\\udc00"}', JSON, 400, "body_invalid"),
        (b'{"reference":"\xff"}', JSON, 400, "body_invalid"),
        (b"[" * 30_000, JSON, 400, "body_invalid"),
        (b'{"a":' * 2_000 + b"1" + b"}" * 2_000, JSON, 400, "body_invalid"),
        (b"[]", JSON, 422, "validation_failed"),
        (b"{}", JSON, 422, "validation_failed"),
        (b'{"amount":1.0,"currency":"EUR","payment_method":"tok_a"}', JSON, 422, "validation_failed"),
        (b'{"amount":"1","currency":"EUR","payment_method":"tok_a"}', JSON, 422, "validation_failed"),
        (b'{"amount":true,"currency":"EUR","payment_method":"tok_a"}', JSON, 422, "validation_failed"),
        (b'{"amount":1e3,"currency":"EUR","payment_method":"tok_a"}', JSON, 422, "validation_failed"),
        (
            b'{"amount":99999999999999999999999,"currency":"EUR","payment_method":"tok_a"}',
            JSON,
            422,
            "validation_failed",
        ),
        (orjson.dumps({**BODY, "colour": "blue"}), JSON, 422, "validation_failed"),
        (orjson.dumps({**BODY, "reference": "a\x00b"}), JSON, 422, "validation_failed"),
        (orjson.dumps(BODY), {"content-type": "text/plain"}, 415, "unsupported_media_type"),
        (orjson.dumps(BODY), {}, 415, "unsupported_media_type"),
        (orjson.dumps(BODY), JSON | {"content-encoding": "gzip"}, 415, "unsupported_media_type"),
        (b"x" * (limits.BODY_BYTES_MAX + 1), JSON, 413, "body_too_large"),
        (b"x" * 3_000_000, JSON, 413, "body_too_large"),
        (orjson.dumps(BODY), JSON | {"idempotency-key": ""}, 400, "idempotency_key_invalid"),
        (orjson.dumps(BODY), JSON | {"idempotency-key": "a b"}, 400, "idempotency_key_invalid"),
        (orjson.dumps(BODY), JSON | {"idempotency-key": "x" * 256}, 400, "idempotency_key_invalid"),
        (orjson.dumps(BODY), JSON | {"x-large": "x" * 20_000}, 431, "head_too_large"),
        (orjson.dumps({**BODY, "reference": CARD}), JSON, 422, "card_data_refused"),
        (orjson.dumps({**BODY, "metadata": {CARD: "x"}}), JSON, 422, "card_data_refused"),
        (orjson.dumps({**BODY, "payment_method": f"tok_{CARD}"}), JSON, 422, "card_data_refused"),
        (orjson.dumps({**BODY, CARD: 1}), JSON, 422, "card_data_refused"),
    ],
)
async def test_a_bad_payment_is_a_problem_and_reaches_no_cell(
    router: Installation, acme: httpx.AsyncClient, content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    answer = await acme.post("/v1/payments", content=content, headers=headers)
    is_problem(answer, status, code)
    assert CARD not in answer.text
    assert router.door.asked == []
    assert (await acme.get("/v1/balance")).status_code == 200, "the router lives"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/payments/1", 404, "payment_not_found"),
        ("GET", "/v1/payments/pay_%00", 404, "payment_not_found"),
        ("GET", "/v1/payments/pay_%ff%fe", 404, "payment_not_found"),
        ("GET", f"/v1/payments/{PAYMENT_ID}%0a", 404, "payment_not_found"),
        ("GET", f"/v1/payments/{PAYMENT_ID.lower()}", 404, "payment_not_found"),
        ("GET", f"/v1/refunds/{PAYMENT_ID}", 404, "refund_not_found"),
        ("POST", "/v1/payments/x/capture", 404, "payment_not_found"),
        ("GET", f"/v1/payments/{PAYMENT_ID}/", 404, "not_found"),
        ("GET", "/", 404, "not_found"),
        ("GET", "/docs", 404, "not_found"),
        ("GET", f"/v1/{CARD}", 404, "not_found"),
        ("DELETE", f"/v1/payments/{PAYMENT_ID}", 405, "method_not_allowed"),
        ("PUT", "/v1/payments", 405, "method_not_allowed"),
        ("GET", f"/v1/payments/{PAYMENT_ID}/capture", 405, "method_not_allowed"),
        ("GET", "/v1/payments?limit=0", 422, "validation_failed"),
        ("GET", "/v1/payments?limit=1&limit=2", 422, "validation_failed"),
        ("GET", "/v1/payments?colour=blue", 422, "validation_failed"),
        ("GET", "/v1/payments?starting_after=evt_1", 422, "validation_failed"),
        ("GET", "/v1/payments?reference=%ff", 422, "validation_failed"),
        ("GET", f"/v1/payments?reference={CARD}", 422, "card_data_refused"),
        ("GET", "/v1/balance?x=1", 422, "validation_failed"),
        ("GET", "/v1/partner?x=1", 422, "validation_failed"),
        ("POST", f"/v1/payments/{PAYMENT_ID}/void?x=1", 422, "validation_failed"),
        ("GET", "/v1/events?starting_after=" + PAYMENT_ID, 422, "validation_failed"),
    ],
)
async def test_a_bad_path_or_query_is_a_problem(
    router: Installation, acme: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    answer = await acme.request(method, path)
    is_problem(answer, status, code)
    assert CARD not in answer.text
    assert router.door.asked == []


async def test_head_and_options(acme: httpx.AsyncClient) -> None:
    head = await acme.head("/v1/balance")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(RENDERED))
    options = await acme.options("/v1/payments")
    assert (options.status_code, options.headers["allow"]) == (204, "GET, HEAD, OPTIONS, POST")


async def raw_exchange(port: int, *parts: bytes) -> bytes:
    """Send bytes as they are and give what comes until the connection ends, for at most 13 seconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        async with asyncio.timeout(13):
            return await reader.read(-1)
    finally:
        writer.close()


async def test_the_same_header_twice_is_a_bad_request(router: Installation) -> None:
    body = orjson.dumps(BODY)
    head = f"POST /v1/payments HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n"
    head += f"content-type: application/json\r\nauthorization: Bearer {router.keys['acme']}\r\n"
    for line, code in (
        ("idempotency-key: a\r\nidempotency-key: a\r\n", b"idempotency_key_invalid"),
        (f"authorization: Bearer {router.keys['acme']}\r\n", b"authorization_malformed"),
    ):
        text = await raw_exchange(router.port, f"{head}{line}\r\n".encode() + body)
        assert text.startswith(b"HTTP/1.1 400")
        assert code in text
    assert router.door.asked == []


async def test_a_large_body_is_answered_and_its_connection_stays(router: Installation, acme: httpx.AsyncClient) -> None:
    async with router.client() as stranger:
        for client, status in ((acme, 413), (stranger, 401)):
            for content in (b"x" * 3_000_000, _pieces(200)):
                answer = await client.post("/v1/payments", content=content, headers=JSON)
                assert answer.status_code == status
            assert (await client.get("/livez")).status_code == 200


async def _pieces(number: int) -> AsyncIterator[bytes]:
    for _ in range(number):
        yield b"x" * 16_384


async def test_an_endless_body_is_cut_off(router: Installation) -> None:
    head = "POST /v1/payments HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
    known = f"{head}content-type: application/json\r\nauthorization: Bearer {router.keys['acme']}\r\n\r\n"
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    chunks_max = listening_limits.DISCARDED_BYTES_MAX // 0x4000 + 400  # and what the system's buffers hold
    for start, status in ((known, b"HTTP/1.1 413"), (f"{head}\r\n", b"HTTP/1.1 401")):
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        writer.write(start.encode() + chunk * 5)
        assert (await reader.readline()).startswith(status)
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < chunks_max:
                writer.write(chunk)
                await writer.drain()
                sent += 1
        writer.close()
        assert sent < chunks_max, "the router ended the connection"


async def test_a_body_that_never_comes_is_given_up(router: Installation) -> None:
    head = "POST /v1/payments HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-type: application/json\r\n"
    began = time.monotonic()
    text = await raw_exchange(router.port, f"{head}authorization: Bearer {router.keys['acme']}\r\n\r\n{{".encode())
    assert text.startswith(b"HTTP/1.1 408")
    assert b"body_timeout" in text
    assert 9 < time.monotonic() - began < 12


async def test_expect_100_continue_is_not_answered_for_strangers(router: Installation) -> None:
    head = "POST /v1/payments HTTP/1.1\r\nhost: x\r\ncontent-length: 500000\r\nexpect: 100-continue\r\n"
    text = await raw_exchange(router.port, f"{head}\r\n".encode())
    assert text.startswith(b"HTTP/1.1 401")


# Who asks.


@pytest.mark.parametrize("header", [None, "Basic YTpi", "Bearer", "Bearer nonsense", f"Bearer sk_test_acme_{'x' * 43}"])
async def test_a_stranger_gets_a_401_whatever_the_body(router: Installation, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header}
    async with router.client() as client:
        for content in (b"", b"{", b"x" * 60_000):
            answer = await client.post("/v1/payments", content=content, headers=headers)
            is_problem(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"].startswith('Bearer realm="bulkhead"')
            assert "bulkhead-version" not in answer.headers
    assert router.door.asked == []


async def test_a_suspended_partner_reads_and_does_not_write(router: Installation) -> None:
    async with router.client("held") as client:
        assert (await client.get("/v1/balance")).status_code == 200
        for path in ("/v1/payments", f"/v1/payments/{PAYMENT_ID}/refunds"):
            is_problem(await client.post(path, json=BODY), 403, "partner_suspended")
    assert [method for method, _, _ in router.door.asked] == [Method.GET_BALANCE]


async def test_nothing_secret_is_in_the_log(router: Installation, acme: httpx.AsyncClient) -> None:
    await acme.post("/v1/payments", json={**BODY, "reference": CARD})
    await acme.get("/v1/balance", headers={"authorization": f"Bearer {router.keys['acme'][:-1]}"})
    text = router.log_file.read_text()
    assert "authentication_failed" in text
    assert CARD not in text
    for key in router.keys.values():
        assert key[-43:-2] not in text
    for line in text.splitlines():
        assert {"event", "level", "timestamp", "process"} <= set(json.loads(line))


# How much is asked.


async def test_a_429_of_a_new_payment_is_remembered_for_new_payments_only(
    router: Installation, acme: httpx.AsyncClient
) -> None:
    router.door.reply = Refused(Refusal(RefusalCode.RATE_LIMITED, "Slower.", retry_after_ms=400), RATE)
    is_problem(await acme.post("/v1/payments", json=BODY), 429, "rate_limited")
    began = time.monotonic()
    router.door.reply = Answer(201, RENDERED)
    again = is_problem(await acme.post("/v1/payments", json=BODY), 429, "rate_limited")
    assert 0 < again["retry_after_ms"] <= 400
    assert len(router.door.asked) == 1
    assert (await acme.get("/v1/balance")).status_code == 201
    assert (await acme.post(f"/v1/payments/{PAYMENT_ID}/capture")).status_code == 201
    async with router.client("busy") as other:
        assert (await other.post("/v1/payments", json=BODY)).status_code == 201

    async def is_forgotten() -> bool:
        return (await acme.post("/v1/payments", json=BODY)).status_code == 201

    await until(is_forgotten, 3)
    assert 0.3 < time.monotonic() - began < 1.0


async def test_a_partner_that_hangs_takes_its_own_share_and_is_told_by_the_deadline(router: Installation) -> None:
    release = asyncio.Event()

    async def hang_for_busy(request: Request) -> bytes:
        if request.partner_id == "busy":
            await release.wait()
        return encode_answer(Answer(200, RENDERED))

    router.door.script = hang_for_busy
    # Plain sockets: a pool of httpx needs longer for as many connections than the deadline is.
    text = f"GET /v1/balance HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {router.keys['busy']}\r\n"
    request = f"{text}connection: close\r\n\r\n".encode()

    async def ask() -> tuple[bytes, float]:
        began = time.monotonic()
        return await raw_exchange(router.port, request), time.monotonic() - began

    hanging = [asyncio.create_task(ask()) for _ in range(limits.PARTNER_REQUESTS_MAX)]

    async def all_hang() -> bool:
        return len(router.door.asked) == limits.PARTNER_REQUESTS_MAX

    await until(all_hang, 7)
    async with router.client("busy") as busy, router.client("acme") as acme:
        is_problem(await busy.get("/v1/balance"), 429, "too_many_in_flight")
        for _ in range(20):
            asked_at = time.monotonic()
            assert (await acme.get("/v1/balance")).status_code == 200
            assert time.monotonic() - asked_at < 1
        for answer, seconds in await asyncio.gather(*hanging):
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"partner_unavailable" in answer
            assert 7 < seconds < 10
        release.set()
        assert (await busy.get("/v1/balance")).status_code == 200, "its places came back"


async def test_a_write_that_hangs_has_an_unknown_outcome(router: Installation) -> None:
    async def hang(request: Request) -> bytes:
        await asyncio.Event().wait()
        return b""

    router.door.script = hang
    async with router.client("acme") as client:
        began = time.monotonic()
        is_problem(await client.post("/v1/payments", json=BODY), 503, "outcome_unknown")
        assert 7.5 < time.monotonic() - began < 10
    assert len(router.door.asked) == 1


# What operators ask.


async def test_the_router_tells_how_it_is(router: Installation, acme: httpx.AsyncClient) -> None:
    await acme.get("/v1/balance")
    async with router.client() as client:
        assert (await client.get("/livez")).status_code == 200
        ready = await client.get("/readyz")
        assert (await client.get("/metrics")).status_code == 404, "partners' port tells nothing of others"
    metrics = await router.metrics_text()
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
    connected = await router.metrics("bulkhead_router_cell_connected")
    assert {row.labels["cell"]: row.value for row in connected} == {"cell-0": 1, "cell-1": 1}
    assert await router.metric("bulkhead_router_directory_age_seconds") < 2
    assert f"bulkhead_router_directory_version {router.version}.0" in metrics
    assert 'bulkhead_router_cell_connected{cell="cell-0"} 1.0' in metrics
    assert 'bulkhead_router_partner_requests_total{outcome="2xx",partner="acme"}' in metrics
    assert 'route="/v1/balance"' in metrics


# What breaks.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


async def test_a_door_that_dies_mid_request_costs_no_error(folder: Path) -> None:
    async with installed(folder) as made:
        door = made.door

        async def die_once(request: Request) -> bytes:
            door.script = None
            await door.stop()
            await asyncio.sleep(0.3)
            await door.start()
            return b""

        door.reply = Answer(201, RENDERED)
        door.script = die_once
        async with made.client("acme") as client:
            answer = await client.post("/v1/payments", json=BODY, headers={"idempotency-key": "k"})
        assert (answer.status_code, answer.content) == (201, RENDERED)
        (_, _, first), (_, _, second) = door.asked
        assert first == second, "the same command, under the same id"


async def test_a_dead_cell_touches_no_other_and_is_waited_for(folder: Path) -> None:
    async with installed(folder) as made:
        await made.door.stop()
        async with made.client("acme") as acme, made.client("globex") as globex:
            waiting = asyncio.create_task(acme.post("/v1/payments", json=BODY))
            for _ in range(20):
                assert (await globex.get("/v1/balance")).status_code == 200
            assert not waiting.done()
            made.door.reply = Answer(201, RENDERED)
            await made.door.start()
            assert (await waiting).status_code == 201
        assert len(made.door.asked) == 1


async def test_directory_changes_are_taken_within_a_second(folder: Path) -> None:
    async with installed(folder) as made, made.client("acme") as client:

        async def answers(status: int, method: str = "GET", path: str = "/v1/balance") -> float:
            async def answered() -> bool:
                return (await client.request(method, path, json=BODY)).status_code == status

            return await until(answered, 5)

        assert await answers(200) < 1
        made.publish(acme={"keys": []})
        assert await answers(401) < 1, "a revoked key is dead"
        made.publish()
        assert await answers(200) < 1
        made.publish(acme={"status": "suspended"})
        assert await answers(403, "POST", "/v1/payments") < 1
        made.publish(acme={"cell": "cell-1"})
        assert await answers(200, "POST", "/v1/payments") < 1
        assert made.doors["cell-1"].last[1] == "acme"

        # A door that comes back elsewhere.
        await made.doors["cell-1"].stop()
        made.doors["cell-1"].port = 0
        await made.doors["cell-1"].start()
        made.publish(acme={"cell": "cell-1"})
        assert (await client.get("/v1/balance")).status_code == 200

        # What is broken or older changes nothing.
        good = made.published.read_bytes()
        # What a router could write itself, one that knows all secrets of this one: later, whole, and not signed so.
        forged = directory.encode(99, made.payload(acme={"keys": []}))
        keys = [made.pepper, *(key.read_bytes() for key in made.folder.glob("*.router.key"))]
        others = [Ed25519PrivateKey.from_private_bytes(key) for key in keys]
        strange = [directory_signature.sign(key, forged) for key in others]
        moved = good[: good.index(b"\n") + 1] + forged
        for bad in (good[:-9], b"", good.replace(b'"suspended"', b'"active"   '), forged, moved, *strange):
            directory_file.write_atomically(made.published, bad)
            await asyncio.sleep(0.25)
            assert (await client.get("/v1/balance")).status_code == 200
        made.version = 0
        made.publish(acme={"keys": []})
        await asyncio.sleep(0.25)
        assert (await client.get("/v1/balance")).status_code == 200
        text = made.log_file.read_text()
        assert "directory_unusable" in text
        assert "directory_older" in text


async def test_it_starts_from_what_it_last_knew_after_sigkill(folder: Path) -> None:
    async with installed(folder) as made:
        await made.kill()
        for ruin in (made.published.unlink, lambda: made.published.write_bytes(b'{"version": 9')):
            ruin()
            await made.start()
            async with made.client("acme") as client:
                assert (await client.get("/v1/balance")).status_code == 200
            await made.kill()
        made.publish()
        await made.start()
        assert await made.metric("bulkhead_router_directory_version") == made.version


async def test_a_partner_that_moved_to_a_cell_that_the_router_does_not_know_yet_sees_no_error(folder: Path) -> None:
    async with installed(folder) as made:
        key = secrets.token_bytes(32)
        new = ScriptedDoor(key)
        await new.start()

        async def left(request: Request) -> bytes:
            receipt = moves.Receipt("move_1", "cell-2", "t" * 64, 4, 7, 3, moves.NO_STREAM, made.version + 1)
            context = {"receipt": moves.encode_receipt(receipt).hex()}
            if "cell-2" not in made.doors:
                (folder / "cell-2.router.key").write_bytes(key)
                made.doors["cell-2"] = new
                asyncio.get_running_loop().call_later(0.3, made.publish)
            return encode_answer(Refused(Refusal(RefusalCode.PARTNER_MOVED, "It moved.", context=context)))

        made.door.script = left
        async with made.client("acme") as client:
            answers = await asyncio.gather(
                *(client.post("/v1/payments", json=BODY, headers={"idempotency-key": f"k{n}"}) for n in range(10))
            )
        assert [answer.status_code for answer in answers] == [200] * 10
        assert len(new.asked) == 10
        assert {command.command_id for _, _, command in new.asked} == {
            command.command_id for _, _, command in made.door.asked
        }


async def test_without_any_directory_it_says_so_and_waits(folder: Path) -> None:
    async with installed(folder, wait_for="up", publish=False) as made, made.client("acme") as client:
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/readyz")).status_code == 503
        is_problem(await client.get("/v1/balance"), 503, "not_ready")
        made.publish()

        async def is_served() -> bool:
            return (await client.get("/v1/balance")).status_code == 200

        await until(is_served, 5)


async def test_sigterm_finishes_what_runs_and_lets_the_port_go(folder: Path) -> None:
    async with installed(folder) as made:
        release = asyncio.Event()

        async def slow(request: Request) -> bytes:
            await release.wait()
            return encode_answer(Answer(201, RENDERED))

        made.door.script = slow
        async with made.client("acme") as client, made.client("acme") as idle:
            await idle.get("/livez")
            running = asyncio.create_task(client.post("/v1/payments", json=BODY))
            await made.door.was_asked.wait()
            await idle.get("/v1/payments/pay_1", headers={"authorization": f"Bearer sk_test_acme_{'x' * 43}"})
            process = made.process
            assert process is not None
            process.terminate()

            async def accepts_nobody() -> bool:
                try:
                    async with made.client("acme") as late:
                        await late.get("/livez")
                except httpx.TransportError:
                    return True
                return False

            await until(accepts_nobody, 3)
            assert not running.done()
            release.set()
            answer = await running
            assert answer.status_code == 201
            assert await asyncio.wait_for(process.wait(), 6) == 0
        (failed,) = failed_keys.take(folder / "routers" / "router-0")
        assert failed.rows == [("127.0.0.1", "acme", "unknown_key", 1)], "for the audit log"
        made.door.reset()
        await made.start()  # on the same port, at once


async def test_sigterm_does_not_wait_for_ever(folder: Path) -> None:
    async with installed(folder) as made:

        async def hang(request: Request) -> bytes:
            await asyncio.Event().wait()
            return b""

        made.door.script = hang
        async with made.client("acme") as client:
            running = asyncio.create_task(client.post("/v1/payments", json=BODY))
            await made.door.was_asked.wait()
            began = time.monotonic()
            assert await made.stop() == 0
            assert time.monotonic() - began < limits.SHUTDOWN_S + 2
            is_problem(await running, 503, "outcome_unknown")


async def test_a_stopped_router_goes_on_where_it_was(folder: Path) -> None:
    async with installed(folder) as made, made.client("acme") as client:
        assert made.process is not None
        os.kill(made.process.pid, signal.SIGSTOP)
        made.publish(acme={"keys": []})
        asking = asyncio.create_task(client.get("/v1/balance"))
        await asyncio.sleep(0.3)
        assert not asking.done()
        os.kill(made.process.pid, signal.SIGCONT)
        assert (await asking).status_code in (200, 401)

        async def is_dead() -> bool:
            return (await client.get("/v1/balance")).status_code == 401

        await until(is_dead, 1)


async def test_a_second_router_on_the_port_is_refused(folder: Path) -> None:
    async with installed(folder) as made:
        second = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "router",
            "--config",
            str(folder / "router.json"),
            cwd=ROOT,
            stderr=asyncio.subprocess.PIPE,
        )
        _, complaint = await second.communicate()
        assert second.returncode == 2
        assert str(made.port).encode() in complaint


async def test_settings_that_can_t_be_used_are_said(folder: Path) -> None:
    (folder / "router.json").write_text('{"name": "router-0"}')
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "router",
        "--config",
        str(folder / "router.json"),
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
    )
    _, complaint = await process.communicate()
    assert process.returncode == 2
    assert b"pepper_file" in complaint
    assert b"Traceback" not in complaint
