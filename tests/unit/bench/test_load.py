"""The benchmark's client: its schedule is fixed in advance, and a slow server can't hide behind it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

from bench.load import Load, LoadPlan, schedule

CAPTURED = b'{"object":"payment","status":"captured"}'


def plan(port: int = 1, per_second: float = 100, seconds: float = 0.3) -> LoadPlan:
    return LoadPlan("127.0.0.1", port, {"acme": "sk_1", "globex": "sk_2"}, per_second, time.monotonic(), seconds)


@contextlib.asynccontextmanager
async def serving(answer: Callable[[int], bytes], delay_s: float = 0.0) -> AsyncIterator[int]:
    """Answer each request, one at a time on each connection; `answer` gets the request's number."""
    count = 0
    serving_them: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving_them.add(asyncio.create_task(serve(reader, writer)))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0]))
                count += 1
                number = count
                await asyncio.sleep(delay_s)
                body = answer(number)
                if not body:
                    break
                writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.gather(*serving_them)


def test_the_schedule_is_the_same_for_the_same_plan() -> None:
    asked = plan(per_second=1_000, seconds=2)
    arrivals = schedule(asked)
    assert arrivals == schedule(asked)
    assert arrivals == sorted(arrivals)
    assert 1_700 < len(arrivals) < 2_300
    assert {partner for _, partner in arrivals} == {"acme", "globex"}


async def test_every_payment_is_sent_and_counted() -> None:
    async with serving(lambda _: CAPTURED) as port:
        asked = plan(port)
        results = await Load(asked).run()
    assert results.sent == len(schedule(asked))
    assert results.outcomes == {"201 captured": results.sent}
    assert len(results.latencies_ms) == results.sent


async def test_a_slow_server_slows_no_sending_down() -> None:
    """Closed-loop clients would send less, and call it fast."""
    async with serving(lambda _: CAPTURED, delay_s=0.2) as port:
        asked = plan(port)
        results = await Load(asked).run()
    assert results.sent == len(schedule(asked))
    assert min(results.latencies_ms) >= 200


async def test_connections_that_end_are_no_answers() -> None:
    async with serving(lambda number: b"" if number % 2 else CAPTURED) as port:
        results = await Load(plan(port)).run()
    assert results.outcomes["connection lost"] == (results.sent + 1) // 2
    assert sum(results.outcomes.values()) == results.sent


async def test_a_server_that_is_not_there_is_counted() -> None:
    async with serving(lambda _: CAPTURED) as port:
        asked = plan(port)
    results = await Load(asked).run()
    assert results.outcomes == {"no connection": results.sent}
