"""What is stored beside payments: idempotency records, open operations, journal entries. Only shapes; no bytes."""

from dataclasses import dataclass

from actors.events import Event
from actors.ledger import Posting
from actors.store import Key


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
    events: tuple[Event, ...]
    postings: tuple[Posting, ...]
    once_key: Key | None = None
