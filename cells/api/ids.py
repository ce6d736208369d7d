"""Ids that are minted outside of partners' actors: ULIDs by the wall clock (https://github.com/ulid/spec)."""

import secrets
import time

from actors.ulids import ulid_text


def new_ulid() -> str:
    """Give a new ULID: 48 bits of milliseconds, 80 random bits."""
    return ulid_text((time.time_ns() // 1_000_000 << 80) + secrets.randbits(80))
