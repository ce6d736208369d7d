"""The outermost layer, pure ASGI: gives each request its id, bounds its head, counts it, lets no exception through."""

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cells.api.ids import new_ulid
from cells.api.log_budget import LogBudget
from cells.api.messages import RefusalCode
from listeners import limits
from router import problems
from router.guard import Guard
from router.metrics import Metrics
from router.problems import EdgeCode, Problem
from router.reading import Head

log = structlog.get_logger()

KEY: Final = "bulkhead"


class Exchange:
    """What is known of one request on its way through; stands in the ASGI scope under KEY."""

    __slots__ = ("api_version", "cell", "code", "command_id", "head", "partner_id", "request_id")

    def __init__(self, scope: Scope) -> None:
        # One ULID serves both: whoever has a request's id finds its command in every log.
        self.command_id = new_ulid()
        self.request_id = f"req_{self.command_id}"
        self.head = Head(scope)
        self.partner_id: str | None = None
        self.api_version: str | None = None
        self.cell: str | None = None
        self.code: str | None = None


class BareRoute(APIRoute):
    """A route that calls its handler and nothing else.

    FastAPI's own call resolves dependencies and opens two exit stacks, 25 microseconds a request; no handler here needs
    either. Routing and OpenAPI stay FastAPI's.
    """

    def __init__(self, path: str, endpoint: Callable[[Request], Awaitable[Response]], **rest: Any) -> None:
        super().__init__(path, endpoint, **rest)

        async def call(scope: Scope, receive: Receive, send: Send) -> None:
            response = await endpoint(Request(scope, receive, send))
            await response(scope, receive, send)

        self.app = call


class Edge:
    """The ASGI application: FastAPI's router with all that a request needs around it."""

    def __init__(self, app: FastAPI, metrics: Metrics, budget: LogBudget, guard: Guard | None = None) -> None:
        self._app = app
        self.guard = guard  # of the server below, which asks it before anything comes here
        self._router: ASGIApp = app.router
        # Most requests name a path without an id: found here, they need no look at each route's pattern.
        self._plain = {
            (method, route.path): route
            for route in app.routes
            if isinstance(route, BareRoute) and "{" not in route.path
            for method in route.methods or ()
        }
        self._metrics = metrics
        self._budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; hand on what is none (lifespan)."""
        scope["app"] = self._app
        if scope["type"] != "http":
            await self._router(scope, receive, send)
            return
        began = time.perf_counter()
        exchange = scope[KEY] = Exchange(scope)
        method = scope["method"]
        if method == "HEAD":
            # HEAD is GET without the body (RFC 9110, 9.3.2), which the server leaves out by its own scope.
            scope = {**scope, "method": "GET"}
        is_started = False

        async def send_marked(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                self._mark(message, exchange)
                self._count(scope, method, message["status"], time.perf_counter() - began, exchange)
            await send(message)

        try:
            problem = _wrong_with(exchange.head, scope["http_version"])
            if problem is not None:
                await respond(problem, exchange)(scope, receive, send_marked)
            elif (route := self._plain.get((scope["method"], scope["path"]))) is not None:
                scope["route"] = route
                await route.app(scope, receive, send_marked)
            else:
                await self._router(scope, receive, send_marked)
        except HTTPException:
            await self._not_routed(scope, exchange)(scope, receive, send_marked)
        except asyncio.CancelledError:
            # The process ends and has waited as long as it may.
            if not is_started:
                problem = Problem(
                    RefusalCode.OUTCOME_UNKNOWN,
                    "This gateway process ends. Send the request again with the same Idempotency-Key.",
                    headers={"connection": "close"},
                )
                await respond(problem, exchange)(scope, receive, send_marked)
        except Exception as error:  # a bug takes its own request only
            # No message and no local variables: they may hold what a client sent.
            log.error(  # noqa: TRY400
                "request_crashed",
                request_id=exchange.request_id,
                partner=exchange.partner_id,
                error=type(error).__name__,
                trace=traceback.format_tb(error.__traceback__),
            )
            if is_started:
                raise
            problem = Problem(
                RefusalCode.INTERNAL_ERROR, "Something is broken at our side. Name the request id when you report it."
            )
            await respond(problem, exchange)(scope, receive, send_marked)

    def _not_routed(self, scope: Scope, exchange: Exchange) -> Response:
        """Answer what no route took: 404, 405, or the methods that there are (OPTIONS). The path is not repeated."""
        methods: set[str] = set()
        for route in self._app.routes:
            if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE:
                methods |= route.methods or set()
        if not methods:
            return respond(Problem(EdgeCode.NOT_FOUND, "There is nothing at this path."), exchange)
        methods |= {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())
        allow = {"allow": ", ".join(sorted(methods))}
        if scope["method"] == "OPTIONS":
            return Response(None, 204, allow)
        return respond(Problem(EdgeCode.METHOD_NOT_ALLOWED, f"Use {allow['allow']}.", headers=allow), exchange)

    def _mark(self, message: Message, exchange: Exchange) -> None:
        headers: list[tuple[bytes, bytes]] = message["headers"]
        headers.append((b"request-id", exchange.request_id.encode()))
        if exchange.api_version is not None:
            headers.append((b"bulkhead-version", exchange.api_version.encode()))

    def _count(self, scope: Scope, method: str, status: int, seconds: float, exchange: Exchange) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        self._metrics.observe(method, route, status, seconds, exchange.partner_id)
        if status >= 500 and route.startswith("/v1/"):
            self._budget.warning(
                "request_failed",
                request_id=exchange.request_id,
                command_id=exchange.command_id,
                partner=exchange.partner_id,
                cell=exchange.cell,
                method=method,
                route=route,
                status=status,
                code=exchange.code,
            )


def _wrong_with(head: Head, http_version: str) -> Problem | None:
    """Say what is wrong with a request's head as a whole; its connection ends for it."""
    ends = {"connection": "close"}
    if head.size > limits.HEAD_BYTES_MAX:
        return Problem(
            EdgeCode.HEAD_TOO_LARGE, f"A request's head has at most {limits.HEAD_BYTES_MAX} bytes.", headers=ends
        )
    if not head.is_of(http_version):
        return Problem(EdgeCode.REQUEST_MALFORMED, "Send HTTP/1.1 with one Host (RFC 9112, 3.2).", headers=ends)
    return None


def respond(problem: Problem, exchange: Exchange) -> Response:
    """Render a problem for this request."""
    exchange.code = problem.code.value
    return problems.respond(problem, exchange.request_id)
