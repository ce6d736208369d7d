"""Operators over the admin API. Their keys' hashes are never shown."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from control_plane.actions import operator_fields
from control_plane.approvals import Person
from control_plane.approving import Approvals
from control_plane.free_text import WITHOUT_CARD_NUMBER
from control_plane.operators import OPERATOR_ID, Operators
from control_plane.origin import ORIGIN
from control_plane.registry import Registry


def asked_by(request: Request) -> str:
    """Give who asks, as the gate found it (gate.py)."""
    return str(request.state.who)


AskedBy = Annotated[str, Depends(asked_by)]


def person_of(request: Request) -> Person:
    """Give who asks as a person, of whom a second one may be needed."""
    return Person(request.state.operator.id, request.state.who, getattr(request.state, "uid", None))


ByPerson = Annotated[Person, Depends(person_of)]


class AddOperator(BaseModel):
    """An operator to be let in."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[str, Field(pattern=f"^{OPERATOR_ID}$"), WITHOUT_CARD_NUMBER]
    role: Literal["viewer", "operator", "admin"]


def make_routes(registry: Registry, operators: Operators, approvals: Approvals) -> APIRouter:
    """Give the routes."""
    routes = APIRouter()

    @routes.get("/whoami")
    async def who_am_i(request: Request) -> dict[str, Any]:
        return {"operator": operator_fields(request.state.operator), "who": request.state.who, "origin": ORIGIN.get()}

    @routes.get("/operators")
    async def list_operators() -> dict[str, Any]:
        return {"operators": [operator_fields(one) for one in registry.operators()]}

    @routes.post("/operators", status_code=201)
    async def add_operator(body: AddOperator, person: ByPerson) -> dict[str, Any]:
        return await approvals.do("add_operator", {"operator_id": body.id, "role": body.role}, person)

    @routes.post("/operators/{operator_id}/disable")
    async def disable_operator(operator_id: str, who: AskedBy) -> dict[str, Any]:
        # By one alone: who is locked out may be a thief, and to be let in again takes two.
        return {"operator": operator_fields(await operators.set_status(operator_id, "disabled", who))}

    @routes.post("/operators/{operator_id}/enable")
    async def enable_operator(operator_id: str, person: ByPerson) -> dict[str, Any]:
        return await approvals.do("enable_operator", {"operator_id": operator_id}, person)

    @routes.post("/operators/{operator_id}/key", status_code=201)
    async def rotate_key(operator_id: str, person: ByPerson) -> dict[str, Any]:
        return await approvals.do("rotate_operator_key", {"operator_id": operator_id}, person)

    return routes
