"""The admin API's part for rebalancing: reads and checks requests; rebalancing.py plans, rebalancer.py carries out."""

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from control_plane import limits
from control_plane.admin import Operator
from control_plane.rebalancer import Bounds, Rebalancer


class WantedRebalance(BaseModel):
    """How to plan, and how fast to go; bounds that are left out are as the run has them, or as by default."""

    model_config = ConfigDict(extra="forbid")

    by: Literal["hash", "load", "drain"] = "hash"
    at_once: Annotated[int, Field(ge=1, le=limits.REBALANCE_MOVES_AT_ONCE_MAX)] | None = None
    per_hour: Annotated[int, Field(ge=1, le=limits.REBALANCE_MOVES_PER_HOUR_MAX)] | None = None
    pause_budget_ms: Annotated[int, Field(ge=1, le=limits.REBALANCE_PAUSE_BUDGET_MS_MAX)] | None = None

    def bounds(self) -> Bounds:
        """Give how fast to go."""
        return Bounds(self.at_once, self.per_hour, self.pause_budget_ms)


class WantedRun(WantedRebalance):
    """What to carry out: the plan of now, and only if it is this one where `plan_id` is said."""

    plan_id: Annotated[str, Field(pattern=f"^[0-9a-f]{{{limits.REBALANCE_PLAN_ID_CHARACTERS}}}$")] | None = None


def routes(rebalancer: Rebalancer) -> APIRouter:
    """Make the routes."""
    made = APIRouter(prefix="/rebalance")

    @made.get("")
    async def show() -> dict[str, Any]:
        return await rebalancer.status()

    @made.post("/plan")
    async def plan(body: WantedRebalance) -> dict[str, Any]:
        return asdict(await rebalancer.plan(body.by, body.bounds()))

    @made.post("/apply", status_code=201)
    async def apply(body: WantedRun, operator: Operator) -> dict[str, Any]:
        return await rebalancer.apply(body.by, body.bounds(), operator, body.plan_id)

    @made.post("/pause")
    async def pause(operator: Operator) -> dict[str, Any]:
        return await rebalancer.pause(operator)

    @made.post("/abort")
    async def abort(operator: Operator) -> dict[str, Any]:
        return await rebalancer.abort(operator)

    return made
