"""The server's own bounds, over real sockets: heads that are too large or never end, and too many connections."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import httptools
import orjson
import pytest
import uvicorn
import uvloop
from uvicorn.server import ServerState

from listeners import limits
from listeners import server as listening
from listeners.protocol import CONNECTION, BoundedProtocol
from listeners.shares import Shares

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n"


async def answer_with_nothing(scope: Any, receive: Any, send: Any) -> None:
    while scope["type"] == "http" and (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def application(request: pytest.FixtureRequest) -> Any:
    return getattr(request, "param", answer_with_nothing)


async def serve(application: Any, **config: Any) -> AsyncIterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = listening.QuietServer(listening.config(application, **config))
    serving = asyncio.create_task(server.serve([listener]))
    async with asyncio.timeout(5):
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.005)
    yield listener.getsockname()[1]
    server.should_exit = True
    await serving


@pytest.fixture
async def port(application: Any) -> AsyncIterator[int]:
    async with contextlib.asynccontextmanager(serve)(application) as served:
        yield served


async def exchange(port: int, *parts: bytes) -> bytes:
    """Send the parts as parts and give all that came until the connection ended."""
    loop = asyncio.get_running_loop()
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        text = b""
        # A server that ends what it did not read resets the connection, after its answer.
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            for part in parts:
                await loop.sock_sendall(client, part)
                await asyncio.sleep(0.01)
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(5):
                while chunk := await loop.sock_recv(client, 65_536):
                    text += chunk
        return text


async def test_a_request_in_parts_is_served(port: int) -> None:
    text = await exchange(port, b"GET / HT", b"TP/1.1\r\nhost: x\r\n", b"connection: close\r\n", b"\r\n")
    assert text.startswith(b"HTTP/1.1 204")


async def test_a_head_that_does_not_end_is_cut_at_its_bound(port: int) -> None:
    text = await exchange(port, REQUEST, *(b"x-%d: %s\r\n" % (n, b"y" * 4_000) for n in range(6)))
    assert text.startswith(b"HTTP/1.1 431")
    assert b"urn:bulkhead:problem:head_too_large" in text


async def test_a_head_that_is_too_slow_is_ended(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEAD_TIMEOUT_MS", 100)
    text = await exchange(port, REQUEST, b"x: y\r\n")
    assert text.startswith(b"HTTP/1.1 408")


async def test_a_connection_that_says_nothing_is_ended(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEAD_TIMEOUT_MS", 100)
    assert (await exchange(port)).startswith(b"HTTP/1.1 408")


async def test_a_second_head_on_a_connection_has_its_bounds_too(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEAD_TIMEOUT_MS", 200)
    text = await exchange(port, REQUEST + b"\r\n", REQUEST)
    assert text.startswith(b"HTTP/1.1 204")
    assert b"HTTP/1.1 408" in text


async def test_a_kept_connection_is_not_ended_by_the_head_s_time(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEAD_TIMEOUT_MS", 50)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(REQUEST + b"\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
    await asyncio.sleep(0.12)
    writer.write(REQUEST + b"connection: close\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
    writer.close()
    await writer.wait_closed()


async def test_a_connection_too_many_hears_so() -> None:
    async with contextlib.asynccontextmanager(serve)(answer_with_nothing, connections_max=1) as port:
        await take_the_only_place(port)


async def test_an_address_has_its_share_of_the_connections() -> None:
    places = limits.ADDRESSES_MIN
    async with contextlib.asynccontextmanager(serve)(answer_with_nothing, connections_max=places, proxies=()) as port:
        await take_the_only_place(port)
    async with contextlib.asynccontextmanager(serve)(answer_with_nothing, connections_max=2) as port:
        await take_the_only_place_but_one(port)


async def take_the_only_place_but_one(port: int) -> None:
    _, first = await asyncio.open_connection("127.0.0.1", port)
    reader, second = await asyncio.open_connection("127.0.0.1", port)
    second.write(REQUEST + b"\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204"), "a proxy's may be many"
    for writer in (first, second):
        writer.close()
        await writer.wait_closed()


async def take_the_only_place(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(REQUEST + b"\r\n")
    await reader.readuntil(b"\r\n\r\n")
    text = await exchange(port)
    assert text.startswith(b"HTTP/1.1 503")
    assert b"retry-after: 1" in text
    writer.close()
    await writer.wait_closed()


HOST = b"host: x\r\n"
CHUNKED = b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS hello
        bytes(range(256)),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00",
        b"GET / HTTP/1.2\r\n" + HOST + b"\r\n",
        b"GET /\xc3\xa9 HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /\x00 HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET foo HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET http://[ HTTP/1.1\r\n" + HOST + b"\r\n",
        b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n",
        b"CONNECT / HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GARBAGE / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"bad header\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"a: \x00\r\n\r\n",
        b"GET / HTTP/1.1\nhost: x\n\n",  # lines that end with LF alone
        b"GET / HTTP/1.1\r\nhost: x\ra: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"a: b\r\n c\r\n\r\n",  # obs-fold
        # Two readers of these could disagree where the request ends (request smuggling).
        b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 1, 1\r\n\r\nx",
        b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"content-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"content-length: +1\r\n\r\nx",
        b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 0x1\r\n\r\nx",
        b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 99999999999999999999999\r\n\r\nx",
        CHUNKED + b"zz\r\n",
        CHUNKED + b"-1\r\n",
        CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"5\nhello\n0\n\n",
        CHUNKED + b"3\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"FFFFFFFFFFFFFFFFFF\r\n",
    ],
)
async def test_what_is_no_http_is_a_bad_request(port: int, garbage: bytes) -> None:
    text = await exchange(port, garbage)
    assert text.startswith(b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\n")
    assert orjson.loads(text.partition(b"\r\n\r\n")[2])["code"] == "request_malformed"


async def tell_body(scope: Any, receive: Any, send: Any) -> None:
    """Answer the path and the body, after a while where the path says so."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    if scope["path"] == "/slow":
        await asyncio.sleep(0.2)
    text = scope["path"].encode() + b" " + body
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(text)).encode())]}
    )
    await send({"type": "http.response.body", "body": text})


@pytest.mark.parametrize("application", [tell_body], indirect=True)
@pytest.mark.parametrize(
    "length", [b"content-length: 5\r\n\r\nhello", b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"]
)
@pytest.mark.parametrize("cut", [0, 40, 117, 130])
async def test_a_wish_for_another_protocol_loses_no_body(port: int, length: bytes, cut: int) -> None:
    wish = (
        b"POST /one HTTP/1.1\r\n"
        + HOST
        + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"
    )
    next_one = b"GET /two HTTP/1.1\r\n" + HOST + b"connection: close\r\n\r\n"
    whole = wish + length + next_one
    text = await exchange(port, whole[:cut], whole[cut:])
    assert text.count(b"HTTP/1.1 200") == 2
    assert b"\r\n\r\n/one hello" in text
    assert b"\r\n\r\n/two " in text


@pytest.mark.parametrize("application", [tell_body], indirect=True)
async def test_garbage_behind_an_open_request_is_never_taken_for_its_answer(port: int) -> None:
    assert await exchange(port, b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n", b"GARBAGE\r\n\r\n") == b""


@pytest.mark.parametrize("application", [tell_body], indirect=True)
async def test_requests_in_a_row_are_served_in_order_up_to_a_bound(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PIPELINED_REQUESTS_MAX", 3)
    requests = [b"GET /%d HTTP/1.1\r\n" % n + HOST + b"\r\n" for n in range(3)]
    last = b"GET /3 HTTP/1.1\r\n" + HOST + b"connection: close\r\n\r\n"
    text = await exchange(port, b"".join(requests) + last)
    assert [text.index(b"/%d " % n) for n in range(4)] == sorted(text.index(b"/%d " % n) for n in range(4))
    assert await exchange(port, b"".join(requests) * 2) == b""


async def test_empty_lines_between_requests_keep_no_connection(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEAD_TIMEOUT_MS", 100)
    text = await exchange(port, REQUEST + b"\r\n", b"\r\n", b"\r\n")
    assert text.startswith(b"HTTP/1.1 204")
    assert b"HTTP/1.1 408" in text


async def test_lines_behind_a_body_are_bounded(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEAD_LINES_MAX", 20)
    assert await exchange(port, CHUNKED + b"0\r\n", *[b"a: b\r\n" * 10] * 3) == b""


async def answer_much(scope: Any, receive: Any, send: Any) -> None:
    body = bytes(20_000_000)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"20000000")]})
    await send({"type": "http.response.body", "body": body})


@pytest.mark.parametrize("application", [answer_much], indirect=True)
@pytest.mark.parametrize("more", [b"", b"connection: close\r\n"])
async def test_who_reads_no_answer_is_dropped(port: int, more: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ANSWER_TIMEOUT_MS", 100)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)  # else the kernel takes all of it
        client.connect(("127.0.0.1", port))
        client.setblocking(False)
        await asyncio.get_running_loop().sock_sendall(client, REQUEST + more + b"\r\n")
        await asyncio.sleep(0.3)  # it reads nothing meanwhile
        got = 0
        with contextlib.suppress(ConnectionResetError):
            while chunk := await asyncio.get_running_loop().sock_recv(client, 1_000_000):
                got += len(chunk)
        assert got < 20_000_000, "what lay in the kernel's buffers, and then the end"


async def refuse_at_once(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("application", [refuse_at_once], indirect=True)
async def test_a_trickle_of_an_unwanted_body_is_ended(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DISCARD_TIMEOUT_MS", 100)
    text = await exchange(port, REQUEST + b"content-length: 60000\r\n\r\n", *[b"x"] * 40)
    assert text.startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize("application", [refuse_at_once], indirect=True)
async def test_an_unwanted_body_is_thrown_away_up_to_a_bound(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DISCARDED_BYTES_MAX", 20_000)
    head = REQUEST + b"content-length: 60000\r\n\r\n"
    assert (await exchange(port, head, *[b"x" * 5_000] * 12)).count(b"HTTP/1.1") == 1
    monkeypatch.setattr(limits, "DISCARDED_BYTES_MAX", 80_000)
    again = REQUEST + b"connection: close\r\n\r\n"
    assert (await exchange(port, head, *[b"x" * 5_000] * 12, again)).count(b"HTTP/1.1 401") == 2


class StandInTransport:
    """Takes what is written and ends when it is told to."""

    def __init__(self) -> None:
        self.written = b""
        self.is_ended = False

    def get_extra_info(self, name: str) -> Any:
        return {"peername": ("127.0.0.1", 50_000), "sockname": ("127.0.0.1", 80)}.get(name)

    def is_closing(self) -> bool:
        return self.is_ended

    def close(self) -> None:
        self.is_ended = True

    def write(self, data: bytes) -> None:
        if not self.is_ended:
            self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class CountingProtocol(BoundedProtocol):
    """Counts what the parser is made to do."""

    begun = lines = 0

    def on_message_begin(self) -> None:
        self.begun += 1
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.lines += 1
        super().on_header(name, value)


async def feed(*reads: bytes, guard: Any = None) -> tuple[CountingProtocol, StandInTransport]:
    """Feed a connection what the event loop would, read by read, in one turn."""
    config = uvicorn.Config(answer_with_nothing, log_config=None)
    state = ServerState()
    protocol = CountingProtocol(
        shares=Shares(1, 1),
        guard=guard,
        config=config,
        server_state=state,
        app_state={},
        _loop=asyncio.get_running_loop(),
    )
    transport = StandInTransport()
    protocol.connection_made(transport)
    for data in reads:
        protocol.data_received(data)
    transport.is_ended = True
    protocol.connection_lost(None)
    await asyncio.gather(*state.tasks)
    return protocol, transport


UPGRADE = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"


async def test_wishes_for_another_protocol_in_a_row_end_at_the_pipeline_s_bound() -> None:
    protocol, transport = await feed(UPGRADE * 3_000)
    assert transport.written == b"", "an answer to none of them would be taken for one to the first"
    assert protocol.begun <= 2 * (limits.PIPELINED_REQUESTS_MAX + 3)


@pytest.mark.parametrize("begins", [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"\r\nGET / HTTP/1.0\r\n\r\n"])
async def test_what_comes_behind_the_pipeline_s_bound_is_not_even_parsed(begins: bytes) -> None:
    protocol, _ = await feed(begins * 10_000)
    assert protocol.begun <= limits.PIPELINED_REQUESTS_MAX + 2


async def test_refused_requests_of_one_read_end_at_a_bound() -> None:
    bad = b"GET /v1/payments HTTP/1.1\r\nhost: x\r\nauthorization: Bearer bad\r\n\r\n"
    protocol, transport = await feed(bad * 3_000, guard=StandInGuard())
    assert protocol.begun <= limits.PIPELINED_REQUESTS_MAX + 2
    assert transport.written.count(b"HTTP/1.1 429") == limits.PIPELINED_REQUESTS_MAX + 1


async def test_lines_of_a_head_are_bounded_though_it_comes_whole() -> None:
    protocol, transport = await feed(REQUEST + b"a:b\r\n" * 50_000 + b"\r\n")
    assert transport.written.startswith(b"HTTP/1.1 431")
    assert protocol.lines == limits.HEAD_LINES_MAX + 1


@pytest.mark.parametrize("reads", [1, 200])
@pytest.mark.parametrize(
    "begins", [REQUEST + b"x: ", b"GET /", REQUEST + b"connection: upgrade\r\nupgrade: h2c\r\nx: "]
)
async def test_of_an_endless_head_hardly_more_than_its_bound_is_parsed(begins: bytes, reads: int) -> None:
    parsed = 0

    parser_class = httptools.HttpRequestParser

    class Parser:
        def __init__(self, protocol: Any) -> None:
            self.inner = parser_class(protocol)

        def feed_data(self, data: bytes) -> None:
            nonlocal parsed
            parsed += len(data)
            self.inner.feed_data(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uvicorn.protocols.http.httptools_impl.httptools.HttpRequestParser", Parser)
        _, transport = await feed(begins, *[b"y" * 10_000_000] if reads == 1 else [b"y" * 65_536] * reads)
    assert transport.written.startswith(b"HTTP/1.1 431")
    assert parsed < 3 * limits.HEAD_BYTES_MAX


@pytest.mark.parametrize("application", [refuse_at_once], indirect=True)
async def test_who_waits_for_100_continue_in_vain_is_not_left_waiting(port: int) -> None:
    text = await exchange(port, REQUEST + b"content-length: 60000\r\nexpect: 100-continue\r\n\r\n")
    assert text.startswith(b"HTTP/1.1 401")


REFUSAL = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 4\r\n"
BAD = b"POST /v1/payments HTTP/1.1\r\nhost: x\r\nauthorization: Bearer bad\r\n"
GOOD = b"GET /v1/payments HTTP/1.1\r\nhost: x\r\nauthorization: Bearer good\r\n"


class StandInGuard:
    """Refuses whoever says `bad`."""

    def refusal(
        self, address: str, method: str, path: bytes, headers: list[tuple[bytes, bytes]]
    ) -> tuple[bytes, bytes] | None:
        assert (address, path) == ("127.0.0.1", b"/v1/payments")
        assert method in {"POST", "GET", "HEAD"}
        return (REFUSAL, b"bad!") if (b"authorization", b"Bearer bad") in headers else None


@pytest.fixture
async def guarded_port(application: Any) -> AsyncIterator[int]:
    async with contextlib.asynccontextmanager(serve)(application, guard=StandInGuard()) as served:
        yield served


async def test_a_refusal_is_written_when_its_request_is_whole_and_the_connection_goes_on(guarded_port: int) -> None:
    bad = BAD + b"content-length: 6\r\n\r\n"
    text = await exchange(
        guarded_port, bad, b"abc", b"def", bad + b"abcdef" + GOOD + b"\r\n", BAD + b"connection: close\r\n\r\n"
    )
    answers = text.split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"429", b"429", b"204", b"429"]
    assert all(b"\r\ndate: " in answer for answer in answers)
    assert [b"connection: close" in answer for answer in answers] == [False, False, False, True]
    assert [answer.endswith(b"\r\n\r\nbad!") for answer in answers] == [True, True, False, True]


async def test_a_refusal_has_no_body_where_none_was_asked_for(guarded_port: int) -> None:
    text = await exchange(guarded_port, BAD.replace(b"POST", b"HEAD") + b"connection: close\r\n\r\n")
    assert text.startswith(REFUSAL)
    assert text.endswith(b"\r\n\r\n")


async def test_it_comes_behind_the_answers_to_what_was_asked_before(guarded_port: int) -> None:
    text = await exchange(guarded_port, GOOD + b"\r\n" + BAD + b"connection: close\r\n\r\n")
    assert [answer[:3] for answer in text.split(b"HTTP/1.1 ")[1:]] == [b"204", b"204"], "the second as a request"


@pytest.mark.parametrize("length", [b"content-length: 10000000\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n"])
async def test_a_body_that_nobody_wants_has_an_end(guarded_port: int, length: bytes, monkeypatch: Any) -> None:
    monkeypatch.setattr(limits, "DISCARDED_BYTES_MAX", 100_000)
    parts = [b"%x\r\n%b\r\n" % (60_000, b"x" * 60_000) if b"chunked" in length else b"x" * 60_000 for _ in range(4)]
    assert await exchange(guarded_port, BAD + length, *parts) == b""


async def test_a_body_that_does_not_come_ends_the_connection(guarded_port: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(limits, "DISCARD_TIMEOUT_MS", 100)
    assert await exchange(guarded_port, BAD + b"content-length: 6\r\n\r\n", b"abc") == b""


async def test_who_reads_no_refusals_gets_no_more(guarded_port: int) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_connection(("127.0.0.1", guarded_port)) as client:
        client.setblocking(False)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)

        async def ask_on() -> None:
            async with asyncio.timeout(20):
                while True:
                    await loop.sock_sendall(client, (BAD + b"\r\n") * 200)

        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            await ask_on()


def test_many_are_let_in_at_each_turn_of_the_event_loop() -> None:
    """A turn takes long where the router is busy; who is new waits for none but a few of them."""
    clients_count = limits.ACCEPTS_PER_TURN_MAX * 8
    assert clients_count <= limits.CONNECTIONS_FEW_MAX

    async def turns_until_all_are_in(listener: socket.socket) -> int:
        server = listening.QuietServer(listening.config(answer_with_nothing))
        serving = asyncio.create_task(server.serve(listening.sockets(listener)))
        turns = 0
        async with asyncio.timeout(5):
            while len(server.server_state.connections) < clients_count:
                await asyncio.sleep(0)
                turns += server.started
        server.should_exit = True
        await serving
        return turns

    with socket.create_server(("127.0.0.1", 0), backlog=clients_count) as listener, contextlib.ExitStack() as clients:
        for _ in range(clients_count):
            clients.enter_context(socket.create_connection(listener.getsockname()[:2]))
        turns = uvloop.run(turns_until_all_are_in(listener))
    assert turns < clients_count / 4


async def answer_and_hold(scope: Any, receive: Any, send: Any) -> None:
    scope[CONNECTION].hold(300)
    await answer_with_nothing(scope, receive, send)


@pytest.mark.parametrize("application", [answer_and_hold], indirect=True)
async def test_a_held_connection_is_not_read_for_so_long(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    for _ in range(3):
        writer.write(REQUEST + b"\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204"), "each is answered once it is read"
    assert loop.time() - began_s >= 0.6, "it was read again twice, each time after its hold"
    writer.close()


@pytest.mark.parametrize("application", [answer_and_hold], indirect=True)
async def test_a_held_connection_takes_no_requests_in_a_row(port: int) -> None:
    text = await exchange(port, 5 * (REQUEST + b"\r\n"))
    assert text.count(b"HTTP/1.1 204") == 1


@pytest.mark.parametrize("application", [answer_and_hold], indirect=True)
async def test_a_held_connection_that_its_peer_ends_leaves_nothing(port: int) -> None:
    for _ in range(3):
        text = await exchange(port, REQUEST + b"connection: close\r\n\r\n")
        assert text.startswith(b"HTTP/1.1 204")
