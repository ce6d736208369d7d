"""Command groups that other packages of the distribution bring to `bulkhead`, loaded when they are called.

The control plane imports none of them: they are entry points of the group `bulkhead.commands`, each a typer app.
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from control_plane import screen
from control_plane.errors import EXIT_USAGE, ControlPlaneError

GROUP: Final = "bulkhead.commands"


class PluginGroup(TyperGroup):
    """`bulkhead` itself: its own commands, then those that were brought."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Name all commands."""
        return [*super().list_commands(ctx), *sorted(found.name for found in entry_points(group=GROUP))]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Give a command; load it first where it was brought."""
        command = super().get_command(ctx, cmd_name)
        if command is None:
            for found in entry_points(group=GROUP, name=cmd_name):
                return load(found)
        return command


def load(found: EntryPoint) -> Any:
    """Load a command group; where that can't be, give one that says so in one line."""
    try:
        return typer.main.get_command(found.load())
    except (ImportError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"

    def refuse() -> None:
        screen.show_error(
            ControlPlaneError(
                f"`{found.name}` can't be loaded: {why}", where=found.value, hint="install bulkhead-gateway[chaos]"
            )
        )
        raise typer.Exit(EXIT_USAGE)

    return TyperCommand(
        found.name,
        callback=refuse,
        help="Can't be loaded here.",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
