"""What all commands of `bulkhead` share: which installation is meant, how errors are shown, how lists are written."""

import contextlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Final, ParamSpec, TypeVar

import typer

from control_plane import approval_screen, limits, screen, settings
from control_plane.data_folder import DataFolder
from control_plane.errors import ControlPlaneError, NotRunningError, SettingsError, WaitsForApprovalError
from control_plane.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")

_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check it and show what would be written; change nothing.")]
Watch = Annotated[bool, typer.Option("--watch", help="Show it again every two seconds, until Ctrl-C.")]


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
        except WaitsForApprovalError as waits:
            if options.get("as_json"):
                screen.show_json(waits.told)
            else:
                approval_screen.show_waiting(waits.told)
            raise typer.Exit(waits.exit_code) from waits
        except ControlPlaneError as error:
            screen.show_error(error)
            raise typer.Exit(error.exit_code) from error

    return run


def shown(show: Callable[[], None], *, watch: bool) -> None:
    """Show something once, or again and again on a cleared screen until Ctrl-C."""
    if not watch:
        show()
        return
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            screen.clear()
            show()
            time.sleep(limits.WATCH_INTERVAL_MS / 1_000)


def where(context: typer.Context) -> Where:
    """Give which installation the command is for."""
    assert isinstance(context.obj, Where)
    return context.obj


def parse_duration_s(text: str, *, option: str = "--grace", most_s: int = limits.KEY_GRACE_S_MAX) -> int:
    """Read `30m`, `24h`, `7d`, `90s` or plain seconds. Raises SettingsError."""
    match = re.fullmatch(r"(\d{1,9})([smhd]?)", text.strip())
    if match is None:
        raise SettingsError(f"{text!r} is no time", where=f"option {option}", hint="write it as 90s, 30m, 24h, 7d or 0")
    seconds = int(match[1]) * _UNITS.get(match[2], 1)
    if seconds > most_s:
        longest = f"{most_s // 86_400} days" if most_s >= 86_400 else f"{most_s // 3_600} hours"
        raise SettingsError(f"{text} is longer than {longest}", where=f"option {option}", hint="name less")
    return seconds


def names_of(text: str) -> list[str]:
    """Read a list with commas between."""
    return [name.strip() for name in text.split(",") if name.strip()]
