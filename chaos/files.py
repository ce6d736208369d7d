"""Damages a partner's book on the disk, and puts it back. Only for SQLite books, of a gateway that runs or does not.

What is honest here: a book that is put back must have every payment that was acknowledged. So its owner, the worker, is
stopped while the copy is taken and the book damaged, and killed before it can commit anything that the copy lacks.
All kinds of damage but one are such that nobody can open the book, so nothing is acknowledged until it is put back,
and the audit can be clean. LOG_TORN is the exception: what a torn log lost looks to SQLite like a crash before the
commit, so the partner is served without its newest payments. `took_commits` says whether anything was written since;
what was, is lost when the copy is put back, and `put_back` refuses to.
"""

import os
import random
import shutil
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psutil

from chaos import limits


class FileFaultError(Exception):
    """A book can't be damaged or put back."""


class Damage(StrEnum):
    """What can become of a book."""

    PAGES = "its first page and others are overwritten"
    TRUNCATED = "it ends in the middle of a page"
    GARBAGE = "it is replaced by garbage of the same size"
    DELETED = "it is gone"
    LOG_TORN = "its log ends in the middle of what was written last"


_PAGE_BYTES = 4_096


@dataclass(frozen=True, slots=True)
class DamagedBook:
    """A damaged book and where its copy lies."""

    book: Path
    copy: Path
    damage: Damage
    state: tuple[tuple[int, int] | None, ...]  # of its files just after the damage

    def took_commits(self) -> bool:
        """Say whether its files were written to since."""
        return _state(self.book) != self.state

    def put_back(self, owner: psutil.Process | None = None) -> None:
        """Put the book back as it was; its owner, if it has one now, is killed first. Raises FileFaultError.

        The log comes first and the book last, in one step: nobody opens half of it.
        """
        if owner is not None:
            _kill(owner)
        if self.took_commits():
            raise FileFaultError(
                f"{self.book} was written to after it was damaged; the copy in {self.copy} lacks that. "
                "Look at both before one of them is put in place"
            )
        log, shared = _log(self.book), _shared(self.book)
        shared.unlink(missing_ok=True)
        kept_log = self.copy / log.name
        if kept_log.exists():
            _place(kept_log, log)
        else:
            log.unlink(missing_ok=True)
        _place(self.copy / self.book.name, self.book)


def damage(book: Path, kind: Damage, *, seed: int, keep_in: Path, owner: psutil.Process | None = None) -> DamagedBook:
    """Keep a copy of a book and damage it; `owner` is the one process that has it open. Raises FileFaultError."""
    if not book.is_file():
        raise FileFaultError(f"there is no book {book}")
    keep_in.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(keep_in.iterdir()):
        raise FileFaultError(f"{keep_in} is not empty; another copy may lie there")
    try:
        if owner is not None:
            owner.suspend()
        for file in (book, _log(book)):
            if file.exists():
                shutil.copy2(file, keep_in / file.name)
                _sync(keep_in / file.name)
        _damage(book, kind, random.Random(seed))
        # Only now: a spare opens the book a few milliseconds after its owner's end, and would find it whole.
        is_alone = owner is None or (owner.is_running() and owner.status() == psutil.STATUS_STOPPED)
        if owner is not None:
            _kill(owner)
    except psutil.Error as error:
        raise FileFaultError(f"the owner of {book} can't be stopped: {error}") from error
    except OSError as error:
        raise FileFaultError(f"{book} can't be copied or damaged: {error}") from error
    damaged = DamagedBook(book, keep_in, kind, _state(book))
    if not is_alone:
        damaged.put_back()
        raise FileFaultError(f"the owner of {book} was ended by others meanwhile; the book is as it was")
    return damaged


def _damage(book: Path, kind: Damage, dice: random.Random) -> None:
    log = _log(book)
    size = book.stat().st_size
    if kind is Damage.LOG_TORN:
        log_size = log.stat().st_size if log.exists() else 0
        if not log_size:
            raise FileFaultError(f"the log of {book} is empty; there is nothing to tear")
        os.truncate(log, max(log_size - dice.randint(1, _PAGE_BYTES), 0))
        return
    # SQLite would read pages from the log that are broken in the book, and mend it at the next checkpoint.
    log.unlink(missing_ok=True)
    _shared(book).unlink(missing_ok=True)
    match kind:
        case Damage.PAGES:
            pages = range(size // _PAGE_BYTES)
            with book.open("r+b") as file:
                for page in {0, *dice.sample(pages, min(len(pages), 3))}:
                    file.seek(page * _PAGE_BYTES)
                    file.write(dice.randbytes(_PAGE_BYTES))
        case Damage.TRUNCATED:
            # Never to nothing: an empty file is a new book to SQLite.
            os.truncate(book, _PAGE_BYTES + dice.randint(1, _PAGE_BYTES - 1))
        case Damage.GARBAGE:
            book.write_bytes(dice.randbytes(size))
        case Damage.DELETED:
            book.unlink()


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
        process.wait(limits.KILL_TIMEOUT_MS / 1_000)
    except psutil.NoSuchProcess:
        return
    except psutil.TimeoutExpired as error:
        raise FileFaultError(f"{process.pid} does not end; nothing was damaged or put back") from error


def _place(kept: Path, place: Path) -> None:
    fresh = place.with_name(place.name + ".putting-back")
    shutil.copy2(kept, fresh)
    owner = place.parent.stat()  # the cell's user, where `bulkhead up` is root
    os.chown(fresh, owner.st_uid, owner.st_gid)
    _sync(fresh)
    fresh.replace(place)
    _sync(place.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _log(book: Path) -> Path:
    return book.with_name(book.name + "-wal")


def _shared(book: Path) -> Path:
    return book.with_name(book.name + "-shm")


def _state(book: Path) -> tuple[tuple[int, int] | None, ...]:
    found: list[tuple[int, int] | None] = []
    for file in (book, _log(book)):
        try:
            status = file.stat()
        except FileNotFoundError:
            found.append(None)
            continue
        # An empty log is as good as none: whoever tries to open the book may leave one.
        is_empty_log = file != book and not status.st_size
        found.append(None if is_empty_log else (status.st_size, status.st_mtime_ns))
    return tuple(found)
