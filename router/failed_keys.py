"""Keys that were not good, counted and left for the control plane, whose audit log tells of them.

A file each ten seconds in which there were some, a bounded number of lines in it, and a bounded number of files: while
nobody takes them they are counted on in memory. So who has no key fills neither memory nor disk, whatever they send.
"""

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import orjson
import structlog

from router import limits
from router.directory_file import write_atomically

log = structlog.get_logger()

FOLDER: Final = "failed_keys"  # in the router's own
# Address, the partner that the key names, why: of those that were one too many.
_OTHERS: Final = ("", None, "others")
_Named = tuple[str, str | None, str]


class FailedKeys:
    """Counts failures, by address, partner and reason, until they are taken."""

    def __init__(self) -> None:
        self._counts: dict[_Named, int] = {}
        self._since = ""

    def note(self, address: str, partner_id: str | None, reason: str, times: int = 1) -> None:
        """Count a failure."""
        named: _Named = (address, partner_id, reason)
        if named not in self._counts and len(self._counts) >= limits.FAILED_KEYS_ROWS_MAX:
            named = _OTHERS
        if not self._counts:
            self._since = _now()
        self._counts[named] = self._counts.get(named, 0) + times

    async def keep(self, folder: Path) -> None:
        """Leave what was counted in a file; where that can't be, count on."""
        if not self._counts:
            return
        counts, self._counts, since = self._counts, {}, self._since
        rows = [[*named, times] for named, times in counts.items()]
        document = orjson.dumps({"since": since, "until": _now(), "rows": rows})
        try:
            kept = await asyncio.to_thread(_write, folder, document)
        except OSError as error:
            log.warning("failed_keys_not_kept", error=str(error))
            kept = False
        if not kept:
            for (address, partner_id, reason), times in counts.items():
                self.note(address, partner_id, reason, times)
            self._since = since

    async def run(self, folder: Path) -> None:
        """Keep what was counted, again and again."""
        while True:
            await asyncio.sleep(limits.FAILED_KEYS_INTERVAL_MS / 1_000)
            await self.keep(folder)


def _write(folder: Path, document: bytes) -> bool:
    """Write a file of its own; False where there are as many as may be. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if sum(1 for _ in folder.glob("*.json")) >= limits.FAILED_KEYS_FILES_MAX:
        return False
    write_atomically(folder / f"{time.time_ns()}.json", document)
    return True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
