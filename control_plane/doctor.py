"""Looks whether an installation is as it should be: where it listens, and who may read its data folder.

Each check returns findings; a finding says what was looked at and what was found. `bulkhead doctor` shows them.
"""

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from control_plane import listening, opening
from control_plane.cell_rules import first_cells
from control_plane.data_folder import DataFolder, require_instance
from control_plane.errors import ControlPlaneError
from control_plane.process_table import boot_id, read_start_ticks
from control_plane.processes import plan
from control_plane.settings import Settings
from control_plane.users import Users
from control_plane.users import find as find_users


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. `hint` says what to do where it is not `ok`."""

    check: str
    ok: bool
    what: str
    where: str = ""
    hint: str = ""


async def examine(settings: Settings, folder: DataFolder) -> list[Finding]:
    """Run every check. Raises FolderError where no installation is there."""
    users = find_users(settings, folder, require_instance(folder))
    return [*await check_listening(settings, folder), *check_permissions(folder, users)]


async def check_listening(settings: Settings, folder: DataFolder) -> list[Finding]:
    """Compare where its processes listen with the settings of the last `up` and the cells that were registered."""
    instance = require_instance(folder)
    unread = []
    try:
        cells = await opening.read_registered_cells(settings, folder)
    except ControlPlaneError as error:
        cells = first_cells(settings, "")
        unread.append(Finding("listening", False, f"the cells can't be read: {error.what}", error.where, error.hint))
    specs = plan(settings, folder, instance, cells, "", lambda _: "")
    seen = listening.read_listeners(instance.id, _read_control_plane_pid(folder))
    beyond = listening.beyond(seen.listeners, listening.rows_of(settings, specs))
    found = [
        Finding(
            "listening",
            False,
            f"{listener}: the settings say nothing of that",
            f"{listener.address}:{listener.port}",
            "set the host and port in the settings where it should; else mend what listens there",
        )
        for listener in beyond
    ]
    found += [
        Finding(
            "listening", False, f"{one} can't be looked at", "/proc", "run it as the user of `bulkhead up`, or root"
        )
        for one in seen.unseen
    ]
    if not found and not unread:
        what = f"{len(seen.listeners)} sockets of {seen.processes} processes listen, all where the settings say"
        found.append(Finding("listening", True, what))
    return [*unread, *found]


def _read_control_plane_pid(folder: DataFolder) -> int | None:
    """Return the pid of the `up` that runs on the folder; None where its record is of one that has ended."""
    try:
        record = json.loads(folder.control_record_file.read_bytes())
        pid = int(record["pid"])
        is_it = record["boot_id"] == boot_id() and record["start_time"] == read_start_ticks(pid)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return pid if is_it else None


def check_permissions(folder: DataFolder, users: Users) -> list[Finding]:
    """Check that nobody but the installation's users gets into the data folder and at the secrets."""
    found = list(_open_to_others(folder, users))
    who = "only its user gets" if users.first_uid is None else "only root and the installation's users get"
    return found or [Finding("permissions", True, f"{who} at what is in the data folder", str(folder.root))]


def _open_to_others(folder: DataFolder, users: Users) -> Iterator[Finding]:
    secrets = sorted(folder.secrets.iterdir()) if folder.secrets.is_dir() and os.access(folder.secrets, os.R_OK) else []
    for path in (folder.root, folder.secrets, *secrets):
        try:
            status = path.lstat()
        except OSError as error:
            yield Finding("permissions", False, f"it can't be looked at: {error.strerror}", str(path), "mend that")
            continue
        # Where each process has a user, folders are passed by all and listed by none, and a group is one process's.
        shared = stat.S_IXGRP | stat.S_IXOTH if users.first_uid is not None and stat.S_ISDIR(status.st_mode) else 0
        shared |= stat.S_IRWXG & ~stat.S_IWGRP if users.has(status.st_gid) else 0
        if stat.S_IMODE(status.st_mode) & 0o077 & ~shared:
            yield Finding(
                "permissions",
                False,
                f"it is open to others: {stat.filemode(status.st_mode)}",
                str(path),
                f"chmod go= {path}, and start `bulkhead up` again",
            )
