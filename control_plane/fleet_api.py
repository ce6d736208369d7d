"""The admin API's part for cells: reads and checks requests; fleet.py decides."""

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from control_plane import limits
from control_plane.admin import Operator
from control_plane.cell_rules import NAME
from control_plane.evacuation import Evacuation
from control_plane.fleet import Fleet, NewCell

Weight = Annotated[float, Field(ge=0, le=limits.CELL_WEIGHT_MAX, allow_inf_nan=False)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    dry_run: bool = False


class AddCell(_Body):
    """A cell to add; a name is made where none is given."""

    name: Annotated[str, Field(pattern=f"^{NAME}$")] | None = None
    weight: Weight = 1.0
    cluster_file: Annotated[str, Field(max_length=4_096, pattern=r"^[^\x00]*$")] = ""


class SetWeight(_Body):
    """A cell's share of new partners, beside the others'."""

    weight: Weight


class ChangeCell(_Body):
    """A change that says all by its name."""


class EvacuateCell(_Body):
    """A cell that is dead. `force`: also where its door answers."""

    force: bool = False


def routes(fleet: Fleet, evacuation: Evacuation) -> APIRouter:
    """Make the routes."""
    made = APIRouter(prefix="/cells")

    @made.get("")
    async def list_cells() -> dict[str, Any]:
        return {"cells": fleet.show()}

    @made.post("", status_code=201)
    async def add_cell(body: AddCell, operator: Operator) -> dict[str, Any]:
        return await fleet.add(NewCell(body.name, body.weight, body.cluster_file), operator, dry_run=body.dry_run)

    @made.post("/{name}/drain")
    async def drain_cell(name: str, body: ChangeCell, operator: Operator) -> dict[str, Any]:
        return await fleet.drain(name, operator, dry_run=body.dry_run)

    @made.put("/{name}/weight")
    async def set_weight(name: str, body: SetWeight, operator: Operator) -> dict[str, Any]:
        return await fleet.set_weight(name, body.weight, operator, dry_run=body.dry_run)

    @made.post("/{name}/evacuate")
    async def evacuate_cell(name: str, body: EvacuateCell, operator: Operator) -> dict[str, Any]:
        return await evacuation.evacuate(name, operator, force=body.force, dry_run=body.dry_run)

    @made.post("/{name}/remove")
    async def remove_cell(name: str, body: ChangeCell, operator: Operator) -> dict[str, Any]:
        return await fleet.remove(name, operator, dry_run=body.dry_run)

    return made
