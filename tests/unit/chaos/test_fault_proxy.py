"""The fault proxy between real sockets: each toxic, its coming and going, bounds, resets, half-closes."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from chaos import limits
from chaos.fault_proxy import FaultProxy
from chaos.ports import HOST
from chaos.toxics import (
    Bandwidth,
    Latency,
    LimitData,
    ResetPeer,
    Slicer,
    SlowClose,
    Tamper,
    Timeout,
    Toxic,
    ToxicError,
    read_toxic,
)
from tests.eventually import eventually

pytestmark = pytest.mark.timeout(30)


class Echo:
    """A server that gives back what it gets, and at the end of that its own end."""

    def __init__(self) -> None:
        self.ends = 0
        self.resets = 0
        self.port = 0
        self.open_writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open_writers.add(writer)
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
            self.ends += 1
        except OSError:
            self.resets += 1
        finally:
            self.open_writers.discard(writer)
            writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, HOST, 0)
    echo.port = server.sockets[0].getsockname()[1]
    yield echo
    server.close()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[FaultProxy]:
    async with FaultProxy((HOST, 0), (HOST, echo.port), seed=1) as proxy:
        yield proxy


@contextlib.asynccontextmanager
async def client(proxy: FaultProxy) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*proxy.address)
    yield reader, writer
    writer.transport.abort()
    await asyncio.sleep(0)


async def echoed_s(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes = b"hello") -> float:
    """Send something; give the seconds until it is back."""
    began = time.monotonic()
    writer.write(data)
    assert await asyncio.wait_for(reader.readexactly(len(data)), 10) == data
    return time.monotonic() - began


async def test_without_toxics_everything_passes_and_a_half_close_too(proxy: FaultProxy, echo: Echo) -> None:
    data = bytes(range(256)) * 8_192  # two MiB, far more than it may hold
    async with client(proxy) as (reader, writer):
        writer.write(data)
        writer.write_eof()
        assert await reader.read(-1) == data, "what was under way still came after our end"
    assert echo.ends == 1
    assert echo.resets == 0


@pytest.mark.parametrize("stream", ["upstream", "downstream"])
async def test_latency_comes_and_goes_on_an_open_connection(proxy: FaultProxy, stream: str) -> None:
    async with client(proxy) as (reader, writer):
        assert await echoed_s(reader, writer) < 0.15
        proxy.add(read_toxic(b'{"type":"latency","stream":"%s","attributes":{"latency":200}}' % stream.encode()))
        assert 0.2 <= await echoed_s(reader, writer) < 1
        proxy.remove(f"latency_{stream}")
        assert await echoed_s(reader, writer) < 0.15


async def test_what_waits_passes_when_its_latency_is_removed(proxy: FaultProxy) -> None:
    async with client(proxy) as (reader, writer):
        proxy.add(Latency(latency=60_000))
        writer.write(b"x")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readexactly(1), 0.1)
        proxy.clear()
        assert await asyncio.wait_for(reader.readexactly(1), 5) == b"x"


async def test_bandwidth(proxy: FaultProxy) -> None:
    proxy.add(Bandwidth(rate=100))
    async with client(proxy) as (reader, writer):
        assert 0.25 <= await echoed_s(reader, writer, b"x" * 40_000) < 2
        proxy.replace(Bandwidth(rate=0))
        writer.write(b"y")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readexactly(1), 0.2)
        proxy.clear()
        assert await asyncio.wait_for(reader.readexactly(1), 5) == b"y"


async def test_slicer(proxy: FaultProxy) -> None:
    proxy.add(Slicer(average_size=10, size_variation=3, delay=2_000))
    async with client(proxy) as (reader, writer):
        writer.write(b"x" * 200)
        pieces = []
        while sum(pieces) < 200:
            pieces.append(len(await reader.read(1_000)))
    assert len(pieces) > 10, pieces


async def test_slow_close(proxy: FaultProxy) -> None:
    proxy.add(SlowClose(delay=300))
    async with client(proxy) as (reader, writer):
        writer.write(b"x")
        writer.write_eof()
        began = time.monotonic()
        assert await reader.readexactly(1) == b"x"
        assert await reader.read() == b""
    assert 0.28 <= time.monotonic() - began < 2


async def test_timeout_drops_and_closes(proxy: FaultProxy) -> None:
    async with client(proxy) as (reader, writer):
        await echoed_s(reader, writer)
        proxy.add(Timeout(timeout=200))
        writer.write(b"x")
        began = time.monotonic()
        assert await reader.read() == b""
    assert 0.18 <= time.monotonic() - began < 2


async def test_timeout_of_0_hangs_and_what_came_meanwhile_is_lost(proxy: FaultProxy) -> None:
    async with client(proxy) as (reader, writer):
        proxy.add(Timeout(timeout=0))
        writer.write(b"lost")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.3)
        proxy.clear()
        assert await echoed_s(reader, writer, b"kept") < 1


async def test_reset_peer(proxy: FaultProxy) -> None:
    async with client(proxy) as (reader, writer):
        await echoed_s(reader, writer)
        proxy.add(ResetPeer(timeout=100, stream="upstream"))
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 5)


async def test_limit_data(proxy: FaultProxy) -> None:
    proxy.add(LimitData(bytes=100))
    async with client(proxy) as (reader, writer):
        await echoed_s(reader, writer, b"x" * 60)
        writer.write(b"y" * 60)
        assert await reader.read(-1) == b"y" * 40


async def test_toxicity_is_a_share_of_connections_and_follows_from_the_seed(echo: Echo) -> None:
    async def slow_ones(seed: int) -> list[bool]:
        async with FaultProxy((HOST, 0), (HOST, echo.port), seed=seed) as proxy:
            proxy.add(Latency(latency=150, toxicity=0.5))
            found = []
            for _ in range(12):
                async with client(proxy) as (reader, writer):
                    found.append(await echoed_s(reader, writer) > 0.14)
            return found

    first = await slow_ones(5)
    assert 0 < sum(first) < 12
    assert await slow_ones(5) == first


async def test_down_ends_open_connections_and_refuses_new_ones_until_it_is_up(proxy: FaultProxy) -> None:
    async with client(proxy) as (reader, writer):
        await echoed_s(reader, writer)
        await proxy.disable()
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    with pytest.raises(OSError, match=r"[Cc]onnect"):
        await asyncio.open_connection(*proxy.address)
    assert proxy.open_connections == 0
    await proxy.enable()
    async with client(proxy) as (reader, writer):
        await echoed_s(reader, writer)


async def test_back_pressure_is_kept(proxy: FaultProxy) -> None:
    async def flood(writer: asyncio.StreamWriter) -> None:
        for _ in range(1_000):
            writer.write(b"x" * 65_536)
            await asyncio.wait_for(writer.drain(), 0.5)

    async with client(proxy) as (_, writer):
        # The proxy's own share and the kernel's buffers of four sockets are far less; nobody reads the answers.
        with pytest.raises(TimeoutError):
            await flood(writer)


async def test_a_killed_peer_is_felt_as_a_reset(proxy: FaultProxy, echo: Echo) -> None:
    async with client(proxy) as (reader, writer):
        await echoed_s(reader, writer)
        for server_side in list(echo.open_writers):
            server_side.transport.abort()
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
    await eventually(lambda: proxy.open_connections == 0)


async def test_nobody_behind_it_is_a_reset(proxy: FaultProxy) -> None:
    proxy.target = (HOST, 1)
    async with client(proxy) as (reader, _):
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 5)


async def test_many_connections_at_once_and_none_is_left(proxy: FaultProxy) -> None:
    async def one(number: int) -> None:
        async with client(proxy) as (reader, writer):
            data = b"%d" % number * 100
            await echoed_s(reader, writer, data)

    proxy.add(Latency(latency=20, jitter=20))
    await asyncio.gather(*(one(number) for number in range(200)))
    assert proxy.accepted == 200
    await eventually(lambda: proxy.open_connections == 0)


async def test_past_its_bound_it_takes_no_more(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FAULT_PROXY_CONNECTIONS_MAX", 1)
    async with client(proxy) as (reader, writer):
        await echoed_s(reader, writer)
        async with client(proxy) as (refused, _):
            with pytest.raises(ConnectionResetError):
                await refused.read()


async def test_names_are_unique_and_toxics_are_bounded(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy.add(Latency(latency=1))
    with pytest.raises(ToxicError, match="already"):
        proxy.add(Latency(latency=2))
    with pytest.raises(ToxicError, match="no toxic"):
        proxy.remove("other")
    with pytest.raises(ToxicError, match="no toxic"):
        proxy.replace(Latency(name="other"))
    monkeypatch.setattr(limits, "TOXICS_MAX", 1)
    with pytest.raises(ToxicError, match="remove one"):
        proxy.add(Timeout())


@pytest.mark.parametrize(
    ("way", "comes"),
    [("replay", b"abab"), ("drop", b""), ("inject", b"ab" + limits.TAMPER_INJECTED), ("flip", None)],
)
async def test_tamper(proxy: FaultProxy, way: str, comes: bytes | None) -> None:
    async with client(proxy) as (reader, writer):
        proxy.add(read_toxic(b'{"type":"tamper","attributes":{"way":"%s","every":1}}' % way.encode()))
        writer.write(b"ab")
        if comes is None:
            assert sum((a ^ b).bit_count() for a, b in zip(await reader.readexactly(2), b"ab", strict=True)) == 1
            return
        await asyncio.sleep(0.05)
        proxy.clear()
        writer.write(b"!")
        assert await reader.readexactly(len(comes) + 1) == comes + b"!"
    assert Tamper(way="drop", every=1).full_name == "tamper_downstream"


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        (b"", "body"),
        (b"[]", "body"),
        (b'{"type":"latency","more":1}', "more"),
        (b'{"type":"lightning"}', "lightning"),
        (b'{"type":"latency","toxicity":2}', "toxicity"),
        (b'{"type":"latency","stream":"sideways"}', "stream"),
        (b'{"type":"latency","attributes":{"latency":-1}}', "latency"),
        (b'{"type":"latency","attributes":{"latency":"1"}}', "latency"),
        (b'{"type":"latency","attributes":{"stream":"upstream"}}', "attributes"),
        (b'{"type":"bandwidth"}', "rate"),
        (b'{"type":"slicer","attributes":{"average_size":0}}', "average_size"),
        (b'{"type":"latency","name":"a/b"}', "name"),
    ],
)
def test_no_toxic_is_made_of_garbage(raw: bytes, where: str) -> None:
    with pytest.raises(ToxicError, match=where):
        read_toxic(raw)


def test_a_toxic_reads_what_it_writes() -> None:
    toxic: Toxic = Slicer(name="thin", stream="upstream", toxicity=0.25, average_size=3, size_variation=1, delay=9)
    assert toxic.fields() == {
        "name": "thin",
        "type": "slicer",
        "stream": "upstream",
        "toxicity": 0.25,
        "attributes": {"average_size": 3, "size_variation": 1, "delay": 9},
    }
