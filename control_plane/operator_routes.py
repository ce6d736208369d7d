"""Operators over the admin API. Their keys' hashes are never shown."""

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from control_plane.free_text import WITHOUT_CARD_NUMBER
from control_plane.operators import OPERATOR_ID, OperatorKey, Operators
from control_plane.origin import ORIGIN
from control_plane.registry import Registry
from control_plane.registry_records import Operator
from control_plane.roles import ROLES


def asked_by(request: Request) -> str:
    """Give who asks, as the gate found it (gate.py)."""
    return str(request.state.who)


AskedBy = Annotated[str, Depends(asked_by)]


class AddOperator(BaseModel):
    """An operator to be let in."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[str, Field(pattern=f"^{OPERATOR_ID}$"), WITHOUT_CARD_NUMBER]
    role: Literal["viewer", "operator", "admin"]


def make_routes(registry: Registry, operators: Operators) -> APIRouter:
    """Give the routes."""
    routes = APIRouter()

    @routes.get("/whoami")
    async def who_am_i(request: Request) -> dict[str, Any]:
        return {"operator": _shown(request.state.operator), "who": request.state.who, "origin": ORIGIN.get()}

    @routes.get("/operators")
    async def list_operators() -> dict[str, Any]:
        return {"operators": [_shown(one) for one in registry.operators()]}

    @routes.post("/operators", status_code=201)
    async def add_operator(body: AddOperator, who: AskedBy) -> dict[str, Any]:
        return _with_key(await operators.add(body.id, ROLES[body.role], who))

    @routes.post("/operators/{operator_id}/disable")
    async def disable_operator(operator_id: str, who: AskedBy) -> dict[str, Any]:
        return {"operator": _shown(await operators.set_status(operator_id, "disabled", who))}

    @routes.post("/operators/{operator_id}/enable")
    async def enable_operator(operator_id: str, who: AskedBy) -> dict[str, Any]:
        return {"operator": _shown(await operators.set_status(operator_id, "active", who))}

    @routes.post("/operators/{operator_id}/key", status_code=201)
    async def rotate_key(operator_id: str, who: AskedBy) -> dict[str, Any]:
        return _with_key(await operators.rotate_key(operator_id, who))

    return routes


def _shown(operator: Operator) -> dict[str, Any]:
    return {name: value for name, value in asdict(operator).items() if name != "hash"}


def _with_key(made: OperatorKey) -> dict[str, Any]:
    return {"operator": _shown(made.operator), "key": made.text}
