"""A door over real worker processes, without Ray: what tests of a cell share."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgpack
import orjson

from actors.store import Store
from cells.api import frames, messages
from cells.api.bulkheads import Bulkhead
from cells.api.connection import Request
from cells.api.messages import Answer, Command, Method, RefusalCode, Refused
from cells.cell_book import open_book
from cells.door import Door
from cells.workforce import Link, Workforce
from stores.shelf import Shelf, open_shelf
from tests.stand_in_cluster import StandInCluster

SECRET = b"s" * 32
ACQUIRER_URL = "http://127.0.0.1:9"  # nobody is there; no test here gets that far
BUDGET_MS = 8_000
# What an acquirer tells of an operation that nobody knows.
NEWS = {
    "notification_id": "msg_1",
    "operation_id": "op_1",
    "original_id": None,
    "result": "approved",
    "reference": "ref",
    "expires_ms": None,
}


class OpenCell:
    """A door with its workforce, asked as a router or the control plane would ask it."""

    def __init__(self, folder: Path, cluster: StandInCluster, name: str = "cell-0") -> None:
        self.folder = folder
        self.name = name
        self.cluster = cluster
        self.superseded = asyncio.Event()
        self.broken: list[str] = []
        self.door: Door
        self.workforce: Workforce
        self._book: Store
        self._shelf: Shelf
        self.place: dict[str, Any] = {"store": "sqlite", "folder": str(folder)}
        self.bulkheads_off: set[Bulkhead] = set()
        self.fault_injection = False

    async def open(self, spares: int) -> None:
        self._shelf = open_shelf(self.place)
        self._book = await open_book(self._shelf)
        self.door = Door(
            self.name,
            self._shelf,
            self._book,
            {"main": ACQUIRER_URL},
            self.superseded.set,
            bulkheads_off=self.bulkheads_off,
        )
        await self.door.open()
        (self.folder / "secret").write_bytes(SECRET)
        self.workforce = Workforce(
            cell=self.name,
            host="127.0.0.1",
            folder=self.folder,
            logs_folder=self.folder,
            secret_file=self.folder / "secret",
            place=self.place,
            key=frames.role_key(SECRET, "door"),
            cluster=self.cluster,
            spares=spares,
            on_dead=self.door.worker_died,
            on_late=self.door.confirm,
            on_broken=self.broken.append,
            fault_injection=self.fault_injection,
            bulkheads_off=self.bulkheads_off,
        )
        await self.door.staff(self.workforce)

    async def close(self) -> None:
        """End as a killed door does: whatever it had begun stops, its workers live on."""
        if self.door._confirming is not None:
            self.door._confirming.cancel()
            await asyncio.gather(self.door._confirming, return_exceptions=True)
        await self.door.stop()
        await self.workforce.stop()
        await self._book.close()

    async def ask(
        self,
        method: str,
        partner_id: str,
        *,
        command_id: str = "c1",
        budget_ms: int = BUDGET_MS,
        role: str = "router",
        **arguments: Any,
    ) -> Answer | Refused:
        body = messages.encode_command(Command(command_id, "r1", arguments))
        return messages.decode_answer(await self.door.handle(Request(role, method, partner_id, budget_ms, body)))

    async def write(self, partner_id: str, command_id: str, budget_ms: int = BUDGET_MS) -> Answer | Refused:
        """Have the partner's actor decide something that needs no acquirer."""
        return await self.ask(
            Method.VOID_PAYMENT, partner_id, command_id=command_id, budget_ms=budget_ms, payment_id="pay_none"
        )

    async def control(self, method: str, body: dict[str, Any], role: str = "control") -> Answer | Refused:
        request = Request(role, method, "", BUDGET_MS, msgpack.packb(body))
        return messages.decode_answer(await self.door.handle(request))

    async def onboard(self, *partner_ids: str) -> None:
        for partner_id in partner_ids:
            answer = await self.control(Method.ONBOARD, {"profile": {"partner_id": partner_id, "version": 1}})
            assert isinstance(answer, Answer), answer

    async def status(self) -> dict[str, Any]:
        answer = await self.control(Method.CELL_STATUS, {})
        assert isinstance(answer, Answer)
        status = orjson.loads(answer.body)
        assert isinstance(status, dict)
        return status

    async def partner(self, partner_id: str) -> dict[str, Any]:
        (found,) = [partner for partner in (await self.status())["partners"] if partner["partner"] == partner_id]
        assert isinstance(found, dict)
        return found

    def link(self, partner_id: str) -> Link:
        link = self.door._seats[partner_id].link
        assert link is not None
        return link

    def book(self, partner_id: str) -> Path:
        return self.folder / "partners" / f"{partner_id}.sqlite"

    async def serves(self, partner_id: str) -> None:
        assert isinstance(await self.ask(Method.GET_BALANCE, partner_id), Answer)


@contextlib.asynccontextmanager
async def opened(folder: Path, cluster: StandInCluster, spares: int = 1) -> AsyncIterator[OpenCell]:
    cell = OpenCell(folder, cluster)
    await cell.open(spares)
    try:
        yield cell
    finally:
        await cell.close()


def code(answer: Answer | Refused) -> RefusalCode:
    assert isinstance(answer, Refused), answer
    return answer.refusal.code


@contextlib.asynccontextmanager
async def weakened(folder: Path, cluster: StandInCluster, *off: Bulkhead) -> AsyncIterator[OpenCell]:
    cell = OpenCell(folder, cluster)
    cell.fault_injection, cell.bulkheads_off = True, set(off)
    await cell.open(spares=1)
    try:
        yield cell
    finally:
        await cell.close()


async def order(cell: OpenCell, partner_id: str, fault: str, command_id: str) -> Answer | Refused:
    return await cell.ask(
        Method.CREATE_PAYMENT,
        partner_id,
        command_id=command_id,
        amount=100,
        currency="XAU",  # refused as it is decided, so that no acquirer is needed
        payment_method="tok",
        capture_method="automatic",
        metadata={"bulkhead_fault": fault},
    )
