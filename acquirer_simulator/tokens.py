"""The payment methods a test can use, and what the acquirer does for each. Pure; nothing of HTTP or the record goes in.

| token | authorization, purchase, verification | capture, void, refund |
|---|---|---|
| `tok_approve` | approved | approved |
| `tok_decline_insufficient_funds` | declined, retryable | approved |
| `tok_decline_processing_error` | declined, retryable | approved |
| `tok_decline_stolen_card` | declined | approved |
| `tok_decline_expired_card` | declined | approved |
| `tok_slow_<ms>` | approved after so many ms | approved after so many ms |
| `tok_expires_<ms>` | approved; an authorization holds for so many ms | approved |
| `tok_timeout_charged` | approved; the first request gets no answer, later ones do | approved |
| `tok_timeout_not_charged` | never done, never answered; the key can be closed | approved |
| `tok_error_500` | never done, always HTTP 500; the key can be closed | approved |
| `tok_malformed` | approved; every answer but that of a close is garbage | approved |
| `tok_capture_decline` | approved | a capture is declined (`capture_declined`) |
| `tok_refund_decline` | approved | a refund is declined (`refund_declined`) |
| `tok_capture_timeout_charged` | approved | as `tok_timeout_charged`, for a capture |
| `tok_void_timeout_charged` | approved | as `tok_timeout_charged`, for a void |
| `tok_refund_timeout_charged` | approved | as `tok_timeout_charged`, for a refund |
| `tok_challenge` | a challenge; approved when confirmed | approved |
| `tok_challenge_decline` | a challenge; declined when confirmed (`authentication_failed`) | approved |
| `tok_challenge_abandoned` | a challenge that the customer never finishes | approved |
| `tok_challenge_expires_<ms>` | the same, and it ends after so many ms | approved |
| `tok_async_approve` | pending; approved a second later, which is notified | approved |
| `tok_async_decline` | pending; declined a second later (`insufficient_funds`), which is notified | approved |
| `tok_async_unnotified` | pending; approved a second later, which only shows when it is asked for again | approved |
| `tok_timeout_notified` | approved; no request gets an answer, a notification tells after 4 s | approved |
| `tok_dispute` | approved; a purchase is disputed a second later | approved; so is a capture |
| `tok_dispute_won`, `tok_dispute_lost` | the same; decided two seconds after that | the same |
| `tok_dispute_backwards` | as `tok_dispute_won`, told in the wrong order | the same |
| `tok_settle_missing`, `tok_settle_late`, `tok_settle_short`, `tok_settle_fee` | approved | approved |
| anything else | declined (`invalid_payment_method`) | approved |

"Approved" here means: as far as the token goes. The rules about amounts still apply (rules.py). A purchase captures by
itself, so `tok_capture_*` don't touch it. `tok_settle_*` make the settlement file wrong (settlements.py). A slow
request is performed even if its client has gone away meanwhile.
"""

import re
from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple

from acquirer_simulator import limits


class Answering(StrEnum):
    """How the requests of one operation are answered. A close is always answered properly."""

    PROPER = "proper"
    SILENT_AT_FIRST = "silent_at_first"  # the request that performed it is not answered, later ones are
    SILENT = "silent"
    SERVER_ERROR = "server_error"
    GARBAGE = "garbage"


class Dispute(NamedTuple):
    """A dispute to come. `outcome`: won, lost, or None where it stays open."""

    outcome: str | None = None
    told_backwards: bool = False


class Behaviour(NamedTuple):
    """What a token does to one operation. Times in ms; `decline` is a code of RETRYABLE_BY_DECLINE or None.

    `performs` False: not when it is asked. `challenge_ms`: a customer has so long, and `finishes` or not.
    `decides_after_ms`: it is decided so much later by itself. `notifies_after_ms`: then its result is told.
    """

    answering: Answering = Answering.PROPER
    performs: bool = True
    decline: str | None = None
    delay_ms: int = 0
    validity_ms: int = limits.AUTHORIZATION_VALIDITY_MS
    challenge_ms: int | None = None
    finishes: bool = True
    decides_after_ms: int | None = None
    notifies_after_ms: int | None = None
    dispute: Dispute | None = None


# Whether a new payment with the same method may go through later.
RETRYABLE_BY_DECLINE: Final[dict[str, bool]] = {
    # By token.
    "insufficient_funds": True,
    "processing_error": True,
    "stolen_card": False,
    "expired_card": False,
    "invalid_payment_method": False,
    "capture_declined": False,
    "refund_declined": False,
    "authentication_failed": True,
    "challenge_expired": True,
    # By the rules about amounts, in order of precedence.
    "original_not_found": False,
    "currency_mismatch": False,
    "authorization_voided": False,
    "already_captured": False,
    "authorization_expired": False,
    "amount_exceeds_authorization": False,
    "amount_exceeds_capture": False,
    "charge_disputed": True,
}

OPENING_KINDS: Final = frozenset({"authorization", "purchase", "verification"})
LATER_KINDS: Final = frozenset({"capture", "void", "refund"})
KINDS: Final = OPENING_KINDS | LATER_KINDS

# What settlements.py looks for.
SETTLED_NEVER: Final = "tok_settle_missing"
SETTLED_LATE: Final = "tok_settle_late"
SETTLED_SHORT: Final = "tok_settle_short"
SETTLED_OVERCHARGED: Final = "tok_settle_fee"

_PLAIN: Final = Behaviour()
_CHARGED_UNANSWERED: Final = Behaviour(Answering.SILENT_AT_FIRST)
_CHALLENGED: Final = Behaviour(performs=False, challenge_ms=limits.CHALLENGE_VALIDITY_MS)
_LATER_DECIDED: Final = Behaviour(
    performs=False, decides_after_ms=limits.ASYNC_RESULT_MS, notifies_after_ms=limits.ASYNC_RESULT_MS
)
_DISPUTED: Final[dict[str, Behaviour]] = {
    "tok_dispute": Behaviour(dispute=Dispute()),
    "tok_dispute_won": Behaviour(dispute=Dispute("won")),
    "tok_dispute_lost": Behaviour(dispute=Dispute("lost")),
    "tok_dispute_backwards": Behaviour(dispute=Dispute("won", told_backwards=True)),
}
_OPENING: Final[dict[str, Behaviour]] = {
    "tok_approve": _PLAIN,
    "tok_decline_insufficient_funds": Behaviour(decline="insufficient_funds"),
    "tok_decline_processing_error": Behaviour(decline="processing_error"),
    "tok_decline_stolen_card": Behaviour(decline="stolen_card"),
    "tok_decline_expired_card": Behaviour(decline="expired_card"),
    "tok_timeout_charged": _CHARGED_UNANSWERED,
    "tok_timeout_not_charged": Behaviour(Answering.SILENT, performs=False),
    "tok_error_500": Behaviour(Answering.SERVER_ERROR, performs=False),
    "tok_malformed": Behaviour(Answering.GARBAGE),
    "tok_capture_decline": _PLAIN,
    "tok_refund_decline": _PLAIN,
    "tok_capture_timeout_charged": _PLAIN,
    "tok_void_timeout_charged": _PLAIN,
    "tok_refund_timeout_charged": _PLAIN,
    "tok_challenge": _CHALLENGED,
    "tok_challenge_decline": _CHALLENGED._replace(decline="authentication_failed"),
    "tok_challenge_abandoned": _CHALLENGED._replace(finishes=False),
    "tok_async_approve": _LATER_DECIDED,
    "tok_async_decline": _LATER_DECIDED._replace(decline="insufficient_funds"),
    "tok_async_unnotified": _LATER_DECIDED._replace(notifies_after_ms=None),
    "tok_timeout_notified": Behaviour(Answering.SILENT, notifies_after_ms=limits.LATE_RESULT_MS),
    **_DISPUTED,
    SETTLED_NEVER: _PLAIN,
    SETTLED_LATE: _PLAIN,
    SETTLED_SHORT: _PLAIN,
    SETTLED_OVERCHARGED: _PLAIN,
}
_LATER: Final[dict[tuple[str, str], Behaviour]] = {
    ("tok_capture_decline", "capture"): Behaviour(decline="capture_declined"),
    ("tok_refund_decline", "refund"): Behaviour(decline="refund_declined"),
    ("tok_capture_timeout_charged", "capture"): _CHARGED_UNANSWERED,
    ("tok_void_timeout_charged", "void"): _CHARGED_UNANSWERED,
    ("tok_refund_timeout_charged", "refund"): _CHARGED_UNANSWERED,
    **{(token, "capture"): behaviour for token, behaviour in _DISPUTED.items()},
}
_WITH_MS: Final = re.compile(r"tok_(slow|expires|challenge_expires)_([0-9]{1,11})", re.ASCII)


@lru_cache(maxsize=limits.TOKENS_CACHED_MAX)
def behaviour(payment_method: str, kind: str) -> Behaviour:
    """Return what the acquirer does for an operation of this kind that is paid with this token."""
    assert kind in KINDS
    timed = _timed(payment_method)
    if kind in LATER_KINDS:
        slow = timed if timed is not None and timed.delay_ms else _PLAIN
        return _LATER.get((payment_method, kind), slow)
    if timed is not None:
        return timed
    return _OPENING.get(payment_method, Behaviour(decline="invalid_payment_method"))


def _timed(payment_method: str) -> Behaviour | None:
    match = _WITH_MS.fullmatch(payment_method)
    if match is None:
        return None
    time_ms = int(match[2])
    if match[1] == "slow":
        return Behaviour(delay_ms=time_ms) if time_ms <= limits.DELAY_MS_MAX else None
    if match[1] == "challenge_expires":
        abandoned = _CHALLENGED._replace(finishes=False, challenge_ms=time_ms)
        return abandoned if time_ms <= limits.CHALLENGE_VALIDITY_MS_MAX else None
    return Behaviour(validity_ms=time_ms) if time_ms <= limits.AUTHORIZATION_VALIDITY_MS_MAX else None
