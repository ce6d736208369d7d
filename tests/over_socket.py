"""The admin API in process, as if it were asked over its Unix socket: with a user of this machine at the other end."""

from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from control_plane.origin import PEER, Peer

UID: Final = 4_711
_PEER: Final = Peer(UID)
WHO: Final = f"local:{UID}"


def over_socket(app: ASGIApp, peer: Peer | None = _PEER) -> ASGIApp:
    """Return the application as it is called by a server that listens on a Unix socket; None: on a port."""

    async def called(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": {PEER: peer}}, receive, send)

    return called
