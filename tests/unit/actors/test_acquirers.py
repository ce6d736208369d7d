"""Several acquirers of one partner: a choice for what is new, and none for what was ever asked. In virtual time."""

import asyncio
from dataclasses import replace

from actors import limits
from actors.acquirer import Approved
from actors.acquirers import Acquirers
from actors.commands import CapturePayment, RefundPayment, ResultNotification
from actors.partner import PartnerActor
from actors.profile import MAIN_ACQUIRER
from actors.refusals import RefusalCode
from tests.unit.actors.partner_bench import Bench, authorization, body, code, purchase, read_books
from tests.unit.actors.scripted_acquirer import REFUSED, TIMEOUT_CHARGED, AcquirerRecord, ScriptedAcquirer, Step
from tests.unit.actors.virtual_time import in_virtual_time

SECOND = "second"


class TwoAcquirers(Bench):
    """A partner whose profile names two; each has a record of its own."""

    def __init__(self) -> None:
        super().__init__(acquirers=(MAIN_ACQUIRER, SECOND))
        self.second = ScriptedAcquirer(AcquirerRecord())

    async def own(self, door_epoch: int = 1, *, without_second: bool = False) -> PartnerActor:
        """Give the book a new owner; stop the one before."""
        await self.stop()
        self.acquirer = ScriptedAcquirer(self.record)
        ports = {MAIN_ACQUIRER: self.acquirer} | ({} if without_second else {SECOND: self.second})
        self.actor = PartnerActor(self.profile, self.store(), ports, clock=self.clock, on_stopped=self.stopped.append)
        self.owners.append(self.actor)
        await self.actor.start(door_epoch)
        return self.actor

    async def open_breaker(self) -> list[asyncio.Task[object]]:
        """Fail at the main acquirer until its breaker is open; give those who wait."""
        self.acquirer.otherwise = lambda _: TIMEOUT_CHARGED
        asks = [self.ask_soon(purchase()) for _ in range(limits.BREAKER_FAILURES_TO_OPEN)]
        await self.until(lambda: self.breaker.state(self.actor.monotonic_ms()) == "open")
        return asks  # type: ignore[return-value]

    async def acquirers(self) -> dict[str, str]:
        """Give each payment's acquirer as the journal says it."""
        return {name: payment.acquirer for name, payment in (await read_books(self.book)).payments.items()}

    def check_records(self) -> None:
        """Nothing may be in both records, and nothing charged twice."""
        assert not self.record.instructions.keys() & self.second.record.instructions.keys()
        assert not [key for key, times in (self.record.charges + self.second.record.charges).items() if times != 1]


@in_virtual_time
async def test_what_was_asked_stays_and_what_is_new_goes_on_once_the_breaker_is_open() -> None:
    bench = TwoAcquirers()
    await bench.own()
    asks = await bench.open_breaker()
    there = dict(bench.actor.opens)
    paid = body(await bench.ask(authorization()))
    assert paid["status"] == "authorized"
    assert (await bench.acquirers())[paid["id"]] == SECOND
    # Also while the main one may be well again, and what is open there tries it.
    bench.acquirer.otherwise = lambda _: Step()
    captured = body(await bench.ask(CapturePayment(paid["id"], 400)))
    assert captured["amount_captured"] == 400
    assert body(await bench.ask(RefundPayment(paid["id"], 100)))["status"] == "succeeded"
    await bench.until(lambda: not bench.actor.opens)
    await asyncio.gather(*asks)
    assert bench.record.outcomes.keys() == there.keys()
    assert len(bench.second.record.outcomes) == 3
    again = body(await bench.ask(purchase()))["id"]
    assert (await bench.acquirers())[again] == MAIN_ACQUIRER
    bench.check_records()
    await bench.stop()


@in_virtual_time
async def test_a_new_owner_asks_each_operation_where_it_was_asked_whatever_the_profile_says_by_then() -> None:
    bench = TwoAcquirers()
    bench.profile = replace(bench.profile, acquirers=(SECOND,))
    await bench.own()
    bench.second.otherwise = lambda _: TIMEOUT_CHARGED
    asked = bench.ask_soon(purchase())
    await bench.until(lambda: bool(bench.second.calls))
    bench.profile = replace(bench.profile, version=2, acquirers=())
    bench.second.otherwise = lambda _: Step()
    await bench.own(2)
    await bench.until(lambda: not bench.actor.opens)
    assert not bench.acquirer.calls
    assert sum(bench.second.record.charges.values()) == 1
    asked.cancel()
    await bench.stop()


@in_virtual_time
async def test_an_acquirer_that_the_settings_name_no_more_leaves_its_operations_unknown() -> None:
    bench = TwoAcquirers()
    bench.profile = replace(bench.profile, acquirers=(SECOND,))
    await bench.own()
    paid = body(await bench.ask(purchase()))
    bench.profile = replace(bench.profile, version=2, acquirers=())
    await bench.own(2, without_second=True)
    refund = bench.ask_soon(RefundPayment(paid["id"]))
    await asyncio.sleep(60)
    (unknown,) = body(await bench.query("list_unknown"))["data"]
    assert (unknown["state"], unknown["acquirer"]) == ("unknown", SECOND)
    assert body(await refund)["status"] in {"pending", "unknown"}
    assert not bench.acquirer.calls
    assert body(await bench.ask(purchase()))["status"] == "captured"  # at the main one
    await bench.own(3)  # named again: asked there, and settled
    await bench.until(lambda: not bench.actor.opens)
    bench.check_records()
    await bench.stop()


@in_virtual_time
async def test_with_no_acquirer_left_a_payment_fails_at_once_and_nothing_is_written() -> None:
    bench = TwoAcquirers()
    await bench.own()
    bench.second.otherwise = lambda _: REFUSED
    asks = await bench.open_breaker()
    asks += [bench.ask_soon(purchase()) for _ in range(limits.BREAKER_FAILURES_TO_OPEN)]  # type: ignore[misc]
    ways = bench.actor.acquirers
    await bench.until(lambda: set(ways.states(bench.actor.monotonic_ms()).values()) == {"open"})
    sequence = bench.actor.standing.sequence
    assert code(await bench.ask(purchase())) is RefusalCode.ACQUIRER_UNAVAILABLE
    assert bench.actor.standing.sequence == sequence
    for task in asks:
        task.cancel()
    await bench.stop()


@in_virtual_time
async def test_an_acquirer_s_word_counts_for_its_own_operations_only() -> None:
    bench = TwoAcquirers()
    await bench.own()
    bench.acquirer.otherwise = lambda _: TIMEOUT_CHARGED
    asked = bench.ask_soon(purchase())
    await bench.until(lambda: bool(bench.acquirer.calls))
    (opened,) = bench.actor.opens.values()
    told = ResultNotification("msg_1", opened.payment_id, opened.operation_id, Approved("forged"), SECOND)
    assert code(await bench.ask(told)) is RefusalCode.PAYMENT_NOT_FOUND
    await asyncio.sleep(0.1)
    # The same id of the right acquirer is another notification.
    bench.record.decide(opened.operation_id)
    reference = bench.record.outcomes[opened.operation_id]
    assert isinstance(reference, Approved)
    taken = ResultNotification("msg_1", opened.payment_id, opened.operation_id, reference, MAIN_ACQUIRER)
    assert body(await bench.ask(taken))["taken"]
    assert body(await asked)["status"] == "captured"
    await bench.audit()
    await bench.stop()


def test_who_may_be_well_again_is_tried_by_one_new_payment_only_where_nothing_else_tries() -> None:
    ways = Acquirers({MAIN_ACQUIRER: ScriptedAcquirer(), SECOND: ScriptedAcquirer()})
    names = (MAIN_ACQUIRER, SECOND)
    main = ways.way(MAIN_ACQUIRER)
    for _ in range(limits.BREAKER_FAILURES_TO_OPEN):
        main.breaker.fail(0)
    assert ways.choose(names, 0) == SECOND
    half_open_ms = limits.BREAKER_OPEN_MS
    main.pursued = 1
    assert ways.choose(names, half_open_ms) == SECOND
    main.pursued = 0
    assert [ways.choose(names, half_open_ms) for _ in range(3)] == [MAIN_ACQUIRER, SECOND, SECOND]
    assert ways.choose((MAIN_ACQUIRER,), half_open_ms) == MAIN_ACQUIRER
