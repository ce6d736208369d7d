"""Two cells over real worker processes, the registry and the moves between them: what tests of moves share."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from actors import keyspace
from actors.store import Range
from cells.api import messages
from cells.api.bulkheads import Bulkhead
from cells.api.connection import Request
from cells.api.messages import Answer, Method, Refused
from control_plane.door_moves import CopyLostError, DoorMoves
from control_plane.doors import Doors
from control_plane.errors import DoorError
from control_plane.moves import Moves
from control_plane.partners import to_profile
from control_plane.registry import Registry
from control_plane.registry_records import Partner
from stores.sqlite_shelf import SqliteShelf
from tests.stand_in_cluster import StandInCluster
from tests.unit.cells.open_cell import OpenCell

PARTNER = "alpha"
DIRECTORY_VERSION = 41


class TwoDoors(Doors):
    """Asks the doors directly, in the control plane's role; `fails` and `holds` order what goes wrong."""

    def __init__(self, cells: dict[str, OpenCell]) -> None:
        self.cells = cells
        self.asked: list[str] = []
        self.dead: set[str] = set()
        self.before: dict[str, Callable[[], Awaitable[None]]] = {}
        self.after: dict[str, Callable[[], Awaitable[None]]] = {}
        self.left = asyncio.Event()  # set: the connections of this control plane have ended

    async def ask(self, cell: str, method: str, partner_id: str, body: bytes, budget_ms: int) -> Answer | Refused:
        self.asked.append(method)
        if cell in self.dead:
            raise DoorError(f"{cell} is dead")
        before = self.before.pop(method, None)
        if before is not None:
            await before()
        request = Request("control", method, partner_id, budget_ms, body, self.left)
        answer = await self.cells[cell].door.handle(request)
        after = self.after.pop(method, None)
        if after is not None:
            await after()
        return messages.decode_answer(answer)


@dataclass
class Installed:
    """Two cells, the registry, and the moves between them."""

    cells: dict[str, OpenCell]
    registry: Registry
    doors: TwoDoors
    moves: Moves
    published: list[str]
    folder: Path
    places: dict[str, dict[str, Any]]

    @property
    def source(self) -> OpenCell:
        return self.cells["cell-0"]

    @property
    def target(self) -> OpenCell:
        return self.cells["cell-1"]

    async def onboard(self, partner_id: str = PARTNER, isolation: str = "dedicated") -> None:
        partner = Partner(
            partner_id, partner_id, "onboarding", "test", "cell-0", 1_000, 1_000, 256, "2026-11-22", 1, ""
        )
        partner = replace(partner, isolation=isolation)
        await self.registry.begin_onboarding(partner, "ann")
        partner = await self.registry.activate(partner_id, "ann")
        profile = messages.encode_profile(to_profile(partner))
        assert isinstance(await self.source.control(Method.ONBOARD, {"profile": profile}), Answer)

    async def write(self, cell: OpenCell, command_id: str, budget_ms: int = 700, **arguments: Any) -> Answer | Refused:
        """Make a payment that needs no acquirer's answer to be in the book: nobody is at the acquirer's address."""
        said = {
            "amount": 100,
            "currency": "EUR",
            "payment_method": "tok_approve",
            "capture_method": "automatic",
            "reference": None,
            "description": None,
            "metadata": {},
            **arguments,
        }
        return await cell.ask(Method.CREATE_PAYMENT, PARTNER, command_id=command_id, budget_ms=budget_ms, **said)

    async def payments(self, cell: OpenCell) -> list[str]:
        answer = await cell.ask(Method.LIST_PAYMENTS, PARTNER, limit=100)
        assert isinstance(answer, Answer), answer
        return [payment["id"] for payment in orjson.loads(answer.body)["data"]]

    def again(self, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        """Start the control plane anew, over what it wrote down."""
        self.doors.left = asyncio.Event()
        self.moves = self._moves(now_ms)

    def _moves(self, now_ms: Callable[[], int]) -> Moves:
        async def publish() -> None:
            self.published.append(self.registry.partner(PARTNER).cell)

        doors = DoorMoves(self.doors)
        return Moves(
            self.registry, doors, publish, lambda: DIRECTORY_VERSION, to_profile, lambda: self.places, now_ms=now_ms
        )


@contextlib.asynccontextmanager
async def installed_at(
    tmp_path: Path,
    clusters: list[StandInCluster],
    places: dict[str, dict[str, Any]] | None = None,
    spares: int = 1,
) -> AsyncIterator[Installed]:
    """Give a cell for each cluster, whose books stand in folders of their own or at the places given."""
    cells = {}
    for index, cluster in enumerate(clusters):
        folder = tmp_path / f"cell-{index}"
        folder.mkdir()
        cells[f"cell-{index}"] = OpenCell(folder, cluster, f"cell-{index}")
        # Nobody is at the acquirer's address: a breaker would turn payments away, and these are to be written.
        cells[f"cell-{index}"].bulkheads_off = {Bulkhead.BREAKER}
        if places is not None:
            cells[f"cell-{index}"].place = places[f"cell-{index}"]
        await cells[f"cell-{index}"].open(spares)
    places = {name: cell.place for name, cell in cells.items()}
    shelf = SqliteShelf(tmp_path)
    await shelf.create("control")
    registry = await Registry.open(await shelf.open("control"), "here", audit_key=b"k" * 32, new=True)
    made = Installed(cells, registry, TwoDoors(cells), None, [], tmp_path, places)  # type: ignore[arg-type]
    made.again()
    yield made
    await made.moves.stop()
    for cell in cells.values():
        await cell.close()
    await registry.close()


async def rows(cell: OpenCell) -> dict[Any, bytes]:
    store = await SqliteShelf(cell.folder).open("partners", PARTNER)
    try:
        (page,) = (await store.read([], [Range(("",), (keyspace.LAST,), 1_000)])).ranges
    finally:
        await store.close()
    return {row.key: row.value for row in page if row.key not in (keyspace.ARRIVAL, keyspace.MOVED)}


async def told_pause_ms(installed: Installed) -> int | None:
    (ended, *_) = await installed.registry.changes(PARTNER)
    pause_ms: int | None = ended.detail["pause_ms"]
    return pause_ms


async def lose() -> None:
    raise CopyLostError("as the test ordered")
