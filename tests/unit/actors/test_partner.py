"""The actor with a store that works: deciding, batching, answering, idempotency, bounds."""

import asyncio
from typing import Any

import pytest

from actors import limits, rules
from actors.answers import Answer, Refused
from actors.commands import CapturePayment, Command, CreatePayment, RefundPayment, VoidPayment
from actors.errors import ActorStoppedError, FencedError
from actors.mailbox import Result
from actors.profile import Profile
from actors.refusals import RefusalCode
from stores.memory_store import MemoryStore
from tests.unit.actors.partner_bench import (
    Bench,
    authorization,
    body,
    code,
    purchase,
    read_books,
    settle_down,
)
from tests.unit.actors.scripted_acquirer import (
    TIMEOUT_CHARGED,
    TIMEOUT_NOT_CHARGED,
    ScriptedAcquirer,
    Step,
    decline,
)
from tests.unit.actors.virtual_time import in_virtual_time

HANG = Step(gate=asyncio.Event(), lost="timeout", arrives=False)


@in_virtual_time
async def test_a_payment_through_all_it_can_go_through() -> None:
    async with Bench() as bench:
        paid = await bench.ask(authorization(1_000, reference="order 7", metadata={"a": "b"}))
        assert isinstance(paid, Answer)
        assert (paid.status, paid.replayed) == (201, False)
        assert paid.rate is not None
        payment_id = body(paid)["id"]
        assert body(paid)["status"] == "authorized"
        captured = await bench.ask(CapturePayment(payment_id, 600))
        assert isinstance(captured, Answer)
        assert captured.status == 200
        assert body(captured)["status"] == "partially_captured"
        voided = await bench.ask(VoidPayment(payment_id))
        assert body(voided)["amount_capturable"] == 0
        refunded = await bench.ask(RefundPayment(payment_id, 100, "late"))
        assert isinstance(refunded, Answer)
        assert refunded.status == 201
        assert body(refunded) | {"status": "succeeded", "reason": "late", "amount": 100} == body(refunded)
        assert body(await bench.query("get_refund", refund_id=body(refunded)["id"])) == body(refunded)
        newest = await bench.get(payment_id)
        assert newest["status"] == "partially_refunded"
        assert (newest["amount_captured"], newest["amount_refunded"]) == (600, 100)
        books = await bench.audit()
        assert [entry.cause.partition("_")[0] for entry in books.entries] == ["cmd", "acquirer:op"] * 3 + [
            "cmd",
            "acquirer:re",
        ]
        kinds = [(i.kind, i.amount, i.original_key) for i in bench.record.instructions.values()]
        first = newest["operations"][0]["id"]
        assert kinds == [
            ("authorization", 1_000, None),
            ("capture", 600, first),
            ("void", 400, first),
            ("refund", 100, first),
        ]


@in_virtual_time
async def test_a_decline_is_an_outcome() -> None:
    async with Bench() as bench:
        bench.acquirer.script(decline("stolen_card", retryable=False))
        answer = await bench.ask(purchase())
        assert isinstance(answer, Answer)
        assert answer.status == 201
        assert body(answer)["status"] == "failed"
        assert body(answer)["failure"]["code"] == "stolen_card"
        await bench.audit()


@in_virtual_time
async def test_a_verification_moves_nothing() -> None:
    async with Bench() as bench:
        answer = await bench.ask(purchase(0))
        assert body(answer)["status"] == "authorized"
        books = await bench.audit()
        assert not any(books.balances.values())
        assert [i.kind for i in bench.record.instructions.values()] == ["verification"]


# Nothing leaves before its commit


@pytest.mark.parametrize("place", ["before", "inside"])
@in_virtual_time
async def test_nothing_is_asked_or_answered_before_the_intent_is_committed(place: Any) -> None:
    async with Bench() as bench:
        stop = bench.book.stop(place)
        asking = bench.ask_soon(purchase())
        await stop.reached.wait()
        await asyncio.sleep(60)
        assert not bench.acquirer.calls
        assert not asking.done()
        stop.resume()
        # A whole minute late: the outcome is told as it is, and the deadline's answer is on disk too.
        assert body(await asking)["id"] in (await bench.audit()).payments


@pytest.mark.parametrize("place", ["before", "inside"])
@in_virtual_time
async def test_nothing_is_answered_before_the_outcome_is_committed(place: Any) -> None:
    async with Bench() as bench:
        gate = asyncio.Event()
        bench.acquirer.script(Step(gate=gate))
        asking = bench.ask_soon(purchase())
        await bench.until(lambda: bool(bench.acquirer.calls))
        stop = bench.book.stop(place)
        gate.set()
        await stop.reached.wait()
        await asyncio.sleep(1)
        assert not asking.done()
        stop.resume()
        assert body(await asking)["status"] == "captured"


@in_virtual_time
async def test_what_queues_up_behind_a_commit_is_the_next_batch() -> None:
    async with Bench() as bench:
        stop = bench.book.stop("inside")
        first = bench.ask_soon(purchase())
        await stop.reached.wait()
        rest = [bench.ask_soon(purchase()) for _ in range(limits.BATCH_COMMANDS_MAX)]
        await settle_down()
        before = bench.book.commits
        bench.acquirer.otherwise = lambda _: Step(delay_ms=50)
        stop.resume()
        await asyncio.sleep(0.04)
        assert bench.book.commits - before == 2, "the one held, then one for all that waited"
        answers = await asyncio.gather(first, *rest)
        assert {answer.status for answer in answers if isinstance(answer, Answer)} == {201}
        await bench.audit()


@in_virtual_time
async def test_a_batch_is_bounded_in_bytes() -> None:
    async with Bench() as bench:
        stop = bench.book.stop("inside")
        asks = [bench.ask_soon(purchase())]
        await stop.reached.wait()
        heavy = {f"{n:02d}": "x" * 500 for n in range(50)}
        asks += [bench.ask_soon(purchase(metadata=heavy)) for _ in range(limits.BATCH_COMMANDS_MAX)]
        await settle_down()
        before = bench.book.commits
        bench.acquirer.otherwise = lambda _: Step(delay_ms=50)
        stop.resume()
        await asyncio.sleep(0.04)
        assert bench.book.commits - before > 2
        answers = await asyncio.gather(*asks)
        assert {answer.status for answer in answers if isinstance(answer, Answer)} == {201}
        await bench.audit()


@in_virtual_time
async def test_two_refunds_in_one_batch_cannot_both_pass() -> None:
    async with Bench() as bench:
        payment_id = body(await bench.ask(purchase(100)))["id"]
        stop = bench.book.stop("inside")
        other = bench.ask_soon(purchase())
        await stop.reached.wait()
        refunds = [bench.ask_soon(RefundPayment(payment_id, 60)) for _ in range(3)]
        await settle_down()
        stop.resume()
        results = await asyncio.gather(*refunds)
        assert [isinstance(result, Answer) for result in results] == [True, False, False]
        assert {code(result) for result in results[1:]} == {RefusalCode.AMOUNT_TOO_LARGE}
        await other
        await bench.audit()


# One command's trouble is its own


@in_virtual_time
async def test_a_command_that_explodes_takes_only_itself_out(monkeypatch: pytest.MonkeyPatch) -> None:
    decide = rules.decide

    def exploding(profile: Any, standing: Any, payment: Any, command: Command, *args: Any, **kwargs: Any) -> Any:
        decision = decide(profile, standing, payment, command, *args, **kwargs)
        if isinstance(command, CreatePayment) and command.description == "explode":
            raise ZeroDivisionError
        return decision

    monkeypatch.setattr(rules, "decide", exploding)
    executed: list[str] = []
    async with Bench() as bench:
        await bench.start(executing=executed.append)
        stop = bench.book.stop("inside")
        asks = [bench.ask_soon(purchase())]
        await stop.reached.wait()
        asks += [bench.ask_soon(purchase(description=what)) for what in ("fine", "explode", "fine")]
        await settle_down()
        stop.resume()
        results = await asyncio.gather(*asks)
        assert [isinstance(result, Answer) for result in results] == [True, True, False, True]
        assert code(results[2]) is RefusalCode.INTERNAL_ERROR
        assert executed[-1] == "", "nothing is executing any more"
        # What was not taken is looked up before it is refused, and its batch is decided once more for that.
        assert [name for name in executed if name] == ["cmd_0001", *["cmd_0002", "cmd_0003", "cmd_0004"] * 2]
        books = await bench.audit()
        assert len(books.payments) == 3


@in_virtual_time
async def test_memory_that_ends_while_a_command_is_decided_is_told_while_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(rules, "decide", greedy)
    executed: list[str] = []
    seen: list[str] = []
    async with Bench() as bench:
        await bench.start(executing=executed.append, on_out_of_memory=lambda: seen.append(executed[-1]))
        with pytest.raises(ActorStoppedError):  # where nobody ends the process, its partner is given up
            await bench.ask_soon(purchase())
        assert seen[0] == "cmd_0001"


@in_virtual_time
async def test_a_bug_that_eats_an_outcome_delays_that_outcome_only(monkeypatch: pytest.MonkeyPatch) -> None:
    settle, failures = rules.settle, [ZeroDivisionError(), ZeroDivisionError()]

    def exploding(*args: Any) -> Any:
        if failures:
            raise failures.pop()
        return settle(*args)

    monkeypatch.setattr(rules, "settle", exploding)
    async with Bench() as bench:
        late = bench.ask_soon(purchase())
        assert (await late).status == 202  # type: ignore[union-attr]
        await bench.until(lambda: not bench.actor.opens)
        assert not failures
        await bench.audit()


@in_virtual_time
async def test_a_command_too_large_for_a_store_is_refused_alone() -> None:
    async with Bench() as bench:
        large = {f"{n:02d}": "\u20ac" * 500 for n in range(50)} | {"00": "\u20ac" * 500}
        stop = bench.book.stop("inside")
        asks = [bench.ask_soon(purchase())]
        await stop.reached.wait()
        asks += [bench.ask_soon(purchase(metadata=large, description="\u20ac" * 9_000)), bench.ask_soon(purchase())]
        await settle_down()
        stop.resume()
        results = await asyncio.gather(*asks)
        assert [isinstance(result, Answer) for result in results] == [True, False, True]
        assert code(results[1]) is RefusalCode.COMMAND_TOO_LARGE
        await bench.audit()


@in_virtual_time
async def test_a_payment_whose_json_would_be_too_large_is_refused_before_it_is_charged() -> None:
    """Control characters take six bytes in JSON: the record would fit, the answer to be kept would not."""
    async with Bench() as bench:
        result = await bench.ask(purchase(metadata={f"{n:02d}": "\x01" * 500 for n in range(40)}))
        assert code(result) is RefusalCode.COMMAND_TOO_LARGE
        assert not bench.acquirer.calls
        fits = await bench.ask(purchase(metadata={f"{n:02d}": "\x01" * 500 for n in range(30)}))
        assert body(fits)["status"] == "captured"


@in_virtual_time
async def test_an_operation_is_taken_only_where_its_outcome_will_fit() -> None:
    async with Bench() as bench:
        wide = {f"{n:02d}": "\x01" * 500 for n in range(30)}
        payment_id = body(await bench.ask(authorization(10_000, metadata=wide)))["id"]
        bench.acquirer.otherwise = lambda _: decline("c" * 255)
        results = [await bench.ask(CapturePayment(payment_id, 1)) for _ in range(limits.OPERATIONS_PER_PAYMENT_MAX)]
        refused = [result for result in results if isinstance(result, Refused)]
        assert refused, "so many failures can't fit"
        assert {code(result) for result in refused} == {RefusalCode.COMMAND_TOO_LARGE}
        assert not bench.actor.opens, "whatever was taken has its outcome"
        await bench.audit()


@in_virtual_time
async def test_a_key_longer_than_a_store_takes_is_refused_and_stops_nobody() -> None:
    async with Bench() as bench:
        assert code(await bench.ask(purchase(), key="k" * 20_000)) is RefusalCode.COMMAND_TOO_LARGE
        assert body(await bench.ask(purchase(), key="k" * limits.IDEMPOTENCY_KEY_CHARACTERS_MAX))


# Bounds


@in_virtual_time
async def test_a_full_mailbox_is_answered_at_once() -> None:
    async with Bench() as bench:
        stop = bench.book.stop("inside")
        held = bench.ask_soon(purchase())
        await stop.reached.wait()
        waiting = [bench.ask_soon(purchase()) for _ in range(limits.MAILBOX_COMMANDS_MAX)]
        await settle_down()
        assert bench.actor.mailbox_depth == limits.MAILBOX_COMMANDS_MAX
        refused = await bench.ask(purchase())
        assert isinstance(refused, Refused)
        assert refused.refusal.code is RefusalCode.MAILBOX_FULL
        assert refused.refusal.retry_after_ms
        stop.resume()
        results = await asyncio.gather(held, *waiting)
        assert all(isinstance(result, Answer) for result in results)
        assert len((await bench.audit()).payments) == limits.MAILBOX_COMMANDS_MAX + 1


@in_virtual_time
async def test_who_waited_past_the_deadline_is_told_and_nothing_is_written() -> None:
    async with Bench() as bench:
        stop = bench.book.stop("inside")
        held = bench.ask_soon(purchase())
        await stop.reached.wait()
        late = bench.ask_soon(purchase(), budget_ms=2_000)
        await asyncio.sleep(3)
        stop.resume()
        assert code(await late) is RefusalCode.PARTNER_UNAVAILABLE
        await held
        assert len((await bench.audit()).payments) == 1


@in_virtual_time
async def test_the_payments_at_hand_are_bounded_and_none_gets_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PAYMENTS_CACHED_MAX", 6)
    async with Bench() as bench:
        ids = [body(await bench.ask(purchase(10)))["id"] for _ in range(20)]
        for payment_id in ids * 3:
            assert body(await bench.ask(RefundPayment(payment_id, 1)))["status"] == "succeeded"
            assert len(bench.actor._state.payments) <= 6 + 1
        # Many that are at hand and many that are not, in one batch, each of them the oldest at some time.
        stop = bench.book.stop("inside")
        held = bench.ask_soon(purchase())
        await stop.reached.wait()
        asks = [bench.ask_soon(RefundPayment(payment_id, 1)) for payment_id in ids]
        await settle_down()
        stop.resume()
        await held
        assert {body(result)["status"] for result in await asyncio.gather(*asks)} == {"succeeded"}
        await bench.audit()


@in_virtual_time
async def test_rate_limit_and_payments_in_flight_outlive_the_actor() -> None:
    async with Bench(rate_per_second=1, rate_burst=3, in_flight_max=2) as bench:
        bench.acquirer.otherwise = lambda _: HANG
        held = [bench.ask_soon(purchase()) for _ in range(2)]
        await bench.until(lambda: len(bench.actor.opens) == 2)
        assert code(await bench.ask(purchase())) is RefusalCode.TOO_MANY_IN_FLIGHT
        await bench.start(acquirer=ScriptedAcquirer(bench.record, lambda _: HANG))
        refused = await bench.ask(purchase())
        assert code(refused) is RefusalCode.TOO_MANY_IN_FLIGHT
        assert isinstance(refused, Refused)
        assert refused.rate is not None
        assert refused.rate.remaining == 1
        bench.acquirer.otherwise = lambda _: Step()
        await bench.until(lambda: not bench.actor.opens)
        assert isinstance(await bench.ask(purchase(), actor=bench.actor), Answer)
        for task in held:
            task.cancel()
        await bench.audit()


@in_virtual_time
async def test_refused_commands_cost_no_rate_and_leave_their_key_free() -> None:
    async with Bench(rate_per_second=1, rate_burst=1) as bench:
        for _ in range(5):
            assert code(await bench.ask(CreatePayment(5, "XXX", "tok"), key="k")) is RefusalCode.CURRENCY_UNKNOWN
        rows = (await read_books(bench.book)).rows
        assert not rows
        assert isinstance(await bench.ask(purchase(), key="k"), Answer)
        assert code(await bench.ask(purchase(), key="k2")) is RefusalCode.RATE_LIMITED
        rows = (await read_books(bench.book)).rows
        assert code(await bench.ask(purchase(), key="k2")) is RefusalCode.RATE_LIMITED
        assert (await read_books(bench.book)).rows == rows, "a refusal changes nothing"
        await asyncio.sleep(1)
        assert isinstance(await bench.ask(purchase(), key="k2"), Answer)


@pytest.mark.parametrize("jump_ms", [-3_600_000, 3_600_000, -10 * 365 * 86_400_000, 365 * 86_400_000])
@in_virtual_time
async def test_a_clock_that_jumps_locks_nobody_out(jump_ms: int) -> None:
    async with Bench(rate_per_second=2, rate_burst=2) as bench:

        async def spend() -> None:
            await asyncio.sleep(1)
            results = [await bench.ask(purchase()) for _ in range(3)]
            assert [isinstance(result, Answer) for result in results] == [True, True, False]

        await spend()
        bench.clock.wall_offset_ms += jump_ms
        await spend()
        await bench.start()  # another process, the committed floor
        await spend()
        bench.clock.wall_offset_ms -= jump_ms
        await spend()
        await bench.start()
        await spend()
        await bench.audit()


# Idempotency


@in_virtual_time
async def test_the_same_key_and_body_get_the_first_answer_byte_for_byte() -> None:
    async with Bench() as bench:
        first = await bench.ask(authorization(), key="k")
        assert isinstance(first, Answer)
        await bench.ask(CapturePayment(body(first)["id"]))
        for _ in range(2):
            again = await bench.ask(authorization(), key="k")
            assert isinstance(again, Answer)
            assert (again.status, again.body, again.replayed) == (first.status, first.body, True)
            await bench.start()
        assert (await bench.get(body(first)["id"]))["status"] == "captured"
        assert len(bench.record.charges) == 2


@in_virtual_time
async def test_the_same_command_id_gets_the_same_answer_and_it_counts_as_the_first() -> None:
    async with Bench() as bench:
        for key in (None, "k"):
            first = await bench.ask(purchase(), command_id=f"c{key}", key=key)
            again = await bench.ask(purchase(), command_id=f"c{key}", key=key)
            assert isinstance(first, Answer)
            assert isinstance(again, Answer)
            assert (again.status, again.body, again.replayed) == (first.status, first.body, False)
        assert len(bench.record.charges) == 2


@in_virtual_time
async def test_the_same_key_for_something_else_is_refused_open_or_not() -> None:
    async with Bench() as bench:
        gate = asyncio.Event()
        bench.acquirer.script(Step(gate=gate))
        first = bench.ask_soon(purchase(5), key="k")
        await bench.until(lambda: bool(bench.acquirer.calls))
        assert code(await bench.ask(purchase(6), key="k")) is RefusalCode.IDEMPOTENCY_KEY_REUSED
        gate.set()
        await first
        assert code(await bench.ask(purchase(6), key="k")) is RefusalCode.IDEMPOTENCY_KEY_REUSED
        assert code(await bench.ask(CapturePayment("pay_1"), key="k")) is RefusalCode.IDEMPOTENCY_KEY_REUSED


@in_virtual_time
async def test_while_the_first_is_open_its_key_is_in_use_and_its_command_id_joins_it() -> None:
    async with Bench() as bench:
        gate = asyncio.Event()
        bench.acquirer.script(Step(gate=gate))
        first = bench.ask_soon(purchase(), key="k", command_id="c1")
        await bench.until(lambda: bool(bench.acquirer.calls))
        refused = await bench.ask(purchase(), key="k", command_id="c2")
        assert isinstance(refused, Refused)
        assert refused.refusal.code is RefusalCode.IDEMPOTENCY_KEY_IN_USE
        assert refused.refusal.retry_after_ms
        joined = bench.ask_soon(purchase(), key="k", command_id="c1")
        await settle_down()
        assert not joined.done()
        gate.set()
        one, two = await asyncio.gather(first, joined)
        assert isinstance(one, Answer)
        assert isinstance(two, Answer)
        assert one.body == two.body
        replayed = await bench.ask(purchase(), key="k", command_id="c2")
        assert isinstance(replayed, Answer)
        assert (replayed.body, replayed.replayed) == (one.body, True)
        assert len(bench.acquirer.calls) == 1


@in_virtual_time
async def test_the_same_command_twice_in_one_batch_is_done_once() -> None:
    async with Bench() as bench:
        stop = bench.book.stop("inside")
        held = bench.ask_soon(purchase())
        await stop.reached.wait()
        same = [bench.ask_soon(purchase(7), key="k", command_id="c1") for _ in range(3)]
        other = bench.ask_soon(purchase(7), key="k", command_id="c2")
        await settle_down()
        stop.resume()
        await held
        bodies = {result.body for result in await asyncio.gather(*same) if isinstance(result, Answer)}
        assert len(bodies) == 1
        assert code(await other) is RefusalCode.IDEMPOTENCY_KEY_IN_USE
        assert len((await bench.audit()).payments) == 2


@pytest.mark.parametrize("step", [TIMEOUT_CHARGED, TIMEOUT_NOT_CHARGED])
@in_virtual_time
async def test_at_the_deadline_processing_is_said_and_said_again_ever_after(step: Step) -> None:
    async with Bench() as bench:
        bench.acquirer.script(*[step] * 3)
        began = asyncio.get_running_loop().time()
        first = await bench.ask(purchase(), key="k", budget_ms=6_000)
        took_s = asyncio.get_running_loop().time() - began
        assert 5.4 < took_s < 6.0, "early enough to reach the client"
        assert isinstance(first, Answer)
        assert first.status == 202
        assert body(first)["status"] == "processing"
        payment_id = body(first)["id"]
        await bench.until(lambda: not bench.actor.opens)
        assert (await bench.get(payment_id))["status"] == ("captured" if step is TIMEOUT_CHARGED else "failed")
        for _ in range(2):
            again = await bench.ask(purchase(), key="k")
            assert isinstance(again, Answer)
            assert (again.status, again.body, again.replayed) == (202, first.body, True)
            await bench.start()
        await bench.audit()


@in_virtual_time
async def test_the_answer_at_the_deadline_is_on_disk_before_it_leaves() -> None:
    async with Bench() as bench:
        bench.acquirer.otherwise = lambda _: HANG
        asking = bench.ask_soon(purchase(), key="k", budget_ms=1_500)
        await asyncio.sleep(0.9)
        stop = bench.book.stop("inside")
        await stop.reached.wait()
        await asyncio.sleep(0.2)
        assert not asking.done()
        stop.resume()
        first = await asking
        assert isinstance(first, Answer)
        await bench.start()
        again = await bench.ask(purchase(), key="k")
        assert isinstance(again, Answer)
        assert (again.status, again.body) == (202, first.body)


@in_virtual_time
async def test_all_who_joined_get_the_same_answer_at_their_deadlines() -> None:
    async with Bench() as bench:
        bench.acquirer.otherwise = lambda _: HANG
        asks = [
            bench.ask_soon(purchase(), command_id="c1", budget_ms=budget_ms) for budget_ms in (1_500, 1_500, 2_100, 100)
        ]
        results: list[Result] = await asyncio.gather(*asks)
        bodies = {result.body for result in results[:3] if isinstance(result, Answer)}
        assert len(bodies) == 1
        assert {result.status for result in results[:3] if isinstance(result, Answer)} == {202}
        assert len((await bench.audit()).payments) == 1


# Profile, ownership, end


@in_virtual_time
async def test_a_suspended_partner_finishes_what_is_open_and_begins_nothing() -> None:
    async with Bench() as bench:
        gate = asyncio.Event()
        bench.acquirer.script(Step(gate=gate))
        first = bench.ask_soon(authorization(), key="k")
        await bench.until(lambda: bool(bench.acquirer.calls))
        bench.actor.configure(Profile("partner_1", 2, status="suspended"))
        assert code(await bench.ask(purchase())) is RefusalCode.PARTNER_SUSPENDED
        gate.set()
        payment_id = body(await first)["id"]
        assert code(await bench.ask(CapturePayment(payment_id))) is RefusalCode.PARTNER_SUSPENDED
        again = await bench.ask(authorization(), key="k")
        assert isinstance(again, Answer)
        assert again.replayed
        bench.actor.configure(Profile("partner_1", 3))
        assert body(await bench.ask(CapturePayment(payment_id)))["status"] == "captured"


@in_virtual_time
async def test_an_older_profile_never_replaces_a_newer() -> None:
    async with Bench() as bench:
        bench.actor.configure(Profile("partner_1", 5, rate_burst=7))
        bench.actor.configure(Profile("partner_1", 4, rate_burst=9))
        bench.actor.configure(Profile("partner_1", 5, rate_burst=9))
        assert bench.actor.profile.rate_burst == 7


@in_virtual_time
async def test_a_fenced_actor_answers_nothing_and_stops() -> None:
    async with Bench() as bench:
        bench.acquirer.otherwise = lambda _: HANG
        zombie = bench.actor
        waiting = bench.ask_soon(purchase(), actor=zombie)
        await bench.until(lambda: bool(zombie.opens))
        await bench.start()
        asking = bench.ask_soon(purchase(), actor=zombie)
        for task in (asking, waiting):
            with pytest.raises(ActorStoppedError):
                await task
        assert bench.stopped == ["fenced"]
        with pytest.raises(ActorStoppedError):
            await bench.ask(purchase(), actor=zombie)
        await bench.until(lambda: not bench.actor.opens)
        assert len((await bench.audit()).payments) == 1


@in_virtual_time
async def test_a_zombie_stopped_inside_its_transaction_writes_nothing() -> None:
    async with Bench() as bench:
        zombie = bench.actor
        stop = bench.book.stop("inside")
        asking = bench.ask_soon(purchase(), key="k", command_id="c1", actor=zombie)
        await stop.reached.wait()
        await bench.start()
        answer = await bench.ask(purchase(), key="k", command_id="c1")
        stop.resume()
        with pytest.raises(ActorStoppedError):
            await asking
        assert body(answer)["status"] == "captured"
        assert len((await bench.audit()).payments) == 1


@in_virtual_time
async def test_a_zombie_that_meets_its_successors_open_operation_stops() -> None:
    """It has nothing to write, so no commit tells it; it must not look for that operation for ever."""
    async with Bench() as bench:
        zombie = bench.actor
        await bench.start(acquirer=ScriptedAcquirer(bench.record, lambda _: HANG))
        begun = bench.ask_soon(purchase(), key="k", command_id="c1")
        await bench.until(lambda: bool(bench.actor.opens))
        with pytest.raises(ActorStoppedError):
            await bench.ask(purchase(), key="k", command_id="c1", actor=zombie)
        assert bench.stopped == ["fenced"]
        assert (await begun).status == 202  # type: ignore[union-attr]


@in_virtual_time
async def test_an_older_door_cannot_take_a_partner_back() -> None:
    async with Bench() as bench:
        await bench.start(door_epoch=5)
        owner = bench.actor
        with pytest.raises(FencedError):
            await bench.start(door_epoch=4)
        assert isinstance(await bench.ask(purchase(), actor=owner), Answer)


@in_virtual_time
async def test_open_intents_are_resumed_on_activation_under_their_own_key() -> None:
    async with Bench() as bench:
        bench.acquirer.otherwise = lambda _: TIMEOUT_CHARGED
        first = bench.ask_soon(purchase(), key="k", command_id="c1")
        await bench.until(lambda: bool(bench.record.charges))
        await bench.actor.stop()
        with pytest.raises(ActorStoppedError):
            await first
        await bench.start()
        joined = await bench.ask(purchase(), key="k", command_id="c1")
        assert body(joined)["status"] == "captured"
        assert len({key for _, key in bench.acquirer.calls}) == 1
        assert list(bench.record.charges.values()) == [1]
        await bench.audit()


@in_virtual_time
async def test_an_actor_before_its_start_or_after_its_stop_takes_nothing() -> None:
    bench = Bench()
    await bench.start()
    await bench.actor.stop()
    await bench.actor.stop()
    with pytest.raises(ActorStoppedError):
        await bench.ask(purchase())
    assert bench.stopped == ["released"]
    assert bench.acquirer.closed >= 1
    assert isinstance(bench.actor.store, MemoryStore)


@in_virtual_time
async def test_a_caller_that_goes_away_harms_nobody() -> None:
    async with Bench() as bench:
        bench.acquirer.otherwise = lambda _: Step(delay_ms=100)
        gone = bench.ask_soon(purchase(), key="k")
        await bench.until(lambda: bool(bench.acquirer.calls))
        gone.cancel()
        await asyncio.sleep(1)
        again = await bench.ask(purchase(), key="k")
        assert body(again)["status"] == "captured"
        assert len(bench.record.charges) == 1
