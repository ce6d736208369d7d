"""What becomes of a partner under whose commands workers die: strikes, then a worker of its own, then none at all.

Pure: times are arguments. What is decided for good is a row of the cell's book, so that the next door knows it.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

import msgpack

from cells import limits

VERSION: Final = 1
DEDICATED: Final = "dedicated"
QUARANTINED: Final = "quarantined"
_KINDS: Final = frozenset({DEDICATED, QUARANTINED})


class EscalationError(ValueError):
    """A kept escalation can't be read."""


@dataclass(frozen=True, slots=True)
class Escalation:
    """What the door decided about a partner: to stand until an operator says otherwise. `since_ms`: wall clock."""

    kind: str
    since_ms: int
    why: str


class Strikes:
    """When each partner's strikes were, as far as they still count. Times are monotonic.

    A worker that stopped answering may have been stopped by the machine. That befalls many at once, so stalls of two
    partners shortly after each other are neither's fault, and neither counts. A death is nobody's fault but its own's.
    """

    def __init__(self) -> None:
        self._at_ms: dict[str, deque[int]] = {}
        self._last_stall: tuple[str, int] | None = None  # whose, and when

    def add(self, partner_id: str, now_ms: int, *, is_stall: bool = False) -> int:
        """Count one; give how many count now."""
        kept = self._at_ms.setdefault(partner_id, deque(maxlen=limits.STRIKES_TO_QUARANTINE))
        while kept and kept[0] <= now_ms - limits.STRIKES_WINDOW_MS:
            kept.popleft()
        if not (is_stall and self._is_in_company(partner_id, now_ms)):
            kept.append(now_ms)
        return len(kept)

    def _is_in_company(self, partner_id: str, now_ms: int) -> bool:
        """Take note of a stall; say whether another partner's was just before, and take that one back."""
        last, self._last_stall = self._last_stall, (partner_id, now_ms)
        if last is None or last[0] == partner_id or now_ms - last[1] > limits.STALLS_TOGETHER_MS:
            return False
        others = self._at_ms.get(last[0])
        if others and others[-1] == last[1]:
            others.pop()
        return True

    def forget(self, partner_id: str) -> None:
        """Begin anew with a partner."""
        self._at_ms.pop(partner_id, None)


def verdict(strikes: int, isolation: str) -> str | None:
    """Give what so many strikes lead to: QUARANTINED, DEDICATED, or None where it is not for good yet."""
    if strikes >= limits.STRIKES_TO_QUARANTINE:
        return QUARANTINED
    return DEDICATED if strikes >= limits.STRIKES_TO_DEDICATED and isolation == "pooled" else None


def after_release(found: Escalation | None, *, isolation: str, to_pool: bool) -> Escalation | None:
    """Give what stays of an escalation when an operator releases the partner, or wants it in a pool.

    Who comes out of quarantine goes to no pool by that; who is quarantined is not released by being pooled.
    """
    if found is None or (to_pool and found.kind == DEDICATED):
        return None
    if to_pool or found.kind == DEDICATED:
        return found
    return Escalation(DEDICATED, found.since_ms, found.why) if isolation == "pooled" else None


def encode(found: Escalation) -> bytes:
    """Give an escalation's bytes."""
    return bytes(msgpack.packb([VERSION, found.kind, found.since_ms, found.why]))


def decode(value: bytes) -> Escalation:
    """Read an escalation. Raises EscalationError."""
    try:
        version, kind, since_ms, why = msgpack.unpackb(value)
    except (TypeError, ValueError) as error:
        raise EscalationError(f"it can't be read: {error}") from error
    known = version == VERSION and kind in _KINDS and type(since_ms) is int and isinstance(why, str)
    if not known:
        raise EscalationError(f"it is of version {version!r:.20} and kind {kind!r:.40}")
    return Escalation(kind, since_ms, why)
