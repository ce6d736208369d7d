"""A partner is erased at its door over real worker processes: nothing of it is left, whatever ends in between."""

import asyncio

import msgpack
import pytest

from actors.errors import StoreUnavailableError
from cells.api import messages
from cells.api.connection import Request
from cells.api.messages import Answer, Method, RefusalCode, Refused
from stores.sqlite_shelf import SqliteShelf
from tests.unit.cells.open_cell import BUDGET_MS, OpenCell, code


async def erase(cell: OpenCell, partner_id: str, version: int = 2, role: str = "control") -> Answer | Refused:
    body = msgpack.packb({"profile_version": version})
    return messages.decode_answer(
        await cell.door.handle(Request(role, Method.ERASE_PARTNER, partner_id, BUDGET_MS, body))
    )


async def close_partner(cell: OpenCell, partner_id: str) -> None:
    profile = {"partner_id": partner_id, "version": 2, "status": "suspended"}
    assert isinstance(await cell.control(Method.CONFIGURE, {"profile": profile}), Answer)


def books(cell: OpenCell) -> list[str]:
    return sorted(path.name for path in (cell.folder / "partners").iterdir())


async def test_a_partner_that_is_closing_is_erased_and_its_mates_are_not(cell: OpenCell) -> None:
    await cell.onboard("alpha", "beta")
    assert code(await erase(cell, "alpha")) is RefusalCode.PARTNER_UNAVAILABLE, "an active one is never erased"
    await close_partner(cell, "alpha")
    assert code(await erase(cell, "alpha", version=1)) is RefusalCode.PARTNER_UNAVAILABLE
    assert code(await erase(cell, "alpha", role="router")) is RefusalCode.INTERNAL_ERROR
    before = [name for name in books(cell) if name.startswith("alpha")]
    assert before
    for _ in range(2):  # done again, it is done already
        assert isinstance(await erase(cell, "alpha"), Answer)
    assert not [name for name in books(cell) if name.startswith("alpha")]
    status = await cell.status()
    assert [partner["partner"] for partner in status["partners"]] == ["beta"]
    assert not [worker for worker in status["workers"] if "alpha" in worker["partners"]]
    assert code(await cell.ask(Method.GET_BALANCE, "alpha")) is RefusalCode.PARTNER_MOVED
    assert isinstance(await cell.ask(Method.GET_BALANCE, "beta"), Answer)


async def test_its_actor_counts_what_is_open(cell: OpenCell) -> None:
    await cell.onboard("alpha")
    answer = await cell.ask(Method.COUNT_OPEN, "alpha", role="control")
    assert isinstance(answer, Answer)
    assert code(await cell.ask(Method.COUNT_OPEN, "alpha")) is RefusalCode.INTERNAL_ERROR, "it is no partner's affair"


async def test_a_door_that_ends_in_the_middle_is_asked_again(cell: OpenCell, monkeypatch: pytest.MonkeyPatch) -> None:
    await cell.onboard("alpha", "beta")
    await close_partner(cell, "alpha")

    async def away(*_: object) -> None:
        raise StoreUnavailableError("the disk is away")

    with monkeypatch.context() as patched:
        patched.setattr(SqliteShelf, "erase", away)
        assert code(await erase(cell, "alpha")) is RefusalCode.PARTNER_UNAVAILABLE
    assert [name for name in books(cell) if name.startswith("alpha")]
    await cell.close()
    await cell.open(spares=1)
    assert [partner["partner"] for partner in (await cell.status())["partners"]] == ["beta"]
    assert isinstance(await erase(cell, "alpha"), Answer)
    assert not [name for name in books(cell) if name.startswith("alpha")]


async def test_one_whose_worker_is_lost_or_stopped_is_erased_all_the_same(cell: OpenCell) -> None:
    await cell.onboard("alpha")
    await close_partner(cell, "alpha")
    link = cell.link("alpha")
    cell.workforce.bury(link, "test")
    reading = asyncio.create_task(cell.ask(Method.GET_BALANCE, "alpha"))
    await asyncio.sleep(0)
    assert isinstance(await erase(cell, "alpha"), Answer)
    await asyncio.wait_for(reading, BUDGET_MS / 1_000)
    assert not [name for name in books(cell) if name.startswith("alpha")]
