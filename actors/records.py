"""What is stored beside payments: idempotency records, open operations, journal entries, settled rows. Only shapes."""

from actors.events import JournalEvent
from actors.ledger import Posting
from actors.store import Key
from actors.values import dataclass


@dataclass(frozen=True, slots=True)
class Once:
    """A command and what became of it. While `status` is None the operation's outcome is to come."""

    command_id: str
    fingerprint: bytes
    payment_id: str
    operation_id: str
    created_ms: int
    status: int | None = None
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class OpenOperation:
    """An operation that the acquirer is asked for. `attempts` counts what was known at the last commit."""

    operation_id: str
    payment_id: str
    once_key: Key | None  # whose answer it is; None for the gateway's own (an authorization's end)
    first_asked_ms: int
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """What one command, or one word of the acquirer, changed. `cause` is its command id or what woke the actor."""

    sequence: int
    at_ms: int
    cause: str
    request_id: str
    epoch: int
    events: tuple[JournalEvent, ...]
    postings: tuple[Posting, ...]
    once_key: Key | None = None


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What a settlement file said of an operation, as it was posted. `file`: the SHA-256 of the file, in hex."""

    operation_id: str
    payment_id: str
    settled_on: str
    gross: int
    fee: int
    fee_agreed: int
    reference: str
    file: str
    at_ms: int
