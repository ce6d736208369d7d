"""The books recomputed: replays a journal from nothing and says where the stored records disagree with it. Pure.

An auditor's view: it trusts the journal's events, and neither the stored payments nor the stored balances.
"""

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from actors import ledger
from actors.events import OperationReconciled, PartnerChanged, apply
from actors.ledger import Account
from actors.payment import Dispute, DisputeStatus, Operation, OperationState, Payment, PaymentStatus
from actors.profile import MAIN_ACQUIRER
from actors.records import JournalEntry, OpenOperation, Reconciled
from actors.rules import Standing


@dataclass(slots=True)
class Books:
    """What the journal says, entry by entry."""

    sequence: int = 0
    payments: dict[str, Payment] = field(default_factory=dict)
    balances: ledger.Balances = field(default_factory=dict)
    reconciled: dict[str, OperationReconciled] = field(default_factory=dict)
    changes: set[str] = field(default_factory=set)
    differences: list[str] = field(default_factory=list)

    def take(self, entries: Iterable[JournalEntry]) -> set[str]:
        """Replay further entries; give the payments that they touched."""
        touched = set()
        for entry in entries:
            if entry.sequence != self.sequence + 1:
                self.differences.append(f"journal: entry {entry.sequence} follows {self.sequence}")
            self.sequence = entry.sequence
            postings: list[ledger.Posting] = []
            for event in entry.events:
                if isinstance(event, PartnerChanged):
                    self._note_change(event)
                    continue
                try:
                    payment = apply(self.payments.get(event.payment_id), event)
                    posted = ledger.postings_of(payment, event)
                except (AssertionError, ValueError) as error:
                    self.differences.append(f"journal: entry {entry.sequence} does not follow: {error}")
                    continue
                self.payments[payment.id] = payment
                touched.add(payment.id)
                postings += posted
                if isinstance(event, OperationReconciled):
                    self._reconcile(event)
            if tuple(postings) != entry.postings:
                self.differences.append(f"journal: entry {entry.sequence} posts other than its events say")
            sums: dict[str, int] = {}
            for posting in entry.postings:
                sums[posting.currency] = sums.get(posting.currency, 0) + posting.amount
            if any(sums.values()):
                self.differences.append(f"journal: entry {entry.sequence} does not sum to zero: {sums}")
            self.balances = ledger.post(self.balances, tuple(postings))
        return touched

    def _note_change(self, event: PartnerChanged) -> None:
        if event.change_id in self.changes:
            self.differences.append(f"{event.change_id}: an operator's change stands in the journal twice")
        self.changes.add(event.change_id)

    def _reconcile(self, event: OperationReconciled) -> None:
        if event.operation_id in self.reconciled:
            self.differences.append(f"{event.operation_id}: settled twice")
        self.reconciled[event.operation_id] = event

    @property
    def operations(self) -> dict[str, tuple[Payment, Operation]]:
        """Every operation by its id."""
        return {o.id: (payment, o) for payment in self.payments.values() for o in payment.operations}


def compare_records(
    books: Books,
    standing: Standing,
    payments: Mapping[str, Payment],
    opens: Mapping[str, OpenOperation],
    statuses: Mapping[str, AbstractSet[str]],
) -> list[str]:
    """Say where the stored head, payments, open operations and status index disagree with the journal.

    `statuses`: under which the index names each payment; one, or none while it is under way.
    """
    differences = []
    for payment_id in sorted(books.payments.keys() | payments.keys()):
        replayed, stored = books.payments.get(payment_id), payments.get(payment_id)
        if replayed != stored:
            differences.append(f"payment {payment_id}: stored is {stored}, the journal gives {replayed}")
        if replayed is None:
            continue
        if not replayed.operations:
            differences.append(f"payment {payment_id}: the acquirer was never to be asked")
            continue
        differences += _money(replayed)
        indexed = statuses.get(payment_id, frozenset())
        if indexed != ({replayed.status.value} - {PaymentStatus.PROCESSING.value}):
            differences.append(f"payment {payment_id}: indexed as {sorted(indexed)}, it is {replayed.status}")
    differences += [
        f"status index names {payment_id}, which does not exist"
        for payment_id in sorted(statuses.keys() - books.payments.keys())
    ]
    replayed_balances = {key: amount for key, amount in books.balances.items() if amount}
    stored_balances = {key: amount for key, amount in standing.balances.items() if amount}
    if replayed_balances != stored_balances:
        differences.append(f"balances: stored {stored_balances}, the journal gives {replayed_balances}")
    open_ids = {operation_id for operation_id, (_, o) in books.operations.items() if o.is_open}
    if open_ids != opens.keys():
        differences.append(f"open operations: stored and journal differ by {sorted(open_ids ^ opens.keys())}")
    if standing.open_operations != len(open_ids):
        differences.append(f"open operations: {standing.open_operations} counted, {len(open_ids)} in the journal")
    if standing.sequence != books.sequence:
        differences.append(f"journal: ends at {books.sequence}, the head says {standing.sequence}")
    return differences


# Between them they hold all that settlement files cleared of what acquirers owed.
_SETTLED = (Account.CASH_AT_BANK, Account.ACQUIRER_FEES, Account.SETTLEMENT_DIFFERENCES)


def compare_reconciled(books: Books, rows: Mapping[str, Reconciled]) -> list[str]:
    """Say where the stored rows of settlement files, or what they add up to, disagree with the journal."""
    differences = []
    for operation_id in sorted(books.reconciled.keys() | rows.keys()):
        event, row = books.reconciled.get(operation_id), rows.get(operation_id)
        if (
            event is None
            or row is None
            or (event.payment_id, event.settled_on, event.gross, event.fee, event.fee_agreed, event.at_ms)
            != (row.payment_id, row.settled_on, row.gross, row.fee, row.fee_agreed, row.at_ms)
        ):
            differences.append(f"{operation_id}: stored as settled is {row}, the journal gives {event}")
    cleared: dict[str, int] = {}
    operations = books.operations
    for operation_id in books.reconciled:
        payment, operation = operations[operation_id]
        cleared[payment.currency] = cleared.get(payment.currency, 0) + ledger.owed(operation)
    for currency in sorted({currency for currency, _ in books.balances}):
        held = sum(books.balances.get((currency, account.value), 0) for account in _SETTLED)
        if held != cleared.get(currency, 0):
            differences.append(
                f"settled: {held} {currency} on the accounts, {cleared.get(currency, 0)} in the operations"
            )
    return differences


@dataclass(frozen=True, slots=True)
class AcquirerRecord:
    """One operation as the acquirer recorded it. `charged`: it was performed, and approved."""

    key: str
    kind: str
    amount: int
    currency: str
    result: str
    charged: bool


def compare_acquirer(books: Books, records: Mapping[str, AcquirerRecord], acquirer: str = MAIN_ACQUIRER) -> list[str]:
    """Say where an acquirer's own record disagrees with final operations. Others are in doubt, not wrong.

    What it performed of another acquirer's payment is as wrong as what nobody asked for.
    """
    differences = []
    all_keys = books.operations.keys()
    operations = {
        operation_id: (payment, operation)
        for operation_id, (payment, operation) in books.operations.items()
        if payment.acquirer == acquirer
    }
    for operation_id, (payment, operation) in operations.items():
        if not operation.is_final or operation.resolved_by is not None:
            continue
        record = records.get(operation_id)
        if operation.state is OperationState.SUCCEEDED:
            if record is None or not record.charged:
                differences.append(f"{operation_id}: succeeded here, the acquirer has {record}")
            elif (record.kind, record.amount, record.currency) != (
                operation.kind.value,
                operation.amount,
                payment.currency,
            ):
                differences.append(
                    f"{operation_id}: {operation.kind} of {operation.amount} {payment.currency} here, "
                    f"{record.kind} of {record.amount} {record.currency} at the acquirer"
                )
        elif record is not None and record.charged:
            differences.append(f"{operation_id}: failed here, performed at the acquirer")
    differences += [
        f"{key}: performed at the acquirer, unknown here"
        if key not in all_keys
        else f"{key}: performed at {acquirer}, not asked there"
        for key, record in records.items()
        if key not in operations and record.charged
    ]
    return differences


@dataclass(frozen=True, slots=True)
class AcquirerDispute:
    """One dispute as the acquirer has it. `status`: open, won or lost."""

    key: str
    amount: int
    currency: str
    status: str


def compare_disputes(books: Books, disputes: Mapping[str, AcquirerDispute], acquirer: str = MAIN_ACQUIRER) -> list[str]:
    """Say where disputes in the books are none at the acquirer, or other ones.

    Read what the acquirer has after the books: news of what it opened or decided since are on their way.
    """
    differences = []
    for payment in books.payments.values():
        for dispute in payment.disputes if payment.acquirer == acquirer else ():
            told = disputes.get(dispute.id)
            here = (dispute.operation_id, dispute.amount, payment.currency)
            if told is None or (told.key, told.amount, told.currency) != here or not _may_be(dispute, told):
                differences.append(f"dispute {dispute.id}: {dispute.status} over {here} here, the acquirer has {told}")
    return differences


def _may_be(dispute: Dispute, told: AcquirerDispute) -> bool:
    return dispute.status is DisputeStatus.OPEN or dispute.status.value == told.status


def _money(payment: Payment) -> list[str]:
    figures = (payment.amount_refunded, payment.amount_captured, payment.amount_authorized, payment.amount)
    if list(figures) != sorted(figures) or payment.amount_capturable < 0 or payment.amount_unreturned < 0:
        return [f"payment {payment.id}: refunded <= captured <= authorized <= amount does not hold: {figures}"]
    return []
