"""What a partner is told of what operators changed: which entries of the audit log, and in which words. Pure.

A notice is written in the commit of its change (registry_draft.py) and goes, once it is delivered (informing.py), so no
change that a partner is to see can stay unseen for longer than its cell is away. Who changed it is not told, and of a
key no more than its id and its last characters.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from control_plane.registry_records import Change

# What ends somebody's way in, or keeps a partner's money where it is, is never refused for want of room; what undoes it
# is, so these are bounded, too.
PROTECTIVE: Final = frozenset({"key_revoked", "suspended"})


@dataclass(frozen=True, slots=True)
class Notice:
    """One change to be told to its partner. `change_id` is its name for ever, by which it is taken once."""

    partner_id: str
    sequence: int  # of its entry in the audit log
    change_id: str
    what: str
    at_ms: int
    detail: dict[str, str | int]


def notice_of(change: Change) -> Notice | None:
    """Give what the change's partner is told; None where it is of no partner, or nothing for its eyes."""
    if change.partner_id is None:
        return None
    told = _told(change.what, change.detail)
    if told is None:
        return None
    what, detail = told
    at_ms = int(datetime.fromisoformat(change.at).timestamp() * 1_000)
    return Notice(change.partner_id, change.sequence, _change_id(change), what, at_ms, detail)


def _told(what: str, detail: Mapping[str, Any]) -> tuple[str, dict[str, str | int]] | None:
    match what:
        case "key_added" if "others_end_at" in detail:  # the first key is no change of a key
            key = {"key_id": detail["key"], "hint": detail["hint"]}
            return "key_rotated", {**key, "older_keys_end_at": detail["others_end_at"]}
        case "key_revoked":
            return "key_revoked", {"key_id": detail["key"]}
        case "partner_suspended" if detail["status"][0] != "onboarding":
            return "suspended", {}
        case "partner_active" if detail["status"][0] != "onboarding":
            return "resumed", {}
        case "partner_limits":
            return "limits_changed", {name: pair[1] for name, pair in detail.items()}
        case "partner_acquirers":
            return "acquirers_changed", {"acquirers": ",".join(detail["acquirers"][1])}
        case "partner_currencies":
            return "currencies_changed", {"currencies": ",".join(detail["currencies"][1]) or "all"}
        case "partner_closing":
            return "deletion_requested", {"erased_from": detail["due_at"]}
        case "partner_restored":
            return "deletion_withdrawn", {}
        case _:
            return None


def _change_id(change: Change) -> str:
    """Name a change by what it is: a registry that came back from a backup gives its numbers a second time."""
    named = [change.sequence, change.at, change.who, change.what, change.partner_id, change.previous]
    return f"chg_{hashlib.sha256(json.dumps(named).encode()).hexdigest()[:32]}"
