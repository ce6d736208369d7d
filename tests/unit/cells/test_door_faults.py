"""Faults on order, bulkheads that are off, leaks and overload at a door, over real worker processes."""

import asyncio
import time
from pathlib import Path

import pytest

from cells import limits as cell_limits
from cells.api import limits
from cells.api.bulkheads import Bulkhead
from cells.api.messages import Method, RefusalCode, Refused
from cells.shedding import Work, bounds
from tests.eventually import eventually
from tests.stand_in_cluster import StandInCluster
from tests.unit.cells.open_cell import NEWS, OpenCell, code, order, weakened


async def test_a_crash_on_order_is_a_deadly_command(tmp_path: Path, cluster: StandInCluster) -> None:
    async with weakened(tmp_path, cluster) as cell:
        await cell.onboard("alpha", "beta")
        assert code(await order(cell, "alpha", "crash", "deadly")) is RefusalCode.COMMAND_QUARANTINED
        assert (await cell.partner("alpha"))["takeovers"] == limits.POISON_DEATHS_MAX
        assert (await cell.partner("beta"))["takeovers"] == 0
        assert code(await cell.write("alpha", "next")) is RefusalCode.PAYMENT_NOT_FOUND


async def test_a_loop_on_order_is_found_and_its_partner_taken_over(tmp_path: Path, cluster: StandInCluster) -> None:
    async with weakened(tmp_path, cluster) as cell:
        await cell.onboard("alpha", "beta")
        looping = asyncio.create_task(order(cell, "alpha", "loop", "deadly"))
        await eventually(lambda: cell.door._seats["alpha"].takeovers == 1, 10)
        await cell.serves("beta")
        assert code(await looping) is RefusalCode.COMMAND_QUARANTINED
        assert (await cell.partner("beta"))["takeovers"] == 0


async def test_without_fault_injection_the_key_is_plain_metadata(cell: OpenCell) -> None:
    await cell.onboard("alpha")
    assert code(await order(cell, "alpha", "crash", "c1")) is RefusalCode.CURRENCY_UNKNOWN
    assert (await cell.partner("alpha"))["takeovers"] == 0


async def test_without_its_bulkhead_a_poison_command_goes_on_killing(tmp_path: Path, cluster: StandInCluster) -> None:
    async with weakened(tmp_path, cluster, Bulkhead.POISON) as cell:
        await cell.onboard("alpha")
        for times in (1, 2):
            assert code(await order(cell, "alpha", "crash", "deadly")) is RefusalCode.OUTCOME_UNKNOWN
            assert (await cell.partner("alpha"))["takeovers"] == times * limits.COMMAND_SENDS_MAX


async def test_without_its_bulkhead_a_partner_may_take_the_whole_door(
    tmp_path: Path, cluster: StandInCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DOOR_PARTNER_COMMANDS_MAX", 0)
    monkeypatch.setattr(limits, "DOOR_PARTNER_NOTIFICATIONS_MAX", 0)
    async with weakened(tmp_path, cluster, Bulkhead.PARTNER_SHARE) as cell:
        await cell.onboard("alpha")
        assert code(await cell.write("alpha", "c1")) is RefusalCode.PAYMENT_NOT_FOUND
        assert code(await cell.ask(Method.NOTIFY_RESULT, "alpha", **NEWS)) is RefusalCode.PAYMENT_NOT_FOUND


@pytest.mark.parametrize("off", [set(), {Bulkhead.WORKER_MEMORY}])
async def test_a_leaking_worker_is_ended_and_its_partner_taken_over(
    tmp_path: Path, cluster: StandInCluster, monkeypatch: pytest.MonkeyPatch, off: set[Bulkhead]
) -> None:
    monkeypatch.setattr(cell_limits, "WORKER_RESIDENT_BYTES_MAX", 250_000_000)
    async with weakened(tmp_path, cluster, *off) as cell:
        await cell.onboard("alpha", "beta")
        link = cell.link("alpha")
        answered = code(await order(cell, "alpha", "leak:250", "c1"))
        # A beat may come before the answer, on a machine that has much to do; then it is sent again, and leaks again.
        ended_before = set() if off else {RefusalCode.OUTCOME_UNKNOWN, RefusalCode.COMMAND_QUARANTINED}
        assert answered in {RefusalCode.CURRENCY_UNKNOWN} | ended_before
        await eventually(lambda: link.heartbeat.resident_bytes > 250_000_000 or link.name not in cell.workforce.links)
        if off:
            await asyncio.sleep(2 * limits.HEARTBEAT_INTERVAL_MS / 1_000)
            assert link.name in cell.workforce.links
            return
        await eventually(lambda: cell.door._seats["alpha"].takeovers >= 1)
        began = time.monotonic()
        await cell.serves("alpha")
        assert time.monotonic() - began < 1
        assert (await cell.partner("beta"))["takeovers"] == 0


async def test_what_leaks_faster_than_hearts_beat_dies_at_its_bound_while_its_command_is_marked(
    tmp_path: Path, cluster: StandInCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell_limits, "WORKER_RESIDENT_BYTES_MAX", 1 << 40)  # the door looks on
    async with weakened(tmp_path, cluster) as cell:
        await cell.onboard("alpha", "beta")
        much = cell_limits.WORKER_DATA_BYTES_MAX // 1_048_576 + 100
        assert code(await order(cell, "alpha", f"leak:{much}", "deadly")) is RefusalCode.COMMAND_QUARANTINED
        assert (await cell.partner("alpha"))["takeovers"] == limits.POISON_DEATHS_MAX
        assert (await cell.partner("beta"))["takeovers"] == 0
        assert code(await cell.write("alpha", "next")) is RefusalCode.PAYMENT_NOT_FOUND


@pytest.mark.parametrize(
    ("fault", "answered"),
    [
        (f"files:{cell_limits.WORKER_FILES_MAX}", RefusalCode.INTERNAL_ERROR),
        (f"threads:{cell_limits.WORKER_THREADS_MAX + 1}", RefusalCode.CURRENCY_UNKNOWN),
    ],
)
async def test_a_worker_without_files_or_with_too_many_threads_is_ended_and_its_partner_taken_over(
    tmp_path: Path, cluster: StandInCluster, fault: str, answered: RefusalCode
) -> None:
    async with weakened(tmp_path, cluster) as cell:
        await cell.onboard("alpha", "beta")
        # Or a beat comes while the command is still at it: then it has ended its worker.
        assert code(await order(cell, "alpha", fault, "c1")) in {answered, RefusalCode.COMMAND_QUARANTINED}
        await eventually(lambda: cell.door._seats["alpha"].takeovers >= 1)
        await cell.serves("alpha")
        assert (await cell.partner("beta"))["takeovers"] == 0


async def test_a_full_cell_sheds_reads_then_payments_then_the_rest_before_anything_is_sent(cell: OpenCell) -> None:
    await cell.onboard("acme")
    shedder = cell.door._shedder
    shed = RefusalCode.CELL_OVERLOADED
    for work, refused in zip(Work, ({"read"}, {"read", "new"}, {"read", "new", "capture"}), strict=True):
        while shedder.under_way < bounds(cell_limits.DOOR_COMMANDS_MAX)[work].within_share:
            assert shedder.enter(f"other{shedder.under_way}", Work.FOLLOW_UP)
        asked = {
            "read": await cell.ask(Method.GET_BALANCE, "acme"),
            "new": await cell.ask(Method.CREATE_PAYMENT, "acme", command_id=f"new-{work}"),
            "capture": await cell.write("acme", f"capture-{work}"),
        }
        found = {
            name
            for name, answer in asked.items()
            if isinstance(answer, Refused) and answer.refusal.code is shed and answer.refusal.retry_after_ms
        }
        assert found == refused
