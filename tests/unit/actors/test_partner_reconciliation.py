"""The actor and settlement files: posted once whatever fails, between payments, and what no file has paid yet."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from actors import keyspace, limits
from actors.answers import Answer, Refused
from actors.commands import CapturePayment, ReconcileOperations, RefundPayment, SettlementRow
from actors.errors import ActorStoppedError
from actors.fees import FeeSchedule
from actors.payment import MONEY_KINDS, OperationState
from actors.refusals import RefusalCode
from actors.store import Put
from control_plane.settings import AcquirerFees
from stores.memory_store import Fault
from tests.unit.actors.partner_bench import Bench, authorization, body, purchase, settle_down
from tests.unit.actors.scripted_acquirer import REFUSED, TIMEOUT_CHARGED, Step, decline
from tests.unit.actors.virtual_time import in_virtual_time

FEES = FeeSchedule()
PASSING = [Fault.CONFLICT, Fault.UNAVAILABLE, Fault.UNKNOWN_WRITTEN, Fault.UNKNOWN_NOT_WRITTEN, Fault.TIMEOUT]


def file_of(*rows: SettlementRow, day: str = "2026-09-21", name: str = "f1") -> ReconcileOperations:
    return ReconcileOperations(name, day, "ann", FEES, rows)


async def rows_of(bench: Bench) -> list[SettlementRow]:
    """What an honest acquirer's file has of all that succeeded."""
    rows = []
    for payment in (await bench.audit()).payments.values():
        for operation in payment.operations:
            if operation.kind in MONEY_KINDS and operation.state is OperationState.SUCCEEDED:
                refund = operation.kind == "refund"
                rows.append(
                    SettlementRow(
                        operation.id,
                        None if operation is payment.first else payment.first.id,
                        operation.kind.value,
                        operation.acquirer_reference or "",
                        payment.currency,
                        -operation.amount if refund else operation.amount,
                        FEES.agreed(operation.amount, payment.currency, refund=refund),
                    )
                )
    return rows


async def pay(bench: Bench) -> None:
    paid = body(await bench.ask(purchase(10_000)))
    await bench.ask(RefundPayment(paid["id"], 3_000))
    held = body(await bench.ask(authorization(7_000)))
    await bench.ask(CapturePayment(held["id"], 2_000))
    await bench.ask(CapturePayment(held["id"], 1_500))


async def unreconciled(bench: Bench, from_ms: int = 0, before_ms: int = 2**50) -> list[dict[str, Any]]:
    """All pages."""
    found: list[dict[str, Any]] = []
    after = None
    while True:
        page = body(await bench.query("list_unreconciled", from_ms=from_ms, before_ms=before_ms, after=after))
        found += page["operations"]
        after = page["next"]
        if after is None:
            return found


@in_virtual_time
async def test_what_was_paid_is_posted_once_and_nothing_is_owed_then() -> None:
    async with Bench() as bench:
        await pay(bench)
        rows = await rows_of(bench)
        before = (await bench.audit()).standing
        answer = body(await bench.ask(file_of(*rows)))
        assert answer == {"matched": 4, "repeated": 0, "findings": []}
        books = await bench.audit()
        assert books.standing.sequence == before.sequence + 1, "one entry for all rows"
        assert books.entries[-1].cause == "settlement:f1:ann"
        assert books.balances["EUR", "acquirer_receivable"] == 0
        fees = sum(row.fee for row in rows)
        assert books.balances["EUR", "acquirer_fees"] == fees
        assert books.balances["EUR", "cash_at_bank"] == sum(row.gross for row in rows) - fees
        assert books.balances["EUR", "partner_payable"] == before.balances["EUR", "partner_payable"]
        assert await unreconciled(bench) == []
        for name in ("f1", "f2"):  # the same file, and the same day's file fetched anew
            again = body(await bench.ask(file_of(*rows, name=name)))
            assert again == {"matched": 4, "repeated": 4, "findings": []}
        assert (await bench.audit()).rows == books.rows, "asking again changes nothing"


@in_virtual_time
async def test_a_dry_run_says_the_same_and_posts_nothing() -> None:
    async with Bench() as bench:
        await pay(bench)
        rows = await rows_of(bench)
        rows[0] = replace(rows[0], gross=9_000)
        before = (await bench.audit()).rows
        arguments = {
            "file": "f1",
            "settled_on": "2026-09-21",
            "operator": "ann",
            "fees": AcquirerFees().model_dump(mode="json"),
            "rows": [[r.key, r.original_key, r.kind, r.reference, r.currency, r.gross, r.fee] for r in rows],
        }
        compared = body(await bench.query("compare_settlement", **arguments))
        assert (await bench.audit()).rows == before
        assert compared == body(await bench.ask(file_of(*rows)))
        assert body(await bench.query("compare_settlement", **arguments))["repeated"] == 4


@in_virtual_time
async def test_two_files_at_once_and_one_key_in_both_post_it_once() -> None:
    async with Bench() as bench:
        await pay(bench)
        rows = await rows_of(bench)
        stop = bench.book.stop("inside")  # what is asked meanwhile is one batch
        other = bench.ask_soon(purchase())
        await stop.reached.wait()
        asked = [bench.ask_soon(file_of(*rows, name=name)) for name in ("f1", "f1", "f2")]
        asked.append(bench.ask_soon(file_of(*rows, day="2026-09-22")))
        await settle_down()
        stop.resume()
        answers = [body(answer) for answer in await asyncio.gather(*asked)]
        assert [(answer["matched"], answer["repeated"]) for answer in answers] == [(4, 0), (4, 4), (4, 4), (0, 0)]
        assert {reason for finding in answers[3]["findings"] for reason in finding["reasons"]} == {"paid_before"}
        await other
        await bench.audit()


@pytest.mark.parametrize("fault", PASSING)
@in_virtual_time
async def test_a_failure_of_the_commit_is_not_noticed_outside(fault: Fault) -> None:
    async with Bench() as bench:
        await pay(bench)
        rows = await rows_of(bench)
        bench.book.inject(fault)
        answer = body(await bench.ask(file_of(*rows)))
        assert answer["matched"] == 4
        # What is known to have been written is told as what it is: posted before.
        assert answer["repeated"] == (4 if fault is Fault.UNKNOWN_WRITTEN else 0)
        assert bench.book.deliver_late() == 0
        await bench.audit()


@in_virtual_time
async def test_a_worker_that_dies_in_the_middle_leaves_nothing_half_done() -> None:
    async with Bench() as bench:
        await pay(bench)
        rows = await rows_of(bench)
        stop = bench.book.stop("inside")
        asking = bench.ask_soon(file_of(*rows))
        await stop.reached.wait()
        await bench.start(door_epoch=2)  # the next owner; the former still hangs in its commit
        answer = body(await bench.ask(file_of(*rows)))
        assert answer["matched"] == 4
        stop.resume()
        with pytest.raises(ActorStoppedError):
            await asking
        assert len([e for e in (await bench.audit()).entries if e.cause.startswith("settlement")]) == 1


@in_virtual_time
async def test_payments_go_on_beside_it_and_neither_rate_nor_suspension_concerns_it() -> None:
    async with Bench(rate_per_second=1, rate_burst=5) as bench:
        await pay(bench)
        rows = await rows_of(bench)
        refused = await bench.ask(purchase())
        assert isinstance(refused, Refused)
        assert refused.refusal.code is RefusalCode.RATE_LIMITED
        bench.actor.configure(replace(bench.profile, version=2, status="suspended"))
        assert body(await bench.ask(file_of(*rows)))["matched"] == 4
        assert bench.actor._state.rows == {}, "nothing that was read for it is kept"


@in_virtual_time
async def test_an_operation_whose_outcome_is_open_is_told_and_matches_when_it_is_known() -> None:
    async with Bench() as bench:
        bench.acquirer.script(TIMEOUT_CHARGED)
        bench.acquirer.otherwise = lambda _: REFUSED
        asking = bench.ask_soon(purchase(10_000))
        await bench.until(lambda: bool(bench.record.outcomes))
        (key,) = bench.record.outcomes
        row = SettlementRow(key, None, "purchase", "ref-1", "EUR", 10_000, 175)
        (finding,) = body(await bench.ask(file_of(row)))["findings"]
        assert (finding["verdict"], finding["reasons"], finding["posted"]) == ("extra", ["operation_open"], False)
        bench.acquirer.otherwise = lambda _: Step()
        await bench.until(lambda: not bench.actor.opens)
        assert body(await bench.ask(file_of(row))) == {"matched": 1, "repeated": 0, "findings": []}
        await asking
        await bench.audit()


@in_virtual_time
async def test_a_charge_of_what_failed_here_is_told() -> None:
    async with Bench() as bench:
        bench.acquirer.script(decline("stolen_card"))
        failed = body(await bench.ask(purchase(10_000)))
        row = SettlementRow(failed["operations"][0]["id"], None, "purchase", "r", "EUR", 10_000, 175)
        (finding,) = body(await bench.ask(file_of(row)))["findings"]
        assert (finding["reasons"], finding["payment_id"]) == (["operation_failed"], failed["id"])


@in_virtual_time
async def test_what_no_file_has_is_found_in_the_order_of_time_and_within_its_bounds() -> None:
    async with Bench() as bench:
        times = []
        for _ in range(4):
            await pay(bench)
            times.append(bench.actor.now_ms())
            await asyncio.sleep(3_600)
        rows = await rows_of(bench)
        found = await unreconciled(bench)
        assert [operation["operation_id"] for operation in found] == [row.key for row in rows]
        assert {(o["kind"], o["amount"]) for o in found} == {
            ("purchase", 10_000),
            ("refund", 3_000),
            ("capture", 2_000),
            ("capture", 1_500),
        }
        middle = await unreconciled(bench, times[0] + 1, times[2] + 1)
        assert [o["operation_id"] for o in middle] == [row.key for row in rows[4:12]]
        assert await unreconciled(bench, times[3] + 1) == []
        assert await unreconciled(bench, 0, times[0] - 3_600_000) == []
        await bench.ask(file_of(*rows[:5]))
        assert [o["operation_id"] for o in await unreconciled(bench)] == [row.key for row in rows[5:]]


@in_virtual_time
async def test_a_long_day_is_looked_at_in_pages() -> None:
    async with Bench() as bench:
        for _ in range(limits.PAGE_ROWS_SCANNED_MAX // 2 + 70):
            await bench.ask(purchase())
        first = body(await bench.query("list_unreconciled", from_ms=0, before_ms=2**50, after=None))
        assert first["next"] == limits.PAGE_ROWS_SCANNED_MAX
        assert len(await unreconciled(bench)) == limits.PAGE_ROWS_SCANNED_MAX // 2 + 70


@in_virtual_time
async def test_a_settlement_is_no_event_that_partners_see() -> None:
    async with Bench() as bench:
        await pay(bench)
        before = body(await bench.query("list_events", limit=100))
        await bench.ask(file_of(*await rows_of(bench)))
        assert body(await bench.query("list_events", limit=100)) == before


@in_virtual_time
async def test_a_damaged_row_takes_its_own_command_out() -> None:
    async with Bench() as bench:
        await pay(bench)
        rows = await rows_of(bench)
        await bench.ask(file_of(*rows))
        await bench.actor.store.commit((), [Put(keyspace.reconciled(rows[0].key), b"rubbish")])
        answer = await bench.ask(file_of(*rows))
        assert isinstance(answer, Refused)
        assert answer.refusal.code is RefusalCode.INTERNAL_ERROR
        assert isinstance(await bench.ask(purchase()), Answer)
