"""The admin API: what the `bulkhead` command asks, over a Unix socket that only this user can open.

It reads and checks requests and calls the control plane's parts; no decision about a partner is made here.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Final, Literal

import structlog
import uvicorn
from fastapi import APIRouter, FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from cells.api import limits as wire_limits
from control_plane import limits
from control_plane.api_keys import make_partner_id
from control_plane.doors import Doors
from control_plane.errors import ControlPlaneError, RegistryError, SettingsError
from control_plane.moves import Moves
from control_plane.partners import Changed, NewPartner, Partners
from control_plane.registry import Registry
from control_plane.registry_records import Partner
from control_plane.settings import AcquirerName
from router.directory import PARTNER_ID

log = structlog.get_logger()

OPERATOR_HEADER: Final = "X-Operator"

Rate = Annotated[int, Field(ge=1, le=wire_limits.PARTNER_RATE_PER_SECOND_MAX)]
Burst = Annotated[int, Field(ge=1, le=wire_limits.PARTNER_RATE_BURST_MAX)]
InFlight = Annotated[int, Field(ge=1, le=wire_limits.PARTNER_IN_FLIGHT_MAX)]
AcquirerNames = Annotated[list[AcquirerName], Field(max_length=wire_limits.ACQUIRERS_MAX)]
PartnerName = Annotated[
    str, Field(min_length=1, max_length=limits.PARTNER_NAME_CHARACTERS_MAX, pattern=r"^[^\x00-\x1f]+$")
]
Operator = Annotated[str, Header(alias=OPERATOR_HEADER, min_length=1, max_length=100)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CreatePartner(_Body):
    """A partner to onboard; an id is made where none is given."""

    id: Annotated[str, Field(pattern=f"^{PARTNER_ID}$")] | None = None
    name: PartnerName | None = None
    mode: Literal["test", "live"] = "test"
    rate_per_second: Rate = wire_limits.PARTNER_RATE_PER_SECOND_DEFAULT
    rate_burst: Burst = wire_limits.PARTNER_RATE_BURST_DEFAULT
    in_flight_max: InFlight = wire_limits.PARTNER_IN_FLIGHT_DEFAULT
    isolation: Literal["dedicated", "pooled"] = "dedicated"
    acquirers: AcquirerNames = []


class SetLimits(_Body):
    """Limits to change; those left out stay."""

    rate_per_second: Rate | None = None
    rate_burst: Burst | None = None
    in_flight_max: InFlight | None = None


class SetAcquirers(_Body):
    """Which acquirers new payments go to, the first choice first; none: the installation's main one."""

    acquirers: AcquirerNames


class MovePartner(_Body):
    """Where a partner is to go, and how long to wait for it; it goes on after that, too."""

    to: Annotated[str, Field(pattern="^[a-z0-9-]{1,40}$")]
    wait_s: Annotated[float, Field(ge=0, le=limits.MOVE_WAIT_S_MAX)] = 0


class RotateKey(_Body):
    """How long the older keys stay good."""

    grace_s: Annotated[int, Field(ge=0, le=limits.KEY_GRACE_S_MAX)] = limits.KEY_GRACE_S_DEFAULT


class Resolve(_Body):
    """What a person found out about an operation."""

    partner: Annotated[str, Field(pattern=f"^{PARTNER_ID}$")]
    outcome: Literal["succeeded", "failed"]
    note: Annotated[str, Field(min_length=1, max_length=limits.NOTE_CHARACTERS_MAX)]


class NoteReconciliation(_Body):
    """What an operator does with a settlement file. `detail`: what the file says of itself, and what came of it."""

    stage: Literal["begun", "ended"]
    detail: dict[str, Any]


def make_app(
    registry: Registry,
    partners: Partners,
    doors: Doors,
    moves: Moves,
    status: Callable[[], Awaitable[dict[str, Any]]],
    more: Sequence[APIRouter] = (),
) -> FastAPI:
    """Make the application; `more` are routes that stand in files of their own."""
    app = FastAPI(title="Bulkhead control plane", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(ControlPlaneError, _explain)
    app.add_exception_handler(RequestValidationError, _explain_invalid)
    app.include_router(_partner_routes(registry, partners, doors))
    app.include_router(_isolation_routes(partners))
    app.include_router(_move_routes(moves))
    app.include_router(_unknown_routes(registry, doors))
    app.include_router(_settlement_routes(registry))
    for routes in more:
        app.include_router(routes)

    @app.get("/status")
    async def get_status() -> dict[str, Any]:
        return await status()

    return app


def _partner_routes(registry: Registry, partners: Partners, doors: Doors) -> APIRouter:
    routes = APIRouter(prefix="/partners")

    @routes.get("")
    async def list_partners() -> dict[str, Any]:
        return {"partners": [asdict(partner) for partner in registry.partners()]}

    @routes.post("", status_code=201)
    async def create_partner(body: CreatePartner, operator: Operator) -> dict[str, Any]:
        partner_id = body.id or make_partner_id()
        wanted = NewPartner(
            id=partner_id,
            name=body.name or partner_id,
            mode=body.mode,
            rate_per_second=body.rate_per_second,
            rate_burst=body.rate_burst,
            in_flight_max=body.in_flight_max,
            isolation=body.isolation,
            acquirers=tuple(body.acquirers),
        )
        return _changed(await partners.create(wanted, operator))

    @routes.get("/{partner_id}")
    async def show_partner(partner_id: str) -> dict[str, Any]:
        partner, keys = registry.partner(partner_id), registry.keys(partner_id)
        changes, unread = [], None
        try:
            changes = await registry.changes(partner_id)
        except RegistryError as error:
            unread = error.what  # the rest is in memory and shown all the same
        return {
            "partner": asdict(partner),
            # A hash is of no use to an operator, and of some to a thief.
            "keys": [{name: value for name, value in asdict(key).items() if name != "hash"} for key in keys],
            "changes": [asdict(change) for change in changes],
            "changes_unread": unread,
            "at_door": await _at_door(doors, partner),
        }

    @routes.post("/{partner_id}/suspend")
    async def suspend_partner(partner_id: str, operator: Operator) -> dict[str, Any]:
        return _changed(await partners.set_status(partner_id, "suspended", operator))

    @routes.post("/{partner_id}/resume")
    async def resume_partner(partner_id: str, operator: Operator) -> dict[str, Any]:
        return _changed(await partners.set_status(partner_id, "active", operator))

    @routes.patch("/{partner_id}/limits")
    async def set_limits(partner_id: str, body: SetLimits, operator: Operator) -> dict[str, Any]:
        changed = body.model_dump(exclude_none=True)
        if not changed:
            raise SettingsError("no limit was named", hint="name --rate, --burst or --in-flight")
        return _changed(await partners.set_limits(partner_id, changed, operator))

    @routes.put("/{partner_id}/acquirers")
    async def set_acquirers(partner_id: str, body: SetAcquirers, operator: Operator) -> dict[str, Any]:
        return _changed(await partners.set_acquirers(partner_id, tuple(body.acquirers), operator))

    @routes.post("/{partner_id}/keys", status_code=201)
    async def rotate_key(partner_id: str, body: RotateKey, operator: Operator) -> dict[str, Any]:
        return _changed(await partners.rotate_key(partner_id, body.grace_s, operator))

    @routes.delete("/{partner_id}/keys/{key_id}")
    async def revoke_key(partner_id: str, key_id: str, operator: Operator) -> dict[str, Any]:
        return _changed(await partners.revoke_key(partner_id, key_id, operator))

    return routes


def _isolation_routes(partners: Partners) -> APIRouter:
    routes = APIRouter(prefix="/partners")

    @routes.post("/{partner_id}/isolate")
    async def isolate_partner(partner_id: str, operator: Operator) -> dict[str, Any]:
        return _changed(await partners.set_isolation(partner_id, "dedicated", operator))

    @routes.post("/{partner_id}/pool")
    async def pool_partner(partner_id: str, operator: Operator) -> dict[str, Any]:
        return _changed(await partners.set_isolation(partner_id, "pooled", operator))

    @routes.post("/{partner_id}/release")
    async def release_partner(partner_id: str, operator: Operator) -> dict[str, Any]:
        return _changed(await partners.release(partner_id, operator))

    return routes


def _move_routes(moves: Moves) -> APIRouter:
    routes = APIRouter()

    @routes.get("/moves")
    async def list_moves() -> dict[str, Any]:
        return {"moves": [move.described() for move in moves.running()]}

    @routes.post("/partners/{partner_id}/move")
    async def move_partner(partner_id: str, body: MovePartner, operator: Operator) -> dict[str, Any]:
        task = await moves.start(partner_id, body.to, operator)
        if body.wait_s:
            await asyncio.wait([task], timeout=body.wait_s)
        if task.done():
            return {**task.result().described(), "ended": True}
        running = next((move for move in moves.running() if move.partner_id == partner_id), None)
        return {**({} if running is None else running.described()), "ended": False}

    @routes.delete("/partners/{partner_id}/move")
    async def abort_move(partner_id: str, operator: Operator) -> dict[str, Any]:
        log.info("move_abort_asked", partner=partner_id, who=operator)
        return (await moves.abort(partner_id)).described()

    return routes


def _unknown_routes(registry: Registry, doors: Doors) -> APIRouter:
    routes = APIRouter(prefix="/unknown")

    @routes.get("")
    async def list_unknown(partner: str | None = None) -> dict[str, Any]:
        if partner is not None:
            return await _list_unknown(doors, [registry.partner(partner)])
        return await _list_unknown(doors, registry.partners())

    @routes.post("/{operation_id}/resolve")
    async def resolve(operation_id: str, body: Resolve, operator: Operator) -> dict[str, Any]:
        partner = registry.partner(body.partner)
        result = await doors.resolve_operation(
            partner.cell, partner.id, operation_id, outcome=body.outcome, operator=operator, note=body.note
        )
        detail = {"operation": operation_id, "outcome": body.outcome, "note": body.note}
        await registry.note(operator, "operation_resolved", partner.id, detail)
        return {"operation_id": operation_id, "partner": partner.id, "outcome": body.outcome, "answer": result}

    return routes


def _settlement_routes(registry: Registry) -> APIRouter:
    routes = APIRouter(prefix="/reconciliations")

    @routes.post("", status_code=201)
    async def note(body: NoteReconciliation, operator: Operator) -> dict[str, Any]:
        await registry.note(operator, f"reconciliation_{body.stage}", None, body.detail)
        return {"noted": body.stage}

    return routes


class AdminServer(uvicorn.Server):
    """A uvicorn that leaves the signals to the supervisor, in whose process it runs."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def make_server(app: FastAPI) -> AdminServer:
    """Make the server; `serve(sockets=[...])` runs it, `should_exit = True` ends it."""
    return AdminServer(
        uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1)
    )


async def _at_door(doors: Doors, partner: Partner) -> dict[str, Any] | None:
    """Give how the partner's door sees it; None where it doesn't, or does not answer."""
    try:
        status = await doors.cell_status(partner.cell)
    except ControlPlaneError as error:
        log.debug("door_not_asked", cell=partner.cell, error=error.what)
        return None
    found = next((one for one in status.partners if one.partner == partner.id), None)
    return None if found is None else found.model_dump()


async def _list_unknown(doors: Doors, partners: list[Partner]) -> dict[str, Any]:
    slots = asyncio.Semaphore(limits.LIST_UNKNOWN_AT_ONCE_MAX)

    async def one(partner: Partner) -> tuple[list[dict[str, Any]], dict[str, str] | None]:
        if partner.status == "onboarding":
            return [], None
        try:
            async with slots:
                found = await doors.list_unknown(partner.cell, partner.id)
        except ControlPlaneError as error:
            return [], {"partner": partner.id, "error": error.what}
        return [{"partner": partner.id, **operation.model_dump()} for operation in found], None

    answers = await asyncio.gather(*(one(partner) for partner in partners))
    return {
        "operations": [operation for found, _ in answers for operation in found],
        "not_asked": [error for _, error in answers if error is not None],
    }


def _changed(changed: Changed) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "partner": asdict(changed.partner),
        "routers_behind": list(changed.routers_behind),
        "door_behind": changed.door_behind,
    }
    if changed.key is not None:
        fields["key"] = {"id": changed.key.id, "hint": changed.key.hint, "api_key": changed.key.text}
    return fields


async def _explain(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ControlPlaneError)
    fields = {
        "kind": type(error).code,
        "code": error.code,  # a door's refusals keep their own
        "what": error.what,
        "where": error.where,
        "hint": error.hint,
    }
    return JSONResponse(fields, status_code=error.http_status)


async def _explain_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = "; ".join(f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors())
    return await _explain(request, SettingsError(problems, where="the options given", hint="see --help"))
