"""Publishes the directory: what the registry says, as routers read it. Its format stands in router.directory.

A version is taken in the registry before its file is written, so that no version is ever used twice; one that a crash
kept from being written is skipped.
"""

import asyncio
import operator
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from control_plane import limits
from control_plane.data_folder import GROUP_READS, DataFolder, read_directory_key
from control_plane.directory_spreading import Spread, by_file_only
from control_plane.errors import ControlPlaneError
from control_plane.registry import Registry
from control_plane.registry_records import Cell, Key, Partner
from router import directory, directory_file, directory_signature

log = structlog.get_logger()

_Signature = tuple[int, int]  # inode, time of change


class Publisher:
    """The one writer of the directory's file. What takes long is done in threads, one at a time."""

    def __init__(
        self, registry: Registry, folder: DataFolder, routers: Sequence[str], spread: Spread = by_file_only
    ) -> None:
        self._registry = registry
        self._spread = spread
        self._key = read_directory_key(folder)
        self._public_key = self._key.public_key()
        self._file = folder.directory_file
        self._kept_files = {name: folder.router_folder(name) / directory_file.LAST_KNOWN_GOOD for name in routers}
        self._lock = asyncio.Lock()
        self._records = _Records()
        self._written = _signature(self._file)
        found = _read(self._file, self._public_key)
        self._published = None if found is None else (found.version, found.payload)
        self._kept: dict[str, tuple[_Signature, int]] = {}  # what each router's copy was found to be, and its version

    def place(self, partner_id: str) -> str:
        """Give the cell in which a new partner's book is to be made."""
        cell = directory.rendezvous(partner_id, cells_of_directory(self._registry.cells()))
        assert cell is not None, "there is always a cell with a weight: fleet.py sees to it"
        return cell

    async def publish(self) -> int:
        """Publish what the registry says now, where it differs from what is published; give the version that holds.

        Raises ControlPlaneError where no version can be taken or the file can't be written.
        """
        async with self._lock:
            # What is handed to the thread never changes: it is what the registry said at one moment.
            partners, keys = self._registry.partners(), self._registry.all_keys()
            cells = cells_of_directory(self._registry.cells())
            payload = await asyncio.to_thread(self._records.payload, datetime.now(UTC), cells, partners, keys)
            held = self._published
            is_untouched = _signature(self._file) == self._written and self._written is not None
            if held is not None and is_untouched and await asyncio.to_thread(operator.eq, held[1], payload):
                return held[0]
            # Routers never take an older version. Where registry and file were lost, their own copies still tell.
            kept = [await self._version_kept(name) for name in self._kept_files]
            above = max([self.version, *kept])
            version = await self._registry.take_directory_version(above)
            raw = await asyncio.to_thread(self._signed, version, payload)
            try:
                await asyncio.to_thread(directory_file.write_atomically, self._file, raw, mode=GROUP_READS)
            except OSError as error:
                raise ControlPlaneError(
                    f"the directory can't be written: {error}. Routers go on with the one they have",
                    where=str(self._file),
                    hint="mend that (is the disk full?); it is then published by itself",
                ) from error
            self._published = version, payload
            self._written = _signature(self._file)
            await self._spread(version, raw)
            log.info("directory_published", version=version, partners=len(payload.partners))
            return version

    async def wait_taken(self, version: int) -> list[str]:
        """Wait until each router holds this version or a newer one; give the names of those that don't in time."""
        behind = set(self._kept_files)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + limits.DIRECTORY_TAKEN_TIMEOUT_MS / 1000
        while True:
            behind = {name for name in behind if await self._version_kept(name) < version}
            if not behind or loop.time() >= deadline:
                return sorted(behind)
            await asyncio.sleep(limits.DIRECTORY_TAKEN_POLL_MS / 1000)

    @property
    def version(self) -> int:
        """The version that is published, 0 where none is."""
        return 0 if self._published is None else self._published[0]

    def _signed(self, version: int, payload: directory.Payload) -> bytes:
        return directory_signature.sign(self._key, directory.encode(version, payload))

    async def _version_kept(self, router: str) -> int:
        """Give the version of a router's own copy, 0 where none is there or we signed it not. Reads each copy once."""
        file = self._kept_files[router]
        signature = _signature(file)
        if signature is None:
            return 0
        known = self._kept.get(router)
        if known is None or known[0] != signature:
            # The signature is taken first: a copy that is replaced meanwhile differs from it at the next look.
            known = self._kept[router] = signature, await asyncio.to_thread(_read_version, file, self._public_key)
        return known[1]


def cells_of_directory(cells: Iterable[Cell]) -> tuple[directory.Cell, ...]:
    """Give the cells as routers are told them; one that is on its way out is none of them.

    One that joins has no weight yet, so that nobody belongs there before routers know it.
    """
    return tuple(
        directory.Cell(
            name=cell.name, weight=cell.weight if cell.is_in_use else 0.0, host=cell.host, port=cell.advertised_port
        )
        for cell in cells
        if cell.is_published
    )


class _Records:
    """What routers are told of each partner, made anew only where something of it changed: most of it never does."""

    def __init__(self) -> None:
        self._cells: tuple[directory.Cell, ...] = ()
        self._made: dict[str, tuple[Partner, list[Key], directory.Partner]] = {}

    def payload(
        self, now: datetime, cells: tuple[directory.Cell, ...], partners: Sequence[Partner], all_keys: Sequence[Key]
    ) -> directory.Payload:
        """Give the directory's content."""
        keys: dict[str, list[Key]] = {}
        for key in all_keys:
            if key.is_good(now):
                keys.setdefault(key.partner_id, []).append(key)
        held = self._made if cells == self._cells else {}
        made = {}
        for partner in partners:
            if partner.status in {"onboarding", "erasing"}:
                continue
            good = keys.get(partner.id, [])
            known = held.get(partner.id)
            if known is None or known[:2] != (partner, good):
                known = partner, good, _record(partner, cells, good)
            made[partner.id] = known
        self._cells, self._made = cells, made
        return directory.Payload(cells=cells, partners={name: record for name, (_, _, record) in made.items()})


def _record(partner: Partner, cells: tuple[directory.Cell, ...], keys: Sequence[Key]) -> directory.Partner:
    home = directory.rendezvous(partner.id, cells)
    return directory.Partner.model_validate(
        {
            "name": partner.name,
            # To routers, of older versions too, one that is closing is suspended: it reads and writes nothing.
            "status": "active" if partner.status == "active" else "suspended",
            "mode": partner.mode,
            "api_version": partner.api_version,
            "profile_version": partner.profile_version,
            # A partner stays where its book is, whatever the hash says: also when a cell comes or goes.
            "cell": None if home == partner.cell else partner.cell,
            "rate_per_second": partner.rate_per_second,
            "rate_burst": partner.rate_burst,
            "in_flight_max": partner.in_flight_max,
            "created_at": partner.created_at,
            "keys": tuple(
                {
                    "id": key.id,
                    "hash": key.hash,
                    "hint": key.hint,
                    "created_at": key.created_at,
                    "expires_at": key.expires_at,
                }
                for key in keys
            ),
        }
    )


def _read(path: Path, key: Ed25519PublicKey) -> directory.Directory | None:
    try:
        _, found = directory_file.read(path, key)
    except FileNotFoundError:
        return None
    except (OSError, directory.DirectoryError) as error:
        log.warning("directory_unusable", file=str(path), error=str(error))
        return None
    return found


def _read_version(path: Path, key: Ed25519PublicKey) -> int:
    try:
        return directory.decode_version(directory_signature.check(key, directory_file.read_bytes(path)))
    except (OSError, directory.DirectoryError) as error:
        log.warning("directory_unusable", file=str(path), error=str(error))
        return 0


def _signature(path: Path) -> _Signature | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
