"""The audit log's head at a second place: a file elsewhere, or the machine's syslog, as `audit_head_copy` says.

It follows the log a second later at most, beside the changes: a place that hangs or is gone holds up none of them.
"""

import asyncio
import logging
from collections.abc import Callable
from logging.handlers import SysLogHandler
from pathlib import Path
from typing import Final

import structlog

from control_plane import audit_head
from control_plane.audit_chain import Head
from control_plane.errors import InputFileError
from control_plane.registry import Registry
from control_plane.settings import SYSLOG

log = structlog.get_logger()

_SYSLOG_SOCKET: Final = "/dev/log"


class HeadCopy:
    """Follows the log's head. One that knows of an entry that the log has not is never written over: it tells on."""

    def __init__(self, registry: Registry, place: str, installation: str) -> None:
        self._registry = registry
        self._place = place
        self._installation = installation
        self._written: Head | None = None
        self._is_wrong = False
        self._keep: Callable[[Head], None] = self._to_syslog if place == SYSLOG else self._to_file

    async def work(self) -> None:
        """Copy the head where it is a newer one. Called again and again."""
        head = self._registry.head
        if head == self._written or self._is_wrong:
            return
        try:
            if self._written is None and self._place != SYSLOG:
                known = await asyncio.to_thread(audit_head.read, Path(self._place))
                if known is not None and not await self._registry.holds(known):
                    self._is_wrong = True
                    log.error("audit_log_not_whole", file=self._place, entry=known.sequence)
                    return
            await asyncio.to_thread(self._keep, head)
        except (OSError, InputFileError) as error:
            log.warning("audit_head_not_copied", place=self._place, error=str(error))
            return
        self._written = head

    def _to_file(self, head: Head) -> None:
        audit_head.write(Path(self._place), head)

    def _to_syslog(self, head: Head) -> None:
        handler = _Syslog(_SYSLOG_SOCKET, SysLogHandler.LOG_AUTHPRIV)
        try:
            handler.ident = "bulkhead: "
            text = f"audit log of {self._installation}, head {head}"
            handler.emit(logging.LogRecord("audit", logging.INFO, __file__, 0, text, None, None))
        finally:
            handler.close()


class _Syslog(SysLogHandler):
    """The library's, which would print an error and go on."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, ARG002 - the library's name
        """Raise the error that was caught."""
        raise  # noqa: PLE0704 - called where it was caught
