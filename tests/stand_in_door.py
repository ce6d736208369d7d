"""A stand-in for a cell's door, and an installation over such doors whose control plane can be made anew."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack

from cells.api.connection import FrameServer, Request
from cells.api.frames import role_key
from cells.api.messages import (
    Answer,
    Method,
    Profile,
    Refusal,
    RefusalCode,
    Refused,
    decode_command,
    decode_profile,
    encode_answer,
)
from control_plane import data_folder, opening
from control_plane.data_folder import DataFolder
from control_plane.doors import CellAddress, Doors, cell_addresses
from control_plane.partners import Partners
from control_plane.publishing import Publisher
from control_plane.registry import Registry
from control_plane.settings import Settings
from router import directory, directory_file


class StandInDoor:
    """Answers as a door does, from memory. `books` outlive it as files would; `profiles` are what it was told."""

    def __init__(self, cell: str) -> None:
        self.cell = cell
        self.books: list[str] = []
        self.workers: list[str] = ["w0"]  # those that are ready
        self.profiles: dict[str, Profile] = {}
        self.asked: list[tuple[str, str]] = []
        self.refuse: RefusalCode | None = None
        self.released: list[tuple[str, bool]] = []
        self.unknown: list[dict[str, Any]] = []
        self.open: dict[str, int] = {}  # what is, as the partner's actor would count it
        self.resolved: list[dict[str, Any]] = []
        self.command_ids: list[str] = []  # of what was to be resolved
        self.refuse_resolving: RefusalCode | None = None
        # By method: what answers a partner's actor would give, from its id and the arguments.
        self.actors: dict[str, Callable[[str, dict[str, Any]], dict[str, Any] | RefusalCode]] = {}

    def count(self, method: str) -> int:
        return sum(asked == method for asked, _ in self.asked)

    async def handle(self, request: Request) -> bytes:
        assert request.role == "control"
        self.asked.append((request.method, request.partner_id))
        if request.method == Method.CELL_STATUS:
            return self._status()
        if self.refuse is not None:
            return encode_answer(Refused(Refusal(self.refuse, "The stand-in was told to refuse.")))
        if request.method == Method.LIST_UNKNOWN:
            return _answer({"object": "list", "data": self.unknown})
        if request.method == Method.RESOLVE_OPERATION:
            if self.refuse_resolving is not None:
                return encode_answer(Refused(Refusal(self.refuse_resolving, "The stand-in's actor refuses.")))
            command = decode_command(request.body)
            self.resolved.append(command.arguments)
            self.command_ids.append(command.command_id)
            return _answer({"object": "operation"})
        if request.method in {Method.COUNT_OPEN, Method.ERASE_PARTNER}:
            return self._delete(request)
        if request.method == Method.RELEASE_PARTNER:
            self.released.append((request.partner_id, msgpack.unpackb(request.body)["to_pool"]))
            return _answer({"ok": True})
        if request.method in self.actors:
            said = self.actors[request.method](request.partner_id, decode_command(request.body).arguments)
            if isinstance(said, RefusalCode):
                return encode_answer(Refused(Refusal(said, "The stand-in's actor refuses.")))
            return _answer(said)
        return self._take_profile(request)

    def _take_profile(self, request: Request) -> bytes:
        profile = decode_profile(msgpack.unpackb(request.body)["profile"])
        assert profile.partner_id == request.partner_id
        if request.method == Method.ONBOARD:
            if profile.partner_id not in self.books:
                self.books.append(profile.partner_id)
            self.profiles.setdefault(profile.partner_id, profile)
            return _answer({"ok": True})
        assert request.method == Method.CONFIGURE
        if profile.partner_id not in self.profiles:
            return encode_answer(Refused(Refusal(RefusalCode.PARTNER_MOVED, "It is not of this cell.")))
        if profile.version > self.profiles[profile.partner_id].version:
            self.profiles[profile.partner_id] = profile
        return _answer({"ok": True})

    def _delete(self, request: Request) -> bytes:
        if request.method == Method.COUNT_OPEN:
            counts = {"under_way": 0, "unknown": 0, "held": 0, "disputed": 0, **self.open}
            return _answer({"profile_version": self.profiles[request.partner_id].version, **counts})
        profile = self.profiles.pop(request.partner_id, None)
        assert profile is None or profile.status == "suspended"
        self.books = [book for book in self.books if book != request.partner_id]
        return _answer({"ok": True})

    def _status(self) -> bytes:
        partners = [
            {"partner": name, "profile_version": profile.version, "status": profile.status, "state": "active"}
            for name, profile in self.profiles.items()
        ]
        workers = [{"worker": name, "spare": True, "healthy": True} for name in self.workers]
        return _answer({"cell": self.cell, "door_epoch": 1, "workers": workers, "partners": partners})


def _answer(fields: dict[str, Any]) -> bytes:
    return encode_answer(Answer(200, json.dumps(fields).encode()))


class Installation:
    """A data folder with stand-in doors, and a control plane over it that can be made anew, as after a crash."""

    def __init__(self, folder: DataFolder, doors: dict[str, StandInDoor]) -> None:
        self.folder = folder
        self.doors = doors
        self.settings = Settings(data_folder=folder.root, cells=len(doors))
        self.servers: list[FrameServer] = []
        self.opened: list[StandInDoor] = []
        self.addresses: list[CellAddress] = []
        self._registries: list[Registry] = []
        self._clients: list[Doors] = []
        self.now = 0.0
        self.simulators: tuple[str, ...] = ()

    async def start(self) -> None:
        with data_folder.locked(self.folder):
            instance = data_folder.prepare(self.folder, self.settings)
            registry = await opening.open_registry(self.settings, self.folder, instance, first_start=True)
            data_folder.prepare_cells(self.folder, registry.cells(), first_start=True)
            data_folder.finish_first_start(self.folder, instance)
        for name, door in self.doors.items():
            port = await self.open_door(door, 0)
            self.addresses.append(CellAddress(name, "127.0.0.1", port))
            await registry.write_cells([replace(registry.cell(name), door_port=port, advertised_port=port)])
        await registry.close()

    async def open_door(self, door: StandInDoor, port: int) -> int:
        """Let a door listen; its cell's secret is there."""
        key = role_key(self.folder.cell_secret_file(door.cell).read_bytes(), "control")
        server = FrameServer({"control": key}, door.handle)
        self.servers.append(server)
        self.opened.append(door)
        return await server.start("127.0.0.1", port)

    def directory(self) -> directory.Directory:
        """Return what is published, its signature checked."""
        key = data_folder.read_directory_key(self.folder).public_key()
        return directory_file.read(self.folder.directory_file, key)[1]

    async def control_plane(self) -> tuple[Partners, Registry, Doors, Publisher]:
        """Make the parts from what is on disk, as a new process would."""
        instance = data_folder.require_instance(self.folder)
        registry = await opening.open_registry(self.settings, self.folder, instance, first_start=False)
        data_folder.prepare_cells(self.folder, registry.cells(), first_start=False)
        client = await Doors.connect(cell_addresses(registry.cells()), self.folder)
        await client.wait_connected()
        self._registries.append(registry)
        self._clients.append(client)
        publisher = Publisher(registry, self.folder, routers=())
        pepper = self.folder.pepper_file.read_bytes()
        partners = Partners(
            registry,
            client,
            publisher,
            pepper,
            acquirers=("main", "second"),
            simulators=self.simulators,
            require_room=lambda _dedicated, _pooled: None,
            monotonic=lambda: self.now,
        )
        return partners, registry, client, publisher

    async def aclose(self) -> None:
        for client in self._clients:
            await client.aclose()
        for server in self.servers:
            await server.aclose()
        for registry in self._registries:
            await registry.close()
