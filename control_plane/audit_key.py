"""The key of the audit log, and the head of the entry that seals the log under it, beside it.

They lie in the control plane's secrets, or where `audit_key_file` says: not with the log, so that who can write the
store can make no chain that fits. A key is made once, before the log is sealed; later its absence is an error.
"""

import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from control_plane import audit_chain, audit_head
from control_plane.audit_chain import Head
from control_plane.data_folder import SECRET_BYTES, DataFolder
from control_plane.errors import FolderError
from control_plane.registry import Registry
from control_plane.settings import Settings
from router.directory_file import write_atomically

log = structlog.get_logger()

_RESTORE: Final = "restore it, or name where it lies: audit_key_file in the settings. Nothing was written"


@dataclass(frozen=True, slots=True)
class AuditKeyFiles:
    """Where the key lies, and beside it the head of the seal."""

    key: Path

    @classmethod
    def of(cls, settings: Settings, folder: DataFolder) -> "AuditKeyFiles":
        """Return those of an installation."""
        return cls(settings.audit_key_file or folder.audit_key_file)

    @property
    def seal(self) -> Path:
        """The number and hash of the entry that seals the log."""
        return self.key.with_name(f"{self.key.name}.seal")


def read(files: AuditKeyFiles) -> bytes | None:
    """Return the key; None where there is none yet. Raises FolderError."""
    try:
        descriptor = os.open(files.key, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        if files.seal.exists():
            raise FolderError("the key of the audit log is gone", where=str(files.key), hint=_RESTORE) from None
        return None
    except OSError as error:
        raise FolderError(f"the audit log's key can't be read: {error}", where=str(files.key), hint=_RESTORE) from error
    with os.fdopen(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode) or mode & 0o077:
            raise FolderError(
                f"the audit log's key is open to others: its mode is {mode & 0o777:o}",
                where=str(files.key),
                hint="chmod 600 it; if somebody may have read it, entries since then prove nothing",
            )
        key = file.read(SECRET_BYTES + 1)
    if len(key) != SECRET_BYTES:
        raise FolderError(f"the audit log's key is damaged: {len(key)} bytes", where=str(files.key), hint=_RESTORE)
    return key


def make() -> bytes:
    """Make a key; `seal` keeps it."""
    return secrets.token_bytes(SECRET_BYTES)


async def seal(registry: Registry, files: AuditKeyFiles, key: bytes, *, is_new: bool) -> None:
    """See to it that the log is sealed under the key, and that both lie in their files. Raises ControlPlaneError.

    A log without the seal that is known of is sealed again and goes on; `audit-log verify` tells of it ever after.
    """
    known = audit_head.read(files.seal)
    if registry.is_sealed:
        found = await registry.find_seal(None if known is None else known.sequence)
        if is_new or (found is not None and found.detail.get("key") != audit_chain.key_id(key)):
            raise FolderError(
                "the audit log is sealed under a key that is not here", where=str(files.key), hint=_RESTORE
            )
        if found is None:
            log.error("audit_log_not_whole", why="its seal is gone")
        elif known is None:
            _keep(files.seal, Head(found.sequence, audit_chain.digest(found, key)))
        return
    if is_new:
        _write_key(files.key, key)
    await registry.seal()
    if known is not None:
        log.error("audit_log_not_whole", why="it stood there without its seal", file=str(files.seal))
    else:
        _keep(files.seal, registry.head)


def _write_key(file: Path, key: bytes) -> None:
    try:
        write_atomically(file, key)
    except OSError as error:
        raise FolderError(f"the audit log's key can't be kept: {error}", where=str(file), hint="mend that") from error


def _keep(file: Path, head: Head) -> None:
    try:
        audit_head.write(file, head)
    except OSError as error:
        log.warning("audit_seal_not_kept", file=str(file), error=str(error))
