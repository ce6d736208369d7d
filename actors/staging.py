"""What a batch builds on: committed records, overlaid with what the batch has decided so far.

Each command works in a draft of its own; only a command that went through is merged, so that an exception, a
too-large write or a refusal takes nothing but its own command out. Nothing here touches the store.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from actors import codec, keyspace, ledger, limits, views
from actors.answers import Answer
from actors.events import (
    DisputeOpened,
    Event,
    OperationApproved,
    OperationChallenged,
    OperationConfirmed,
    OperationDeclined,
    OperationIntended,
    OperationReconciled,
    OperationWithdrawn,
    PartnerChanged,
    apply,
)
from actors.payment import OperationKind, Payment, PaymentStatus
from actors.records import JournalEntry, Once, OpenOperation, Reconciled
from actors.rules import Standing
from actors.store import Clear, Key, Mutation, Put

_ENDS_ASKING = (OperationApproved, OperationDeclined, OperationChallenged)
_ASKS_AGAIN = (OperationConfirmed, OperationWithdrawn)
_GROWS = (OperationIntended, DisputeOpened)


class TooLargeError(Exception):
    """A command would write more than a store takes."""


@dataclass(slots=True)
class State:
    """Committed records as they were read or as they were written last. Values None: known to be absent."""

    standing: Standing
    payments: dict[str, Payment | None] = field(default_factory=dict)
    onces: dict[Key, Once | None] = field(default_factory=dict)
    opens: dict[str, OpenOperation | None] = field(default_factory=dict)
    rows: dict[Key, bytes | None] = field(default_factory=dict)  # read for this batch only, as they are stored
    _read: list[Key] = field(default_factory=list)

    def take_once(self, key: Key, once: Once | None) -> None:
        """Hold an idempotency record that was read, for this batch."""
        self.onces[key] = once
        self._read.append(key)

    def forget_answered(self) -> None:
        """Drop what was read for the batch, but for the idempotency records whose answer is to come."""
        self.rows = {}
        for key in self._read:
            once = self.onces.get(key)
            if once is None or once.status is not None:
                self.onces.pop(key, None)
        self._read.clear()


class Draft:
    """Changes on top of a state, or on top of another draft."""

    def __init__(self, below: "State | Draft") -> None:
        self._below = below
        self.standing: Standing = below.standing
        self.payments: dict[str, Payment | None] = {}
        self.onces: dict[Key, Once | None] = {}
        self.opens: dict[str, OpenOperation | None] = {}
        self.writes: dict[Key, bytes | None] = {}
        self.due_ms: int | None = None  # the soonest authorization or challenge that these changes plan to look at

    def payment(self, payment_id: str) -> Payment | None:
        """Give a payment as this draft sees it."""
        if payment_id in self.payments:
            return self.payments[payment_id]
        below = self._below
        return below.payments.get(payment_id) if isinstance(below, State) else below.payment(payment_id)

    def once(self, key: Key) -> Once | None:
        """Give an idempotency record as this draft sees it."""
        if key in self.onces:
            return self.onces[key]
        below = self._below
        return below.onces.get(key) if isinstance(below, State) else below.once(key)

    def open(self, operation_id: str) -> OpenOperation | None:
        """Give an open operation as this draft sees it."""
        if operation_id in self.opens:
            return self.opens[operation_id]
        below = self._below
        return below.opens.get(operation_id) if isinstance(below, State) else below.open(operation_id)

    def row(self, key: Key) -> bytes | None:
        """Give a row that was read for this batch as this draft sees it."""
        if key in self.writes:
            return self.writes[key]
        below = self._below
        return below.rows.get(key) if isinstance(below, State) else below.row(key)

    def put_once(self, key: Key, once: Once) -> None:
        """Write an idempotency record."""
        self.onces[key] = once
        self._write(key, codec.encode_once(once))

    def put_open(self, operation: OpenOperation) -> None:
        """Write an open operation."""
        self.opens[operation.operation_id] = operation
        self._write(keyspace.open_operation(operation.operation_id), codec.encode_open(operation))

    def clear(self, key: Key) -> None:
        """Remove a row."""
        self.writes[key] = None

    def record(
        self,
        events: tuple[Event, ...],
        *,
        payment_id: str,
        now_ms: int,
        cause: str,
        request_id: str,
        epoch: int,
        once_key: Key | None = None,
        arrival_us: int | None = None,
    ) -> Payment:
        """Apply the events of one command to its payment, post them, and write all that follows."""
        before = self.payment(payment_id)
        payment = before
        postings: list[ledger.Posting] = []
        balances = self.standing.balances
        opened = self.standing.open_operations
        for event in events:
            previous = payment
            payment = apply(payment, event)
            posted = ledger.postings_of(payment, event)
            balances = ledger.post(balances, posted)
            postings += posted
            if isinstance(event, OperationIntended):
                opened += 1
                if event.kind == OperationKind.REFUND:
                    self._write(keyspace.refund(event.operation_id), codec.encode_text(payment_id))
                self.put_open(OpenOperation(event.operation_id, payment_id, once_key, now_ms))
            elif isinstance(event, _ENDS_ASKING):
                assert previous is not None, "the word on an operation that was never intended"
                if previous.operation(event.operation_id).is_open:  # one that waited for its customer was not
                    opened -= 1
                    self.opens[event.operation_id] = None
                    self.clear(keyspace.open_operation(event.operation_id))
            elif isinstance(event, _ASKS_AGAIN):
                # How long the acquirer remembers the key counts from when it was asked first.
                asked_ms = payment.operation(event.operation_id).created_ms
                opened += 1
                self.put_open(OpenOperation(event.operation_id, payment_id, once_key, asked_ms))
        assert payment is not None, "a record without events"
        sequence = self.standing.sequence + 1
        standing = self.standing
        self.standing = Standing(
            sequence,
            max(now_ms, standing.floor_ms),
            standing.arrival_us if arrival_us is None else arrival_us,
            opened,
            standing.swept_sequence,
            balances,
        )
        entry = JournalEntry(sequence, now_ms, cause, request_id, epoch, events, tuple(postings), once_key)
        self._write(keyspace.journal(sequence), codec.encode_entry(entry))
        self.payments[payment_id] = payment
        value = codec.encode_payment(payment)
        self._write(keyspace.payment(payment_id), value)
        if any(isinstance(event, _GROWS) for event in events):
            _leave_room(payment, len(value))
        self._index(before, payment)
        return payment

    def record_reconciled(
        self, reconciled: Sequence[tuple[Payment, OperationReconciled, Reconciled]], *, entry: JournalEntry
    ) -> None:
        """Post what a settlement file paid out, all of it in one journal entry: `entry`, still without its events.

        The payments stay as they are; each operation's row says that it is done.
        """
        balances = self.standing.balances
        postings: list[ledger.Posting] = []
        for payment, event, row in reconciled:
            assert apply(payment, event) is payment
            posted = ledger.postings_of(payment, event)
            balances = ledger.post(balances, posted)
            postings += posted
            self._write(keyspace.reconciled(row.operation_id), codec.encode_reconciled(row))
        self.standing = replace(
            self.standing,
            sequence=entry.sequence,
            floor_ms=max(entry.at_ms, self.standing.floor_ms),
            balances=balances,
        )
        events = tuple(event for _, event, _ in reconciled)
        whole = replace(entry, events=events, postings=tuple(postings))
        self._write(keyspace.journal(entry.sequence), codec.encode_entry(whole))

    def record_change(self, event: PartnerChanged, *, entry: JournalEntry) -> None:
        """Write an operator's change into the journal: `entry`, still without its event. It posts nothing."""
        self._write(keyspace.change(event.change_id), b"")
        self.standing = replace(
            self.standing, sequence=entry.sequence, floor_ms=max(entry.at_ms, self.standing.floor_ms)
        )
        self._write(keyspace.journal(entry.sequence), codec.encode_entry(replace(entry, events=(event,))))

    def answer(self, key: Key, answer: Answer) -> Answer:
        """Keep the answer to a command, if it has none yet; give the one that is kept."""
        once = self.once(key)
        if once is None:
            return answer  # past its retention: nobody can ask for it again
        if once.status is not None:
            return Answer(once.status, once.body)
        self.put_once(
            key,
            Once(
                once.command_id,
                once.fingerprint,
                once.payment_id,
                once.operation_id,
                once.created_ms,
                answer.status,
                answer.body,
            ),
        )
        return answer

    def merge(self) -> None:
        """Take these changes over into the draft below."""
        below = self._below
        assert isinstance(below, Draft)
        below.standing = self.standing
        below.payments |= self.payments
        below.onces |= self.onces
        below.opens |= self.opens
        below.writes |= self.writes
        if self.due_ms is not None:
            below.due_ms = min(self.due_ms, below.due_ms or self.due_ms)

    def adopt(self) -> None:
        """Take these changes over into the state below: they are committed."""
        below = self._below
        assert isinstance(below, State)
        below.standing = self.standing
        below.payments |= self.payments
        for key, once in self.onces.items():
            below.take_once(key, once)
        for operation_id, operation in self.opens.items():
            if operation is None:
                below.opens.pop(operation_id, None)
            else:
                below.opens[operation_id] = operation

    def mutations(self) -> list[Mutation]:
        """Give what the store is to write, the head included."""
        head = codec.encode_standing(self.standing)
        rows: list[Mutation] = [Put(keyspace.HEAD, head)]
        rows += [Clear(key) if value is None else Put(key, value) for key, value in self.writes.items()]
        return rows

    def size_bytes(self) -> int:
        """Estimate what the draft writes."""
        return sum(64 + len(value or b"") for value in self.writes.values())

    def _write(self, key: Key, value: bytes) -> None:
        if len(value) > limits.STORE_VALUE_BYTES_MAX:
            raise TooLargeError(f"{key[0]!r} would be {len(value)} bytes, {limits.STORE_VALUE_BYTES_MAX} are allowed")
        self.writes[key] = value

    def _index(self, before: Payment | None, payment: Payment) -> None:
        old_status = PaymentStatus.PROCESSING if before is None else before.status
        new_status = payment.status
        # Payments under way are found by their open operations; the index spares them two writes.
        if old_status is not new_status:
            if old_status is not PaymentStatus.PROCESSING:
                self.clear(keyspace.status(old_status.value, payment.id))
            if new_status is not PaymentStatus.PROCESSING:
                self._write(keyspace.status(new_status.value, payment.id), b"")
        if before is None and payment.reference is not None:
            self._write(keyspace.reference(payment.reference, payment.id), b"")
        old_due = None if before is None else before.due_ms
        if old_due != payment.due_ms:
            if old_due is not None:
                self.clear(keyspace.due(old_due, payment.id))
            if payment.due_ms is not None:
                self._write(keyspace.due(payment.due_ms, payment.id), b"")
                self.due_ms = payment.due_ms


def _leave_room(payment: Payment, size_bytes: int) -> None:
    """Raise TooLargeError where the outcomes to come might not fit into the payment or into its JSON any more."""
    # One more than there are open operations: the newest failure stands in the payment's JSON once more.
    outcomes = 1 + sum(operation.is_open for operation in payment.operations)
    allowed_bytes = limits.STORE_VALUE_BYTES_MAX - outcomes * limits.OUTCOME_BYTES_MAX
    # JSON takes at most so many times the record's bytes: an escaped character takes six, a code stands there twice.
    if size_bytes * 16 > allowed_bytes:
        size_bytes = max(size_bytes, len(views.render_payment(payment, "test")))
    if size_bytes > allowed_bytes:
        raise TooLargeError(f"the payment would be {size_bytes} bytes and leave no room for the outcome")


def outcome_answer(payment: Payment, operation_id: str, mode: str) -> Answer:
    """Give the answer to the command that set the operation going, as things stand: 202 while it is open."""
    operation = payment.operation(operation_id)
    if operation.kind is OperationKind.REFUND:
        status, body = 201, views.render_refund(payment, operation)
    else:
        # What opens a payment is answered once as such; what confirms or cancels it later is a change of it.
        begins = operation is payment.first and not operation.confirmations and operation.withdrawn is None
        status = 201 if begins else 200
        body = views.render_payment(payment, mode)
    return Answer(202 if operation.is_open else status, body)
