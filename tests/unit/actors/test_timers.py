"""What an actor does by itself: authorizations that end, idempotency records past their retention."""

import asyncio

import pytest

from actors import keyspace, limits
from actors.acquirer import Approved
from actors.answers import Answer
from actors.commands import CapturePayment, ResolveOperation
from actors.mailbox import Sweep
from stores.memory_store import Fault
from tests.unit.actors.partner_bench import Bench, authorization, body, purchase, read_books
from tests.unit.actors.scripted_acquirer import REFUSED, Step, decline
from tests.unit.actors.virtual_time import in_virtual_time

DAY_S = 86_400
RETENTION_S = limits.IDEMPOTENCY_KEPT_MS / 1_000


@in_virtual_time
async def test_an_authorization_ends_for_an_idle_partner_and_on_time() -> None:
    async with Bench() as bench:
        payment_id = body(await bench.ask(authorization()))["id"]
        await asyncio.sleep(limits.AUTHORIZATION_VALIDITY_MS / 1_000 - 1)
        assert (await bench.get(payment_id))["status"] == "authorized"
        await asyncio.sleep(2)
        newest = await bench.get(payment_id)
        assert newest["status"] == "expired"
        assert [operation["type"] for operation in newest["operations"]] == ["authorization", "void"]
        await bench.audit()


@in_virtual_time
async def test_the_acquirers_own_end_of_an_authorization_counts() -> None:
    async with Bench() as bench:
        await asyncio.sleep(5)  # the timers sleep for a minute by now
        bench.acquirer.script(Step(Approved("ref", bench.actor.now_ms() + 10_000)))
        payment_id = body(await bench.ask(authorization()))["id"]
        await asyncio.sleep(9.9)
        assert (await bench.get(payment_id))["status"] == "authorized"
        await asyncio.sleep(0.5)
        assert (await bench.get(payment_id))["status"] == "expired", "it woke for this one, not with the next minute"


@in_virtual_time
async def test_an_end_that_falls_into_a_pause_of_the_partner_is_seen_at_activation() -> None:
    async with Bench(authorization_validity_ms=60_000) as bench:
        payment_id = body(await bench.ask(authorization()))["id"]
        await bench.actor.stop()
        await asyncio.sleep(DAY_S)
        await bench.start()
        await asyncio.sleep(1)
        assert (await bench.get(payment_id))["status"] == "expired"


@in_virtual_time
async def test_an_end_is_put_off_while_a_capture_is_open() -> None:
    async with Bench(authorization_validity_ms=60_000) as bench:
        payment_id = body(await bench.ask(authorization(100)))["id"]
        await asyncio.sleep(59)
        gate = asyncio.Event()
        bench.acquirer.script(*[Step(lost="timeout", arrives=False)] * 3, Step(gate=gate))
        capturing = bench.ask_soon(CapturePayment(payment_id, 40))
        await asyncio.sleep(5)
        assert [o["type"] for o in (await bench.get(payment_id))["operations"]] == ["authorization", "capture"]
        gate.set()
        await capturing
        await bench.until(lambda: not bench.actor.opens)
        await asyncio.sleep(120)
        newest = await bench.get(payment_id)
        assert newest["amount_capturable"] == 0
        assert newest["operations"][-1]["type"] == "void"
        await bench.audit()


@in_virtual_time
async def test_a_declined_end_is_tried_again_and_the_acquirers_word_wins() -> None:
    async with Bench(authorization_validity_ms=60_000) as bench:
        payment_id = body(await bench.ask(authorization()))["id"]
        bench.acquirer.script(decline("try_again"), decline("authorization_expired"))
        await asyncio.sleep(61)
        assert (await bench.get(payment_id))["status"] == "authorized"
        await asyncio.sleep(limits.EXPIRY_RETRY_DELAY_MS / 1_000 + 2)
        newest = await bench.get(payment_id)
        assert newest["status"] == "expired"
        assert len(newest["operations"]) == 3
        calls = len(bench.acquirer.calls)
        await asyncio.sleep(DAY_S)
        assert len(bench.acquirer.calls) == calls
        await bench.audit()


@in_virtual_time
async def test_many_ends_at_once_are_all_dealt_with_once_each() -> None:
    async with Bench(authorization_validity_ms=60_000) as bench:
        count = limits.EXPIRIES_PER_WAKE_MAX + 20
        await asyncio.gather(*[bench.ask(authorization()) for _ in range(count)])
        bench.acquirer.otherwise = lambda _: Step(delay_ms=500)
        await asyncio.sleep(90)
        books = await bench.audit()
        assert {payment.status.value for payment in books.payments.values()} == {"expired"}
        assert len(bench.record.charges) == 2 * count


@in_virtual_time
async def test_a_read_that_fails_is_looked_at_again() -> None:
    async with Bench(authorization_validity_ms=10_000) as bench:
        payment_id = body(await bench.ask(authorization()))["id"]
        await asyncio.sleep(1)
        bench.book.inject(Fault.UNAVAILABLE, "read")
        await asyncio.sleep(limits.EXPIRY_RETRY_DELAY_MS / 1_000 + 20)
        assert (await bench.get(payment_id))["status"] == "expired"


# Sweeping


@in_virtual_time
async def test_idempotency_records_are_kept_for_their_retention_and_not_for_ever() -> None:
    async with Bench() as bench:
        first = await bench.ask(purchase(), key="k")
        await bench.ask(purchase())
        await asyncio.sleep(RETENTION_S - 60)
        again = await bench.ask(purchase(), key="k")
        assert isinstance(first, Answer)
        assert isinstance(again, Answer)
        assert again.body == first.body
        await asyncio.sleep(180)
        books = await bench.audit()
        assert not books.under("once")
        assert books.standing.swept_sequence == books.standing.sequence == 4
        anew = await bench.ask(purchase(), key="k")
        assert body(anew)["id"] != body(first)["id"]


@in_virtual_time
async def test_more_records_than_one_sweep_takes_are_swept_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "IDEMPOTENCY_ROWS_SWEPT_MAX", 7)
    async with Bench() as bench:
        await asyncio.gather(*[bench.ask(purchase(), key=f"k{n}") for n in range(30)])
        assert len((await read_books(bench.book)).under("once")) == 30
        await asyncio.sleep(RETENTION_S + 180)
        assert not (await bench.audit()).under("once")


@in_virtual_time
async def test_a_sweep_told_twice_does_not_take_a_key_that_is_used_anew() -> None:
    async with Bench() as bench:
        await bench.ask(purchase(), key="k")
        sweep = Sweep(0, (keyspace.once("k", ""),), 2)
        bench.actor.tell(sweep)
        await bench.until(lambda: bench.actor.standing.swept_sequence == 2)
        anew = await bench.ask(purchase(), key="k")
        bench.actor.tell(sweep)
        await asyncio.sleep(1)
        again = await bench.ask(purchase(), key="k")
        assert isinstance(again, Answer)
        assert isinstance(anew, Answer)
        assert (again.replayed, again.body) == (True, anew.body)
        assert len(bench.record.charges) == 2


@pytest.mark.parametrize("restart", [True, False])
@in_virtual_time
async def test_an_operation_may_outlive_its_idempotency_record(restart: bool) -> None:
    async with Bench() as bench:
        bench.acquirer.otherwise = lambda _: REFUSED
        asking = bench.ask_soon(purchase(), key="k")
        await bench.until(lambda: bool(bench.actor.opens))
        (operation_id,) = bench.actor.opens
        asking.cancel()
        await asyncio.sleep(RETENTION_S + 300)
        assert not (await read_books(bench.book)).under("once")
        if restart:
            await bench.start()
        resolved = await bench.ask(ResolveOperation(operation_id, False, "ann", "n"))
        assert body(resolved)["status"] == "failed"
        await bench.audit()


@in_virtual_time
async def test_a_sweep_that_cannot_be_written_is_made_later() -> None:
    async with Bench() as bench:
        await bench.ask(purchase(), key="k")
        await asyncio.sleep(RETENTION_S - 5)
        for _ in range(limits.COMMIT_ATTEMPTS_MAX):
            bench.book.inject(Fault.UNAVAILABLE)
        await asyncio.sleep(300)
        assert not (await bench.audit()).under("once")
