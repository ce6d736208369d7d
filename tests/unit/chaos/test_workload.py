"""A load's schedule is fixed in advance, its client hides no delay and repeats nothing unasked."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from aiohttp import web

from chaos import history, limits
from chaos.history import Call, Outcome
from chaos.workload import Load, PartnerLoad, Plan, is_left_open, means_again, repeat_unanswered, schedule

PLAN = Plan("run", "http://127.0.0.1:1", 7, 0, 60, (PartnerLoad("acme", "key", 4), PartnerLoad("globex", "key", 2)))
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def test_the_same_plan_gives_the_same_schedule_and_another_seed_another() -> None:
    assert schedule(PLAN) == schedule(PLAN)
    assert schedule(PLAN) != schedule(replace(PLAN, seed=8))


def test_a_schedule_keeps_to_its_rates_and_its_time() -> None:
    arrivals = schedule(replace(PLAN, seconds=2_000))
    assert all(0 <= arrival.at_s < 2_000 for arrival in arrivals)
    assert arrivals == sorted(arrivals, key=lambda arrival: arrival.at_s)
    counted = Counter(arrival.partner for arrival in arrivals)
    # Journeys make 2.17 calls on average; Poisson's deviation is about 2 % here.
    assert counted["acme"] == pytest.approx(2_000 * 4 / 2.17, rel=0.1)
    assert counted["globex"] == pytest.approx(2_000 * 2 / 2.17, rel=0.1)


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert runner.addresses
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def flood(base_url: str, *, seconds: float = 0.5, rate: float = 100) -> Plan:
    partners = (PartnerLoad("acme", "secret", rate),)
    return Plan("flood", base_url, 1, time.monotonic(), seconds, partners, "flood", 5_000)


def paid(request: bytes) -> web.Response:
    return web.json_response({"object": "payment", "status": "captured", **orjson.loads(request)}, status=201)


async def test_each_payment_has_an_amount_a_key_and_a_reference_of_its_own() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.headers["Authorization"] == "Bearer secret"
        return paid(await request.read())

    async with serving(answer) as base_url:
        calls = await Load(flood(base_url)).run()
    assert len(calls) > 20
    assert len({call.key for call in calls}) == len(calls)
    assert sorted(call.request()["amount"] for call in calls) == list(range(5_000, 5_000 + len(calls)))
    assert all(call.outcome == Outcome(201, "captured") for call in calls)


async def test_calls_go_out_on_time_while_nothing_is_answered_and_latency_tells_the_whole_wait() -> None:
    release = asyncio.Event()
    arrived = 0

    async def hold(request: web.Request) -> web.StreamResponse:
        nonlocal arrived
        body = await request.read()
        arrived += 1
        await release.wait()
        return paid(body)

    async with serving(hold) as base_url:
        plan = flood(base_url)
        load = Load(plan)
        running = asyncio.create_task(load.run())
        planned = len(schedule(plan))
        async with asyncio.timeout(10):
            while arrived < planned:  # noqa: ASYNC110 - the server's count is what tells
                await asyncio.sleep(0.01)
        released_s = time.monotonic()
        release.set()
        calls = await running
    assert len(calls) == planned
    for call in calls:
        assert call.latency_ms is not None
        assert call.latency_ms >= (released_s - call.due_s) * 1_000


async def test_a_lost_connection_is_noted_and_nothing_is_sent_again() -> None:
    received: list[str] = []

    async def drop(request: web.Request) -> web.StreamResponse:
        received.append(request.headers["Idempotency-Key"])
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    async with serving(drop) as base_url:
        calls = await Load(flood(base_url)).run()
    assert calls
    assert sorted(received) == sorted(str(call.key) for call in calls)
    assert all(call.status is None and call.error for call in calls)
    assert all(is_left_open(call) for call in calls)


async def test_a_stopped_load_begins_nothing_more() -> None:
    load: Load

    async def answer(request: web.Request) -> web.StreamResponse:
        load.stop()
        return paid(await request.read())

    async with serving(answer) as base_url:
        load = Load(flood(base_url, seconds=60, rate=20))
        began_s = time.monotonic()
        calls = await load.run()
    assert len(calls) < 20
    assert time.monotonic() - began_s < 10


def unanswered(key: str | None) -> Call:
    return Call(
        run="run",
        partner="acme",
        scenario="automatic",
        step="create_payment",
        method="POST",
        path="/v1/payments",
        key=key,
        body=b'{"amount": 1}',
        expected=(),
        usual=True,
        due_s=0,
        error="lost",
    )


async def test_repeats_go_on_under_the_same_key_until_there_is_a_final_answer() -> None:
    answers = [
        web.json_response({"code": "idempotency_key_in_use"}, status=409),
        web.json_response({"code": "partner_unavailable"}, status=503),
        web.json_response({"object": "payment", "status": "captured"}, status=201),
    ]
    received: list[tuple[str, bytes]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        received.append((request.headers["Idempotency-Key"], await request.read()))
        return answers[len(received) - 1]

    async with serving(answer) as base_url:
        repeats = await repeat_unanswered([unanswered("k"), unanswered(None)], base_url, {"acme": "s"}, delay_ms=0)
    assert received == [("k", b'{"amount": 1}')] * 3
    assert [call.repeat for call in repeats] == [1, 2, 3]
    assert [means_again(call) for call in repeats] == [True, True, False]
    assert repeats[0].error is None


async def test_repeats_are_bounded() -> None:
    async def never(request: web.Request) -> web.StreamResponse:
        return web.json_response({"code": "partner_unavailable"}, status=503)

    async with serving(never) as base_url:
        repeats = await repeat_unanswered([unanswered("k")], base_url, {"acme": "s"}, delay_ms=0)
    assert len(repeats) == limits.REPEATS_MAX


def test_a_history_comes_back_from_its_file_byte_for_byte(tmp_path: Path) -> None:
    call = unanswered("k")
    call.status, call.answer, call.answered_s = 201, bytes(range(256)), 1.5
    call.expected = (Outcome(201, "captured"),)
    history.save([call, unanswered(None)], tmp_path / "history.jsonl")
    assert history.load(tmp_path / "history.jsonl") == [call, unanswered(None)]
