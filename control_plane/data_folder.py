"""The data folder: where everything lies, who may use it, and the secrets in it. Books of partners are the cells'.

lock              held by the one `bulkhead up` that uses the folder (flock: ends with its process)
instance.json     what this folder is; written last at the first start
control.sqlite    partners, hashes of keys, operators' changes, where the store is SQLite (control_plane/registry.py)
registry.sqlite   the same in a folder of before; the first `up` imports it and renames it to registry.sqlite.imported
control.sock      the control plane, for this user only
secrets/          pepper, secrets of cells, routers, Ray, acquirers, Redis, the audit log (handing_over.py: whose)
directory/        what routers read          routers/<name>/   what each router knew, and counted
cells/<name>/     the partners' books        acquirer/         the simulator's record (-second: another's)
audit_head.json   the audit log's newest hash, kept beside it (control_plane/audit_chain.py)
removed/<name>/   what was a cell's          run/              configurations and records of processes       logs/

A folder or secret that is missing is made at the first start only, and a cell's while it is being added; later its
absence is an error, never a fresh one.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from filelock import FileLock, Timeout

from cells.api.frames import role_key
from control_plane.errors import FolderError
from control_plane.registry_records import Cell
from control_plane.settings import MAIN_ACQUIRER, SECOND_ACQUIRER, Settings
from router.directory_file import write_atomically

FORMAT: Final = 1
SECRET_BYTES: Final = 32
# Of what routers read, in folders that are their group's (handing_over.py) or that nobody else can pass.
GROUP_READS: Final = 0o640
_OURS: Final = frozenset(
    {
        "lock",
        "instance.json",
        "control.sqlite",
        "control.sqlite-wal",
        "control.sqlite-shm",
        "registry.sqlite",
        "registry.sqlite-wal",
        "registry.sqlite-shm",
        "registry.sqlite.imported",
        "control.sock",
        "audit_head.json",
        "secrets",
        "directory",
        "routers",
        "cells",
        "removed",
        "acquirer",
        "acquirer-second",
        "redis",
        "run",
        "logs",
    }
)


@dataclass(frozen=True, slots=True)
class Instance:
    """One installation. `id` (16 hex characters) marks its processes.

    The id is made of a random seed and the folder's place, so that a copied folder is another installation: it
    must not take the processes of the first for its own.
    """

    id: str
    seed: str
    cells: int
    store: str
    created_at: str

    @property
    def data_id(self) -> str:
        """Which data it is, wherever the folder lies: names its directory in a FoundationDB cluster."""
        return self.seed[:16]


@dataclass(frozen=True, slots=True)
class DataFolder:
    """The paths in a data folder."""

    root: Path

    @property
    def lock_file(self) -> Path:
        """Held while an `up` runs."""
        return self.root / "lock"

    @property
    def instance_file(self) -> Path:
        """What this folder is."""
        return self.root / "instance.json"

    @property
    def registry_file(self) -> Path:
        """The control plane's own book, where the store is SQLite."""
        return self.root / "control.sqlite"

    @property
    def registry_file_of_before(self) -> Path:
        """What was in its place once: an SQL file of its own."""
        return self.root / "registry.sqlite"

    @property
    def registry_file_imported(self) -> Path:
        """What the file of before is called once it is imported."""
        return self.root / "registry.sqlite.imported"

    @property
    def control_socket(self) -> Path:
        """Where the control plane listens."""
        return self.root / "control.sock"

    @property
    def secrets(self) -> Path:
        """Folder of the secrets."""
        return self.root / "secrets"

    @property
    def pepper_file(self) -> Path:
        """The key of the keys' hashes."""
        return self.secrets / "api_key_pepper"

    @property
    def audit_key_file(self) -> Path:
        """The key of the audit log's hashes, unless the settings name another file."""
        return self.secrets / "audit.key"

    @property
    def operator_key_file(self) -> Path:
        """The key of the installation's own operator, for the commands of this user."""
        return self.secrets / "operator.key"

    def acquirer_secret_file(self, acquirer: str) -> Path:
        """Give the key with which an acquirer signs its notifications."""
        named = "" if acquirer == MAIN_ACQUIRER else f".{acquirer}"
        return self.secrets / f"acquirer{named}.notifications.key"

    def cell_secret_file(self, cell: str) -> Path:
        """Give the secret from which each role's key of a cell comes."""
        return self.secrets / f"{cell}.secret"

    @property
    def router_keys(self) -> Path:
        """Folder of what routers know of the cells' secrets, and of the directory's."""
        return self.secrets / "routers"

    def router_key_file(self, cell: str) -> Path:
        """Give what routers know of a cell's secret."""
        return self.router_keys / f"{cell}.router.key"

    def ray_token_file(self, cell: str) -> Path:
        """Give the token of a cell's Ray cluster."""
        return self.secrets / f"{cell}.ray_token"

    @property
    def redis_secret_file(self) -> Path:
        """What the password of the installation's own Redis is made of."""
        return self.secrets / "redis.key"

    @property
    def directory_file(self) -> Path:
        """The directory as published."""
        return self.root / "directory" / "directory.json"

    @property
    def directory_key_file(self) -> Path:
        """The private key that signs the directory, for the control plane alone."""
        return self.secrets / "directory.key"

    @property
    def directory_public_key_file(self) -> Path:
        """What routers check the directory's signature with."""
        return self.router_keys / "directory.pub"

    def router_folder(self, router: str) -> Path:
        """Give a router's own folder."""
        return self.root / "routers" / router

    def cell_folder(self, cell: str) -> Path:
        """Give a cell's own folder."""
        return self.root / "cells" / cell

    def removed_cell_folder(self, cell: str) -> Path:
        """Give where the folder of a cell is kept that was removed."""
        return self.root / "removed" / cell

    def acquirer_folder(self, acquirer: str) -> Path:
        """Give a simulator's own folder."""
        return self.root / ("acquirer" if acquirer == MAIN_ACQUIRER else f"acquirer-{acquirer}")

    @property
    def run(self) -> Path:
        """Configurations and records of processes."""
        return self.root / "run"

    @property
    def redis_config_file(self) -> Path:
        """What the installation's own Redis reads, its password included."""
        return self.root / "redis" / "redis.conf"

    @property
    def settings_file(self) -> Path:
        """The settings that the last `up` ran with, for the other commands."""
        return self.run / "settings.json"

    @property
    def audit_head_file(self) -> Path:
        """The audit log's newest number and hash, as they were after the last change."""
        return self.root / "audit_head.json"

    @property
    def control_record_file(self) -> Path:
        """Who holds the lock, for those who find it held."""
        return self.run / "control_plane.json"

    @property
    def logs(self) -> Path:
        """What each process has to say."""
        return self.root / "logs"

    def log_folder(self, process: str) -> Path:
        """Give the folder of a process's logs: a cell's processes share theirs."""
        return self.logs / process.partition(".")[0]

    def log_file(self, process: str) -> Path:
        """Give a process's structured log."""
        return self.log_folder(process) / f"{process}.log"


@contextlib.contextmanager
def locked(folder: DataFolder) -> Iterator[None]:
    """Make the folder where needed and hold its lock. Raises FolderError where another `up` holds it."""
    root = folder.root
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        strange = {entry.name for entry in root.iterdir()} - _OURS
        if strange and not folder.instance_file.exists():
            raise FolderError(
                f"the folder holds other things already, such as {min(strange)!r}",
                where=str(root),
                hint="name an empty or a new folder as data_folder",
            )
        lock = FileLock(folder.lock_file, mode=0o600)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise FolderError(
            "another `bulkhead up` uses this data folder" + _name_holder(folder),
            where=str(folder.lock_file),
            hint="stop that one first (Ctrl-C there), or give this one another data_folder and other ports",
        ) from error
    except OSError as error:
        raise FolderError(f"the data folder can't be used: {error}", where=str(root), hint="mend that") from error
    try:
        yield
    finally:
        lock.release()


def prepare(folder: DataFolder, settings: Settings) -> Instance:
    """Make what is missing at a first start; at a later one check that the data fits. Raises FolderError.

    Call it with the lock held. `finish_first_start` ends a first start. Cells are prepared by `prepare_cell`.
    """
    instance = read_instance(folder)
    if instance is not None and instance.cells != settings.cells:
        raise FolderError(
            f"this data was made with {instance.cells} cells, the settings say {settings.cells}: "
            "they say how many the first start makes; later ones come and go by command",
            where=str(folder.instance_file),
            hint=f"set cells = {instance.cells}; then, while it runs: bulkhead cell add, or cell drain and cell remove",
        )
    if instance is not None and instance.store != settings.store:
        raise FolderError(
            f"this data is in the store {instance.store!r}, the settings say {settings.store!r}: "
            "partners would have to move between stores, and moves don't exist yet",
            where=str(folder.instance_file),
            hint=f'set store = "{instance.store}", or start with another data_folder',
        )
    folders = [
        folder.secrets,
        folder.router_keys,
        folder.directory_file.parent,
        folder.acquirer_folder(MAIN_ACQUIRER),
        folder.run,
        folder.logs,
    ]
    folders += [folder.router_folder(router) for router in settings.router_names]
    folders += [folder.log_folder(name) for name in ("control_plane", *settings.router_names)]
    if settings.second_acquirer_port is not None:
        folders.append(folder.acquirer_folder(SECOND_ACQUIRER))
    for path in folders:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.secrets.stat().st_mode & 0o066:
        folder.secrets.chmod(0o700)
    _make_secrets(_own_secret_files(folder, settings), may_make=instance is None)
    _make_directory_keys(folder)
    if instance is not None:
        return instance
    seed = secrets.token_hex(16)
    return Instance(_identity(seed, folder), seed, settings.cells, settings.store, timestamp())


def prepare_cells(folder: DataFolder, cells: Iterable[Cell], *, first_start: bool) -> None:
    """Prepare all cells that are to run. Raises FolderError."""
    for cell in cells:
        if cell.is_running:
            prepare_cell(folder, cell.name, may_make=first_start or cell.state == "adding")


def prepare_cell(folder: DataFolder, cell: str, *, may_make: bool) -> None:
    """Make a cell's folder, and its secrets where `may_make`, else check that these are there. Raises FolderError."""
    folder.cell_folder(cell).mkdir(mode=0o700, parents=True, exist_ok=True)
    _make_secrets(_cell_secret_files(folder, cell), may_make=may_make)
    key = role_key(read_secret(folder.cell_secret_file(cell)), "router")
    file = folder.router_key_file(cell)
    if not file.exists() or file.read_bytes() != key:  # it can always be derived again
        write_atomically(file, key, mode=GROUP_READS)
    (folder.secrets / file.name).unlink(missing_ok=True)  # where it once was


def set_aside(folder: DataFolder, cell: str) -> None:
    """Keep the folder of a cell that was removed elsewhere; doing it again changes nothing. Raises FolderError."""
    source, target = folder.cell_folder(cell), folder.removed_cell_folder(cell)
    if not source.exists():
        return
    try:
        target.parent.mkdir(mode=0o700, exist_ok=True)
        source.rename(target)
    except OSError as error:
        raise FolderError(
            f"the folder of {cell}, which was removed, can't be set aside: {error}",
            where=str(source),
            hint=f"mend that; nobody writes it any more, and it belongs into {target}",
        ) from error


def finish_first_start(folder: DataFolder, instance: Instance) -> None:
    """Write down that the folder is whole, where it isn't yet. From then on nothing missing is made anew."""
    if folder.instance_file.exists():
        return
    fields = {
        "format": FORMAT,
        "seed": instance.seed,
        "cells": instance.cells,
        "store": instance.store,
        "created_at": instance.created_at,
    }
    write_atomically(folder.instance_file, json.dumps(fields, indent=2).encode())


def read_instance(folder: DataFolder) -> Instance | None:
    """Read what the folder is, None before its first start is whole. Raises FolderError."""
    try:
        fields = json.loads(folder.instance_file.read_bytes())
        if fields["format"] != FORMAT:
            raise FolderError(
                f"this data has format {fields['format']}, this version knows {FORMAT}",
                where=str(folder.instance_file),
                hint="run the version of Bulkhead that wrote it, or a newer one",
            )
        seed = str(fields["seed"])
        # Folders of before there was a choice say nothing of a store.
        store = str(fields.get("store", "sqlite"))
        return Instance(_identity(seed, folder), seed, int(fields["cells"]), store, str(fields["created_at"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise FolderError(
            f"the file that says what this folder is can't be read: {error}",
            where=str(folder.instance_file),
            hint="restore it from a backup; it holds format, seed, cells and created_at",
        ) from error


def require_instance(folder: DataFolder) -> Instance:
    """Read what the folder is. Raises FolderError, also where no first start was whole yet."""
    instance = read_instance(folder)
    if instance is None:
        raise FolderError(
            "no Bulkhead was ever started on this data folder", where=str(folder.root), hint="start it: bulkhead up"
        )
    return instance


def read_secret(path: Path) -> bytes:
    """Read one secret. Raises FolderError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise FolderError(f"a secret can't be read: {error}", where=str(path), hint=_SECRETS_HINT) from error


def read_directory_key(folder: DataFolder) -> Ed25519PrivateKey:
    """Read what signs the directory. Raises FolderError."""
    _check_secret(folder.directory_key_file, "bytes")
    return Ed25519PrivateKey.from_private_bytes(read_secret(folder.directory_key_file))


def secrets_digest(folder: DataFolder, settings: Settings, cell: str | None) -> str:
    """Give a digest of the secrets that a cell's processes hold (None: others), so that none with others is adopted.

    Routers read the cells' keys as they learn of the cells, so that these may come and go.
    """
    digest = hashlib.sha256()
    more = [(folder.directory_public_key_file, "bytes")] if cell is None else _cell_secret_files(folder, cell)
    for path, _ in _own_secret_files(folder, settings) + more:
        digest.update(hashlib.sha256(read_secret(path)).digest())
    return digest.hexdigest()


@contextlib.contextmanager
def short_socket_path(path: Path) -> Iterator[str]:
    """Give a name of a Unix socket's file that fits into 107 bytes (unix(7)), however deep the folder lies."""
    descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


def listen_on(path: Path) -> socket.socket:
    """Listen on a Unix socket that only this user may use. The lock must be held: a stale file is replaced."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        with short_socket_path(path) as short:
            listener.bind(short)
    finally:
        os.umask(mask)
    listener.listen()
    return listener


def timestamp(moment: datetime | None = None) -> str:
    """Give a moment (now) as RFC 3339 in UTC with milliseconds."""
    return (moment or datetime.now(UTC)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


_SECRETS_HINT: Final = "restore the secrets folder from a backup; secrets are made at the first start only"


def _identity(seed: str, folder: DataFolder) -> str:
    return hashlib.sha256(f"{seed} {folder.root.resolve()}".encode()).hexdigest()[:16]


def _own_secret_files(folder: DataFolder, settings: Settings) -> list[tuple[Path, str]]:
    files = [(folder.pepper_file, "bytes")]
    files += [(folder.acquirer_secret_file(name), "bytes") for name in settings.acquirer_urls]
    if settings.starts_redis:
        files.append((folder.redis_secret_file, "bytes"))
    return files


def _cell_secret_files(folder: DataFolder, cell: str) -> list[tuple[Path, str]]:
    return [(folder.cell_secret_file(cell), "bytes"), (folder.ray_token_file(cell), "text")]


def _make_secrets(files: Iterable[tuple[Path, str]], *, may_make: bool) -> None:
    for path, kind in files:
        if path.exists():
            if path.stat().st_mode & ~GROUP_READS & 0o777:
                path.chmod(0o600)
            _check_secret(path, kind)
            continue
        # Who signs and who checks both read an acquirer's key here, so a new one loses nothing: it is also made in a
        # folder of before there were notifications, or that acquirer. So is Redis's, which keeps nothing.
        may_be_new = path.name == "redis.key" or path.name.endswith(".notifications.key")
        if not may_make and not may_be_new:
            raise FolderError(f"the secret {path.name} is missing", where=str(path), hint=_SECRETS_HINT)
        content = secrets.token_bytes(SECRET_BYTES)
        write_atomically(path, content.hex().encode() if kind == "text" else content)


def _make_directory_keys(folder: DataFolder) -> None:
    """Make the pair that signs the directory, at a first start and in a folder of before there was one."""
    file, public_file = folder.directory_key_file, folder.directory_public_key_file
    if not file.exists():
        if public_file.exists():
            raise FolderError("the secret directory.key is missing", where=str(file), hint=_SECRETS_HINT)
        write_atomically(file, secrets.token_bytes(SECRET_BYTES))
    public_key = read_directory_key(folder).public_key().public_bytes_raw()
    if not public_file.exists() or public_file.read_bytes() != public_key:  # it can always be derived again
        write_atomically(public_file, public_key, mode=GROUP_READS)


def _check_secret(path: Path, kind: str) -> None:
    found = read_secret(path)
    if kind == "text":
        is_right = re.fullmatch(rb"[0-9a-f]{%d}" % (2 * SECRET_BYTES), found) is not None
    else:
        is_right = len(found) == SECRET_BYTES
    if not is_right:
        raise FolderError(
            f"the secret {path.name} is damaged: it has {len(found)} bytes", where=str(path), hint=_SECRETS_HINT
        )


def _name_holder(folder: DataFolder) -> str:
    try:
        record: dict[str, Any] = json.loads(folder.control_record_file.read_bytes())
        return f" (pid {record['pid']}, since {record['started_at']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # it holds the lock but hasn't got so far as to write its record
