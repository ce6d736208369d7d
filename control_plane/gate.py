"""The gate of the admin API: nothing behind it is reached without an operator's key, its role and a bounded body.

Keys that are not good are counted by address, and each is answered later than the one before; a good one never is.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from control_plane import dry_run, limits
from control_plane.errors import (
    ControlPlaneError,
    ForbiddenError,
    SettingsError,
    TooManyFailedKeysError,
    UnauthorizedError,
)
from control_plane.operators import LOCAL, Operators
from control_plane.origin import ORIGIN, Peer, origin_of
from control_plane.problem import problem
from control_plane.registry_records import Operator
from control_plane.roles import DRY_RUNS, ON_THIS_MACHINE, ROLES, role_for

DRY_RUN_HEADER: Final = "X-Dry-Run"


class FailedKeys:
    """Counts keys that were not good, by address, in windows; the table is bounded, the oldest gives its place."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._windows: dict[str, tuple[float, int]] = {}  # address -> end of the window, failures in it
        self.waiting = 0

    def note(self, address: str) -> int:
        """Count one failure; give for how many ms its answer waits."""
        now = self._now()
        ends, count = self._windows.pop(address, (0.0, 0))
        if now >= ends:
            ends, count = now + limits.FAILED_KEYS_WINDOW_MS / 1_000, 0
            if len(self._windows) >= limits.FAILED_KEYS_ADDRESSES_MAX:
                del self._windows[next(iter(self._windows))]
        self._windows[address] = ends, count + 1
        return min(limits.FAILED_KEY_DELAY_MS_MIN << min(count, 16), limits.FAILED_KEY_DELAY_MS_MAX)


class Gate:
    """ASGI, around the application."""

    def __init__(self, app: ASGIApp, operators: Operators, *, sleep: Callable[[float], Any] = asyncio.sleep) -> None:
        self._app = app
        self._operators = operators
        self._sleep = sleep
        self._failed = FailedKeys()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            peer, origin = origin_of(scope)
            ORIGIN.set(origin)
            operator = await self._authenticate(scope, peer, origin)
            route = self._authorize(scope, operator, peer)
            dry_run.ASKED.set(_is_dry_run(scope, route))
            scope.setdefault("state", {})["who"] = _who(operator, peer)
            scope["state"]["operator"] = operator
            scope["state"]["uid"] = None if peer is None else peer.uid
            await self._app(scope, _bounded(receive), send)
        except ControlPlaneError as error:
            await problem(error)(scope, receive, send)

    async def _authenticate(self, scope: Scope, peer: Peer | None, origin: str) -> Operator:
        kind, _, key = _header(scope, "authorization").partition(" ")
        operator = self._operators.authenticate(key.strip()) if kind.lower() == "bearer" else None
        # The local operator is whom the kernel names; over TCP it names nobody.
        if operator is not None and (operator.id != LOCAL or peer is not None):
            return operator
        delay_ms = self._failed.note(origin)
        if self._failed.waiting >= limits.FAILED_KEYS_WAITING_MAX:
            raise TooManyFailedKeysError(
                "too many keys that are not good", where="the admin API", hint="wait a little, then use a good one"
            )
        self._failed.waiting += 1
        try:
            await self._sleep(delay_ms / 1_000)
        finally:
            self._failed.waiting -= 1
        raise UnauthorizedError(
            "no operator's key, or one that is not good",
            where="the header Authorization",
            hint="say `Authorization: Bearer ok_…`; a new key: bulkhead operator rotate-key NAME",
        )

    def _authorize(self, scope: Scope, operator: Operator, peer: Peer | None) -> str:
        route, needed = role_for(scope["method"], scope["path"])
        if peer is None and (scope["method"], route) in ON_THIS_MACHINE:
            raise ForbiddenError(
                "this is for who works on the data folder's machine",
                where=f"{scope['method']} {route}",
                hint="ask over the Unix socket in the data folder: without BULKHEAD_ADMIN_URL",
            )
        if ROLES[operator.role] < needed:
            raise ForbiddenError(
                f"{operator.id} is {operator.role}; this needs {needed.word}",
                where=f"{scope['method']} {route}",
                hint="ask an admin: bulkhead operator list",
            )
        return route


def _is_dry_run(scope: Scope, route: str) -> bool:
    wanted = _header(scope, DRY_RUN_HEADER.lower())
    if not wanted:
        return False
    if wanted != "true" or (scope["method"], route) not in DRY_RUNS:
        raise SettingsError(
            f"{scope['method']} {route} can't be tried without doing it",
            where=f"the header {DRY_RUN_HEADER}",
            hint="its value is `true`, on routes that only write to the registry (control_plane/roles.py)",
        )
    return True


def _who(operator: Operator, peer: Peer | None) -> str:
    if operator.id != LOCAL:
        return operator.id
    assert peer is not None, "the local operator is let in over the Unix socket only"
    return peer.who


def _header(scope: Scope, name: str) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name.encode()), "")


def _bounded(receive: Receive) -> Receive:
    seen = 0

    async def bounded() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limits.ADMIN_BODY_BYTES_MAX:
            raise SettingsError(
                f"a body of more than {limits.ADMIN_BODY_BYTES_MAX} bytes",
                where="the body",
                hint="split it into several",
            )
        return message

    return bounded
