"""What the registry holds, as values. How they are kept is not here but in registry_keys.py and registry_codec.py."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

STATUSES: Final = frozenset({"onboarding", "active", "suspended", "closing", "erasing"})
DELETION_STATES: Final = frozenset({"closing", "erasing", "deleted"})
MODES: Final = frozenset({"test", "live"})
ISOLATIONS: Final = frozenset({"dedicated", "pooled"})
OPERATOR_ROLES: Final = frozenset({"viewer", "operator", "admin"})
OPERATOR_STATUSES: Final = frozenset({"active", "disabled"})
NEW: Final = "new"
IMPORTED: Final = "imported"


@dataclass(frozen=True, slots=True)
class Partner:
    """One partner as the operators know it. Status: onboarding, active, suspended; closing and erasing (Deletion)."""

    id: str
    name: str
    status: str
    mode: str
    cell: str  # where its book was made
    rate_per_second: int
    rate_burst: int
    in_flight_max: int
    api_version: str  # a date, pinned at onboarding
    profile_version: int
    created_at: str
    isolation: str = "dedicated"  # dedicated: a worker of its own; pooled: one that it shares
    acquirers: tuple[str, ...] = ()  # by name, the first choice first; empty: the installation's own
    currencies: tuple[str, ...] = ()  # that new payments may be in (ISO 4217); empty: all


@dataclass(frozen=True, slots=True)
class Key:
    """What is kept of an API key. Times are RFC 3339."""

    id: str
    partner_id: str
    hash: str
    hint: str
    created_at: str
    expires_at: str | None
    revoked_at: str | None

    def is_good(self, now: datetime) -> bool:
        """Whether it still opens the door."""
        return self.revoked_at is None and (self.expires_at is None or datetime.fromisoformat(self.expires_at) > now)


@dataclass(frozen=True, slots=True)
class Operator:
    """Who may use the admin API. Status: active, disabled. Of its key only the hash is kept, and how it ends."""

    id: str
    role: str
    status: str
    hash: str
    hint: str
    created_at: str


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of the audit log. `previous`: the hash of the one before it (audit_chain.py); empty in old ones."""

    sequence: int
    at: str
    who: str
    what: str
    partner_id: str | None
    detail: dict[str, Any]
    previous: str = ""


@dataclass(frozen=True, slots=True)
class Deletion:
    """A partner that is being deleted, and then that it was: the row stays, so that its id is never given again.

    State: closing (it reads, and can be restored), erasing (only forward), deleted. Times are RFC 3339.
    """

    partner_id: str
    state: str
    status_before: str
    who: str
    asked_at: str
    due_at: str
    ended_at: str = ""


@dataclass(frozen=True, slots=True)
class Owner:
    """The control plane that writes the registry. `token` is its own; `name` and `since` are for people."""

    token: str
    name: str
    since: str


@dataclass(frozen=True, slots=True)
class Origin:
    """How the registry came to be whole: `new` at a first start, or `imported` from the SQL file of before."""

    how: str
    at: str
