"""`bulkhead audit`: has every cell's books recomputed and compared, and merges what they say with the registry.

The comparing is cells.audit's, run as a process a cell; a partner whose book no cell found is itself a disagreement.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from control_plane import limits
from control_plane.data_folder import DataFolder, require_instance
from control_plane.errors import ControlPlaneError
from control_plane.opening import read_registered, read_registered_cells
from control_plane.places import place_of_cell
from control_plane.registry_records import Cell, Partner
from control_plane.settings import MAIN_ACQUIRER, Settings


class PartnerAudit(BaseModel):
    """One partner's books, as cells.audit found them. `in_doubt`: open intents, which are not wrong."""

    model_config = ConfigDict(extra="allow", frozen=True)

    partner: str
    ok: bool
    differences: list[str] = []
    payments: int = 0
    operations: int = 0
    in_doubt: int = 0
    balances: dict[str, Any] = {}


class CellAudit(BaseModel):
    """One cell's books."""

    model_config = ConfigDict(extra="allow", frozen=True)

    partners: list[PartnerAudit]
    extra_at_acquirer: list[Any] = []


async def run(settings: Settings, folder: DataFolder, told: Callable[[int, int], None]) -> dict[str, Any]:
    """Audit all cells; give the merged report with `ok`. Raises ControlPlaneError where a cell can't be audited.

    `told` is called with how many partners were audited, and how many there are.
    """
    registered = await read_registered(settings, folder)
    cells = [cell for cell in await read_registered_cells(settings, folder) if cell.is_running]
    slots = asyncio.Semaphore(limits.AUDITS_AT_ONCE_MAX)

    audited = 0

    def count() -> None:
        nonlocal audited
        audited += 1
        told(audited, len(registered))

    async def one(cell: Cell) -> CellAudit:
        async with slots:
            return await _audit_cell(settings, folder, cell, count)

    audits = await asyncio.gather(*(one(cell) for cell in cells))
    return merge(dict(zip([cell.name for cell in cells], audits, strict=True)), registered)


def merge(audits: dict[str, CellAudit], registered: Sequence[Partner]) -> dict[str, Any]:
    """Put the cells' audits together and compare whose books there are with the registry."""
    rows: list[dict[str, Any]] = []
    found: set[tuple[str, str]] = set()
    known = {partner.id: partner for partner in registered}
    for cell, audit in audits.items():
        for book in audit.partners:
            found.add((cell, book.partner))
            differences = list(book.differences)
            partner = known.get(book.partner)
            if partner is None:
                differences.append("the registry knows no such partner")
            elif partner.cell != cell:
                differences.append(f"the registry says that its book is in {partner.cell}")
            row = {"cell": cell, **book.model_dump(), "differences": differences}
            rows.append({**row, "ok": book.ok and not differences})
    for partner in registered:
        if partner.status not in {"onboarding", "erasing"} and (partner.cell, partner.id) not in found:
            missing = PartnerAudit(partner=partner.id, ok=False, differences=[f"its book is missing in {partner.cell}"])
            rows.append({"cell": partner.cell, **missing.model_dump()})
    rows.sort(key=lambda row: (row["partner"], row["cell"]))
    extra = [entry for audit in audits.values() for entry in audit.extra_at_acquirer]
    return {
        "ok": all(row["ok"] for row in rows) and not extra,
        "partners": rows,
        "extra_at_acquirer": extra,
        "payments": sum(row["payments"] for row in rows),
        "operations": sum(row["operations"] for row in rows),
        "in_doubt": sum(row["in_doubt"] for row in rows),
    }


async def _audit_cell(settings: Settings, folder: DataFolder, cell: Cell, told: Callable[[], None]) -> CellAudit:
    place = place_of_cell(settings, folder, require_instance(folder), cell)
    others = {name: url for name, url in settings.acquirer_urls.items() if name != MAIN_ACQUIRER}
    acquirers = ("--acquirer-url", settings.acquirer, "--acquirers", json.dumps(others))
    arguments = ("--place", json.dumps(place), *acquirers, "--json", "--progress")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "cells.audit",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=limits.AUDIT_LINE_BYTES_MAX,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(limits.AUDIT_TIMEOUT_MS / 1000):
            output, said = await asyncio.gather(process.stdout.read(), read_errors(process.stderr, told))
            await process.wait()
    except TimeoutError as error:
        raise ControlPlaneError(
            f"{cell.name}'s audit took longer than {limits.AUDIT_TIMEOUT_MS // 1000} s",
            where=str(folder.cell_folder(cell.name)),
            hint="does the acquirer answer? Try `curl` on its /livez",
        ) from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    audit = _read_report(process.returncode, output)
    if audit is not None:
        return audit
    raise ControlPlaneError(
        f"{cell.name}'s books can't be audited (exit code {process.returncode})" + (f": {said}" if said else ""),
        where=str(folder.cell_folder(cell.name)),
        hint=f"are all acquirers up? It compares with their records: {', '.join(settings.acquirer_urls.values())}",
    )


async def read_errors(errors: asyncio.StreamReader, told: Callable[[], None]) -> str:
    """Call `told` for each line that tells of a partner; give the last of the other lines."""
    said = ""
    async for line in errors:
        text = line.decode(errors="replace").strip()
        if text.startswith("audited "):
            told()
        else:
            said = text or said
    return said


def _read_report(exit_code: int | None, output: bytes) -> CellAudit | None:
    """Read a report; None where it can't be, or where it and the exit code (0: all agree, 1: not) contradict."""
    try:
        audit = CellAudit.model_validate(json.loads(output))
    except (ValueError, ValidationError):
        return None
    agreed = all(partner.ok for partner in audit.partners) and not audit.extra_at_acquirer
    return audit if exit_code == (0 if agreed else 1) else None
