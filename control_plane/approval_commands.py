"""`bulkhead approval list|show|approve|refuse|withdraw`: changes that need two persons. Decides nothing itself."""

from typing import Annotated, Any
from urllib.parse import quote

import typer

from control_plane import approval_screen, client, screen
from control_plane.command_line import AsJson, Watch, explained, shown, where

app = typer.Typer(help="Changes that wait for a second person.", no_args_is_help=True)

ApprovalId = Annotated[str, typer.Argument(help="The approval's id, ap_…, as `approval list` shows it.")]


@app.command("list", epilog="Example: bulkhead approval list --watch")
@explained
def list_approvals(context: typer.Context, *, watch: Watch = False, as_json: AsJson = False) -> None:
    """List what waits for a second person, and what did."""

    def show() -> None:
        found = client.ask(where(context).folder(), "GET", "/approvals")
        if as_json:
            screen.show_json(found)
        else:
            approval_screen.show_approvals(found)

    shown(show, watch=watch)


@app.command("show", epilog="Example: bulkhead approval show ap_01J")
@explained
def show_approval(context: typer.Context, approval: ApprovalId, *, as_json: AsJson = False) -> None:
    """Show exactly what is done if it is approved, and what came of it."""
    _show(client.ask(where(context).folder(), "GET", _path(approval)), as_json=as_json)


@app.command("approve", epilog="Example: bulkhead approval approve ap_01J")
@explained
def approve(context: typer.Context, approval: ApprovalId, *, as_json: AsJson = False) -> None:
    """Approve it: it is made now, once. Refused to who asked, and where what it is about has changed since then.

    Of a key that it makes you are shown the second part, once; who asked was shown the first.
    """
    _show(client.ask(where(context).folder(), "POST", f"{_path(approval)}/approve"), as_json=as_json)


@app.command("refuse", epilog="Example: bulkhead approval refuse ap_01J --note 'nobody asked us for a key'")
@explained
def refuse(
    context: typer.Context,
    approval: ApprovalId,
    *,
    note: Annotated[str, typer.Option(help="Why: stays in the audit log.")] = "",
    as_json: AsJson = False,
) -> None:
    """Refuse what somebody else asked for."""
    body = {"note": note}
    _show(client.ask(where(context).folder(), "POST", f"{_path(approval)}/refuse", body), as_json=as_json)


@app.command("withdraw", epilog="Example: bulkhead approval withdraw ap_01J")
@explained
def withdraw(context: typer.Context, approval: ApprovalId, *, as_json: AsJson = False) -> None:
    """Withdraw what you asked for."""
    _show(client.ask(where(context).folder(), "POST", f"{_path(approval)}/withdraw"), as_json=as_json)


def _path(approval: str) -> str:
    return f"/approvals/{quote(approval, safe='')}"


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        screen.show_json(found)
    else:
        approval_screen.show_approval(found)
