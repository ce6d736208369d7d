"""What each role of operators may do: one table, route by route. A test holds it against the routes that there are."""

import re
from enum import IntEnum
from typing import Final


class Role(IntEnum):
    """Each may do what those before it may."""

    VIEWER = 1
    OPERATOR = 2
    ADMIN = 3

    @property
    def word(self) -> str:
        """Its name, as it is kept and shown."""
        return self.name.lower()


ROLES: Final = {role.word: role for role in Role}

ROLE_OF: Final[dict[tuple[str, str], Role]] = {
    ("GET", "/openapi.json"): Role.VIEWER,
    ("GET", "/status"): Role.VIEWER,
    ("GET", "/whoami"): Role.VIEWER,
    ("GET", "/partners"): Role.VIEWER,
    ("GET", "/partners/{partner_id}"): Role.VIEWER,
    ("GET", "/moves"): Role.VIEWER,
    ("GET", "/cells"): Role.VIEWER,
    ("GET", "/rebalance"): Role.VIEWER,
    ("POST", "/rebalance/plan"): Role.VIEWER,
    ("GET", "/unknown"): Role.VIEWER,
    ("GET", "/audit-log"): Role.VIEWER,
    ("GET", "/approvals"): Role.VIEWER,
    ("GET", "/approvals/{approval_id}"): Role.VIEWER,
    # Whether a person's role is high enough depends on what waits (approvals.py).
    ("POST", "/approvals/{approval_id}/approve"): Role.OPERATOR,
    ("POST", "/approvals/{approval_id}/refuse"): Role.OPERATOR,
    ("POST", "/approvals/{approval_id}/withdraw"): Role.OPERATOR,
    ("POST", "/partners"): Role.OPERATOR,
    ("POST", "/partners/import"): Role.OPERATOR,
    ("POST", "/partners/{partner_id}/suspend"): Role.OPERATOR,
    ("POST", "/partners/{partner_id}/resume"): Role.OPERATOR,
    ("POST", "/partners/{partner_id}/isolate"): Role.OPERATOR,
    ("POST", "/partners/{partner_id}/pool"): Role.OPERATOR,
    ("POST", "/partners/{partner_id}/release"): Role.OPERATOR,
    # Only an admin begins what can't be taken back in the end.
    ("POST", "/partners/{partner_id}/delete"): Role.ADMIN,
    ("POST", "/partners/{partner_id}/restore"): Role.OPERATOR,
    ("PATCH", "/partners/{partner_id}/limits"): Role.OPERATOR,
    ("PUT", "/partners/{partner_id}/acquirers"): Role.OPERATOR,
    ("PUT", "/partners/{partner_id}/currencies"): Role.OPERATOR,
    ("POST", "/partners/{partner_id}/keys"): Role.OPERATOR,
    ("DELETE", "/partners/{partner_id}/keys/{key_id}"): Role.OPERATOR,
    ("POST", "/partners/{partner_id}/move"): Role.OPERATOR,
    ("DELETE", "/partners/{partner_id}/move"): Role.OPERATOR,
    ("POST", "/cells"): Role.OPERATOR,
    ("POST", "/cells/{name}/drain"): Role.OPERATOR,
    ("PUT", "/cells/{name}/weight"): Role.OPERATOR,
    ("POST", "/cells/{name}/remove"): Role.OPERATOR,
    ("POST", "/cells/{name}/evacuate"): Role.OPERATOR,
    ("POST", "/rebalance/apply"): Role.OPERATOR,
    ("POST", "/rebalance/pause"): Role.OPERATOR,
    ("POST", "/rebalance/abort"): Role.OPERATOR,
    ("POST", "/unknown/{operation_id}/resolve"): Role.OPERATOR,
    ("POST", "/reconciliations"): Role.OPERATOR,
    ("POST", "/reconciliations/{entry}/end"): Role.OPERATOR,
    ("GET", "/operators"): Role.ADMIN,
    ("POST", "/operators"): Role.ADMIN,
    ("POST", "/operators/{operator_id}/disable"): Role.ADMIN,
    ("POST", "/operators/{operator_id}/enable"): Role.ADMIN,
    ("POST", "/operators/{operator_id}/key"): Role.ADMIN,
}


# What tells of work on the data folder itself, so only who comes over the Unix socket in it.
ON_THIS_MACHINE: Final = frozenset({("POST", "/reconciliations"), ("POST", "/reconciliations/{entry}/end")})


# What is read without an entry of the audit log: how the installation is. All else that is read is noted there.
UNNOTED_READS: Final = frozenset(
    {
        ("GET", "/openapi.json"),
        ("GET", "/status"),
        ("GET", "/whoami"),
        ("GET", "/moves"),
        ("GET", "/cells"),
        ("GET", "/rebalance"),
    }
)


# Routes that can be tried: those that change nothing before their first write to the registry, and those that look at
# `dry_run.ASKED` before they act.
DRY_RUNS: Final = frozenset(
    {
        ("POST", "/partners"),
        ("POST", "/partners/{partner_id}/suspend"),
        ("POST", "/partners/{partner_id}/resume"),
        ("POST", "/partners/{partner_id}/isolate"),
        ("POST", "/partners/{partner_id}/pool"),
        ("POST", "/partners/{partner_id}/release"),
        ("POST", "/partners/{partner_id}/delete"),
        ("POST", "/partners/{partner_id}/restore"),
        ("POST", "/partners/{partner_id}/move"),
        ("POST", "/rebalance/apply"),
        ("POST", "/rebalance/pause"),
        ("POST", "/rebalance/abort"),
        ("POST", "/unknown/{operation_id}/resolve"),
        ("PATCH", "/partners/{partner_id}/limits"),
        ("PUT", "/partners/{partner_id}/acquirers"),
        ("PUT", "/partners/{partner_id}/currencies"),
        ("POST", "/partners/{partner_id}/keys"),
        ("DELETE", "/partners/{partner_id}/keys/{key_id}"),
        ("POST", "/operators"),
        ("POST", "/operators/{operator_id}/disable"),
        ("POST", "/operators/{operator_id}/enable"),
        ("POST", "/operators/{operator_id}/key"),
    }
)


def role_for(method: str, path: str) -> tuple[str, Role]:
    """Give the route that a path is of, and the role that it needs; what the table does not name needs the highest."""
    for pattern, route in _PATTERNS.get(method, ()):
        if pattern.fullmatch(path):
            return route, ROLE_OF[method, route]
    return path, Role.ADMIN


def _patterns() -> dict[str, list[tuple[re.Pattern[str], str]]]:
    found: dict[str, list[tuple[re.Pattern[str], str]]] = {}
    # A route without parameters is found before one that would take its word for an id.
    for method, route in sorted(ROLE_OF, key=lambda named: named[1].count("{")):
        pattern = re.compile(re.sub(r"\\{[a-z_]+\\}", "[^/]+", re.escape(route)))
        found.setdefault(method, []).append((pattern, route))
    return found


_PATTERNS: Final = _patterns()
