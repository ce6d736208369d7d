"""The chain of the audit log: what each entry's hash is of, and what is wrong with a row of entries. Pure.

Each entry holds the hash of the one before it, so one that is changed, taken out or put elsewhere breaks the chain. The
newest hash, the head, tells of one that is changed or cut off at the end, if it is kept where the log is not.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from control_plane.registry_records import Change

# What the first entry names as the hash of the one before.
NOTHING: Final = "0" * 64


@dataclass(frozen=True, slots=True, order=True)
class Head:
    """An entry's number and hash, as they were known at some place."""

    sequence: int
    hash: str


@dataclass(slots=True)
class Verdict:
    """What a look at all entries came to. `unchained`: entries at the beginning, of before there was a chain."""

    entries: int = 0
    unchained: int = 0
    head: Head = Head(0, NOTHING)
    problems: list[str] = field(default_factory=list)


def digest(change: Change) -> str:
    """Give an entry's hash: SHA-256 of its fields as JSON with sorted names, without spaces, in ASCII."""
    fields = {
        "sequence": change.sequence,
        "at": change.at,
        "who": change.who,
        "what": change.what,
        "partner_id": change.partner_id,
        "detail": change.detail,
        "previous": change.previous,
    }
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def verify(changes: Iterable[Change], heads: Iterable[tuple[str, Head]]) -> Verdict:
    """Follow the chain from its first entry. `heads`: what was known of it elsewhere, and where."""
    verdict = Verdict()
    known: dict[int, list[tuple[str, Head]]] = {}
    for where, head in heads:
        known.setdefault(head.sequence, []).append((where, head))
    expected = 1
    for change in changes:
        verdict.problems += _problems(change, expected, verdict)
        verdict.head = Head(change.sequence, digest(change))
        verdict.entries += 1
        expected = change.sequence + 1
        for where, head in known.pop(change.sequence, ()):
            if head.hash != verdict.head.hash:
                verdict.problems.append(f"entry {change.sequence} is not the one that {where} knows: it was changed")
    for sequence, found in sorted(known.items()):
        verdict.problems += [
            f"entry {sequence} is gone, which {where} knows: the log was cut off" for where, _ in found if sequence
        ]
    return verdict


def _problems(change: Change, expected: int, verdict: Verdict) -> Iterator[str]:
    if change.sequence != expected:
        yield f"entry {change.sequence} stands where {expected} should: one is missing, or they are in another order"
    if not change.previous and verdict.entries == verdict.unchained:
        verdict.unchained += 1
    elif change.previous != verdict.head.hash:
        yield f"entry {change.sequence} does not follow the one before it: one of the two was changed, or is another"
