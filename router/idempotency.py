"""Idempotency keys: read from the head, and hashed before anything else sees them. Pure.

A key is a partner's text, so it may hold anything, a card's number too. It is not scanned for one: of keys with random
digits one in a hundred would be refused. Cells get a keyed hash, from which no number can be guessed (PCI DSS 3.5.1.1).
"""

import hashlib
import hmac
import re
from typing import Final

from router import problems
from router.limits import actor_limits
from router.problems import EdgeCode, ProblemError
from router.reading import Head

_VISIBLE: Final = re.compile(rb"[\x21-\x7e]+")
# A string in the terms of structured fields (RFC 9651), which the draft on Idempotency-Key asks for.
_QUOTED: Final = re.compile(rb'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
# The pepper is 32 random bytes, so one HMAC with a label is all that a key of its own takes (RFC 5869, expand).
_LABEL: Final = b"bulkhead: idempotency keys, 1"


class IdempotencyKeys:
    """Reads keys and hashes them under the installation's pepper, which all routers share."""

    def __init__(self, pepper: bytes) -> None:
        self._key = hmac.digest(pepper, _LABEL, hashlib.sha256)

    def read(self, head: Head, partner_id: str) -> str | None:
        """Return the hash of the Idempotency-Key for this partner, 64 hexadecimal digits; None where there is no key.

        Raises ProblemError (400).
        """
        key = parse(head)
        if key is None:
            return None
        return hmac.digest(self._key, f"{partner_id}\0{key}".encode(), hashlib.sha256).hex()


def parse(head: Head) -> str | None:
    """Return the Idempotency-Key: 1 to 255 visible ASCII characters, bare or as a quoted string.

    draft-ietf-httpapi-idempotency-key-header-07 makes it a structured field string; most clients send it bare. `"abc"`
    and `abc` are the same key. Raises ProblemError (400).
    """
    values = head.values(b"idempotency-key")
    if not values:
        return None
    if len(values) > 1:
        raise _bad_key("is there more than once")
    value = values[0].strip(b" \t")
    if value[:1] == b'"':
        quoted = _QUOTED.fullmatch(value)
        if quoted is None:
            raise _bad_key("opens with a quote and is no quoted string")
        value = re.sub(rb"\\(.)", rb"\1", quoted[1])
    if len(value) > actor_limits.IDEMPOTENCY_KEY_CHARACTERS_MAX or _VISIBLE.fullmatch(value) is None:
        raise _bad_key(f"should have 1 to {actor_limits.IDEMPOTENCY_KEY_CHARACTERS_MAX} visible ASCII characters")
    return value.decode("ascii")


def _bad_key(what: str) -> ProblemError:
    return problems.fail(
        EdgeCode.IDEMPOTENCY_KEY_INVALID,
        f"The Idempotency-Key {what}.",
        errors=({"header": "Idempotency-Key", "detail": what},),
    )
