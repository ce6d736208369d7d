"""What all commands of `bulkhead` share: which installation is meant, and how an error is shown."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer

from control_plane import screen, settings
from control_plane.data_folder import DataFolder
from control_plane.errors import ControlPlaneError, NotRunningError, SettingsError
from control_plane.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be changed; change nothing.")]


@dataclass(frozen=True, slots=True)
class Where:
    """What all commands share: which installation is meant."""

    settings_file: Path | None
    data_folder: Path | None

    def load(self, **options: Any) -> Settings:
        """Read the settings as `up` wants them."""
        return settings.load(self.settings_file, {"data_folder": self.data_folder, **options})

    def folder(self) -> DataFolder:
        """Give the data folder that is meant."""
        return DataFolder(self.load().data_folder)

    def of_last_up(self) -> tuple[Settings, DataFolder]:
        """Read the settings that the last `up` on this data folder ran with, its options included."""
        folder = self.folder()
        try:
            return Settings(**json.loads(folder.settings_file.read_bytes())), folder
        except FileNotFoundError as error:
            raise NotRunningError(
                "no Bulkhead was ever started on this data folder", where=str(folder.root), hint="start it: bulkhead up"
            ) from error
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise SettingsError(
                f"the settings of the last `up` can't be read: {error}",
                where=str(folder.settings_file),
                hint="start it again: bulkhead up",
            ) from error


def explained(command: Callable[P, R]) -> Callable[P, R]:
    """Show what went wrong as what, where and what to do, and end with its exit code."""

    @wraps(command)
    def run(*arguments: P.args, **options: P.kwargs) -> R:
        try:
            return command(*arguments, **options)
        except ControlPlaneError as error:
            screen.show_error(error)
            raise typer.Exit(error.exit_code) from error

    return run


def where(context: typer.Context) -> Where:
    """Give which installation a command means."""
    assert isinstance(context.obj, Where)
    return context.obj
