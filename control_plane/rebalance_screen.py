"""What a person sees of a rebalancing: the plan and what it costs, then how far its run is."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from control_plane.screen import make_console, shown_as, table_of
from control_plane.terminal import escape

# Of what is long, so much is shown; --json has all.
_NAMES_SHOWN_MAX: Final = 4
_MOVES_SHOWN_MAX: Final = 20


@contextlib.contextmanager
def rebalancing() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Show on a terminal how many moves are done; elsewhere nothing."""
    console = make_console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("moving", total=None)

        def tell(found: dict[str, Any]) -> None:
            ended = sum(found["counts"][state] for state in ("done", "failed", "skipped"))
            names = ", ".join(step["partner_id"] for step in found["moving"][:_NAMES_SHOWN_MAX])
            progress.update(task, completed=ended, total=found["steps"], description=escape(f"moving {names}"))

        yield tell


def show_plan(found: dict[str, Any]) -> None:
    """Show what each cell has before and after a plan, and what the plan costs."""
    out = make_console()
    table = table_of("cell", "share", "partners", "after", "requests/s", "after", "MB", "after")
    for cell in found["cells"]:
        partners, rates, sizes = cell["partners"], cell["requests_per_second"], cell["bytes"]
        table.add_row(
            cell["cell"],
            f"{cell['share']:.0%}",
            *(str(count) for count in partners),
            *(f"{rate:.1f}" for rate in rates),
            *(f"{size / 1e6:.1f}" for size in sizes),
        )
    out.print(table)
    for note in found["notes"]:
        out.print(f"[yellow]{escape(note)}[/]", soft_wrap=True)
    for move in found["moves"][:_MOVES_SHOWN_MAX]:
        out.print(f"  {shown_as(move['partner_id'])}: {shown_as(move['from_cell'])} -> {shown_as(move['to_cell'])}")
    if len(found["moves"]) > _MOVES_SHOWN_MAX:
        out.print(f"  and {len(found['moves']) - _MOVES_SHOWN_MAX} more: --json names all")
    before, after = found["overrides"]
    out.print(
        f"plan {found['id']}: {len(found['moves'])} moves, {found['bytes'] / 1e6:.1f} MB, "
        f"about {found['duration_s']} s; each partner waits about {found['pause_ms']} ms once. "
        f"Partners not where the hash puts them: {before} now, {after} then",
        soft_wrap=True,
    )


def show_rebalance(found: dict[str, Any]) -> None:
    """Show how far the newest run is."""
    out = make_console()
    run, counts = found["run"], found["counts"]
    if run is None:
        out.print("no rebalancing yet: bulkhead rebalance --plan shows what one would do")
        return
    why = f": {run['why']}" if run["why"] else ""
    style = "red" if run["state"] == "stopped" else "green"
    out.print(
        f"plan {found['plan_id']} by {run['by']}, since {run['created_at']}: [{style}]{escape(run['state'] + why)}[/]",
        soft_wrap=True,
    )
    out.print(", ".join(f"{count} {state}" for state, count in counts.items() if count) or "no moves were needed")
    pauses = found["pause_ms"]
    if pauses["max"] is not None:
        out.print(
            f"pauses: median {pauses['median']} ms, p99 {pauses['p99']} ms, longest {pauses['max']} ms; "
            f"{found['over_budget']} over the {run['pause_budget_ms']} ms of the budget",
            soft_wrap=True,
        )
    if pauses["unknown"]:
        out.print(f"[yellow]of {pauses['unknown']} moves it is not known how long they paused their partner[/]")
    for step in found["failed"]:
        out.print(f"[red]{shown_as(step['partner_id'])} did not move:[/] {escape(step['error'])}", soft_wrap=True)
    if run["state"] in {"paused", "stopped"}:
        out.print("go on: bulkhead rebalance --apply; or end it: bulkhead rebalance --abort")
