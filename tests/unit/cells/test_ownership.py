"""Pools, handovers and strikes over real worker processes, without Ray."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from cells import limits
from cells.api import limits as wire_limits
from cells.api import messages
from cells.api.connection import Request
from cells.api.messages import Answer, Method, RefusalCode, Refused
from tests.eventually import eventually, eventually_true
from tests.stand_in_cluster import StandInCluster
from tests.unit.cells.open_cell import OpenCell, code, opened, order, weakened
from tests.worker_process import POISON, STALL

MATES = ("beta", "gamma", "delta")


@pytest.fixture
async def cell(tmp_path: Path, cluster: StandInCluster) -> AsyncIterator[OpenCell]:
    async with opened(tmp_path, cluster, spares=2) as made:
        yield made


async def set_isolation(cell: OpenCell, partner_id: str, version: int, isolation: str) -> None:
    profile = {"partner_id": partner_id, "version": version, "isolation": isolation}
    method = Method.ONBOARD if version == 1 else Method.CONFIGURE
    assert isinstance(await cell.control(method, {"profile": profile}), Answer)


async def pool(cell: OpenCell, *partner_ids: str) -> None:
    for partner_id in partner_ids:
        await set_isolation(cell, partner_id, 1, "pooled")


async def release(cell: OpenCell, partner_id: str, *, to_pool: bool = False, role: str = "control") -> Any:
    body = msgpack.packb({"to_pool": to_pool})
    return messages.decode_answer(
        await cell.door.handle(Request(role, Method.RELEASE_PARTNER, partner_id, 5_000, body))
    )


async def test_pooled_partners_share_a_worker_and_others_have_their_own(cell: OpenCell) -> None:
    await pool(cell, "alpha", *MATES)
    await cell.onboard("epsilon")
    assert cell.link("alpha").partners == {"alpha", *MATES}
    assert cell.link("epsilon").partners == {"epsilon"}
    assert [worker["pool"] for worker in (await cell.status())["workers"] if worker["partners"]].count(True) == 1


async def test_a_full_pool_takes_no_more(cell: OpenCell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "POOL_PARTNERS_MAX", 2)
    await pool(cell, "alpha", *MATES)
    assert sorted(len(link.partners) for link in cell.workforce.links.values() if link.partners) == [2, 2]


async def test_a_pool_s_partners_go_to_one_worker_and_their_commands_wait(cell: OpenCell) -> None:
    await pool(cell, "alpha", *MATES)
    await eventually(lambda: sum(cell.workforce.is_spare(link) for link in cell.workforce.links.values()) == 2)
    lost = cell.link("alpha")
    began = time.monotonic()
    os.kill(lost.endpoint.pid, signal.SIGKILL)
    answers = await asyncio.gather(*(cell.write(name, f"c-{name}") for name in ("alpha", *MATES)))
    assert {code(answer) for answer in answers} == {RefusalCode.PAYMENT_NOT_FOUND}
    assert time.monotonic() - began < 1
    assert cell.link("alpha") is not lost
    assert cell.link("alpha").partners == {"alpha", *MATES}
    assert cell.link("alpha").is_pool


async def test_a_stopped_pool_is_taken_over_too(cell: OpenCell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_limits, "HEARTBEAT_TIMEOUT_MS", 600)
    await pool(cell, "alpha", *MATES)
    os.kill(cell.link("alpha").endpoint.pid, signal.SIGSTOP)
    answers = await asyncio.gather(*(cell.write(name, f"c-{name}") for name in ("alpha", *MATES)))
    assert {code(answer) for answer in answers} == {RefusalCode.PAYMENT_NOT_FOUND}


async def test_a_poison_costs_its_mates_one_delay_and_its_partner_the_pool(cell: OpenCell) -> None:
    await pool(cell, "alpha", *MATES)
    poison = asyncio.create_task(cell.write("alpha", f"{POISON}1"))
    mates = await asyncio.gather(*(cell.write(name, f"c-{name}") for name in MATES))
    assert {code(answer) for answer in mates} == {RefusalCode.PAYMENT_NOT_FOUND}
    assert code(await poison) is RefusalCode.COMMAND_QUARANTINED
    assert all(cell.door._seats[name].takeovers == 1 for name in MATES)
    await cell.serves("alpha")
    assert cell.link("alpha").partners == {"alpha"}
    assert (await cell.partner("alpha"))["escalation"]["kind"] == "dedicated"
    assert cell.link("beta").partners == set(MATES)


async def test_more_deaths_quarantine_until_an_operator_s_word_and_the_next_door_knows(
    tmp_path: Path, cluster: StandInCluster
) -> None:
    async with opened(tmp_path, cluster) as cell:
        await pool(cell, "alpha", *MATES)
        for number in range(2):
            assert code(await cell.write("alpha", f"{POISON}{number}")) in {
                RefusalCode.COMMAND_QUARANTINED,
                RefusalCode.OUTCOME_UNKNOWN,
            }
        assert (await cell.partner("alpha"))["state"] == "quarantined"
        await eventually(lambda: not any(t.get_name().startswith("keep-e") for t in cell.door._ownership._tasks))
    async with opened(tmp_path, cluster) as cell:
        for answer in (await cell.write("alpha", "c1"), await cell.ask(Method.GET_BALANCE, "alpha")):
            assert code(answer) is RefusalCode.PARTNER_QUARANTINED
            assert isinstance(answer, Refused)
            assert "workers were lost under its commands" in answer.refusal.detail
            assert answer.refusal.retry_after_ms == limits.QUARANTINE_RETRY_AFTER_MS
        assert cell.door._seats["alpha"].link is None
        for name in MATES:
            await cell.serves(name)
        assert code(await release(cell, "alpha", role="router")) is RefusalCode.INTERNAL_ERROR
        await release(cell, "alpha", to_pool=True)
        assert code(await cell.write("alpha", "c1")) is RefusalCode.PARTNER_QUARANTINED
        assert isinstance(await release(cell, "alpha"), Answer)
        await cell.serves("alpha")
        assert cell.link("alpha").partners == {"alpha"}
        assert isinstance(await release(cell, "alpha", to_pool=True), Answer)
        await eventually(lambda: cell.door._seats["alpha"].link is cell.link("beta"))


async def test_who_is_not_answered_leaves_the_pool_and_the_pool_lives(
    cell: OpenCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_limits, "UNANSWERED_MS_MIN", 10)
    await pool(cell, "alpha", *MATES)
    shared = cell.link("alpha")
    for number in range(wire_limits.UNANSWERED_IN_ROW_MAX):
        assert code(await cell.write("alpha", f"{STALL}{number}", 50)) is RefusalCode.OUTCOME_UNKNOWN
    await eventually(lambda: cell.link("alpha") is not shared if cell.door._seats["alpha"].link else False)
    assert shared.connection.is_open
    assert shared.partners == set(MATES)


async def test_who_leaks_slowly_in_a_pool_is_found_and_its_mates_are_not_struck(
    tmp_path: Path, cluster: StandInCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pool ends between two commands, or under a mate's. Alone it goes on to leak, and that harms nobody else."""
    monkeypatch.setattr(limits, "WORKER_RESIDENT_BYTES_MAX", 250_000_000)

    async def leak_until_it_is_taken_over(cell: OpenCell) -> None:
        seat = cell.door._seats["alpha"]
        takeovers = seat.takeovers
        for number in range(40):
            if seat.takeovers > takeovers:
                break
            await order(cell, "alpha", "leak:20", f"leak-{takeovers}-{number}")
            answers = await asyncio.gather(*(cell.write(name, f"c-{takeovers}-{number}-{name}") for name in MATES))
            assert {code(answer) for answer in answers} == {RefusalCode.PAYMENT_NOT_FOUND}
            await asyncio.sleep(0.05)
        assert seat.takeovers > takeovers
        for name in ("alpha", *MATES):
            await cell.serves(name)

    async with weakened(tmp_path, cluster) as cell:
        await pool(cell, "alpha", *MATES)
        await leak_until_it_is_taken_over(cell)
        assert cell.link("alpha").partners == {"alpha"}
        assert cell.link("beta").partners == set(MATES)
        assert (await cell.partner("alpha"))["escalation"] is None
        await leak_until_it_is_taken_over(cell)
        assert (await cell.partner("alpha"))["escalation"]["kind"] == "dedicated"
        for _ in range(limits.STRIKES_TO_QUARANTINE):
            await leak_until_it_is_taken_over(cell)
        assert (await cell.partner("alpha"))["state"] == "active"
        assert all(cell.door._seats[name].takeovers == 1 for name in MATES)


async def test_isolating_and_pooling_under_load_costs_no_error(cell: OpenCell) -> None:
    await pool(cell, "alpha", *MATES)
    ended = asyncio.Event()
    slowest = 0.0
    codes: set[RefusalCode] = set()

    async def load(client: int) -> None:
        nonlocal slowest
        number = 0
        while not ended.is_set():
            began = time.monotonic()
            codes.add(code(await cell.write("alpha", f"c-{client}-{number}")))
            slowest = max(slowest, time.monotonic() - began)
            number += 1

    clients = [asyncio.create_task(load(client)) for client in range(4)]
    for version, isolation in enumerate(["dedicated", "pooled", "dedicated", "pooled"], 2):
        handovers = cell.door._seats["alpha"].handovers
        await set_isolation(cell, "alpha", version, isolation)
        await eventually(lambda seen=handovers: cell.door._seats["alpha"].handovers == seen + 1)
        await eventually(lambda: cell.door._seats["alpha"].is_ready)
        assert cell.link("alpha").is_pool == (isolation == "pooled")
    ended.set()
    await asyncio.gather(*clients)
    assert codes == {RefusalCode.PAYMENT_NOT_FOUND}
    assert slowest < 1


@pytest.mark.parametrize("which", ["old", "target"])
async def test_a_worker_killed_in_the_middle_of_a_handover_costs_no_error(cell: OpenCell, which: str) -> None:
    await pool(cell, "alpha", *MATES)
    await eventually(lambda: sum(cell.workforce.is_spare(link) for link in cell.workforce.links.values()) == 2)
    seat, old = cell.door._seats["alpha"], cell.link("alpha")
    target = cell.workforce._spares[0]
    await set_isolation(cell, "alpha", 2, "dedicated")
    await eventually(lambda: seat.is_handed_over or seat.handovers > 0)
    os.kill((old if which == "old" else target).endpoint.pid, signal.SIGKILL)
    answers = await asyncio.gather(*(cell.write(name, f"c-{name}") for name in ("alpha", *MATES)))
    assert {code(answer) for answer in answers} == {RefusalCode.PAYMENT_NOT_FOUND}
    await eventually(lambda: seat.is_ready and not cell.link("alpha").is_pool)


async def test_the_next_door_finds_the_pool_and_ends_what_was_left_in_the_middle(
    tmp_path: Path, cluster: StandInCluster
) -> None:
    async with opened(tmp_path, cluster) as first:
        await pool(first, "alpha", *MATES)
        name = first.link("beta").name
        first.door._ownership._look = asyncio.Event()  # this door no longer hears that something is to be moved
        await set_isolation(first, "alpha", 2, "dedicated")
    async with opened(tmp_path, cluster) as second:
        assert second.link("beta").name == name
        await eventually_true(lambda: _is_apart(second, "alpha"), 10)
        assert second.link("beta").partners == set(MATES)


async def _is_apart(cell: OpenCell, partner_id: str) -> bool:
    link = cell.door._seats[partner_id].link
    return link is not None and link.partners == {partner_id}
