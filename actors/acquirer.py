"""The acquirer's port: what a partner's actor asks of the bank's side. No HTTP goes in; see cells/http_acquirer.py.

Every operation has one key for ever. Performing the same key again must give the first outcome again; closing a
key makes sure, durably, that it will never charge from now on, or tells what it did. An operation that waits for the
customer is continued by confirming the same key, so it is still charged at most once.
"""

from typing import Protocol

from actors.values import dataclass


@dataclass(frozen=True, slots=True)
class Instruction:
    """One operation as the acquirer is told of it. Amounts in minor units of `currency` (ISO 4217)."""

    key: str
    partner_id: str
    kind: str  # authorization, purchase, verification, capture, void, refund
    amount: int
    currency: str
    payment_method: str
    original_key: str | None  # the authorization or purchase that a capture, void or refund is about


@dataclass(frozen=True, slots=True)
class Approved:
    """Done. `expires_ms` (Unix time) is the acquirer's own end of an authorization, where it names one."""

    reference: str
    expires_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Declined:
    """Final, and nothing was moved. `retryable`: a new payment with the same card may go through later."""

    code: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class NeverPerformed:
    """The key was closed before anything was done under it, and can do nothing any more."""


@dataclass(frozen=True, slots=True)
class Challenged:
    """Nothing was moved yet: the customer is to be sent to `url` (3-D Secure), until `expires_ms` (Unix time)."""

    url: str
    expires_ms: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """Taken, and not decided yet: the result comes by notification, or by asking the same key again later."""


Word = Approved | Declined | NeverPerformed | Challenged | Accepted


class Acquirer(Protocol):
    """One partner's connection to one acquirer."""

    async def perform(self, instruction: Instruction, timeout_ms: int) -> Approved | Declined | Challenged | Accepted:
        """Perform the operation, or learn what it became. Raises AcquirerUnknownError where nothing is told."""

    async def confirm(self, instruction: Instruction, timeout_ms: int) -> Approved | Declined | Challenged | Accepted:
        """Go on with a challenged operation: the customer came back. The same key, so asking twice charges once."""

    async def close_key(self, instruction: Instruction, timeout_ms: int) -> Approved | Declined | NeverPerformed:
        """Close the key durably and say what it did. Raises AcquirerUnknownError without a final answer."""

    async def aclose(self) -> None:
        """Give back connections. Calling it twice is no error."""
