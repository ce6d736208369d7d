"""What may be read of a partner."""

import asyncio
from typing import Any

import pytest

from actors import codec, keyspace, limits
from actors.answers import Answer
from actors.commands import CapturePayment, CreatePayment, RefundPayment
from actors.errors import StoreUnavailableError
from actors.payment import Failure, Operation, OperationKind, OperationState, Payment
from actors.refusals import RefusalCode
from actors.store import Put
from actors.ulids import ulid_text
from stores.memory_store import Fault
from tests.unit.actors.partner_bench import Bench, authorization, body, code, purchase
from tests.unit.actors.scripted_acquirer import Step, decline
from tests.unit.actors.virtual_time import START_MS, in_virtual_time


async def pages(bench: Bench, method: str, **arguments: Any) -> list[str]:
    """Read all pages; give the ids."""
    ids: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = body(await bench.query(method, **arguments, **cursor))
        ids += [row["id"] for row in page["data"]]
        assert len(page["data"]) <= arguments.get("limit", limits.PAGE_ROWS_DEFAULT)
        assert page["has_more"] == (page["next_starting_after"] is not None)
        if not page["has_more"]:
            return ids
        assert page["next_starting_after"] < cursor.get("starting_after", "z"), "it goes on, and not round and round"
        cursor = {"starting_after": page["next_starting_after"]}


@in_virtual_time
async def test_what_is_not_there_is_not_found() -> None:
    async with Bench() as bench:
        assert code(await bench.query("get_payment", payment_id="pay_1")) is RefusalCode.PAYMENT_NOT_FOUND
        assert code(await bench.query("get_refund", refund_id="re_1")) is RefusalCode.REFUND_NOT_FOUND
        for method in ("list_payments", "list_events"):
            refused = await bench.query(method, starting_after="nonsense")
            assert code(refused) is RefusalCode.CURSOR_INVALID
        nothing = {"object": "list", "data": [], "has_more": False, "next_starting_after": None}
        assert body(await bench.query("list_payments")) == nothing
        assert body(await bench.query("list_events")) == nothing
        assert body(await bench.query("list_unknown"))["data"] == []
        assert body(await bench.query("get_balance")) == {"object": "balance", "balances": []}
        with pytest.raises(ValueError, match="reads nothing"):
            await bench.query("get_nothing")
        for limit in (-1, 101):
            with pytest.raises(ValueError, match="limit is from"):
                await bench.query("list_payments", limit=limit)


@pytest.mark.parametrize("limit", [1, 3, 10, 100])
@in_virtual_time
async def test_pages_go_from_new_to_old_and_miss_nothing(limit: int) -> None:
    async with Bench() as bench:
        made = [body(await bench.ask(purchase(n + 1)))["id"] for n in range(12)]
        assert await pages(bench, "list_payments", limit=limit) == made[::-1]
        events = await pages(bench, "list_events", limit=limit)
        assert len(events) == 24
        assert events == sorted(events, reverse=True)


@in_virtual_time
async def test_filters_by_status_reference_and_time() -> None:
    async with Bench() as bench:
        made: dict[str, list[str]] = {"captured": [], "authorized": [], "failed": [], "processing": []}

        async def make(status: str, command: CreatePayment, step: Step) -> None:
            bench.acquirer.script(step)
            task = bench.ask_soon(command, budget_ms=600)
            made[status].append(body(await task)["id"])
            await asyncio.sleep(1)

        hang = Step(gate=asyncio.Event())
        for n in range(4):
            reference = "even" if n % 2 == 0 else "odd"
            await make("captured", purchase(reference=reference), Step())
            await make("authorized", authorization(reference=reference), Step())
            await make("failed", purchase(reference=reference), decline())
        middle_ms = bench.actor.now_ms()
        for n in range(4):
            await make("captured", purchase(reference="even"), Step())
            bench.acquirer.otherwise = lambda _: hang
            await make("processing", purchase(reference="even" if n < 2 else None), hang)
        every = sorted((name for ids in made.values() for name in ids), reverse=True)
        assert await pages(bench, "list_payments", limit=3) == every
        for status, ids in made.items():
            assert await pages(bench, "list_payments", limit=3, status=status) == ids[::-1], status
        assert await pages(bench, "list_payments", limit=2, reference="odd") == [
            name
            for name in every
            if name in {made[status][n] for status in ("captured", "authorized", "failed") for n in (1, 3)}
        ]
        assert await pages(bench, "list_payments", limit=1, reference="even", status="failed") == [
            made["failed"][2],
            made["failed"][0],
        ]
        assert (
            await pages(bench, "list_payments", limit=1, reference="even", status="processing")
            == made["processing"][1::-1]
        )
        newer = await pages(bench, "list_payments", limit=3, created_from_ms=middle_ms)
        older = await pages(bench, "list_payments", limit=3, created_before_ms=middle_ms)
        assert (len(newer), len(older)) == (8, 12)
        assert newer + older == every
        assert await pages(bench, "list_payments", created_from_ms=middle_ms, created_before_ms=START_MS) == []
        assert await pages(bench, "list_payments", status="disputed") == []


@in_virtual_time
async def test_a_payment_moves_between_the_lists_by_status() -> None:
    async with Bench() as bench:
        payment_id = body(await bench.ask(authorization(100)))["id"]
        for command, status in (
            (CapturePayment(payment_id, 40), "partially_captured"),
            (CapturePayment(payment_id, 60), "captured"),
            (RefundPayment(payment_id, 10), "partially_refunded"),
            (RefundPayment(payment_id), "refunded"),
        ):
            await bench.ask(command)
            found = [
                name
                for name in ("authorized", "partially_captured", "captured", "partially_refunded", "refunded")
                if await pages(bench, "list_payments", status=name)
            ]
            assert found == [status]


@in_virtual_time
async def test_events_by_type() -> None:
    async with Bench() as bench:
        for n in range(5):
            bench.acquirer.script(decline() if n == 2 else Step())
            await bench.ask(purchase())
        assert len(await pages(bench, "list_events", limit=2, type="payment.created")) == 5
        (failed,) = body(await bench.query("list_events", type="payment.failed"))["data"]
        assert failed["data"]["failure"]["code"] == "insufficient_funds"
        assert await pages(bench, "list_events", type="payment.expired") == []


@in_virtual_time
async def test_the_balance_is_what_is_committed() -> None:
    async with Bench() as bench:
        await bench.ask(purchase(500))
        await bench.ask(CreatePayment(70, "JPY", "tok_approve", manual_capture=True))
        answer = await bench.query("get_balance")
        assert isinstance(answer, Answer)
        assert answer.rate is not None
        rows = {row["currency"]: row for row in body(answer)["balances"]}
        assert rows["EUR"]["payable"] == 500
        assert (rows["JPY"]["payable"], rows["JPY"]["authorized"]) == (0, 70)


@in_virtual_time
async def test_a_read_sees_nothing_that_is_not_committed() -> None:
    async with Bench() as bench:
        payment_id = body(await bench.ask(authorization(100)))["id"]
        gate = asyncio.Event()
        bench.acquirer.script(Step(gate=gate))
        capturing = bench.ask_soon(CapturePayment(payment_id))
        await bench.until(lambda: len(bench.acquirer.calls) == 2)
        stop = bench.book.stop("inside")
        gate.set()
        await stop.reached.wait()
        assert (await bench.get(payment_id))["amount_captured"] == 0
        assert body(await bench.query("get_balance"))["balances"][0]["payable"] == 0
        stop.resume()
        await capturing
        assert (await bench.get(payment_id))["amount_captured"] == 100


@in_virtual_time
async def test_a_read_that_the_store_fails_is_an_operating_failure() -> None:
    async with Bench() as bench:
        await bench.ask(purchase())
        await asyncio.sleep(1)
        bench.book.inject(Fault.UNAVAILABLE, "read")
        with pytest.raises(StoreUnavailableError):
            await bench.query("list_payments")


@in_virtual_time
async def test_a_filter_that_looks_at_many_rows_says_where_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PAGE_ROWS_SCANNED_MAX", 20)
    monkeypatch.setattr(limits, "PAGE_ROWS_READ_AT_ONCE", 10)
    async with Bench() as bench:
        wanted = []
        for n in range(60):
            bench.acquirer.script(decline() if n in (3, 30) else Step())
            made = body(await bench.ask(purchase(reference="same")))
            if n in (3, 30):
                wanted.append(made["id"])
        first = body(await bench.query("list_payments", reference="same", status="failed"))
        assert (first["data"], first["has_more"]) == ([], True), "nothing found yet is not: nothing there"
        assert await pages(bench, "list_payments", reference="same", status="failed") == wanted[::-1]
        failed = await pages(bench, "list_events", type="payment.failed", limit=1)
        assert len(failed) == 2


@in_virtual_time
async def test_payments_under_way_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PAGE_ROWS_SCANNED_MAX", 4)
    monkeypatch.setattr(limits, "PAGE_ROWS_READ_AT_ONCE", 2)
    async with Bench() as bench:
        hang = Step(gate=asyncio.Event())
        bench.acquirer.otherwise = lambda _: hang
        made = [
            body(await bench.ask(purchase(reference="a" if n % 4 == 0 else "b"), budget_ms=600))["id"]
            for n in range(12)
        ]
        await asyncio.sleep(1)
        assert await pages(bench, "list_payments", status="processing", reference="a") == made[::-1][3::4]
        assert await pages(bench, "list_payments", status="processing", limit=5) == made[::-1]


@in_virtual_time
async def test_a_page_of_large_payments_ends_before_it_is_too_large() -> None:
    async with Bench() as bench:
        metadata = {
            f"key_{n}": "\x7f" * limits.METADATA_VALUE_CHARACTERS_MAX for n in range(limits.METADATA_ENTRIES_MAX)
        }
        made = [body(await bench.ask(purchase(metadata=metadata)))["id"] for _ in range(25)]
        answer = await bench.query("list_payments", limit=100)
        assert isinstance(answer, Answer)
        page = body(answer)
        assert limits.PAGE_BYTES_MAX * 0.8 < len(answer.body) < limits.PAGE_BYTES_MAX + 1_024
        assert 1 < len(page["data"]) < 25
        assert await pages(bench, "list_payments", limit=100) == made[::-1]


@in_virtual_time
async def test_unknown_operations_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PAGE_ROWS_READ_AT_ONCE", 3)
    async with Bench() as bench:
        lost = Step(gate=asyncio.Event())
        bench.acquirer.otherwise = lambda _: lost
        for _ in range(10):
            await bench.ask(purchase(), budget_ms=600)
        await asyncio.sleep(limits.ACQUIRER_TIMEOUT_MS / 1_000 + 1)
        reads = bench.book.reads
        page = body(await bench.query("list_unknown"))
        assert (len(page["data"]), page["has_more"], bench.book.reads - reads) == (10, False, 4)
        monkeypatch.setattr(limits, "PAGE_ROWS_MAX", 4)
        reads = bench.book.reads
        page = body(await bench.query("list_unknown"))
        assert (len(page["data"]), page["has_more"], bench.book.reads - reads) == (4, True, 2)


def _history(payments: int) -> list[Put]:
    """Rows of captured payments, one in twenty of them failed, all of one reference."""
    rows = []
    for n in range(payments):
        ulid = ulid_text((START_MS - payments + n) << 80)
        failed = n % 20 == 0
        state = OperationState.FAILED if failed else OperationState.SUCCEEDED
        failure = Failure("stolen_card", retryable=False) if failed else None
        operation = Operation(
            f"op_{ulid}", OperationKind.PURCHASE, 1_000, state, START_MS - payments + n, failure=failure
        )
        payment = Payment(
            f"pay_{ulid}", operation.created_ms, 1_000, "EUR", "tok_approve", False, "same", None, {}, (operation,)
        )
        rows += [
            Put(keyspace.payment(payment.id), codec.encode_payment(payment)),
            Put(keyspace.status(payment.status.value, payment.id), b""),
            Put(keyspace.reference("same", payment.id), b""),
        ]
    return rows


@in_virtual_time
async def test_a_page_reads_as_much_at_any_length_of_history(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PAGE_ROWS_SCANNED_MAX", 60)
    rows_read: dict[int, list[int]] = {}
    for payments in (200, 2_000):
        async with Bench() as bench:
            await bench.actor.store.commit((), _history(payments))
            read = bench.actor.store.read
            counted = 0

            async def counting(keys: Any, ranges: Any = (), read: Any = read) -> Any:
                nonlocal counted
                snapshot = await read(keys, ranges)
                counted += len(snapshot.values) + sum(map(len, snapshot.ranges))
                return snapshot

            monkeypatch.setattr(bench.actor.store, "read", counting)
            middle = body(await bench.query("list_payments", limit=100))["data"][-1]["id"]
            times = {"created_from_ms": START_MS - 150, "created_before_ms": START_MS - 50}
            for filters in (
                {},
                times,
                {"starting_after": middle},
                {"status": "captured"},
                {"status": "failed", "limit": 2},
                {"status": "refunded"},
                {"status": "captured", "starting_after": middle} | times,
                {"reference": "same"},
                {"reference": "none"},
                {"reference": "same", "status": "refunded"},
                {"reference": "same", "status": "failed", "starting_after": middle} | times,
                {"status": "processing", "reference": "same"},
            ):
                counted = 0
                await bench.query("list_payments", **filters)
                rows_read.setdefault(payments, []).append(counted)
    assert rows_read[200] == rows_read[2_000]
    # A filter that finds nothing looks at its share, in steps, each row by its index and itself.
    assert max(rows_read[2_000]) <= 2 * (limits.PAGE_ROWS_SCANNED_MAX + limits.PAGE_ROWS_READ_AT_ONCE)
    assert rows_read[2_000][0] == limits.PAGE_ROWS_DEFAULT + 1
