"""What a person sees: tables, errors, the summary of `up`. Only shows; asks nobody and changes nothing."""

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import structlog
from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from control_plane.audit_chain import Verdict
from control_plane.data_folder import DataFolder
from control_plane.doctor import Finding
from control_plane.errors import ControlPlaneError
from control_plane.load import routers_of
from control_plane.processes import ProcessSpec
from control_plane.registry_records import Cell
from control_plane.settings import Settings
from control_plane.terminal import escape, to_json
from control_plane.up import Console

log = structlog.get_logger()

# A file or pipe has no width of its own; tables must not be cut there.
_WIDTH_ELSEWHERE: Final = 220
# Of what is long, so much is shown; --json has all.
_PARTNERS_SHOWN_MAX: Final = 20
_GOOD: Final = frozenset({"ready", "active", "ok"})


def make_console(*, stderr: bool = False) -> RichConsole:
    """Make what prints: as wide as the terminal, or wide enough that no table is cut."""
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return RichConsole(stderr=stderr, width=None if terminal else _WIDTH_ELSEWHERE, highlight=False)


def clear() -> None:
    """Begin anew on a terminal; elsewhere go on below."""
    make_console().clear()


def say(text: str) -> None:
    """Print one plain line."""
    make_console().print(escape(text), soft_wrap=True)


def show_json(value: Any) -> None:
    """Print JSON, as it is, for programs."""
    sys.stdout.write(to_json(value) + "\n")


def show_error(error: ControlPlaneError) -> None:
    """Print what went wrong, where, and what to do."""
    out = make_console(stderr=True)
    out.print(f"[bold red]error:[/] {escape(error.what)}", soft_wrap=True)
    if error.where:
        out.print(f"[dim]where:[/] {escape(error.where)}", soft_wrap=True)
    if error.hint:
        out.print(f"[dim]to do:[/] {escape(error.hint)}", soft_wrap=True)


def console() -> Console:
    """Give what `up` tells a person through. It goes on where nobody listens any more (`bulkhead up | head`)."""
    terminal = sys.stdout.isatty()

    def write(text: str, *, markup: bool = True) -> None:
        # Not printed by rich itself, which would end this process where the other end of a pipe has gone.
        rendered = io.StringIO()
        out = RichConsole(file=rendered, force_terminal=terminal, width=_WIDTH_ELSEWHERE, highlight=False)
        out.print(text, markup=markup, soft_wrap=True)
        try:
            sys.stdout.write(rendered.getvalue())
            sys.stdout.flush()
        except OSError as error:
            sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until this process ends
            log.warning("nobody_listens", error=str(error))

    def tell_process(spec: ProcessSpec, what: str) -> None:
        style = "green" if what in _GOOD else "yellow"
        write(f"[{style}]{escape(spec.name):>14}[/]  {escape(what)}")

    def tell_ready(settings: Settings, folder: DataFolder, pid: int, cells: Sequence[Cell]) -> None:
        base = f"http://{settings.http_host}:{settings.http_port}"
        write("\n[bold green]Bulkhead is ready[/]\n")
        # No frame around it and no colours in it: the lines are there to be copied.
        write("\n".join(_summary(settings, folder, pid, base, cells)), markup=False)

    return Console(lambda text: write(text, markup=False), tell_process, tell_ready)


def _summary(settings: Settings, folder: DataFolder, pid: int, base: str, cells: Sequence[Cell]) -> list[str]:
    bulkhead = "bulkhead"
    if folder.root.name != "data":
        bulkhead += f" --data-folder {folder.root}"
    others = "".join(
        f", http://{settings.http_host}:{settings.http_port + index}" for index in range(1, settings.routers)
    )
    doors = ", ".join(f"http://{cell.host}:{cell.metrics_port}/metrics" for cell in cells if cell.is_running)
    simulated = " (the simulator)" if settings.starts_simulator else ""
    return [
        f"payments   {base}/v1/payments{others}",
        f"OpenAPI    {base}/docs",
        f"metrics    {', '.join(routers_of(settings))}, {doors}",
        f"acquirer   {settings.acquirer}{simulated}",
        f"data       {folder.root}, pid {pid}",
        "",
        "A partner, and its first payment:",
        "",
        f"  {bulkhead} partner create --id acme",
        "  KEY=sk_test_acme_...   # as it was just shown",
        f"  curl {base}/v1/payments -H \"Authorization: Bearer $KEY\" -H 'Content-Type: application/json' \\",
        '    -d \'{"amount": 1999, "currency": "EUR", "payment_method": "tok_approve"}\'',
        "",
        f"See everything: {bulkhead} status. Ctrl-C stops it all.",
    ]


@contextlib.contextmanager
def waiting(text: str) -> Iterator[Callable[[str], None]]:
    """Show that something goes on, and what is told of it, where a person sees it."""
    out = make_console(stderr=True)
    with out.status(escape(text)) as shown:
        yield lambda told: shown.update(escape(told))


@contextlib.contextmanager
def counting(text: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show on a terminal how many of how many are done (None: nobody knows how many there are); elsewhere nothing."""
    console = make_console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(escape(text), total=None)
        yield lambda done, of: progress.update(task, completed=done, total=of)


def show_move(found: dict[str, Any]) -> None:
    """Show one move and how it went."""
    if found.get("ended"):
        pause = "not known" if found["pause_ms"] is None else f"{found['pause_ms']} ms"
        say(f"{found['partner']} is in {found['target']} now: {found['rows']} rows; its requests waited: {pause}")
    else:
        say(f"{found.get('partner')} is on its way to {found.get('target')}: {found.get('state')}. {found.get('why')}")


def show_moves(moves: Sequence[dict[str, Any]]) -> None:
    """Show the moves that go on."""
    if not moves:
        say("no partner is on its way to another cell")
        return
    table = table_of("partner", "from", "to", "state", "attempt", "rows", "since", "why")
    for move in moves:
        names = ("partner", "source", "target", "state", "attempt", "rows", "started_at", "why")
        table.add_row(*(shown_as(move[name]) for name in names))
    make_console().print(table)


def show_status(found: dict[str, Any]) -> None:
    """Show every process, then how the partners are."""
    out = make_console()
    table = table_of("process", "role", "cell", "partner", "pid", "endpoint", "epoch", "health", "restarts")
    for row in found["processes"]:
        names = ("process", "role", "cell", "partner", "pid", "endpoint", "epoch")
        table.add_row(
            *(shown_as(row[name]) for name in names), _health(row["health"]), shown_as(row["restarts"] or None)
        )
    out.print(table)
    if found["control_plane"]["fault_injection"]:
        off = ", ".join(found["control_plane"]["bulkheads_off"]) or "none"
        out.print(f"[bold red]fault injection is on; bulkheads off: {escape(off)}[/]", soft_wrap=True)
    if found["control_plane"]["one_user"]:
        out.print(f"[red]{escape(found['control_plane']['one_user'])}[/]", soft_wrap=True)
    if found["partners_unread"] is not None:
        out.print(f"[red]{escape(found['partners_unread'])}[/]", soft_wrap=True)
    states: dict[str, int] = {}
    for partner in found["partners"]:
        states[partner["state"]] = states.get(partner["state"], 0) + 1
    counted = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none yet"
    unknowns = sum(partner.get("unknowns", 0) for partner in found["partners"])
    out.print(f"partners: {escape(counted)}; operations of unknown outcome: {unknowns}", soft_wrap=True)
    for partner in found["partners"]:
        kept_apart = partner.get("escalation") or {}
        if partner["state"] == "active" and kept_apart:
            what = f"{partner['partner']} in {partner['cell']} is kept out of its pool: {kept_apart['why']}"
            out.print(f"[yellow]{escape(what)}[/]", soft_wrap=True)
        if partner["state"] in {"unavailable", "absent", "quarantined"}:
            why = f": {partner['why']}" if partner.get("why") else ""
            what = f"{partner['partner']} in {partner['cell']} is {partner['state']}{why}"
            out.print(f"[red]{escape(what)}[/]", soft_wrap=True)


def show_partners(partners: Sequence[dict[str, Any]]) -> None:
    """Show all partners."""
    table = table_of(
        "partner", "name", "status", "mode", "cell", "isolation", "rate/s", "burst", "in flight", "created"
    )
    for row in partners:
        names = ("id", "name", "status", "mode", "cell", "isolation", "rate_per_second", "rate_burst", "in_flight_max")
        table.add_row(*(shown_as(row[name]) for name in (*names, "created_at")))
    make_console().print(table if partners else "no partners yet: bulkhead partner create --name NAME")


def show_partner(found: dict[str, Any]) -> None:
    """Show one partner with its keys and latest changes."""
    out = make_console()
    for name, value in found["partner"].items():
        out.print(f"{name.replace('_', ' '):>16}  {escape(str(value))}", soft_wrap=True)
    deletion = found.get("deletion")
    if deletion is not None:
        what = f"{deletion['state']}: asked by {deletion['who']}, erased after {deletion['due_at']}"
        out.print(f"[yellow]{escape(what)}. {escape(deletion['waits_for'])}[/]", soft_wrap=True)
    at_door = found["at_door"]
    if at_door is not None:
        out.print(
            f"{'at its door':>16}  {escape(at_door['state'])}, worker {shown_as(at_door['worker'])}", soft_wrap=True
        )
        escalation = at_door["escalation"]
        if escalation is not None:
            what = "quarantined" if escalation["kind"] == "quarantined" else "kept out of its pool"
            since = datetime.fromtimestamp(escalation["since_ms"] / 1_000, UTC).isoformat(timespec="seconds")
            out.print(f"[red]{what} since {since}: {escape(escalation['why'])}[/]", soft_wrap=True)
            word = "release" if escalation["kind"] == "quarantined" else "pool"
            out.print(f"to end it: bulkhead partner {word} {escape(at_door['partner'])}", soft_wrap=True)
    keys = table_of("key", "ends in", "created", "expires", "revoked")
    for key in found["keys"]:
        keys.add_row(*(shown_as(key[name]) for name in ("id", "hint", "created_at", "expires_at", "revoked_at")))
    out.print(keys)
    changes = table_of("when", "who", "what", "detail")
    for change in found["changes"]:
        changes.add_row(change["at"], escape(change["who"]), change["what"], escape(json.dumps(change["detail"])))
    out.print(changes)
    if found["changes_unread"] is not None:
        out.print(f"[red]the changes can't be shown: {escape(found['changes_unread'])}[/]", soft_wrap=True)


def show_changed(found: dict[str, Any], what: str) -> None:
    """Show that a partner was changed, its new key where there is one, and who will take it later."""
    out = make_console()
    partner = found["partner"]
    out.print(f"{escape(partner['id'])} in {escape(partner['cell'])} is {escape(what)}", soft_wrap=True)
    if "key" in found:
        out.print(f"\n  {escape(found['key']['api_key'])}\n", soft_wrap=True)
        out.print("Keep this key now: it is not stored and can't be shown again.", soft_wrap=True)
    if found["routers_behind"]:
        names = ", ".join(found["routers_behind"])
        out.print(f"[yellow]not yet taken by {escape(names)}: they take it once they run[/]", soft_wrap=True)
    if found["door_behind"]:
        out.print(f"[yellow]not yet taken by its cell, which is asked again: {escape(found['door_behind'])}[/]")


@contextlib.contextmanager
def watching_cell(what: str) -> Iterator[Callable[[str], None]]:
    """Show on a terminal that something is waited for, and why; elsewhere nothing."""
    console = make_console(stderr=True)
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(escape(what))
        yield lambda why: progress.update(task, description=escape(f"{what}: {why}"))


def show_changed_cell(found: dict[str, Any], what: str) -> None:
    """Show what became of a cell, or would, and how many partners belong elsewhere now."""
    out = make_console()
    cell = found["cell"]
    if found["dry_run"]:
        out.print(f"{escape(cell['name'])} would be {escape(what)}; nothing was changed", soft_wrap=True)
    else:
        out.print(f"{escape(cell['name'])} is {escape(what)} ({cell['state']})", soft_wrap=True)
    verb = "would belong" if found["dry_run"] else "belong"
    out.print(
        f"{found['partners_there']} of {found['partners']} partners are there; by the hash {found['partners_rehomed']} "
        f"{verb} elsewhere than before, and stay where they are until they are moved",
        soft_wrap=True,
    )


def show_evacuation(found: dict[str, Any], *, is_watched: bool) -> None:
    """Show how many of a cell's partners are taken over, and of those that are not who and why.

    `is_watched`: they have arrived by now.
    """
    would = "would go" if found["dry_run"] else "have gone" if is_watched else "are on their way"
    cells = len(set(found["targets"].values()))
    say(f"{found['partners']} partners of {found['cell']} {would} to {cells} other cells")
    staying: dict[str, str] = found["staying"]
    out = make_console(stderr=True)
    for partner_id, why in list(staying.items())[:_PARTNERS_SHOWN_MAX]:
        out.print(f"[bold red]stays:[/] {escape(partner_id)}: {escape(why)}", soft_wrap=True)
    if len(staying) > _PARTNERS_SHOWN_MAX:
        out.print(f"and {len(staying) - _PARTNERS_SHOWN_MAX} more: --json names all", soft_wrap=True)


def show_cells(cells: Sequence[dict[str, Any]]) -> None:
    """Show all cells."""
    columns = ("workers", "pools", "spares", "partners", "pooled", "unknowns", "kept apart", "quarantined")
    table = table_of("cell", "state", "weight", "door", "epoch", *columns)
    for cell in cells:
        door = "[green]answers[/]" if cell["answers"] else f"[red]{escape(cell['error'])}[/]"
        state = cell["state"] if cell.get("waits_for") is None else f"{cell['state']}: {cell['waits_for']}"
        names = ("door_epoch", "workers", "pools", "spares", "partners", "pooled", "unknowns")
        escalated = (", ".join(cell.get(name, ())) or None for name in ("kept_apart", "quarantined"))
        wanted = (_health(state), shown_as(f"{cell['weight']:g}"))
        table.add_row(
            cell["cell"], *wanted, door, *(shown_as(cell.get(name)) for name in names), *map(shown_as, escalated)
        )
    make_console().print(table)


def show_unknown(found: dict[str, Any]) -> None:
    """Show the operations of unknown outcome, and whom nobody could ask."""
    out = make_console()
    table = table_of("operation", "partner", "payment", "kind", "amount", "age", "attempts", "")
    for row in found["operations"]:
        table.add_row(
            *(shown_as(row[name]) for name in ("operation_id", "partner", "payment_id", "kind")),
            f"{row['amount']} {row['currency']}",
            f"{row['age_ms'] / 1000:.0f} s",
            shown_as(row["attempts"]),
            "[red]needs a person[/]" if row["needs_person"] else "settles by itself",
        )
    out.print(table if found["operations"] else "no operation of unknown outcome")
    for error in found["not_asked"]:
        out.print(f"[red]{escape(error['partner'])} could not be asked: {escape(error['error'])}[/]", soft_wrap=True)


def show_audit(report: dict[str, Any]) -> None:
    """Show every partner's books and what disagrees."""
    out = make_console()
    table = table_of("partner", "cell", "payments", "operations", "in doubt", "books")
    for row in report["partners"]:
        names = ("partner", "cell", "payments", "operations", "in_doubt")
        table.add_row(*(shown_as(row[name]) for name in names), _health("ok" if row["ok"] else "DISAGREE"))
    out.print(table)
    for row in report["partners"]:
        for difference in row["differences"]:
            out.print(f"[red]{escape(row['partner'])}:[/] {escape(difference)}", soft_wrap=True)
    for extra in report["extra_at_acquirer"]:
        out.print(f"[red]only the acquirer knows:[/] {escape(json.dumps(extra))}", soft_wrap=True)
    verdict = "[green]all books agree[/]" if report["ok"] else "[bold red]the books disagree[/]"
    out.print(
        f"{verdict}: {report['payments']} payments, {report['operations']} operations, {report['in_doubt']} in doubt"
    )


def show_findings(findings: Sequence[Finding]) -> None:
    """Show what `bulkhead doctor` found, and what to do about it."""
    out = make_console()
    for finding in findings:
        word = "[green]ok[/]" if finding.ok else "[bold red]NOT OK[/]"
        out.print(f"{word} {escape(finding.check)}: {escape(finding.what)}", soft_wrap=True)
        for name, text in (("where", finding.where), ("hint", finding.hint)):
            if text and not finding.ok:
                out.print(f"  {name}: {escape(text)}", soft_wrap=True)


def show_dry_run(found: dict[str, Any]) -> None:
    """Show what would be written, had it been no dry run."""
    out = make_console()
    for entry in found["entries"]:
        whose = f" of {entry['partner_id']}" if entry["partner_id"] else ""
        out.print(escape(f"{entry['what']}{whose}: {json.dumps(entry['detail'])}"), soft_wrap=True)
    if "waits_for_approval" in found:
        out.print(f"it would wait for a second person first ({escape(found['waits_for_approval'])})", soft_wrap=True)
    out.print("nothing was changed: this was a dry run" if found["entries"] else "nothing would change", soft_wrap=True)


def show_operators(operators: Sequence[dict[str, Any]]) -> None:
    """Show all operators."""
    table = table_of("operator", "role", "status", "key ends in", "created")
    for row in operators:
        table.add_row(*(shown_as(row[name]) for name in ("id", "role", "status", "hint", "created_at")))
    make_console().print(table)


def show_operator(found: dict[str, Any]) -> None:
    """Show an operator after a change, and its key where it is new."""
    out = make_console()
    operator = found["operator"]
    out.print(f"{escape(operator['id'])} is {escape(operator['role'])}, {escape(operator['status'])}", soft_wrap=True)
    if "key" in found:
        out.print(f"\n  {escape(found['key'])}\n", soft_wrap=True)
        out.print("Keep this key now: it is not stored and can't be shown again.", soft_wrap=True)


def show_audit_log(entries: Sequence[dict[str, Any]]) -> None:
    """Show entries of the audit log."""
    table = table_of("number", "when", "who", "from", "what", "partner", "detail")
    for entry in entries:
        names = ("sequence", "at", "who", "origin", "what", "partner_id")
        table.add_row(*(shown_as(entry[name] or None) for name in names), escape(json.dumps(entry["detail"])))
    make_console().print(table if entries else "no changes yet")


def show_audit_verdict(verdict: Verdict) -> None:
    """Show whether the audit log is whole, and the head to be kept elsewhere."""
    out = make_console()
    for problem in verdict.problems:
        out.print(f"[red]{escape(problem)}[/]", soft_wrap=True)
    if verdict.unchained:
        out.print(f"the first {verdict.unchained} entries are of before there was a chain", soft_wrap=True)
    if verdict.sealed_at:
        out.print(f"sealed: from entry {verdict.sealed_at} on, hashes need the key", soft_wrap=True)
    if verdict.unproven:
        out.print(
            f"NOT CHECKED, for want of the key: what {verdict.unproven} entries say. "
            "Checked: that they follow each other and end in the heads",
            soft_wrap=True,
        )
    word = "[bold red]the audit log is not whole[/]" if verdict.problems else "[green]the audit log is whole[/]"
    out.print(f"{word}: {verdict.entries} entries", soft_wrap=True)
    out.print(f"head: {verdict.head.sequence}:{verdict.head.hash}", soft_wrap=True)


def show_as_it_is(text: str) -> None:
    """Print a file's text, for other programs."""
    sys.stdout.write(text)


@dataclass(slots=True)
class Imported:
    """How many rows of a file of partners became what."""

    dry_run: bool
    created: int = 0
    there: int = 0
    wrong: int = 0

    def count(self, told: dict[str, Any]) -> None:
        """Count what is told of one row."""
        if "error" in told:
            self.wrong += 1
        elif "key" in told:
            self.created += 1
        else:
            self.there += 1


class ImportScreen:
    """What a person sees of an import: a line a row, above a bar that shows how far it is."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task
        self._out = make_console()

    def tell(self, told: dict[str, Any], *, as_json: bool) -> None:
        """Print what became of one row: on stdout, where programs read it at once; errors of rows on stderr."""
        self._progress.advance(self._task)
        if as_json:
            text = json.dumps(told, ensure_ascii=False)
        elif "error" in told:
            self._progress.console.print(f"[red]line {told['line']}:[/] {escape(told['error'])}", soft_wrap=True)
            return
        else:
            partner, key = told["partner"], told.get("key")
            shown = "was there before" if key is None else key.get("api_key", key["id"])
            text = f"{partner['id']}  {partner['cell']}  {shown}"
            if told["routers_behind"]:
                text += f"  (not yet taken by {', '.join(told['routers_behind'])})"
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


@contextlib.contextmanager
def importing(rows: int) -> Iterator[ImportScreen]:
    """Show on a terminal how far an import is; elsewhere only its lines."""
    console = make_console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
        disable=not console.is_terminal,
    ) as progress:
        yield ImportScreen(progress, progress.add_task("onboarding", total=rows))


def show_imported(counts: Imported) -> None:
    """Say, beside the lines, what it came to."""
    out = make_console(stderr=True)
    if counts.dry_run:
        out.print(f"{counts.wrong} rows are wrong; nobody was onboarded", soft_wrap=True)
        return
    style = "red" if counts.wrong else "green"
    out.print(
        f"[{style}]{counts.created} onboarded, {counts.there} were there before, {counts.wrong} are wrong[/]",
        soft_wrap=True,
    )
    if counts.wrong and not counts.created and not counts.there:
        out.print("nothing was done; mend these rows, or go without them: --partial", soft_wrap=True)
    if counts.there:
        out.print("keys of those are not shown again; a new one: bulkhead partner rotate-key P", soft_wrap=True)


def table_of(*names: str) -> Table:
    """Make an empty table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def shown_as(value: Any) -> str:
    """Give a value as it stands in a table."""
    return "-" if value is None else escape(str(value))


def _health(health: str) -> str:
    return f"[{'green' if health in _GOOD else 'red'}]{escape(health)}[/]"
