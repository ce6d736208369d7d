"""The actor with a store that fails: conflicts, outages, and commits of which nobody knows whether they took place."""

import asyncio

import pytest

from actors import limits
from actors.answers import Answer
from actors.commands import CapturePayment, ResolveOperation, VoidPayment
from actors.errors import ActorStoppedError, StoreUnavailableError
from actors.refusals import RefusalCode
from stores.memory_store import Fault
from tests.unit.actors.partner_bench import Bench, authorization, body, code, purchase, read_books, settle_down
from tests.unit.actors.scripted_acquirer import REFUSED, ScriptedAcquirer, Step
from tests.unit.actors.virtual_time import in_virtual_time

UNKNOWN = [Fault.UNKNOWN_WRITTEN, Fault.UNKNOWN_NOT_WRITTEN, Fault.TIMEOUT]
PASSING = [Fault.CONFLICT, Fault.UNAVAILABLE, *UNKNOWN]


@pytest.mark.parametrize("fault", PASSING)
@in_virtual_time
async def test_a_failure_of_the_intents_commit_is_not_noticed_outside(fault: Fault) -> None:
    async with Bench() as bench:
        bench.book.inject(fault)
        answer = await bench.ask(purchase(), key="k")
        assert isinstance(answer, Answer)
        assert (answer.status, answer.replayed) == (201, False)
        assert body(answer)["status"] == "captured"
        assert bench.book.deliver_late() == 0, "the lost transaction can no longer commit"
        assert len((await bench.audit()).payments) == 1
        again = await bench.ask(purchase(), key="k")
        assert isinstance(again, Answer)
        assert again.body == answer.body


@pytest.mark.parametrize("fault", PASSING)
@in_virtual_time
async def test_a_failure_of_the_outcomes_commit_is_not_noticed_outside(fault: Fault) -> None:
    async with Bench() as bench:
        gate = asyncio.Event()
        bench.acquirer.script(Step(gate=gate))
        asking = bench.ask_soon(purchase(), key="k", command_id="c1")
        await bench.until(lambda: bool(bench.acquirer.calls))
        joined = bench.ask_soon(purchase(), key="k", command_id="c1")
        await settle_down()
        bench.book.inject(fault)
        gate.set()
        began = asyncio.get_running_loop().time()
        answers = await asyncio.gather(asking, joined)
        assert asyncio.get_running_loop().time() - began < 1, "nobody waits for a deadline"
        assert [answer.status for answer in answers if isinstance(answer, Answer)] == [201, 201]
        assert bench.book.deliver_late() == 0
        books = await bench.audit()
        assert not bench.actor.opens
        assert books.standing.sequence == 2


@pytest.mark.parametrize("fault", PASSING)
@in_virtual_time
async def test_a_failure_of_the_deadlines_commit_is_not_noticed_outside(fault: Fault) -> None:
    async with Bench() as bench:
        bench.acquirer.otherwise = lambda _: Step(delay_ms=2_000)
        asking = bench.ask_soon(purchase(), key="k", budget_ms=1_500)
        await asyncio.sleep(0.9)
        bench.book.inject(fault)
        answer = await asking
        assert isinstance(answer, Answer)
        assert answer.status == 202
        await bench.until(lambda: not bench.actor.opens)
        again = await bench.ask(purchase(), key="k")
        assert isinstance(again, Answer)
        assert (again.status, again.body) == (202, answer.body)
        await bench.audit()


@pytest.mark.parametrize("fault", PASSING)
@in_virtual_time
async def test_a_failure_of_a_resolutions_commit_is_not_noticed_outside(fault: Fault) -> None:
    async with Bench() as bench:
        bench.acquirer.otherwise = lambda _: REFUSED
        asking = bench.ask_soon(purchase(), key="k")
        await bench.until(lambda: bool(bench.actor.opens) and bench.acquirer.in_flight == 0)
        await asyncio.sleep(0.1)
        (operation_id,) = bench.actor.opens
        bench.pass_retention()
        bench.book.inject(fault)
        resolved = await bench.ask(ResolveOperation(operation_id, False, "ann", "n"))
        assert body(resolved)["status"] == "failed"
        async with asyncio.timeout(1):
            assert body(await asking)["status"] == "failed"
        calls = len(bench.acquirer.calls)
        await asyncio.sleep(600)
        assert len(bench.acquirer.calls) == calls, "nobody asks on for what is resolved"
        await bench.audit()


@in_virtual_time
async def test_a_lost_commit_may_lose_several_times_in_a_row() -> None:
    async with Bench() as bench:
        for _ in range(limits.COMMIT_ATTEMPTS_MAX):
            bench.book.inject(Fault.UNKNOWN_NOT_WRITTEN)
        refused = await bench.ask(purchase(), key="k")
        assert code(refused) is RefusalCode.OUTCOME_UNKNOWN
        assert not (await read_books(bench.book)).rows
        assert body(await bench.ask(purchase(), key="k"))["status"] == "captured"


@in_virtual_time
async def test_a_store_that_takes_its_time_to_say_no_keeps_nobody_past_the_deadline() -> None:
    async with Bench() as bench:
        commits: list[float] = []

        async def refuse_slowly(*_: object) -> None:
            commits.append(asyncio.get_running_loop().time())
            await asyncio.sleep(limits.COMMIT_TIMEOUT_MS / 1_000 - 0.1)
            raise StoreUnavailableError("behind")

        bench.actor.store.commit = refuse_slowly  # type: ignore[method-assign]
        began = asyncio.get_running_loop().time()
        refused = await bench.ask(purchase(), key="k")
        assert code(refused) is RefusalCode.PARTNER_UNAVAILABLE
        assert (
            asyncio.get_running_loop().time() - began < (limits.COMMAND_DEADLINE_MS - limits.ANSWER_MARGIN_MS) / 1_000
        )
        assert len(commits) == 1
        del bench.actor.store.commit
        assert body(await bench.ask(purchase(), key="k"))["status"] == "captured"


@in_virtual_time
async def test_an_unknown_that_was_written_after_all_is_found_and_pursued() -> None:
    async with Bench() as bench:
        for fault in (Fault.UNKNOWN_WRITTEN, Fault.CONFLICT, Fault.UNAVAILABLE):
            bench.book.inject(fault)
        asking = bench.ask_soon(purchase(), key="k", command_id="c1")
        other = bench.ask_soon(purchase())
        results = await asyncio.gather(asking, other)
        assert all(isinstance(result, Answer) or code(result) is RefusalCode.OUTCOME_UNKNOWN for result in results)
        await bench.until(lambda: not bench.actor.opens)
        assert body(await bench.ask(purchase(), key="k", command_id="c2"))["status"] == "captured"
        await bench.audit()


@pytest.mark.parametrize("fault", [Fault.CONFLICT, Fault.UNAVAILABLE])
@in_virtual_time
async def test_a_store_that_takes_no_writes_refuses_what_is_new(fault: Fault) -> None:
    async with Bench() as bench:
        before = (await read_books(bench.book)).rows
        for _ in range(limits.COMMIT_ATTEMPTS_MAX):
            bench.book.inject(fault)
        refused = await bench.ask(purchase(), key="k")
        assert code(refused) is RefusalCode.PARTNER_UNAVAILABLE
        assert (await read_books(bench.book)).rows == before
        assert not bench.acquirer.calls
        assert body(await bench.ask(purchase(), key="k"))["status"] == "captured"


@in_virtual_time
async def test_the_acquirers_word_outlives_an_outage_of_the_store() -> None:
    async with Bench() as bench:
        gate = asyncio.Event()
        bench.acquirer.script(Step(gate=gate))
        asking = bench.ask_soon(purchase(), key="k")
        await bench.until(lambda: bool(bench.acquirer.calls))
        for _ in range(10 * limits.COMMIT_ATTEMPTS_MAX):
            bench.book.inject(Fault.UNAVAILABLE)
        gate.set()
        assert body(await asking)["status"] == "captured"
        assert len(bench.acquirer.calls) == 1
        await bench.audit()


@in_virtual_time
async def test_who_waits_through_an_outage_until_the_deadline_is_never_told_that_nothing_was_written() -> None:
    async with Bench() as bench:
        bench.acquirer.otherwise = lambda _: Step(delay_ms=2_000)
        asking = bench.ask_soon(purchase(), key="k", budget_ms=1_500)
        await asyncio.sleep(0.9)
        for _ in range(limits.COMMIT_ATTEMPTS_MAX):
            bench.book.inject(Fault.UNAVAILABLE)
        assert code(await asking) is RefusalCode.OUTCOME_UNKNOWN
        await bench.until(lambda: not bench.actor.opens)
        assert body(await bench.ask(purchase(), key="k"))["status"] == "captured"


@in_virtual_time
async def test_a_read_that_fails_writes_nothing_and_is_tried_again() -> None:
    async with Bench() as bench:
        payment_id = body(await bench.ask(authorization()))["id"]
        await bench.start()
        await asyncio.sleep(1)
        bench.book.inject(Fault.UNAVAILABLE, "read")
        assert body(await bench.ask(CapturePayment(payment_id, 5)))["amount_captured"] == 5
        for _ in range(limits.COMMIT_ATTEMPTS_MAX):
            bench.book.inject(Fault.UNAVAILABLE, "read")
        assert code(await bench.ask(VoidPayment(payment_id))) is RefusalCode.PARTNER_UNAVAILABLE
        await bench.audit()


@in_virtual_time
async def test_an_actor_that_cannot_acquire_again_gives_its_partner_up() -> None:
    async with Bench() as bench:
        bench.book.inject(Fault.UNKNOWN_WRITTEN)
        bench.book.inject(Fault.UNAVAILABLE, "acquire")
        with pytest.raises(ActorStoppedError):
            await bench.ask(purchase(), key="k", command_id="c1")
        assert len(bench.stopped) == 1
        await bench.start()
        joined = await bench.ask(purchase(), key="k", command_id="c1")
        assert body(joined)["status"] == "captured"
        assert len((await bench.audit()).payments) == 1


@in_virtual_time
async def test_a_book_that_cannot_be_trusted_stops_its_actor() -> None:
    async with Bench() as bench:
        bench.book.inject(Fault.CORRUPT, "read")
        with pytest.raises(ActorStoppedError):
            await bench.ask(CapturePayment("pay_1"))
        assert bench.stopped
        assert bench.stopped[0].startswith("store: ")


@in_virtual_time
async def test_an_actor_whose_start_fails_takes_nothing() -> None:
    bench = Bench()
    bench.book.inject(Fault.UNAVAILABLE, "acquire")
    with pytest.raises(StoreUnavailableError):
        await bench.start()
    with pytest.raises(ActorStoppedError):
        await bench.ask(purchase())
    await bench.stop()


@in_virtual_time
async def test_an_outage_of_writes_piles_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Authorizations that are due are looked at again and again meanwhile, and asked for once each."""
    async with Bench(authorization_validity_ms=1_000) as bench:
        for _ in range(20):
            await bench.ask(authorization())
        for _ in range(3_000):
            bench.book.inject(Fault.UNAVAILABLE)
        depth_max = 0
        for _ in range(200):
            await asyncio.sleep(0.1)
            depth_max = max(depth_max, len(bench.actor._told))
        assert depth_max <= 20
        bench.book._faults.clear()
        await bench.until(lambda: len(bench.record.charges) == 40)
        books = await bench.audit()
        assert {payment.status.value for payment in books.payments.values()} == {"expired"}


@in_virtual_time
async def test_a_book_with_more_open_operations_than_a_page_is_resumed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STORE_RANGE_ROWS_MAX", 5)
    async with Bench() as bench:
        bench.acquirer.otherwise = lambda _: Step(delay_ms=2_000)
        asks = [bench.ask_soon(purchase()) for _ in range(17)]
        await bench.until(lambda: len(bench.actor.opens) == 17)
        await bench.start(acquirer=ScriptedAcquirer(bench.record))
        assert len(bench.actor.opens) == 17
        await bench.until(lambda: not bench.actor.opens)
        assert len(bench.record.charges) == 17
        for task in asks:
            task.cancel()
        await asyncio.gather(*asks, return_exceptions=True)
        await bench.audit()


@in_virtual_time
async def test_a_new_payment_is_decided_without_a_read() -> None:
    async with Bench() as bench:
        await settle_down()
        before = bench.book.reads
        for number in range(5):
            assert body(await bench.ask(purchase(), key=f"k{number}"))["status"] == "captured"
        assert bench.book.reads == before


@in_virtual_time
async def test_a_replay_among_new_payments_gets_its_first_answer() -> None:
    async with Bench() as bench:
        first = await bench.ask(purchase(), key="k")
        stop = bench.book.stop("inside")
        asks = [bench.ask_soon(purchase())]
        await stop.reached.wait()
        asks += [bench.ask_soon(purchase(), key=key) for key in ("a", "k", "b")]
        stop.resume()
        _, one, replay, other = await asyncio.gather(*asks)
        assert isinstance(first, Answer)
        assert isinstance(replay, Answer)
        assert (replay.body, replay.replayed) == (first.body, True)
        assert body(one)["id"] != body(other)["id"]
        assert len((await bench.audit()).payments) == 4


@in_virtual_time
async def test_a_replay_past_the_rate_limit_gets_its_first_answer() -> None:
    """Refused commands meet no commit that would tell that their key is known: they are looked up before."""
    async with Bench(rate_per_second=1, rate_burst=1) as bench:
        first = await bench.ask(purchase(), key="k")
        assert code(await bench.ask(purchase(), key="other")) is RefusalCode.RATE_LIMITED
        await bench.start(2)
        replay = await bench.ask(purchase(), key="k")
        assert isinstance(first, Answer)
        assert isinstance(replay, Answer)
        assert (replay.body, replay.replayed) == (first.body, True)
        assert code(await bench.ask(purchase(200), key="k")) is RefusalCode.IDEMPOTENCY_KEY_REUSED


@in_virtual_time
async def test_a_flood_of_replays_is_decided_once_each() -> None:
    async with Bench() as bench:
        await bench.ask(purchase(), key="k")
        decided: list[str] = []
        await bench.start(2, executing=decided.append)
        for _ in range(20):
            assert isinstance(await bench.ask(purchase(), key="k"), Answer)
        assert sum(bool(name) for name in decided) == 21, "only the first was guessed to be new"
