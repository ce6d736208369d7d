"""What the kernel's Landlock lets a process open, and whom it may signal (landlock(7)). Standard library only.

It takes no right to give rights up, so it also stands between processes of one user. What was opened before stays
open. A process can't look into one that is not below the same rules (ptrace, /proc/<pid>/mem and environ), nor mount.
"""

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from typing import Final

_CREATE_RULESET: Final = 444  # the same on all architectures
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_VERSION: Final = 1
_PATH_BENEATH: Final = 1

_EXECUTE: Final = 1 << 0
_WRITE_FILE: Final = 1 << 1
_READ_FILE: Final = 1 << 2
_READ_DIR: Final = 1 << 3
_MAKE_CHAR: Final = 1 << 6
_MAKE_BLOCK: Final = 1 << 11
_TRUNCATE: Final = 1 << 14
_IOCTL: Final = 1 << 15
# How many rights there are, by the version of the kernel's interface.
_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 4: 15}
_RIGHTS_NEWEST: Final = 16
_VERSION_WITH_SCOPES: Final = 6
_ALL_SCOPES: Final = 0b11  # abstract Unix sockets, signals
_SCOPE_ABSTRACT: Final = 0b01

READS: Final = _READ_FILE | _READ_DIR
RUNS: Final = READS | _EXECUTE
WRITES_FILES: Final = READS | _WRITE_FILE | _TRUNCATE | _IOCTL
# What is written is never run, and no device is made.
OWNS: Final = ((1 << _RIGHTS_NEWEST) - 1) & ~(_EXECUTE | _MAKE_CHAR | _MAKE_BLOCK)
_OF_FILES: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL

# What programs look at everywhere. /proc and devices are further guarded by their owners, and by Landlock itself.
SYSTEM: Final = (
    *((path, RUNS) for path in ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt")),
    *((path, READS) for path in ("/etc", "/sys", "/run/systemd/resolve")),
    *((path, WRITES_FILES) for path in ("/proc", "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")),
)


class LandlockError(Exception):
    """The rules can't be set; the message says why."""


def version() -> int:
    """Return the version of the kernel's interface, 0 where it has none."""
    found: int = _libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    return max(found, 0)


def restrict(rules: Iterable[tuple[str, int]], *, may_signal: bool) -> None:
    """Let this process open what these paths and rights say, and nothing else, for good. Raises LandlockError, OSError.

    `no_new_privs` has to be set. A path that does not exist is left out. `may_signal`: those outside these rules, too.
    """
    found = version()
    if not found:
        raise LandlockError("the kernel has no Landlock")
    handled = (1 << _RIGHTS.get(found, _RIGHTS_NEWEST)) - 1
    scoped = 0 if found < _VERSION_WITH_SCOPES else _SCOPE_ABSTRACT if may_signal else _ALL_SCOPES
    attributes = struct.pack("=QQQ", handled, 0, scoped)
    # Older kernels take fewer fields, and more only where they are 0.
    ruleset = _libc().syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        raise _failure("no rules can be made")
    try:
        for path, rights in rules:
            _add(ruleset, path, rights & handled)
        if _libc().syscall(_RESTRICT_SELF, ruleset, 0):
            raise _failure("the rules can't be put into force")
    finally:
        os.close(ruleset)


def _add(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _OF_FILES
        rule = struct.pack("=Qi", rights, descriptor)
        if _libc().syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0):
            raise _failure(f"{path} can't be let through")
    finally:
        os.close(descriptor)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _failure(what: str) -> LandlockError:
    return LandlockError(f"Landlock: {what}: {os.strerror(ctypes.get_errno())}")
