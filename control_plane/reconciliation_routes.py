"""Reconciliations over the admin API: that one began, with which file, and what came of it. They post nothing.

`bulkhead reconcile` tells both; it works on the data folder, so nobody tells them from elsewhere (roles.py). What a
file says of itself is typed, and an end names the entry of its beginning, which has to be the same person's.
"""

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from control_plane import limits
from control_plane.errors import NotFoundError, RefusedError
from control_plane.operator_routes import AskedBy
from control_plane.registry import Registry
from control_plane.settings import AcquirerName
from router.directory import PARTNER_ID

BEGUN: Final = "reconciliation_begun"
ENDED: Final = "reconciliation_ended"
_Rows = Annotated[int, Field(ge=0, le=limits.SETTLEMENT_FILE_ROWS_MAX)]
_Sum = Annotated[int, Field(ge=-limits.SETTLEMENT_SUM_MAX, le=limits.SETTLEMENT_SUM_MAX)]


class _Told(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Total(_Told):
    """The sums of one currency, in minor units."""

    currency: Annotated[str, Field(pattern="^[A-Z]{3}$")]
    gross: _Sum
    fee: _Sum
    net: _Sum
    rows: _Rows


class BeginReconciliation(_Told):
    """A settlement file as it tells of itself."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    settlement_date: Annotated[str, Field(pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}$")]
    kind: Literal["final", "preliminary"]
    partner: Annotated[str, Field(pattern=f"^{PARTNER_ID}$")] | None
    acquirer: AcquirerName
    rows: _Rows
    totals: Annotated[list[Total], Field(max_length=limits.SETTLEMENT_CURRENCIES_MAX)]


class EndReconciliation(_Told):
    """How many rows are what."""

    rows: _Rows
    matched: _Rows
    differing: _Rows
    extra: _Rows
    missing: _Rows
    repeated: _Rows
    not_asked: Annotated[int, Field(ge=0, le=limits.PARTNERS_MAX)]


def make_routes(registry: Registry) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/reconciliations")

    @routes.post("", status_code=201)
    async def begin(body: BeginReconciliation, who: AskedBy) -> dict[str, Any]:
        return {"entry": await registry.note(who, BEGUN, None, body.model_dump()), "who": who}

    @routes.post("/{entry}/end", status_code=201)
    async def end(entry: int, body: EndReconciliation, who: AskedBy) -> dict[str, Any]:
        begun = await registry.change(entry)
        if begun is None or begun.what != BEGUN:
            raise NotFoundError(f"entry {entry} of the audit log is no beginning of a reconciliation")
        if begun.who != who:
            raise RefusedError(f"{begun.who} began it, and {who} ends it", hint="who begins a reconciliation ends it")
        if body.rows > begun.detail["rows"]:
            raise RefusedError(f"{body.rows} rows are more than the file's {begun.detail['rows']}")
        detail = {"begun": entry, "sha256": begun.detail["sha256"], **body.model_dump()}
        return {"entry": await registry.note(who, ENDED, None, detail)}

    return routes
