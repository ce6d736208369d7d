"""A TCP proxy with Toxiproxy's toxics: it sits between two processes and spoils what passes. toxics.py says how.

Toxics come and go while connections are open. A pump never reads more ahead than FAULT_PROXY_BUFFER_BYTES, so a slow
reader is felt by the writer as it would be without the proxy. Chance comes from the seed alone: the dice of a
connection are those of its number.
"""

import asyncio
import contextlib
import random
import socket
import struct
import time
from collections import deque
from types import TracebackType
from typing import Final, Self

from chaos import limits
from chaos.toxics import (
    Bandwidth,
    Latency,
    LimitData,
    ResetPeer,
    Slicer,
    SlowClose,
    Stream,
    Tamper,
    Timeout,
    Toxic,
    ToxicError,
)

Address = tuple[str, int]
_STREAMS: Final[tuple[Stream, Stream]] = ("upstream", "downstream")
# On, with a time of 0: close() then sends a reset instead of a FIN.
_LINGER_RESET: Final = struct.pack("ii", 1, 0)


class FaultProxy:
    """One listening port before one target. `async with` it; port 0 takes a free one: see `address`."""

    def __init__(self, listen: Address, target: Address, *, seed: int = 0) -> None:
        self.address = listen
        self.target = target
        self.seed = seed
        self.accepted = 0
        self._toxics: dict[str, tuple[Toxic, float]] = {}
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._connections: dict[_Connection, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        await self.enable()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.disable()

    # Up and down

    @property
    def enabled(self) -> bool:
        """Whether it takes connections."""
        return self._server is not None

    @property
    def open_connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    async def enable(self) -> None:
        """Take connections; nothing where it does. Raises OSError where the port is taken."""
        if self._server is None:
            self._server = await asyncio.start_server(
                self._accept, *self.address, limit=limits.FAULT_PROXY_READ_BYTES, backlog=limits.FAULT_PROXY_BACKLOG
            )
            host, port = self._server.sockets[0].getsockname()[:2]
            self.address = (host, port)

    async def disable(self) -> None:
        """Be down: end all connections and refuse new ones. The toxics stay."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            # What was accepted just before may only now be told: it is ended, too.
            await asyncio.sleep(0)
        tasks = list(self._connections.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # the event loop closes what was let go

    # Toxics

    @property
    def toxics(self) -> tuple[Toxic, ...]:
        """Those in force, in the order in which they came; data meet them in that order."""
        return tuple(toxic for toxic, _ in self._toxics.values())

    def add(self, toxic: Toxic) -> None:
        """Put a toxic in force, also on open connections. Raises ToxicError where its name is taken."""
        if toxic.full_name in self._toxics:
            raise ToxicError(f"name: there is a toxic {toxic.full_name!r} already")
        if len(self._toxics) >= limits.TOXICS_MAX:
            raise ToxicError(f"there are {limits.TOXICS_MAX} toxics already; remove one")
        self._toxics[toxic.full_name] = (toxic, time.monotonic())
        self._tell()

    def replace(self, toxic: Toxic) -> None:
        """Put a toxic in the place of the one of its name. Raises ToxicError where there is none."""
        if toxic.full_name not in self._toxics:
            raise ToxicError(f"name: there is no toxic {toxic.full_name!r}")
        self._toxics[toxic.full_name] = (toxic, time.monotonic())
        self._tell()

    def remove(self, name: str) -> None:
        """Take a toxic away. Raises ToxicError where there is none of that name."""
        if self._toxics.pop(name, None) is None:
            raise ToxicError(f"name: there is no toxic {name!r}")
        self._tell()

    def clear(self) -> None:
        """Take all toxics away."""
        self._toxics.clear()
        self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    # Connections

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if not self.enabled or len(self._connections) >= limits.FAULT_PROXY_CONNECTIONS_MAX:
            _reset(writer)
            return
        self.accepted += 1
        connection = _Connection(self, self.accepted, reader, writer)
        self._connections[connection] = task
        try:
            await connection.run()
            await connection.close()
        except asyncio.CancelledError:
            pass  # it is down: its only canceller is disable()
        finally:
            connection.abort()
            del self._connections[connection]

    def met_by(self, number: int, stream: Stream, began_s: float) -> list[tuple[Toxic, float]]:
        """Give the toxics that a connection meets in one direction, and since when."""
        return [
            (toxic, max(added_s, began_s))
            for toxic, added_s in self._toxics.values()
            if toxic.stream == stream
            and random.Random(f"{self.seed}/{toxic.full_name}/{number}").random() < toxic.toxicity
        ]

    async def wait(self, until_s: float | None) -> bool:
        """Wait until then (None: for ever) or until the toxics change; say whether they changed."""
        try:
            async with asyncio.timeout(None if until_s is None else max(until_s - time.monotonic(), 0)):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True


class _Connection:
    """One client's connection and the one to the target that was made for it."""

    def __init__(
        self, proxy: FaultProxy, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._proxy = proxy
        self._number = number
        self._client = (reader, writer)
        self._writers = [writer]
        self._began_s = time.monotonic()

    async def run(self) -> None:
        """Pump both ways until both have ended, or something ends the connection."""
        try:
            async with asyncio.timeout(limits.FAULT_PROXY_CONNECT_TIMEOUT_MS / 1_000):
                reader, writer = await asyncio.open_connection(*self._proxy.target, limit=limits.FAULT_PROXY_READ_BYTES)
        except (OSError, TimeoutError):
            _reset(self._client[1])  # there is nobody behind it
            return
        self._writers.append(writer)
        pumps = [
            _Pump(self._proxy, self._number, _STREAMS[0], self._client[0], writer, self._began_s),
            _Pump(self._proxy, self._number, _STREAMS[1], reader, self._client[1], self._began_s),
        ]
        pumping = [asyncio.create_task(pump.run()) for pump in pumps]
        watching = [asyncio.create_task(pump.watch()) for pump in pumps]
        try:
            await _first_end(pumping, watching)
        except _ClosedByToxicError:
            pass
        except (_ResetByToxicError, OSError):
            for one in self._writers:
                _reset(one)  # a peer that was killed is felt by the other as it is
        finally:
            tasks = [*pumping, *watching]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Close both ends once what was passed on is sent; nobody is waited for without end."""
        for writer in self._writers:
            writer.close()
        closing = (writer.wait_closed() for writer in self._writers)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.FAULT_PROXY_CLOSE_TIMEOUT_MS / 1_000):
                await asyncio.gather(*closing, return_exceptions=True)

    def abort(self) -> None:
        """Let go of both ends at once; nothing where they are closed."""
        for writer in self._writers:
            writer.transport.abort()


async def _first_end(pumping: list[asyncio.Task[None]], watching: list[asyncio.Task[None]]) -> None:
    """Wait until all pumps have ended, or any task raises; raise that."""
    waiting = {*pumping, *watching}
    while any(task in waiting for task in pumping):
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()


class _ClosedByToxicError(Exception):
    """A toxic closes the connection."""


class _ResetByToxicError(Exception):
    """A toxic resets the connection."""


class _Pump:
    """One direction of one connection: reads ahead a bounded amount, and writes when its toxics let it."""

    def __init__(
        self,
        proxy: FaultProxy,
        number: int,
        stream: Stream,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        began_s: float,
    ) -> None:
        self._proxy = proxy
        self._number = number
        self._stream = stream
        self._source = source
        self._sink = sink
        self._began_s = began_s
        self._dice = random.Random(f"{proxy.seed}/{number}/{stream}")
        self._waiting: deque[tuple[float, bytes]] = deque()  # an empty piece is the end
        self._waiting_bytes = 0
        self._is_broken = False
        self._room = asyncio.Event()
        self._arrived = asyncio.Event()
        self._passed: dict[tuple[str, float], int] = {}
        sink.transport.set_write_buffer_limits(high=limits.FAULT_PROXY_READ_BYTES)

    async def run(self) -> None:
        """Pump until the source's end was passed on."""
        reading = asyncio.create_task(self._read())
        try:
            await self._write()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def watch(self) -> None:
        """Raise when a toxic ends the connection by time, whether data come or not."""
        while True:
            ends = [
                (since_s + toxic.timeout / 1_000, toxic)
                for toxic, since_s in self._toxics()
                if isinstance(toxic, ResetPeer) or (isinstance(toxic, Timeout) and toxic.timeout)
            ]
            end_s, toxic = min(ends, key=lambda end: end[0], default=(None, None))
            if await self._proxy.wait(end_s):
                continue
            raise _ResetByToxicError if isinstance(toxic, ResetPeer) else _ClosedByToxicError

    def _toxics(self) -> list[tuple[Toxic, float]]:
        return self._proxy.met_by(self._number, self._stream, self._began_s)

    async def _read(self) -> None:
        """Take what comes, as far as there is room; a broken source is told by the end of `_write`."""
        while True:
            while self._waiting_bytes >= limits.FAULT_PROXY_BUFFER_BYTES:
                self._room.clear()
                await self._room.wait()
            try:
                piece = await self._source.read(limits.FAULT_PROXY_READ_BYTES)
            except OSError:
                self._is_broken = True
                self._arrived.set()
                return
            self._waiting.append((time.monotonic(), piece))
            self._waiting_bytes += len(piece)
            self._arrived.set()
            if not piece:
                return

    async def _write(self) -> None:
        while True:
            while not self._waiting:
                if self._is_broken:
                    raise ConnectionResetError("the other end is gone")
                self._arrived.clear()
                await self._arrived.wait()
            at_s, piece = self._waiting[0]
            if not piece:
                await self._pass_end(at_s)
                return
            await self._pass(at_s, piece)
            self._waiting.popleft()
            self._waiting_bytes -= len(piece)
            self._room.set()

    async def _pass(self, at_s: float, piece: bytes) -> None:
        """Pass one piece on, in slices where there is a slicer, each as late and as slow as the toxics say."""
        await self._delay(at_s)
        piece = self._tamper(piece)
        while piece:
            toxics = self._toxics()
            if any(isinstance(toxic, Timeout | ResetPeer) for toxic, _ in toxics):
                return  # dropped
            size, pause_s = self._slice(toxics, len(piece))
            first, piece = piece[:size], piece[size:]
            is_last = self._cut(toxics, first)
            if is_last is not None:
                await self._send(is_last)
                raise _ClosedByToxicError
            if pause_s is None:  # a bandwidth of 0: until that changes
                piece = first + piece
                await self._proxy.wait(None)
                continue
            await self._send(first)
            self._count(toxics, len(first))
            if pause_s:
                await self._proxy.wait(time.monotonic() + pause_s)

    def _tamper(self, piece: bytes) -> bytes:
        """Return what a hostile relay makes of a piece."""
        for toxic, _ in self._toxics():
            if not isinstance(toxic, Tamper) or self._dice.randrange(toxic.every) or not piece:
                continue
            match toxic.way:
                case "flip":
                    position = self._dice.randrange(len(piece))
                    changed = piece[position] ^ 1 << self._dice.randrange(8)
                    piece = piece[:position] + bytes([changed]) + piece[position + 1 :]
                case "replay":
                    piece += piece
                case "drop":
                    piece = b""
                case "inject":
                    piece += limits.TAMPER_INJECTED
        return piece

    async def _delay(self, at_s: float) -> None:
        while True:
            due_s = at_s
            for toxic, since_s in self._toxics():
                if isinstance(toxic, Latency) and at_s >= since_s:
                    late_ms = toxic.latency + self._dice.uniform(-toxic.jitter, toxic.jitter)
                    due_s += max(late_ms, 0) / 1_000
            if due_s <= time.monotonic() or not await self._proxy.wait(due_s):
                return

    def _slice(self, toxics: list[tuple[Toxic, float]], size: int) -> tuple[int, float | None]:
        """Give how much may be sent at once and how long to wait after it; None: nothing may be sent."""
        pause_s: float | None = 0.0
        for toxic, _ in toxics:
            if isinstance(toxic, Slicer):
                varied = toxic.average_size + self._dice.randint(-toxic.size_variation, toxic.size_variation)
                size = min(size, max(varied, 1))
                pause_s = None if pause_s is None else pause_s + toxic.delay / 1_000_000
        for toxic, _ in toxics:
            if isinstance(toxic, Bandwidth):
                per_second = toxic.rate * 1_000
                # A tenth of a second at once, so that a slow connection trickles and does not stutter.
                size = min(size, max(per_second // 10, 1))
                pause_s = None if not per_second or pause_s is None else pause_s + size / per_second
        return size, pause_s

    def _cut(self, toxics: list[tuple[Toxic, float]], piece: bytes) -> bytes | None:
        """Give what may still pass where a limit is reached with this piece; None where none is."""
        rooms = [
            toxic.bytes - self._passed.get((toxic.full_name, since_s), 0)
            for toxic, since_s in toxics
            if isinstance(toxic, LimitData)
        ]
        room = min(rooms, default=len(piece) + 1)
        return piece[: max(room, 0)] if room <= len(piece) else None

    def _count(self, toxics: list[tuple[Toxic, float]], size: int) -> None:
        met = {(toxic.full_name, since_s) for toxic, since_s in toxics if isinstance(toxic, LimitData)}
        self._passed = {known: self._passed.get(known, 0) + size for known in met}

    async def _send(self, piece: bytes) -> None:
        if piece:
            self._sink.write(piece)
            await self._sink.drain()

    async def _pass_end(self, at_s: float) -> None:
        await self._delay(at_s)
        while True:
            toxics = self._toxics()
            if any(isinstance(toxic, Timeout | ResetPeer) for toxic, _ in toxics):
                await self._proxy.wait(None)  # the other end learns nothing while data are dropped
                continue
            late = [at_s + toxic.delay / 1_000 for toxic, _ in toxics if isinstance(toxic, SlowClose)]
            if not late or not await self._proxy.wait(max(late)):
                break
        with contextlib.suppress(OSError):
            if self._sink.can_write_eof():
                self._sink.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with a reset, whatever was still to be sent."""
    found = writer.get_extra_info("socket")
    if found is not None:
        with contextlib.suppress(OSError):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    writer.transport.abort()
