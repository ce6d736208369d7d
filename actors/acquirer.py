"""The acquirer's port: what a partner's actor asks of the bank's side. No HTTP goes in; see cells/http_acquirer.py.

Every operation has one key for ever. Performing the same key again must give the first outcome again; closing a
key makes sure, durably, that it will never charge from now on, or tells what it did.
"""

from dataclasses import dataclass
from typing import Protocol


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


class Acquirer(Protocol):
    """One partner's connection to its acquirer."""

    async def perform(self, instruction: Instruction, timeout_ms: int) -> Approved | Declined:
        """Perform the operation, or learn what it became. Raises AcquirerUnknownError without a final answer."""

    async def close_key(self, instruction: Instruction, timeout_ms: int) -> Approved | Declined | NeverPerformed:
        """Close the key durably and say what it did. Raises AcquirerUnknownError without a final answer."""

    async def aclose(self) -> None:
        """Give back connections. Calling it twice is no error."""
