"""Create a listener's server: uvicorn with the bounded protocol, and with nothing that our listeners do not use."""

import contextlib
import functools
import socket
from collections.abc import Collection, Iterator
from typing import Any, cast

import uvicorn
from uvicorn.config import LifespanType

from listeners import limits
from listeners.protocol import BoundedProtocol, Guard
from listeners.shares import Shares


class QuietServer(uvicorn.Server):
    """A uvicorn that leaves the signals to the process in which it runs beside other things."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def config(
    app: Any,
    *,
    connections_max: int = limits.CONNECTIONS_FEW_MAX,
    proxies: Collection[str] = limits.PROXIES,
    guard: Guard | None = None,
    lifespan: LifespanType = "off",
    shutdown_s: int = limits.SHUTDOWN_S,
    date_header: bool = True,
    protocol: type[BoundedProtocol] = BoundedProtocol,
) -> uvicorn.Config:
    """Return the configuration of a server. `guard` is asked about each head before a request is made of it.

    One address may have a share of the connections, but for `proxies`, whose connections are those of many.
    """
    shares = Shares(connections_max, max(1, connections_max // limits.ADDRESSES_MIN), proxies)
    made = functools.partial(protocol, shares=shares, guard=guard)
    return uvicorn.Config(
        app,
        interface="asgi3",
        http=cast("type[BoundedProtocol]", made),  # called, and never asked for its type
        ws="none",
        lifespan=lifespan,
        access_log=False,
        log_config=None,
        # Warnings are one a malformed request: a flood of these must not flood the log.
        log_level="error",
        server_header=False,
        date_header=date_header,
        proxy_headers=False,
        backlog=limits.BACKLOG,
        timeout_keep_alive=limits.KEEP_ALIVE_S,
        timeout_graceful_shutdown=shutdown_s,
    )


def sockets(listener: socket.socket) -> list[socket.socket]:
    """Return what a server is to listen with: one queue of new connections, named so often as it may accept in a turn.

    With one name alone, a server whose turns take 50 ms would let in 20 connections a second, and serve those that it
    has well: a client that comes anew, or a probe, would wait behind them for many seconds.
    """
    return [listener, *(listener.dup() for _ in range(limits.ACCEPTS_PER_TURN_MAX - 1))]
