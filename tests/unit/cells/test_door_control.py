"""What the control plane asks of a door, over real worker processes: profiles in, status out."""

import asyncio
from pathlib import Path
from typing import Any

import msgpack
import orjson
import pytest

from actors.store import Put
from cells.api import messages
from cells.api.connection import Connection, PeerLostError
from cells.api.messages import Answer, Method, Profile, RefusalCode
from stores.sqlite_shelf import SqliteShelf
from stores.sqlite_store import SqliteStore
from tests.eventually import eventually
from tests.stand_in_cluster import StandInCluster
from tests.unit.cells.open_cell import BUDGET_MS, OpenCell, code, opened


@pytest.mark.parametrize(
    "method",
    [
        Method.ONBOARD,
        Method.CONFIGURE,
        Method.CELL_STATUS,
        Method.RESOLVE_OPERATION,
        Method.RECONCILE_OPERATIONS,
        Method.RECORD_CHANGE,
        Method.COMPARE_SETTLEMENT,
        Method.LIST_UNRECONCILED,
        Method.ASSIGN,
    ],
)
async def test_a_router_may_not_do_what_is_the_control_plane_s(cell: OpenCell, method: str) -> None:
    answer = await cell.control(method, {"profile": {"partner_id": "alpha", "version": 1}}, role="router")
    assert code(answer) is RefusalCode.INTERNAL_ERROR
    assert cell.door._seats == {}
    assert list(cell.folder.glob("partners/*")) == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"profile": None},
        {"profile": {"version": 1}},
        {"profile": {"partner_id": "../escaped", "version": 1}},
        {"profile": {"partner_id": "", "version": 1}},
        {"profile": {"partner_id": "Alpha", "version": 1}},
        {"profile": {"partner_id": "a" * 41, "version": 1}},
        {"profile": {"partner_id": "alpha\n", "version": 1}},
    ],
)
@pytest.mark.parametrize("method", [Method.ONBOARD, Method.CONFIGURE])
async def test_what_is_no_profile_is_answered_and_makes_nothing(
    cell: OpenCell, method: str, body: dict[str, Any]
) -> None:
    assert code(await cell.control(method, body)) is RefusalCode.INTERNAL_ERROR
    assert list(cell.folder.glob("partners/*")) == []


async def test_onboarding_twice_at_once_makes_one_seat(cell: OpenCell) -> None:
    await asyncio.gather(*(cell.onboard("alpha") for _ in range(4)))
    status = await cell.status()
    assert [worker["partners"] for worker in status["workers"] if worker["partners"]] == [["alpha"]]
    assert (await cell.partner("alpha"))["epoch"] == 1


async def test_a_book_from_before_is_kept_at_onboarding(cell: OpenCell) -> None:
    await SqliteShelf(cell.folder).create("partners", "alpha")
    store = await SqliteStore.open(cell.book("alpha"))
    await store.acquire(0)
    await store.close()
    await cell.onboard("alpha")
    assert (await cell.partner("alpha"))["epoch"] == 2


async def test_a_profile_is_kept_and_handed_over_and_an_older_one_is_not(
    tmp_path: Path, cluster: StandInCluster
) -> None:
    async with opened(tmp_path, cluster) as cell:
        await cell.onboard("alpha")
        for version, status in ((3, "suspended"), (2, "active")):
            profile = messages.encode_profile(Profile("alpha", version, status=status))
            answer = await cell.control(Method.CONFIGURE, {"profile": profile})
            assert isinstance(answer, Answer)
            assert orjson.loads(answer.body)["profile_version"] == 3
        partner = await cell.partner("alpha")
        assert (partner["profile_version"], partner["status"]) == (3, "suspended")
        create: dict[str, Any] = {
            "amount": 1,
            "currency": "EUR",
            "payment_method": "tok",
            "capture_method": "automatic",
        }
        assert code(await cell.ask(Method.CREATE_PAYMENT, "alpha", **create)) is RefusalCode.PARTNER_SUSPENDED
        unknown = await cell.control(Method.CONFIGURE, {"profile": {"partner_id": "beta", "version": 1}})
        assert code(unknown) is RefusalCode.PARTNER_MOVED
    async with opened(tmp_path, cluster) as cell:
        assert (await cell.partner("alpha"))["profile_version"] == 3


@pytest.mark.parametrize(
    "kept",
    [
        b"\xc1",
        msgpack.packb([]),
        msgpack.packb({"partner_id": "alpha", "version": 4, "rate_per_second": 0}),
        msgpack.packb({"partner_id": "other", "version": 4}),
    ],
)
async def test_a_profile_that_can_t_be_read_costs_its_partner_s_writes_until_it_is_handed_over_again(
    tmp_path: Path, cluster: StandInCluster, kept: bytes
) -> None:
    async with opened(tmp_path, cluster) as cell:
        await cell.onboard("alpha", "beta")
        await cell._book.commit((), [Put(("partner", "alpha"), kept)])
    async with opened(tmp_path, cluster) as cell:
        await cell.serves("beta")
        partner = await cell.partner("alpha")
        assert (partner["profile_version"], partner["status"]) == (0, "suspended")
        await cell.control(Method.CONFIGURE, {"profile": {"partner_id": "alpha", "version": 1}})
        assert (await cell.partner("alpha"))["status"] == "active"
        assert code(await cell.write("alpha", "c1")) is RefusalCode.PAYMENT_NOT_FOUND


@pytest.mark.parametrize("method", [Method.ASSIGN, Method.CONFIGURE])
@pytest.mark.parametrize("body", [b"", b"\xc1", msgpack.packb([1]), msgpack.packb({"profile": 1}), msgpack.packb({})])
async def test_a_worker_answers_what_it_can_t_read_of_a_door(cell: OpenCell, method: str, body: bytes) -> None:
    await cell.onboard("alpha")
    connection = cell.link("alpha").connection
    answer = messages.decode_answer(await connection.request(method, "alpha", body, BUDGET_MS))
    assert code(answer) is RefusalCode.INTERNAL_ERROR
    await cell.serves("alpha")


async def test_a_profile_that_the_worker_missed_is_seen_and_handed_over_again(
    cell: OpenCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cell.onboard("alpha")
    request = Connection.request
    missed: list[str] = []

    async def misses(self: Connection, method: str, partner_id: str, body: bytes, budget_ms: int) -> bytes:
        if method == Method.CONFIGURE and not missed:
            missed.append(partner_id)
            raise PeerLostError("as the test ordered")
        return await request(self, method, partner_id, body, budget_ms)

    monkeypatch.setattr(Connection, "request", misses)
    profile = {"profile": {"partner_id": "alpha", "version": 2}}
    await cell.control(Method.CONFIGURE, profile)
    assert (await cell.partner("alpha"))["profile_version"] == 1
    await cell.control(Method.CONFIGURE, profile)
    assert (await cell.partner("alpha"))["profile_version"] == 2


async def test_status_tells_workers_partners_and_spares(cell: OpenCell) -> None:
    await cell.onboard("alpha", "beta")
    await eventually(lambda: any(cell.workforce.is_spare(link) for link in cell.workforce.links.values()))
    status = await cell.status()
    assert status["cell"] == "cell-0"
    assert status["door_epoch"] == 1
    assert [partner["partner"] for partner in status["partners"]] == ["alpha", "beta"]
    assert all(partner["breaker"] == "closed" and partner["state"] == "active" for partner in status["partners"])
    spares = [worker for worker in status["workers"] if worker["spare"]]
    assert [worker["partners"] for worker in spares] == [[]]
    assert all(worker["healthy"] for worker in status["workers"])
    assert {worker["pid"] for worker in status["workers"]} == {
        link.endpoint.pid for link in cell.workforce.links.values()
    }
