"""One process's /metrics on a port of its own: for Prometheus and operators, never on a port that partners reach."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST

from listeners.server import QuietServer, config


class MetricsPage:
    """Serves GET /metrics, and nothing else, until it is closed."""

    def __init__(self, render: Callable[[], Awaitable[bytes]]) -> None:
        self._render = render
        self._server = QuietServer(config(self._answer))
        self._task: asyncio.Task[None] | None = None
        self._listener: socket.socket | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises OSError where the address is taken."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family)
        self._task = asyncio.create_task(self._server.serve(sockets=[self._listener]))

    async def aclose(self) -> None:
        """End all connections and listen no more."""
        if self._task is not None:
            self._server.should_exit = True
            await self._task
            self._task = None

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        del receive
        if scope["path"] != "/metrics":
            status, body = 404, b"There is nothing but /metrics.\n"
        elif scope["method"] not in {"GET", "HEAD"}:
            status, body = 405, b"Use GET.\n"
        else:
            status, body = 200, await self._render()
        headers = [
            (b"content-type", CONTENT_TYPE_LATEST.encode() if status == 200 else b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(body)),
        ]
        if status == 405:
            headers.append((b"allow", b"GET, HEAD"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
