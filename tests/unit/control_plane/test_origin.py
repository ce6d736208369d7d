"""Where requests come from, over real sockets and the admin API's own server: the kernel names who is there."""

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import uvloop
from fastapi import FastAPI

from control_plane import admin, data_folder, operator_routes
from control_plane.access import AccessLog
from control_plane.approving import Approvals
from control_plane.gate import Gate
from control_plane.operators import Operators
from control_plane.origin import Peer, origin_of, peer_of
from control_plane.roles import Role
from tests.stand_in_door import Installation


@contextlib.asynccontextmanager
async def serving(gate: Gate, path: Path) -> AsyncIterator[str]:
    """Serve over a Unix socket and a port, as `bulkhead up` does; give the port's address."""
    server = admin.make_server(gate)
    listeners = [socket.create_server(("127.0.0.1", 0)), data_folder.listen_on(path)]
    task = asyncio.create_task(server.serve(sockets=listeners))
    try:
        yield f"http://127.0.0.1:{listeners[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        for listener in listeners:
            listener.close()


async def test_a_name_is_borrowed_neither_over_the_socket_nor_over_the_port(
    installation: Installation, tmp_path: Path
) -> None:
    _, registry, *_ = await installation.control_plane()
    operators = Operators(registry, installation.folder.pepper_file.read_bytes())
    await operators.ensure_local(installation.folder.operator_key_file)
    ann = (await operators.add("ann", Role.VIEWER, "control_plane")).text
    local = installation.folder.operator_key_file.read_text()
    app = FastAPI()
    app.include_router(operator_routes.make_routes(registry, operators, Approvals(registry, {}, (), b"p")))
    path = tmp_path / "control.sock"
    async with serving(Gate(app, operators, AccessLog(registry)), path) as url:

        async def who(key: str, *, by_socket: bool) -> tuple[int, str, str]:
            headers = {"Authorization": f"Bearer {key}", "X-Operator": "ann", "X-Forwarded-For": "192.0.2.1"}
            transport = httpx.AsyncHTTPTransport(uds=str(path)) if by_socket else None
            async with httpx.AsyncClient(transport=transport, base_url=url, headers=headers) as client:
                answer = await client.get("/whoami")
            return answer.status_code, answer.json().get("who", ""), answer.json().get("origin", "")

        me = Peer(os.geteuid(), peer_login())
        _, origin = origin_of({"state": {"peer": me}})
        assert await who(local, by_socket=True) == (200, me.who, origin)
        assert await who(ann, by_socket=True) == (200, "ann", origin)
        assert await who(ann, by_socket=False) == (200, "ann", "127.0.0.1")
        assert (await who(local, by_socket=False))[0] == 401


def peer_login() -> int | None:
    uid = int(Path("/proc/self/loginuid").read_text())
    return None if uid == 2**32 - 1 else uid


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_the_user_of_the_other_end_is_the_kernels_word(run: object) -> None:
    """Of a process of another user, where this test may become one; else of its own."""
    name, uid = f"\0bulkhead-{secrets.token_hex(8)}", 12_345 if os.geteuid() == 0 else os.geteuid()

    async def look() -> Peer | None:
        seen: asyncio.Future[Peer | None] = asyncio.get_running_loop().create_future()

        class Listener(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                seen.set_result(peer_of(transport))

        server = await asyncio.get_running_loop().create_unix_server(Listener, name)
        end = socket.socket(socket.AF_UNIX)
        before = os.geteuid()
        os.seteuid(uid)
        try:
            end.connect(name)
        finally:
            os.seteuid(before)
        found = await seen
        end.close()
        server.close()
        return found

    found = run(look())  # type: ignore[operator]
    assert found is not None
    assert (found.uid, found.login_uid) == (uid, peer_login())
