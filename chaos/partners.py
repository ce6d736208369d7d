"""The partners that an experiment makes for itself: found again or onboarded, and suspended when it is over.

On a gateway that others use, too, they are all that an experiment sends payments for. Sends no payments itself.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cells.api import limits as api_limits
from chaos.catalogue import Scope
from chaos.installation import GatewayError, Installation
from chaos.limits_checker import Limits
from chaos.run_settings import PARTNER_PREFIX, POOLED_PREFIX
from control_plane import client
from router.directory import Cell, rendezvous

# What partners have that nobody set limits for.
USUAL_LIMITS: Final = Limits(
    api_limits.PARTNER_RATE_PER_SECOND_DEFAULT,
    api_limits.PARTNER_RATE_BURST_DEFAULT,
    api_limits.PARTNER_IN_FLIGHT_DEFAULT,
)


def names_for(cells: Sequence[str], each: int, prefix: str = PARTNER_PREFIX) -> dict[str, str]:
    """Name so many partners for each cell: partner -> cell. The gateway places a partner by its name."""
    known = [Cell(name=cell, host="-", port=1) for cell in cells]
    found: dict[str, str] = {}
    left = dict.fromkeys(cells, each)
    number = 0
    while any(left.values()):
        name = f"{prefix}{number}"
        cell = rendezvous(name, known)
        assert cell is not None
        if left[cell]:
            found[name] = cell
            left[cell] -= 1
        number += 1
    return found


def is_pooled(partner: str) -> bool:
    """Say whether an experiment's partner shares its worker with others; its name tells."""
    return partner.startswith(POOLED_PREFIX)


def home_of(partner: str, cells: Sequence[str]) -> str:
    """Say in which of these cells the gateway places a partner."""
    home = rendezvous(partner, [Cell(name=cell, host="-", port=1) for cell in cells])
    assert home is not None
    return home


def require_harmless(partners: Sequence[Mapping[str, Any]], scope: Scope, cell: str) -> None:
    """See that no live partner would be hurt. Raises GatewayError."""
    if scope in {Scope.NOBODY, Scope.PARTNER}:
        return
    if scope is Scope.POOL:
        partners = [row for row in partners if row["isolation"] == "pooled"]
    live = [
        str(row["id"])
        for row in partners
        if row["mode"] == "live" and row["status"] == "active" and (scope is Scope.ALL or row["cell"] == cell)
    ]
    if live:
        where = "this gateway" if scope is Scope.ALL else cell
        raise GatewayError(
            f"{where} serves live partners ({', '.join(live[:5])}{', …' if len(live) > 5 else ''}), who would be hurt: "
            "choose another cell with --cell, or say --force"
        )


def list_all(gateway: Installation) -> list[dict[str, Any]]:
    """Give all partners as the registry has them. Raises ControlPlaneError."""
    found = client.ask(gateway.folder, "GET", "/partners")["partners"]
    assert isinstance(found, list)
    return found


def take(gateway: Installation, partner: str, there: Mapping[str, Mapping[str, Any]]) -> str:
    """Make a partner, or let one of before in again; give its new key. Raises GatewayError, ControlPlaneError."""
    isolation = "pooled" if is_pooled(partner) else "dedicated"
    if partner not in there:
        return gateway.create_partner(partner, isolation=isolation)
    if there[partner]["mode"] != "test":
        raise GatewayError(f"{partner} is a live partner: nobody's but an experiment's may be called {PARTNER_PREFIX}…")
    set_limits(gateway, partner)
    if there[partner]["status"] == "suspended":
        client.ask(gateway.folder, "POST", f"/partners/{partner}/resume")
    if isolation == "pooled":
        # Its door may keep it apart, for a worker that an earlier run killed under its command.
        client.ask(gateway.folder, "POST", f"/partners/{partner}/pool")
    key = client.ask(gateway.folder, "POST", f"/partners/{partner}/keys", {"grace_s": 0})
    return str(key["key"]["api_key"])


def release(gateway: Installation, partner: str) -> None:
    """Have its door forget which workers were lost under a partner's commands. Raises ControlPlaneError."""
    client.ask(gateway.folder, "POST", f"/partners/{partner}/release")


def set_limits(gateway: Installation, partner: str, wanted: Limits = USUAL_LIMITS) -> None:
    """Change how much a partner may send. Raises ControlPlaneError."""
    body = {
        "rate_per_second": wanted.rate_per_second,
        "rate_burst": wanted.rate_burst,
        "in_flight_max": wanted.in_flight_max,
    }
    client.ask(gateway.folder, "PATCH", f"/partners/{partner}/limits", body)


def suspend(gateway: Installation, partners: Sequence[str]) -> None:
    """Turn their requests away from now on. Raises ControlPlaneError."""
    for partner in partners:
        client.ask(gateway.folder, "POST", f"/partners/{partner}/suspend")
