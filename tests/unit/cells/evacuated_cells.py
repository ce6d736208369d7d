"""Three cells of one store with the control plane's own evacuation over them, for tests that order who dies when.

Doors, workers, moves, evacuation and registry are the real ones, on virtual time (simulated_cells.py); of the fleet
only what evacuation asks of it is here. A cell that is `silent` can't be reached by the control plane, and goes on all
the same; one that is killed has nothing left but its books.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import msgpack
import orjson

from cells.api import messages
from cells.api.connection import PeerError, Request
from cells.api.messages import Answer, Command, Method, Refused
from control_plane.burials import Burials
from control_plane.door_moves import DoorMoves
from control_plane.doors import Doors
from control_plane.errors import DoorError
from control_plane.evacuation import Evacuation
from control_plane.moves import Moves
from control_plane.moves_mover import MovesMover
from control_plane.partners import to_profile
from control_plane.rebalancer import Answers, Rebalancer
from control_plane.rebalancing import Resident
from control_plane.registry import Registry
from control_plane.registry_records import Cell, Partner
from stores.memory_shelf import MemoryBooks, MemoryShelf
from tests.unit.actors.scripted_acquirer import APPROVE, AcquirerRecord
from tests.unit.cells.simulated_cells import Life, MortalAcquirer, Network, SimulatedCell

CELLS = ("cell-0", "cell-1", "cell-2")
PARTNER = "alpha"
HOME = CELLS[0]


class OrderedDoors(Doors):
    """The control plane's way to the doors; `before` and `after` order what happens at a step, once."""

    def __init__(self, cells: dict[str, SimulatedCell]) -> None:
        self.cells = cells
        self.silent: set[str] = set()
        self.before: dict[str, Callable[[], Awaitable[None]]] = {}
        self.after: dict[str, Callable[[], Awaitable[None]]] = {}
        self.said: list[tuple[str, Request]] = []

    async def cell_status(self, cell: str) -> Any:
        if cell in self.silent or not self.cells[cell].is_up:
            raise DoorError(f"{cell} does not answer")

    async def ask(self, cell: str, method: str, partner_id: str, body: bytes, budget_ms: int) -> Answer | Refused:
        await asyncio.sleep(0.001)
        await self._happen(self.before, method)
        request = Request("control", method, partner_id, budget_ms, body)
        self.said.append((cell, request))
        if cell in self.silent:
            raise DoorError(f"{cell} does not answer")
        try:
            answer = await self.cells[cell].handle(request)
        except PeerError as error:
            raise DoorError(f"{cell}: {error!r}") from error
        await self._happen(self.after, method)
        if cell in self.silent:
            raise DoorError(f"{cell}'s answer is lost")
        return messages.decode_answer(answer)

    async def _happen(self, ordered: dict[str, Callable[[], Awaitable[None]]], method: str) -> None:
        happens = ordered.pop(method, None)
        if happens is not None:
            await happens()


class DrainingFleet:
    """What evacuation asks of the fleet."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def drain(self, name: str, who: str, *, dry_run: bool) -> None:
        assert not dry_run
        cell = replace(self._registry.cell(name), state="draining", weight=0.0)
        await self._registry.write_cells([cell], who, "cell_draining", cell=name)


class Unloaded:
    """What a rebalancing sees of the load: that all partners weigh the same, and nobody had an error."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def answers(self) -> Answers:
        return Answers(0, 0)

    async def residents(self) -> list[Resident]:
        return [Resident(partner.id, partner.cell, 1.0, 1_000) for partner in self._registry.partners()]


class Installation:
    """The cells and their control plane."""

    def __init__(self) -> None:
        self.network = Network()
        self.books = MemoryBooks()
        self.record = AcquirerRecord()
        self.cells = {name: SimulatedCell(name, self.books, self.network, self._acquirer) for name in CELLS}
        self.places: dict[str, dict[str, Any]] = {
            name: {"store": "fdb", "cluster_file": "one", "path": [name]} for name in CELLS
        }
        self.doors = OrderedDoors(self.cells)
        self.registry: Registry
        self.moves: Moves
        self.burials: Burials
        self.evacuation: Evacuation
        self.rebalancer: Rebalancer

    async def open(self) -> None:
        shelf = MemoryShelf(self.books)
        await shelf.create("control")
        for cell in self.cells.values():
            await cell.open()
        self.registry = await Registry.open(await shelf.open("control"), "here", audit_key=b"k" * 32, new=True)
        rows = [Cell(name, slot, "active", 1.0, "h", 1, 1, 1, 1, "", "") for slot, name in enumerate(CELLS)]
        await self.registry.write_cells(rows, "ann", "cells_written")
        self.start()

    def start(self) -> None:
        """Start a control plane over what is written down."""

        async def publish() -> None:
            return None

        doors = DoorMoves(self.doors)
        monotonic = asyncio.get_running_loop().time
        self.moves = Moves(
            self.registry, doors, publish, lambda: 1, to_profile, lambda: self.places, monotonic=monotonic
        )
        self.burials = Burials(self.registry, doors)
        self.evacuation = Evacuation(
            self.registry,
            DrainingFleet(self.registry),  # type: ignore[arg-type]
            self.moves,
            self.doors,
            lambda: self.places,
            after_s=0,
            monotonic=monotonic,
        )
        self.rebalancer = Rebalancer(
            self.registry,
            MovesMover(self.moves),
            Unloaded(self.registry),
            now_ms=lambda: int(monotonic() * 1_000),
            monotonic_ms=lambda: int(monotonic() * 1_000),
        )

    async def stop(self) -> None:
        await self.rebalancer.aclose()
        await self.moves.stop()
        await self.burials.stop()

    def _acquirer(self, life: Life, _partner_id: str) -> MortalAcquirer:
        return MortalAcquirer(self.record, lambda: APPROVE, life)

    async def onboard(self, partner_id: str = PARTNER, cell: str = HOME) -> None:
        partner = Partner(partner_id, "p", "onboarding", "test", cell, 1_000, 1_000, 256, "2026-11-22", 1, "")
        await self.registry.begin_onboarding(partner, "ann")
        partner = await self.registry.activate(partner_id, "ann")
        body = msgpack.packb({"profile": messages.encode_profile(to_profile(partner))})
        assert isinstance(await self.doors.ask(cell, Method.ONBOARD, partner_id, body, 10_000), Answer)

    async def pay(self, cell: str, key: str, partner_id: str = PARTNER) -> Answer | Refused:
        said: dict[str, Any] = {
            "amount": 100,
            "currency": "EUR",
            "payment_method": "tok_approve",
            "capture_method": "automatic",
            "reference": None,
            "description": None,
            "metadata": {},
        }
        return await self._ask(cell, Method.CREATE_PAYMENT, Command(key, "r", said, key, b"f" * 32), partner_id)

    async def payments(self, cell: str, partner_id: str = PARTNER) -> list[str]:
        command = Command("list", "r", {"limit": 100})
        answer = await self._ask(cell, Method.LIST_PAYMENTS, command, partner_id)
        assert isinstance(answer, Answer), answer
        return [payment["id"] for payment in orjson.loads(answer.body)["data"]]

    async def _ask(self, cell: str, method: str, command: Command, partner_id: str) -> Answer | Refused:
        request = Request("router", method, partner_id, 5_000, messages.encode_command(command))
        return messages.decode_answer(await self.cells[cell].handle(request))

    async def die(self, cell: str, *, killed: bool) -> None:
        """Have a cell be dead for all that the control plane can tell, or dead indeed, with all its processes."""
        self.doors.silent.add(cell)
        if killed:
            self.cells[cell].kill()

    async def come_back(self, cell: str) -> None:
        if not self.cells[cell].is_up:
            await self.cells[cell].open()
        self.doors.silent.discard(cell)

    async def evacuate(self, cell: str) -> dict[str, Any]:
        return await self.evacuation.evacuate(cell, "ann", force=False, dry_run=False)

    async def tell(self) -> None:
        """Tell dead cells what they missed, for as long as it takes those that are back."""
        await self.burials.tell()
        await asyncio.gather(*self.burials._telling.values())

    async def settled(self, *partner_ids: str, within_s: float = 60) -> None:
        """Wait until these partners are on no move any more."""
        for partner_id in partner_ids or (PARTNER,):
            async with asyncio.timeout(within_s):
                while self.registry.move(partner_id) is not None:
                    await self.moves.resume()
                    await asyncio.sleep(0.1)

    def owners(self, partner_id: str = PARTNER) -> dict[str, list[int]]:
        """Give who can write to the partner's book now: epochs by cell."""
        found = {name: cell.owners(partner_id) for name, cell in self.cells.items()}
        return {name: epochs for name, epochs in found.items() if epochs}


@contextlib.asynccontextmanager
async def installed() -> AsyncIterator[Installation]:
    """Give an installation of three cells and no partner."""
    made = Installation()
    await made.open()
    yield made
    await made.stop()
