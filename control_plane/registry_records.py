"""What the registry holds, as values. How they are kept is not here but in registry_keys.py and registry_codec.py."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

STATUSES: Final = frozenset({"onboarding", "active", "suspended", "closing", "erasing"})
DELETION_STATES: Final = frozenset({"closing", "erasing", "deleted"})
MODES: Final = frozenset({"test", "live"})
ISOLATIONS: Final = frozenset({"dedicated", "pooled"})
RUN_STATES: Final = frozenset({"planning", "running", "paused", "stopped", "aborted", "done"})
STEP_STATES: Final = frozenset({"waiting", "moving", "done", "failed", "skipped"})
# adding -> joining -> active <-> draining -> removing -> removed; one that was never in use may go to removing at once.
CELL_STATES: Final = frozenset({"adding", "joining", "active", "draining", "removing", "removed"})
OPERATOR_ROLES: Final = frozenset({"viewer", "operator", "admin"})
OPERATOR_STATUSES: Final = frozenset({"active", "disabled"})
NEW: Final = "new"
IMPORTED: Final = "imported"
# Entries of the audit log that tell of no change (access.py). They are no part of a partner's history of changes.
READ: Final = "read"
REFUSED: Final = "refused"
FORBIDDEN: Final = "forbidden"
OPERATOR_KEY_FAILED: Final = "operator_key_failed"
PARTNER_KEY_FAILED: Final = "partner_key_failed"
ACCESSES: Final = frozenset({READ, REFUSED, FORBIDDEN, OPERATOR_KEY_FAILED, PARTNER_KEY_FAILED})


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
class Cell:
    """One cell as the operators want it. Its row stays when it is removed, so that no name or slot is used twice."""

    name: str
    slot: int  # those of the first start have 0 and up, as in the settings; each later one has the next
    state: str
    weight: float  # its share of new partners, beside the other cells' weights
    host: str
    door_port: int
    advertised_port: int  # the door's port as routers are told it
    metrics_port: int
    ray_port: int
    cluster_file: str  # FoundationDB's; empty: the one that all cells share, or the store is SQLite
    created_at: str

    @property
    def is_running(self) -> bool:
        """Whether its processes are to run."""
        return self.state != "removed"

    @property
    def is_published(self) -> bool:
        """Whether routers are told of it."""
        return self.state == "joining" or self.is_in_use

    @property
    def is_in_use(self) -> bool:
        """Whether partners may be there: routers know it by then."""
        return self.state in {"active", "draining"}


@dataclass(frozen=True, slots=True)
class Rebalance:
    """A run of moves: what was planned, how it is bounded, and how it is. `why` says what stopped it."""

    id: str
    by: str  # hash, load, drain
    state: str  # planning, running, paused, stopped, aborted, done
    who: str
    created_at: str
    ended_at: str | None
    why: str
    at_once: int
    per_hour: int
    pause_budget_ms: int


@dataclass(frozen=True, slots=True)
class RebalanceStep:
    """One move of a run. Times are milliseconds since 1970.

    `pause_ms`: what its partner waited, of several attempts in the one in which it waited longest. None: it was not
    tried to the end yet, or, where it was, that is not known.
    """

    run_id: str
    partner_id: str
    from_cell: str
    to_cell: str
    bytes: int
    state: str  # waiting, moving, done, failed, skipped
    attempts: int = 0
    started_at_ms: int | None = None
    ended_at_ms: int | None = None
    pause_ms: int | None = None
    error: str = ""


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
    """One entry of the audit log. `previous`: the hash of the one before it (audit_chain.py); empty in old ones.

    `keyed`: whether its own hash needs the key; those of before the seal do not. `origin`: where the request came from,
    an address or a user of this machine; empty where the control plane acted by itself.
    """

    sequence: int
    at: str
    who: str
    what: str
    partner_id: str | None
    detail: dict[str, Any]
    previous: str = ""
    keyed: bool = False
    origin: str = ""


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


def end_of_grace(grace_s: int) -> datetime:
    """Give when an old key ends that is replaced now."""
    return datetime.now(UTC) + timedelta(seconds=grace_s)
