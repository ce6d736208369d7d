"""Partners' keys that were not good, as routers counted them (router/failed_keys.py): taken, and told to the audit log.

A router's folder is the router's: nothing in it is followed, waited for or believed beyond its bounds, and a partner is
one that there is.
"""

import asyncio
import ipaddress
import os
import re
import stat
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Final

import structlog
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from control_plane import limits
from control_plane.access import NOBODY, PARTNER_KEY_FAILED, Access, AccessLog
from control_plane.data_folder import DataFolder, timestamp
from router import limits as router_limits
from router.failed_keys import FOLDER

log = structlog.get_logger()

_NAME: Final = re.compile(r"[0-9]{1,20}\.json")
# Address, the partner that the key names, why, how often.
_Row = tuple[
    Annotated[str, Field(max_length=64)],
    Annotated[str, Field(max_length=64)] | None,
    Annotated[str, Field(pattern="^[a-z_]{1,40}$")],
    Annotated[int, Field(ge=1, le=limits.FAILED_KEYS_COUNT_MAX)],
]


class Counted(BaseModel):
    """What a router counted in a span of time."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    since: AwareDatetime
    until: AwareDatetime
    rows: Annotated[list[_Row], Field(max_length=router_limits.FAILED_KEYS_ROWS_MAX + 1)]


class FailedKeysOfRouters:
    """Takes what routers left."""

    def __init__(self, folder: DataFolder, routers: Sequence[str], accesses: AccessLog) -> None:
        self._folder = folder
        self._routers = tuple(routers)
        self._accesses = accesses

    async def work(self) -> None:
        """Take what there is. Called again and again."""
        for router in self._routers:
            for counted in await asyncio.to_thread(lambda: list(take(self._folder.router_folder(router)))):  # noqa: B023
                self._note(counted)

    def _note(self, counted: Counted) -> None:
        span = timestamp(counted.since), timestamp(counted.until)
        for address, partner_id, reason, times in counted.rows:
            access = Access(
                NOBODY,
                PARTNER_KEY_FAILED,
                _address(address),
                self._accesses.partner(partner_id),
                (("reason", reason),),
            )
            self._accesses.note(access, times, span)


def take(router_folder: Path) -> Iterator[Counted]:
    """Yield what lies in a router's folder, and remove it; some of it, where there is very much."""
    try:
        folder = os.open(router_folder / FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return  # there never was one
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in islice(entries, router_limits.FAILED_KEYS_FILES_MAX))
        for name in names:
            if not _NAME.fullmatch(name):
                continue
            try:
                counted = Counted.model_validate_json(_read(name, folder))
            except (OSError, ValidationError) as error:
                log.warning("failed_keys_unreadable", folder=str(router_folder), name=name, error=type(error).__name__)
            else:
                yield counted
            try:
                os.unlink(name, dir_fd=folder)
            except OSError as error:
                log.warning("failed_keys_not_removed", folder=str(router_folder), name=name, error=str(error))
    finally:
        os.close(folder)


def _read(name: str, folder: int) -> bytes:
    """Read a file's bounded beginning, if it is a file. Raises OSError."""
    # Without O_NONBLOCK a pipe in its place would be waited for, for ever.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(name, flags, dir_fd=folder), "rb") as file:  # noqa: PTH123 - a descriptor
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("it is no regular file")
        return file.read(limits.FAILED_KEYS_FILE_BYTES_MAX)


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""
