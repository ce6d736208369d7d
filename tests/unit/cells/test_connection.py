"""Connections over real loopback sockets: who may speak, what a slow, lost, silent or broken end leads to."""

import asyncio
import contextlib
import random
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from cells.api import frames, limits
from cells.api.connection import (
    Connection,
    FrameServer,
    Peer,
    PeerLostError,
    PeerTimeoutError,
    PeerUnavailableError,
    Request,
)
from cells.api.sealing import NONCE_BYTES, VERSION, ClientHandshake
from tests import sealed_stream
from tests.eventually import eventually
from tests.sealed_stream import SealedStream, encode, read_frame

HOST = "127.0.0.1"
ROUTER = b"r" * 32
CONTROL = b"c" * 32
BUDGET_MS = 5_000


class Echo:
    """A handler: answers its body, except where a method says otherwise."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.held: dict[bytes, asyncio.Event] = {}

    async def __call__(self, request: Request) -> bytes:
        self.requests.append(request)
        match request.method:
            case "hold":
                event = self.held.setdefault(request.body, asyncio.Event())
                await event.wait()
            case "fail":
                raise RuntimeError("a bug")
            case "giant":
                return bytes(limits.FRAME_BYTES_MAX)
        return request.body


@contextlib.asynccontextmanager
async def serving(handler: Callable[[Request], Awaitable[bytes]], port: int = 0) -> AsyncIterator[int]:
    server = FrameServer({"router": ROUTER, "control": CONTROL}, handler)
    try:
        yield await server.start(HOST, port)
    finally:
        await server.aclose()


@contextlib.asynccontextmanager
async def connected(port: int, role: str = "router", key: bytes = ROUTER) -> AsyncIterator[Connection]:
    one = await Connection.open(HOST, port, role, key)
    try:
        yield one
    finally:
        one.abort()
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def peering(port: int) -> AsyncIterator[Peer]:
    peer = Peer(HOST, port, "router", ROUTER)
    await peer.start()
    try:
        yield peer
    finally:
        await peer.aclose()


@contextlib.asynccontextmanager
async def raw(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def impostor(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """A server that isn't ours: it does what `answer` does and then reads until the client goes away."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(asyncio.current_task())
        with contextlib.suppress(OSError, EOFError):
            await answer(reader, writer)
            await reader.read()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    served: list[asyncio.Task[None] | None] = []
    server = await asyncio.start_server(serve, HOST, 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        await server.wait_closed()
        async with asyncio.timeout(5):
            await asyncio.gather(*(task for task in served if task is not None))


async def prove(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> SealedStream:
    return await sealed_stream.prove(reader, writer, "router", ROUTER)


async def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> SealedStream:
    return await sealed_stream.welcome(reader, writer, {"router": ROUTER})


# The handshake


async def test_a_request_arrives_as_it_was_sent_with_the_role_that_was_proven() -> None:
    echo = Echo()
    async with serving(echo) as port, connected(port) as router, connected(port, "control", CONTROL) as control:
        assert await router.request("get_balance", "alpha", b"\x00body", 1_234) == b"\x00body"
        assert await control.request("cell_status", "", b"", 10) == b""
    assert echo.requests == [
        Request("router", "get_balance", "alpha", 1_234, b"\x00body"),
        Request("control", "cell_status", "", 10, b""),
    ]


async def test_a_server_sees_when_who_asked_has_left() -> None:
    echo = Echo()
    async with serving(echo) as port, connected(port) as stays:
        async with connected(port) as leaves:
            await leaves.request("get_balance", "alpha", b"", 1_000)
            await stays.request("get_balance", "alpha", b"", 1_000)
            gone, there = (request.asker_left for request in echo.requests)
            assert gone is not None
            assert not gone.is_set()
        async with asyncio.timeout(5):
            await gone.wait()
        assert there is not None
        assert not there.is_set()


@pytest.mark.parametrize(
    ("role", "key"),
    [
        ("router", b"x" * 32),
        ("control", ROUTER),  # a router can't speak as the control plane
        ("door", ROUTER),
        ("", ROUTER),
    ],
)
async def test_who_does_not_know_the_secret_of_its_role_is_refused(role: str, key: bytes) -> None:
    echo = Echo()
    async with serving(echo) as port:
        with pytest.raises(PeerUnavailableError):
            await Connection.open(HOST, port, role, key)
    assert echo.requests == []


async def test_a_server_that_does_not_know_the_secret_is_not_told_anything() -> None:
    heard: list[list[Any]] = []

    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(encode([frames.CHALLENGE, VERSION, bytes(NONCE_BYTES)]))
        heard.append(await read_frame(reader))
        writer.write(encode([frames.WELCOME, bytes(32), bytes(32)]))

    async with impostor(pretend) as port:
        with pytest.raises(PeerUnavailableError):
            await Connection.open(HOST, port, "router", ROUTER)
    assert [frame[0] for frame in heard] == [frames.PROOF]
    assert ROUTER not in heard[0]


async def test_a_server_that_sends_the_proof_back_is_no_member() -> None:
    async def reflect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(encode([frames.CHALLENGE, VERSION, bytes(NONCE_BYTES)]))
        *_, public, mac = await read_frame(reader)
        writer.write(encode([frames.WELCOME, public, mac]))

    async with impostor(reflect) as port:
        with pytest.raises(PeerUnavailableError):
            await Connection.open(HOST, port, "router", ROUTER)


@pytest.mark.parametrize(
    "first",
    [
        [frames.WELCOME, bytes(32), bytes(32)],
        [frames.CHALLENGE, VERSION, 2**40],  # not so many zeros
        [frames.CHALLENGE, VERSION, b"short"],
        [frames.CHALLENGE, VERSION + 1, bytes(NONCE_BYTES)],
        [frames.CHALLENGE, VERSION],
        [frames.ANSWER, 1, b""],
        [99],
    ],
)
async def test_a_server_that_begins_otherwise_is_left(first: list[Any]) -> None:
    async def begin(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(encode(first))

    async with impostor(begin) as port:
        with pytest.raises(PeerUnavailableError):
            await Connection.open(HOST, port, "router", ROUTER)


async def test_a_server_that_says_nothing_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONNECT_TIMEOUT_MS", 30)
    monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT_MS", 30)

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        left.set_result(await reader.read())

    left: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    async with impostor(silent) as port:
        with pytest.raises(PeerUnavailableError, match="time-out"):
            await Connection.open(HOST, port, "router", ROUTER)
        assert await left == b""


async def test_an_opening_that_is_cancelled_leaves_no_connection_behind() -> None:
    left: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    arrived = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        arrived.set()
        left.set_result(await reader.read())

    async with impostor(silent) as port:
        opening = asyncio.create_task(Connection.open(HOST, port, "router", ROUTER))
        await arrived.wait()
        await asyncio.sleep(0.01)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        async with asyncio.timeout(5):
            assert await left == b""


async def test_nobody_listens() -> None:
    async with serving(Echo()) as port:
        pass
    with pytest.raises(PeerUnavailableError):
        await Connection.open(HOST, port, "router", ROUTER)


async def test_a_silent_client_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT_MS", 50)
    async with serving(Echo()) as port, raw(port) as (reader, _):
        assert (await read_frame(reader))[0] == frames.CHALLENGE
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""


async def test_a_client_that_has_proven_itself_may_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT_MS", 30)
    async with serving(Echo()) as port, connected(port) as one:
        await asyncio.sleep(0.08)
        assert await one.request("echo", "", b"still here", BUDGET_MS) == b"still here"


@pytest.mark.parametrize(
    "frame",
    [
        [frames.REQUEST, 1, "get_balance", 1_000, "alpha", b""],  # before the proof
        [frames.PROOF],
        [frames.PROOF, VERSION, "router", b"n" * 32, b"p" * 32, "mac"],
        [frames.PROOF, VERSION, "router", b"short", b"p" * 32, b"m" * 32],
        [frames.PROOF, VERSION, ["router"], b"n" * 32, b"p" * 32, b"m" * 32],
        [frames.PROOF, VERSION + 1, "router", b"n" * 32, b"p" * 32, b"m" * 32],
    ],
)
async def test_a_client_that_begins_otherwise_is_dropped(frame: list[Any]) -> None:
    echo = Echo()
    async with serving(echo) as port, raw(port) as (reader, writer):
        await read_frame(reader)
        writer.write(encode(frame))
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    assert echo.requests == []


@pytest.mark.parametrize(
    "first", [[frames.CHALLENGE, VERSION + 1, bytes(NONCE_BYTES)], [frames.CHALLENGE, bytes(NONCE_BYTES)]]
)
async def test_another_version_of_the_frames_is_named(first: list[Any]) -> None:
    async def begin(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(encode(first))

    async with impostor(begin) as port:
        with pytest.raises(PeerUnavailableError, match=r"version.*run both from the same version"):
            await Connection.open(HOST, port, "router", ROUTER)


async def test_nothing_may_follow_a_proof_before_the_welcome() -> None:
    echo = Echo()
    async with serving(echo) as port, raw(port) as (reader, writer):
        proof = encode(ClientHandshake("router", ROUTER).prove(await read_frame(reader)))
        writer.write(proof + encode([frames.REQUEST, 1, "echo", BUDGET_MS, "alpha", b"in clear"]))
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    assert echo.requests == []


# Requests


async def test_answers_come_in_any_order_and_a_slow_request_holds_nobody() -> None:
    echo = Echo()
    async with serving(echo) as port, connected(port) as one:
        slow = asyncio.create_task(one.request("hold", "alpha", b"slow", BUDGET_MS))
        await eventually(lambda: b"slow" in echo.held)
        bodies = [b"%d" % number for number in range(500)]
        assert await asyncio.gather(*(one.request("echo", "beta", body, BUDGET_MS) for body in bodies)) == bodies
        assert not slow.done()
        echo.held[b"slow"].set()
        assert await slow == b"slow"
        assert one.open_requests == 0


async def test_no_answer_within_the_budget() -> None:
    echo = Echo()
    async with serving(echo) as port, connected(port) as one:
        with pytest.raises(PeerTimeoutError):
            await one.request("hold", "alpha", b"late", 20)
        assert one.open_requests == 0
        echo.held[b"late"].set()  # what comes late is nobody's
        assert await one.request("echo", "alpha", b"next", BUDGET_MS) == b"next"


async def test_an_answer_in_the_last_moment_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker gives its answer when its budget ends, and the way back takes a little."""
    monkeypatch.setitem(limits.ANSWER_GRACE_MS, "router", 10_000)
    echo = Echo()
    async with serving(echo) as port, connected(port) as one:
        asking = asyncio.create_task(one.request("hold", "alpha", b"late", 20))
        await asyncio.sleep(0.1)
        assert not asking.done()
        echo.held[b"late"].set()
        assert await asking == b"late"


async def test_a_budget_that_is_used_up_times_out_at_once() -> None:
    async with serving(Echo()) as port, connected(port) as one:
        with pytest.raises(PeerTimeoutError):
            await one.request("hold", "alpha", b"", -5)


async def test_what_was_sent_before_the_end_is_lost_and_what_comes_after_is_not_sent() -> None:
    echo = Echo()
    async with serving(echo) as port:
        lost = asyncio.Event()
        one = await Connection.open(HOST, port, "router", ROUTER, lost.set)
        open_request = asyncio.create_task(one.request("hold", "alpha", b"x", BUDGET_MS))
        await eventually(lambda: b"x" in echo.held)
        one.abort()
        with pytest.raises(PeerLostError):
            await open_request
        assert lost.is_set()
        assert not one.is_open
        with pytest.raises(PeerUnavailableError):
            await one.request("echo", "alpha", b"y", BUDGET_MS)
        assert [request.body for request in echo.requests] == [b"x"]


async def test_a_server_that_ends_loses_what_it_was_asked() -> None:
    echo = Echo()
    async with serving(echo) as port:
        one = await Connection.open(HOST, port, "router", ROUTER)
        asking = asyncio.create_task(one.request("hold", "alpha", b"x", BUDGET_MS))
        await eventually(lambda: b"x" in echo.held)
    with pytest.raises(PeerLostError):
        await asking


async def test_what_a_client_asked_is_finished_though_it_went_away() -> None:
    done: list[bytes] = []
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def handler(request: Request) -> bytes:
        begun.set()
        await go_on.wait()
        done.append(request.body)
        return b""

    async with serving(handler) as port:
        one = await Connection.open(HOST, port, "router", ROUTER)
        asking = asyncio.create_task(one.request("create_payment", "alpha", b"x", BUDGET_MS))
        await begun.wait()
        one.abort()
        with pytest.raises(PeerLostError):
            await asking
        go_on.set()
        await eventually(lambda: done == [b"x"])


async def test_a_cancelled_request_is_forgotten() -> None:
    echo = Echo()
    async with serving(echo) as port, connected(port) as one:
        asking = asyncio.create_task(one.request("hold", "alpha", b"x", BUDGET_MS))
        await eventually(lambda: b"x" in echo.held)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert one.open_requests == 0
        echo.held[b"x"].set()
        assert await one.request("echo", "alpha", b"y", BUDGET_MS) == b"y"


@pytest.mark.parametrize("method", ["fail", "giant"])
async def test_a_handler_that_fails_costs_its_own_request_only(method: str) -> None:
    async with serving(Echo()) as port, connected(port) as one:
        with pytest.raises(PeerTimeoutError):
            await one.request(method, "alpha", b"", 50)
        assert await one.request("echo", "alpha", b"x", BUDGET_MS) == b"x"


# Bounds


async def test_a_request_too_large_for_a_frame_is_not_sent() -> None:
    echo = Echo()
    async with serving(echo) as port, connected(port) as one:
        with pytest.raises(PeerUnavailableError):
            await one.request("echo", "alpha", bytes(limits.FRAME_BYTES_MAX), BUDGET_MS)
        assert await one.request("echo", "alpha", b"x", BUDGET_MS) == b"x"
    assert len(echo.requests) == 1


async def test_more_requests_at_once_than_a_connection_may_have_are_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    echo = Echo()
    async with serving(echo) as port, connected(port) as one:
        monkeypatch.setattr(limits, "CONNECTION_REQUESTS_MAX", 3)
        asking = [asyncio.create_task(one.request("hold", "alpha", b"x", BUDGET_MS)) for _ in range(3)]
        await eventually(lambda: len(echo.requests) == 3)
        with pytest.raises(PeerUnavailableError):
            await one.request("echo", "alpha", b"y", BUDGET_MS)
        echo.held[b"x"].set()
        assert await asyncio.gather(*asking) == [b"x"] * 3
        assert await one.request("echo", "alpha", b"y", BUDGET_MS) == b"y"


async def test_a_client_that_sends_more_at_once_than_allowed_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    echo = Echo()
    async with serving(echo) as port, raw(port) as (reader, writer):
        member = await prove(reader, writer)
        monkeypatch.setattr(limits, "CONNECTION_REQUESTS_MAX", 3)
        for number in range(4):
            member.send([frames.REQUEST, number, "hold", BUDGET_MS, "alpha", b"x"])
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""


async def test_a_server_that_reads_nothing_is_taken_for_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONNECTION_UNSENT_BYTES_MAX", 100_000)

    async def welcome_and_stop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await welcome(reader, writer)
        await stopped.wait()

    stopped = asyncio.Event()
    async with impostor(welcome_and_stop) as port, connected(port) as one:
        asking = []
        with pytest.raises(PeerUnavailableError):  # noqa: PT012 - it takes some, then no more
            for _ in range(100):
                asking.append(asyncio.create_task(one.request("echo", "alpha", bytes(500_000), BUDGET_MS)))
                await asyncio.sleep(0)
                if asking[-1].done():
                    await asking[-1]
        assert 1 < len(asking) < 100
        one.abort()
        stopped.set()
        outcomes = await asyncio.gather(*asking, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} <= {PeerLostError, PeerUnavailableError}


async def test_a_client_that_reads_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONNECTION_UNSENT_BYTES_MAX", 100_000)
    echo = Echo()
    async with serving(echo) as port, raw(port) as (reader, writer):
        member = await prove(reader, writer)
        body = bytes(limits.ROUTER_FRAME_BYTES_MAX - 100)
        with pytest.raises(ConnectionError):  # noqa: PT012 - it takes some, then drops it
            for number in range(200):
                member.send([frames.REQUEST, number, "echo", BUDGET_MS, "alpha", body])
                await writer.drain()
    assert len(echo.requests) < 200


@pytest.mark.parametrize("data", [struct.pack(">I", limits.FRAME_BYTES_MAX + 1), b"GET / HTTP/1.1\r\n\r\n"])
async def test_a_client_that_sends_what_is_no_frame_is_dropped(data: bytes) -> None:
    echo = Echo()
    async with serving(echo) as port, connected(port) as other, raw(port) as (reader, writer):
        await prove(reader, writer)
        writer.write(data)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        assert await other.request("echo", "alpha", b"x", BUDGET_MS) == b"x"


@pytest.mark.parametrize(
    "payload",
    [
        b"\xc1",
        frames.pack([frames.ANSWER, 1, b""]),
        frames.pack([frames.REQUEST, "1", "echo", 1_000, "alpha", b""]),
        frames.pack([frames.REQUEST, 1, b"echo", 1_000, "alpha", b""]),
        frames.pack([frames.REQUEST, 1, "echo", None, "alpha", b""]),
        frames.pack([frames.REQUEST, 1, "echo", 1_000, 5, b""]),
        frames.pack([frames.REQUEST, 1, "echo", 1_000, "alpha", "text"]),
        frames.pack([frames.REQUEST, 1, "echo", 1_000, "alpha"]),
    ],
)
async def test_a_client_that_sends_a_broken_frame_is_dropped_and_others_are_not(payload: bytes) -> None:
    echo = Echo()
    async with serving(echo) as port, connected(port) as other, raw(port) as (reader, writer):
        member = await prove(reader, writer)
        writer.write(member.seal(payload))
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        assert await other.request("echo", "alpha", b"x", BUDGET_MS) == b"x"
    assert [request.body for request in echo.requests] == [b"x"]


@pytest.mark.parametrize(
    "fields",
    [
        [frames.ANSWER, 1],
        [frames.ANSWER, 1, "text"],
        [frames.ANSWER, [1], b""],
        [frames.CHALLENGE, VERSION, bytes(NONCE_BYTES)],
        None,
    ],
)
async def test_a_server_that_answers_with_a_broken_or_giant_frame_loses_its_requests(fields: list[Any] | None) -> None:
    async def welcome_and_break(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        member = await welcome(reader, writer)
        await member.receive()
        if fields is None:
            writer.write(struct.pack(">I", limits.FRAME_BYTES_MAX + limits.SEAL_BYTES + 1))
        else:
            member.send(fields)

    async with impostor(welcome_and_break) as port, connected(port) as one:
        with pytest.raises(PeerLostError):
            await one.request("echo", "alpha", b"x", BUDGET_MS)


async def test_an_answer_that_nobody_awaits_is_ignored() -> None:
    async def answer_twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        member = await welcome(reader, writer)
        for _ in range(2):
            _, number, *_ = await member.receive()
            for answered in (number + 70, number, number):
                member.send([frames.ANSWER, answered, b"%d" % answered])

    async with impostor(answer_twice) as port, connected(port) as one:
        assert await one.request("echo", "alpha", b"", BUDGET_MS) == b"1"
        assert await one.request("echo", "alpha", b"", BUDGET_MS) == b"2"


async def test_who_proves_nothing_may_send_little() -> None:
    async with serving(Echo()) as port, raw(port) as (reader, writer):
        writer.write(struct.pack(">I", limits.HANDSHAKE_FRAME_BYTES_MAX + 1))
        await reader.readexactly(4)
        with contextlib.suppress(ConnectionError):
            assert await reader.read(1_000) != b""
            assert await reader.read() == b""


async def test_a_router_s_frames_are_smaller_than_the_control_plane_s() -> None:
    large = bytes(limits.ROUTER_FRAME_BYTES_MAX)
    async with serving(Echo()) as port, connected(port) as router, connected(port, "control", CONTROL) as control:
        assert await control.request("echo", "alpha", large, BUDGET_MS) == large
        with pytest.raises(PeerLostError):
            await router.request("echo", "alpha", large, BUDGET_MS)


async def test_a_proof_for_another_connection_is_worth_nothing() -> None:
    async with serving(Echo()) as port, raw(port) as (reader, writer), raw(port) as (other_reader, _):
        await read_frame(reader)
        writer.write(encode(ClientHandshake("router", ROUTER).prove(await read_frame(other_reader))))
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""


async def test_strangers_in_masses_lock_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "UNPROVEN_CONNECTIONS_MAX", 10)
    with capture_logs() as lines:
        async with serving(Echo()) as port, connected(port) as before, contextlib.AsyncExitStack() as strangers:
            readers = [(await strangers.enter_async_context(raw(port)))[0] for _ in range(50)]
            async with connected(port) as after:
                assert await after.request("echo", "", b"1", BUDGET_MS) == b"1"
            assert await before.request("echo", "", b"2", BUDGET_MS) == b"2"
            with contextlib.suppress(ConnectionError):
                await readers[0].readexactly(4)
                assert await readers[0].read() != b""
                assert await readers[0].read() == b"", "the oldest gave way"
    dropped = [line for line in lines if line["event"] == "client_unproven_dropped"]
    assert 0 < len(dropped) <= limits.LOG_LINES_PER_SECOND_MAX * 2


@pytest.mark.parametrize("name", ["method", "partner"])
async def test_names_in_a_request_are_short(name: str) -> None:
    long = "x" * (limits.FRAME_NAME_CHARACTERS_MAX + 1)
    async with serving(Echo()) as port, connected(port) as one:
        with pytest.raises(PeerLostError):
            await one.request(
                long if name == "method" else "echo", long if name == "partner" else "alpha", b"", BUDGET_MS
            )


async def test_a_server_s_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DOOR_CONNECTIONS_MAX", 2)
    async with serving(Echo()) as port, connected(port) as one:
        async with connected(port) as other:
            with pytest.raises(PeerUnavailableError):
                await Connection.open(HOST, port, "router", ROUTER)
            assert await one.request("echo", "", b"1", BUDGET_MS) == b"1"
            assert await other.request("echo", "", b"2", BUDGET_MS) == b"2"
        for _ in range(100):
            with contextlib.suppress(PeerUnavailableError):
                async with connected(port) as another:
                    assert await another.request("echo", "", b"3", BUDGET_MS) == b"3"
                    break
            await asyncio.sleep(0.005)
        else:
            pytest.fail("the place that was left could not be taken")


# Peers


async def test_a_peer_connects_again_when_its_server_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RECONNECT_DELAY_MS_MIN", 5)
    changes: list[bool] = []
    async with serving(Echo()) as port:
        peer = Peer(HOST, port, "router", ROUTER, changes.append)
        await peer.start()
        assert await peer.wait_connected(5_000)
        assert await peer.request("echo", "alpha", b"1", BUDGET_MS) == b"1"
    await eventually(lambda: not peer.connected)
    with pytest.raises(PeerUnavailableError):
        await peer.request("echo", "alpha", b"2", BUDGET_MS)
    assert not await peer.wait_connected(20)
    async with serving(Echo(), port):
        assert await peer.wait_connected(5_000)
        assert await peer.request("echo", "alpha", b"3", BUDGET_MS) == b"3"
        assert changes == [True, False, True]
        await peer.aclose()
    assert not peer.connected


async def test_a_peer_that_was_never_connected_is_unavailable_at_once() -> None:
    async with serving(Echo()) as port:
        pass
    async with peering(port) as peer:
        assert not peer.connected
        with pytest.raises(PeerUnavailableError):
            await peer.request("echo", "alpha", b"", BUDGET_MS)


async def test_a_peer_waits_longer_each_time_up_to_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        waits.append(seconds * 1_000)
        await sleep(0)

    async with serving(Echo()) as port:
        pass
    monkeypatch.setattr(random, "uniform", lambda _low, high: high)
    monkeypatch.setattr(asyncio, "sleep", note)
    async with peering(port):
        async with asyncio.timeout(5):
            while len(waits) < 7:
                await sleep(0.001)
    assert waits[:5] == [50, 100, 200, 200, 200]


async def test_a_peer_s_lost_requests_are_lost_and_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RECONNECT_DELAY_MS_MIN", 5)
    first, second = Echo(), Echo()
    async with serving(first) as port:
        peer = Peer(HOST, port, "router", ROUTER)
        await peer.start()
        await peer.wait_connected(5_000)
        asking = asyncio.create_task(peer.request("hold", "alpha", b"x", BUDGET_MS))
        await eventually(lambda: b"x" in first.held)
    with pytest.raises(PeerLostError):
        await asking
    async with serving(second, port):
        assert await peer.wait_connected(5_000)
        await peer.aclose()
    assert second.requests == []


async def test_closing_a_peer_ends_its_attempts_and_twice_is_no_error() -> None:
    async with serving(Echo()) as port:
        pass
    peer = Peer(HOST, port, "router", ROUTER)
    await peer.start()
    await peer.start()
    await peer.aclose()
    await peer.aclose()
    assert not peer.connected
