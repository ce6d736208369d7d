"""A partner's profile: what an operator sets. Versions rise; an older one never replaces a newer."""

from dataclasses import dataclass
from typing import Final

from actors import limits

# The installation's first acquirer. What names no acquirer is of this one.
MAIN_ACQUIRER: Final = "main"


@dataclass(frozen=True, slots=True)
class Profile:
    """One partner as its cell knows it."""

    partner_id: str
    version: int
    status: str = "active"  # active, suspended
    mode: str = "test"  # test, live
    isolation: str = "dedicated"  # dedicated, pooled
    acquirer_url: str = ""
    acquirers: tuple[str, ...] = ()  # by name, the first choice first; empty: the installation's main one
    currencies: tuple[str, ...] = ()  # that new payments may be in (ISO 4217); empty: all
    rate_per_second: int = limits.RATE_PER_SECOND_DEFAULT
    rate_burst: int = limits.RATE_BURST_DEFAULT
    in_flight_max: int = limits.IN_FLIGHT_DEFAULT
    authorization_validity_ms: int = limits.AUTHORIZATION_VALIDITY_MS

    @property
    def choices(self) -> tuple[str, ...]:
        """The acquirers that a new payment may go to, the first choice first."""
        return self.acquirers or (MAIN_ACQUIRER,)

    def accepts(self, currency: str) -> bool:
        """Whether a new payment may be in this currency."""
        return not self.currencies or currency in self.currencies
