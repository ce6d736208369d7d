"""Approvals over the admin API: what waits for a second person, and that person's word."""

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from control_plane import limits
from control_plane.approving import Approvals
from control_plane.operator_routes import ByPerson
from control_plane.registry import Registry


class Refuse(BaseModel):
    """Why a change is not to be made."""

    model_config = ConfigDict(extra="forbid")

    note: Annotated[str, Field(max_length=limits.NOTE_CHARACTERS_MAX)] = ""


def make_routes(registry: Registry, approvals: Approvals) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/approvals")

    @routes.get("")
    async def list_approvals() -> dict[str, Any]:
        found = [approvals.shown(one) for one in registry.approvals()]
        return {"approvals": found, "two_persons_for": sorted(approvals.kinds)}

    @routes.get("/{approval_id}")
    async def show_approval(approval_id: str) -> dict[str, Any]:
        return {"approval": approvals.shown(registry.approval(approval_id))}

    @routes.post("/{approval_id}/approve")
    async def approve(approval_id: str, person: ByPerson) -> dict[str, Any]:
        result = await approvals.approve(approval_id, person)
        return {"approval": approvals.shown(registry.approval(approval_id)), "result": result}

    @routes.post("/{approval_id}/refuse")
    async def refuse(approval_id: str, body: Refuse, person: ByPerson) -> dict[str, Any]:
        return {"approval": approvals.shown(await approvals.refuse(approval_id, person, body.note))}

    @routes.post("/{approval_id}/withdraw")
    async def withdraw(approval_id: str, person: ByPerson) -> dict[str, Any]:
        return {"approval": approvals.shown(await approvals.withdraw(approval_id, person))}

    return routes
