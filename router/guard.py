"""Turns bad keys away before a request is made of them, once too many came from their address. Knows no connection.

What a refusal costs is then the reading of its head and one look at its key: no routing, no task, no body, no problem
built field by field. A good key is never turned away, whatever came from its address before.
"""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final, Protocol

from cells.api.ids import new_ulid
from cells.api.log_budget import LogBudget
from router import keys, problems
from router.directory import Directory, Partner
from router.failed_authentications import FailedAuthentications
from router.failed_keys import FailedKeys
from router.metrics import Metrics
from router.problems import KINDS, EdgeCode, Problem, ProblemError

_CODE: Final = EdgeCode.TOO_MANY_FAILED_AUTHENTICATIONS
_STATUS: Final = KINDS[_CODE].status
_DETAIL: Final = "Too many API keys that are not valid came from this address. A valid one is still served."
# What partners ask needs a key; what acquirers tell is signed instead, and the process's own pages need none.
_WITH_KEY: Final = b"/v1/"
_SIGNED: Final = b"/v1/acquirers/"


class Watcher(Protocol):
    """Who has the directory."""

    @property
    def current(self) -> Directory | None:
        """The directory that is held, None where there is none yet."""


class Guard:
    """Counts failed authentications, and says what a connection answers past the bound."""

    def __init__(self, watcher: Watcher, pepper: bytes, metrics: Metrics, budget: LogBudget) -> None:
        self._watcher = watcher
        self._pepper = pepper
        self._metrics = metrics
        self._budget = budget
        self.failures = FailedAuthentications()
        self.failed_keys = FailedKeys()

    def note(self, error: keys.UnauthorizedError, request_id: str, address: str) -> Problem | None:
        """Count and log one failure; give the problem that is answered instead where there were too many."""
        self._log(error.reason, error.partner_id, request_id, address)
        wait_ms = self.failures.note(address)
        if wait_ms is None:
            return None
        self._metrics.guesses_limited.inc()
        return Problem(_CODE, _DETAIL, retry_after_ms=wait_ms)

    def refusal(
        self, address: str, method: str, path: bytes, headers: Sequence[tuple[bytes, bytes]]
    ) -> tuple[bytes, bytes] | None:
        """Give head and body of the answer to a bad key past the bound; None where the request is to be served."""
        wait_ms = self.failures.wait_ms(address)
        if wait_ms is None or not path.startswith(_WITH_KEY) or path.startswith(_SIGNED):
            return None
        held = self._watcher.current
        if held is None:
            return None
        try:
            token = keys.read_bearer([value for name, value in headers if name == b"authorization"])
        except keys.UnauthorizedError as error:
            found: tuple[str, Partner] | keys.Stranger = keys.Stranger(error.reason, error.partner_id)
        except ProblemError:
            return None  # no head that can be read: told as ever
        else:
            found = keys.find(token, held, self._pepper, datetime.now(UTC))
        if not isinstance(found, keys.Stranger):
            return None
        request_id = f"req_{new_ulid()}"
        self._log(found.reason, found.partner_id, request_id, address)
        self._metrics.turned_away(method, _STATUS)
        return _answer(request_id, wait_ms)

    def _log(self, reason: str, partner_id: str | None, request_id: str, address: str) -> None:
        self.failed_keys.note(address, partner_id, reason)
        self._budget.warning(
            "authentication_failed", reason=reason, partner=partner_id, request_id=request_id, client=address
        )


def _answer(request_id: str, wait_ms: int) -> tuple[bytes, bytes]:
    """Write the same as `problems.respond` would."""
    body = _BODY % (request_id.encode(), wait_ms)
    return _HEAD % (math.ceil(wait_ms / 1_000), len(body), request_id.encode()), body


def _templates() -> tuple[bytes, bytes]:
    """Take the answer apart that `problems.respond` gives, so that there is one place that knows its form."""
    response = problems.respond(Problem(_CODE, _DETAIL, retry_after_ms=1), "%b")
    body = bytes(response.body).replace(b'"retry_after_ms":1', b'"retry_after_ms":%d')
    assert body.count(b"%") == 2, "a request's id and a time, in this order, and no other sign to be filled in"
    assert body.index(b"%b") < body.index(b"%d")
    phrase = HTTPStatus(_STATUS).phrase
    head = (
        f"HTTP/1.1 {_STATUS} {phrase}\r\ncontent-type: {problems.MEDIA_TYPE}\r\n"
        "retry-after: %d\r\ncontent-length: %d\r\nrequest-id: %b\r\n"
    )
    return head.encode(), body


_HEAD, _BODY = _templates()
