"""`bulkhead cell`: cells that come and go. Asks the control plane, watches what it does, and shows it."""

import contextlib
import time
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from control_plane import client, limits, screen
from control_plane.command_line import AsJson, DryRun, Watch, explained, shown, where
from control_plane.data_folder import DataFolder
from control_plane.errors import EXIT_FAILED, EXIT_OK, ControlPlaneError, NotRunningError

app = typer.Typer(help="Cells: add, weigh, drain, remove.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The cell's name, as `cell list` shows it.")]


@app.command("list", epilog="Example: bulkhead cell list --watch")
@explained
def list_cells(context: typer.Context, *, watch: Watch = False, as_json: AsJson = False) -> None:
    """List the cells and what is in them."""
    shown(lambda: _list(where(context).folder(), as_json=as_json), watch=watch)


def _list(folder: DataFolder, *, as_json: bool) -> None:
    answers = {cell["cell"]: cell for cell in client.ask(folder, "GET", "/status")["cells"]}
    wanted = client.ask(folder, "GET", "/cells")["cells"]
    found = [
        {**answers.get(cell["name"], {"cell": cell["name"], "answers": False, "error": "-"}), **_wanted(cell)}
        for cell in wanted
    ]
    if as_json:
        screen.show_json({"cells": found})
    else:
        screen.show_cells([cell for cell in found if cell["state"] != "removed"])


@app.command("add", epilog="Example: bulkhead cell add --weight 2 --dry-run")
@explained
def add_cell(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Its name, a-z 0-9 -; else one is made.")] = None,
    *,
    weight: Annotated[float, typer.Option(help="Its share of partners, beside the others' weights.")] = 1.0,
    cluster_file: Annotated[
        Path | None, typer.Option(help="Its FoundationDB cluster file, where each cell has one of its own.")
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Start a new cell beside the others. It takes new partners; those that there are stay until they are moved.

    \b
    Examples:
    bulkhead cell add
    bulkhead cell add cell-big --weight 2
    """  # noqa: D301 - it is to be a backspace: what follows it keeps its lines
    body: dict[str, Any] = {"weight": weight, "dry_run": dry_run}
    body |= {} if name is None else {"name": name}
    body |= {} if cluster_file is None else {"cluster_file": str(cluster_file.expanduser().absolute())}
    folder = where(context).folder()
    found = client.ask(folder, "POST", "/cells", body)
    if not dry_run:
        found["cell"] = _watch(folder, found["cell"]["name"], "active")
    _show(found, "added", as_json=as_json)


@app.command("drain", epilog="Example: bulkhead cell drain cell-0 --dry-run")
@explained
def drain_cell(context: typer.Context, cell: Name, *, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Have new partners go to other cells. Those that are there stay: `bulkhead rebalance` moves them."""
    found = client.ask(where(context).folder(), "POST", f"{_path(cell)}/drain", {"dry_run": dry_run})
    _show(found, "drained of new partners", as_json=as_json)


@app.command("set-weight", epilog="Example: bulkhead cell set-weight cell-4 2")
@explained
def set_weight(
    context: typer.Context,
    cell: Name,
    weight: Annotated[float, typer.Argument(help="Its share of partners, beside the others' weights.")],
    *,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Change a cell's share of new partners. With a weight, a drained cell takes partners again."""
    body = {"weight": weight, "dry_run": dry_run}
    found = client.ask(where(context).folder(), "PUT", f"{_path(cell)}/weight", body)
    _show(found, f"of weight {weight:g}", as_json=as_json)


@app.command("remove", epilog="Example: bulkhead cell remove cell-0")
@explained
def remove_cell(context: typer.Context, cell: Name, *, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Stop a drained, empty cell once no router sends there any more. Its folder is kept aside, nothing is deleted."""
    folder = where(context).folder()
    found = client.ask(folder, "POST", f"{_path(cell)}/remove", {"dry_run": dry_run})
    if not dry_run:
        found["cell"] = _watch(folder, cell, "removed")
    _show(found, "removed", as_json=as_json)


@app.command("evacuate", epilog="Example: bulkhead cell evacuate cell-2 --dry-run")
@explained
def evacuate_cell(
    context: typer.Context,
    cell: Name,
    *,
    force: Annotated[bool, typer.Option("--force", help="Also where its door answers: costs errors.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Stay until all are served, or nobody came for 3 minutes.")
    ] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Have the other cells take a dead cell's partners over. Only where they share a FoundationDB cluster.

    What still lives of the cell can write nothing more for them. It takes no new partners until `set-weight`.
    Who was on the way there from another dead cell goes to a third one. Exit code 1: some can't be taken over.

    \b
    Examples:
    bulkhead cell evacuate cell-2 --dry-run
    bulkhead cell evacuate cell-2 --watch
    """  # noqa: D301 - it is to be a backspace: what follows it keeps its lines
    body = {"force": force, "dry_run": dry_run}
    folder = where(context).folder()
    found = client.ask(folder, "POST", f"{_path(cell)}/evacuate", body)
    has_gone = False
    try:
        if watch and not dry_run:
            _watch_evacuation(folder, cell, found["partners"])
            has_gone = True
    finally:
        if as_json:
            screen.show_json(found)
        else:
            screen.show_evacuation(found, is_watched=has_gone)
    raise typer.Exit(EXIT_FAILED if found["staying"] else EXIT_OK)


def _watch_evacuation(folder: DataFolder, cell: str, partners: int) -> None:
    """Watch until a cell's partners are served elsewhere; a control plane that is away meanwhile is waited for.

    Not for ever: where the cell that is to take them over died, too, somebody has to say so.
    """
    left: list[dict[str, Any]] = []
    is_there = False
    progress_at = time.monotonic()
    with screen.counting(f"taking partners of {cell} over") as told:
        while time.monotonic() - progress_at < limits.CELL_WATCH_MS_MAX / 1000:
            is_there = False
            with contextlib.suppress(NotRunningError):  # they go on with the next `up`
                moves = client.ask(folder, "GET", "/moves")["moves"]
                is_there = True
                evacuations = [move for move in moves if move["way"] == "evacuate"]
                found = [move for move in evacuations if cell in (move["source"], *move["passed_over"])]
                if not found:
                    return
                if len(found) != len(left):
                    progress_at = time.monotonic()
                left = found
                told(max(partners - len(left), 0), partners)
            time.sleep(limits.CELL_WATCH_INTERVAL_MS / 1000)
    if not is_there:
        raise NotRunningError("the control plane does not run", where=str(folder.root), hint="bulkhead up")
    targets = sorted({move["target"] for move in left})
    raise ControlPlaneError(
        f"{len(left)} partners are on their way still, and none came for {limits.CELL_WATCH_MS_MAX // 1000} s",
        where=f"{left[0]['partner']}, to {left[0]['target']}: {left[0]['why'] or 'nothing is said of why'}",
        hint="they go on by themselves; where a cell is dead: "
        + ", or ".join(f"bulkhead cell evacuate {target}" for target in targets),
    )


def _watch(folder: DataFolder, name: str, until: str) -> dict[str, Any]:
    """Watch a cell on its way. What was begun goes on by itself, whatever becomes of who watches."""
    deadline = time.monotonic() + limits.CELL_WATCH_MS_MAX / 1000
    waits_for: str | None = "the control plane"
    with screen.watching_cell(name) as tell:
        while time.monotonic() < deadline:
            try:
                cells: Collection[dict[str, Any]] = client.ask(folder, "GET", "/cells")["cells"]
            except NotRunningError:
                waits_for = "the control plane, which does not run: bulkhead up"
            else:
                cell = next(one for one in cells if one["name"] == name)
                if cell["state"] == until:
                    return cell
                waits_for = cell["waits_for"]
            tell(waits_for or "")
            time.sleep(limits.CELL_WATCH_INTERVAL_MS / 1000)
    raise ControlPlaneError(
        f"{name} is not {until} yet; it waits: {waits_for}",
        where=str(folder.root),
        hint="it goes on by itself: see `bulkhead cell list`; an `add` is taken back with `bulkhead cell remove`",
    )


def _wanted(cell: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in cell.items() if name not in {"name", "partners"}}


def _path(cell: str) -> str:
    return f"/cells/{quote(cell, safe='')}"


def _show(found: dict[str, Any], what: str, *, as_json: bool) -> None:
    if as_json:
        screen.show_json(found)
    else:
        screen.show_changed_cell(found, what)
