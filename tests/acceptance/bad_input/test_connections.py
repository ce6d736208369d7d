"""Connections that are slow, silent, greedy, many, or no HTTP at all: ended or dropped, and nobody else notices."""

import asyncio
import contextlib
import random
import re
import socket
import time
from collections.abc import Awaitable
from typing import Final

import psutil
import pytest

from listeners import limits as listening_limits
from router import limits
from tests.acceptance.bad_input.conftest import PAYMENT_S_MAX, Site, exchange

IDLE_CONNECTIONS: Final = 3_000
# Of one idle connection, in the router.
IDLE_CONNECTION_BYTES_MAX: Final = 24_000
# What the machine may add to a time-out of ours.
LATE_S: Final = 6.0
HEAD: Final = b"POST /v1/payments HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def test_what_is_no_http_is_told_so_or_dropped(site: Site) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - so that a failure can be repeated
    chance = random.Random(seed)
    garbage = [chance.randbytes(chance.choice([1, 10, 100, 5_000, 300_000])) + b"\r\n\r\n" for _ in range(60)]
    starts = [
        b"GET ",
        b"POST /v1/payments HTTP/1.1\r\n",
        HEAD,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
        b"\x16\x03\x01",
    ]
    garbage += [chance.choice(starts) + chance.randbytes(chance.choice([5, 50, 500])) + b"\r\n\r\n" for _ in range(60)]
    with site.unharmed():
        for data in garbage:
            told = exchange(site.address, data, is_all=True)
            assert told == b"" or told.startswith(b"HTTP/1.1 4"), (data[:100], told[:300])


def test_a_refund_of_a_part_stays_one_whatever_protocol_is_wished_for(site: Site) -> None:
    payment = site.pay(amount=1_000)
    body = b'{"amount": 1}'
    wire = (
        f"POST /v1/payments/{payment['id']}/refunds HTTP/1.1\r\nHost: x\r\n"
        "Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"
        "Content-Type: application/json\r\n"
        f"Authorization: Bearer {site.keys['alpha']}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    told = exchange(site.address, wire.encode() + body)
    assert told.startswith(b"HTTP/1.1 201"), told
    assert site.request("GET", f"/v1/payments/{payment['id']}").json()["amount_refunded"] == 1


@pytest.mark.timeout(180)
async def test_the_slow_and_the_greedy_are_ended_and_nobody_waits_for_them(site: Site) -> None:
    key = site.keys["alpha"].encode()
    good = b"GET /v1/payments?limit=100 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + key + b"\r\n\r\n"
    chunked = HEAD + b"Authorization: Bearer " + key + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    sized = HEAD + b"Authorization: Bearer " + key + b"\r\nContent-Length: 60000\r\n\r\n"
    metadata = {f"key_{n}": "x" * 500 for n in range(50)}
    for _ in range(12):
        site.pay(metadata=metadata)  # so that pages are large
    head_s, body_s = listening_limits.HEAD_TIMEOUT_MS / 1_000, limits.BODY_TIMEOUT_MS / 1_000
    answer_s = listening_limits.ANSWER_TIMEOUT_MS / 1_000
    cases: dict[str, Awaitable[tuple[float, bytes]]] = {
        "says nothing": trickle(site, b"", b"", head_s),
        "a byte of its head now and then": trickle(site, b"GET / HTTP/1.1\r\n", b"X", head_s),
        "header lines without end, slowly": trickle(site, b"GET / HTTP/1.1\r\n", b"X: y\r\n", head_s),
        "empty lines": trickle(site, b"", b"\r\n", head_s),
        "a byte of its body now and then": trickle(site, sized, b"x", body_s),
        "a chunk now and then": trickle(site, chunked, b"1\r\nx\r\n", body_s),
        "lines behind its body": trickle(site, chunked + b"0\r\n", b"X: y\r\n", body_s),
        "a kept connection and then half a head": trickle(site, good + b"GET /", b"x", head_s),
        "header lines without end, fast": flood(site, b"GET / HTTP/1.1\r\n", b"X: y\r\n" * 1_000),
        "one endless header": flood(site, b"GET / HTTP/1.1\r\nX: ", b"y" * 10_000),
        "an endless line": flood(site, b"", b"G" * 10_000),
        "an endless body": flood(site, sized.replace(b"60000", b"6000000000"), b"x" * 50_000),
        "endless chunks": flood(site, chunked, b"400\r\n" + b"x" * 1_024 + b"\r\n"),
        "an endless chunk extension": flood(site, chunked + b"1;", b"x" * 10_000),
        "lines without end behind its body": flood(site, chunked + b"0\r\n", b"X: y\r\n" * 1_000),
        "requests in rows, answers unread": flood(site, b"", good * 4, reads=False),
    }
    bounds = {"requests in rows, answers unread": answer_s * 2}
    with site.unharmed():
        paying = asyncio.create_task(keep_paying(site, seconds=12))
        ended = dict(zip(cases, await asyncio.gather(*cases.values()), strict=True))
        slowest_s = await paying
    for name, (seconds, told) in ended.items():
        assert seconds < bounds.get(name, max(head_s, body_s)) + LATE_S, (name, seconds)
        statuses = set(re.findall(rb"HTTP/1\.1 (\d{3}) ", told))
        assert statuses <= {b"200", b"400", b"408", b"413", b"431"}, (name, told[:500])
    assert ended["a byte of its head now and then"][1].startswith(b"HTTP/1.1 408")
    assert ended["a byte of its body now and then"][1].startswith(b"HTTP/1.1 408")
    # Who goes on sending may lose the answer to the reset of its connection.
    assert ended["one endless header"][1][:12] in (b"HTTP/1.1 431", b"")
    assert slowest_s < PAYMENT_S_MAX


@pytest.mark.timeout(120)
async def test_thousands_of_idle_connections_cost_little_and_slow_nobody_down(site: Site) -> None:
    router = psutil.Process(site.processes("router")[0]["pid"])
    with site.unharmed():
        calm_s = await keep_paying(site, seconds=1)
        before = router.memory_info().rss
        clients = [socket.create_connection(site.address) for _ in range(IDLE_CONNECTIONS)]
        try:
            used = [client for n, client in enumerate(clients) if n % 2]
            for client in used:  # half of them keep a connection after a request, half never said anything
                client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            for client in used:
                assert client.recv(1_000).startswith(b"HTTP/1.1 200")
            busy_s = await keep_paying(site, seconds=2)
            grown = router.memory_info().rss - before
        finally:
            for client in clients:
                client.close()
    print(f"slowest payment {calm_s:.3f} s, beside {IDLE_CONNECTIONS} idle {busy_s:.3f} s; {grown} bytes")  # noqa: T201
    assert busy_s < PAYMENT_S_MAX
    assert grown < IDLE_CONNECTIONS * IDLE_CONNECTION_BYTES_MAX


async def keep_paying(site: Site, seconds: float) -> float:
    """Make good payments one after the other; give how long the slowest took, in seconds."""
    until = time.monotonic() + seconds
    slowest_s = 0.0
    while time.monotonic() < until:
        began = time.monotonic()
        await asyncio.to_thread(site.pay, "beta")
        slowest_s = max(slowest_s, time.monotonic() - began)
    return slowest_s


async def trickle(site: Site, begin: bytes, part: bytes, pause_s: float) -> tuple[float, bytes]:
    """Send the beginning, then a part now and then; give after how many seconds the connection ended, and what came."""
    reader, writer = await asyncio.open_connection(*site.address)
    began = time.monotonic()
    told = asyncio.create_task(read_all(reader))
    writer.write(begin)
    while not told.done():
        with contextlib.suppress(ConnectionError):
            writer.write(part)
            await writer.drain()
        await asyncio.wait({told}, timeout=pause_s / 20)
    return await end(began, told, writer)


async def flood(site: Site, begin: bytes, part: bytes, *, reads: bool = True) -> tuple[float, bytes]:
    """Send the beginning, then parts as fast as they are taken; give as `trickle` does."""
    reader, writer = await asyncio.open_connection(*site.address, limit=1_024)
    began = time.monotonic()
    told = asyncio.create_task(read_all(reader)) if reads else None
    writer.write(begin)
    with contextlib.suppress(ConnectionError):
        while told is None or not told.done():
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
    return await end(began, told or asyncio.create_task(read_all(reader)), writer)


async def read_all(reader: asyncio.StreamReader) -> bytes:
    told = b""
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(65_536):
            told = (told + chunk)[:100_000]
    return told


async def end(began: float, told: asyncio.Task[bytes], writer: asyncio.StreamWriter) -> tuple[float, bytes]:
    text = await told
    seconds = time.monotonic() - began
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return seconds, text
