"""A partner's profile: what an operator sets. Versions rise; an older one never replaces a newer."""

from dataclasses import dataclass

from actors import limits


@dataclass(frozen=True, slots=True)
class Profile:
    """One partner as its cell knows it."""

    partner_id: str
    version: int
    status: str = "active"  # active, suspended
    mode: str = "test"  # test, live
    isolation: str = "dedicated"  # dedicated, pooled
    acquirer_url: str = ""
    rate_per_second: int = limits.RATE_PER_SECOND_DEFAULT
    rate_burst: int = limits.RATE_BURST_DEFAULT
    in_flight_max: int = limits.IN_FLIGHT_DEFAULT
    authorization_validity_ms: int = limits.AUTHORIZATION_VALIDITY_MS
