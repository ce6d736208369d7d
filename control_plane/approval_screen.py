"""How approvals are shown on a terminal. Decides nothing."""

from collections.abc import Sequence
from typing import Any

from control_plane.screen import make_console, shown_as, table_of
from control_plane.terminal import escape


def show_waiting(told: dict[str, Any]) -> None:
    """Show that a change waits for a second person, who can be that, and the first part of a key that it will make."""
    out = make_console()
    approval = told["approval"]
    out.print(f"{escape(approval['summary'])}", soft_wrap=True)
    out.print(
        f"waits for a second person: approval {escape(approval['id'])}; who can: "
        f"{escape(', '.join(approval['who_may_decide']))}; until {escape(approval['expires_at'])}",
        soft_wrap=True,
    )
    out.print(f"they: bulkhead approval approve {escape(approval['id'])}", soft_wrap=True)
    _show_part(told, "first_part", "first", "who approves gets the second part")


def show_approvals(found: dict[str, Any]) -> None:
    """Show all approvals, the newest last."""
    table = table_of("approval", "state", "what", "asked by", "until", "who can")
    rows: Sequence[dict[str, Any]] = found["approvals"]
    for row in rows:
        cells = (row["id"], row["state"], row["summary"], row["asked_by"]["who"], row["expires_at"])
        table.add_row(*map(shown_as, cells), escape(", ".join(row["who_may_decide"])))
    out = make_console()
    out.print(table)
    kinds = ", ".join(found["two_persons_for"]) or "nothing (two_person_approval in the settings)"
    out.print(f"two persons are needed for: {escape(kinds)}", soft_wrap=True)


def show_approval(found: dict[str, Any]) -> None:
    """Show one approval: exactly what is done if it is approved, and what came of it."""
    out = make_console()
    approval = found["approval"]
    out.print(f"{escape(approval['id'])} is {escape(approval['state'])}: {escape(approval['summary'])}", soft_wrap=True)
    decided_by = approval["decided_by"] or {}
    for name, value in (
        ("request", f"{approval['method']} {approval['route']}"),
        ("arguments", approval["arguments"]),
        ("about", approval["target"]),
        ("digest", approval["digest"]),
        ("asked by", f"{approval['asked_by']['who']} at {approval['asked_at']}"),
        ("until", approval["expires_at"]),
        ("decided by", decided_by.get("who")),
        ("why", approval["why"]),
        ("who can", ", ".join(approval["who_may_decide"])),
    ):
        if value:
            out.print(f"  {name}: {escape(str(value))}", soft_wrap=True)
    result = found.get("result") or {}
    part = result.get("second_part") or (result.get("key") or {}).get("second_part")
    _show_part({"second_part": part} if part else {}, "second_part", "second", "who asked has the first part")


def _show_part(told: dict[str, Any], name: str, which: str, other: str) -> None:
    if name in told:
        out = make_console()
        out.print(f"\n  {escape(told[name])}\n", soft_wrap=True)
        out.print(
            f"This is the {which} part of the new key, shown to you alone and not stored; {other}. Hand yours to whose "
            "key it is, and not to each other: the key is the first part with the second right behind it.",
            soft_wrap=True,
        )
