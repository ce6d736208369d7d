"""The HTTP server's bounds that uvicorn does not have: connections, unfinished heads, bodies that nobody wants."""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from router import limits


def _refusal(status: str, code: str) -> bytes:
    body = f'{{"type":"urn:bulkhead:problem:{code}","title":"{status[4:]}","status":{status[:3]},"code":"{code}"}}'
    return (
        f"HTTP/1.1 {status}\r\ncontent-type: application/problem+json\r\ncontent-length: {len(body)}\r\n"
        f"retry-after: 1\r\nconnection: close\r\n\r\n{body}"
    ).encode()


_TOO_MANY: Final = _refusal("503 Service Unavailable", "overloaded")
_HEAD_TOO_LARGE: Final = _refusal("431 Request Header Fields Too Large", "head_too_large")
_HEAD_TOO_SLOW: Final = _refusal("408 Request Timeout", "head_timeout")


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with an end to what a peer may begin and not finish."""

    _is_in_head = True
    _is_in_body = False
    _bytes = 0  # of the unfinished head, or discarded of the unwanted body
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Refuse the connection, or await its first head."""
        super().connection_made(transport)
        if len(self.connections) > limits.CONNECTIONS_MAX:
            self._end(_TOO_MANY)
            return
        self._limit(limits.HEAD_TIMEOUT_MS, _HEAD_TOO_SLOW)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came; a request that comes whole costs no more than in uvicorn's own protocol."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._is_in_head:
            # A head has begun and is not whole. (One that came whole is measured by the edge.)
            self._bytes += len(data)
            if self._bytes > limits.HEAD_BYTES_MAX:
                self._end(_HEAD_TOO_LARGE)
            else:
                self._limit(limits.HEAD_TIMEOUT_MS, _HEAD_TOO_SLOW)
        elif self._is_in_body and self.cycle.response_complete:
            # Answered already, and still sending: uvicorn throws it away.
            self._bytes += len(data)
            if self._bytes > limits.DISCARDED_BYTES_MAX:
                self._end()
            else:
                self._limit(limits.BODY_TIMEOUT_MS)

    def on_message_begin(self) -> None:
        """Note that a head begins."""
        self._is_in_head = True
        self._bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Note that the head is whole."""
        self._is_in_head = False
        self._is_in_body = True
        self._bytes = 0
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note that the request is whole. What comes next, if anything, is a head; keep-alive has its own time."""
        self._is_in_body = False
        self._stop_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """End a connection whose peer waits for "100 Continue" in vain: it may send the body now, or the next head."""
        super().on_response_complete()
        if self._is_in_body and self.expect_100_continue:
            self._end()

    def _limit(self, ms: int, answer: bytes = b"") -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(ms / 1000, self._end, answer)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self, answer: bytes = b"") -> None:
        self._stop_timer()
        if not self.transport.is_closing():
            if answer:
                self.transport.write(answer)
            self.transport.close()
