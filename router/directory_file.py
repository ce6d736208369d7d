"""The directory's files: written so that no reader ever sees half of one, watched, and kept as last known good."""

import asyncio
import contextlib
import os
import stat
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from router import directory, directory_signature, limits
from router.directory import Directory, DirectoryError

log = structlog.get_logger()

LAST_KNOWN_GOOD: Final = "directory.json"
_Signature = tuple[int, int, int]  # inode, time of change, bytes


def write_atomically(path: Path, raw: bytes, *, mode: int = 0o600) -> None:
    """Replace a file as a whole, durably: write beside it, fsync, rename, fsync the folder. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read(path: Path, key: Ed25519PublicKey, held: Directory | None = None) -> tuple[bytes, Directory]:
    """Read and check a directory's file; `held` is an older version. Raises OSError, DirectoryError."""
    raw = read_bytes(path)
    return raw, directory.decode(directory_signature.check(key, raw), held)


def read_bytes(path: Path) -> bytes:
    """Read what stands in a directory's place, if it is a file and not too large. Raises OSError, DirectoryError."""
    # Without O_NONBLOCK a pipe in its place would be waited for, for ever.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123 - a descriptor
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise DirectoryError("it is no regular file")
        if status.st_size > limits.DIRECTORY_BYTES_MAX:
            raise DirectoryError(f"{status.st_size} bytes are more than {limits.DIRECTORY_BYTES_MAX}")
        return file.read(limits.DIRECTORY_BYTES_MAX + 1)


class DirectoryWatcher:
    """Holds the newest directory that this router ever saw: never an older one, never one that is not signed."""

    def __init__(
        self,
        published: Path,
        own_folder: Path,
        key: Ed25519PublicKey,
        on_change: Callable[[Directory], Awaitable[None]],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._published = published
        self._kept = own_folder / LAST_KNOWN_GOOD
        self._key = key
        self._on_change = on_change
        self._now = now
        self._seen: _Signature | None = None
        self._trusted = False
        self._exchanging = asyncio.Lock()
        self._raw = b""
        self._kept_version = -1
        self._keep_again_at = 0.0
        self._wanted = asyncio.Event()  # somebody waits: look now
        self._taken = asyncio.Event()  # set, and another one put there, by each directory
        self._version_in_use = -1  # `_on_change` has ended
        self._was_offered_unusable = False
        self.current: Directory | None = None
        self.confirmed_at = now()
        self.rejected = 0

    @property
    def age_s(self) -> float:
        """Seconds since the published file was last found to be what is held."""
        return self._now() - self.confirmed_at

    async def load(self) -> None:
        """Start: take the newest of what was kept and what is published."""
        try:
            raw, kept = read(self._kept, self._key)
        except FileNotFoundError:
            log.info("directory_none_kept")
        except (OSError, DirectoryError) as error:
            log.error("directory_kept_unusable", error=str(error))  # noqa: TRY400 - the trace tells no more
        else:
            self._kept_version = kept.version
            await self._take(raw, kept, "last known good")
        await self._judge(*self._read_published())
        self._keep()

    async def poll(self) -> None:
        """Look once; take what is new. Files are read and written in a thread, the exchange itself is not."""
        async with self._exchanging:
            await self._poll()

    async def offer(self, raw: bytes) -> None:
        """Take what came another way than by the file, if it is newer and signed."""
        try:
            found = await asyncio.to_thread(self._checked, raw, self.current)
        except DirectoryError as error:
            self.rejected += 1
            if not self._was_offered_unusable:  # once, until a good one comes: strangers may write to Redis
                log.error("directory_offered_unusable", error=str(error))  # noqa: TRY400 - the trace tells no more
            self._was_offered_unusable = True
            return
        self._was_offered_unusable = False
        async with self._exchanging:
            if self.current is not None and found.version <= self.current.version:
                return
            await self._take(raw, found, "redis")
            self._trusted = False  # of the file nothing is known yet
            await asyncio.to_thread(self._keep)

    def _checked(self, raw: bytes, held: Directory | None) -> Directory:
        return directory.decode(directory_signature.check(self._key, raw), held)

    async def _poll(self) -> None:
        if self._signature() != self._seen:
            await self._judge(*await asyncio.to_thread(self._read_published))
        elif self._trusted:
            self.confirmed_at = self._now()
        held = self.current
        if held is not None and held.version != self._kept_version and self._now() >= self._keep_again_at:
            await asyncio.to_thread(self._keep)

    async def watch(self) -> None:
        """Look every DIRECTORY_POLL_MS, and whenever somebody waits for a directory, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limits.DIRECTORY_POLL_MS / 1000):
                    await self._wanted.wait()
            self._wanted.clear()
            await self.poll()

    async def wait_in_use(self, version: int, timeout_ms: int) -> None:
        """Have `watch` look at once; return when that version or a newer one is in use, or the time is over.

        0 is any that is newer than the one in use now. All who wait share the looks, and what Redis offers counts.
        """
        version = version or self._version_in_use + 1
        if self._version_in_use >= version:
            return
        self._wanted.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_ms / 1000):
                while self._version_in_use < version:
                    await self._taken.wait()

    def _signature(self) -> _Signature | None:
        try:
            status = self._published.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _read_published(self) -> tuple[_Signature | None, bytes, Directory | str]:
        # The signature is taken first: a file that is replaced meanwhile differs from it at the next look.
        signature = self._signature()
        try:
            return signature, *read(self._published, self._key, self.current)
        except (OSError, DirectoryError) as error:
            return signature, b"", str(error)

    async def _judge(self, signature: _Signature | None, raw: bytes, found: Directory | str) -> None:
        self._seen = signature
        self._trusted = False
        held = self.current
        if isinstance(found, str):
            self.rejected += 1
            log.error("directory_unusable", error=found, held=None if held is None else held.version)
        elif held is None or found.version > held.version:
            await self._take(raw, found, "published")
        elif found.version < held.version:
            self.rejected += 1
            log.error("directory_older", version=found.version, held=held.version)
        elif found.checksum != held.checksum:
            self.rejected += 1
            log.error("directory_same_version_differs", version=found.version)
        else:
            self._trusted = True
            self.confirmed_at = self._now()

    async def _take(self, raw: bytes, found: Directory, source: str) -> None:
        self._raw = raw
        self._trusted = True
        self.current = found
        self.confirmed_at = self._now()
        log.info(
            "directory_taken",
            version=found.version,
            source=source,
            cells=len(found.cells),
            partners=len(found.partners),
        )
        await self._on_change(found)
        self._version_in_use = found.version
        taken, self._taken = self._taken, asyncio.Event()
        taken.set()

    def _keep(self) -> None:
        held = self.current
        if held is None or held.version == self._kept_version:
            return
        try:
            write_atomically(self._kept, self._raw)
        except OSError as error:
            # The router serves on; it only could not start again without the published file.
            log.error("directory_not_kept", error=str(error))  # noqa: TRY400 - the trace tells no more
            self._keep_again_at = self._now() + limits.DIRECTORY_KEEP_RETRY_MS / 1000
            return
        self._kept_version = held.version
