"""Connections that carry frames: `FrameServer` answers, `Connection` asks once, `Peer` asks and connects again.

Requests are pipelined and answered in any order. A slow request never stops the reading of others; what bounds a
partner is its own share (door, mailbox), what bounds a connection is CONNECTION_REQUESTS_MAX and the unsent bytes.
"""

import asyncio
import contextlib
import itertools
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import field
from typing import Any, cast

from actors.values import dataclass
from cells.api import frames, limits
from cells.api.log_budget import LogBudget
from cells.api.sealing import ClientHandshake, SealedFrames, ServerHandshake

# Of all connections that this process opens: one that is tampered with is opened again and again.
_log = LogBudget()


class PeerError(Exception):
    """The peer did not answer."""


class PeerUnavailableError(PeerError):
    """There is no connection, or it takes no more: the request was not sent."""


class PeerLostError(PeerError):
    """The connection ended after the request was sent: it may have been executed."""


class PeerTimeoutError(PeerError):
    """No answer came within the request's budget: it may be executed still."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request as a server's handler gets it. `budget_ms` is what was left to the deadline when it was sent.

    `asker_left`: set when the connection has ended on which it came; None where it came on none.
    """

    role: str
    method: str
    partner_id: str
    budget_ms: int
    body: bytes
    asker_left: asyncio.Event | None = field(default=None, compare=False)


Handler = Callable[[Request], Awaitable[bytes]]


class Connection(asyncio.Protocol):
    """One connection to a server, from its handshake to its end. Never connects again."""

    def __init__(self, role: str, key: bytes, on_lost: Callable[[], None]) -> None:
        self._handshake = ClientHandshake(role, key)
        self._sealed: SealedFrames | None = None
        self._grace_s = limits.ANSWER_GRACE_MS.get(role, 0) / 1000
        self._on_lost = on_lost
        self._decoder = frames.Decoder(limits.HANDSHAKE_FRAME_BYTES_MAX)
        self._transport: asyncio.Transport | None = None
        self._ids = itertools.count(1)
        self._pending: dict[int, asyncio.Future[bytes]] = {}
        self._loop = asyncio.get_running_loop()
        self._welcomed: asyncio.Future[None] = self._loop.create_future()

    @classmethod
    async def open(
        cls, host: str, port: int, role: str, key: bytes, on_lost: Callable[[], None] = lambda: None
    ) -> "Connection":
        """Connect and prove membership both ways. Raises PeerUnavailableError."""
        loop = asyncio.get_running_loop()
        connection: Connection | None = None
        try:
            async with asyncio.timeout((limits.CONNECT_TIMEOUT_MS + limits.HANDSHAKE_TIMEOUT_MS) / 1000):
                _, connection = await loop.create_connection(lambda: cls(role, key, on_lost), host, port)
                await connection._welcomed  # noqa: SLF001 - its own class
        except (OSError, TimeoutError, PeerError, ValueError) as error:  # ValueError: a host that can be none
            if connection is not None:
                connection.abort()
            raise PeerUnavailableError(f"{host}:{port} does not answer: {str(error) or 'time-out'}") from error
        except asyncio.CancelledError:
            if connection is not None:
                connection.abort()
            raise
        if not connection.is_open:
            # It ended again before its opener was told; `on_lost` may have been called already.
            raise PeerUnavailableError(f"{host}:{port} welcomed and left")
        return connection

    @property
    def open_requests(self) -> int:
        """How many requests await their answers."""
        return len(self._pending)

    @property
    def is_open(self) -> bool:
        """Whether requests can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    async def request(self, method: str, partner_id: str, body: bytes, budget_ms: int) -> bytes:
        """Ask and await the answer for the budget and ANSWER_GRACE_MS.

        Raises PeerUnavailableError, PeerLostError, PeerTimeoutError.
        """
        transport, sealed = self._transport, self._sealed
        if transport is None or sealed is None or transport.is_closing():
            raise PeerUnavailableError("the connection is closed")
        if (
            len(self._pending) >= limits.CONNECTION_REQUESTS_MAX
            or transport.get_write_buffer_size() > limits.CONNECTION_UNSENT_BYTES_MAX
        ):
            raise PeerUnavailableError("the peer takes no more requests")
        number = next(self._ids)
        try:
            payload = frames.pack([frames.REQUEST, number, method, budget_ms, partner_id, body])
        except frames.FrameError as error:
            raise PeerUnavailableError(str(error)) from error
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._pending[number] = future
        wait_s = budget_ms / 1000 + self._grace_s if budget_ms > 0 else 0
        timer = self._loop.call_later(wait_s, self._expire, number)
        transport.write(sealed.seal(payload))
        try:
            return await future
        finally:
            timer.cancel()
            self._pending.pop(number, None)

    def abort(self) -> None:
        """End the connection now; open requests get PeerLostError."""
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Await the challenge."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        try:
            if self._sealed is None:
                self._shake_hands(data)
                return
            for frame in self._sealed.feed(data):
                self._take(frame)
        except (frames.FrameError, ValueError, TypeError, IndexError) as error:
            _log.warning("peer_refused", error=str(error))
            self._fail_welcome(str(error))
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell all who wait."""
        reason = f"the connection ended: {exc or 'closed by the peer'}"
        if self._sealed is None:
            self._fail_welcome(reason)
            return
        error = PeerLostError(reason)
        pending, self._pending = self._pending, {}
        for future in pending.values():
            if not future.done():
                future.set_exception(error)
        self._on_lost()

    def _shake_hands(self, data: bytes) -> None:
        frame = self._decoder.feed_one(data)
        if frame is None:
            return
        if frame[0] == frames.CHALLENGE:
            assert self._transport is not None
            self._transport.write(frames.announce(frames.pack(self._handshake.prove(frame))))
            return
        sealed = self._handshake.finish(frame, limits.FRAME_BYTES_MAX)
        if not self._welcomed.done():
            self._sealed = sealed
            self._welcomed.set_result(None)

    def _take(self, frame: list[Any]) -> None:
        kind, number, body = frame
        if kind != frames.ANSWER or not isinstance(body, bytes):
            raise frames.FrameError("an answer does not have its types")
        future = self._pending.get(number)
        if future is not None and not future.done():
            future.set_result(body)

    def _fail_welcome(self, reason: str) -> None:
        if not self._welcomed.done():
            self._welcomed.set_exception(PeerLostError(reason))
            self._welcomed.exception()  # seen: open() may have timed out already

    def _expire(self, number: int) -> None:
        future = self._pending.get(number)
        if future is not None and not future.done():
            future.set_exception(PeerTimeoutError("no answer within the budget"))


class Peer:
    """A server that is asked again and again: connects in the background, with back-off."""

    def __init__(
        self, host: str, port: int, role: str, key: bytes, on_change: Callable[[bool], None] = lambda _: None
    ) -> None:
        self.host = host
        self.port = port
        self._role = role
        self._key = key
        self._on_change = on_change
        self._connection: Connection | None = None
        self._lost = asyncio.Event()
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """Whether a request can be sent now."""
        return self._connection is not None and self._connection.is_open

    async def start(self) -> None:
        """Begin to connect, in the background."""
        if self._task is None:
            self._task = asyncio.create_task(self._stay_connected())

    async def wait_connected(self, timeout_ms: int) -> bool:
        """Wait until connected; say whether it is."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_ms / 1000):
                await self._ready.wait()
        return self.connected

    async def request(self, method: str, partner_id: str, body: bytes, budget_ms: int) -> bytes:
        """Ask and await the answer. Raises PeerUnavailableError, PeerLostError, PeerTimeoutError."""
        if self._connection is None:
            raise PeerUnavailableError(f"{self.host}:{self.port} is not connected")
        return await self._connection.request(method, partner_id, body, budget_ms)

    async def aclose(self) -> None:
        """Stop connecting and end the connection."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    async def _stay_connected(self) -> None:
        delay_ms = limits.RECONNECT_DELAY_MS_MIN
        while True:
            self._lost.clear()
            try:
                self._connection = await Connection.open(self.host, self.port, self._role, self._key, self._lost.set)
            except PeerUnavailableError:
                await asyncio.sleep(delay_ms * random.uniform(0.5, 1.0) / 1000)  # noqa: S311 - jitter
                delay_ms = min(delay_ms * 2, limits.RECONNECT_DELAY_MS_MAX)
                continue
            delay_ms = limits.RECONNECT_DELAY_MS_MIN
            self._ready.set()
            self._on_change(True)
            await self._lost.wait()
            self._connection = None
            self._ready.clear()
            self._on_change(False)


class FrameServer:
    """Listens, makes each client prove its role, and hands its requests to one handler."""

    def __init__(self, keys: Mapping[str, bytes], handler: Handler) -> None:
        self._keys = keys
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._connections = _Connections()

    async def start(self, host: str, port: int) -> int:
        """Listen and give the port (useful where 0 was asked)."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _ServedConnection(self._keys, self._handler, self._connections), host, port, backlog=1_024
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def aclose(self) -> None:
        """Stop listening and end all connections."""
        if self._server is not None:
            self._server.close()
        for connection in [*self._connections.unproven, *self._connections.proven]:
            connection.abort()
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None


class _Connections:
    """The clients of one server. Those that have proven nothing take no place from those that have."""

    def __init__(self) -> None:
        self.unproven: dict[_ServedConnection, None] = {}  # the oldest first
        self.proven: set[_ServedConnection] = set()
        self.budget = LogBudget()

    def begin(self, connection: "_ServedConnection") -> None:
        """Take one in that has to prove itself; the one that has had the most time for it gives way."""
        if len(self.unproven) >= limits.UNPROVEN_CONNECTIONS_MAX:
            oldest = next(iter(self.unproven))
            self.budget.warning("client_unproven_dropped")
            self.end(oldest)
            oldest.abort()
        self.unproven[connection] = None

    def prove(self, connection: "_ServedConnection") -> None:
        """Count one among the proven. Raises FrameError where there are too many."""
        if len(self.proven) >= limits.DOOR_CONNECTIONS_MAX:
            raise frames.FrameError("more connections than a server may have")
        del self.unproven[connection]
        self.proven.add(connection)

    def end(self, connection: "_ServedConnection") -> None:
        """Forget one."""
        self.unproven.pop(connection, None)
        self.proven.discard(connection)


class _ServedConnection(asyncio.Protocol):
    """One client of a server."""

    def __init__(self, keys: Mapping[str, bytes], handler: Handler, all_of_them: _Connections) -> None:
        self._keys = keys
        self._handler = handler
        self._all = all_of_them
        self._decoder = frames.Decoder(limits.HANDSHAKE_FRAME_BYTES_MAX)
        self._handshake = ServerHandshake()
        self._sealed: SealedFrames | None = None
        self._role = ""  # until it is proven
        self._tasks: set[asyncio.Task[None]] = set()
        self._left = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._handshake_timer: asyncio.TimerHandle | None = None

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._all.begin(self)
        loop = asyncio.get_running_loop()
        self._handshake_timer = loop.call_later(limits.HANDSHAKE_TIMEOUT_MS / 1000, self.abort)
        self._transport.write(frames.announce(frames.pack(self._handshake.challenge())))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._all.end(self)
        self._left.set()
        if self._handshake_timer is not None:
            self._handshake_timer.cancel()
        # Handlers go on: a command whose asker went away is finished all the same, and asked about again.

    def data_received(self, data: bytes) -> None:
        try:
            if self._sealed is None:
                self._prove(data)
                return
            for frame in self._sealed.feed(data):
                self._take(frame)
        except (frames.FrameError, ValueError, TypeError) as error:
            self._all.budget.warning("client_refused", error=str(error), role=self._role)
            self.abort()

    def _take(self, frame: list[Any]) -> None:
        kind, number, method, budget_ms, partner_id, body = frame
        if (
            kind != frames.REQUEST
            or not isinstance(number, int)
            or not isinstance(method, str)
            or not isinstance(budget_ms, int)
            or not isinstance(partner_id, str)
            or not isinstance(body, bytes)
            or max(len(method), len(partner_id)) > limits.FRAME_NAME_CHARACTERS_MAX
        ):
            raise frames.FrameError("a request does not have its types")
        if len(self._tasks) >= limits.CONNECTION_REQUESTS_MAX:
            raise frames.FrameError("more requests at once than a connection may have")
        request = Request(self._role, method, partner_id, budget_ms, body, self._left)
        task = asyncio.create_task(self._serve(number, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _prove(self, data: bytes) -> None:
        frame = self._decoder.feed_one(data)
        if frame is None:
            return
        role = self._handshake.check(frame, self._keys)
        self._all.prove(self)
        self._role = role
        bytes_max = limits.ROUTER_FRAME_BYTES_MAX if role == "router" else limits.FRAME_BYTES_MAX
        welcome, self._sealed = self._handshake.welcome(self._keys[role], bytes_max)
        assert self._handshake_timer is not None
        self._handshake_timer.cancel()
        assert self._transport is not None
        self._transport.write(frames.announce(frames.pack(welcome)))

    async def _serve(self, number: int, request: Request) -> None:
        try:
            payload = frames.pack([frames.ANSWER, number, await self._handler(request)])
        except Exception:  # noqa: BLE001 - logged, trace and all
            # A bug in a handler takes its own request only; the asker meets its deadline or asks again.
            self._all.budget.warning("handler_failed", method=request.method, partner=request.partner_id, exc_info=True)
            return
        transport, sealed = self._transport, self._sealed
        assert transport is not None
        assert sealed is not None
        if transport.is_closing():
            return
        if transport.get_write_buffer_size() > limits.CONNECTION_UNSENT_BYTES_MAX:
            self._all.budget.warning("client_reads_nothing", role=self._role)
            transport.abort()
            return
        transport.write(sealed.seal(payload))
