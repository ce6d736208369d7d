"""Ids that rise with the partner's time: ULIDs (https://github.com/ulid/spec) behind a prefix that says what they name.

A ULID here is 48 bits of milliseconds, 16 bits that count within one millisecond, 64 random bits.
"""

import secrets

from actors.rules import Ids
from actors.ulids import ulid_text


class IdMint:
    """Makes ids that never fall for one partner, whatever its wall clock does: time is the partner's own.

    A payment and the operation that opens it have the same ULID: `actors.payment.payment_id_of` rests on it.
    """

    def __init__(self) -> None:
        self._at_ms = 0
        self._count = 0

    def ids(self, now_ms: int) -> Ids:
        """Give the ids for whatever one command may make."""
        if now_ms > self._at_ms:
            self._at_ms, self._count = now_ms, 0
        elif self._count == 0xFFFF:
            self._at_ms, self._count = self._at_ms + 1, 0
        else:
            self._count += 1
        text = ulid_text((self._at_ms << 80) + (self._count << 64) + secrets.randbits(64))
        return Ids(f"pay_{text}", f"op_{text}", f"re_{text}")


def created_range(prefix: str, from_ms: int | None, before_ms: int | None) -> tuple[str, str]:
    """Give the first id at or after `from_ms` and the first id at or after `before_ms`, to bound a range."""
    low = f"{prefix}_" if from_ms is None else f"{prefix}_{_first(from_ms)}"
    high = f"{prefix}_\U0010ffff" if before_ms is None else f"{prefix}_{_first(before_ms)}"
    return low, high


def _first(at_ms: int) -> str:
    clamped_ms = min(max(at_ms, 0), (1 << 48) - 1)
    return ulid_text(clamped_ms << 80)
