"""Floods at real router processes: bad keys reach no cell and harm no bystander; a 429 is known to the other router."""

import asyncio
import collections
import copy
import functools
import secrets
import shutil
import statistics
import time
from pathlib import Path

import pytest

from cells.api.messages import Refusal, RefusalCode, Refused
from router import limits
from tests.integration.test_router import BODY, RATE, Installation, free_port, installed, until
from tests.integration.test_spreading import Server

SECONDS = 6


def bad_keys() -> dict[str, str | None]:
    return {
        "none": None,
        "malformed": "Bearer x",
        "unknown partner": f"Bearer sk_test_nobody_{secrets.token_urlsafe(32)}",
        "wrong key": f"Bearer sk_test_acme_{secrets.token_urlsafe(32)}",
    }


async def flood(made: Installation, header: str | None, ends: float) -> collections.Counter[str]:
    told: collections.Counter[str] = collections.Counter()
    headers = {} if header is None else {"authorization": header}
    async with made.client() as client:
        while time.monotonic() < ends:
            answer = await client.post("/v1/payments", json=BODY, headers=headers)
            told[f"{answer.status_code} {answer.json()['code']}"] += 1
    return told


async def test_a_flood_of_bad_keys_reaches_no_cell_and_harms_no_bystander(tmp_path: Path) -> None:
    async with installed(tmp_path) as made, made.client("acme") as bystander:
        ends = time.monotonic() + SECONDS
        floods = [asyncio.create_task(flood(made, header, ends)) for header in bad_keys().values()]
        latencies_ms = []
        while time.monotonic() < ends:
            began = time.monotonic()
            assert (await bystander.post("/v1/payments", json=BODY)).status_code == 200
            latencies_ms.append((time.monotonic() - began) * 1_000)
            await asyncio.sleep(0.05)
        told: collections.Counter[str] = collections.Counter()
        for each in await asyncio.gather(*floods):
            told += each
        assert set(told) == {"401 unauthorized", "429 too_many_failed_authentications"}
        assert told["401 unauthorized"] == limits.FAILED_AUTHENTICATIONS_MAX
        assert len(made.door.asked) == len(latencies_ms) > SECONDS * 2, "the cell was asked by the bystander only"
        assert statistics.median(latencies_ms) < 1_000
        limited = told["429 too_many_failed_authentications"]
        counted = await turned_away(made)
        assert limited * 0.9 < counted <= limited, "past the bound next to none of them was made a request of"
        async with made.client("busy") as another:
            assert (await another.post("/v1/payments", json=BODY)).status_code == 200, "a good key, seen first now"


async def turned_away(router: Installation) -> float:
    """Give how many the router answered before it made a request of them."""
    for sample in await router.metrics("bulkhead_router_requests_total"):
        if sample.labels["route"] == "turned_away":
            assert sample.labels == {"method": "POST", "route": "turned_away", "status": "429"}
            return float(sample.value)
    return 0.0


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="there is no redis-server here")
async def test_what_is_learned_at_one_router_is_answered_from_memory_at_the_other(tmp_path: Path) -> None:
    server = Server()
    server.start()
    try:
        async with installed(tmp_path) as one:
            one.more_settings = {"redis_url": server.url()}
            await one.stop()
            await one.start()
            other = copy.copy(one)  # another router over the same directory and doors
            other.process, other.port, other.metrics_port = None, free_port(), free_port()
            other.more_settings = {**one.more_settings, "data_folder": str(tmp_path / "routers" / "router-1")}
            await other.start()
            try:
                await connected(one, other)
                one.door.reply = Refused(Refusal(RefusalCode.RATE_LIMITED, "Slower.", retry_after_ms=5_000), RATE)
                assert await paid(one) == 429
                await asyncio.sleep(0.2)
                asked = len(one.door.asked)
                assert [await paid(router) for router in (other, one, other)] == [429] * 3
                assert len(one.door.asked) == asked == 1, "no cell was asked again"
                server.kill()
                await asyncio.sleep(1.2)
                for router in (one, other):
                    before = len(one.door.asked)
                    async with router.client("acme") as client:  # one for all: what is remembered is so for a second
                        answers = [await client.post("/v1/payments", json=BODY) for _ in range(3)]
                    assert [answer.status_code for answer in answers] == [429] * 3
                    assert len(one.door.asked) == before + 1, "without Redis each learns by itself"
            finally:
                await other.stop()
    finally:
        server.kill()


async def paid(made: Installation) -> int:
    async with made.client("acme") as client:
        return (await client.post("/v1/payments", json=BODY)).status_code


async def connected(*routers: Installation) -> None:
    for router in routers:
        await until(functools.partial(is_connected, router), 10)


async def is_connected(router: Installation) -> bool:
    return await router.metric("bulkhead_router_redis_connected") == 1
