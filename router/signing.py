"""What routers tell each other by Redis is signed, because others may write there: HMAC-SHA-256, a key of the pepper.

Routers have the pepper, and nobody else there. A signature says that a router wrote it, not when: what is old may come
again. The short time for which a 429 is held sees to that. Directories have a signature of their own
(directory_signature.py), which no router can make.
"""

import hashlib
import hmac
from typing import Final

SIGNATURE_BYTES: Final = 32
# The pepper is 32 random bytes, so one HMAC with a label is all that a key of its own takes (RFC 5869, expand).
_LABEL: Final = b"bulkhead: what goes through Redis, 1"


class UnsignedError(ValueError):
    """It is not what somebody with the pepper wrote for this place."""


class Signer:
    """Signs and checks. `place`: the key or channel in Redis; what is signed for one is good for no other."""

    def __init__(self, pepper: bytes) -> None:
        self._key = hmac.digest(pepper, _LABEL, hashlib.sha256)

    def sign(self, place: str, body: bytes) -> bytes:
        """Give the body with its signature before it."""
        return self._signature(place, body) + body

    def open(self, place: str, signed: bytes) -> bytes:
        """Give the body. Raises UnsignedError."""
        signature, body = signed[:SIGNATURE_BYTES], signed[SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._signature(place, body)):
            raise UnsignedError(f"the signature is not that of {place}")
        return body

    def _signature(self, place: str, body: bytes) -> bytes:
        made = hmac.new(self._key, f"{place}\0".encode(), hashlib.sha256)
        made.update(body)
        return made.digest()
