"""`python -m cells.audit` on books that agree, on books that were tampered with, and on an acquirer that knows more."""

import asyncio
import contextlib
import itertools
import json
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import msgpack
import pytest

from actors import codec, keyspace
from actors.answers import Answer
from actors.commands import (
    CapturePayment,
    Command,
    CreatePayment,
    Envelope,
    ReconcileOperations,
    RefundPayment,
    SettlementRow,
)
from actors.fees import FeeSchedule
from actors.partner import PartnerActor
from actors.profile import MAIN_ACQUIRER, Profile
from actors.store import Clear, Mutation, Put, Range
from cells.http_acquirer import HttpAcquirer
from cells.http_client import HttpClient
from stores.sqlite_store import SqliteStore
from tests.acquirer_process import AcquirerProcess, start_acquirer
from tests.cell_process import free_port

PARTNERS = ("alpha", "beta")
METHODS = {CreatePayment: "create_payment", CapturePayment: "capture_payment", RefundPayment: "refund_payment"}


@pytest.fixture(scope="module")
def acquirer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AcquirerProcess]:
    with start_acquirer(tmp_path_factory.mktemp("acquirer")) as running:
        yield running


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, acquirer: AcquirerProcess) -> Path:
    """A cell's folder with two partners' books, made by the partners' actors. Tests spoil copies of it."""
    folder = tmp_path_factory.mktemp("cell")
    asyncio.run(make_books(folder, acquirer.url))
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    # Nobody has the books open, so that their files are all there is of them.
    return Path(shutil.copytree(original, tmp_path / "cell"))


async def make_books(folder: Path, url: str) -> None:
    (folder / "partners").mkdir()
    rows: list[Mutation] = [
        Put(("partner", name), msgpack.packb({"partner_id": name, "version": 1})) for name in PARTNERS
    ]
    async with changing(folder / "cell.sqlite", create=True) as store:
        await store.commit((), rows)
    async with HttpClient() as client:
        for name in PARTNERS:
            path = folder / "partners" / f"{name}.sqlite"
            await SqliteStore.create(path)
            actor = PartnerActor(
                Profile(name, 1, rate_burst=1_000),
                await SqliteStore.open(path),
                {MAIN_ACQUIRER: HttpAcquirer(client, url, name)},
            )
            await actor.start(1)
            await make_payments(actor, name)
            await actor.stop()


async def make_payments(actor: PartnerActor, name: str) -> None:
    numbers = itertools.count(1)

    async def do(command: Command) -> dict[str, Any]:
        envelope = Envelope(f"{name}-{next(numbers)}", "r", command)
        answer = await actor.ask(METHODS[type(command)], envelope, 8_000)
        assert isinstance(answer, Answer), answer
        body = json.loads(answer.body)
        assert isinstance(body, dict)
        return body

    paid = await do(CreatePayment(1_000, "EUR", "tok_approve"))
    await do(RefundPayment(paid["id"], 300))
    held = await do(CreatePayment(700, "USD", "tok_approve", manual_capture=True))
    await do(CapturePayment(held["id"], 200))
    await do(CreatePayment(50, "EUR", "tok_decline_stolen_card"))
    await do(CreatePayment(0, "EUR", "tok_approve"))


@contextlib.asynccontextmanager
async def changing(path: Path, *, create: bool = False) -> AsyncIterator[SqliteStore]:
    if create:
        await SqliteStore.create(path)
    store = await SqliteStore.open(path)
    try:
        await store.acquire(1)
        yield store
    finally:
        await store.close()


async def audit(folder: Path, url: str, *options: str) -> tuple[int, str]:
    """Run the audit as it is run; give its exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "cells.audit",
        "--place",
        json.dumps({"store": "sqlite", "folder": str(folder)}),
        "--acquirer-url",
        url,
        *options,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_books_that_agree(folder: Path, acquirer: AcquirerProcess) -> None:
    code, printed = await audit(folder, acquirer.url)
    assert code == 0, printed
    assert printed.splitlines() == [f"{name}: agrees (4 payments, 6 operations, 0 in doubt)" for name in PARTNERS]
    code, printed = await audit(folder, acquirer.url, "--json")
    assert code == 0, printed
    report = json.loads(printed)
    assert report["ok"]
    alpha = report["partners"][0]
    assert (alpha["partner"], alpha["payments"], alpha["operations"], alpha["in_doubt"]) == ("alpha", 4, 6, 0)
    assert alpha["balances"]["EUR"] == {
        "acquirer_receivable": 700,
        "partner_payable": -700,
        "refunds_pending": 0,
    }
    assert alpha["balances"]["USD"]["acquirer_holds"] == 500


async def test_each_partner_is_told_of_where_that_is_asked_for(folder: Path, acquirer: AcquirerProcess) -> None:
    code, printed = await audit(folder, acquirer.url, "--progress")
    assert code == 0
    assert [line for line in printed.splitlines() if line.startswith("audited ")] == [f"audited {n}" for n in PARTNERS]


async def first_payment(store: SqliteStore) -> Any:
    rows = (await store.read((), [Range(("payment",), ("payment", keyspace.LAST), 1)])).ranges[0]
    return codec.decode_payment(rows[0].value)


async def change_amount(store: SqliteStore) -> str:
    payment = await first_payment(store)
    await store.commit((), [Put(keyspace.payment(payment.id), codec.encode_payment(replace(payment, amount=10)))])
    return f"payment {payment.id}: stored is"


async def change_operation(store: SqliteStore) -> str:
    payment = await first_payment(store)
    operations = (payment.operations[0], replace(payment.operations[1], amount=3))
    changed = codec.encode_payment(replace(payment, operations=operations))
    await store.commit((), [Put(keyspace.payment(payment.id), changed)])
    return f"payment {payment.id}: stored is"


async def remove_payment(store: SqliteStore) -> str:
    payment = await first_payment(store)
    await store.commit((), [Clear(keyspace.payment(payment.id))])
    return f"payment {payment.id}: stored is None"


async def change_balance(store: SqliteStore) -> str:
    head = (await store.read([keyspace.HEAD])).values[0]
    assert head is not None
    standing = codec.decode_standing(head)
    balances = standing.balances | {("EUR", "partner_payable"): -1_000_000}
    await store.commit((), [Put(keyspace.HEAD, codec.encode_standing(replace(standing, balances=balances)))])
    return "balances: stored"


async def remove_entry(store: SqliteStore) -> str:
    await store.commit((), [Clear(keyspace.journal(3))])
    return "journal: entry 4 follows 2"


async def remove_last_entry(store: SqliteStore) -> str:
    head = (await store.read([keyspace.HEAD])).values[0]
    assert head is not None
    last = codec.decode_standing(head).sequence
    await store.commit((), [Clear(keyspace.journal(last))])
    return f"journal: ends at {last - 1}, the head says {last}"


async def change_entry(store: SqliteStore) -> str:
    data = (await store.read([keyspace.journal(2)])).values[0]
    assert data is not None
    entry = codec.decode_entry(data)
    postings = tuple(replace(posting, amount=posting.amount * 2) for posting in entry.postings)
    await store.commit((), [Put(keyspace.journal(2), codec.encode_entry(replace(entry, postings=postings)))])
    return "journal: entry 2 posts other than its events say"


async def change_status(store: SqliteStore) -> str:
    payment = await first_payment(store)
    status = payment.status.value
    await store.commit(
        (), [Clear(keyspace.status(status, payment.id)), Put(keyspace.status("failed", payment.id), b"")]
    )
    return f"payment {payment.id}: indexed as ['failed'], it is {status}"


async def leave_a_stale_status(store: SqliteStore) -> str:
    payment = await first_payment(store)
    await store.commit((), [Put(keyspace.status("captured", payment.id), b"")])
    return f"payment {payment.id}: indexed as ['captured', 'partially_refunded'], it is partially_refunded"


async def write_rubbish(store: SqliteStore) -> str:
    await store.commit((), [Put(keyspace.journal(2), b"rubbish")])
    return "the book can't be read: StoreCorruptError"


@pytest.mark.parametrize(
    "tamper",
    [
        change_amount,
        change_operation,
        remove_payment,
        change_balance,
        remove_entry,
        remove_last_entry,
        change_entry,
        change_status,
        leave_a_stale_status,
        write_rubbish,
    ],
)
async def test_what_was_tampered_with_is_found_and_named(
    folder: Path, acquirer: AcquirerProcess, tamper: Callable[[SqliteStore], Awaitable[str]]
) -> None:
    async with changing(folder / "partners" / "beta.sqlite") as store:
        expected = await tamper(store)
    code, printed = await audit(folder, acquirer.url)
    assert code == 1, printed
    lines = printed.splitlines()
    assert lines[0].startswith("alpha: agrees")
    assert lines[1].startswith("beta: DISAGREES")
    assert any(line.startswith(f"  {expected}") for line in lines[2:]), printed


async def settle(folder: Path, name: str, acquirer: AcquirerProcess, *, gross_less: int = 0) -> dict[str, Any]:
    """Post what the acquirer's record says of one partner, as a settlement file would have it."""
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{acquirer.url}/operations", params={"partner": name}) as response:
            record = (await response.json())["operations"]
        fees = FeeSchedule()
        rows = tuple(
            SettlementRow(
                row["key"],
                row["original_key"],
                row["kind"],
                row["reference"],
                row["currency"],
                -row["amount"] if row["kind"] == "refund" else row["amount"] - gross_less,
                fees.agreed(row["amount"], row["currency"], refund=row["kind"] == "refund"),
            )
            for row in record
            if row["charged"] and row["kind"] in {"purchase", "capture", "refund"}
        )
        path = folder / "partners" / f"{name}.sqlite"
        actor = PartnerActor(
            Profile(name, 1), await SqliteStore.open(path), {MAIN_ACQUIRER: HttpAcquirer(session, acquirer.url, name)}
        )
        await actor.start(1)
        command = ReconcileOperations("f" * 64, "2026-11-21", "ann", fees, rows)
        answer = await actor.ask("reconcile_operations", Envelope("settle", "r", command), 8_000)
        await actor.stop()
    assert isinstance(answer, Answer), answer
    found: dict[str, Any] = json.loads(answer.body)
    return found


async def test_settled_books_agree(folder: Path, acquirer: AcquirerProcess) -> None:
    assert (await settle(folder, "alpha", acquirer))["matched"] == 3
    beta = await settle(folder, "beta", acquirer, gross_less=50)
    assert [finding["verdict"] for finding in beta["findings"]] == ["differing", "differing"]
    code, printed = await audit(folder, acquirer.url, "--json")
    assert code == 0, printed
    alpha, beta = json.loads(printed)["partners"]
    assert alpha["balances"]["EUR"]["acquirer_receivable"] == 0
    assert alpha["balances"]["EUR"]["cash_at_bank"] == 700 - 40
    assert alpha["balances"]["EUR"]["acquirer_fees"] == 40
    assert beta["balances"]["EUR"]["settlement_differences"] == 51, "50 not paid, 1 of fee too much for what was"


async def lose_a_settled_row(store: SqliteStore) -> str:
    rows = (await store.read((), [Range(("reconciled",), ("reconciled", keyspace.LAST), 1)])).ranges[0]
    await store.commit((), [Clear(rows[0].key)])
    return f"{rows[0].key[1]}: stored as settled is None"


async def change_a_settled_row(store: SqliteStore) -> str:
    rows = (await store.read((), [Range(("reconciled",), ("reconciled", keyspace.LAST), 1)])).ranges[0]
    row = codec.decode_reconciled(rows[0].value)
    await store.commit((), [Put(rows[0].key, codec.encode_reconciled(replace(row, fee=row.fee + 1)))])
    return f"{row.operation_id}: stored as settled is"


@pytest.mark.parametrize("tamper", [lose_a_settled_row, change_a_settled_row])
async def test_settled_rows_that_were_tampered_with_are_found(
    folder: Path, acquirer: AcquirerProcess, tamper: Callable[[SqliteStore], Awaitable[str]]
) -> None:
    await settle(folder, "alpha", acquirer)
    async with changing(folder / "partners" / "alpha.sqlite") as store:
        expected = await tamper(store)
    code, printed = await audit(folder, acquirer.url)
    assert code == 1, printed
    assert any(line.startswith(f"  {expected}") for line in printed.splitlines()), printed


async def test_a_charge_that_the_books_do_not_know(folder: Path, acquirer: AcquirerProcess, tmp_path: Path) -> None:
    with start_acquirer(tmp_path / "other") as other:
        await copy_record(acquirer, other)
        instruction = {
            "partner": "alpha",
            "kind": "purchase",
            "amount": 9_900,
            "currency": "EUR",
            "payment_method": "tok_approve",
            "original_key": None,
        }
        async with aiohttp.ClientSession() as session:
            headers = {"Idempotency-Key": "op_from_nowhere"}
            async with session.post(f"{other.url}/operations", json=instruction, headers=headers) as response:
                assert (await response.json())["result"] == "approved"
        code, printed = await audit(folder, other.url)
    assert code == 1, printed
    assert "alpha: DISAGREES" in printed
    assert "op_from_nowhere: performed at the acquirer, unknown here" in printed
    assert "beta: agrees" in printed


async def copy_record(acquirer: AcquirerProcess, other: AcquirerProcess) -> None:
    """Have the other acquirer perform, in their order, what this one did."""
    async with aiohttp.ClientSession() as session:
        for name in PARTNERS:
            async with session.get(f"{acquirer.url}/operations", params={"partner": name}) as response:
                rows = (await response.json())["operations"]
            for row in sorted(rows, key=lambda one: one["first_at_ms"]):
                fields = ("partner", "kind", "amount", "currency", "payment_method", "original_key")
                headers = {"Idempotency-Key": row["key"]}
                body = {field: row[field] for field in fields}
                async with session.post(f"{other.url}/operations", json=body, headers=headers) as response:
                    assert (await response.json())["result"] == row["result"]


async def test_an_acquirer_that_knows_nothing_of_what_succeeded(folder: Path, tmp_path: Path) -> None:
    with start_acquirer(tmp_path / "empty") as empty:
        code, printed = await audit(folder, empty.url)
    assert code == 1, printed
    assert printed.count("succeeded here, the acquirer has None") == 5 * len(PARTNERS)


async def test_a_book_that_is_gone_is_a_disagreement(folder: Path, acquirer: AcquirerProcess) -> None:
    (folder / "partners" / "beta.sqlite").unlink()
    code, printed = await audit(folder, acquirer.url)
    assert code == 1, printed
    assert "alpha: agrees" in printed
    assert "beta: DISAGREES" in printed
    assert "StoreMissingError" in printed


async def test_a_damaged_book_is_a_disagreement(folder: Path, acquirer: AcquirerProcess) -> None:
    (folder / "partners" / "beta.sqlite").write_bytes(b"no book" * 1_000)
    code, printed = await audit(folder, acquirer.url, "--json")
    assert code == 1, printed
    alpha, beta = json.loads(printed)["partners"]
    assert alpha["ok"]
    assert not beta["ok"]
    assert "StoreCorruptError" in beta["differences"][0]


async def test_an_audit_that_cannot_be_made_says_so(folder: Path, acquirer: AcquirerProcess, tmp_path: Path) -> None:
    code, printed = await audit(folder, f"http://127.0.0.1:{free_port()}")
    assert code == 2, printed
    assert "The audit could not be made: the acquirer" in printed
    (folder / "cell.sqlite").unlink()
    code, printed = await audit(folder, acquirer.url)
    assert code == 2, printed
    assert "the cell's own book can't be read" in printed


async def test_a_book_that_is_written_to_meanwhile_agrees(
    folder: Path, acquirer: AcquirerProcess, tmp_path: Path
) -> None:
    path = folder / "partners" / "alpha.sqlite"
    paid: list[int] = []
    with start_acquirer(tmp_path / "other") as other:
        await copy_record(acquirer, other)
        client = HttpClient()
        actor = PartnerActor(
            Profile("alpha", 1, rate_per_second=5_000, rate_burst=5_000, in_flight_max=5_000),
            await SqliteStore.open(path),
            {MAIN_ACQUIRER: HttpAcquirer(client, other.url, "alpha")},
        )
        await actor.start(1)

        async def pay() -> None:
            for number in itertools.count():
                envelope = Envelope(f"meanwhile-{number}", "r", CreatePayment(100, "EUR", "tok_approve"))
                assert isinstance(await actor.ask("create_payment", envelope, 8_000), Answer)
                paid.append(number)

        paying = asyncio.create_task(pay())
        try:
            code, printed = await audit(folder, other.url)
        finally:
            paying.cancel()
            await asyncio.gather(paying, return_exceptions=True)
            await actor.stop()
            await client.aclose()
    assert code == 0, printed
    assert paying.cancelled()
    assert len(paid) > 10
