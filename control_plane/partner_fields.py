"""What an operator may say of a partner, checked: the same for a body of the admin API and for a row of a file."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from cells.api import limits as wire_limits
from cells.api.currencies import is_chargeable
from control_plane import limits
from control_plane.free_text import WITHOUT_CARD_NUMBER
from control_plane.registry_records import Partner
from control_plane.settings import AcquirerName
from router.directory import PARTNER_ID


def _chargeable(currency: str) -> str:
    if not is_chargeable(currency):
        raise ValueError(f"{currency!r:.10} is no currency of ISO 4217 with a minor unit")
    return currency


def _unlike(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("a name stands twice")
    return names


Id = Annotated[str, Field(pattern=f"^{PARTNER_ID}$"), WITHOUT_CARD_NUMBER]
Name = Annotated[
    str,
    Field(
        min_length=1,
        max_length=limits.PARTNER_NAME_CHARACTERS_MAX,
        pattern=r"^[^\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]+$",
    ),
    WITHOUT_CARD_NUMBER,
]
Rate = Annotated[int, Field(ge=1, le=wire_limits.PARTNER_RATE_PER_SECOND_MAX)]
Burst = Annotated[int, Field(ge=1, le=wire_limits.PARTNER_RATE_BURST_MAX)]
InFlight = Annotated[int, Field(ge=1, le=wire_limits.PARTNER_IN_FLIGHT_MAX)]
AcquirerNames = Annotated[list[AcquirerName], Field(max_length=wire_limits.ACQUIRERS_MAX)]
Currencies = Annotated[
    list[Annotated[str, AfterValidator(_chargeable)]],
    Field(max_length=wire_limits.CURRENCIES_MAX),
    AfterValidator(_unlike),
]


class PartnerFields(BaseModel):
    """A partner as it is to be."""

    model_config = ConfigDict(extra="forbid")

    id: Id
    name: Name | None = None
    mode: Literal["test", "live"] = "test"
    status: Literal["active", "suspended"] = "active"
    rate_per_second: Rate = wire_limits.PARTNER_RATE_PER_SECOND_DEFAULT
    rate_burst: Burst = wire_limits.PARTNER_RATE_BURST_DEFAULT
    in_flight_max: InFlight = wire_limits.PARTNER_IN_FLIGHT_DEFAULT
    isolation: Literal["dedicated", "pooled"] = "dedicated"
    acquirers: AcquirerNames = []
    currencies: Currencies = []


# In the order of a file's columns.
FIELDS = tuple(PartnerFields.model_fields)


def of_partner(partner: Partner) -> PartnerFields:
    """Give what would make the same partner elsewhere."""
    return PartnerFields.model_validate(
        {
            "id": partner.id,
            "name": partner.name,
            "mode": partner.mode,
            # One that is still being onboarded is about to be active.
            "status": "suspended" if partner.status in {"suspended", "closing", "erasing"} else "active",
            "rate_per_second": partner.rate_per_second,
            "rate_burst": partner.rate_burst,
            "in_flight_max": partner.in_flight_max,
            "isolation": partner.isolation,
            "acquirers": list(partner.acquirers),
            "currencies": list(partner.currencies),
        }
    )


def explain(error: ValidationError) -> str:
    """Say in one line what is wrong with which fields."""
    problems = error.errors(include_url=False)
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'the row'}: {_message(one['msg'])}" for one in problems)


def _message(text: str) -> str:
    return text.removeprefix("Value error, ")
