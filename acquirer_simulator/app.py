"""The acquirer over HTTP: operations, closes, the record for audits, faults for one partner. No rules of money go in.

    POST   /operations                       perform an operation (header Idempotency-Key), or learn what became of it
    POST   /operations/{key}/confirm         go on with an operation whose customer came back from the challenge
    POST   /operations/{key}/close           see that nothing is ever performed under the key, or learn what was
    GET    /operations/{key}                 one row of the record
    GET    /operations?partner=&after=&limit=   the record in order of arrival, with `next` for the following page
    GET    /challenges/{key}                 where a customer is sent: a page that says what the token does
    GET    /disputes?partner=&after=&limit=  a partner's disputes as they stand
    GET    /notifications?partner=           a partner's notifications and how far they got
    PUT    /faults/{partner}                 {"mode": hang, refuse, garbage, silent or slow, "delay_ms": for slow}
    DELETE /faults/{partner}                 all is well again (a request that hangs goes on hanging)
    GET    /settlements/{YYYY-MM-DD}.csv?partner=&preliminary=true   a day's settlement file (settlements.py)
    PUT    /settlement-extras/{key}          {"date", "partner", "kind", "amount", "currency", "original_key"}: a row
                                             that nobody performed
    DELETE /settlement-extras/{key}
    GET    /faults, /livez, /metrics

Faults and extra rows are kept in memory only. Faults hold for operations and closes of their partner, never for the
reads.
"""

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any, Final

import orjson
import prometheus_client
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from acquirer_simulator import limits, settlements, tokens
from acquirer_simulator.record import KeyReusedError, KeyUnknownError, Record, RecordUnavailableError, Row
from acquirer_simulator.requests import (
    Fault,
    InvalidRequestError,
    read_count,
    read_day,
    read_extra,
    read_fault,
    read_key,
    read_operation,
    read_partner,
)
from acquirer_simulator.rules import Operation
from acquirer_simulator.settlements import DAY_MS, Movement
from acquirer_simulator.tokens import Answering, Behaviour

log = structlog.get_logger()

_OPERATIONS: Final = prometheus_client.Counter(
    "bulkhead_acquirer_simulator_operations",
    "Operations performed or found, by kind and result.",
    ["kind", "result"],
)
_REFUSALS: Final = prometheus_client.Counter(
    "bulkhead_acquirer_simulator_refusals", "Requests without an outcome, by HTTP status.", ["status"]
)
_CLOSES: Final = prometheus_client.Counter(
    "bulkhead_acquirer_simulator_closes", "Keys asked to be closed, by result.", ["result"]
)
_WAITING: Final = prometheus_client.Gauge(
    "bulkhead_acquirer_simulator_waiting", "Requests that hang or are slow on purpose."
)
_FAULTS: Final = prometheus_client.Gauge("bulkhead_acquirer_simulator_faults", "Partners with a fault set.")

_GARBAGE: Final = b'{"result": "appro'
_CHALLENGE_PAGE: Final = (
    "This stands for the bank's page where customers prove who they are (3-D Secure).\n"
    "No money moves here, and there is nothing to do: the payment method says how it ends.\n"
    "Go back and confirm the payment: POST /v1/payments/{id}/confirm\n"
)


class _EndedError(Exception):
    """This request is not to be answered with an outcome; `status` is what is sent if its client still listens."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code


class Waits:
    """The requests that wait on purpose: bounded, each ended by its own event, its time or the end of the process."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[Any]] = set()
        self._stopped = False

    def stop(self) -> None:
        """End every wait now and let none begin."""
        self._stopped = True
        for future in self._waiting:
            future.cancel()

    async def pause(self, delay_ms: int) -> None:
        """Wait for so long. Raises _EndedError where the process ends or too many wait."""
        await self._wait(asyncio.get_running_loop().create_future(), delay_ms)

    async def hang(self, receive: Receive) -> _EndedError:
        """Wait until the client has gone away, and return how to end the request."""
        try:
            await self._wait(asyncio.ensure_future(_gone(receive)), limits.HANG_MS_MAX)
        except _EndedError as ended:
            return ended
        return _EndedError(HTTPStatus.SERVICE_UNAVAILABLE, "hung", "this request was never to be answered")

    async def _wait(self, future: asyncio.Future[Any], time_ms: int) -> None:
        if self._stopped or len(self._waiting) >= limits.WAITING_REQUESTS_MAX:
            future.cancel()
            raise _EndedError(HTTPStatus.SERVICE_UNAVAILABLE, "overloaded", "too many requests wait")
        self._waiting.add(future)
        _WAITING.inc()
        try:
            await asyncio.wait({future}, timeout=time_ms / 1000)
        finally:
            self._waiting.discard(future)
            _WAITING.dec()
            future.cancel()
        if self._stopped:
            raise _EndedError(HTTPStatus.SERVICE_UNAVAILABLE, "stopping", "the acquirer is stopping")


class Faults:
    """What is wrong for whom, by partner."""

    def __init__(self, waits: Waits) -> None:
        self._waits = waits
        self._by_partner: dict[str, Fault] = {}

    async def suffer(self, partner: str, receive: Receive) -> None:
        """Return if the request may go on, at once or late. Raises _EndedError if it may not."""
        fault = self._by_partner.get(partner)
        if fault is None:
            return
        if fault.mode == "hang":
            raise await self._waits.hang(receive)
        if fault.mode == "refuse":
            raise _EndedError(HTTPStatus.SERVICE_UNAVAILABLE, "refused", "a fault refuses this partner's operations")
        if fault.mode == "slow":
            await self._waits.pause(fault.delay_ms)

    async def spoil(self, partner: str, answer: bytes, receive: Receive) -> bytes:
        """Return what is answered once it is done: the answer, or garbage. Raises _EndedError if nothing is."""
        fault = self._by_partner.get(partner)
        if fault is not None and fault.mode == "silent":
            raise await self._waits.hang(receive)
        return _GARBAGE if fault is not None and fault.mode == "garbage" else answer

    async def put(self, request: Request) -> Response:
        """PUT /faults/{partner}."""
        partner = read_partner(request.path_params["partner"])
        fault = read_fault(await _read_body(request.receive))
        if partner not in self._by_partner and len(self._by_partner) >= limits.FAULTS_MAX:
            raise _EndedError(HTTPStatus.SERVICE_UNAVAILABLE, "overloaded", "too many faults are set")
        self._by_partner[partner] = fault
        _FAULTS.set(len(self._by_partner))
        log.info("fault_set", partner=partner, mode=fault.mode, delay_ms=fault.delay_ms)
        return _json(fault._asdict())

    async def delete(self, request: Request) -> Response:
        """DELETE /faults/{partner}; no error where there is none."""
        partner = read_partner(request.path_params["partner"])
        self._by_partner.pop(partner, None)
        _FAULTS.set(len(self._by_partner))
        log.info("fault_cleared", partner=partner)
        return Response(status_code=HTTPStatus.NO_CONTENT)

    async def list(self, request: Request) -> Response:
        """GET /faults."""
        del request
        return _json({"faults": {partner: fault._asdict() for partner, fault in self._by_partner.items()}})


class PerformEndpoint:
    """POST /operations. A plain ASGI application: the path that every payment takes stays short."""

    def __init__(self, record: Record, faults: Faults, waits: Waits, base_url: str) -> None:
        self._record = record
        self._faults = faults
        self._waits = waits
        self._base_url = base_url

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or see to it that it is not answered."""
        try:
            operation = read_operation(_key_of(scope), await _read_body(receive))
            await self._faults.suffer(operation.partner, receive)
            status, body = await self._perform(operation, receive)
            body = await self._faults.spoil(operation.partner, body, receive)
        except Exception as error:  # noqa: BLE001 - _ended raises again what it doesn't know
            status, body = _ended(error)
        await _send(send, status, body)

    async def _perform(self, operation: Operation, receive: Receive) -> tuple[int, bytes]:
        behaviour = tokens.behaviour(operation.payment_method, operation.kind)
        if behaviour.delay_ms and self._record.find(operation.key) is None:
            await self._waits.pause(behaviour.delay_ms)
        row, first = await self._record.perform(operation, behaviour)
        _OPERATIONS.labels(operation.kind, row.result).inc()
        answering = behaviour.answering
        if answering is Answering.SILENT or (first and answering is Answering.SILENT_AT_FIRST):
            raise await self._waits.hang(receive)
        if answering is Answering.SERVER_ERROR:
            raise _EndedError(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", "as the token asks")
        if answering is Answering.GARBAGE:
            return HTTPStatus.OK, _GARBAGE
        return HTTPStatus.OK, orjson.dumps(_told(row, behaviour, self._base_url))


class RecordEndpoints:
    """Confirmations, closes of keys, and the record for audits."""

    def __init__(self, record: Record, faults: Faults, base_url: str) -> None:
        self._record = record
        self._faults = faults
        self._base_url = base_url

    async def confirm(self, request: Request) -> Response:
        """POST /operations/{key}/confirm, with the operation's own body."""
        operation = read_operation(request.path_params["key"], await _read_body(request.receive))
        await self._faults.suffer(operation.partner, request.receive)
        behaviour = tokens.behaviour(operation.payment_method, operation.kind)
        row = await self._record.confirm(operation, behaviour)
        _OPERATIONS.labels(operation.kind, row.result).inc()
        told = orjson.dumps(_told(row, behaviour, self._base_url))
        return Response(
            await self._faults.spoil(operation.partner, told, request.receive), media_type="application/json"
        )

    async def challenge(self, request: Request) -> Response:
        """GET /challenges/{key}: what a customer's browser would show."""
        row = self._record.find(read_key(request.path_params["key"]))
        if row is None or row.payment_method is None or row.kind is None:
            raise _EndedError(HTTPStatus.NOT_FOUND, "key_not_found", "this key was never asked for")
        if tokens.behaviour(row.payment_method, row.kind).challenge_ms is None:
            raise _EndedError(HTTPStatus.NOT_FOUND, "no_challenge", "this operation has no challenge")
        return Response(_CHALLENGE_PAGE, media_type="text/plain")

    async def disputes(self, request: Request) -> Response:
        """GET /disputes?partner=&after=&limit=."""
        query = request.query_params
        after = read_count(query.get("after") or "0", "after", 2**53)
        limit = read_count(query.get("limit") or str(limits.PAGE_ROWS_DEFAULT), "limit", limits.PAGE_ROWS_MAX)
        if limit == 0:
            raise InvalidRequestError("limit must be at least 1")
        rows, following = self._record.disputes(read_partner(query.get("partner")), after, limit)
        return _json({"disputes": rows, "next": None if following is None else str(following)})

    async def notifications(self, request: Request) -> Response:
        """GET /notifications?partner=."""
        partner = read_partner(request.query_params.get("partner"))
        return _json({"notifications": self._record.notifications(partner)})

    async def close(self, request: Request) -> Response:
        """POST /operations/{key}/close, with the operation's own body or none."""
        key = read_key(request.path_params["key"])
        body = await _read_body(request.receive)
        operation = read_operation(key, body) if body else None
        partner = operation.partner if operation is not None else self._partner_of(key)
        if partner is not None:
            await self._faults.suffer(partner, request.receive)
        row = await self._record.close_key(key, operation)
        _CLOSES.labels(row.result).inc()
        told = orjson.dumps(row.answer())
        if partner is not None:
            told = await self._faults.spoil(partner, told, request.receive)
        return Response(told, media_type="application/json")

    async def show(self, request: Request) -> Response:
        """GET /operations/{key}."""
        row = self._record.find(read_key(request.path_params["key"]))
        if row is None:
            raise _EndedError(HTTPStatus.NOT_FOUND, "key_not_found", "this key was never asked for")
        return _json(row.entry())

    async def list(self, request: Request) -> Response:
        """GET /operations?partner=&after=&limit=."""
        query = request.query_params
        partner = query.get("partner") or None
        after = read_count(query.get("after") or "0", "after", 2**53)
        limit = read_count(query.get("limit") or str(limits.PAGE_ROWS_DEFAULT), "limit", limits.PAGE_ROWS_MAX)
        if limit == 0:
            raise InvalidRequestError("limit must be at least 1")
        rows = self._record.page(None if partner is None else read_partner(partner), after, limit)
        following = str(rows[-1].sequence) if len(rows) == limit else None
        return _json({"operations": [row.entry() for row in rows], "next": following})

    def _partner_of(self, key: str) -> str | None:
        row = self._record.find(key)
        return None if row is None else row.partner


class SettlementEndpoints:
    """A day's settlement file, written while it is read, and the rows that a test adds to it."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._extras: dict[str, Movement] = {}

    async def file(self, request: Request) -> Response:
        """GET /settlements/{day}.csv?partner=&preliminary=true. A day that isn't over has no final file yet."""
        day = read_day(request.path_params["day"])
        partner = request.query_params.get("partner") or None
        if partner is not None:
            read_partner(partner)
        preliminary = request.query_params.get("preliminary") == "true"
        start_ms = settlements.day_start_ms(day)
        now_ms = self._record.now_ms()
        final = now_ms >= start_ms + DAY_MS + limits.SETTLEMENT_FINAL_AFTER_MS
        if not final and not (preliminary and now_ms > start_ms):
            raise _EndedError(HTTPStatus.CONFLICT, "day_not_over", f"{day} isn't over: ask with preliminary=true")
        # Whatever was answered before this instant is in the record, and so in a preliminary file.
        until_ms = min(now_ms, start_ms + DAY_MS)
        writer = settlements.Writer(day, partner, until_ms, final=final)
        return StreamingResponse(
            self._lines(writer, partner, start_ms, until_ms),
            media_type="text/csv; charset=us-ascii; header=present",
            headers={"content-disposition": f'attachment; filename="settlement-{day}.csv"'},
        )

    async def put_extra(self, request: Request) -> Response:
        """PUT /settlement-extras/{key}."""
        extra = read_extra(request.path_params["key"], await _read_body(request.receive))
        if extra.key not in self._extras and len(self._extras) >= limits.SETTLEMENT_EXTRAS_MAX:
            raise _EndedError(HTTPStatus.SERVICE_UNAVAILABLE, "overloaded", "too many extra rows are set")
        self._extras[extra.key] = extra
        log.info("settlement_extra_set", key=extra.key, partner=extra.partner)
        return _json(extra._asdict())

    async def delete_extra(self, request: Request) -> Response:
        """DELETE /settlement-extras/{key}; no error where there is none."""
        self._extras.pop(read_key(request.path_params["key"]), None)
        return Response(status_code=HTTPStatus.NO_CONTENT)

    async def _lines(
        self, writer: settlements.Writer, partner: str | None, start_ms: int, until_ms: int
    ) -> AsyncIterator[bytes]:
        yield writer.begin()
        last = self._record.last_sequence()
        for after in range(0, last, limits.SETTLEMENT_OPERATIONS_AT_ONCE):
            # From a day before: what is settled late.
            movements = self._record.movements(partner, after, start_ms - DAY_MS, until_ms)
            rows = [row for movement in movements if (row := settlements.settle(movement, start_ms, until_ms))]
            if rows:
                yield writer.rows(rows)
            await asyncio.sleep(0)
        extras = [extra for extra in self._extras.values() if partner in (None, extra.partner)]
        yield writer.rows(row for extra in extras if (row := settlements.settle(extra, start_ms, until_ms)))
        yield writer.end()


def make_app(record: Record, waits: Waits, base_url: str) -> ASGIApp:
    """Make the application over an open record. Call `waits.stop()` when the process is to end.

    `base_url` is where customers find it.
    """
    faults = Faults(waits)
    kept = RecordEndpoints(record, faults, base_url)
    settled = SettlementEndpoints(record)
    perform = PerformEndpoint(record, faults, waits, base_url)
    app = Starlette(
        routes=[
            Route("/operations", perform, methods=["POST"]),
            Route("/operations", kept.list, methods=["GET"]),
            Route("/operations/{key}/confirm", kept.confirm, methods=["POST"]),
            Route("/operations/{key}/close", kept.close, methods=["POST"]),
            Route("/operations/{key}", kept.show, methods=["GET"]),
            Route("/challenges/{key}", kept.challenge, methods=["GET"]),
            Route("/disputes", kept.disputes, methods=["GET"]),
            Route("/notifications", kept.notifications, methods=["GET"]),
            Route("/faults/{partner}", faults.put, methods=["PUT"]),
            Route("/faults/{partner}", faults.delete, methods=["DELETE"]),
            Route("/faults", faults.list, methods=["GET"]),
            Route("/settlements/{day}.csv", settled.file, methods=["GET"]),
            Route("/settlement-extras/{key}", settled.put_extra, methods=["PUT"]),
            Route("/settlement-extras/{key}", settled.delete_extra, methods=["DELETE"]),
            Route("/livez", _livez, methods=["GET"]),
            Route("/metrics", _metrics, methods=["GET"]),
        ],
        exception_handlers={
            _EndedError: _answer_failure,
            InvalidRequestError: _answer_failure,
            KeyReusedError: _answer_failure,
            KeyUnknownError: _answer_failure,
            RecordUnavailableError: _answer_failure,
            HTTPException: _answer_http_failure,
        },
    )

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        # Every payment comes by here; the layers of the general way would cost as much as the operation.
        if scope["type"] == "http" and scope["path"] == "/operations" and scope["method"] == "POST":
            await perform(scope, receive, send)
        else:
            await app(scope, receive, send)

    return serve


async def _livez(request: Request) -> Response:
    del request
    return _json({"status": "ok"})


async def _metrics(request: Request) -> Response:
    del request
    return Response(
        prometheus_client.generate_latest(), headers={"content-type": prometheus_client.CONTENT_TYPE_LATEST}
    )


async def _answer_failure(request: Request, error: Exception) -> Response:
    del request
    status, body = _ended(error)
    return Response(body, status, media_type="application/json")


async def _answer_http_failure(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, HTTPException)
    return _json({"error": "http", "detail": error.detail}, error.status_code)


def _ended(error: Exception) -> tuple[int, bytes]:
    """Return status and body of a request without an outcome. A bug is raised again."""
    if isinstance(error, _EndedError):
        status, code = error.status, error.code
    elif isinstance(error, InvalidRequestError):
        status, code = HTTPStatus.BAD_REQUEST, "invalid_request"
    elif isinstance(error, KeyReusedError):
        status, code = HTTPStatus.UNPROCESSABLE_ENTITY, "key_reused"
    elif isinstance(error, KeyUnknownError):
        status, code = HTTPStatus.NOT_FOUND, "key_not_found"
    elif isinstance(error, RecordUnavailableError):
        status, code = HTTPStatus.SERVICE_UNAVAILABLE, "record_unavailable"
    else:
        raise error
    _REFUSALS.labels(str(int(status))).inc()
    return status, orjson.dumps({"error": code, "detail": str(error)})


def _told(row: Row, behaviour: Behaviour, base_url: str) -> dict[str, Any]:
    """Return what is answered: a final outcome, or what it waits for."""
    answer = row.answer()
    if row.result == "unperformed" and behaviour.challenge_ms is not None:
        answer["result"] = "challenge"
        expires_at_ms = row.first_at_ms + behaviour.challenge_ms
        answer["challenge"] = {"url": f"{base_url}/challenges/{row.key}", "expires_at_ms": expires_at_ms}
    elif row.result == "unperformed" and behaviour.decides_after_ms is not None:
        answer["result"] = "pending"
    return answer


def _json(value: object, status: int = HTTPStatus.OK) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")


def _key_of(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"idempotency-key":
            return str(value, "latin-1")
    raise InvalidRequestError("an operation needs an Idempotency-Key")


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read_body(receive: Receive) -> bytes:
    body: bytes = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _EndedError(HTTPStatus.BAD_REQUEST, "gone", "the client went away")
        body += message["body"]
        if len(body) > limits.REQUEST_BODY_BYTES_MAX:
            raise _EndedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_too_large", "the body is too large")
        if not message["more_body"]:
            return body


async def _send(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": body})
