"""An operator's change in the partner's journal: once, whatever fails, and beside payments that it leaves alone."""

import pytest

from actors import keyspace
from actors.answers import Answer, Refused
from actors.commands import RecordChange
from actors.errors import ActorStoppedError
from actors.refusals import RefusalCode
from stores.memory_store import Fault
from tests.unit.actors.partner_bench import Bench, body, purchase, settle_down
from tests.unit.actors.virtual_time import in_virtual_time

ROTATED = RecordChange("c1", "key_rotated", 1_700_000_000_000, {"key_id": "key_2", "hint": "wxyz"})


@in_virtual_time
async def test_the_partner_sees_what_an_operator_changed() -> None:
    async with Bench() as bench:
        paid = body(await bench.ask(purchase()))
        before = await bench.audit()
        assert body(await bench.ask(ROTATED)) == {"object": "acknowledgement", "taken": True}
        books = await bench.audit()
        assert books.balances == before.balances
        assert books.payments == before.payments
        assert books.entries[-1].postings == ()
        (event, *rest) = body(await bench.query("list_events"))["data"]
        assert event["type"] == "partner.key_rotated"
        assert event["data"] == {
            "changed_at": "2023-11-14T22:13:20.000Z",
            "by": "operator",
            "key_id": "key_2",
            "hint": "wxyz",
        }
        assert {other["data"]["payment_id"] for other in rest} == {paid["id"]}
        page = body(await bench.query("list_events", type="partner.key_rotated"))
        assert page["data"] == [event]
        assert body(await bench.query("list_events", starting_after=event["id"]))["data"] == rest


@in_virtual_time
async def test_told_again_it_is_written_once_also_days_later_and_by_another_owner() -> None:
    async with Bench() as bench:
        await bench.ask(ROTATED)
        rows = (await bench.audit()).rows
        await bench.ask(ROTATED)
        bench.pass_retention()
        await bench.start()
        await bench.ask(ROTATED)
        books = await bench.audit()
        assert [key for key in books.rows if key[0] in {"journal", "change"}] == [
            key for key in rows if key[0] in {"journal", "change"}
        ]
        assert keyspace.change("c1") in books.rows


@in_virtual_time
async def test_told_twice_in_one_batch_it_is_written_once() -> None:
    async with Bench() as bench:
        stop = bench.book.stop("inside")  # what is asked meanwhile is one batch
        asks = [bench.ask_soon(command) for command in (purchase(), ROTATED, ROTATED)]
        await settle_down()
        stop.resume()
        assert [isinstance(await ask, Answer) for ask in asks] == [True] * 3
        assert (await bench.audit()).standing.sequence == 3, "an intent, an outcome, one change"


@pytest.mark.parametrize("fault", [Fault.CONFLICT, Fault.UNAVAILABLE, Fault.UNKNOWN_WRITTEN, Fault.UNKNOWN_NOT_WRITTEN])
@in_virtual_time
async def test_whatever_the_store_does_it_is_written_once(fault: Fault) -> None:
    async with Bench() as bench:
        bench.book.inject(fault)
        for _ in range(3):
            try:
                answer = await bench.ask(ROTATED)
            except ActorStoppedError:
                await bench.start()
                continue
            assert not isinstance(answer, Refused) or answer.refusal.code is RefusalCode.OUTCOME_UNKNOWN
        assert [entry.sequence for entry in (await bench.audit()).entries] == [1]


@in_virtual_time
async def test_a_suspended_partner_is_told_too() -> None:
    async with Bench(status="suspended") as bench:
        assert isinstance(await bench.ask(RecordChange("c2", "suspended", 5, {})), Answer)
