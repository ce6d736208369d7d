"""What a connection is answered that brought no request: problem details (RFC 9457) without a request's id.

The names and titles are those of the router's own problems, whichever listener it is; a test holds them together.
"""

import json
from http import HTTPStatus
from typing import Final

from listeners import limits


def _refusal(code: str, status: int, title: str, detail: str) -> bytes:
    fields = {"type": f"urn:bulkhead:problem:{code}", "title": title, "status": status, "detail": detail, "code": code}
    body = json.dumps(fields, separators=(",", ":")).encode()
    retry_after = "retry-after: 1\r\n" if status == HTTPStatus.SERVICE_UNAVAILABLE else ""
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/problem+json\r\n"
        f"content-length: {len(body)}\r\n{retry_after}connection: close\r\n\r\n"
    )
    return head.encode() + body


TOO_MANY: Final = _refusal(
    "overloaded",
    503,
    "The gateway has too much to do",
    "As many connections are open as this gateway lets in. Try again.",
)
HEAD_TOO_LARGE: Final = _refusal(
    "head_too_large",
    431,
    "The request's head is too large",
    f"A request's head has at most {limits.HEAD_BYTES_MAX} bytes and {limits.HEAD_LINES_MAX} lines.",
)
HEAD_TOO_SLOW: Final = _refusal(
    "head_timeout",
    408,
    "The request's head did not arrive in time",
    f"The request's head did not arrive within {limits.HEAD_TIMEOUT_MS} ms.",
)
MALFORMED: Final = _refusal(
    "request_malformed", 400, "The request is not HTTP", "This is no HTTP/1.1 request (RFC 9112)."
)
