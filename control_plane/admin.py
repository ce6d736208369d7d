"""The admin API: what the `bulkhead` command asks, over a Unix socket that only this user can open, or over TCP.

It reads and checks requests and calls the control plane's parts; no decision about a partner is made here.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

import structlog
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from control_plane import approval_routes, audit_routes, limits, operator_routes, reconciliation_routes
from control_plane.actions import changed_fields, deletion_fields
from control_plane.api_keys import make_partner_id
from control_plane.approving import Approvals
from control_plane.doors import Doors
from control_plane.dry_run import DryRunDone
from control_plane.errors import (
    ControlPlaneError,
    NotFoundError,
    RefusedError,
    RegistryError,
    SettingsError,
    WaitsForApprovalError,
)
from control_plane.free_text import WITHOUT_CARD_NUMBER
from control_plane.importing import Imported
from control_plane.moves import Moves
from control_plane.operator_routes import AskedBy, ByPerson
from control_plane.operators import Operators
from control_plane.origin import PEER, peer_of
from control_plane.partner_fields import AcquirerNames, Burst, Currencies, Id, InFlight, PartnerFields, Rate
from control_plane.partners import Changed, NewPartner, Partners
from control_plane.problem import problem
from control_plane.registry import Registry
from control_plane.registry_records import Partner
from listeners import server as listening
from listeners.protocol import BoundedProtocol
from listeners.server import QuietServer
from router.directory import PARTNER_ID

log = structlog.get_logger()


# Who asks, for the audit log.
Operator = AskedBy


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CreatePartner(PartnerFields):
    """A partner to onboard; an id is made where none is given."""

    id: Id = Field(default_factory=make_partner_id)
    status: Literal["active"] = "active"


class ImportRow(_Body):
    """A partner, and the line of its file."""

    line: Annotated[int, Field(ge=1)]
    partner: PartnerFields


class ImportPartners(_Body):
    """Partners to onboard together: all or none of them, unless `partial`. `dry_run`: only say what is wrong."""

    rows: Annotated[list[ImportRow], Field(max_length=limits.IMPORT_PARTNERS_MAX)]
    partial: bool = False
    dry_run: bool = False


class SetLimits(_Body):
    """Limits to change; those left out stay."""

    rate_per_second: Rate | None = None
    rate_burst: Burst | None = None
    in_flight_max: InFlight | None = None


class SetAcquirers(_Body):
    """Which acquirers new payments go to, the first choice first; none: the installation's main one."""

    acquirers: AcquirerNames


class SetCurrencies(_Body):
    """Which currencies new payments may be in; none: all."""

    currencies: Currencies


class MovePartner(_Body):
    """Where a partner is to go, and how long to wait for it; it goes on after that, too."""

    to: Annotated[str, Field(pattern="^[a-z0-9-]{1,40}$")]
    wait_s: Annotated[float, Field(ge=0, le=limits.MOVE_WAIT_S_MAX)] = 0


class RotateKey(_Body):
    """How long the older keys stay good."""

    grace_s: Annotated[int, Field(ge=0, le=limits.KEY_GRACE_S_MAX)] = limits.KEY_GRACE_S_DEFAULT


class DeletePartner(_Body):
    """How long a partner may still read, and be restored, before it is erased."""

    grace_s: Annotated[int, Field(ge=0, le=limits.DELETION_GRACE_S_MAX)] = limits.DELETION_GRACE_S_DEFAULT


class Resolve(_Body):
    """What a person found out about an operation."""

    partner: Annotated[str, Field(pattern=f"^{PARTNER_ID}$")]
    outcome: Literal["succeeded", "failed"]
    note: Annotated[str, Field(min_length=1, max_length=limits.NOTE_CHARACTERS_MAX), WITHOUT_CARD_NUMBER]


def make_routes(
    registry: Registry,
    partners: Partners,
    doors: Doors,
    moves: Moves,
    status: Callable[[], Awaitable[dict[str, Any]]],
    operators: Operators,
    approvals: Approvals,
    more: Sequence[APIRouter] = (),
) -> FastAPI:
    """Return the application, to stand behind a Gate; each of its routes is in roles.py."""
    app = FastAPI(title="Bulkhead control plane", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(HTTPException, _explain_http)
    app.add_exception_handler(DryRunDone, _tell_dry_run)
    app.add_exception_handler(WaitsForApprovalError, _tell_waits)
    app.add_exception_handler(ControlPlaneError, _explain)
    app.add_exception_handler(RequestValidationError, _explain_invalid)
    app.include_router(_partner_routes(registry, partners, doors, approvals))
    app.include_router(_profile_routes(partners))
    app.include_router(_isolation_routes(partners))
    app.include_router(_deletion_routes(partners, approvals))
    app.include_router(_move_routes(moves))
    app.include_router(_unknown_routes(registry, doors, approvals))
    app.include_router(reconciliation_routes.make_routes(registry))
    app.include_router(approval_routes.make_routes(registry, approvals))
    app.include_router(audit_routes.make_routes(registry))
    app.include_router(operator_routes.make_routes(registry, operators, approvals))
    for routes in more:
        app.include_router(routes)

    @app.get("/status")
    async def get_status() -> dict[str, Any]:
        return await status()

    @app.get("/openapi.json")
    async def describe() -> dict[str, Any]:
        return app.openapi()

    return app


def _partner_routes(registry: Registry, partners: Partners, doors: Doors, approvals: Approvals) -> APIRouter:
    routes = APIRouter(prefix="/partners")

    @routes.get("")
    async def list_partners() -> dict[str, Any]:
        return {"partners": [asdict(partner) for partner in registry.partners()]}

    @routes.post("", status_code=201)
    async def create_partner(body: CreatePartner, operator: Operator) -> dict[str, Any]:
        return changed_fields(await partners.create(_wanted(body), operator))

    @routes.post("/import")
    async def import_partners(body: ImportPartners, operator: Operator) -> StreamingResponse:
        rows = [(row.line, _wanted(row.partner)) for row in body.rows]
        wrong = partners.check_import(rows)
        statuses = {row.partner.id: row.partner.status for row in body.rows}
        good = [] if body.dry_run or (wrong and not body.partial) else [row for row in rows if row[0] not in wrong]
        told = _tell_import(wrong, partners.import_all(good, statuses, operator))
        return StreamingResponse(told, media_type="application/jsonl")

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
            "deletion": deletion_fields(registry, partners, partner_id),
            # A hash is of no use to an operator, and of some to a thief.
            "keys": [{name: value for name, value in asdict(key).items() if name != "hash"} for key in keys],
            "changes": [asdict(change) for change in changes],
            "changes_unread": unread,
            "changes_untold": len(registry.notices(partner_id)),
            "at_door": await _at_door(doors, partner),
        }

    @routes.post("/{partner_id}/suspend")
    async def suspend_partner(partner_id: str, operator: Operator) -> dict[str, Any]:
        return changed_fields(await partners.set_status(partner_id, "suspended", operator))

    @routes.post("/{partner_id}/resume")
    async def resume_partner(partner_id: str, operator: Operator) -> dict[str, Any]:
        return changed_fields(await partners.set_status(partner_id, "active", operator))

    @routes.post("/{partner_id}/keys", status_code=201)
    async def rotate_key(partner_id: str, body: RotateKey, person: ByPerson) -> dict[str, Any]:
        return await approvals.do("rotate_key", {"partner_id": partner_id, **body.model_dump()}, person)

    @routes.delete("/{partner_id}/keys/{key_id}")
    async def revoke_key(partner_id: str, key_id: str, person: ByPerson) -> dict[str, Any]:
        return await approvals.do("revoke_key", {"partner_id": partner_id, "key_id": key_id}, person)

    return routes


def _profile_routes(partners: Partners) -> APIRouter:
    routes = APIRouter(prefix="/partners")

    @routes.patch("/{partner_id}/limits")
    async def set_limits(partner_id: str, body: SetLimits, operator: Operator) -> dict[str, Any]:
        changed = body.model_dump(exclude_none=True)
        if not changed:
            raise SettingsError("no limit was named", hint="name --rate, --burst or --in-flight")
        return changed_fields(await partners.set_limits(partner_id, changed, operator))

    @routes.put("/{partner_id}/acquirers")
    async def set_acquirers(partner_id: str, body: SetAcquirers, operator: Operator) -> dict[str, Any]:
        return changed_fields(await partners.set_acquirers(partner_id, tuple(body.acquirers), operator))

    @routes.put("/{partner_id}/currencies")
    async def set_currencies(partner_id: str, body: SetCurrencies, operator: Operator) -> dict[str, Any]:
        return changed_fields(await partners.set_currencies(partner_id, tuple(body.currencies), operator))

    return routes


def _isolation_routes(partners: Partners) -> APIRouter:
    routes = APIRouter(prefix="/partners")

    @routes.post("/{partner_id}/isolate")
    async def isolate_partner(partner_id: str, operator: Operator) -> dict[str, Any]:
        return changed_fields(await partners.set_isolation(partner_id, "dedicated", operator))

    @routes.post("/{partner_id}/pool")
    async def pool_partner(partner_id: str, operator: Operator) -> dict[str, Any]:
        return changed_fields(await partners.set_isolation(partner_id, "pooled", operator))

    @routes.post("/{partner_id}/release")
    async def release_partner(partner_id: str, operator: Operator) -> dict[str, Any]:
        return changed_fields(await partners.release(partner_id, operator))

    return routes


def _deletion_routes(partners: Partners, approvals: Approvals) -> APIRouter:
    routes = APIRouter(prefix="/partners")

    @routes.post("/{partner_id}/delete")
    async def delete_partner(partner_id: str, body: DeletePartner, person: ByPerson) -> dict[str, Any]:
        return await approvals.do("delete_partner", {"partner_id": partner_id, **body.model_dump()}, person)

    @routes.post("/{partner_id}/restore")
    async def restore_partner(partner_id: str, operator: Operator) -> dict[str, Any]:
        return changed_fields(await partners.restore(partner_id, operator))

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
        if task.done() and not task.cancelled():  # an evacuation takes a move off its hands: it goes on as another
            return {**task.result().described(), "ended": True}
        running = next((move for move in moves.running() if move.partner_id == partner_id), None)
        return {**({} if running is None else running.described()), "ended": False}

    @routes.delete("/partners/{partner_id}/move")
    async def abort_move(partner_id: str, operator: Operator) -> dict[str, Any]:
        return (await moves.abort(partner_id, operator)).described()

    return routes


def _unknown_routes(registry: Registry, doors: Doors, approvals: Approvals) -> APIRouter:
    routes = APIRouter(prefix="/unknown")

    @routes.get("")
    async def list_unknown(partner: str | None = None) -> dict[str, Any]:
        if partner is not None:
            return await _list_unknown(doors, [registry.partner(partner)])
        return await _list_unknown(doors, registry.partners())

    @routes.post("/{operation_id}/resolve")
    async def resolve(operation_id: str, body: Resolve, person: ByPerson) -> dict[str, Any]:
        return await approvals.do("resolve_operation", {"operation_id": operation_id, **body.model_dump()}, person)

    return routes


class PeerProtocol(BoundedProtocol):
    """The bounded protocol, whose requests know the user at the other end of a Unix socket (origin.py)."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Ask the kernel once: it is the connection's, whatever comes over it."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, PEER: peer_of(transport)}


def make_server(app: ASGIApp) -> QuietServer:
    """Make the server; `serve(sockets=[...])` runs it, `should_exit = True` ends it."""
    return QuietServer(listening.config(app, protocol=PeerProtocol))


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


def _wanted(fields: PartnerFields) -> NewPartner:
    return NewPartner(
        id=fields.id,
        name=fields.name or fields.id,
        mode=fields.mode,
        rate_per_second=fields.rate_per_second,
        rate_burst=fields.rate_burst,
        in_flight_max=fields.in_flight_max,
        isolation=fields.isolation,
        acquirers=tuple(fields.acquirers),
        currencies=tuple(fields.currencies),
    )


async def _tell_import(wrong: dict[int, str], imported: AsyncGenerator[Imported, None]) -> AsyncGenerator[bytes, None]:
    """Tell of each row on a line of its own: what is wrong first, then who is onboarded as soon as it is."""
    for line, why in wrong.items():
        yield _json_line({"line": line, "error": why})
    async with contextlib.aclosing(imported):
        try:
            async for row in imported:
                if row.why:
                    yield _json_line({"line": row.line, "error": row.why, "begun": row.partner.id})
                else:
                    yield _json_line(
                        {"line": row.line, **changed_fields(Changed(row.partner, row.key, row.routers_behind))}
                    )
        except ControlPlaneError as error:
            yield _json_line({"failed": error.fields()})
            return
    yield _json_line({"end": True})  # without it the rest was lost on the way


def _json_line(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields).encode() + b"\n"


async def _explain(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ControlPlaneError)
    request.state.refused = error.code  # for the gate, which has the audit log tell of it
    return problem(error)


async def _tell_dry_run(_request: Request, done: Exception) -> JSONResponse:
    assert isinstance(done, DryRunDone)
    entries = [{"what": one.what, "partner_id": one.partner_id, "detail": one.detail} for one in done.changes]
    return JSONResponse({"dry_run": True, "entries": entries, **done.more})


async def _tell_waits(_request: Request, waits: Exception) -> JSONResponse:
    assert isinstance(waits, WaitsForApprovalError)
    return JSONResponse(waits.told, status_code=waits.http_status)


async def _explain_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    found = RefusedError if error.status_code != 404 else NotFoundError
    where = f"{request.method} {request.url.path}"
    explained = found(f"{error.detail}", where=where, hint="the routes are in GET /openapi.json")
    answer = await _explain(request, explained)
    answer.status_code = error.status_code
    return answer


async def _explain_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = "; ".join(f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors())
    return await _explain(request, SettingsError(problems, where="the options given", hint="see --help"))
