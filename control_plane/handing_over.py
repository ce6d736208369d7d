"""Hands folders and files of the installation to the users of its processes (users.py). Needs root; starts nothing.

A folder that is a process's own belongs to its user, with all that is in it, and lets nobody else in. What processes
only read stays root's and is their group's to read. Where two users read one file, such as a key that both ends of a
connection share, it belongs to the one that is planned first and is the group's of the other.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from control_plane.data_folder import DataFolder
from control_plane.errors import FolderError
from control_plane.processes import ProcessSpec

# Whoever may pass a folder may not list it; the setgid bit gives what is made in a folder the folder's group.
_PASSED: Final = 0o711
_OWN: Final = 0o700
_READ_FOLDER: Final = 0o2750
_READ_FILE: Final = 0o640
_READ_FILE_OF_TWO: Final = 0o440
_ROOT: Final = 0


def hand_over(folder: DataFolder, spec: ProcessSpec, planned: Iterable[ProcessSpec]) -> None:
    """Make the folders that a process owns, and give its user these and what it reads. Raises FolderError.

    `planned` are all processes that run here.
    """
    try:
        for path in spec.owns:
            path.mkdir(mode=_OWN, parents=True, exist_ok=True)
        if spec.uid is None:
            return
        for path in (folder.root, folder.secrets, folder.run, folder.logs, *_between(folder.root, spec.owns)):
            _pass(path)
        for path in spec.owns:
            _own(path, spec.uid)
        for path in spec.foreign:
            _require_readable(path, spec.uid)
        for path in spec.reads:
            readers = dict.fromkeys(other.uid for other in planned if path in other.reads and other.uid is not None)
            _let_read(path, tuple(readers))
    except OSError as error:
        raise FolderError(
            f"{error.filename} can't be made, or handed to the user of {spec.name}: {error.strerror}",
            where=str(error.filename),
            hint="look at it, and at the file system that it lies in; first_uid = 0 goes without users",
        ) from error


def let_read_alone(path: Path, uid: int | None) -> None:
    """Let one user read a file that was just written, and nobody else. Raises OSError."""
    if uid is not None:
        _let_read(path, (uid,))


def _between(root: Path, owned: Iterable[Path]) -> set[Path]:
    """Return the folders between the data folder and what is owned in it."""
    return {above for path in owned for above in path.parents if above != root and above.is_relative_to(root)}


def _pass(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _set(descriptor, _ROOT, _ROOT, _PASSED)
    finally:
        os.close(descriptor)


def _let_read(path: Path, readers: tuple[int, ...]) -> None:
    assert 1 <= len(readers) <= 2, (path, readers)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        owner = _ROOT if len(readers) == 1 else readers[0]
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            _set(descriptor, owner, readers[-1], _READ_FILE if owner == _ROOT else _READ_FILE_OF_TWO)
            return
        assert owner == _ROOT, path
        _set(descriptor, _ROOT, readers[-1], _READ_FOLDER)
        for name in os.listdir(descriptor):  # noqa: PTH208 - of the folder that is held
            _let_read(path / name, readers)
    finally:
        os.close(descriptor)


def _require_readable(path: Path, uid: int) -> None:
    found = path.stat()
    needed = stat.S_IRUSR if found.st_uid == uid else stat.S_IRGRP if found.st_gid == uid else stat.S_IROTH
    if not found.st_mode & needed:
        raise PermissionError(errno.EACCES, f"user {uid} may not read it: chmod o+r lets it", str(path))


def _own(path: Path, uid: int) -> None:
    """Give a folder and all in it to a user. Links are not followed; a file with two names may be somebody else's."""
    for _, _, names, descriptor in os.fwalk(path, follow_symlinks=False):
        _set(descriptor, uid, uid, _OWN)
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # other processes of the user may be at work there
                _own_file(name, descriptor, uid)


def _own_file(name: str, folder: int, uid: int) -> None:
    found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if (found.st_uid, found.st_gid) == (uid, uid) or not stat.S_ISREG(found.st_mode):
        return
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        found = os.fstat(file)
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            os.fchown(file, uid, uid)
    finally:
        os.close(file)


def _set(descriptor: int, uid: int, gid: int, mode: int) -> None:
    found = os.fstat(descriptor)
    if (found.st_uid, found.st_gid) != (uid, gid):
        os.fchown(descriptor, uid, gid)
    if stat.S_IMODE(found.st_mode) != mode:
        os.fchmod(descriptor, mode)
