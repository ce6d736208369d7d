"""HTTP/1.1 POST over kept connections: one request, one whole answer, or AcquirerUnknownError. Knows no acquirer.

Nothing is sent twice, followed, decompressed or remembered. httptools (Node's parser) reads the answers. The general
HTTP client that stood here cost a payment 0.3 ms of CPU, as much as the rules, the codec and the ledger together.
"""

import asyncio
import ssl
import time
from collections import deque
from dataclasses import dataclass
from typing import Self, cast

import httptools

from actors.errors import AcquirerUnknownError
from cells.api import limits


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens."""

    host: str
    port: int
    is_tls: bool

    @property
    def authority(self) -> str:
        """Give what stands in the Host header (RFC 9110, 7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_tls else 80) else f"{host}:{self.port}"


class _Connection(asyncio.Protocol):
    """One connection, with at most one request under way; it is of no more use after anything unexpected."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._body = bytearray()
        self._bytes = 0
        self.is_usable = False
        self.idle_since = 0.0

    def exchange(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """Send a request; the future gets status and body, or AcquirerUnknownError."""
        assert self._transport is not None
        assert self._answer is None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def expire(self, timeout_ms: int) -> None:
        """Give the request up."""
        self._fail("timeout", f"no answer within {timeout_ms} ms")

    def abort(self) -> None:
        """End the connection at once."""
        self.is_usable = False
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.is_usable = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_usable = False
        self._fail("lost", repr(exc) if exc else "closed by the acquirer before its answer was whole")

    def data_received(self, data: bytes) -> None:
        if self._answer is None:
            self.abort()  # nothing was asked for
            return
        try:
            self._bytes += len(data)
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse("an upgrade that nobody asked for")
        except httptools.HttpParserError as error:
            self._refuse(f"not HTTP: {error}")
        else:
            if self._bytes > limits.ACQUIRER_ANSWER_BYTES_MAX and self._answer is not None:
                self._refuse(f"larger than {limits.ACQUIRER_ANSWER_BYTES_MAX} bytes")

    # httptools

    def on_message_begin(self) -> None:
        if self._answer is None:
            self.is_usable = False  # an answer too many: it must not be taken for the next one

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200 or self._answer is None:
            return  # an interim answer (RFC 9110, 15.2): the final one follows
        if self._bytes > limits.ACQUIRER_ANSWER_BYTES_MAX:
            return  # refused by data_received
        answer, self._answer = self._answer, None
        self.is_usable = self.is_usable and self._parser.should_keep_alive()
        self._bytes = 0
        if not answer.done():
            answer.set_result((status, bytes(self._body)))
        self._body.clear()

    def _refuse(self, why: str) -> None:
        self._fail("malformed", why)
        self.abort()

    def _fail(self, kind: str, why: str) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_exception(AcquirerUnknownError(kind, why))


class HttpClient:
    """The connections of one process, to any number of servers."""

    def __init__(self) -> None:
        self._idle: dict[Address, deque[_Connection]] = {}
        # Each server's own: one that hangs takes none of another's.
        self._places: dict[Address, asyncio.Semaphore] = {}
        self._tls: ssl.SSLContext | None = None
        self.is_closed = False

    async def __aenter__(self) -> Self:
        """Give itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """End all connections."""
        await self.aclose()

    async def aclose(self) -> None:
        """End the connections that are not in use; those in use end with their requests."""
        self.is_closed = True
        for connections in self._idle.values():
            for connection in connections:
                connection.abort()
        self._idle.clear()

    async def post(
        self, address: Address, path: bytes, headers: bytes, body: bytes, timeout_ms: int
    ) -> tuple[int, bytes]:
        """Send one request and give status and body. Raises AcquirerUnknownError.

        `headers` are whole lines, without Host and Content-Length. A call that fails, is late or is cancelled ends its
        connection. An answer whose end is the connection's end is not taken: it can't be told from a lost one.
        """
        request = b"POST %b HTTP/1.1\r\nHost: %b\r\n%bContent-Length: %d\r\n\r\n%b" % (
            path,
            address.authority.encode(),
            headers,
            len(body),
            body,
        )
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_ms / 1_000
        connection = await self._get(address, deadline)
        timer = loop.call_at(deadline, connection.expire, timeout_ms)
        try:
            status, content = await connection.exchange(request)
        except BaseException:
            connection.abort()
            raise
        finally:
            timer.cancel()
            self._places[address].release()
        self._give_back(address, connection)
        return status, content

    async def _get(self, address: Address, deadline: float) -> _Connection:
        """Give a connection with a place of its own, which the caller gives back. Raises AcquirerUnknownError."""
        places = self._places.setdefault(address, asyncio.Semaphore(limits.ACQUIRER_CONNECTIONS_MAX))
        if not places.locked():
            connection = self._take(address)
            if connection is not None:
                await places.acquire()  # at once
                return connection
        try:
            async with asyncio.timeout_at(deadline):
                await places.acquire()
                try:
                    return self._take(address) or await self._connect(address)
                except BaseException:
                    places.release()
                    raise
        except TimeoutError as error:
            raise AcquirerUnknownError("timeout", "no connection in time") from error

    async def _connect(self, address: Address) -> _Connection:
        if address.is_tls and self._tls is None:
            self._tls = ssl.create_default_context()
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                _Connection, address.host, address.port, ssl=self._tls if address.is_tls else None
            )
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            raise AcquirerUnknownError("refused", str(error)) from error
        return connection

    def _take(self, address: Address) -> _Connection | None:
        """Give the connection that was used last, so that those that are not needed grow old."""
        connections = self._idle.get(address)
        while connections:
            connection = connections.pop()
            if connection.is_usable and time.monotonic() - connection.idle_since < limits.ACQUIRER_KEEP_ALIVE_S:
                return connection
            connection.abort()
        return None

    def _give_back(self, address: Address, connection: _Connection) -> None:
        if self.is_closed or not connection.is_usable:
            connection.abort()
            return
        connection.idle_since = time.monotonic()
        connections = self._idle.setdefault(address, deque())
        connections.append(connection)
        while connections and connection.idle_since - connections[0].idle_since > limits.ACQUIRER_KEEP_ALIVE_S:
            connections.popleft().abort()
