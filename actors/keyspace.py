"""Every key of a partner's keyspace, as tuples. Written down here first; nothing else builds keys.

    ("head",)                                        Standing: sequence, floor of time, rate limit, balances
    ("payment", payment_id)                          Payment with its operations; ids rise with time
    ("refund", refund_id)                            payment_id
    ("open", operation_id)                           OpenOperation: asked of the acquirer, outcome to come
    ("once", "key" | "command", key or command_id)   Once: a command's idempotency record
    ("once", "notification", notification_id)        Once: of the main acquirer's notification that changed something
    ("once", "notification", acquirer, id)           the same of another acquirer's
    ("journal", sequence)                            JournalEntry: events and postings of one command
    ("status", status, payment_id)                   index of payments by status, `processing` left out
    ("reference", reference, payment_id)             index of payments by the partner's reference
    ("reconciled", operation_id)                     Reconciled: what a settlement file said, posted once
    ("due", at_ms, payment_id)                       authorizations and challenges to be looked at
    ("change", change_id)                            an operator's change stands in the journal: it is not told twice
    ("moved",)                                       the book is sealed: where its partner went (cells/api/moves.py)
    ("arrival",)                                     how this book came here from another cell, batch by batch

The store keeps ownership (epoch, door epoch) in rows of its own, outside of this keyspace. docs/keyspace.md has
the sizes of all rows, who reads and writes them, and how long they are kept.
"""

from typing import Final

from actors.profile import MAIN_ACQUIRER
from actors.store import Key

HEAD: Final[Key] = ("head",)
MOVED: Final[Key] = ("moved",)
ARRIVAL: Final[Key] = ("arrival",)
# Sorts behind every id and every text that a partner can send. Numbers sort behind all texts and have their own end.
LAST: Final = "\U0010ffff"
LAST_NUMBER: Final = (1 << 63) - 1


def payment(payment_id: str) -> Key:
    """Where a payment is."""
    return ("payment", payment_id)


def refund(refund_id: str) -> Key:
    """Where a refund's payment is named."""
    return ("refund", refund_id)


def open_operation(operation_id: str) -> Key:
    """Where an operation under way is."""
    return ("open", operation_id)


def once(idempotency_key: str | None, command_id: str) -> Key:
    """Where a command's idempotency record is: by the partner's key, or by the command's id."""
    return ("once", "command", command_id) if idempotency_key is None else ("once", "key", idempotency_key)


def notification(acquirer: str, notification_id: str) -> Key:
    """Where the record of an acquirer's notification is; neither a partner's key nor another acquirer's is there."""
    own = () if acquirer == MAIN_ACQUIRER else (acquirer,)
    return ("once", "notification", *own, notification_id)


def journal(sequence: int) -> Key:
    """Where a journal entry is."""
    return ("journal", sequence)


def status(name: str, payment_id: str) -> Key:
    """Where the index by status names a payment."""
    return ("status", name, payment_id)


def reference(text: str, payment_id: str) -> Key:
    """Where the index by reference names a payment."""
    return ("reference", text, payment_id)


def change(change_id: str) -> Key:
    """Where it is that an operator's change stands in the journal."""
    return ("change", change_id)


def due(at_ms: int, payment_id: str) -> Key:
    """Where the index of authorizations to be looked at names a payment."""
    return ("due", at_ms, payment_id)


def reconciled(operation_id: str) -> Key:
    """Where it is that a settlement file's row for an operation was posted."""
    return ("reconciled", operation_id)
