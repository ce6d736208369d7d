"""Becomes another process with fewer rights: `python -I -S launch.py ORDER PROGRAM ARGUMENT...`; ORDER is JSON (Order).

It runs by itself, with the standard library only, and as the process that it becomes: same pid, parent and marker. In
this order: a view of its own of the file system, where the program could not be reached otherwise; another user,
without groups and capabilities; no new rights, ever; only some files (landlock.py); the program. Whatever can't be done
ends it with exit code 126.
"""

import ctypes
import json
import os
import resource
import stat
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

# -I leaves out the folder that this file is in; as part of the package it is found anyway.
if __name__ == "__main__":
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120
from control_plane import landlock

EXIT_NOT_LAUNCHED: Final = 126
# Less than any core dump has. Not 0: a crash handler (core(5), a pipe) would be given one all the same.
CORE_BYTES: Final = 1

# From linux/prctl.h, linux/sched.h and linux/mount.h.
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_CAPABILITIES_MAX: Final = 64
_CLONE_NEWNS: Final = 0x0002_0000
_MS_RDONLY: Final = 1
_MS_NOSUID: Final = 2
_MS_REMOUNT: Final = 32
_MS_BIND: Final = 4_096
_MS_REC: Final = 16_384
_MS_SLAVE: Final = 1 << 19
_EINVAL: Final = 22
_UID_NONE: Final = 2**32 - 1  # setresuid(2) changes nothing then


class LaunchError(Exception):
    """Something of the order can't be done; the message says what."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a process is to be. Paths are absolute.

    `uid` is also its group; None: the user that it is. Files and folders that it may use: it `runs` what is in some,
    `reads` others, and `owns` those that it may change. Where a folder above one lets nobody else in, the process sees
    nothing of that folder but these. With `landlock` it can't open anything else, but for what all programs use; and
    with `may_signal` not even then it is kept from signalling others of its user.
    """

    uid: int | None
    runs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    owns: tuple[str, ...] = ()
    landlock: bool = False
    may_signal: bool = False

    def to_json(self) -> str:
        """Return the order as an argument."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Order":
        """Read an order. Raises ValueError, KeyError, TypeError."""
        fields: dict[str, Any] = json.loads(text)
        fields |= {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        order = cls(**fields)
        if order.uid is not None and not 0 < order.uid < _UID_NONE:
            raise ValueError(f"{order.uid} is no user to become")
        return order


def main() -> int:
    """Become the program; return only where that can't be."""
    try:
        order = Order.from_json(sys.argv[1])
        program = sys.argv[2:]
        working_folder = os.getcwd()  # noqa: PTH109 - standard library at its smallest: every process starts with it
        if order.uid is not None:
            show((*order.runs, *order.reads, *order.owns), frozenset(order.owns), order.uid)
            os.chdir(working_folder)  # as it is in the view
            become(order.uid)
        renounce()
        if order.landlock:
            landlock.restrict(rules(order), may_signal=order.may_signal)
        os.execv(program[0], program)  # noqa: S606 - no shell is wanted
    except (LaunchError, landlock.LandlockError, OSError, ValueError, KeyError, TypeError, IndexError) as error:
        sys.stderr.write(f"control_plane.launch: {error}\n")
    return EXIT_NOT_LAUNCHED


def show(paths: Iterable[str], changeable: frozenset[str], uid: int) -> None:
    """Make paths reachable for a user in a mount namespace of this process, where they are not. Raises LaunchError.

    A folder that lets the user not pass is covered by an empty one, in which only the wanted paths are.
    """
    wanted = {path for path in paths if os.path.lexists(path)}
    covered = covers(wanted, uid)
    if not covered:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS):
        raise _failure("a mount namespace can't be made")
    _mount(libc, None, "/", None, _MS_REC | _MS_SLAVE, "")
    # Taken hold of before anything is covered.
    below = sorted(path for path in wanted if any(_is_below(path, cover) for cover in covered))
    sources = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in below}
    mask = os.umask(0o022)
    for cover in sorted(covered):
        _mount(libc, "bulkhead", cover, "tmpfs", _MS_NOSUID, "mode=0755,size=64k")
    for path in below:
        source = sources[path]
        _make_mount_point(path, is_folder=stat.S_ISDIR(os.fstat(source).st_mode))
        _mount(libc, f"/proc/self/fd/{source}", path, None, _MS_BIND | _MS_REC, "")
        if path not in changeable:
            _mount(libc, None, path, None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID, "")
        os.close(source)
    os.umask(mask)


def covers(paths: Iterable[str], uid: int) -> frozenset[str]:
    """Return the topmost folders above these paths that a user can't pass."""
    found = set()
    for path in paths:
        parts = path.strip("/").split("/")
        for depth in range(1, len(parts)):
            folder = "/" + "/".join(parts[:depth])
            status = os.stat(folder)  # noqa: PTH116 - as above
            needed = stat.S_IXUSR if status.st_uid == uid else stat.S_IXGRP if status.st_gid == uid else stat.S_IXOTH
            if not status.st_mode & needed:
                found.add(folder)
                break
    return frozenset(found)


def become(uid: int) -> None:
    """Become another user for good, without other groups, capabilities and a way back. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(_CAPABILITIES_MAX):
        if libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) and ctypes.get_errno() == _EINVAL:
            break  # the kernel knows no more of them
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def renounce() -> None:
    """Rule core dumps and new rights out: no program that is run from here on brings any. Raises LaunchError."""
    resource.setrlimit(resource.RLIMIT_CORE, (CORE_BYTES, CORE_BYTES))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise _failure("new rights can't be ruled out")


def rules(order: Order) -> list[tuple[str, int]]:
    """Return what Landlock is to let through."""
    return [
        *landlock.SYSTEM,
        *((path, landlock.RUNS) for path in order.runs),
        *((path, landlock.READS) for path in order.reads),
        *((path, landlock.OWNS) for path in order.owns),
    ]


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(folder + "/")


def _make_mount_point(path: str, *, is_folder: bool) -> None:
    os.makedirs(path if is_folder else os.path.dirname(path), mode=0o755, exist_ok=True)  # noqa: PTH103, PTH120
    if not is_folder and not os.path.lexists(path):
        os.close(os.open(path, os.O_CREAT | os.O_CLOEXEC, 0o644))


def _mount(libc: ctypes.CDLL, source: str | None, target: str, kind: str | None, flags: int, data: str) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    if libc.mount(*encoded, ctypes.c_ulong(flags), data.encode()):
        raise _failure(f"{target} can't be mounted")


def _failure(what: str) -> LaunchError:
    return LaunchError(f"{what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    sys.exit(main())
