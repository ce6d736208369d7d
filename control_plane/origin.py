"""Where a request of the admin API comes from, as the kernel tells, and not as the request does.

Of a Unix socket's other end that is its user; over TCP it is the address, which is no proof of who asks.
"""

import asyncio
import socket
import struct
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

# Of the request at hand, for the audit log's entries; empty where the control plane works by itself. The gate sets it.
ORIGIN: Final[ContextVar[str]] = ContextVar("origin", default="")
# Under this name a connection's state has its Peer.
PEER: Final = "peer"
_UCRED: Final = struct.Struct("iII")
_NO_LOGIN: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Peer:
    """The user at the other end of a Unix socket. `login_uid`: who logged in, as the kernel kept it through sudo."""

    uid: int
    login_uid: int | None = None

    @property
    def person_uid(self) -> int:
        """Whose hands these are, as far as the kernel tells: who logged in, before sudo."""
        return self.uid if self.login_uid is None else self.login_uid

    @property
    def who(self) -> str:
        """Name it for the audit log; no operator may have such a name."""
        return f"local:{self.uid}"


def peer_of(transport: asyncio.BaseTransport) -> Peer | None:
    """Return the user at a connection's other end; None where it is no Unix socket."""
    found = transport.get_extra_info("socket")
    if found is None or found.family != socket.AF_UNIX:
        return None
    pid, uid, _ = _UCRED.unpack(found.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer(uid, _login_uid(pid))


def origin_of(scope: Mapping[str, Any]) -> tuple[Peer | None, str]:
    """Return a request's peer, where there is one, and its origin in words."""
    peer = scope.get("state", {}).get(PEER)
    if isinstance(peer, Peer):
        logged_in = "" if peer.login_uid in {None, peer.uid} else f", logged in as {peer.login_uid}"
        return peer, f"uid {peer.uid}{logged_in}"
    client = scope.get("client")
    return None, "" if client is None else str(client[0])


def _login_uid(pid: int) -> int | None:
    """Return as whom a process's session logged in; None where nobody did, or the process is gone."""
    try:
        uid = int(Path(f"/proc/{pid}/loginuid").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return None if uid == _NO_LOGIN else uid
