"""Frames: four bytes of length (big-endian), then a msgpack array. Pure; connection.py has the sockets.

    challenge   [CHALLENGE, version, server_nonce]                                    server -> client
    proof       [PROOF, version, role, client_nonce, client_public_key, mac]          client -> server
    welcome     [WELCOME, server_public_key, mac]                                     server -> client
    request     [REQUEST, id, method, budget_ms, partner_id, body]          sealed    client -> server
    answer      [ANSWER, id, body]                                          sealed    server -> client

sealing.py has the handshake and the seal. `budget_ms` is the time left to the command's deadline, so that clocks need
not agree.
"""

import hashlib
import hmac
import struct
from collections.abc import Callable
from typing import Any, Final

import msgpack

from cells.api.limits import FRAME_BYTES_MAX, FRAME_FIELDS_MAX

CHALLENGE: Final = 1
PROOF: Final = 2
WELCOME: Final = 3
REQUEST: Final = 4
ANSWER: Final = 5

_LENGTH = struct.Struct(">I")


class FrameError(ValueError):
    """The peer sent what is no frame; its connection is closed."""


def pack(fields: list[Any]) -> bytes:
    """Return a frame's payload. Raises FrameError where it would be larger than FRAME_BYTES_MAX."""
    payload: bytes = msgpack.packb(fields)
    if len(payload) > FRAME_BYTES_MAX:
        raise FrameError(f"a frame of {len(payload)} bytes is larger than {FRAME_BYTES_MAX}")
    return payload


def announce(payload: bytes) -> bytes:
    """Return a payload with its length before it."""
    return _LENGTH.pack(len(payload)) + payload


class Decoder:
    """Cuts a stream of bytes into frames, holding at most one unfinished frame of `bytes_max`.

    `unseal`: makes a payload of what stands after a length. Raises FrameError.
    """

    def __init__(self, bytes_max: int = FRAME_BYTES_MAX, unseal: Callable[[bytes], bytes] | None = None) -> None:
        self._bytes_max = bytes_max
        self._unseal = unseal
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[list[Any]]:
        """Return the frames that are whole with these bytes. Raises FrameError; the stream is then of no use."""
        buffer = self._buffer
        buffer += data
        frames: list[list[Any]] = []
        position = 0
        available = len(buffer)
        while available - position >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, position)
            if length > self._bytes_max:
                raise FrameError(f"a frame announces {length} bytes, at most {self._bytes_max} are allowed")
            end = position + _LENGTH.size + length
            if end > available:
                break
            payload = bytes(buffer[position + _LENGTH.size : end])
            frames.append(_parse(payload if self._unseal is None else self._unseal(payload)))
            position = end
        del buffer[:position]
        return frames

    def feed_one(self, data: bytes) -> list[Any] | None:
        """Return a frame after which its sender has to wait, None where it is not whole yet. Raises FrameError."""
        frames = self.feed(data)
        if frames and (len(frames) > 1 or self._buffer):
            raise FrameError("more came than one frame of the handshake")
        return frames[0] if frames else None


def role_key(cell_secret: bytes, role: str) -> bytes:
    """Derive a role's key from the cell's secret, so that a router can't speak as the control plane."""
    return hmac.digest(cell_secret, b"bulkhead role " + role.encode(), hashlib.sha256)


def _parse(payload: bytes) -> list[Any]:
    try:
        fields = msgpack.unpackb(payload, max_array_len=FRAME_FIELDS_MAX, max_map_len=0, max_ext_len=0)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise FrameError(f"a frame is not msgpack: {error}") from error
    if not isinstance(fields, list) or not fields or not isinstance(fields[0], int):
        raise FrameError("a frame is not an array that opens with its kind")
    return fields
