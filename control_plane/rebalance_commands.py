"""`bulkhead rebalance`: plans who moves where, has it carried out, and shows how far it is."""

import time
from typing import Annotated, Any

import typer

from control_plane import client, limits, rebalance_screen, screen
from control_plane.command_line import AsJson, DryRun, explained, where
from control_plane.data_folder import DataFolder
from control_plane.errors import EXIT_FAILED, EXIT_OK, NotRunningError, SettingsError


@explained
def rebalance(  # noqa: PLR0913 - one for each option
    context: typer.Context,
    *,
    plan: Annotated[bool, typer.Option("--plan", help="Show who would move where, and what it costs.")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Carry the plan of now out, or go on with a run.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Show how far the newest run is: the default.")] = False,
    pause: Annotated[bool, typer.Option("--pause", help="Begin no further moves; `--apply` goes on.")] = False,
    abort: Annotated[bool, typer.Option("--abort", help="End the run; who has moved stays where it is.")] = False,
    by: Annotated[
        str,
        typer.Option(help="hash: to where the hash puts each; load: even it out; drain: only out of drained cells."),
    ] = "hash",
    at_once: Annotated[
        int | None, typer.Option(help=f"Partners that move at once; else {limits.REBALANCE_MOVES_AT_ONCE_DEFAULT}.")
    ] = None,
    per_hour: Annotated[
        int | None, typer.Option(help=f"Moves an hour; else {limits.REBALANCE_MOVES_PER_HOUR_DEFAULT}.")
    ] = None,
    pause_budget: Annotated[
        int | None,
        typer.Option(
            help="Milliseconds; whose failed move paused it longer is left alone; "
            f"else {limits.REBALANCE_PAUSE_BUDGET_MS_DEFAULT}."
        ),
    ] = None,
    plan_id: Annotated[
        str | None, typer.Option("--plan-id", help="Apply only the plan that `--plan` named so; refuse any other.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay and show how it goes on, until it ends.")] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Bring partners to where they belong, a few at a time, while all are served.

    A run that goes on takes the bounds that are named; those that are not stay as they were.

    It stops by itself when moves fail in a row or errors rise, and goes on after a crash. Exit codes: 0 done or under
    way, 1 it was stopped or moves failed, 2 refused, 3 the control plane isn't running.

    \b
    Examples:
    bulkhead rebalance --plan --by load
    bulkhead rebalance --apply --by load --plan-id 3f9a1c2b4d5e
    bulkhead rebalance --apply --watch
    bulkhead cell drain cell-2 && bulkhead rebalance --apply --by drain --watch
    """  # noqa: D301 - it is to be a backspace: what follows it keeps its lines
    if plan + apply + status + pause + abort > 1:
        raise SettingsError(
            "one thing at a time", where="--plan, --apply, --status, --pause, --abort", hint="name one of them"
        )
    if plan_id is not None and not apply:
        raise SettingsError("only a plan that is carried out can be named", where="--plan-id", hint="say --apply, too")
    named = {"at_once": at_once, "per_hour": per_hour, "pause_budget_ms": pause_budget}
    bounds = {name: bound for name, bound in named.items() if bound is not None}
    if bounds and not (plan or apply):
        raise SettingsError(
            "bounds are a plan's or a run's", where=", ".join(bounds), hint="to change them: --pause, then --apply"
        )
    folder = where(context).folder()
    body: dict[str, Any] = {"by": by, **bounds}
    if plan:
        with screen.waiting(f"planning by {by}"):
            found = client.ask(folder, "POST", "/rebalance/plan", body)
        _show(found, as_json=as_json, show=rebalance_screen.show_plan)
        if found["moves"] and not as_json:
            screen.say(f"to carry out just this: bulkhead rebalance --apply --by {by} --plan-id {found['id']}")
        return
    begun: dict[str, Any] = {}
    if apply:
        body |= {} if plan_id is None else {"plan_id": plan_id}
        with screen.waiting(f"planning by {by}"):
            found = client.ask(folder, "POST", "/rebalance/apply", body, dry_run=dry_run)
        begun = {"plan": found.get("plan")}  # none where a run goes on
        if begun["plan"] is not None and not as_json:
            rebalance_screen.show_plan(begun["plan"])
    elif pause or abort:
        found = client.ask(folder, "POST", f"/rebalance/{'pause' if pause else 'abort'}", dry_run=dry_run)
    else:
        found = client.ask(folder, "GET", "/rebalance")
    if "dry_run" in found:
        _show(found, as_json=as_json, show=screen.show_dry_run)
        return
    if watch:
        found = _watch(folder, found)
    _show({**found, **begun}, as_json=as_json, show=rebalance_screen.show_rebalance)
    is_well = found["run"] is None or (found["run"]["state"] != "stopped" and not found["counts"]["failed"])
    raise typer.Exit(EXIT_OK if is_well else EXIT_FAILED)


def _watch(folder: DataFolder, found: dict[str, Any]) -> dict[str, Any]:
    """Show how it goes on until nothing does; a control plane that is away meanwhile is waited for."""
    with rebalance_screen.rebalancing() as tell:
        while found["run"] is not None and (found["run"]["state"] == "running" or found["counts"]["moving"]):
            tell(found)
            time.sleep(limits.CELL_WATCH_INTERVAL_MS / 1000)
            try:
                found = client.ask(folder, "GET", "/rebalance")
            except NotRunningError:
                continue  # the run goes on with the next `up`
    return found


def _show(found: dict[str, Any], *, as_json: bool, show: Any) -> None:
    if as_json:
        screen.show_json(found)
    else:
        show(found)
