"""The `bulkhead` command: reads options, asks the control plane, shows what it says. Decides nothing itself.

Exit codes: 0 done, 1 failed or the books disagree, 2 wrong usage or refused, 3 the control plane isn't running,
4 the operator's key or role does not allow it, 5 it waits for a second person (`bulkhead approval`).
"""

import asyncio
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from cells.api.bulkheads import Bulkhead
from control_plane import (
    approval_commands,
    audit_commands,
    cell_commands,
    client,
    doctor_commands,
    limits,
    operator_commands,
    rebalance_commands,
    reconciliation,
    screen,
    settings,
    settlement_screen,
    status,
    up,
)
from control_plane import audit as audits
from control_plane.approvals import KINDS
from control_plane.command_line import AsJson, DryRun, Watch, Where, parse_duration_s, shown
from control_plane.command_line import explained as _explained
from control_plane.command_line import names_of as _names
from control_plane.command_line import where as _where
from control_plane.errors import EXIT_FAILED, EXIT_OK, ControlPlaneError, NotRunningError, SettingsError
from control_plane.following import follow_move
from control_plane.partner_commands import export_partners, import_partners
from control_plane.plugins import PluginGroup

app = typer.Typer(
    name="bulkhead",
    cls=PluginGroup,
    help="A payment gateway in which no partner can sink another.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
partner_app = typer.Typer(help="Partners: onboard, limit, suspend, and their keys.", no_args_is_help=True)
unknown_app = typer.Typer(help="Operations whose outcome at the acquirer is not known.", no_args_is_help=True)
app.add_typer(partner_app, name="partner")
app.add_typer(cell_commands.app, name="cell")
app.command("rebalance")(rebalance_commands.rebalance)
app.command("doctor", epilog="Example: bulkhead doctor --json")(doctor_commands.examine)
app.add_typer(unknown_app, name="unknown")
app.add_typer(audit_commands.app, name="audit-log")
app.add_typer(operator_commands.app, name="operator")
app.add_typer(approval_commands.app, name="approval")

PartnerId = Annotated[str, typer.Argument(help="The partner's id.")]


@app.callback()
def main(
    context: typer.Context,
    settings_file: Annotated[
        Path | None,
        typer.Option("--settings", help=f"The settings file; else {settings.FILE_VARIABLE}, ./{settings.FILE_NAME}."),
    ] = None,
    data_folder: Annotated[
        Path | None, typer.Option(help="The data folder, over BULKHEAD_DATA_FOLDER and the settings file.")
    ] = None,
) -> None:
    """Set which installation is meant."""
    context.obj = Where(settings_file, data_folder)


@app.command("up", epilog="Example: bulkhead up --cells 3 --store sqlite")
@_explained
def start(  # noqa: PLR0913 - one for each option
    context: typer.Context,
    *,
    cells: Annotated[int | None, typer.Option(help="How many cells.")] = None,
    routers: Annotated[int | None, typer.Option(help="How many routers, each on a port of its own.")] = None,
    spares_per_cell: Annotated[int | None, typer.Option(help="Warm workers that wait to take over.")] = None,
    http_host: Annotated[
        str | None, typer.Option(help="Where routers listen: this host; else with `insecure` only.")
    ] = None,
    http_port: Annotated[int | None, typer.Option(help="Port of the first router.")] = None,
    door_port: Annotated[int | None, typer.Option(help="Port of the first cell's door.")] = None,
    door_advertised_port: Annotated[
        int | None, typer.Option(help="That port as routers are told it, where a proxy or NAT stands between.")
    ] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port of the first door's metrics.")] = None,
    router_metrics_port: Annotated[int | None, typer.Option(help="Port of the first router's metrics.")] = None,
    ray_port: Annotated[int | None, typer.Option(help="Port of the first cell's Ray.")] = None,
    admin_host: Annotated[str | None, typer.Option(help="Where the admin API listens, too; as http-host.")] = None,
    admin_port: Annotated[int | None, typer.Option(help="Port of the admin API; else only the Unix socket.")] = None,
    acquirer_port: Annotated[int | None, typer.Option(help="Port of the acquirer simulator.")] = None,
    acquirer_url: Annotated[
        str | None, typer.Option(help="The acquirer `main`; the simulator isn't started then.")
    ] = None,
    acquirers: Annotated[
        str | None, typer.Option(help="Further acquirers, for partners that name them: name=url, commas between.")
    ] = None,
    second_acquirer_port: Annotated[
        int | None, typer.Option(help="Start a second simulator on this port, as the acquirer `second`.")
    ] = None,
    redis_url: Annotated[
        str | None,
        typer.Option(help="Another Redis (rediss:// on another host); none: no Redis; else `up` starts its own."),
    ] = None,
    redis_port: Annotated[int | None, typer.Option(help="Port of its own Redis.")] = None,
    store: Annotated[str | None, typer.Option(help="Where the money is: sqlite or fdb (FoundationDB).")] = None,
    cluster_files: Annotated[
        str | None,
        typer.Option(help="FoundationDB's cluster files: one that all cells share, or one a cell, commas between."),
    ] = None,
    control_cluster_file: Annotated[
        Path | None, typer.Option(help="The one for the control plane's own data; else the one that all cells share.")
    ] = None,
    two_person_approval: Annotated[
        str | None,
        typer.Option(help=f"Which changes need a second operator, commas between: {', '.join(KINDS)}."),
    ] = None,
    fault_injection: Annotated[
        bool | None, typer.Option("--fault-injection", help="For tests: workers obey faults in a payment's metadata.")
    ] = None,
    bulkheads_off: Annotated[
        str | None,
        typer.Option(help=f"For tests, with --fault-injection, commas between: {', '.join(Bulkhead)}."),
    ] = None,
) -> None:
    """Start everything and keep it running; Ctrl-C stops it. A second `up` on the same data goes on."""
    options = {name: value for name, value in locals().items() if name != "context"}
    raise typer.Exit(up.run(_where(context).load(**options), screen.console()))


@app.command("status", epilog="Example: bulkhead status --watch")
@_explained
def show_status(context: typer.Context, *, watch: Watch = False, as_json: AsJson = False) -> None:
    """Show every process: role, cell, partner, pid, endpoint, epoch and health."""
    found: dict[str, Any] = {}

    def show() -> None:
        nonlocal found
        found = _collect_status(_where(context), quiet=as_json)
        if as_json:
            screen.show_json(found)
        else:
            screen.show_status(found)

    shown(show, watch=watch)
    raise typer.Exit(EXIT_OK if found["control_plane"]["running"] else NotRunningError.exit_code)


def _collect_status(which: Where, *, quiet: bool) -> dict[str, Any]:
    try:
        return client.ask(which.folder(), "GET", "/status")
    except NotRunningError as error:
        if client.is_elsewhere():
            raise
        installation, folder = which.of_last_up()
        found = asyncio.run(status.collect_directly(installation, folder, up.version()))
        if not quiet:
            screen.show_error(error)
        return found


@partner_app.command("create", epilog="Example: bulkhead partner create --id acme --rate 50 --currencies EUR,USD")
@_explained
def create_partner(  # noqa: PLR0913 - one for each option
    context: typer.Context,
    *,
    name: Annotated[str | None, typer.Option(help="A name for people; else the id.")] = None,
    partner_id: Annotated[str | None, typer.Option("--id", help="Its id, a-z 0-9 _; else one is made.")] = None,
    mode: Annotated[str, typer.Option(help="test or live.")] = "test",
    rate: Annotated[int | None, typer.Option(help="Requests a second that it may go on with.")] = None,
    burst: Annotated[int | None, typer.Option(help="Requests that it may send at once.")] = None,
    in_flight: Annotated[int | None, typer.Option(help="Payments that may be open at once.")] = None,
    isolation: Annotated[
        str | None, typer.Option(help="dedicated: a worker of its own; pooled: one that it shares; else dedicated.")
    ] = None,
    acquirers: Annotated[
        str | None, typer.Option(help="Where its payments go, the first choice first: main,second. Else main.")
    ] = None,
    currencies: Annotated[str | None, typer.Option(help="What its payments may be in: EUR,USD. Else all.")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Onboard a partner and show its key, once. Repeat it after a failure: it goes on where it stopped."""
    body = {
        "id": partner_id,
        "name": name,
        "mode": mode,
        "rate_per_second": rate,
        "rate_burst": burst,
        "in_flight_max": in_flight,
        "isolation": isolation,
        "acquirers": None if acquirers is None else _names(acquirers),
        "currencies": None if currencies is None else _names(currencies),
    }
    given = {field: value for field, value in body.items() if value is not None}
    found = client.ask(_where(context).folder(), "POST", "/partners", given, dry_run=dry_run)
    _show_changed(found, "onboarded", as_json=as_json)


partner_app.command("import")(_explained(import_partners))
partner_app.command("export")(_explained(export_partners))


@partner_app.command("list", epilog="Example: bulkhead partner list --json")
@_explained
def list_partners(context: typer.Context, *, watch: Watch = False, as_json: AsJson = False) -> None:
    """List all partners."""

    def show() -> None:
        found = client.ask(_where(context).folder(), "GET", "/partners")
        if as_json:
            screen.show_json(found)
        else:
            screen.show_partners(found["partners"])

    shown(show, watch=watch)


@partner_app.command("show", epilog="Example: bulkhead partner show acme")
@_explained
def show_partner(context: typer.Context, partner: PartnerId, *, as_json: AsJson = False) -> None:
    """Show a partner, its keys (never the keys themselves) and its latest changes."""
    found = client.ask(_where(context).folder(), "GET", _path(partner))
    if as_json:
        screen.show_json(found)
    else:
        screen.show_partner(found)


@partner_app.command("suspend", epilog="Example: bulkhead partner suspend acme --dry-run")
@_explained
def suspend_partner(
    context: typer.Context, partner: PartnerId, *, dry_run: DryRun = False, as_json: AsJson = False
) -> None:
    """Turn a partner's requests away from now on."""
    found = client.ask(_where(context).folder(), "POST", f"{_path(partner)}/suspend", dry_run=dry_run)
    _show_changed(found, "suspended", as_json=as_json)


@partner_app.command("resume", epilog="Example: bulkhead partner resume acme")
@_explained
def resume_partner(
    context: typer.Context, partner: PartnerId, *, dry_run: DryRun = False, as_json: AsJson = False
) -> None:
    """Let a suspended partner in again."""
    found = client.ask(_where(context).folder(), "POST", f"{_path(partner)}/resume", dry_run=dry_run)
    _show_changed(found, "active", as_json=as_json)


@partner_app.command("isolate", epilog="Example: bulkhead partner isolate acme")
@_explained
def isolate_partner(
    context: typer.Context, partner: PartnerId, *, dry_run: DryRun = False, as_json: AsJson = False
) -> None:
    """Give a partner a worker of its own. It is served meanwhile."""
    found = client.ask(_where(context).folder(), "POST", f"{_path(partner)}/isolate", dry_run=dry_run)
    _show_changed(found, "dedicated", as_json=as_json)


@partner_app.command("pool", epilog="Example: bulkhead partner pool acme")
@_explained
def pool_partner(
    context: typer.Context, partner: PartnerId, *, dry_run: DryRun = False, as_json: AsJson = False
) -> None:
    """Let a partner share a worker with others. It is served meanwhile. Ends that it is kept apart for deaths."""
    found = client.ask(_where(context).folder(), "POST", f"{_path(partner)}/pool", dry_run=dry_run)
    _show_changed(found, "pooled", as_json=as_json)


@partner_app.command("release", epilog="Example: bulkhead partner release acme")
@_explained
def release_partner(
    context: typer.Context, partner: PartnerId, *, dry_run: DryRun = False, as_json: AsJson = False
) -> None:
    """End a partner's quarantine: `partner show` says why it is in it."""
    found = client.ask(_where(context).folder(), "POST", f"{_path(partner)}/release", dry_run=dry_run)
    _show_changed(found, "released", as_json=as_json)


@partner_app.command("delete", epilog="Example: bulkhead partner delete acme --grace 30d --dry-run")
@_explained
def delete_partner(
    context: typer.Context,
    partner: PartnerId,
    *,
    grace: Annotated[str, typer.Option(help="How long it may still read and be restored: 30d, 12h; 0: not.")] = "30d",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Delete a partner: it reads for the grace, then its keys and its book are erased. Its id is never given again.

    Refused while payments are open. From now on nothing of it is taken but reads, refunds neither.
    """
    body = {"grace_s": parse_duration_s(grace, most_s=limits.DELETION_GRACE_S_MAX)}
    found = client.ask(_where(context).folder(), "POST", f"{_path(partner)}/delete", body, dry_run=dry_run)
    due_at = (found.get("deletion") or {}).get("due_at")
    _show_changed(found, f"closing: it reads until {due_at}, then it is erased", as_json=as_json)


@partner_app.command("restore", epilog="Example: bulkhead partner restore acme")
@_explained
def restore_partner(
    context: typer.Context, partner: PartnerId, *, dry_run: DryRun = False, as_json: AsJson = False
) -> None:
    """Take a partner's deletion back, within its grace. It is as it was before."""
    found = client.ask(_where(context).folder(), "POST", f"{_path(partner)}/restore", dry_run=dry_run)
    _show_changed(found, "not deleted", as_json=as_json)


@partner_app.command("move")
@_explained
def move_partner(
    context: typer.Context,
    partner: PartnerId,
    *,
    to: Annotated[str | None, typer.Option(help="The cell that it is to live in from now on.")] = None,
    abort: Annotated[bool, typer.Option("--abort", help="Take a move back that is not sealed yet.")] = False,
    wait: Annotated[str, typer.Option(help="How long to wait for its end: 90s, 30m; 0: not at all.")] = "30m",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Move a partner to another cell while it is served.

    Its book is copied first; then its requests wait for some milliseconds, and go on in the new cell. Interrupting
    this command interrupts no move: ask again to see its end.

    \b
    Examples:
    bulkhead partner move acme --to cell-2
    bulkhead partner move acme --abort
    """  # noqa: D301 - it is to be a backspace: what follows it keeps its lines
    folder = _where(context).folder()
    if abort or to is None:
        if to is not None or not abort:
            raise SettingsError("say where to", where="options --to and --abort", hint="give one of the two")
        if dry_run:
            raise SettingsError("to abort can't be tried", where="options --abort and --dry-run", hint="leave one out")
        found = client.ask(folder, "DELETE", f"{_path(partner)}/move")
    elif dry_run:
        screen_or_json = screen.show_json if as_json else screen.show_dry_run
        screen_or_json(client.ask(folder, "POST", f"{_path(partner)}/move", {"to": to}, dry_run=True))
        return
    else:
        wait_s = parse_duration_s(wait, option="--wait")
        with screen.waiting(f"moving {partner} to {to}") as told:
            found = follow_move(folder, partner, to, wait_s, told)
    if as_json:
        screen.show_json(found)
    else:
        screen.show_move(found)


@partner_app.command("moves", epilog="Example: bulkhead partner moves --watch")
@_explained
def list_moves(context: typer.Context, *, watch: Watch = False, as_json: AsJson = False) -> None:
    """List the partners on their way to another cell."""

    def show() -> None:
        found = client.ask(_where(context).folder(), "GET", "/moves")
        if as_json:
            screen.show_json(found)
        else:
            screen.show_moves(found["moves"])

    shown(show, watch=watch)


@partner_app.command("set-limits", epilog="Example: bulkhead partner set-limits acme --rate 100 --burst 200")
@_explained
def set_limits(
    context: typer.Context,
    partner: PartnerId,
    *,
    rate: Annotated[int | None, typer.Option(help="Requests a second that it may go on with.")] = None,
    burst: Annotated[int | None, typer.Option(help="Requests that it may send at once.")] = None,
    in_flight: Annotated[int | None, typer.Option(help="Payments that may be open at once.")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Change a partner's limits; what isn't named stays."""
    body = {"rate_per_second": rate, "rate_burst": burst, "in_flight_max": in_flight}
    given = {field: value for field, value in body.items() if value is not None}
    found = client.ask(_where(context).folder(), "PATCH", f"{_path(partner)}/limits", given, dry_run=dry_run)
    _show_changed(found, "limited anew", as_json=as_json)


@partner_app.command("set-acquirers", epilog="Example: bulkhead partner set-acquirers acme main,second")
@_explained
def set_acquirers(
    context: typer.Context,
    partner: PartnerId,
    acquirers: Annotated[str, typer.Argument(help="Names, the first choice first: main,second.")],
    *,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Say which acquirers a partner's new payments go to. Payments made already stay with theirs."""
    body = {"acquirers": _names(acquirers)}
    found = client.ask(_where(context).folder(), "PUT", f"{_path(partner)}/acquirers", body, dry_run=dry_run)
    _show_changed(found, f"with {acquirers}", as_json=as_json)


@partner_app.command("set-currencies", epilog="Example: bulkhead partner set-currencies acme EUR,USD")
@_explained
def set_currencies(
    context: typer.Context,
    partner: PartnerId,
    currencies: Annotated[str, typer.Argument(help="ISO 4217, commas between: EUR,USD; or `all`.")],
    *,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Say which currencies a partner's new payments may be in. What is under way goes on."""
    body = {"currencies": [] if currencies == "all" else _names(currencies)}
    found = client.ask(_where(context).folder(), "PUT", f"{_path(partner)}/currencies", body, dry_run=dry_run)
    _show_changed(found, f"taking {currencies}", as_json=as_json)


@partner_app.command("rotate-key", epilog="Example: bulkhead partner rotate-key acme --grace 24h")
@_explained
def rotate_key(
    context: typer.Context,
    partner: PartnerId,
    *,
    grace: Annotated[str, typer.Option(help="How long older keys stay good: 30m, 24h, 7d; 0: not at all.")] = "24h",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Make a new key and show it, once."""
    body = {"grace_s": parse_duration_s(grace)}
    found = client.ask(_where(context).folder(), "POST", f"{_path(partner)}/keys", body, dry_run=dry_run)
    _show_changed(found, "given a new key", as_json=as_json)


@partner_app.command("revoke-key", epilog="Example: bulkhead partner revoke-key acme key_4f1c")
@_explained
def revoke_key(
    context: typer.Context,
    partner: PartnerId,
    key: Annotated[str, typer.Argument(help="The key's id, key_…, as `partner show` lists it.")],
    *,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """End one key at once."""
    found = client.ask(
        _where(context).folder(), "DELETE", f"{_path(partner)}/keys/{quote(key, safe='')}", dry_run=dry_run
    )
    _show_changed(found, f"rid of {key}", as_json=as_json)


@unknown_app.command("list", epilog="Example: bulkhead unknown list --partner acme --watch")
@_explained
def list_unknown(
    context: typer.Context,
    *,
    partner: Annotated[str | None, typer.Option(help="Of this partner only.")] = None,
    watch: Watch = False,
    as_json: AsJson = False,
) -> None:
    """List operations whose outcome is not known; most settle by themselves."""
    query = "" if partner is None else f"?partner={quote(partner, safe='')}"
    found: dict[str, Any] = {}

    def show() -> None:
        nonlocal found
        found = client.ask(_where(context).folder(), "GET", f"/unknown{query}")
        if as_json:
            screen.show_json(found)
        else:
            screen.show_unknown(found)

    shown(show, watch=watch)
    raise typer.Exit(EXIT_FAILED if found["not_asked"] else EXIT_OK)


@unknown_app.command(
    "resolve", epilog="Example: bulkhead unknown resolve op_01J --partner acme --outcome failed --note 'asked by phone'"
)
@_explained
def resolve_unknown(
    context: typer.Context,
    operation: Annotated[str, typer.Argument(help="The operation's id.")],
    *,
    partner: Annotated[str, typer.Option(help="The partner whose operation it is.")],
    outcome: Annotated[str, typer.Option(help="What it became at the acquirer: succeeded or failed.")],
    note: Annotated[str, typer.Option(help="How you know: stays in the partner's journal.")],
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Write down what a person found out at the acquirer. It is final.

    Refused while the gateway itself still asks: only what `unknown list` shows as needing a person is resolved.
    """
    body = {"partner": partner, "outcome": outcome, "note": note}
    path = f"/unknown/{quote(operation, safe='')}/resolve"
    found = client.ask(_where(context).folder(), "POST", path, body, dry_run=dry_run)
    if as_json:
        screen.show_json(found)
    elif dry_run:
        screen.show_dry_run(found)
    else:
        screen.say(f"{operation} of {partner} is {outcome} from now on")


@app.command("audit", epilog="Example: bulkhead audit --json")
@_explained
def audit(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Recompute every partner's books and compare them with balances and the acquirer's record."""
    installation, folder = _where(context).of_last_up()
    with screen.counting("auditing partners") as told:
        report = asyncio.run(audits.run(installation, folder, told))
    if as_json:
        screen.show_json(report)
    else:
        screen.show_audit(report)
    raise typer.Exit(EXIT_OK if report["ok"] else EXIT_FAILED)


@app.command("reconcile")
@_explained
def reconcile(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The acquirer's settlement file (CSV, docs/settlement.md).")],
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compare only; post nothing.")] = False,
    acquirer: Annotated[
        str, typer.Option(help="Whose file it is, by the settings' names; other acquirers' operations are not missing.")
    ] = settings.MAIN_ACQUIRER,
    clock_margin: Annotated[
        str, typer.Option(help="How far the acquirer's clock may be from ours: 90s, 5m; 0: not at all.")
    ] = f"{limits.SETTLEMENT_CLOCK_MARGIN_S_DEFAULT // 60}m",
    differences: Annotated[
        Path | None, typer.Option(help="Write every difference to this file, as JSON lines.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare a settlement file with the partners' books, and post what it paid out.

    Asking again with the same file changes nothing: repeat a run that was interrupted.

    Exit codes: 0 all is matched, 1 something differs or a partner could not be asked, 2 a file that can't be believed.

    \b
    Examples:
    curl -sSf -o day.csv http://127.0.0.1:8090/settlements/2026-11-21.csv
    bulkhead reconcile day.csv --dry-run
    bulkhead reconcile day.csv --differences day.jsonl
    """  # noqa: D301 - it is to be a backspace: what follows it keeps its lines
    installation, folder = _where(context).of_last_up()
    margin_s = parse_duration_s(clock_margin, option="--clock-margin", most_s=limits.SETTLEMENT_CLOCK_MARGIN_S_MAX)
    wanted = reconciliation.Wanted(file, dry_run, margin_s, differences, acquirer)
    begun: dict[str, Any] = {}

    def begin(said: dict[str, Any]) -> str:
        begun.update(client.ask(folder, "POST", "/reconciliations", said))
        return str(begun["who"])

    def end(counts: dict[str, int]) -> None:
        try:
            client.ask(folder, "POST", f"/reconciliations/{begun['entry']}/end", counts)
        except ControlPlaneError as error:
            screen.show_error(error)  # it is done all the same

    with settlement_screen.reconciling(file) as (read, compared):
        told = reconciliation.Told(read, compared, begin, end)
        report = reconciliation.run(installation, folder, wanted, told)
    if as_json:
        screen.show_json(report)
    else:
        settlement_screen.show_reconciliation(report)
    raise typer.Exit(EXIT_OK if report["ok"] else EXIT_FAILED)


@app.command("version", epilog="Example: bulkhead version")
def show_version() -> None:
    """Show the version."""
    screen.say(up.version())


def _path(partner: str) -> str:
    return f"/partners/{quote(partner, safe='')}"


def _show_changed(found: dict[str, Any], what: str, *, as_json: bool) -> None:
    if as_json:
        screen.show_json(found)
    elif "dry_run" in found:
        screen.show_dry_run(found)
    else:
        screen.show_changed(found, what)


if __name__ == "__main__":
    app()
