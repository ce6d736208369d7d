"""The chain of the audit log: what each entry's hash is of, and what is wrong with a row of entries. Pure.

Each entry holds the hash of the one before it, so one that is changed, taken out or put elsewhere breaks the chain.
From the seal on, an entry of its own, a hash is an HMAC: who lacks the key (audit_key.py) can't make a chain that fits.
The newest hash, the head, tells of a log that was cut off at the end, if it is kept where the log is not.
"""

import hashlib
import hmac
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from control_plane.registry_records import Change

# What the first entry names as the hash of the one before.
NOTHING: Final = "0" * 64
# The entry from which on hashes are keyed: it names the key, and carries the head of what stood before it.
SEALED: Final = "audit_log_sealed"


@dataclass(frozen=True, slots=True, order=True)
class Head:
    """An entry's number and hash, as they were known at some place."""

    sequence: int
    hash: str

    def __str__(self) -> str:
        """Return it as `audit-log verify` prints it."""
        return f"{self.sequence}:{self.hash}"


@dataclass(slots=True)
class Verdict:
    """What a look at all entries came to.

    `unchained`: entries at the beginning, of before there was a chain. `sealed_at`: the number of the seal, 0 without.
    `unproven`: entries whose hash could not be worked out again, for want of the key.
    """

    entries: int = 0
    unchained: int = 0
    sealed_at: int = 0
    unproven: int = 0
    head: Head = Head(0, NOTHING)
    problems: list[str] = field(default_factory=list)


def digest(change: Change, key: bytes) -> str:
    """Return an entry's hash: of its fields as JSON with sorted names, without spaces, in ASCII.

    SHA-256, and for a keyed entry HMAC-SHA-256. `origin` is among them where there is one.
    """
    fields = {
        "sequence": change.sequence,
        "at": change.at,
        "who": change.who,
        "what": change.what,
        "partner_id": change.partner_id,
        "detail": change.detail,
        "previous": change.previous,
        **({"origin": change.origin} if change.origin else {}),
    }
    text = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    return hmac.digest(key, text, "sha256").hex() if change.keyed else hashlib.sha256(text).hexdigest()


def key_id(key: bytes) -> str:
    """Return what names a key without telling it."""
    return hmac.digest(key, b"the id of an audit log's key", "sha256").hex()[:16]


def verify(
    entries: Iterable[tuple[Change, str]], heads: Iterable[tuple[str, Head]], key: bytes | None = None
) -> Verdict:
    """Follow the chain from its first entry; each comes with the hash that was told with it.

    `heads`: what was known of it elsewhere, and where. Without the key a keyed entry's hash is taken as it was told: so
    it is seen whether all follow each other and end in the heads, not whether they say what they said.
    """
    verdict = Verdict()
    known: dict[int, list[tuple[str, Head]]] = {}
    for where, head in heads:
        known.setdefault(head.sequence, []).append((where, head))
    expected = 1
    for change, told in entries:
        verdict.problems += _problems(change, expected, verdict, key)
        if change.keyed and key is None:
            verdict.unproven += 1
            verdict.head = Head(change.sequence, told)
        else:
            verdict.head = Head(change.sequence, digest(change, key or b""))
        verdict.entries += 1
        expected = change.sequence + 1
        for where, head in known.pop(change.sequence, ()):
            if head.hash != verdict.head.hash:
                verdict.problems.append(f"entry {change.sequence} is not the one that {where} knows: it was changed")
    if key is not None and verdict.entries and not verdict.sealed_at:
        verdict.problems.append("no entry is sealed, though there is a key: the log was made anew without it")
    for sequence, found in sorted(known.items()):
        verdict.problems += [
            f"entry {sequence} is gone, which {where} knows: the log was cut off" for where, _ in found if sequence
        ]
    return verdict


def _problems(change: Change, expected: int, verdict: Verdict, key: bytes | None) -> Iterator[str]:
    if change.sequence != expected:
        yield f"entry {change.sequence} stands where {expected} should: one is missing, or they are in another order"
    if not change.previous and verdict.entries == verdict.unchained:
        verdict.unchained += 1
    elif change.previous != verdict.head.hash:
        yield f"entry {change.sequence} does not follow the one before it: one of the two was changed, or is another"
    if not change.keyed:
        if verdict.sealed_at:
            yield f"entry {change.sequence} stands behind the seal without the key: somebody else wrote it"
        return
    if not verdict.sealed_at:
        verdict.sealed_at = change.sequence
        if change.what != SEALED:
            yield f"entry {change.sequence} is keyed, and no seal stands before it: the seal is gone"
        elif key is not None and change.detail.get("key") != key_id(key):
            yield f"entry {change.sequence} seals the log under another key than the one given"
