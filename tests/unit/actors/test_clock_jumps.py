"""A worker's wall clock that jumps by an hour, forward and back: nobody is locked out, nothing ends early by more than
the margin that docs/protocol.md states, and ids and journal stay in order. Waits go by another clock (the loop's).
"""

import asyncio
import itertools
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors import codec, limits
from actors.answers import Answer, Refused
from actors.commands import CapturePayment
from actors.refusals import RefusalCode
from tests.unit.actors import virtual_time
from tests.unit.actors.partner_bench import Bench, authorization, body, code, purchase
from tests.unit.actors.scripted_acquirer import Step
from tests.unit.actors.virtual_time import in_virtual_time

HOUR_MS: Final = 3_600_000
HOUR_S: Final = 3_600
# Forward, right, back, right, and both at once; each as an offset of the wall clock from the right time.
JUMPS: Final = (HOUR_MS, 0, -HOUR_MS, 0, HOUR_MS, -HOUR_MS, HOUR_MS, 0)
DAY_S: Final = 24 * HOUR_S


async def spend_burst(bench: Bench) -> int:
    """Pay until the rate limit says no; give how many went through."""
    paid = 0
    while isinstance(await bench.ask(purchase()), Answer):
        paid += 1
        assert paid < 1_000
    return paid


@in_virtual_time
async def test_no_jump_locks_a_partner_out_and_none_lets_more_in_than_one_burst() -> None:
    async with Bench(rate_per_second=10, rate_burst=20) as bench:
        await spend_burst(bench)
        for offset_ms in JUMPS:
            bench.clock.wall_offset_ms = offset_ms
            assert await spend_burst(bench) <= 21
            await asyncio.sleep(0.2)
            assert isinstance(await bench.ask(purchase()), Answer), f"locked out at {offset_ms} ms"


@pytest.mark.parametrize("offset_ms", [HOUR_MS, -HOUR_MS])
@in_virtual_time
async def test_an_owner_whose_clock_is_wrong_takes_over_and_nobody_is_locked_out(offset_ms: int) -> None:
    async with Bench(rate_per_second=10, rate_burst=20) as bench:
        await spend_burst(bench)
        bench.clock.wall_offset_ms = offset_ms
        await bench.start(2)
        await asyncio.sleep(0.2)
        assert isinstance(await bench.ask(purchase()), Answer)
        bench.clock.wall_offset_ms = 0
        await bench.start(3)
        await asyncio.sleep(0.2)
        assert isinstance(await bench.ask(purchase()), Answer)


@pytest.mark.parametrize("jumps", [(HOUR_MS,), JUMPS, (0, -HOUR_MS)])
@in_virtual_time
async def test_an_authorization_ends_early_by_the_jump_at_most_and_jumps_do_not_add_up(jumps: tuple[int, ...]) -> None:
    async with Bench() as bench:
        payment_id = body(await bench.ask(authorization()))["id"]
        for offset_ms in jumps:
            bench.clock.wall_offset_ms = offset_ms
            await bench.ask(purchase())
            await asyncio.sleep(1)
        validity_s = limits.AUTHORIZATION_VALIDITY_MS / 1_000
        await asyncio.sleep(validity_s - HOUR_S - 120)
        assert (await bench.get(payment_id))["status"] == "authorized"
        bench.clock.wall_offset_ms = 0
        await asyncio.sleep(HOUR_S + 240)
        assert (await bench.get(payment_id))["status"] == "expired", "it ends on time, whatever the clock did before"


@pytest.mark.parametrize("jumps", [(HOUR_MS,), JUMPS, (-HOUR_MS, 0)])
@in_virtual_time
async def test_an_idempotency_key_is_kept_for_all_of_its_time(jumps: tuple[int, ...]) -> None:
    async with Bench() as bench:
        first = await bench.ask(purchase(), key="k", fingerprint=b"f")
        for offset_ms in jumps:
            bench.clock.wall_offset_ms = offset_ms
            await asyncio.sleep(1)
        await asyncio.sleep(DAY_S - 60)
        again = await bench.ask(purchase(), key="k", fingerprint=b"f")
        assert isinstance(again, Answer)
        assert isinstance(first, Answer)
        assert (again.body, again.replayed) == (first.body, True)
        bench.clock.wall_offset_ms = 0
        await asyncio.sleep(2 * HOUR_S + 300)
        assert body(await bench.ask(purchase(), key="k", fingerprint=b"g"))["id"] != body(first)["id"]


@in_virtual_time
async def test_a_late_clock_never_asks_for_a_key_that_the_acquirer_may_have_forgotten() -> None:
    """The acquirer forgets after a day of its own; the owner after next has a clock that is an hour late."""
    asked_s: list[float] = []

    def hang(_: object) -> Step:
        asked_s.append(asyncio.get_running_loop().time())
        return Step(gate=asyncio.Event())

    async with Bench() as bench:
        bench.acquirer.otherwise = hang
        await bench.ask(purchase(), budget_ms=600)
        await bench.actor.stop()
        await asyncio.sleep(20 * HOUR_S)
        bench.clock.wall_offset_ms = -HOUR_MS
        await bench.start(2)
        bench.acquirer.otherwise = hang
        await asyncio.sleep(DAY_S)
        assert asked_s[-1] - asked_s[0] > 23 * HOUR_S, "until shortly before it was asked"
        assert asked_s[-1] - asked_s[0] < limits.ACQUIRER_KEY_RETENTION_PROMISED_MS / 1_000
        unknown = body(await bench.query("list_unknown"))["data"]
        assert [row["needs_person"] for row in unknown] == [True]


@in_virtual_time
async def test_deadlines_go_by_the_monotonic_clock() -> None:
    async with Bench() as bench:
        for offset_ms in (HOUR_MS, -HOUR_MS):
            bench.acquirer.script(Step(gate=asyncio.Event()))
            began_s = asyncio.get_running_loop().time()
            task = bench.ask_soon(purchase(), budget_ms=2_000)
            await asyncio.sleep(0.1)
            bench.clock.wall_offset_ms = offset_ms
            answer = await task
            assert isinstance(answer, Answer)
            assert answer.status == 202
            assert 1.4 < asyncio.get_running_loop().time() - began_s < 2.0


@in_virtual_time
async def test_the_breaker_goes_by_the_monotonic_clock() -> None:
    async with Bench() as bench:
        breaker = bench.breaker
        for _ in range(limits.BREAKER_FAILURES_TO_OPEN):
            breaker.begin(bench.actor.monotonic_ms())
            breaker.fail(bench.actor.monotonic_ms())
        bench.clock.wall_offset_ms = HOUR_MS
        refused = await bench.ask(purchase())
        assert isinstance(refused, Refused)
        assert code(refused) is RefusalCode.ACQUIRER_UNAVAILABLE, "an hour on the wall is no time for a breaker"
        await asyncio.sleep(limits.BREAKER_OPEN_MS / 1_000)
        assert isinstance(await bench.ask(purchase()), Answer)


STEP = st.tuples(st.sampled_from(["jump", "pay", "sleep", "take over"]), st.integers(-2 * HOUR_MS, 2 * HOUR_MS))


@settings(max_examples=40)
@given(st.lists(STEP, min_size=3, max_size=12))
def test_ids_and_journal_stay_in_order(steps: list[tuple[str, int]]) -> None:
    virtual_time.run(keep_order(steps))


@pytest.mark.parametrize("offset_ms", [0, -HOUR_MS])
def test_ids_rise_though_an_owner_takes_over_within_the_millisecond(offset_ms: int) -> None:
    virtual_time.run(keep_order([("pay", 0), ("jump", offset_ms), ("take over", 0), ("pay", 0), ("take over", 0)] * 4))


async def keep_order(steps: list[tuple[str, int]]) -> None:
    async with Bench() as bench:
        ids = [body(await bench.ask(authorization()))["id"]]
        for number, (step, by_ms) in enumerate(steps):
            match step:
                case "jump":
                    bench.clock.wall_offset_ms = by_ms
                case "sleep":
                    await asyncio.sleep(abs(by_ms) / HOUR_MS)
                case "take over":
                    await bench.start(number + 2)
                case _:
                    ids.append(body(await bench.ask(authorization()))["id"])
        ids.append(body(await bench.ask(authorization()))["id"])
        assert isinstance(await bench.ask(CapturePayment(ids[0])), Answer)
        assert ids == sorted(set(ids)), "ids rise"
        listed = body(await bench.query("list_payments", limit=100))["data"]
        assert [row["id"] for row in listed] == ids[::-1]
        created = [row["created_at"] for row in listed]
        assert created == sorted(created, reverse=True)
        books = await bench.audit()
        entries = sorted(books.entries, key=lambda entry: entry.sequence)
        assert [entry.sequence for entry in entries] == list(range(1, len(entries) + 1))
        assert all(before.at_ms <= after.at_ms for before, after in itertools.pairwise(entries)), "time never falls"
        assert codec.decode_standing(books.rows[("head",)]).floor_ms == entries[-1].at_ms
