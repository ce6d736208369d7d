"""API keys on the wire: the Authorization header read (RFC 6750) and held against the directory. Pure."""

import hashlib
import hmac
from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple

from router import directory, problems
from router.directory import Directory, Partner
from router.problems import EdgeCode, ProblemError

_REALM: Final = 'Bearer realm="bulkhead"'
# What a key is held against where its partner is not known, so that both take as long.
_NOBODY: Final = "0" * 64


class UnauthorizedError(ProblemError):
    """A 401, with what the log may know: why, and the partner where there is one of that name."""

    def __init__(self, reason: str, detail: str, partner_id: str | None = None, *, error: str | None = None) -> None:
        challenge = _REALM if error is None else f'{_REALM}, error="{error}", error_description="{detail}"'
        super().__init__(problems.Problem(EdgeCode.UNAUTHORIZED, detail, headers={"www-authenticate": challenge}))
        self.reason = reason
        self.partner_id = partner_id


class Stranger(NamedTuple):
    """Who is let in by no key: why, for the log, and the partner whose name came, where there is one."""

    reason: str
    partner_id: str | None


def read_bearer(values: Sequence[bytes]) -> str:
    """Give the token of the Authorization headers that came. Raises ProblemError (400, 401)."""
    if not values:
        raise UnauthorizedError("no_key", "Send the API key as Authorization: Bearer sk_...")
    if len(values) > 1:
        raise problems.fail(
            EdgeCode.AUTHORIZATION_MALFORMED,
            "There is more than one Authorization header.",
            headers={"www-authenticate": f'{_REALM}, error="invalid_request"'},
        )
    scheme, _, token = values[0].partition(b" ")
    if scheme.lower() != b"bearer":
        raise UnauthorizedError("other_scheme", "Send the API key as Authorization: Bearer sk_...")
    try:
        return token.strip(b" ").decode("ascii")
    except UnicodeDecodeError:
        return ""  # no key has such characters: refused as any unknown one


def authenticate(values: Sequence[bytes], held: Directory, pepper: bytes, now: datetime) -> tuple[str, Partner]:
    """Give the partner whose key came. Raises ProblemError (400, 401).

    The answer is the same for a key that never was, was revoked or has expired; the reason goes to the log only.
    """
    found = find(read_bearer(values), held, pepper, now)
    if isinstance(found, Stranger):
        raise UnauthorizedError(found.reason, "The API key is not valid.", found.partner_id, error="invalid_token")
    return found


def find(token: str, held: Directory, pepper: bytes, now: datetime) -> tuple[str, Partner] | Stranger:
    """Give the partner whose key a token is, or why it is nobody's."""
    # Working a key's hash out costs more than all the rest; who was let in under this directory is known by a digest of
    # the key, so there are no more of these than keys.
    digest = hashlib.blake2b(token.encode(), digest_size=16, key=pepper).digest()
    known = held.authenticated.get(digest)
    if known is not None and (known[2].expires_at is None or known[2].expires_at > now):
        return known[0], known[1]
    named = directory.parse_key(token)
    mode, partner_id = named or ("", "")
    partner = held.partners.get(partner_id)
    presented = directory.hash_key(pepper, token)
    reason = "malformed_key" if named is None else "unknown_partner" if partner is None else "unknown_key"
    if partner is None:
        hmac.compare_digest(presented, _NOBODY)
        return Stranger(reason, None)
    for key in partner.keys:
        if hmac.compare_digest(presented, key.hash):
            if key.expires_at is not None and key.expires_at <= now:
                reason = "expired_key"
            elif mode != partner.mode:
                reason = "other_mode"
            else:
                held.authenticated[digest] = partner_id, partner, key
                return partner_id, partner
    return Stranger(reason, partner_id)
