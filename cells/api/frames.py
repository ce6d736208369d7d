"""Frames: four bytes of length (big-endian), then a msgpack array. Pure; connection.py has the sockets.

    challenge   [CHALLENGE, server_nonce]                            server -> client
    proof       [PROOF, role, client_nonce, mac]                     client -> server
    welcome     [WELCOME, mac]                                       server -> client
    request     [REQUEST, id, method, budget_ms, partner_id, body]   client -> server
    answer      [ANSWER, id, body]                                   server -> client

Both ends prove that they know the cell's secret, for their role, without sending it (HMAC-SHA-256 over both
nonces, RFC 2104). `budget_ms` is the time left to the command's deadline, so that clocks need not agree.
"""

import hashlib
import hmac
import struct
from typing import Any, Final

import msgpack

from cells.api.limits import FRAME_BYTES_MAX, FRAME_FIELDS_MAX

CHALLENGE: Final = 1
PROOF: Final = 2
WELCOME: Final = 3
REQUEST: Final = 4
ANSWER: Final = 5

NONCE_BYTES: Final = 32
ROLES: Final = frozenset({"router", "control", "door"})

_LENGTH = struct.Struct(">I")


class FrameError(ValueError):
    """The peer sent what is no frame; its connection is closed."""


def encode(fields: list[Any]) -> bytes:
    """Give the frame's bytes. Raises FrameError where it would be larger than FRAME_BYTES_MAX."""
    payload: bytes = msgpack.packb(fields)
    if len(payload) > FRAME_BYTES_MAX:
        raise FrameError(f"a frame of {len(payload)} bytes is larger than {FRAME_BYTES_MAX}")
    return _LENGTH.pack(len(payload)) + payload


class Decoder:
    """Cuts a stream of bytes into frames, holding at most one unfinished frame of `bytes_max`."""

    def __init__(self, bytes_max: int = FRAME_BYTES_MAX) -> None:
        self.bytes_max = bytes_max
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[list[Any]]:
        """Take what came and give the frames that are whole. Raises FrameError; the stream is then of no use."""
        buffer = self._buffer
        buffer += data
        frames: list[list[Any]] = []
        position = 0
        available = len(buffer)
        while available - position >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, position)
            if length > self.bytes_max:
                raise FrameError(f"a frame announces {length} bytes, at most {self.bytes_max} are allowed")
            end = position + _LENGTH.size + length
            if end > available:
                break
            frames.append(_parse(bytes(buffer[position + _LENGTH.size : end])))
            position = end
        del buffer[:position]
        return frames


def role_key(cell_secret: bytes, role: str) -> bytes:
    """Derive a role's key from the cell's secret, so that a router can't speak as the control plane."""
    return hmac.digest(cell_secret, b"bulkhead role " + role.encode(), hashlib.sha256)


def proof(key: bytes, role: str, server_nonce: bytes, client_nonce: bytes) -> bytes:
    """Give what the client shows to the server."""
    return hmac.digest(key, b"client " + role.encode() + b" " + server_nonce + client_nonce, hashlib.sha256)


def welcome(key: bytes, server_nonce: bytes, client_nonce: bytes) -> bytes:
    """Give what the server shows to the client."""
    return hmac.digest(key, b"server " + client_nonce + server_nonce, hashlib.sha256)


def _parse(payload: bytes) -> list[Any]:
    try:
        fields = msgpack.unpackb(payload, max_array_len=FRAME_FIELDS_MAX, max_map_len=0, max_ext_len=0)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise FrameError(f"a frame is not msgpack: {error}") from error
    if not isinstance(fields, list) or not fields or not isinstance(fields[0], int):
        raise FrameError("a frame is not an array that opens with its kind")
    return fields
