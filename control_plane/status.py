"""What runs where, and how it is: made of the supervisor's view, the doors' answers and the registry.

Without a control plane `collect_directly` makes the same from run records, the registry's book and the doors.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from control_plane.cell_rules import first_cells
from control_plane.data_folder import DataFolder, read_instance, secrets_digest
from control_plane.doors import CellStatus, Doors, cell_addresses
from control_plane.errors import ControlPlaneError, NotRunningError
from control_plane.opening import read_registered, read_registered_cells
from control_plane.process_table import RunRecord, find_recorded
from control_plane.processes import plan
from control_plane.registry_records import Cell, Partner
from control_plane.settings import Settings
from control_plane.supervisor import ProcessState

# Of a pool's partners so many are named in its row; all stand in the list of partners.
_NAMES_SHOWN_MAX: Final = 4
# A cell's status, or why there is none, in words.
CellAnswers = Mapping[str, CellStatus | str]


def build(
    *,
    control_plane: dict[str, Any],
    states: Sequence[ProcessState],
    answers: CellAnswers,
    partners: Sequence[Partner],
    directory_version: int,
    cells: Sequence[Cell] = (),
    partners_unread: str | None = None,
) -> dict[str, Any]:
    """Give the whole status, as `bulkhead status --json` prints it. `partners_unread`: why there are none, in words."""
    rows = [_control_row(control_plane)]
    rows_of_cells = {cell.name: cell for cell in cells}
    for state in states:
        rows.append(_process_row(state, answers))
        if state.spec.role == "door" and state.spec.cell is not None:
            answer = answers.get(state.spec.cell)
            if isinstance(answer, CellStatus):
                rows.extend(_worker_rows(answer))
    return {
        "control_plane": control_plane,
        "ready": control_plane["running"] and all(state.state == "ready" or state.spec.optional for state in states),
        "directory_version": directory_version,
        "cells": [_cell(name, answer, rows_of_cells.get(name)) for name, answer in answers.items()],
        "processes": rows,
        "partners": [_partner(partner, answers.get(partner.cell)) for partner in partners],
        "partners_unread": partners_unread,
    }


def weaknesses(settings: Settings, one_user: str = "") -> dict[str, Any]:
    """Give what the installation goes without; `one_user` says that all processes run as one user, and why."""
    return {
        "fault_injection": settings.fault_injection,
        "bulkheads_off": sorted(settings.bulkheads_off),
        "one_user": one_user,
    }


async def ask_cells(doors: Doors, cells: Sequence[str]) -> dict[str, CellStatus | str]:
    """Ask every door at once; a door that doesn't answer costs no more than its time-out."""

    async def one(cell: str) -> CellStatus | str:
        try:
            return await doors.cell_status(cell)
        except ControlPlaneError as error:
            return error.what

    return dict(zip(cells, await asyncio.gather(*(one(cell) for cell in cells)), strict=True))


async def collect_directly(settings: Settings, folder: DataFolder, version: str) -> dict[str, Any]:
    """Make the status without a control plane. Raises NotRunningError where there is nothing to ask."""
    instance = read_instance(folder)
    if instance is None:
        raise NotRunningError(
            "no Bulkhead was ever started on this data folder", where=str(folder.root), hint="start it: bulkhead up"
        )
    cells: list[Cell] = first_cells(settings, "")
    partners: Sequence[Partner] = ()
    unread = None
    try:
        cells = await read_registered_cells(settings, folder)
        partners = await read_registered(settings, folder)
    except ControlPlaneError as error:
        unread = error.what  # the processes of the first start can be seen all the same
    specs = plan(settings, folder, instance, cells, version, lambda cell: secrets_digest(folder, settings, cell))
    states: list[ProcessState] = []
    for spec in specs:
        try:
            record = RunRecord.from_json(json.loads((folder.run / f"{spec.name}.json").read_bytes()))
        except (OSError, ValueError):
            record = None
        handle = None if record is None else find_recorded(record, spec.marker)
        states.append(
            ProcessState(
                spec=spec,
                state="stopped" if handle is None else "ready",
                pid=None if handle is None else handle.pid,
                adopted=False,
                restarts=0,
                started_at=None if handle is None or record is None else record.started_at,
                last_end=None,
            )
        )
        if handle is not None:
            handle.close()
    doors = await Doors.connect(cell_addresses(cells), folder)
    try:
        await doors.wait_connected()
        answers = await ask_cells(doors, [cell.name for cell in cells if cell.is_running])
    finally:
        await doors.aclose()
    control_plane = {
        "running": False,
        "pid": None,
        "version": version,
        "data_folder": str(folder.root),
        "endpoint": str(folder.control_socket),
        "started_at": None,
        **weaknesses(settings),
    }
    return build(
        control_plane=control_plane,
        states=states,
        answers=answers,
        partners=partners,
        cells=cells,
        directory_version=0,
        partners_unread=unread,
    )


def _control_row(control_plane: dict[str, Any]) -> dict[str, Any]:
    return _row(
        process="control_plane",
        role="control",
        pid=control_plane["pid"],
        endpoint=control_plane["endpoint"],
        health="ready" if control_plane["running"] else "not running",
        started_at=control_plane["started_at"],
    )


def _process_row(state: ProcessState, answers: CellAnswers) -> dict[str, Any]:
    spec = state.spec
    health: str = state.state
    epoch = None
    if spec.role == "door" and spec.cell is not None:
        answer = answers.get(spec.cell)
        if isinstance(answer, CellStatus):
            epoch = answer.door_epoch
        elif answer is not None and state.state == "ready":
            health = "not answering"
    if state.last_end is not None and state.state != "ready":
        health = f"{health} ({state.last_end})"
    return _row(
        process=spec.name,
        role=spec.role,
        cell=spec.cell,
        pid=state.pid,
        endpoint=spec.endpoint,
        epoch=epoch,
        health=health,
        restarts=state.restarts,
        adopted=state.adopted,
        started_at=state.started_at,
    )


def _worker_rows(cell: CellStatus) -> list[dict[str, Any]]:
    epochs = {partner.partner: partner.epoch for partner in cell.partners}
    rows = []
    for worker in cell.workers:
        health = "ready" if worker.healthy else "silent"
        if not worker.healthy and worker.heartbeat_age_ms is not None:
            health = f"silent for {worker.heartbeat_age_ms / 1000:.1f} s"
        rows.append(
            _row(
                process=worker.worker,
                role="spare" if worker.spare else "pool" if worker.pool else "worker",
                cell=cell.cell,
                partner=_names(worker.partners),
                pid=worker.pid,
                endpoint=worker.endpoint,
                epoch=epochs.get(worker.partners[0]) if worker.partners else None,
                health=health,
            )
        )
    return rows


def _names(partners: Sequence[str]) -> str | None:
    shown = ", ".join(partners[:_NAMES_SHOWN_MAX])
    more = len(partners) - _NAMES_SHOWN_MAX
    return f"{shown} and {more} more" if more > 0 else shown or None


def _row(*, process: str, role: str, health: str, **known: Any) -> dict[str, Any]:
    empty = dict.fromkeys(("cell", "partner", "pid", "endpoint", "epoch", "started_at"))
    return {"process": process, "role": role, "health": health, **empty, "restarts": 0, "adopted": False, **known}


def _cell(name: str, answer: CellStatus | str, row: Cell | None) -> dict[str, Any]:
    wanted = {} if row is None else {"state": row.state, "weight": row.weight}
    if isinstance(answer, str):
        return {"cell": name, **wanted, "answers": False, "error": answer}
    return {
        "cell": name,
        **wanted,
        "answers": True,
        "door_epoch": answer.door_epoch,
        "started_at_ms": answer.started_at_ms,
        "workers": sum(not worker.spare for worker in answer.workers),
        "spares": sum(worker.spare for worker in answer.workers),
        "partners": len(answer.partners),
        "pools": sum(worker.pool for worker in answer.workers),
        "pooled": sum(found.isolation == "pooled" for found in answer.partners),
        "kept_apart": sorted(
            found.partner for found in answer.partners if found.escalation and found.escalation.kind == "dedicated"
        ),
        "quarantined": sorted(found.partner for found in answer.partners if found.state == "quarantined"),
        "unavailable": sorted(found.partner for found in answer.partners if found.state == "unavailable"),
        "unknowns": sum(found.unknowns for found in answer.partners),
    }


def _partner(partner: Partner, answer: CellStatus | str | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "partner": partner.id,
        "cell": partner.cell,
        "status": partner.status,
        "profile_version": partner.profile_version,
        "isolation": partner.isolation,
        "acquirers": list(partner.acquirers),
    }
    found = None
    if isinstance(answer, CellStatus):
        found = next((one for one in answer.partners if one.partner == partner.id), None)
    if found is None:
        return {**row, "state": "absent" if isinstance(answer, CellStatus) else "not known"}
    return {
        **row,
        "state": found.state,
        "why": found.why,
        "escalation": None if found.escalation is None else found.escalation.model_dump(),
        "breaker": found.breaker,
        "breakers": found.breakers,
        "profile_behind": found.profile_version < partner.profile_version,
        "epoch": found.epoch,
        "worker": found.worker,
        "in_flight": found.in_flight,
        "commands": found.commands,
        "unknowns": found.unknowns,
        "takeovers": found.takeovers,
    }
