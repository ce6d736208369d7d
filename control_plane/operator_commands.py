"""`bulkhead operator add|list|disable|enable|rotate-key`: who may use the admin API. Decides nothing itself."""

from typing import Annotated, Any
from urllib.parse import quote

import typer

from control_plane import client, screen
from control_plane.command_line import AsJson, DryRun, explained, where

app = typer.Typer(help="Operators: who may use the admin API, and as what.", no_args_is_help=True)

OperatorName = Annotated[str, typer.Argument(help="The operator's name: a-z 0-9 _ . -, a letter first.")]


@app.command("add")
@explained
def add(
    context: typer.Context,
    name: OperatorName,
    *,
    role: Annotated[str, typer.Option(help="viewer sees; operator changes partners; admin also operators.")],
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Let an operator in and show its key, once.

    \b
    Examples:
    bulkhead operator add ann --role operator
    BULKHEAD_ADMIN_URL=http://gateway:8070 BULKHEAD_OPERATOR_KEY=ok_ann_... bulkhead status
    """  # noqa: D301 - it is to be a backspace: what follows it keeps its lines
    _show(
        client.ask(where(context).folder(), "POST", "/operators", {"id": name, "role": role}, dry_run=dry_run),
        as_json=as_json,
    )


@app.command("list", epilog="Example: bulkhead operator list")
@explained
def list_operators(context: typer.Context, *, as_json: AsJson = False) -> None:
    """List all operators."""
    found = client.ask(where(context).folder(), "GET", "/operators")
    if as_json:
        screen.show_json(found)
    else:
        screen.show_operators(found["operators"])


@app.command("disable", epilog="Example: bulkhead operator disable ann")
@explained
def disable(context: typer.Context, name: OperatorName, *, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Let an operator in no more, from now on."""
    _show(client.ask(where(context).folder(), "POST", f"{_path(name)}/disable", dry_run=dry_run), as_json=as_json)


@app.command("enable", epilog="Example: bulkhead operator enable ann")
@explained
def enable(context: typer.Context, name: OperatorName, *, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Let a disabled operator in again, with the key it had."""
    _show(client.ask(where(context).folder(), "POST", f"{_path(name)}/enable", dry_run=dry_run), as_json=as_json)


@app.command("rotate-key", epilog="Example: bulkhead operator rotate-key ann")
@explained
def rotate_key(context: typer.Context, name: OperatorName, *, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Give an operator a new key and show it, once; the old one ends now."""
    _show(client.ask(where(context).folder(), "POST", f"{_path(name)}/key", dry_run=dry_run), as_json=as_json)


def _path(name: str) -> str:
    return f"/operators/{quote(name, safe='')}"


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        screen.show_json(found)
    elif "dry_run" in found:
        screen.show_dry_run(found)
    else:
        screen.show_operator(found)
