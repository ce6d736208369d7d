"""The HTTP server's bounds that uvicorn does not have: connections, unfinished heads, unread answers, unwanted bodies.

What ends here was no request yet: its answer is a problem without a request's id. While a request of the connection is
under way nothing is written beside its answer, which would be taken for it: the connection is dropped.
"""

import asyncio
from http import HTTPStatus
from typing import Any, Final

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from router import limits, problems
from router.edge import CONNECTION
from router.guard import Guard
from router.problems import KINDS, EdgeCode


def _refusal(code: EdgeCode, detail: str) -> bytes:
    kind = KINDS[code]
    fields = {"type": problems.type_of(code), "title": kind.title, "status": kind.status, "detail": detail}
    body = orjson.dumps({**fields, "code": code.value})
    retry_after = "retry-after: 1\r\n" if kind.status == 503 else ""
    head = (
        f"HTTP/1.1 {kind.status} {HTTPStatus(kind.status).phrase}\r\ncontent-type: {problems.MEDIA_TYPE}\r\n"
        f"content-length: {len(body)}\r\n{retry_after}connection: close\r\n\r\n"
    )
    return head.encode() + body


_TOO_MANY: Final = _refusal(EdgeCode.OVERLOADED, "As many connections are open as this gateway lets in. Try again.")
_HEAD_TOO_LARGE: Final = _refusal(
    EdgeCode.HEAD_TOO_LARGE, f"A request's head has at most {limits.HEAD_BYTES_MAX} bytes."
)
_HEAD_TOO_SLOW: Final = _refusal(
    EdgeCode.HEAD_TIMEOUT, f"The request's head did not arrive within {limits.HEAD_TIMEOUT_MS} ms."
)
_MALFORMED: Final = _refusal(EdgeCode.REQUEST_MALFORMED, "This is no HTTP/1.1 request (RFC 9112).")
_UPGRADES: Final = frozenset({b"upgrade", b"http2-settings"})


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with an end to what a peer may begin and not finish."""

    _is_in_head = True
    _is_in_body = False
    _bytes = 0  # of the unfinished head, or discarded of the unwanted body
    _guard: Guard | None = None
    _refusal: bytes | None = None  # what the request at hand is answered with once it is whole, by the guard
    _timer: asyncio.TimerHandle | None = None
    _unread_timer: asyncio.TimerHandle | None = None
    _hold_ms = 0  # after the answer at hand nothing is read for so long
    _hold_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Refuse the connection, or await its first head."""
        super().connection_made(transport)
        if len(self.connections) > limits.CONNECTIONS_MAX:
            self._end(_TOO_MANY)
            return
        self._limit(limits.HEAD_TIMEOUT_MS, _HEAD_TOO_SLOW)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        self._stop_timer()
        self._stop_unread_timer()
        if self._hold_timer is not None:
            self._hold_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came; a request that comes whole costs no more than in uvicorn's own protocol."""
        if self.transport.is_closing():
            return
        self._feed(data)
        if self.transport.is_closing():
            return
        if self._is_in_head:
            # A head has begun and is not whole. (One that came whole is measured by the edge.)
            self._bytes += len(data)
            if self._bytes > limits.HEAD_BYTES_MAX:
                self._end(_HEAD_TOO_LARGE)
            else:
                self._limit(limits.HEAD_TIMEOUT_MS, _HEAD_TOO_SLOW)
        elif self._is_in_body:
            if len(self.headers) > limits.HEAD_LINES_MAX:
                self._end()  # lines without an end, behind a chunked body
            elif self._refusal is not None or self.cycle.response_complete:
                # Answered already, or refused, and still sending: it is thrown away.
                self._bytes += len(data)
                if self._bytes > limits.DISCARDED_BYTES_MAX:
                    self._end()
                else:
                    self._limit(limits.BODY_TIMEOUT_MS)
        elif self._is_idle and self.timeout_keep_alive_task is None:
            # Empty lines between requests are no head, but they have ended the wait for one.
            self._limit(limits.HEAD_TIMEOUT_MS, _HEAD_TOO_SLOW)

    def _feed(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.send_400_response("")
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Read the request again without its wish for another protocol, which we may ignore (RFC 9110, 7.8).

        The parser ends such a request with its head: its body would be lost, and a refund of a part be one of all.
        Java's HttpClient wishes for h2c with each connection's first request.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self.send_400_response("")
            return
        lines = [b"%s %s HTTP/%s" % (method, self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                value = b",".join(t for t in value.split(b",") if t.strip().lower() not in _UPGRADES)  # noqa: PLW2901
            if name not in _UPGRADES:
                lines.append(name + b": " + value)
        self.parser = httptools.HttpRequestParser(self)
        self._feed(b"\r\n".join(lines) + b"\r\n\r\n" + rest)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's words are for its log
        """Answer what is no request as everything else is answered, by a problem."""
        self._end(_MALFORMED)

    def pause_writing(self) -> None:
        """Note that the peer does not read; it gets a while to begin."""
        super().pause_writing()
        self._abort_later()

    def resume_writing(self) -> None:
        """Note that it does."""
        self._stop_unread_timer()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """End an idle connection; what its peer never read is not waited for."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        super().timeout_keep_alive_handler()

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
        if self.transport.is_closing() or self.parser.should_upgrade():
            return
        if self._guard is not None and self._is_refused(self._guard):
            return
        self.scope[CONNECTION] = self  # type: ignore[typeddict-unknown-key]
        super().on_headers_complete()
        if len(self.pipeline) > limits.PIPELINED_REQUESTS_MAX:
            self._end()

    def on_message_complete(self) -> None:
        """Note that the request is whole. What comes next, if anything, is a head; keep-alive has its own time."""
        self._is_in_body = False
        self._stop_timer()
        if self._refusal is not None:
            self._refuse(self._refusal)
        elif not self.parser.should_upgrade():
            super().on_message_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body; of a request that is refused nobody wants it."""
        if self._refusal is None:
            super().on_body(body)

    def _is_refused(self, guard: Guard) -> bool:
        """Ask the guard about the head that is whole.

        Where another request is under way, or its client waits for "100 Continue", it is refused as ever: as a request.
        """
        if self.client is None or self.expect_100_continue or not self._is_idle or self.pipeline:
            return False
        method = self.parser.get_method().decode("ascii")
        refusal = guard.refusal(self.client[0], method, self.url, self.headers)
        if refusal is None:
            return False
        head, body = refusal
        lines = b"".join(b"%b: %b\r\n" % line for line in self.server_state.default_headers)
        ends = b"" if self.parser.should_keep_alive() else b"connection: close\r\n"
        self._refusal = head + lines + ends + b"\r\n" + (b"" if method == "HEAD" else body)
        return True

    def _refuse(self, refusal: bytes) -> None:
        """Answer what the guard refused, and go on to the next head; who does not read gets nothing more."""
        self._refusal = None
        self.server_state.total_requests += 1
        if self.flow.write_paused:
            self.transport.abort()
            return
        self.transport.write(refusal)
        if not self.parser.should_keep_alive():
            self._end()
            return
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def hold(self, ms: int) -> None:
        """Read nothing for so long once the answer at hand is out; requests that came in a row with it end with it."""
        self._hold_ms = min(ms, limits.BUDGET_WAIT_MS_MAX)

    def on_response_complete(self) -> None:
        """End a connection whose peer waits for "100 Continue" in vain: it may send the body now, or the next head."""
        if self._hold_ms and self.pipeline:
            self._end()
        super().on_response_complete()
        if self._is_in_body and self.expect_100_continue:
            self._end()
        elif self.transport.is_closing():
            self._abort_later()
        elif self._hold_ms:
            self.flow.pause_reading()
            self._hold_timer = self.loop.call_later(self._hold_ms / 1000, self.flow.resume_reading)
            self._hold_ms = 0

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    @property
    def _may_answer(self) -> bool:
        """Whether what is written now can be taken for nothing else: no other request of the connection is open.

        One whose body is not whole has done nothing yet.
        """
        return self._is_idle or (self._is_in_body and not self.pipeline and not self.cycle.response_started)

    def _limit(self, ms: int, answer: bytes = b"") -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(ms / 1000, self._end, answer)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _abort_later(self) -> None:
        """Give the peer a while to read what is left; a transport that is closing would wait for it for ever."""
        if self._unread_timer is None and self.transport.get_write_buffer_size():
            self._unread_timer = self.loop.call_later(limits.ANSWER_TIMEOUT_MS / 1000, self.transport.abort)

    def _stop_unread_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _end(self, answer: bytes = b"") -> None:
        self._stop_timer()
        if not self.transport.is_closing():
            if answer and self._may_answer:
                self.transport.write(answer)
            self.transport.close()
            self._abort_later()


def guarded(guard: Guard | None) -> type[BoundedProtocol]:
    """Give the protocol, with a guard that every connection asks."""
    return type("GuardedProtocol", (BoundedProtocol,), {"_guard": guard})
