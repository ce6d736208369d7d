"""How an operation gets its outcome, whatever the acquirer does."""

import asyncio
from collections import Counter
from itertools import pairwise
from typing import Any

import orjson
import pytest

from actors import limits
from actors.acquirer import Instruction, NeverPerformed
from actors.answers import Answer, Refused
from actors.commands import CapturePayment, RefundPayment, ResolveOperation, VoidPayment
from actors.profile import MAIN_ACQUIRER
from actors.refusals import RefusalCode
from tests.unit.actors.partner_bench import Bench, authorization, body, code, purchase, read_books, settle_down
from tests.unit.actors.scripted_acquirer import (
    MALFORMED,
    REFUSED,
    TIMEOUT_CHARGED,
    TIMEOUT_NOT_CHARGED,
    ScriptedAcquirer,
    Step,
    decline,
)
from tests.unit.actors.virtual_time import in_virtual_time

HOUR_S = 3_600


async def open_unknown(bench: Bench, count: int = 1) -> list[asyncio.Task[Any]]:
    """Have payments open whose acquirer does not answer."""
    asks = [bench.ask_soon(purchase(), key=f"k{n}") for n in range(count)]
    await bench.until(lambda: len(bench.actor.opens) == count)
    return asks


@pytest.mark.parametrize("step", [TIMEOUT_CHARGED, MALFORMED, Step(lost="lost"), Step(lost="server_error")])
@in_virtual_time
async def test_what_was_charged_and_not_told_is_learned_by_asking_again(step: Step) -> None:
    async with Bench() as bench:
        bench.acquirer.script(step)
        answer = await bench.ask(purchase())
        assert body(answer)["status"] == "captured"
        (key,) = bench.record.charges
        assert bench.acquirer.calls == [("perform", key), ("perform", key)]
        books = await bench.audit()
        assert [type(event).__name__ for entry in books.entries for event in entry.events] == [
            "PaymentCreated",
            "OperationIntended",
            "OperationLost",
            "OperationApproved",
        ]


@in_virtual_time
async def test_after_some_attempts_the_key_is_closed_and_nothing_ever_charges_under_it() -> None:
    async with Bench() as bench:
        # The requests are on their way all the time: they arrive a minute later, when the key has been closed.
        bench.acquirer.script(*[Step(lost="timeout", arrives_after_ms=60_000)] * limits.ACQUIRER_ATTEMPTS_BEFORE_CLOSE)
        await bench.ask(purchase())
        await bench.until(lambda: not bench.actor.opens)
        calls = [call for call, _ in bench.acquirer.calls]
        assert calls == ["perform"] * limits.ACQUIRER_ATTEMPTS_BEFORE_CLOSE + ["close"]
        await asyncio.sleep(120)
        assert not bench.record.charges
        (outcome,) = bench.record.outcomes.values()
        assert isinstance(outcome, NeverPerformed)
        books = await bench.audit()
        (payment,) = books.payments.values()
        assert payment.status.value == "failed"
        assert payment.first.failure is not None
        assert payment.first.failure.retryable


@in_virtual_time
async def test_a_close_that_finds_a_charge_tells_it() -> None:
    async with Bench() as bench:
        bench.acquirer.script(*[MALFORMED] * limits.ACQUIRER_ATTEMPTS_BEFORE_CLOSE)
        answer = await bench.ask(purchase())
        assert body(answer)["status"] == "captured"
        assert bench.acquirer.calls[-1][0] == "close"
        await bench.audit()


@in_virtual_time
async def test_a_close_that_is_lost_is_sent_again() -> None:
    async with Bench() as bench:
        bench.acquirer.script(*[REFUSED] * limits.ACQUIRER_ATTEMPTS_BEFORE_CLOSE, TIMEOUT_CHARGED, MALFORMED)
        await bench.ask(purchase())
        await bench.until(lambda: not bench.actor.opens)
        assert [call for call, _ in bench.acquirer.calls][-3:] == ["close"] * 3
        await bench.audit()


@in_virtual_time
async def test_the_next_owner_goes_on_where_the_last_one_was() -> None:
    async with Bench() as bench:
        bench.acquirer.otherwise = lambda _: REFUSED
        asks = await open_unknown(bench)
        (operation_id,) = bench.actor.opens
        await bench.until(lambda: bench.actor.opens[operation_id].attempts >= limits.ACQUIRER_ATTEMPTS_BEFORE_CLOSE)
        await bench.start()
        await bench.until(lambda: not bench.actor.opens)
        assert bench.acquirer.calls == [("close", operation_id)]
        await asyncio.gather(*asks, return_exceptions=True)
        await bench.audit()


@in_virtual_time
async def test_waits_between_attempts_grow_up_to_a_bound() -> None:
    times: list[float] = []

    def refuse(_: Instruction) -> Step:
        times.append(asyncio.get_running_loop().time())
        return REFUSED

    async with Bench() as bench:
        bench.acquirer.otherwise = refuse
        asks = await open_unknown(bench)
        await asyncio.sleep(HOUR_S)
        waits = [after - before for before, after in pairwise(times)]
        assert waits[0] < 1
        assert max(waits) <= (limits.ACQUIRER_RETRY_DELAY_MS_MAX + 2 * limits.BREAKER_OPEN_MS) / 1_000
        assert len(times) < 300
        assert (await asks[0]).status == 202


@in_virtual_time
async def test_a_bug_of_the_acquirers_client_leaves_the_operation_unknown_not_alone() -> None:
    class Buggy(ScriptedAcquirer):
        async def perform(self, instruction: Instruction, timeout_ms: int) -> Any:
            if len(self.calls) < 2:
                self.calls.append(("bug", instruction.key))
                raise KeyError("no such header")
            return await super().perform(instruction, timeout_ms)

    async with Bench() as bench:
        await bench.start(acquirer=Buggy(bench.record))
        assert body(await bench.ask(purchase()))["status"] == "captured"
        assert [call for call, _ in bench.acquirer.calls] == ["bug", "bug", "perform"]
        await bench.audit()


@pytest.mark.parametrize("follow_up", ["capture", "void", "refund"])
@in_virtual_time
async def test_follow_ups_are_settled_the_same_way(follow_up: str) -> None:
    async with Bench() as bench:
        first = body(await bench.ask(purchase() if follow_up == "refund" else authorization()))
        commands = {"capture": CapturePayment, "void": VoidPayment, "refund": RefundPayment}
        bench.acquirer.script(TIMEOUT_CHARGED, REFUSED)
        answer = await bench.ask(commands[follow_up](first["id"]))
        assert isinstance(answer, Answer)
        assert answer.status == (201 if follow_up == "refund" else 200)
        newest = await bench.get(first["id"])
        assert newest["status"] == {"capture": "captured", "void": "canceled", "refund": "refunded"}[follow_up]
        assert {i.original_key for i in bench.record.instructions.values()} == {None, first["operations"][0]["id"]}
        await bench.audit()


# The slots and the breaker


@in_virtual_time
async def test_slots_bound_how_many_calls_are_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ACQUIRER_SLOTS", 4)
    async with Bench() as bench:
        await bench.start()
        bench.acquirer.otherwise = lambda _: Step(delay_ms=100)
        answers = await asyncio.gather(*[bench.ask(purchase()) for _ in range(30)])
        assert bench.acquirer.in_flight_max == 4
        assert {answer.status for answer in answers if isinstance(answer, Answer)} == {201}
        assert asyncio.get_running_loop().time() > 0.7


@in_virtual_time
async def test_the_breaker_opens_refuses_what_is_new_at_once_and_closes_again() -> None:
    async with Bench() as bench:
        bench.acquirer.otherwise = lambda _: REFUSED
        asks = await open_unknown(bench, limits.BREAKER_FAILURES_TO_OPEN)
        await asyncio.sleep(0.1)
        began = asyncio.get_running_loop().time()
        refused = await bench.ask(purchase())
        assert isinstance(refused, Refused)
        assert refused.refusal.code is RefusalCode.ACQUIRER_UNAVAILABLE
        assert refused.refusal.retry_after_ms == limits.BREAKER_OPEN_MS
        assert asyncio.get_running_loop().time() - began < 0.01
        bench.acquirer.otherwise = lambda _: Step()
        await bench.until(lambda: not bench.actor.opens)
        assert bench.breaker.state(bench.actor.monotonic_ms()) == "closed"
        assert body(await bench.ask(purchase()))["status"] == "captured"
        answers = [await task for task in asks]
        assert {body(answer)["status"] for answer in answers} == {"captured"}
        await bench.audit()


@in_virtual_time
async def test_what_waited_for_a_slot_does_not_go_past_an_open_breaker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ACQUIRER_SLOTS", limits.BREAKER_FAILURES_TO_OPEN)
    async with Bench() as bench:
        await bench.start()
        bench.acquirer.otherwise = lambda _: TIMEOUT_NOT_CHARGED
        asks = await open_unknown(bench, 5 * limits.BREAKER_FAILURES_TO_OPEN)
        await asyncio.sleep(limits.ACQUIRER_TIMEOUT_MS / 1_000 + 0.01)
        assert bench.breaker.state(bench.actor.monotonic_ms()) == "open"
        assert len(bench.acquirer.calls) == limits.BREAKER_FAILURES_TO_OPEN
        for task in asks:
            task.cancel()


@in_virtual_time
async def test_probes_that_a_person_ends_do_not_shut_the_breaker_for_ever() -> None:
    async with Bench() as bench:
        bench.acquirer.otherwise = lambda _: REFUSED
        asks = await open_unknown(bench, limits.BREAKER_FAILURES_TO_OPEN)
        await bench.until(lambda: not bench.breaker.allows(bench.actor.monotonic_ms()))
        bench.acquirer.otherwise = lambda _: TIMEOUT_NOT_CHARGED
        await bench.until(lambda: bench.acquirer.in_flight == limits.BREAKER_PROBES)
        probed = {key for _, key in bench.acquirer.calls[-limits.BREAKER_PROBES :]}
        bench.pass_retention()
        for operation_id in probed:
            resolved = await bench.ask(ResolveOperation(operation_id, False, "ann", "the bank says so"))
            assert body(resolved)["status"] == "failed"
        await settle_down()
        assert bench.acquirer.in_flight == 0
        bench.acquirer.otherwise = lambda _: Step()
        await bench.until(lambda: bench.breaker.allows(bench.actor.monotonic_ms()), within_s=60)
        assert body(await bench.ask(purchase()))["status"] == "captured"
        # The others are as old, and were not asked for again.
        assert len(bench.actor.opens) == limits.BREAKER_FAILURES_TO_OPEN - limits.BREAKER_PROBES
        for operation_id in bench.actor.opens:
            await bench.ask(ResolveOperation(operation_id, False, "ann", "the bank says so"))
        await asyncio.gather(*asks)
        await bench.audit()


# A person


@in_virtual_time
async def test_while_the_acquirer_is_asked_no_person_decides_and_what_was_charged_is_learned() -> None:
    """Resolved as failed it would be wrong: the acquirer charged it, and says so when it is back."""
    async with Bench() as bench:
        bench.acquirer.otherwise = lambda _: TIMEOUT_CHARGED
        asks = await open_unknown(bench)
        (operation_id,) = bench.actor.opens
        assert (await asks[0]).status == 202
        command = ResolveOperation(operation_id, False, "ann", "n")
        await asyncio.sleep(limits.ACQUIRER_KEY_RETENTION_MS / 1_000 - HOUR_S)
        before = (await read_books(bench.book)).standing
        assert code(await bench.ask(command, key="resolve-1")) is RefusalCode.OPERATION_STILL_PURSUED
        assert (await read_books(bench.book)).standing == before
        bench.acquirer.otherwise = lambda _: Step()
        await bench.until(lambda: not bench.actor.opens)
        assert bench.record.charges[operation_id] == 1
        (payment,) = (await bench.audit()).payments.values()
        assert payment.status.value == "captured"


@in_virtual_time
async def test_a_person_may_decide_from_the_very_millisecond_on_that_is_shown_as_theirs() -> None:
    async with Bench() as bench:
        bench.acquirer.otherwise = lambda _: REFUSED
        asks = await open_unknown(bench)
        assert (await asks[0]).status == 202
        (opened,) = bench.actor.opens.values()
        command = ResolveOperation(opened.operation_id, False, "ann", "n")
        bench.clock.wall_offset_ms += (
            opened.first_asked_ms + limits.ACQUIRER_KEY_RETENTION_MS - 1 - bench.actor.now_ms()
        )
        (shown,) = body(await bench.query("list_unknown"))["data"]
        assert not shown["needs_person"]
        assert code(await bench.ask(command, key="resolve-1")) is RefusalCode.OPERATION_STILL_PURSUED
        bench.clock.wall_offset_ms += 1
        (shown,) = body(await bench.query("list_unknown"))["data"]
        assert shown["needs_person"]
        resolved = await bench.ask(command, key="resolve-1")
        assert body(resolved)["status"] == "failed", "the refusal left the key free"


@in_virtual_time
async def test_past_the_retention_of_keys_nobody_asks_any_more_and_a_person_decides() -> None:
    async with Bench() as bench:
        bench.acquirer.otherwise = lambda _: REFUSED
        asks = await open_unknown(bench)
        assert (await asks[0]).status == 202
        (operation_id,) = bench.actor.opens
        await asyncio.sleep(limits.ACQUIRER_KEY_RETENTION_MS / 1_000 - HOUR_S)
        (shown,) = body(await bench.query("list_unknown"))["data"]
        assert not shown["needs_person"]
        await asyncio.sleep(HOUR_S + 60)
        (shown,) = body(await bench.query("list_unknown"))["data"]
        assert shown["needs_person"]
        assert shown["operation_id"] == operation_id
        calls = len(bench.acquirer.calls)
        await asyncio.sleep(48 * HOUR_S)
        await bench.start()
        await asyncio.sleep(HOUR_S)
        assert not bench.acquirer.calls
        assert len(bench.owners[0].acquirers.way(MAIN_ACQUIRER).port.calls) == calls  # type: ignore[attr-defined]
        resolved = await bench.ask(ResolveOperation(operation_id, True, "ann", "seen on the statement"))
        assert body(resolved)["status"] == "captured"
        books = await bench.audit()
        (payment,) = books.payments.values()
        assert payment.first.resolved_by == "ann: seen on the statement"
        assert not body(await bench.query("list_unknown"))["data"]
        assert (
            code(await bench.ask(ResolveOperation(operation_id, True, "ann", "n"))) is RefusalCode.OPERATION_NOT_FOUND
        )


@in_virtual_time
async def test_the_age_of_a_key_is_looked_at_after_the_wait_for_the_breaker(monkeypatch: pytest.MonkeyPatch) -> None:
    """An acquirer that is down until it may have forgotten: what it comes back to must not be asked any more."""
    monkeypatch.setattr(limits, "ACQUIRER_KEY_RETENTION_MS", 300_000)
    async with Bench() as bench:
        down_until_ms = bench.actor.now_ms() + limits.ACQUIRER_KEY_RETENTION_MS + 60_000
        bench.acquirer.otherwise = lambda _: REFUSED
        asks = await open_unknown(bench, 3 * limits.BREAKER_FAILURES_TO_OPEN)
        opened_ms = bench.actor.now_ms()
        last_ms = 0

        def late(_: Instruction) -> Step:
            nonlocal last_ms
            last_ms = bench.actor.now_ms()
            return REFUSED

        bench.acquirer.otherwise = late
        while bench.actor.now_ms() < down_until_ms:  # noqa: ASYNC110 - time is virtual
            await asyncio.sleep(60)
        assert last_ms < opened_ms + limits.ACQUIRER_KEY_RETENTION_MS
        await asyncio.gather(*asks, return_exceptions=True)


@in_virtual_time
async def test_an_operation_that_was_never_asked_for_until_too_late_can_be_resolved_too() -> None:
    """Everything was off for a day between the intent and the call."""
    async with Bench() as bench:
        gate = asyncio.Event()
        bench.acquirer.script(Step(gate=gate, arrives=False, lost="refused"))
        asks = await open_unknown(bench)
        await bench.actor.stop()
        await asyncio.sleep(limits.ACQUIRER_KEY_RETENTION_MS / 1_000)
        await bench.start()
        (operation_id,) = bench.actor.opens
        await asyncio.sleep(1)
        assert not bench.acquirer.calls
        (shown,) = body(await bench.query("list_unknown"))["data"]
        assert shown["needs_person"]
        resolved = await bench.ask(ResolveOperation(operation_id, False, "ann", "never sent"), key="resolve-1")
        assert body(resolved)["status"] == "failed"
        again = await bench.ask(ResolveOperation(operation_id, False, "ann", "never sent"), key="resolve-1")
        assert isinstance(again, Answer)
        assert again.replayed
        await asyncio.gather(*asks, return_exceptions=True)
        await bench.audit()


@in_virtual_time
async def test_what_a_person_said_stays_whatever_the_acquirer_says_later() -> None:
    async with Bench() as bench:
        gate = asyncio.Event()
        bench.acquirer.script(REFUSED, Step(gate=gate))
        asks = await open_unknown(bench)
        (operation_id,) = bench.actor.opens
        await bench.until(lambda: len(bench.acquirer.calls) == 2)
        bench.pass_retention()
        resolved = await bench.ask(ResolveOperation(operation_id, False, "ann", "n"))
        gate.set()
        assert orjson.loads((await asks[0]).body)["status"] == "failed"
        await asyncio.sleep(600)
        assert (await bench.get(body(resolved)["id"]))["status"] == "failed"
        await bench.audit()


@in_virtual_time
async def test_only_an_unknown_operation_is_for_a_person() -> None:
    async with Bench() as bench:
        gate = asyncio.Event()
        bench.acquirer.script(Step(gate=gate))
        asks = await open_unknown(bench)
        (operation_id,) = bench.actor.opens
        command = ResolveOperation(operation_id, True, "ann", "n")
        assert code(await bench.ask(command)) is RefusalCode.OPERATION_FINAL
        gate.set()
        await asks[0]
        assert code(await bench.ask(command)) is RefusalCode.OPERATION_NOT_FOUND


@in_virtual_time
async def test_a_mixed_day_ends_with_all_outcomes_known() -> None:
    async with Bench() as bench:
        steps = [
            Step(),
            decline(),
            TIMEOUT_CHARGED,
            TIMEOUT_NOT_CHARGED,
            MALFORMED,
            REFUSED,
            Step(delay_ms=700),
            Step(lost="timeout", arrives_after_ms=9_000),
        ]
        for _ in range(12):
            bench.acquirer.script(*steps)
        results = await asyncio.gather(*[bench.ask(purchase(n + 1)) for n in range(48)])
        await bench.until(lambda: not bench.actor.opens)
        books = await bench.audit()
        statuses = Counter(payment.status.value for payment in books.payments.values())
        assert set(statuses) == {"captured", "failed"}
        for result in results:
            if isinstance(result, Answer) and result.status == 201:
                assert body(result)["status"] == books.payments[body(result)["id"]].status.value
