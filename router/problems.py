"""Problem details for HTTP (RFC 9457): one total table from every code to its status and title. No flow goes in.

`type` is a name that never changes (`urn:bulkhead:problem:<code>`), `code` the same without its prefix. What a client
sent is never repeated in a problem, but for the names of fields.
"""

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import orjson
from starlette.responses import Response

from cells.api.messages import RateState, Refusal, RefusalCode, Refused
from router import limits

MEDIA_TYPE: Final = "application/problem+json"


class EdgeCode(StrEnum):
    """What the router itself refuses, before a cell is asked."""

    REQUEST_MALFORMED = "request_malformed"
    HEAD_TOO_LARGE = "head_too_large"
    HEAD_TIMEOUT = "head_timeout"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    NOT_READY = "not_ready"
    AUTHORIZATION_MALFORMED = "authorization_malformed"
    UNAUTHORIZED = "unauthorized"
    TOO_MANY_FAILED_AUTHENTICATIONS = "too_many_failed_authentications"
    CPU_BUDGET_EXHAUSTED = "cpu_budget_exhausted"
    TOO_MANY_READS = "too_many_reads"
    SIGNATURE_INVALID = "signature_invalid"
    OVERLOADED = "overloaded"
    TOO_MANY_SLOW_BODIES = "too_many_slow_bodies"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    BODY_TOO_LARGE = "body_too_large"
    BODY_TIMEOUT = "body_timeout"
    BODY_INVALID = "body_invalid"
    IDEMPOTENCY_KEY_INVALID = "idempotency_key_invalid"
    CARD_DATA_REFUSED = "card_data_refused"
    VALIDATION_FAILED = "validation_failed"


@dataclass(frozen=True, slots=True)
class Kind:
    """How a code is told over HTTP."""

    status: int
    title: str


KINDS: Final[dict[RefusalCode | EdgeCode, Kind]] = {
    EdgeCode.REQUEST_MALFORMED: Kind(400, "The request is not HTTP"),
    EdgeCode.HEAD_TIMEOUT: Kind(408, "The request's head did not arrive in time"),
    EdgeCode.HEAD_TOO_LARGE: Kind(431, "The request's head is too large"),
    EdgeCode.NOT_FOUND: Kind(404, "There is nothing at this path"),
    EdgeCode.METHOD_NOT_ALLOWED: Kind(405, "The method is not allowed at this path"),
    EdgeCode.NOT_READY: Kind(503, "The gateway is starting"),
    EdgeCode.AUTHORIZATION_MALFORMED: Kind(400, "The Authorization header can't be read"),
    EdgeCode.UNAUTHORIZED: Kind(401, "A valid API key is needed"),
    EdgeCode.TOO_MANY_FAILED_AUTHENTICATIONS: Kind(429, "Too many API keys that are not valid"),
    EdgeCode.CPU_BUDGET_EXHAUSTED: Kind(429, "The partner's requests cost too much"),
    EdgeCode.TOO_MANY_READS: Kind(429, "Too many reads"),
    EdgeCode.SIGNATURE_INVALID: Kind(401, "A valid signature is needed"),
    EdgeCode.OVERLOADED: Kind(503, "The gateway has too much to do"),
    EdgeCode.TOO_MANY_SLOW_BODIES: Kind(429, "Too many bodies are awaited"),
    EdgeCode.UNSUPPORTED_MEDIA_TYPE: Kind(415, "The body is not application/json"),
    EdgeCode.BODY_TOO_LARGE: Kind(413, "The body is too large"),
    EdgeCode.BODY_TIMEOUT: Kind(408, "The body did not arrive in time"),
    EdgeCode.BODY_INVALID: Kind(400, "The body is not JSON"),
    EdgeCode.IDEMPOTENCY_KEY_INVALID: Kind(400, "The Idempotency-Key can't be used"),
    EdgeCode.CARD_DATA_REFUSED: Kind(422, "Card data is not accepted here"),
    EdgeCode.VALIDATION_FAILED: Kind(422, "The request does not have the form it should have"),
    RefusalCode.PARTNER_MOVED: Kind(503, "The partner is being moved"),
    RefusalCode.PARTNER_QUARANTINED: Kind(503, "The partner is quarantined"),
    RefusalCode.PARTNER_SUSPENDED: Kind(403, "The partner is suspended"),
    RefusalCode.IDEMPOTENCY_KEY_REUSED: Kind(422, "The idempotency key was used for another request"),
    RefusalCode.IDEMPOTENCY_KEY_IN_USE: Kind(409, "The first request with this idempotency key is still open"),
    RefusalCode.CURRENCY_UNKNOWN: Kind(422, "The currency is not known"),
    RefusalCode.CURRENCY_NOT_ACCEPTED: Kind(422, "The partner takes no payments in this currency"),
    RefusalCode.AMOUNT_INVALID: Kind(422, "The amount can't be used"),
    RefusalCode.CURSOR_INVALID: Kind(422, "The page can't start there"),
    RefusalCode.PAYMENT_NOT_FOUND: Kind(404, "There is no such payment"),
    RefusalCode.REFUND_NOT_FOUND: Kind(404, "There is no such refund"),
    RefusalCode.OPERATION_NOT_FOUND: Kind(404, "There is no such operation"),
    RefusalCode.PAYMENT_PROCESSING: Kind(409, "The payment is still being processed"),
    RefusalCode.PAYMENT_STATE_INVALID: Kind(409, "The payment's state does not allow this"),
    RefusalCode.OPERATION_FINAL: Kind(409, "The operation is final"),
    RefusalCode.OPERATION_STILL_PURSUED: Kind(409, "The acquirer is still being asked for the operation"),
    RefusalCode.TOO_MANY_OPERATIONS: Kind(409, "The payment has as many operations as it may have"),
    RefusalCode.AMOUNT_TOO_LARGE: Kind(422, "The amount is larger than what is left"),
    RefusalCode.RATE_LIMITED: Kind(429, "Too many requests"),
    RefusalCode.TOO_MANY_IN_FLIGHT: Kind(429, "Too many requests at once"),
    RefusalCode.MAILBOX_FULL: Kind(429, "Too many requests are waiting"),
    RefusalCode.CELL_OVERLOADED: Kind(503, "The partner's cell has too much to do"),
    RefusalCode.WORKER_OVERLOADED: Kind(503, "The partner's worker has too much to do"),
    RefusalCode.ACQUIRER_UNAVAILABLE: Kind(503, "The acquirer does not answer"),
    RefusalCode.COMMAND_TOO_LARGE: Kind(413, "The request is too large to be kept"),
    RefusalCode.COMMAND_QUARANTINED: Kind(500, "The request was set aside"),
    RefusalCode.PARTNER_UNAVAILABLE: Kind(503, "The partner can't be served now"),
    RefusalCode.OUTCOME_UNKNOWN: Kind(503, "The outcome is not known yet"),
    RefusalCode.INTERNAL_ERROR: Kind(500, "Something is broken at our side"),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One answer that is a problem. `errors` has maps with `pointer`, `parameter` or `header`, and `detail`."""

    code: RefusalCode | EdgeCode
    detail: str
    pointer: str | None = None
    errors: tuple[dict[str, str], ...] = ()
    retry_after_ms: int | None = None
    context: dict[str, str | int] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    rate: RateState | None = None

    @property
    def kind(self) -> Kind:
        """The status and title of its code."""
        return KINDS[self.code]


class ProblemError(Exception):
    """Ends the handling of a request with a problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.code)
        self.problem = problem


def fail(code: RefusalCode | EdgeCode, detail: str, **rest: Any) -> ProblemError:
    """Give the exception to raise; `rest` are fields of Problem."""
    return ProblemError(Problem(code, detail, **rest))


def of_refused(refused: Refused) -> Problem:
    """Give the problem that a cell's refusal is."""
    refusal: Refusal = refused.refusal
    return Problem(
        refusal.code,
        refusal.detail,
        pointer=refusal.pointer,
        retry_after_ms=refusal.retry_after_ms,
        context=refusal.context,
        rate=refused.rate,
    )


def type_of(code: RefusalCode | EdgeCode) -> str:
    """Give the stable URI of a code."""
    return f"urn:bulkhead:problem:{code.value}"


def respond(problem: Problem, request_id: str) -> Response:
    """Render the problem. A 429 and a 503 always carry Retry-After, in whole seconds (RFC 9110, 10.2.3)."""
    kind = problem.kind
    body: dict[str, Any] = {
        "type": type_of(problem.code),
        "title": kind.title,
        "status": kind.status,
        "detail": problem.detail,
        "code": problem.code.value,
        "request_id": request_id,
    }
    if problem.pointer is not None:
        body["pointer"] = problem.pointer
    if problem.errors:
        body["errors"] = problem.errors
    if problem.context:
        body["context"] = problem.context
    headers = dict(problem.headers)
    retry_after_ms = problem.retry_after_ms
    if retry_after_ms is None and kind.status in (429, 503):
        retry_after_ms = limits.RETRY_AFTER_DEFAULT_MS
    if retry_after_ms is not None:
        body["retry_after_ms"] = retry_after_ms
        headers["retry-after"] = str(max(1, math.ceil(retry_after_ms / 1000)))
    if problem.rate is not None:
        headers.update(rate_headers(problem.rate))
    return Response(orjson.dumps(body), kind.status, headers, MEDIA_TYPE)


def rate_headers(rate: RateState, policy: str = "default") -> dict[str, str]:
    """Tell the rate limit as draft-ietf-httpapi-ratelimit-headers-10 has it: structured fields (RFC 9651).

    The quota is what may come at once (`q`), its window the time in which all of it comes again (`w`); `t` is the
    time until it is whole.
    """
    window_s = max(1, math.ceil(rate.burst / max(1, rate.per_second)))
    return {
        "ratelimit-policy": f'"{policy}";q={rate.burst};w={window_s}',
        "ratelimit": f'"{policy}";r={max(0, rate.remaining)};t={max(0, math.ceil(rate.reset_ms / 1000))}',
    }
