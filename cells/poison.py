"""Which command a worker is deciding, in a file that outlives it: so that only that one is suspected of a death.

One mapped page a worker. Writing to it is a copy in memory; the kernel keeps it when the process is killed.
"""

import mmap
from collections import OrderedDict
from pathlib import Path
from typing import Final

from cells.api import limits

_BYTES: Final = 64


class Marker:
    """The worker's side."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(_BYTES))
        with path.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), _BYTES)

    def executing(self, command_id: str) -> None:
        """Say which command is being decided; empty: none."""
        self._page[:] = command_id.encode()[:_BYTES].ljust(_BYTES, b"\0")

    def close(self) -> None:
        """Give back the page."""
        self._page.close()


def read_mark(path: Path) -> str:
    """Give the command that was being decided, empty where none was."""
    try:
        return path.read_bytes().rstrip(b"\0").decode()
    except (OSError, UnicodeDecodeError):
        return ""


class Suspects:
    """The door's side: how many deaths each command was seen at, for a bounded number of commands."""

    def __init__(self) -> None:
        self._deaths: OrderedDict[str, int] = OrderedDict()

    def accuse(self, command_id: str) -> int:
        """Count a death; give how many there were."""
        deaths = self._deaths.pop(command_id, 0) + 1
        self._deaths[command_id] = deaths
        while len(self._deaths) > limits.POISON_COMMANDS_REMEMBERED_MAX:
            self._deaths.popitem(last=False)
        return deaths

    def is_quarantined(self, command_id: str) -> bool:
        """Say whether the command is not to be tried again."""
        return self._deaths.get(command_id, 0) >= limits.POISON_DEATHS_MAX

    @property
    def any(self) -> bool:
        """Whether any command is suspected, so that looking is worth while."""
        return bool(self._deaths)
