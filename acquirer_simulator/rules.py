"""What becomes of an operation: decided from the request, its token, its original and the time. Pure: no clock, no I/O.

Amounts are integers in minor units of their currency (ISO 4217); times are Unix times in ms.
"""

from hashlib import blake2b
from typing import NamedTuple

from acquirer_simulator.tokens import OPENING_KINDS, RETRYABLE_BY_DECLINE, Behaviour


class Operation(NamedTuple):
    """What was asked under one key. `original_key` names the authorization or purchase of a later operation."""

    key: str
    partner: str
    kind: str
    amount: int
    currency: str
    payment_method: str
    original_key: str | None


class Original(NamedTuple):
    """An approved authorization or purchase as later operations meet it: 0 <= refunded <= captured <= amount.

    `disputed`: what disputes hold, which nobody can give back a second time.
    """

    partner: str
    amount: int
    currency: str
    captured: int
    refunded: int
    voided: bool
    expires_at_ms: int | None
    disputed: int = 0


class Decision(NamedTuple):
    """The outcome of an operation: `code` is None where it is approved; figures of the original that it leaves."""

    code: str | None
    expires_at_ms: int | None
    original_after: Original | None

    @property
    def retryable(self) -> bool:
        """Whether a new payment may go through later; False for an approval."""
        return self.code is not None and RETRYABLE_BY_DECLINE[self.code]


def decide(operation: Operation, behaviour: Behaviour, original: Original | None, now_ms: int) -> Decision:
    """Decide a new operation. `original` is what `original_key` names if that was approved, else None."""
    if operation.kind in OPENING_KINDS:
        if behaviour.decline is not None:
            return Decision(behaviour.decline, None, None)
        expires = now_ms + behaviour.validity_ms if operation.kind == "authorization" else None
        return Decision(None, expires, None)
    code = _why_not(operation, original, now_ms) or behaviour.decline
    if code is not None:
        return Decision(code, None, None)
    assert original is not None
    if operation.kind == "capture":
        after = original._replace(captured=original.captured + operation.amount)
    elif operation.kind == "refund":
        after = original._replace(refunded=original.refunded + operation.amount)
    else:
        after = original._replace(voided=True)
    assert 0 <= after.refunded <= after.captured <= after.amount
    return Decision(None, None, after)


def captured_at_once(operation: Operation) -> int:
    """Return what an approved opening operation captures by itself: a purchase all of it, the others nothing."""
    return operation.amount if operation.kind == "purchase" else 0


def reference_of(key: str) -> str:
    """Return the acquirer's own reference of an approved operation: one a key, the same for ever."""
    return "acq_" + blake2b(key.encode(), digest_size=10).hexdigest()


def _why_not(operation: Operation, original: Original | None, now_ms: int) -> str | None:
    """Return the first reason, in order of precedence, why a capture, void or refund is declined."""
    if original is None or original.partner != operation.partner:
        return "original_not_found"
    if original.currency != operation.currency:
        return "currency_mismatch"
    if operation.kind == "refund":
        if operation.amount > original.captured - original.refunded:
            return "amount_exceeds_capture"
        left = original.captured - original.refunded - original.disputed
        return "charge_disputed" if operation.amount > left else None
    if original.voided:
        return "authorization_voided"
    if operation.kind == "void" and original.captured == original.amount:
        return "already_captured"
    if original.expires_at_ms is not None and now_ms >= original.expires_at_ms:
        return "authorization_expired"
    if operation.kind == "capture" and operation.amount > original.amount - original.captured:
        return "amount_exceeds_authorization"
    return None
