"""What a person sees of a settlement file: how far it is read and compared, then what differs from the books."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from control_plane.screen import make_console, shown_as, table_of
from control_plane.terminal import escape


@contextlib.contextmanager
def reconciling(file: Path) -> Iterator[tuple[Callable[[int], None], Callable[[int, int], None]]]:
    """Show on a terminal how far a file is read, and then how far it is compared; elsewhere nothing."""
    console = make_console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        size = file.stat().st_size if file.is_file() else None
        reading = progress.add_task("reading", total=size)
        comparing = progress.add_task("comparing", total=None, visible=False)
        yield (
            lambda bytes_read: progress.update(reading, completed=bytes_read),
            lambda done, of: progress.update(comparing, completed=done, total=of, visible=True),
        )


def show_reconciliation(report: dict[str, Any]) -> None:
    """Show what a settlement file says beside the books: counts of each partner, then what differs."""
    out = make_console()
    counts = report["counts"]
    table = table_of("partner", "cell", "rows", "matched", "differing", "missing", "extra", "")
    for row in report["partners"]:
        names = ("partner", "cell", "rows", "matched", "differing", "missing", "extra")
        agrees = not (row["differing"] or row["missing"] or row["extra"] or row["not_asked"])
        state = "[green]ok[/]" if agrees else "[red]see below[/]"
        table.add_row(*(shown_as(row[name]) for name in names), state)
    if report["partners"]:
        out.print(table)
    for total in report["file"]["totals"]:
        gross, fee, net = (shown_as(total[name]) for name in ("gross", "fee", "net"))
        out.print(f"{shown_as(total['currency'])}: gross {gross}, fees {fee}, net {net} in {total['rows']} rows")
    if report["differences"]:
        out.print(_differences_table(report["differences"]))
    if report["differences_left_out"]:
        left_out = f"{report['differences_left_out']} more are not shown: --differences FILE writes all"
        out.print(f"[yellow]{left_out}[/]", soft_wrap=True)
    for row in report["partners"]:
        if row["not_asked"] is not None:
            why = escape(row["not_asked"])
            out.print(f"[red]{escape(row['partner'])} could not be asked:[/] {why}", soft_wrap=True)
    if counts["not_asked"]:
        out.print("[red]ask again with the same file: what is posted is not posted twice[/]", soft_wrap=True)
    kind = "" if report["file"]["kind"] == "final" else " (preliminary)"
    verdict = "[green]all is matched[/]" if report["ok"] else "[bold red]not all is matched[/]"
    done = "compared only, nothing is posted" if report["dry_run"] else f"{counts['repeated']} were posted before"
    out.print(
        f"{verdict}: settlement of {shown_as(report['file']['settlement_date'])}{kind}, {counts['rows']} rows: "
        f"{counts['matched']} matched, {counts['differing']} differing, {counts['extra']} extra, "
        f"{counts['missing']} missing; {done}",
        soft_wrap=True,
    )


_REASONS: Final = {
    "operation_unknown": "PAID, UNKNOWN HERE",
    "operation_open": "CHARGED, OUTCOME UNKNOWN HERE",
    "operation_failed": "CHARGED, FAILED HERE",
    "paid_before": "PAID BEFORE, BY ANOTHER ROW",
    "partner_unknown": "NO SUCH PARTNER",
    "kind_unknown": "a kind that this version can't post",
    "in_no_file": "in no file yet",
}


def _differences_table(differences: Sequence[dict[str, Any]]) -> Table:
    table = table_of("line", "partner", "operation", "kind", "", "owed", "paid", "fee agreed", "fee", "why", "books")
    for row in differences:
        why = ", ".join(_REASONS.get(reason, f"other {reason}") for reason in row["reasons"])
        table.add_row(
            *(shown_as(row[name]) for name in ("line", "partner", "key", "kind", "currency", "owed", "gross")),
            *(shown_as(row[name]) for name in ("fee_agreed", "fee")),
            f"[bold red]{escape(why)}[/]" if row["grave"] else escape(why),
            "posted" if row["posted"] else "nothing posted",
        )
    return table
