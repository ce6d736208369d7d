"""Whose command a worker is deciding, in a file that outlives it: so that only that one is suspected of a death.

One mapped page a worker. Writing to it is a copy in memory; the kernel keeps it when the process is killed. It also
names the worker's process and ports, so that the next door finds the workers of before without asking Ray, and can end
one that no longer answers; and with whose batches the worker grew most (growth.py).
"""

import mmap
import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cells.api import limits

_COMMAND_BYTES: Final = limits.COMMAND_ID_BYTES_MAX
_PARTNER_END: Final = _COMMAND_BYTES + limits.PARTNER_ID_BYTES_MAX
_PROCESS_END: Final = _PARTNER_END + 64
_GROWTH_END: Final = _PROCESS_END + limits.PARTNER_ID_BYTES_MAX + 24
_BYTES: Final = _GROWTH_END + 16


@dataclass(frozen=True, slots=True)
class Mark:
    """The command that was being decided, and whose it was."""

    command_id: str
    partner_id: str


@dataclass(frozen=True, slots=True)
class Growth:
    """The partner whose batches the worker grew most with, and by how much."""

    partner_id: str
    resident_bytes: int


class Marker:
    """The worker's side."""

    def __init__(self, path: Path) -> None:
        process = f"{os.getpid()} {_birth(os.getpid())}".encode()
        assert len(process) <= _PROCESS_END - _PARTNER_END
        path.write_bytes((bytes(_PARTNER_END) + process).ljust(_BYTES, b"\0"))
        with path.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), _BYTES)

    def executing(self, partner_id: str, command_id: str) -> None:
        """Say which command of whom is being decided; an empty one: none."""
        command = command_id.encode()[:_COMMAND_BYTES].ljust(_COMMAND_BYTES, b"\0")
        partner = partner_id.encode()[: limits.PARTNER_ID_BYTES_MAX].ljust(limits.PARTNER_ID_BYTES_MAX, b"\0")
        self._page[:_PARTNER_END] = command + partner

    def listens(self, port: int, heartbeat_port: int) -> None:
        """Say where the worker is to be found."""
        self._page[_GROWTH_END:] = f"{port} {heartbeat_port}".encode().ljust(_BYTES - _GROWTH_END, b"\0")

    def grew(self, growth: Growth) -> None:
        """Say with whose batches the worker grew most."""
        text = f"{growth.resident_bytes} {growth.partner_id[: limits.PARTNER_ID_BYTES_MAX]}"
        self._page[_PROCESS_END:_GROWTH_END] = text.encode().ljust(_GROWTH_END - _PROCESS_END, b"\0")

    def close(self) -> None:
        """Give back the page."""
        self._page.close()


def read_mark(path: Path) -> Mark | None:
    """Give the command that was being decided; None where none was."""
    try:
        page = path.read_bytes()
        command_id = page[:_COMMAND_BYTES].rstrip(b"\0").decode()
        partner_id = page[_COMMAND_BYTES:_PARTNER_END].rstrip(b"\0").decode()
    except (OSError, UnicodeDecodeError):
        return None
    return Mark(command_id, partner_id) if command_id else None


def read_growth(path: Path) -> Growth | None:
    """Give with whose batches the worker grew most; None where it did with nobody's."""
    try:
        grown, _, partner_id = path.read_bytes()[_PROCESS_END:_GROWTH_END].rstrip(b"\0").decode().partition(" ")
        return Growth(partner_id, int(grown)) if partner_id else None
    except (OSError, ValueError):
        return None


def open_process(path: Path) -> tuple[int, int] | None:
    """Give the process that made the mark, as its pid and a pidfd that the caller closes; None where it is no more."""
    try:
        pid, _, birth = path.read_bytes()[_PARTNER_END:_PROCESS_END].rstrip(b"\0").decode().partition(" ")
        pidfd = os.pidfd_open(int(pid))
    except (OSError, ValueError):
        return None
    if _birth(int(pid)) != birth:  # another process has its number by now
        os.close(pidfd)
        return None
    return int(pid), pidfd


def read_ports(path: Path) -> tuple[int, int] | None:
    """Give where the worker listens for commands and for heartbeats; None where it did not come so far."""
    try:
        port, heartbeat_port = path.read_bytes()[_GROWTH_END:_BYTES].rstrip(b"\0").decode().split()
        return int(port), int(heartbeat_port)
    except (OSError, ValueError):
        return None


def _birth(pid: int) -> str:
    """Give a process's start (proc(5), field 22 of stat) in this boot: with the pid it names the process for ever."""
    try:
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return f"{started} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    except OSError:
        return "gone"


_Name = tuple[str, ...]


class Suspects:
    """The door's side: how many deaths each command was seen at, for a bounded number of commands.

    What is known of a command is known of its idempotency key, too: whoever asks again under it asks for the same.
    """

    def __init__(self) -> None:
        self._deaths: OrderedDict[_Name, int] = OrderedDict()
        self._keys: OrderedDict[str, _Name] = OrderedDict()

    def accuse(self, command_id: str) -> int:
        """Count a death; give how many there were."""
        key = self._keys.get(command_id)
        deaths = 1 + max(self._deaths.get((command_id,), 0), 0 if key is None else self._deaths.get(key, 0))
        self._note((command_id,), deaths)
        if key is not None:
            self._note(key, deaths)
        return deaths

    def meet(self, command_id: str, partner_id: str, idempotency_key: str | None) -> None:
        """Learn under which key a command came that is about to be sent, where either is suspected."""
        if idempotency_key is None:
            return
        key = (partner_id, idempotency_key)
        deaths = max(self._deaths.get((command_id,), 0), self._deaths.get(key, 0))
        if deaths:
            self._note((command_id,), deaths)
            self._note(key, deaths)
            self._keys[command_id] = key
            while len(self._keys) > limits.POISON_COMMANDS_REMEMBERED_MAX:
                self._keys.popitem(last=False)

    def is_quarantined(self, command_id: str) -> bool:
        """Say whether the command is not to be tried again."""
        return self._deaths.get((command_id,), 0) >= limits.POISON_DEATHS_MAX

    @property
    def any(self) -> bool:
        """Whether any command is suspected, so that looking is worth while."""
        return bool(self._deaths)

    def _note(self, name: _Name, deaths: int) -> None:
        self._deaths.pop(name, None)
        self._deaths[name] = deaths
        while len(self._deaths) > limits.POISON_COMMANDS_REMEMBERED_MAX:
            self._deaths.popitem(last=False)
