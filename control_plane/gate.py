"""The gate of the admin API: nothing behind it is reached without an operator's key, its role and a bounded body.

Keys that are not good are counted by address, and each is answered later than the one before; a good one never is.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from control_plane import access, dry_run, limits
from control_plane.access import Access, AccessLog
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
from control_plane.roles import DRY_RUNS, ON_THIS_MACHINE, ROLE_OF, ROLES, UNNOTED_READS, role_for

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

    def __init__(
        self,
        app: ASGIApp,
        operators: Operators,
        accesses: AccessLog,
        *,
        sleep: Callable[[float], Any] = asyncio.sleep,
    ) -> None:
        self._app = app
        self._operators = operators
        self._accesses = accesses
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
        except ControlPlaneError as error:
            await problem(error)(scope, receive, send)
            return
        who = _who(operator, peer)
        asked = _Asked(scope, send)
        try:
            dry_run.ASKED.set(_is_dry_run(scope, self._authorize(scope, operator, peer)))
            scope.setdefault("state", {})["who"] = who
            scope["state"]["operator"] = operator
            scope["state"]["uid"] = None if peer is None else peer.person_uid
            await self._app(scope, _bounded(receive), asked.send)
        except ControlPlaneError as error:
            asked.code = error.code
            await problem(error)(scope, receive, asked.send)
        finally:
            self._note(asked, who, origin)

    def _note(self, asked: "_Asked", who: str, origin: str) -> None:
        """Have the audit log tell of what was read or refused; of what was changed it does."""
        what = asked.what
        if what is None:
            return
        is_known = (asked.method, asked.route) in ROLE_OF  # else it is text of whoever asks
        detail = [("method", asked.method), ("route", asked.route if is_known else "none that is known")]
        if what != access.READ:
            detail += [("status", str(asked.status)), ("code", asked.code)]
        self._accesses.note(Access(who, what, origin, self._accesses.partner(asked.partner_id), tuple(detail)))

    async def _authenticate(self, scope: Scope, peer: Peer | None, origin: str) -> Operator:
        kind, _, key = _header(scope, "authorization").partition(" ")
        operator = self._operators.authenticate(key.strip()) if kind.lower() == "bearer" else None
        # The local operator is whom the kernel names; over TCP it names nobody.
        if operator is not None and (operator.id != LOCAL or peer is not None):
            return operator
        named = self._operators.named_by(key.strip())
        detail = () if named is None else (("operator", named),)
        self._accesses.note(Access(access.NOBODY, access.OPERATOR_KEY_FAILED, origin, None, detail))
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


class _Asked:
    """A request that an operator asked, and its answer, as the audit log tells of it."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self.method = str(scope["method"])
        self.route = role_for(self.method, scope["path"])[0]
        self.status = 0
        self.code = ""

    async def send(self, message: Message) -> None:
        """Pass the answer on, and note how it begins."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.code = self.code or str(self._scope.get("state", {}).get("refused", ""))
        await self._send(message)

    @property
    def what(self) -> str | None:
        """Whether it was a read, or refused; None where the audit log has nothing to tell of it."""
        if self.status == ForbiddenError.http_status:
            return access.FORBIDDEN
        if self.method == "GET":
            is_read = self.status == 200 and (self.method, self.route) not in UNNOTED_READS
            return access.READ if is_read else None
        return access.REFUSED if 400 <= self.status < 500 else None

    @property
    def partner_id(self) -> str | None:
        """The partner that it names, in its path or its query."""
        for name, value in zip(self.route.split("/"), self._scope["path"].split("/"), strict=False):
            if name == "{partner_id}":
                return str(value)
        query = parse_qs(self._scope.get("query_string", b"").decode("latin-1"), max_num_fields=16)
        return next(iter(query.get("partner", [])), None)


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
