"""A partner on a bench: its book in memory, its acquirer scripted, its time virtual; and the audit of its book.

`start` gives an owner of the book; called again it gives the next one, and the former is a zombie that goes on.
"""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import orjson

from actors import codec, keyspace, ledger, limits, queries
from actors.acquirer import Approved, Declined, NeverPerformed
from actors.answers import Answer, Refused
from actors.breaker import Breaker
from actors.commands import (
    CapturePayment,
    Command,
    ConfirmPayment,
    CreatePayment,
    DisputeNotification,
    Envelope,
    PartnerCommand,
    ReconcileOperations,
    RecordChange,
    RefundPayment,
    ResolveOperation,
    ResultNotification,
    VoidPayment,
)
from actors.events import OperationReconciled, PartnerChanged, apply
from actors.ledger import Account, Balances
from actors.mailbox import Result
from actors.partner import PartnerActor
from actors.payment import OPEN_STATES, DisputeStatus, OperationKind, OperationState, Payment, PaymentStatus
from actors.profile import MAIN_ACQUIRER, Profile
from actors.records import JournalEntry
from actors.refusals import RefusalCode
from actors.rules import Standing
from actors.store import Entry, Key, Range
from stores.memory_store import MemoryBook, MemoryStore
from tests.unit.actors.scripted_acquirer import AcquirerRecord, ScriptedAcquirer
from tests.unit.actors.virtual_time import VirtualClock

METHODS: dict[type[Any], str] = {
    CreatePayment: "create_payment",
    CapturePayment: "capture_payment",
    VoidPayment: "void_payment",
    RefundPayment: "refund_payment",
    ResolveOperation: "resolve_operation",
    ReconcileOperations: "reconcile_operations",
    RecordChange: "record_change",
    ConfirmPayment: "confirm_payment",
    ResultNotification: "notify_result",
    DisputeNotification: "notify_dispute",
}
DEBIT_ACCOUNTS = frozenset(
    {Account.ACQUIRER_HOLDS, Account.ACQUIRER_RECEIVABLE, Account.ACQUIRER_FEES, Account.DISPUTES_WITHDRAWN}
)
# Of either side: a file may pay less than is owed, or take back more than it ever paid.
SETTLEMENT_ACCOUNTS = frozenset({Account.CASH_AT_BANK, Account.SETTLEMENT_DIFFERENCES})
CREDIT_ACCOUNTS = frozenset(Account) - DEBIT_ACCOUNTS - SETTLEMENT_ACCOUNTS
# More than any wait in the code, in virtual time: what is not there by then never comes.
PATIENCE_S = 3_600.0


def purchase(amount: int = 1_000, **fields: Any) -> CreatePayment:
    """A payment that is captured at once."""
    return CreatePayment(amount, "EUR", "tok_approve", **fields)


def authorization(amount: int = 1_000, **fields: Any) -> CreatePayment:
    """A payment that is captured by hand."""
    return CreatePayment(amount, "EUR", "tok_approve", manual_capture=True, **fields)


def envelope(
    command: Command | PartnerCommand, command_id: str, key: str | None = None, fingerprint: bytes | None = None
) -> Envelope:
    """Wrap a command as the router does."""
    digest = hashlib.sha256(repr(command).encode()).digest() if fingerprint is None else fingerprint
    return Envelope(command_id, f"req_{command_id}", command, key, digest)


def body(result: Result) -> dict[str, Any]:
    """Read an answer's JSON."""
    assert isinstance(result, Answer), result
    return orjson.loads(result.body)  # type: ignore[no-any-return]


def code(result: Result) -> RefusalCode:
    """Give a refusal's code."""
    assert isinstance(result, Refused), result
    return result.refusal.code


async def settle_down() -> None:
    """Let everything happen that needs no time to pass."""
    for _ in range(50):
        await asyncio.sleep(0)


class Bench:
    """One partner; `actor` and `acquirer` are those of its newest owner."""

    def __init__(self, **profile: Any) -> None:
        wide = {"rate_per_second": 10_000, "rate_burst": 10_000, "in_flight_max": 1_000}
        self.profile = Profile("partner_1", 1, **(wide | profile))
        self.clock = VirtualClock()
        self.book = MemoryBook()
        self.record = AcquirerRecord()
        self.owners: list[PartnerActor] = []
        self.stopped: list[str] = []
        self._commands = 0

    actor: PartnerActor
    acquirer: ScriptedAcquirer

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(
        self,
        door_epoch: int = 1,
        *,
        acquirer: ScriptedAcquirer | None = None,
        executing: Callable[[str], None] | None = None,
        on_out_of_memory: Callable[[], None] = lambda: None,
    ) -> PartnerActor:
        """Give the book a new owner."""
        self.acquirer = acquirer or ScriptedAcquirer(self.record)
        self.actor = PartnerActor(
            self.profile,
            self.store(),
            {MAIN_ACQUIRER: self.acquirer},
            clock=self.clock,
            executing=executing or (lambda _: None),
            on_out_of_memory=on_out_of_memory,
            on_stopped=self.stopped.append,
        )
        self.owners.append(self.actor)
        await self.actor.start(door_epoch)
        return self.actor

    @property
    def breaker(self) -> Breaker:
        """The newest owner's breaker towards the main acquirer."""
        return self.actor.acquirers.way(MAIN_ACQUIRER).breaker

    def store(self) -> MemoryStore:
        """Open the book."""
        return MemoryStore(self.book)

    async def stop(self) -> None:
        """Stop all owners."""
        for owner in self.owners:
            await owner.stop()

    def command_id(self) -> str:
        """Mint a command's id."""
        self._commands += 1
        return f"cmd_{self._commands:04d}"

    async def ask(
        self,
        command: Command | PartnerCommand,
        *,
        key: str | None = None,
        command_id: str | None = None,
        fingerprint: bytes | None = None,
        budget_ms: int = 8_000,
        actor: PartnerActor | None = None,
    ) -> Result:
        """Ask the newest owner, or another; fail where no answer ever comes."""
        asked = envelope(command, command_id or self.command_id(), key, fingerprint)
        async with asyncio.timeout(PATIENCE_S):
            return await (actor or self.actor).ask(METHODS[type(command)], asked, budget_ms)

    def ask_soon(self, command: Command | PartnerCommand, **arguments: Any) -> asyncio.Task[Result]:
        """Ask without waiting for the answer."""
        return asyncio.create_task(self.ask(command, **arguments))

    async def get(self, payment_id: str) -> dict[str, Any]:
        """Read a payment as partners do."""
        return body(await self.query("get_payment", payment_id=payment_id))

    async def query(self, method: str, **arguments: Any) -> Result:
        """Read as partners do."""
        return await queries.query(self.actor, method, arguments)

    async def until(self, happened: Callable[[], bool], within_s: float = PATIENCE_S) -> None:
        """Wait in virtual time."""
        step_s = 0.01
        async with asyncio.timeout(within_s):
            while not happened():
                await asyncio.sleep(step_s)
                step_s = min(step_s * 1.02, 1.0)

    def pass_retention(self) -> None:
        """Set the clock past what the acquirer remembers, as if the machine had slept: no wait is over by that."""
        self.clock.wall_offset_ms += limits.ACQUIRER_KEY_RETENTION_MS

    async def audit(self) -> "Books":
        """Recompute the book from its journal, hold it against what is stored and against the acquirer's record."""
        books = await read_books(self.book)
        check_books(books)
        check_record(books, self.record)
        return books


@dataclass(slots=True)
class Books:
    """What a book holds, and what follows from its journal."""

    standing: Standing
    rows: dict[Key, bytes]
    entries: list[JournalEntry]
    payments: dict[str, Payment] = field(default_factory=dict)
    balances: Balances = field(default_factory=dict)

    @property
    def operations(self) -> dict[str, tuple[Payment, OperationState]]:
        """Every operation, by id."""
        return {o.id: (payment, o.state) for payment in self.payments.values() for o in payment.operations}

    def under(self, name: str) -> dict[Key, bytes]:
        """Give the rows of one kind."""
        return {key: value for key, value in self.rows.items() if key[0] == name}


async def read_books(book: MemoryBook) -> Books:
    """Read a whole book and recompute it from its journal."""
    store = MemoryStore(book)
    rows: dict[Key, bytes] = {}
    begin: Key = ("",)
    while True:
        page: tuple[Entry, ...] = (
            await store.read((), [Range(begin, (keyspace.LAST,), limits.STORE_RANGE_ROWS_MAX)])
        ).ranges[0]
        rows |= {row.key: row.value for row in page}
        if len(page) < limits.STORE_RANGE_ROWS_MAX:
            break
        begin = (*page[-1].key, "")
    return recompute(rows)


def recompute(rows: dict[Key, bytes]) -> Books:
    """Recompute a book from the journal among its rows."""
    head = rows.get(keyspace.HEAD)
    standing = Standing() if head is None else codec.decode_standing(head)
    journal = sorted((key, value) for key, value in rows.items() if key[0] == "journal")
    books = Books(standing, rows, [codec.decode_entry(value) for _, value in journal])
    assert [key for key, _ in journal] == [keyspace.journal(entry.sequence) for entry in books.entries]
    for entry in books.entries:
        postings: list[ledger.Posting] = []
        for event in entry.events:
            if isinstance(event, PartnerChanged):
                continue
            payment = apply(books.payments.get(event.payment_id), event)
            books.payments[payment.id] = payment
            postings += ledger.postings_of(payment, event)
        assert tuple(postings) == entry.postings, f"entry {entry.sequence} posts what its events do not"
        books.balances = ledger.post(books.balances, entry.postings)
    return books


def check_books(books: Books) -> None:
    """Hold what is stored against what follows from the journal."""
    standing = books.standing
    assert [entry.sequence for entry in books.entries] == list(range(1, standing.sequence + 1))
    assert [entry.at_ms for entry in books.entries] == sorted(entry.at_ms for entry in books.entries)
    assert [entry.epoch for entry in books.entries] == sorted(entry.epoch for entry in books.entries)
    assert standing.balances == books.balances
    check_signs(books.balances, crossing=bool(overdrawn(books)))
    check_disputes(books)
    stored = {str(key[1]): codec.decode_payment(value) for key, value in books.under("payment").items()}
    assert stored == books.payments
    opened = {operation_id for operation_id, (_, state) in books.operations.items() if state in OPEN_STATES}
    assert {key[1] for key in books.under("open")} == opened
    for row in books.under("open").values():
        asked = codec.decode_open(row)
        # Or who needs a person, and whom a person may help, were not the same.
        assert asked.first_asked_ms == books.payments[asked.payment_id].operation(asked.operation_id).created_ms
    assert standing.open_operations == len(opened)
    payments = books.payments.values()
    assert set(books.under("status")) == {
        keyspace.status(p.status.value, p.id) for p in payments if p.status is not PaymentStatus.PROCESSING
    }
    assert set(books.under("reference")) == {
        keyspace.reference(p.reference, p.id) for p in payments if p.reference is not None
    }
    assert set(books.under("due")) == {keyspace.due(p.due_ms, p.id) for p in payments if p.due_ms is not None}
    assert {key[1]: codec.decode_text(value) for key, value in books.under("refund").items()} == {
        o.id: p.id for p in payments for o in p.operations if o.kind == "refund"
    }
    for payment in payments:
        check_payment(payment)
    check_settled(books)
    changes = [e.change_id for entry in books.entries for e in entry.events if isinstance(e, PartnerChanged)]
    assert sorted(changes) == sorted(str(key[1]) for key in books.under("change")), "a change stands there once"
    for value in books.under("once").values():
        once = codec.decode_once(value)
        payment = books.payments[once.payment_id]
        if once.status is None:
            assert payment.operation(once.operation_id).is_open, f"{once} was never answered"


def check_settled(books: Books) -> None:
    """Hold the rows of settlement files against the journal: each operation once, and nothing lost between accounts."""
    events = [e for entry in books.entries for e in entry.events if isinstance(e, OperationReconciled)]
    assert len({event.operation_id for event in events}) == len(events), "settled twice"
    rows = [codec.decode_reconciled(value) for value in books.under("reconciled").values()]
    assert {row.operation_id: (row.gross, row.fee, row.fee_agreed, row.at_ms) for row in rows} == {
        event.operation_id: (event.gross, event.fee, event.fee_agreed, event.at_ms) for event in events
    }
    cleared: dict[str, int] = {}
    for event in events:
        payment = books.payments[event.payment_id]
        amount = ledger.owed(payment.operation(event.operation_id))
        cleared[payment.currency] = cleared.get(payment.currency, 0) + amount
    for currency, amount in cleared.items():
        accounts = (Account.CASH_AT_BANK, Account.ACQUIRER_FEES, Account.SETTLEMENT_DIFFERENCES)
        assert sum(books.balances.get((currency, account), 0) for account in accounts) == amount


def check_payment(payment: Payment) -> None:
    """Hold a payment against what can't be: more captured than authorized, more given back than captured."""
    assert 0 <= payment.amount_captured <= payment.amount_authorized <= payment.amount
    assert 0 <= payment.amount_refunded <= payment.amount_captured
    assert 0 <= payment.amount_capturable <= payment.amount_authorized - payment.amount_captured
    assert 0 <= payment.amount_refundable <= payment.amount_unreturned
    assert payment.amount_unreturned <= payment.amount_captured - payment.amount_refunded
    assert 0 <= payment.amount_disputed <= payment.amount_captured
    assert 0 <= payment.amount_expired <= payment.amount_authorized


def overdrawn(books: Books) -> list[Payment]:
    """Give the payments that cost the partner more than they brought: refunded, and then disputed as well."""
    return [p for p in books.payments.values() if p.amount_unreturned < p.amount_disputed]


def check_disputes(books: Books) -> None:
    """Hold the disputes' accounts against the disputes that are open."""
    held: dict[str, int] = {}
    for payment in books.payments.values():
        for dispute in payment.disputes:
            amount = dispute.amount if dispute.status is DisputeStatus.OPEN else 0
            held[payment.currency] = held.get(payment.currency, 0) + amount
    for currency, amount in held.items():
        assert books.balances.get((currency, Account.DISPUTES_HELD), 0) == -amount
        assert books.balances.get((currency, Account.DISPUTES_WITHDRAWN), 0) == amount


def check_signs(balances: Balances, *, crossing: bool = False) -> None:
    """Hold balances against their accounts' sides, and against a sum of zero per currency.

    `crossing`: somebody's money was disputed that was given back already, so a partner may owe us.
    """
    # What was settled is owed no more; a refund after that makes the acquirer's debt ours.
    settled = any(account == Account.CASH_AT_BANK for _, account in balances)
    for (currency, account), amount in balances.items():
        if account in SETTLEMENT_ACCOUNTS or (settled and account == Account.ACQUIRER_RECEIVABLE):
            continue
        if crossing and account in (Account.PARTNER_PAYABLE, Account.ACQUIRER_RECEIVABLE):
            continue
        credit = Account(account) in CREDIT_ACCOUNTS
        assert amount <= 0 if credit else amount >= 0, f"{currency} {account} is {amount}"
    for currency in {currency for currency, _ in balances}:
        assert not sum(amount for (of, _), amount in balances.items() if of == currency)


def check_record(books: Books, record: AcquirerRecord) -> None:
    """Hold the books against the acquirer's record; what a person resolved is that person's word."""
    assert not [key for key, times in record.charges.items() if times != 1], "charged more than once"
    for payment in books.payments.values():
        for operation in payment.operations:
            outcome = record.outcomes.get(operation.id)
            if not operation.is_final or operation.resolved_by is not None:
                continue
            if operation.state is OperationState.SUCCEEDED:
                assert isinstance(outcome, Approved)
                assert operation.acquirer_reference == outcome.reference
            else:
                assert isinstance(outcome, Declined | NeverPerformed)
        if any(operation.resolved_by for operation in payment.operations):
            continue
        moved = dict.fromkeys(OperationKind, 0)
        for operation in payment.operations:
            moved[operation.kind] += operation.amount * record.charges[operation.id]
        taken = moved[OperationKind.CAPTURE] + moved[OperationKind.VOID]
        assert taken <= moved[OperationKind.AUTHORIZATION]
        assert moved[OperationKind.REFUND] <= moved[OperationKind.CAPTURE] + moved[OperationKind.PURCHASE]
    assert set(record.charges) <= set(books.operations), "charged what no book knows"
