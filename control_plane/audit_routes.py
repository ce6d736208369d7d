"""The audit log over the admin API: its entries as they stand in the store. Whether they are right, its reader sees."""

import json
from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from control_plane.errors import ControlPlaneError
from control_plane.registry import Registry


def make_routes(registry: Registry) -> APIRouter:
    """Give the routes."""
    routes = APIRouter(prefix="/audit-log")

    @routes.get("")
    async def read_audit_log(after: Annotated[int, Query(ge=0)] = 0) -> StreamingResponse:
        return StreamingResponse(_tell(registry, after), media_type="application/jsonl")

    return routes


async def _tell(registry: Registry, after: int) -> AsyncGenerator[bytes, None]:
    try:
        head = await registry.kept_head()  # first: entries may come while these are sent
        async for change in registry.audit_log(after):
            yield _line({"entry": asdict(change), "hash": registry.hash_of(change)})
    except ControlPlaneError as error:
        yield _line({"failed": error.fields()})
        return
    yield _line({"head": None if head is None else asdict(head)})
    yield _line({"end": True})


def _line(fields: dict[str, object]) -> bytes:
    return json.dumps(fields).encode() + b"\n"
