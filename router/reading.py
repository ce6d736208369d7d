"""Reads what a request holds: head, body, query string, idempotency key. What is bad becomes a ProblemError.

Nothing is asked of a cell here, and nothing of what a client sent but names of fields goes into a problem.
"""

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

import orjson
from pydantic import BaseModel, ValidationError

from cells.api import card_data
from listeners.shares import Shares
from router import limits, problems
from router.problems import EdgeCode, ProblemError

Receive = Callable[[], Awaitable[Any]]
Model = TypeVar("Model", bound=BaseModel)

_NAMES: Final = frozenset(
    {
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"host",
        b"idempotency-key",
        b"transfer-encoding",
    }
)
_NONE: Final[tuple[bytes, ...]] = ()
_JSON: Final = re.compile(rb'application/json[ \t]*(?:;[ \t]*charset[ \t]*=[ \t]*"?utf-8"?[ \t]*)?', re.IGNORECASE)


class Head:
    """The headers that the router looks at, found in one pass. `size`: bytes of the whole head."""

    __slots__ = ("found", "size")

    def __init__(self, scope: Any) -> None:
        size = len(scope["raw_path"]) + len(scope["query_string"])
        found: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            size += len(name) + len(value) + 4
            if name in _NAMES:
                found.setdefault(name, []).append(value)
        self.size = size
        self.found = found

    def values(self, name: bytes) -> list[bytes] | tuple[bytes, ...]:
        """Give each value of the header, in the order they came."""
        return self.found.get(name, _NONE)

    def is_of(self, http_version: str) -> bool:
        """Whether it is a head of HTTP/1.1, which names one Host (RFC 9112, 3.2), or of HTTP/1.0 (6.1)."""
        hosts = len(self.values(b"host"))
        if http_version == "1.1":
            return hosts == 1
        # Chunks came with 1.1: whoever sends them with 1.0 and whoever passed them on may not mean the same bytes.
        return http_version == "1.0" and hosts <= 1 and b"transfer-encoding" not in self.found

    @property
    def announces_body(self) -> bool:
        """Whether a body of more than no bytes is on its way."""
        return b"transfer-encoding" in self.found or any(v.strip(b"0") for v in self.values(b"content-length"))

    @property
    def is_body_too_large(self) -> bool:
        """Whether the body is announced to be more than BODY_BYTES_MAX; a chunked one announces nothing."""
        announced = self.announced_bytes
        return announced is not None and announced > limits.BODY_BYTES_MAX

    @property
    def announced_bytes(self) -> int | None:
        """How long the body is announced to be; None where nothing announces it, or it comes in chunks."""
        lengths = self.values(b"content-length")
        if b"transfer-encoding" in self.found or not lengths:
            return None
        # The server takes one Content-Length of digits only.
        return int(lengths[0][:20]) if len(lengths) == 1 and lengths[0].isdigit() else limits.BODY_BYTES_MAX + 1

    @property
    def expected_bytes(self) -> int:
        """How long the body may be, as far as the head tells: nothing, what it announces, or BODY_BYTES_MAX."""
        announced = self.announced_bytes
        if announced is None:
            return limits.BODY_BYTES_MAX if b"transfer-encoding" in self.found else 0
        return min(announced, limits.BODY_BYTES_MAX)


def check_content_type(head: Head) -> None:
    """Let pass application/json in UTF-8, not compressed. Raises ProblemError (415)."""
    types = head.values(b"content-type")
    if len(types) != 1 or _JSON.fullmatch(types[0].strip()) is None:
        raise problems.fail(
            EdgeCode.UNSUPPORTED_MEDIA_TYPE,
            "Send the body as application/json.",
            headers={"accept-post": "application/json"},
        )
    if head.values(b"content-encoding"):
        raise problems.fail(EdgeCode.UNSUPPORTED_MEDIA_TYPE, "Send the body without Content-Encoding.")


async def read_body(head: Head, receive: Receive, awaited: Shares, holder: str) -> bytes:
    """Read the body, of at most BODY_BYTES_MAX, within BODY_TIMEOUT_MS. Raises ProblemError (400, 408, 413, 429).

    One that has not come whole is waited for in a place of its holder.
    """
    if head.is_body_too_large:
        raise _too_large()
    # Nearly always the server has the whole body already (uvicorn's cycle says so): nothing will be waited for.
    if not getattr(getattr(receive, "__self__", None), "more_body", True):
        return await _receive_all(receive)
    place = awaited.place(holder)
    if place is None:
        raise problems.fail(
            EdgeCode.TOO_MANY_SLOW_BODIES,
            "As many bodies are awaited as may be. Send head and body together, or try again.",
            headers={"connection": "close"},
            retry_after_ms=limits.RETRY_AFTER_DEFAULT_MS,
        )
    try:
        with place:
            async with asyncio.timeout(limits.BODY_TIMEOUT_MS / 1000):
                body = await _receive_all(receive)
    except TimeoutError as error:
        raise problems.fail(
            EdgeCode.BODY_TIMEOUT,
            f"The body did not arrive within {limits.BODY_TIMEOUT_MS} ms.",
            headers={"connection": "close"},
        ) from error
    if head.announced_bytes not in (None, len(body)):
        # Never so with this server; but a body that got lost must not be taken for an empty one.
        raise problems.fail(EdgeCode.BODY_INVALID, "The body is not as long as it was announced to be.")
    return body


async def _receive_all(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise problems.fail(EdgeCode.BODY_INVALID, "The connection ended before the body did.")
        body += message.get("body", b"")
        if len(body) > limits.BODY_BYTES_MAX:
            raise _too_large()
        if not message.get("more_body", False):
            return bytes(body)


def parse_json(body: bytes) -> tuple[dict[str, Any], bytes]:
    """Give the JSON object and its canonical bytes (sorted keys). Raises ProblemError (400, 422).

    Strict RFC 8259: no NaN, no lone surrogates, UTF-8 only, nesting bounded. A card number anywhere in it, in names,
    strings or numbers, ends it here, before any problem could repeat a field's name.
    """
    try:
        parsed = orjson.loads(body)
        _require_few_values(parsed)
        canonical = orjson.dumps(parsed, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONDecodeError as error:
        # The position is safe to tell; the parser's words may quote the body.
        raise problems.fail(
            EdgeCode.BODY_INVALID, f"The body is no valid JSON (RFC 8259) at line {error.lineno}, column {error.colno}."
        ) from None
    except (orjson.JSONEncodeError, RecursionError):
        raise problems.fail(EdgeCode.BODY_INVALID, "The body is nested too deeply.") from None
    refuse_card_data(parsed)
    if not isinstance(parsed, dict):
        raise problems.fail(EdgeCode.VALIDATION_FAILED, "The body is not a JSON object.", pointer="")
    return parsed, canonical


def _require_few_values(parsed: Any) -> None:
    """Refuse more values than any body has that can be right: what follows costs by the value. Raises ProblemError."""
    left = limits.BODY_VALUES_MAX
    nested = [parsed]
    while nested:
        one = nested.pop()
        left -= len(one) if type(one) in (dict, list) else 1
        if left < 0:
            # No name of a field is told: what looks like a card number was not looked for.
            raise problems.fail(
                EdgeCode.VALIDATION_FAILED, f"The body has more than {limits.BODY_VALUES_MAX} fields and values."
            )
        if type(one) is dict:
            nested += [value for value in one.values() if type(value) in (dict, list)]
        elif type(one) is list:
            nested += [value for value in one if type(value) in (dict, list)]


def validate_body(model: type[Model], fields: dict[str, Any]) -> Model:
    """Hold the body's fields against the model. Raises ProblemError (422) that lists what is wrong."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise _invalid(error, "pointer") from None


def read_query(model: type[Model], query_string: bytes) -> Model:
    """Read the query string by the model. Raises ProblemError (422): unknown, repeated or unreadable parameters too."""
    fields: dict[str, str] = {}
    if query_string:
        try:
            pairs = parse_qsl(
                query_string.decode("ascii"),
                keep_blank_values=True,
                errors="strict",
                max_num_fields=limits.QUERY_PARAMETERS_MAX,
            )
        except ValueError:
            raise problems.fail(EdgeCode.VALIDATION_FAILED, "The query string can't be read.") from None
        for name, value in pairs:
            refuse_card_data({name: value}, "parameter")
            if name in fields:
                raise problems.fail(
                    EdgeCode.VALIDATION_FAILED,
                    "A query parameter is there more than once.",
                    errors=({"parameter": _shortened(name), "detail": "is there more than once"},),
                )
            fields[name] = value
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise _invalid(error, "parameter") from None


def fingerprint(method: str, path: str, canonical_body: bytes) -> bytes:
    """Give the digest that tells the same request from another one under the same idempotency key."""
    return hashlib.sha256(b"\n".join((method.encode(), path.encode(), canonical_body))).digest()


def refuse_card_data(value: Any, place: str = "pointer") -> None:
    """Refuse a JSON value that holds card data, unlogged. Raises ProblemError (422), which names the field.

    `place`: what the field is in, `pointer` (a body), `parameter` (a query string) or `header`.
    """
    found = card_data.find(value)
    if found is None:
        return
    detail = f"holds what looks like {found.kind.value}"
    if place == "pointer":
        where = {"pointer": _pointer(found.steps)}
    else:
        # One whose own name is a card number is not named.
        where = {place: _shortened(str(found.steps[0]))} if found.steps else {}
    raise problems.fail(
        EdgeCode.CARD_DATA_REFUSED,
        f"The request {detail}. It was not kept. Send a token instead.",
        pointer=where.get("pointer"),
        errors=({**where, "detail": detail},),
    )


def _too_large() -> ProblemError:
    return problems.fail(EdgeCode.BODY_TOO_LARGE, f"A body has at most {limits.BODY_BYTES_MAX} bytes.")


def _invalid(error: ValidationError, place: str) -> ProblemError:
    """Name what is wrong and where; the values themselves are left out."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    errors = tuple(
        {
            place: _pointer(entry["loc"]) if place == "pointer" else _shortened(str(entry["loc"][0])),
            "detail": entry["msg"].removeprefix("Value error, "),
        }
        for entry in found[: limits.PROBLEM_ERRORS_MAX]
    )
    more = len(found) - len(errors)
    detail = f"{len(found)} of its parts are wrong." if len(found) > 1 else "One of its parts is wrong."
    if more:
        detail += f" The first {len(errors)} are listed."
    return problems.fail(EdgeCode.VALIDATION_FAILED, detail, pointer=errors[0].get("pointer"), errors=errors)


def _pointer(location: tuple[int | str, ...]) -> str:
    """Give the JSON pointer (RFC 6901). pydantic marks a map's bad name by a last step `[key]`: left out."""
    steps = location[:-1] if location and location[-1] == "[key]" else location
    return _shortened("".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps))


def _shortened(name: str) -> str:
    bound = limits.PROBLEM_POINTER_CHARACTERS_MAX
    return name if len(name) <= bound else f"{name[:bound]}..."
