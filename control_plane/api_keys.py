"""API keys: made here, shown once, never stored. How they look and what is kept stands in router.directory.

A key is `sk_<mode>_<partner>_<43 characters>`: 32 random bytes in base64url without padding (RFC 4648, section 5).
Only HMAC-SHA-256(pepper, key) is kept (PCI DSS 8.3.2: unreadable in storage), and the last four characters as a hint.
"""

import secrets
from dataclasses import dataclass
from typing import Final

from router.directory import hash_key, parse_key

SECRET_BYTES: Final = 32
HINT_CHARACTERS: Final = 4


@dataclass(frozen=True, slots=True, repr=False)
class ApiKey:
    """A key just made. `text` is shown once and never stored; so this has no repr."""

    text: str
    id: str
    hash: str
    hint: str


def make_secret(first_part: str = "") -> str:
    """Make a key's secret. `first_part` is what it is to begin with; the rest is random."""
    return first_part + secrets.token_urlsafe(SECRET_BYTES)[len(first_part) :]


def make(pepper: bytes, mode: str, partner_id: str, first_part: str = "") -> ApiKey:
    """Make a new key of a partner."""
    text = f"sk_{mode}_{partner_id}_{make_secret(first_part)}"
    assert parse_key(text) == (mode, partner_id), "a key tells whose it is"
    return ApiKey(
        text=text, id=f"key_{secrets.token_hex(8)}", hash=hash_key(pepper, text), hint=text[-HINT_CHARACTERS:]
    )


def make_partner_id() -> str:
    """Make an id for a partner whose operator chose none."""
    return f"partner_{secrets.token_hex(4)}"
