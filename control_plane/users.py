"""The users that an installation's processes run as: one a cell, and one each for routers, simulators and Redis.

They are numbers of a block, without a line in /etc/passwd: whose is which follows from role and cell's slot alone.
Where they can't be had (`up` is not root, say), all processes run as the user of `up`, and `Users.why_one` says why.
"""

import grp
import importlib.util
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from control_plane import landlock, launch, limits
from control_plane.data_folder import DataFolder, Instance
from control_plane.errors import RefusedError
from control_plane.processes import ProcessSpec
from control_plane.settings import Settings

# Capabilities that it takes (capabilities(7)), by their number.
_NEEDED: Final = {
    0: "CAP_CHOWN",
    1: "CAP_DAC_OVERRIDE",
    3: "CAP_FOWNER",
    5: "CAP_KILL",
    6: "CAP_SETGID",
    7: "CAP_SETUID",
    8: "CAP_SETPCAP",
    19: "CAP_SYS_PTRACE",
}
_PACKAGES: Final = ("acquirer_simulator", "actors", "cells", "control_plane", "listeners", "router", "stores")
_STATUS: Final = Path("/proc/self/status")
_MAP: Final = Path("/proc/self/uid_map")
# Who hands out numbers to others: name:first:count a line (subuid(5)).
_HANDED_OUT: Final = (Path("/etc/subuid"), Path("/etc/subgid"))


@dataclass(frozen=True, slots=True)
class Users:
    """The block of an installation. `first_uid` is None where all processes run as one user; `why_one` says why."""

    first_uid: int | None
    why_one: str = ""

    def has(self, number: int) -> bool:
        """Whether a user or group is one of these."""
        return self.first_uid is not None and self.first_uid <= number < self.first_uid + limits.USERS_MAX

    @property
    def weakness(self) -> str:
        """Say what one user for all means, empty where there are more."""
        if self.first_uid is not None:
            return ""
        if landlock.version():
            kept = "only Landlock keeps one from the files of another, and other programs of that user from nothing"
        else:
            kept = "so each of them can read and change everything"
        return f"all processes run as one user: {self.why_one}; {kept}"

    def uid_of(self, spec: ProcessSpec) -> int | None:
        """Return the user of a process, which is its group, too; None: the user of `up`."""
        if self.first_uid is None or spec.user_number is None:
            return None
        assert 0 <= spec.user_number < limits.USERS_MAX, spec.user_number
        return self.first_uid + spec.user_number

    def dressed(self, spec: ProcessSpec) -> ProcessSpec:
        """Return the process as its user runs it. One that runs as another is no longer the same."""
        uid = self.uid_of(spec)
        return replace(spec, uid=uid, fingerprint=spec.fingerprint if uid is None else f"{spec.fingerprint} {uid}")


def find(settings: Settings, folder: DataFolder, instance: Instance) -> Users:
    """Return the users of an installation. Raises RefusedError where others own the block."""
    if settings.first_uid == 0:
        return Users(None, "first_uid is 0 in the settings")
    if os.geteuid() != 0:
        return Users(None, "`bulkhead up` does not run as root")
    first = settings.first_uid or default_first_uid(instance.id)
    lacking = _lacking_rights(first)
    if lacking:
        return Users(None, lacking)
    owner = owner_in(first, first + limits.USERS_MAX)
    if owner is not None:
        raise RefusedError(
            f"the users {first} to {first + limits.USERS_MAX - 1} are to be this installation's: {owner}",
            where="first_uid in the settings",
            hint=f"set first_uid to the first of {limits.USERS_MAX} numbers that nobody has; 0: all as one user",
        )
    failure = _try_out(first, folder)
    return Users(None, failure) if failure else Users(first)


def default_first_uid(instance_id: str) -> int:
    """Return the first number of an installation's block: two on one machine should not share theirs."""
    return limits.FIRST_UID_MIN + int(instance_id[:8], 16) % limits.UID_BLOCKS * limits.USERS_MAX


def owner_in(first: int, end: int) -> str | None:
    """Return in words who has a user or group in this range already; None where nobody has."""
    for name, number in [
        *((f"user {entry.pw_name!r}", entry.pw_uid) for entry in pwd.getpwall()),
        *((f"group {entry.gr_name!r}", entry.gr_gid) for entry in grp.getgrall()),
    ]:
        if first <= number < end:
            return f"{number} is {name}"
    for file in _HANDED_OUT:
        if not file.exists():
            continue
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, numbers = line.partition(":")
            begin, _, count = numbers.partition(":")
            if begin.isdecimal() and count.isdecimal() and int(begin) < end and first < int(begin) + int(count):
                return f"{file} hands {begin} and the {count} from there on to {name!r}"
    return None


def code_paths() -> tuple[str, ...]:
    """Return what every process reads to run: the interpreter, the virtual environment and our packages."""
    prefixes = [sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix]
    paths = {*prefixes, *_links(Path(sys.executable)), *_packages()}
    return tuple(sorted({*paths, *map(os.path.realpath, paths)}))


def _packages() -> Iterator[str]:
    for package in _PACKAGES:
        found = importlib.util.find_spec(package)
        assert found is not None, package
        yield from found.submodule_search_locations or ()


def _links(program: Path) -> Iterator[str]:
    """Name the installations that an interpreter's links lead through."""
    while program.is_symlink():
        program = program.parent / program.readlink()
        yield os.path.normpath(program.parent.parent)


def _lacking_rights(first: int) -> str:
    """Return in words what is missing for processes to run as these users; empty where nothing is."""
    lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    held = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    missing = [name for number, name in _NEEDED.items() if not held >> number & 1]
    if missing:
        return f"root lacks {', '.join(missing)} here"
    for line in _MAP.read_text(encoding="ascii").splitlines():
        begin, _, count = map(int, line.split())
        if begin <= first and first + limits.USERS_MAX <= begin + count:
            return ""
    return f"the users {first} to {first + limits.USERS_MAX - 1} don't exist in this user namespace"


def _try_out(uid: int, folder: DataFolder) -> str:
    """Run the interpreter as one of the users; return in words why that can't be, empty where it can."""
    order = launch.Order(uid, runs=code_paths(), reads=(str(folder.root),), landlock=landlock.version() > 0)
    command = (*launch_command(order), sys.executable, "-P", "-c", "import control_plane.redis_server")
    try:
        done = subprocess.run(  # noqa: S603 - ourselves
            command,
            check=False,
            capture_output=True,
            text=True,
            timeout=limits.START_TIMEOUT_MS / 1_000,
            stdin=subprocess.DEVNULL,
            cwd="/",
        )
    except subprocess.TimeoutExpired:
        return "another user's interpreter does not start in time"
    if done.returncode == 0:
        return ""
    said = done.stderr.strip().splitlines()
    return f"another user can't run {sys.executable}: {said[-1] if said else f'exit code {done.returncode}'}"


def launch_command(order: launch.Order) -> tuple[str, ...]:
    """Return what stands before a command that is to run under an order."""
    return (sys.executable, "-I", "-S", launch.__file__, order.to_json())
