"""Real processes whose wall clock really jumps by an hour, forward and back: a worker's, and a router's."""

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import orjson
import pytest

from actors import codec, keyspace
from actors.store import Range
from cells.api.messages import Answer, Method, Refusal, RefusalCode, Refused
from cells.audit import audit_cell
from router import directory
from stores.sqlite_shelf import SqliteShelf
from stores.sqlite_store import SqliteStore
from tests.acquirer_process import AcquirerProcess, start_acquirer
from tests.eventually import eventually
from tests.fake_time import FakeTime
from tests.integration.test_router import BODY, CREATED, RATE, Installation, is_problem
from tests.stand_in_cluster import StandInCluster, WorkerMaker
from tests.unit.cells.open_cell import OpenCell, opened

HOUR_S: Final = 3_600
# Forward, right, forward, two hours back: as seconds off the right time.
JUMPS: Final = (HOUR_S, 0, HOUR_S, -HOUR_S)
# Longer than the door waits for a silent worker, so that a wrong accusation would be seen.
WATCHED_S: Final = 1.8


@pytest.fixture
def clock(tmp_path: Path) -> FakeTime:
    return FakeTime(tmp_path)


@pytest.fixture
def acquirer(tmp_path: Path) -> Iterator[AcquirerProcess]:
    with start_acquirer(tmp_path / "acquirer") as running:
        yield running


@pytest.fixture
def cluster(tmp_path: Path, clock: FakeTime) -> Iterator[StandInCluster]:
    """Workers whose clock is the test's; the door, the acquirer and the test have the right time."""
    maker = WorkerMaker(tmp_path / "errors", clock.environment)
    stand_in = StandInCluster(maker)
    yield stand_in
    stand_in.end()
    maker.end()


async def pay(cell: OpenCell, command_id: str, **changes: Any) -> dict[str, Any]:
    fields = {"amount": 100, "currency": "EUR", "payment_method": "tok_approve", "capture_method": "automatic"}
    answer = await cell.ask(Method.CREATE_PAYMENT, "alpha", command_id=command_id, **(fields | changes))
    assert isinstance(answer, Answer), answer
    payment: dict[str, Any] = orjson.loads(answer.body)
    return payment


@pytest.mark.timeout(120)
async def test_a_worker_s_clock_jumps(
    tmp_path: Path, clock: FakeTime, cluster: StandInCluster, acquirer: AcquirerProcess
) -> None:
    (tmp_path / "cell").mkdir()
    async with opened(tmp_path / "cell", cluster) as cell:
        profile = {
            "partner_id": "alpha",
            "version": 1,
            "acquirer_url": acquirer.url,
            "rate_per_second": 20,
            "rate_burst": 20,
        }
        assert isinstance(await cell.control(Method.ONBOARD, {"profile": profile}), Answer)
        held = await pay(cell, "held", capture_method="manual")
        paid = [await pay(cell, "first")]
        for number, offset_s in enumerate(JUMPS):
            clock.set_offset_s(offset_s)
            command_id = f"jump{number}"
            paid.append(await pay(cell, command_id))
            assert await pay(cell, command_id) == paid[-1], "its command gives its answer again"
            ahead_s = (datetime.fromisoformat(paid[-1]["created_at"]) - datetime.now(UTC)).total_seconds()
            assert abs(ahead_s - HOUR_S) < 30, "the first jump was taken over, and none after it"
            while isinstance(await spend(cell, f"{number}"), Answer):
                pass
            await asyncio.sleep(WATCHED_S)
            paid.append(await pay(cell, f"after{number}"))
        assert (await cell.partner("alpha"))["takeovers"] == 0, "heartbeats know no wall clock"
        # The next owner's clock is an hour late: it begins where the last one ended.
        os.kill(cell.link("alpha").endpoint.pid, signal.SIGKILL)
        await eventually(lambda: cell.door._seats["alpha"].takeovers == 1)
        paid.append(await pay(cell, "taken over"))
        assert [p["id"] for p in paid] == sorted(p["id"] for p in paid)
        assert [p["created_at"] for p in paid] == sorted(p["created_at"] for p in paid)
        captured = await cell.ask(Method.CAPTURE_PAYMENT, "alpha", command_id="capture", payment_id=held["id"])
        assert isinstance(captured, Answer), "an authorization of days does not end by hours"
        assert orjson.loads(captured.body)["status"] == "captured"
    store = await SqliteStore.open(tmp_path / "cell" / "partners" / "alpha.sqlite")
    rows = (await store.read((), [Range(("journal",), keyspace.journal(keyspace.LAST_NUMBER), 1_000)])).ranges[0]
    await store.close()
    entries = [codec.decode_entry(row.value) for row in rows]
    assert [entry.sequence for entry in entries] == list(range(1, len(entries) + 1))
    assert all(before.at_ms <= after.at_ms for before, after in itertools.pairwise(entries))
    report = await audit_cell(SqliteShelf(tmp_path / "cell"), acquirer.url)
    assert report["ok"], report


async def spend(cell: OpenCell, name: str) -> Answer | Refused:
    """Ask for something that is charged to the rate limit and needs no acquirer's time."""
    fields = {"amount": 0, "currency": "EUR", "payment_method": "tok_approve", "capture_method": "automatic"}
    return await cell.ask(Method.CREATE_PAYMENT, "alpha", command_id=f"spend{name}{time.monotonic_ns()}", **fields)


@pytest.mark.timeout(60)
async def test_a_router_s_clock_jumps(tmp_path: Path, clock: FakeTime) -> None:
    """A key's end is judged by the router's wall clock, so it comes early or late by the jump; nothing else is."""
    made = Installation(tmp_path)
    made.environment = clock.environment
    now = datetime.now(UTC)
    try:
        for door in made.doors.values():
            await door.start()
        keys = [
            {
                "id": f"key_{name}",
                "hash": directory.hash_key(made.pepper, made.keys[name]),
                "hint": made.keys[name][-4:],
                "created_at": CREATED,
                "expires_at": None if minutes is None else (now + timedelta(minutes=minutes)).isoformat(),
            }
            for name, minutes in (("globex", None), ("acme", 30), ("busy", -30))
        ]
        made.publish(globex={"keys": [keys[0]]}, acme={"keys": [keys[1]]}, busy={"keys": [keys[2]]})
        await made.start()
        expected = {0: (201, 201, 401), HOUR_S: (201, 401, 401), -HOUR_S: (201, 201, 201)}
        for door in made.doors.values():
            door.reply = Answer(201, b"{}", rate=RATE)
        for offset_s in (0, *JUMPS, 0):
            clock.set_offset_s(offset_s)
            found = []
            for name in ("globex", "acme", "busy"):
                async with made.client(name) as client:
                    found.append((await client.post("/v1/payments", json=BODY)).status_code)
            assert tuple(found) == expected[offset_s], offset_s
        # A 429 is remembered by the monotonic clock: an hour on the wall neither ends it nor makes it last.
        made.doors["cell-1"].reply = Refused(Refusal(RefusalCode.RATE_LIMITED, "Slower.", retry_after_ms=900), RATE)
        async with made.client("globex") as client:
            is_problem(await client.post("/v1/payments", json=BODY), 429, "rate_limited")
            made.doors["cell-1"].reply = Answer(201, b"{}", rate=RATE)
            clock.set_offset_s(HOUR_S)
            is_problem(await client.post("/v1/payments", json=BODY), 429, "rate_limited")
            clock.set_offset_s(-HOUR_S)
            await asyncio.sleep(1.1)
            assert (await client.post("/v1/payments", json=BODY)).status_code == 201
        assert await made.metric("bulkhead_router_directory_age_seconds") < 10, (
            "the directory's age knows no wall clock"
        )
    finally:
        await made.stop()
        for door in made.doors.values():
            await door.stop()
