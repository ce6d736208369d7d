"""The bounds that uvicorn does not have: connections, unfinished heads, pipelines, unread answers, unwanted bodies.

What ends here was no request yet: its answer is a problem without a request's id. While a request of the connection is
under way nothing is written beside its answer, which would be taken for it: the connection is dropped.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final, Protocol

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from listeners import limits, refusals
from listeners.shares import Place, Shares, network_of

# Where the ASGI scope has the connection itself, so that an application may hold it.
CONNECTION: Final = "bulkhead.connection"
_UPGRADES: Final = frozenset({b"upgrade", b"http2-settings"})


class Guard(Protocol):
    """What is asked about a head before a request is made of it."""

    def refusal(
        self, address: str, method: str, path: bytes, headers: Sequence[tuple[bytes, bytes]]
    ) -> tuple[bytes, bytes] | None:
        """Return head and body of a refusal; None where the request is to be served."""


class _EndedError(Exception):
    """Ends the parsing of what was read: the connection has ended, and its sender may have sent much more."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with an end to what a peer may begin and not finish."""

    _is_in_head = True
    _is_in_body = False
    _bytes = 0  # of the unfinished head, or discarded of the unwanted body
    _parsed = 0  # bytes of the part that is parsed now
    _begun = 0  # requests that began in what was read last
    _refusal: bytes | None = None  # what the request at hand is answered with once it is whole, by the guard
    _timer: asyncio.TimerHandle | None = None
    _unread_timer: asyncio.TimerHandle | None = None
    _place: Place | None = None  # among the listener's connections
    _hold_ms = 0  # after the answer at hand nothing is read for so long
    _hold_timer: asyncio.TimerHandle | None = None

    def __init__(self, *, shares: Shares, guard: Guard | None = None, **rest: Any) -> None:
        super().__init__(**rest)
        self._shares = shares
        self._guard = guard

    def connection_made(self, transport: Any) -> None:
        """Refuse the connection, or await its first head."""
        super().connection_made(transport)
        self._place = self._shares.place(network_of(self.client[0]) if self.client else "")
        if self._place is None:
            self._end(refusals.TOO_MANY)
            return
        self._limit(limits.HEAD_TIMEOUT_MS, refusals.HEAD_TOO_SLOW)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers, and give the place back."""
        if self._place is not None:
            self._place.give_back()
        self._stop_timer()
        self._stop_unread_timer()
        if self._hold_timer is not None:
            self._hold_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came; a request that comes whole costs no more than in uvicorn's own protocol."""
        if self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self._begun = 0
        if len(data) <= limits.PARSED_BYTES_MAX:
            self._take(data)
            return
        for start in range(0, len(data), limits.PARSED_BYTES_MAX):
            self._take(data[start : start + limits.PARSED_BYTES_MAX])
            if self.transport.is_closing():
                return

    def _take(self, part: bytes) -> None:
        self._parsed = len(part)
        self._parse(part)
        if self.transport.is_closing():
            return
        if self._is_in_head:
            # A head has begun and is not whole. (One that came whole is small: the edge measures it.)
            self._bytes += len(part)
            if self._bytes > limits.HEAD_BYTES_MAX:
                self._end(refusals.HEAD_TOO_LARGE)
            else:
                self._limit(limits.HEAD_TIMEOUT_MS, refusals.HEAD_TOO_SLOW)
        elif self._is_in_body:
            if self._refusal is not None or self.cycle.response_complete:
                # Answered already, or refused, and still sending: it is thrown away.
                self._bytes += len(part)
                if self._bytes > limits.DISCARDED_BYTES_MAX:
                    self._end()
                else:
                    self._limit(limits.DISCARD_TIMEOUT_MS)
        elif self._is_idle and self.timeout_keep_alive_task is None:
            # Empty lines between requests are no head, but they have ended the wait for one.
            self._limit(limits.HEAD_TIMEOUT_MS, refusals.HEAD_TOO_SLOW)

    def _parse(self, part: bytes) -> None:
        """Parse; what a head that wishes for another protocol leaves over is parsed again behind that head.

        A loop, not a recursion: one read holds thousands of such heads. The bound on pipelines ends it.
        """
        rest: bytes | None = part
        while rest is not None:
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                rest = None if self.transport.is_closing() else self._without_upgrade(rest[upgrade.args[0] :])
            except httptools.HttpParserError:
                if not self.transport.is_closing():  # ended by a bound, inside of the parser
                    self.send_400_response("")
                return
            else:
                return

    def _without_upgrade(self, rest: bytes) -> bytes | None:
        """Return the request's head again without its wish for another protocol, and what came behind it.

        The wish may be ignored (RFC 9110, 7.8). The parser ends such a request with its head: its body would be lost,
        and a refund of a part be one of all. Java's HttpClient wishes for h2c with each connection's first request.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self.send_400_response("")
            return None
        lines = [b"%s %s HTTP/%s" % (method, self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                value = b",".join(t for t in value.split(b",") if t.strip().lower() not in _UPGRADES)  # noqa: PLW2901
            if name not in _UPGRADES:
                lines.append(name + b": " + value)
        self.parser = httptools.HttpRequestParser(self)
        self._begun -= 1  # it is the same request
        return b"\r\n".join(lines) + b"\r\n\r\n" + rest

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's words are for its log
        """Answer what is no request as everything else is answered, by a problem."""
        self._end(refusals.MALFORMED)

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
        """Note that a head begins; so many in one read that none of them could wait in the pipeline end it."""
        self._is_in_head = True
        self._bytes = -self._parsed  # the part in which a head begins may be a body's, too
        self._begun += 1
        if self._begun > limits.PIPELINED_REQUESTS_MAX + 1:
            self._end()
            raise _EndedError
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a line of a head, or one behind a chunked body; so many end the connection."""
        if len(self.headers) >= limits.HEAD_LINES_MAX:
            self._end(refusals.HEAD_TOO_LARGE if self._is_in_head else b"")
            raise _EndedError
        super().on_header(name, value)

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
            raise _EndedError

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
        self._hold_ms = min(ms, limits.HOLD_MS_MAX)

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
