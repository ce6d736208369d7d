"""The actor where a payment takes more than one word: challenges, results that come later, notifications, disputes."""

import asyncio
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from actors import codec, keyspace, limits
from actors.acquirer import Approved, Declined
from actors.answers import Answer
from actors.commands import (
    CapturePayment,
    ConfirmPayment,
    CreatePayment,
    DisputeNotification,
    ResultNotification,
    VoidPayment,
)
from actors.errors import ActorStoppedError
from actors.payment import DisputeStatus, payment_id_of
from actors.refusals import RefusalCode
from stores.memory_store import Fault
from tests.unit.actors.partner_bench import Bench, authorization, body, code, purchase, read_books, settle_down
from tests.unit.actors.scripted_acquirer import (
    ACCEPT,
    REFUSED,
    TIMEOUT_CHARGED,
    TIMEOUT_NOT_CHARGED,
    Step,
    challenge,
    decline,
)
from tests.unit.actors.story import Story
from tests.unit.actors.test_rules_challenges import DECLINED
from tests.unit.actors.virtual_time import START_MS, in_virtual_time

MINUTE_MS = 60_000
LATER_MS = START_MS + 15 * MINUTE_MS
FAULTS = [Fault.CONFLICT, Fault.UNAVAILABLE, Fault.UNKNOWN_WRITTEN, Fault.UNKNOWN_NOT_WRITTEN, Fault.TIMEOUT]


async def challenged(bench: Bench, command: CreatePayment | None = None, key: str | None = None) -> str:
    """Have a payment that waits for its customer; give its id."""
    bench.acquirer.script(challenge(LATER_MS))
    answer = await bench.ask(command or purchase(), key=key)
    assert isinstance(answer, Answer)
    assert answer.status == 201
    payment = body(answer)
    assert payment["status"] == "requires_action"
    return str(payment["id"])


async def accepted(bench: Bench, key: str | None = None) -> str:
    """Have a payment whose result comes later; give its operation's id."""
    bench.acquirer.script(ACCEPT)
    answer = await bench.ask(purchase(), key=key)
    assert isinstance(answer, Answer)
    assert answer.status == 202
    assert body(answer)["status"] == "processing"
    return str(body(answer)["operations"][0]["id"])


def told(operation_id: str, outcome: Approved | Declined, name: str = "msg_1") -> ResultNotification:
    return ResultNotification(name, payment_id_of(operation_id), operation_id, outcome)


def told_truly(bench: Bench, operation_id: str) -> ResultNotification:
    """Decide the operation at the acquirer and give the notification of it."""
    return told(operation_id, bench.record.decide(operation_id))


# Challenges


@pytest.mark.parametrize(("command", "status"), [(purchase(), "captured"), (authorization(), "authorized")])
@in_virtual_time
async def test_a_challenge_is_answered_and_the_confirmation_goes_on_under_the_same_key(
    command: CreatePayment, status: str
) -> None:
    async with Bench() as bench:
        payment_id = await challenged(bench, command, key="k1")
        waiting = await bench.get(payment_id)
        assert waiting["next_action"]["redirect_to_url"]["url"].startswith("https://")
        assert not bench.actor.opens, "nobody is asked while the customer acts"
        await asyncio.sleep(60)
        confirmed = await bench.ask(ConfirmPayment(payment_id), key="k2")
        assert isinstance(confirmed, Answer)
        assert (confirmed.status, body(confirmed)["status"]) == (200, status)
        operation_id = waiting["operations"][0]["id"]
        assert bench.acquirer.calls == [("perform", operation_id), ("confirm", operation_id)]
        # Each command has its own answer, for ever.
        again = await bench.ask(command, key="k1")
        assert isinstance(again, Answer)
        assert (again.status, again.replayed, body(again)) == (201, True, waiting)
        again = await bench.ask(ConfirmPayment(payment_id), key="k2")
        assert isinstance(again, Answer)
        assert (again.status, again.replayed, again.body) == (200, True, confirmed.body)
        assert bench.record.charges == {operation_id: 1}
        await bench.audit()


@in_virtual_time
async def test_a_customer_who_did_not_finish_is_asked_for_again() -> None:
    async with Bench() as bench:
        payment_id = await challenged(bench)
        bench.acquirer.script(challenge(LATER_MS), decline("authentication_failed"))
        first = await bench.ask(ConfirmPayment(payment_id), key="c1")
        assert isinstance(first, Answer)
        assert (first.status, body(first)["status"]) == (200, "requires_action")
        second = await bench.ask(ConfirmPayment(payment_id), key="c2")
        assert body(second)["failure"]["code"] == "authentication_failed"
        assert body(second)["status"] == "failed"
        assert code(await bench.ask(ConfirmPayment(payment_id), key="c3")) is RefusalCode.PAYMENT_STATE_INVALID
        assert body(await bench.ask(ConfirmPayment(payment_id), key="c1"))["status"] == "requires_action"
        await bench.audit()


@in_virtual_time
async def test_the_next_owner_goes_on_with_a_confirmation_that_was_not_asked_yet() -> None:
    async with Bench() as bench:
        payment_id = await challenged(bench)
        never = asyncio.Event()
        bench.acquirer.script(Step(gate=never))
        dead = bench.ask_soon(ConfirmPayment(payment_id), key="c", command_id="cmd")
        await bench.until(lambda: len(bench.acquirer.calls) == 2)
        former = bench.actor
        await bench.start()
        again = bench.ask_soon(ConfirmPayment(payment_id), key="c", command_id="cmd")
        await former.stop()
        with pytest.raises(ActorStoppedError):
            await dead
        assert body(await again)["status"] == "captured"
        assert [call for call, _ in bench.acquirer.calls] == ["confirm"]
        assert list(bench.record.charges.values()) == [1]
        await bench.audit()


@in_virtual_time
async def test_a_lost_confirmation_is_asked_for_again_and_its_key_closed_in_the_end() -> None:
    async with Bench() as bench:
        payment_id = await challenged(bench)
        bench.acquirer.script(TIMEOUT_CHARGED)
        assert body(await bench.ask(ConfirmPayment(payment_id)))["status"] == "captured"
        assert [call for call, _ in bench.acquirer.calls] == ["perform", "confirm", "confirm"]
        payment_id = await challenged(bench)
        bench.acquirer.script(*[TIMEOUT_NOT_CHARGED] * limits.ACQUIRER_ATTEMPTS_BEFORE_CLOSE)
        await bench.ask(ConfirmPayment(payment_id))
        await bench.until(lambda: not bench.actor.opens)
        assert bench.acquirer.calls[-1][0] == "close"
        assert (await bench.get(payment_id))["failure"]["code"] == "acquirer_did_not_answer"
        await bench.audit()


@in_virtual_time
async def test_a_challenge_that_nobody_confirms_ends_with_its_key_closed_also_with_the_next_owner() -> None:
    async with Bench() as bench:
        payment_id = await challenged(bench)
        await bench.start()
        await asyncio.sleep(16 * 60)
        ended = await bench.get(payment_id)
        assert (ended["status"], ended["failure"]["code"]) == ("failed", "challenge_expired")
        assert [call for call, _ in bench.acquirer.calls] == ["close"]
        assert code(await bench.ask(ConfirmPayment(payment_id))) is RefusalCode.PAYMENT_STATE_INVALID
        assert not bench.record.charges
        await bench.audit()


@in_virtual_time
async def test_a_void_closes_the_key_before_it_says_canceled() -> None:
    async with Bench() as bench:
        payment_id = await challenged(bench)
        gate = asyncio.Event()
        bench.acquirer.script(Step(gate=gate))
        voiding = bench.ask_soon(VoidPayment(payment_id))
        await bench.until(lambda: len(bench.acquirer.calls) == 2)
        assert not voiding.done()
        assert (await bench.get(payment_id))["status"] == "processing"
        gate.set()
        answer = await voiding
        assert isinstance(answer, Answer)
        assert (answer.status, body(answer)["status"]) == (200, "canceled")
        assert bench.acquirer.calls[1][0] == "close"
        await bench.audit()


@in_virtual_time
async def test_a_void_that_comes_too_late_says_what_was_charged() -> None:
    async with Bench() as bench:
        payment_id = await challenged(bench)
        operation_id = bench.acquirer.calls[0][1]
        bench.record.decide(operation_id)  # by a zombie of ours, or by the acquirer itself
        answer = await bench.ask(VoidPayment(payment_id))
        assert body(answer)["status"] == "captured"
        await bench.audit()


@in_virtual_time
async def test_a_challenge_and_its_confirmation_in_one_batch_each_get_their_own_answer() -> None:
    async with Bench() as bench:
        gate = asyncio.Event()
        bench.acquirer.script(Step(challenge(LATER_MS).outcome, gate=gate))
        creating = bench.ask_soon(purchase(), key="k1")
        await bench.until(lambda: len(bench.acquirer.calls) == 1)
        (opened,) = bench.actor.opens.values()
        stop = bench.book.stop("before")
        other = bench.ask_soon(purchase())
        await stop.reached.wait()
        gate.set()
        await settle_down()  # the word waits for the commit that is held
        confirming = bench.ask_soon(ConfirmPayment(opened.payment_id), key="k2")
        await settle_down()
        stop.resume()
        assert body(await creating)["status"] == "requires_action"
        assert body(await confirming)["status"] == "captured"
        await other
        books = await bench.audit()
        batches = [[type(event).__name__ for event in entry.events] for entry in books.entries]
        assert ["OperationConfirmed"] in batches


@in_virtual_time
async def test_a_challenge_for_a_capture_is_garbage() -> None:
    async with Bench() as bench:
        payment_id = body(await bench.ask(authorization()))["id"]
        bench.acquirer.script(challenge(LATER_MS))
        # This acquirer says so until the key is closed.
        answer = await bench.ask(CapturePayment(payment_id, 10))
        assert body(answer)["failure"]["code"] == "acquirer_did_not_answer"
        await bench.audit()


@in_virtual_time
async def test_what_waits_for_customers_is_not_in_flight_and_is_listed() -> None:
    async with Bench(in_flight_max=2) as bench:
        ids = [await challenged(bench) for _ in range(5)]
        listed = body(await bench.query("list_payments", status="requires_action", limit=10))["data"]
        assert [payment["id"] for payment in listed] == sorted(ids, reverse=True)
        confirming = await asyncio.gather(*(bench.ask(ConfirmPayment(payment_id)) for payment_id in ids[:2]))
        assert {body(answer)["status"] for answer in confirming} == {"captured"}
        await bench.audit()


# Results that come later


@in_virtual_time
async def test_what_the_acquirer_accepted_is_answered_at_once_and_polled_slowly() -> None:
    async with Bench() as bench:
        bench.acquirer.otherwise = lambda _: ACCEPT
        began = asyncio.get_running_loop().time()
        operation_id = await accepted(bench, key="k")
        assert asyncio.get_running_loop().time() - began < 0.1, "nobody waits for a deadline"
        books = await read_books(bench.book)
        written = books.standing.sequence
        await asyncio.sleep(3_600)
        assert {call for call, _ in bench.acquirer.calls} == {"perform"}, "what was accepted is never closed"
        assert 10 < len(bench.acquirer.calls) < 40
        assert (await read_books(bench.book)).standing.sequence == written, "asking in vain writes nothing"
        bench.acquirer.otherwise = lambda _: Step()
        bench.record.decide(operation_id)
        await asyncio.sleep(limits.ACQUIRER_POLL_DELAY_MS_MAX / 1_000)
        assert (await bench.get(payment_id_of(operation_id)))["status"] == "captured"
        again = await bench.ask(purchase(), key="k")
        assert isinstance(again, Answer)
        assert (again.status, again.replayed) == (202, True), "an answer is an answer for ever"
        await bench.audit()


@in_virtual_time
async def test_polls_that_fail_lose_nothing_and_close_nothing() -> None:
    async with Bench() as bench:
        operation_id = await accepted(bench)
        bench.acquirer.script(*[REFUSED] * 10)
        await bench.until(lambda: not bench.actor.opens)
        assert {call for call, _ in bench.acquirer.calls} == {"perform"}
        assert (await bench.get(payment_id_of(operation_id)))["status"] == "captured"
        await bench.audit()


@in_virtual_time
async def test_what_the_acquirer_never_decides_goes_to_a_person() -> None:
    async with Bench() as bench:
        bench.acquirer.otherwise = lambda _: ACCEPT
        operation_id = await accepted(bench)
        await asyncio.sleep(25 * 3_600)
        (row,) = body(await bench.query("list_unknown"))["data"]
        assert (row["operation_id"], row["needs_person"]) == (operation_id, True)
        await bench.audit()


@in_virtual_time
async def test_an_acceptance_whose_commit_was_lost_still_answers_who_waits() -> None:
    for fault in FAULTS:
        async with Bench() as bench:
            gate = asyncio.Event()
            bench.acquirer.script(Step(ACCEPT.outcome, gate=gate))
            asking = bench.ask_soon(purchase(), key="k")
            await bench.until(lambda: bool(bench.acquirer.calls))
            bench.book.inject(fault)
            gate.set()
            answer = await asking
            assert isinstance(answer, Answer)
            assert answer.status == 202
            assert not asking.cancelled()


# Notifications of results


@in_virtual_time
async def test_a_notified_result_settles_what_was_accepted_once() -> None:
    async with Bench() as bench:
        operation_id = await accepted(bench)
        command = told_truly(bench, operation_id)
        asked = len(bench.acquirer.calls)
        first = await bench.ask(command)
        assert isinstance(first, Answer)
        assert (first.status, first.replayed) == (200, False)
        assert (await bench.get(payment_id_of(operation_id)))["status"] == "captured"
        written = (await bench.audit()).standing.sequence
        # Twice, under another id, and told to the next owner: nothing more happens.
        for actor in (bench.actor, await bench.start()):
            for again in (command, told(operation_id, command.outcome, "msg_2")):
                answer = await bench.ask(again, actor=actor)
                assert isinstance(answer, Answer)
                assert (answer.status, answer.body) == (200, first.body)
        assert (await bench.audit()).standing.sequence == written
        await asyncio.sleep(3_600)
        assert len(bench.acquirer.calls) <= asked, "it is asked for no more"


@in_virtual_time
async def test_a_result_that_is_notified_before_the_acquirer_answers() -> None:
    async with Bench() as bench:
        gate = asyncio.Event()
        bench.acquirer.script(Step(gate=gate))
        asking = bench.ask_soon(purchase())
        await bench.until(lambda: bool(bench.acquirer.calls))
        (operation_id,) = bench.actor.opens
        await bench.ask(told(operation_id, Approved("ref-9")))
        answer = await asking
        assert isinstance(answer, Answer)
        assert (answer.status, body(answer)["status"]) == (201, "captured")
        assert not bench.actor.opens


@in_virtual_time
async def test_a_late_answer_after_a_time_out_settles_at_once() -> None:
    async with Bench() as bench:
        bench.acquirer.otherwise = lambda _: TIMEOUT_CHARGED
        asking = bench.ask_soon(purchase())
        await bench.until(lambda: bool(bench.record.charges))
        (operation_id,) = bench.actor.opens
        await bench.until(lambda: len(bench.acquirer.calls) == 2)
        assert (await bench.get(payment_id_of(operation_id)))["operations"][0]["status"] == "unknown"
        began = asyncio.get_running_loop().time()
        await bench.ask(told_truly(bench, operation_id))
        assert body(await asking)["status"] == "captured"
        assert asyncio.get_running_loop().time() - began < 0.1
        await asyncio.sleep(3_600)
        assert len(bench.acquirer.calls) == 2
        assert list(bench.record.charges.values()) == [1]
        await bench.audit()


@in_virtual_time
async def test_a_result_that_is_notified_while_the_customer_acts() -> None:
    async with Bench() as bench:
        payment_id = await challenged(bench)
        operation_id = bench.acquirer.calls[0][1]
        await bench.ask(told_truly(bench, operation_id))
        assert (await bench.get(payment_id))["status"] == "captured"
        await asyncio.sleep(3_600)
        assert len(bench.acquirer.calls) == 1, "nothing is left to end"
        await bench.audit()


@pytest.mark.parametrize("fault", FAULTS)
@in_virtual_time
async def test_a_notification_is_acknowledged_only_when_it_is_committed(fault: Fault) -> None:
    async with Bench() as bench:
        operation_id = await accepted(bench)
        command = told_truly(bench, operation_id)
        bench.book.inject(fault)
        answer = await bench.ask(command)
        assert isinstance(answer, Answer)
        assert bench.book.deliver_late() == 0
        books = await bench.audit()
        assert books.operations[operation_id][1] == "succeeded"
        assert books.standing.sequence == 3, "intended, accepted, approved"


@in_virtual_time
async def test_a_notification_that_can_t_be_written_is_refused_and_told_again() -> None:
    async with Bench() as bench:
        operation_id = await accepted(bench)
        command = told_truly(bench, operation_id)
        for _ in range(limits.COMMIT_ATTEMPTS_MAX):
            bench.book.inject(Fault.UNAVAILABLE)
        assert code(await bench.ask(command)) is RefusalCode.PARTNER_UNAVAILABLE
        assert isinstance(await bench.ask(command), Answer)
        await bench.audit()


@in_virtual_time
async def test_a_worker_that_dies_between_a_notification_and_its_commit_costs_a_delay() -> None:
    async with Bench() as bench:
        operation_id = await accepted(bench)
        command = told_truly(bench, operation_id)
        stop = bench.book.stop("inside")
        dying = bench.ask_soon(command, command_id="cmd")
        await stop.reached.wait()
        former = bench.actor
        taking_over = asyncio.create_task(bench.start())
        await settle_down()
        stop.resume()
        await taking_over
        await former.stop()
        await asyncio.gather(dying, return_exceptions=True)
        answer = await bench.ask(command, command_id="cmd")  # the door sends it once more
        assert isinstance(answer, Answer)
        assert answer.status == 200
        books = await bench.audit()
        approvals = [e for entry in books.entries for e in entry.events if type(e).__name__ == "OperationApproved"]
        assert len(approvals) == 1


@in_virtual_time
async def test_no_limit_of_the_partner_holds_notifications_up() -> None:
    async with Bench(rate_per_second=1, rate_burst=1, in_flight_max=1) as bench:
        operation_id = await accepted(bench)
        assert code(await bench.ask(purchase())) is RefusalCode.RATE_LIMITED
        before = bench.actor.standing.arrival_us
        assert isinstance(await bench.ask(told_truly(bench, operation_id)), Answer)
        assert bench.actor.standing.arrival_us == before, "nor does it count"


@in_virtual_time
async def test_what_contradicts_something_final_is_written_down_and_changes_nothing() -> None:
    async with Bench() as bench:
        payment = body(await bench.ask(purchase()))
        operation_id = payment["operations"][0]["id"]
        with capture_logs() as lines:
            answer = await bench.ask(told(operation_id, DECLINED))
        assert isinstance(answer, Answer)
        assert await bench.get(payment["id"]) == payment
        (line,) = [line for line in lines if line["event"] == "acquirer_contradicts"]
        assert (line["log_level"], line["operation"]) == ("error", operation_id)
        (event,) = [
            event
            for event in body(await bench.query("list_events", limit=10))["data"]
            if event["type"] == "operation.contradicted"
        ]
        assert event["data"]["claim"] == "declined: stolen_card"
        written = (await bench.audit()).standing.sequence
        await bench.ask(told(operation_id, DECLINED))
        assert (await bench.audit()).standing.sequence == written, "told twice, it is written once"


@in_virtual_time
async def test_the_same_id_for_other_news_is_refused() -> None:
    async with Bench() as bench:
        operation_id = await accepted(bench)
        await bench.ask(told_truly(bench, operation_id), fingerprint=b"1")
        again = await bench.ask(told(operation_id, DECLINED), fingerprint=b"2")
        assert code(again) is RefusalCode.IDEMPOTENCY_KEY_REUSED


@in_virtual_time
async def test_a_partner_s_key_is_never_taken_for_a_notification_s_id() -> None:
    async with Bench() as bench:
        operation_id = await accepted(bench, key="msg_1")
        assert isinstance(await bench.ask(told_truly(bench, operation_id)), Answer)
        assert (await bench.get(payment_id_of(operation_id)))["status"] == "captured"
        await bench.audit()


@in_virtual_time
async def test_ids_of_notifications_are_forgotten_with_the_rest() -> None:
    async with Bench() as bench:
        operation_id = await accepted(bench)
        await bench.ask(told_truly(bench, operation_id))
        key = keyspace.notification("main", "msg_1")
        assert key in (await read_books(bench.book)).rows
        await asyncio.sleep(limits.IDEMPOTENCY_KEPT_MS / 1_000 + 600)
        assert key not in (await read_books(bench.book)).rows
        assert isinstance(await bench.ask(told(operation_id, Approved("ref-1"))), Answer)
        await bench.audit()


@in_virtual_time
async def test_an_ordinary_payment_writes_what_it_always_did() -> None:
    async with Bench() as bench:
        await bench.ask(purchase())
        books = await bench.audit()
        assert sorted(key[0] for key in books.rows) == ["head", "journal", "journal", "once", "payment", "status"]
        (record,) = books.under("payment").values()
        assert codec.decode_payment(record) is not None
        assert record[1] == codec.VERSION


# Disputes


@in_virtual_time
async def test_a_dispute_from_its_news_to_the_balance() -> None:
    async with Bench() as bench:
        payment = body(await bench.ask(purchase()))
        story = Story()
        story.told = bench.actor.cached_payment(payment["id"])
        operation_id = payment["operations"][0]["id"]

        def news(status: str) -> DisputeNotification:
            command = story.told_dispute(status, operation_id)
            return replace(command, notification_id=f"msg_{status}", payment_id=payment["id"])

        await bench.ask(news("won"))  # the end before the beginning
        answer = await bench.ask(news("open"))
        assert isinstance(answer, Answer)
        shown = await bench.get(payment["id"])
        assert (shown["status"], shown["dispute"]["status"]) == ("captured", DisputeStatus.WON.value)
        (balance,) = body(await bench.query("get_balance"))["balances"]
        assert (balance["payable"], balance["disputes_held"]) == (1_000, 0)
        await bench.audit()


@in_virtual_time
async def test_a_dispute_that_would_leave_no_room_for_an_outcome_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Bench() as bench:
        payment = body(await bench.ask(purchase()))
        story = Story()
        story.told = bench.actor.cached_payment(payment["id"])
        news = story.told_dispute("open", payment["operations"][0]["id"])
        command = replace(news, payment_id=payment["id"])
        monkeypatch.setattr(limits, "OUTCOME_BYTES_MAX", limits.STORE_VALUE_BYTES_MAX)
        assert code(await bench.ask(command)) is RefusalCode.COMMAND_TOO_LARGE
        monkeypatch.undo()
        assert isinstance(await bench.ask(command), Answer)
        assert (await bench.get(payment["id"]))["status"] == "disputed"
        await bench.audit()


# What keeps a partner from being deleted


@in_virtual_time
async def test_what_is_open_is_counted_whatever_its_status_is_called() -> None:
    async def counted() -> tuple[int, int, int, int]:
        told = body(await bench.query("count_open"))
        return told["under_way"], told["unknown"], told["held"], told["disputed"]

    async with Bench() as bench:
        await bench.ask(purchase())
        assert await counted() == (0, 0, 0, 0)
        payment_id = body(await bench.ask(authorization()))["id"]
        await challenged(bench)
        assert await counted() == (0, 0, 2, 0)
        await bench.ask(CapturePayment(payment_id, 10))
        assert await counted() == (0, 0, 2, 0), "what is captured in part still holds the rest"
        bench.acquirer.otherwise = lambda _: ACCEPT
        await accepted(bench, key="k")
        assert await counted() == (1, 0, 2, 0)


@in_virtual_time
async def test_a_dispute_keeps_a_partner_until_it_is_won_or_lost() -> None:
    async with Bench() as bench:
        payment = body(await bench.ask(purchase()))
        story = Story()
        story.told = bench.actor.cached_payment(payment["id"])
        for status, disputed in (("open", 1), ("lost", 0)):
            news = story.told_dispute(status, payment["operations"][0]["id"])
            await bench.ask(replace(news, notification_id=f"msg_{status}", payment_id=payment["id"]))
            assert body(await bench.query("count_open"))["disputed"] == disputed
        assert (await bench.get(payment["id"]))["status"] == "disputed", "so its payment stays for ever"
