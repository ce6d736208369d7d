"""What the acquirer tells by itself, and the disputes that it tells of: rows beside the record, in its transactions.

A notification waits here until it was taken, or until it was tried often enough. Each is sent twice, because an
acquirer promises "at least once" and nothing more. Works on an open connection; no HTTP and no clock go in.
"""

import sqlite3
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import orjson

from acquirer_simulator import limits
from acquirer_simulator.rules import Operation
from acquirer_simulator.tokens import Dispute

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS disputes (
    sequence INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    partner TEXT NOT NULL,
    key TEXT NOT NULL,
    original_key TEXT,
    amount INTEGER NOT NULL,
    currency TEXT NOT NULL,
    reason TEXT NOT NULL,
    outcome TEXT CHECK (outcome IN ('won', 'lost')),
    opened_at_ms INTEGER NOT NULL,
    closed_at_ms INTEGER
) STRICT;
CREATE INDEX IF NOT EXISTS disputes_by_original ON disputes (coalesce(original_key, key));
CREATE INDEX IF NOT EXISTS disputes_by_partner ON disputes (partner, sequence);
CREATE TABLE IF NOT EXISTS notifications (
    sequence INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    type TEXT NOT NULL,
    partner TEXT NOT NULL,
    key TEXT NOT NULL,
    dispute_id TEXT,
    made_at_ms INTEGER NOT NULL,
    due_at_ms INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    taken INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'delivered', 'given_up', 'moot'))
) STRICT;
CREATE INDEX IF NOT EXISTS notifications_waiting ON notifications (due_at_ms) WHERE state = 'waiting';
"""
RESULT: Final = "operation.result"
_OPENED: Final = "dispute.opened"
_DUE: Final = (
    "SELECT id, type, partner, key, dispute_id, made_at_ms, attempts, taken FROM notifications "
    "WHERE state = 'waiting' AND due_at_ms <= ? ORDER BY due_at_ms LIMIT ?"
)
_NEXT: Final = "SELECT min(due_at_ms) FROM notifications WHERE state = 'waiting'"
_LEASE: Final = "UPDATE notifications SET due_at_ms = ?, attempts = attempts + 1 WHERE id = ?"
_MOVE: Final = "UPDATE notifications SET state = ?, due_at_ms = ?, taken = ? WHERE id = ?"
_ADD: Final = "INSERT INTO notifications VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, 0, 0, 'waiting')"
_ADD_DISPUTE: Final = "INSERT INTO disputes VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_DISPUTE_COLUMNS: Final = (
    "sequence, id, partner, key, original_key, amount, currency, reason, outcome, opened_at_ms, closed_at_ms"
)
_DISPUTE: Final = f"SELECT {_DISPUTE_COLUMNS} FROM disputes WHERE id = ?"  # noqa: S608 - constants only
_DISPUTES: Final = (
    f"SELECT {_DISPUTE_COLUMNS} FROM disputes "  # noqa: S608
    "WHERE partner = ? AND sequence > ? AND opened_at_ms <= ? ORDER BY sequence LIMIT ?"
)
_HELD: Final = (
    "SELECT coalesce(sum(amount), 0) FROM disputes WHERE coalesce(original_key, key) = ? AND opened_at_ms <= ? "
    "AND NOT (outcome IS 'won' AND closed_at_ms <= ?)"
)
_LISTED: Final = (
    "SELECT id, type, key, made_at_ms, attempts, taken, state FROM notifications WHERE partner = ? ORDER BY sequence "
    "LIMIT ?"
)


class Notification(NamedTuple):
    """One that is to be sent now. `attempts` counts those before, `taken` how often it was answered with 2xx."""

    id: str
    type: str
    partner: str
    key: str
    dispute_id: str | None
    made_at_ms: int
    attempts: int
    taken: int


class DisputeRow(NamedTuple):
    """One dispute with its whole story; what of it has come about depends on the time."""

    sequence: int
    id: str
    partner: str
    key: str
    original_key: str | None
    amount: int
    currency: str
    reason: str
    outcome: str | None
    opened_at_ms: int
    closed_at_ms: int | None

    def entry(self, now_ms: int) -> dict[str, Any]:
        """Return the dispute as it stands at that time."""
        closed = self.closed_at_ms is not None and self.closed_at_ms <= now_ms
        return {
            "id": self.id,
            "partner": self.partner,
            "key": self.key,
            "original_key": self.original_key,
            "amount": self.amount,
            "currency": self.currency,
            "reason": self.reason,
            "status": self.outcome if closed else "open",
            "opened_at_ms": self.opened_at_ms,
            "closed_at_ms": self.closed_at_ms if closed else None,
        }


def add_result(connection: sqlite3.Connection, operation: Operation, at_ms: int) -> None:
    """Plan to tell of an operation's result."""
    _add(connection, RESULT, operation.partner, operation.key, None, at_ms)


def add_dispute(connection: sqlite3.Connection, operation: Operation, dispute: Dispute, now_ms: int) -> None:
    """Plan a dispute of what the operation moved, and to tell of it."""
    dispute_id = "dp_" + blake2b(operation.key.encode(), digest_size=10).hexdigest()
    opened_ms = now_ms + limits.DISPUTE_OPENS_MS
    closed_ms = None if dispute.outcome is None else opened_ms + limits.DISPUTE_CLOSES_MS
    connection.execute(
        _ADD_DISPUTE,
        (
            dispute_id,
            operation.partner,
            operation.key,
            operation.original_key,
            operation.amount,
            operation.currency,
            "fraudulent",
            dispute.outcome,
            opened_ms,
            closed_ms,
        ),
    )
    told_ms = opened_ms
    if closed_ms is not None:
        _add(connection, f"dispute.{dispute.outcome}", operation.partner, operation.key, dispute_id, closed_ms)
        if dispute.told_backwards:
            told_ms = closed_ms + limits.DISPUTE_OPENS_MS
    _add(connection, _OPENED, operation.partner, operation.key, dispute_id, told_ms)


def held_by_disputes(connection: sqlite3.Connection, original_key: str, now_ms: int) -> int:
    """Return how much of a payment open and lost disputes hold."""
    held: int = connection.execute(_HELD, (original_key, now_ms, now_ms)).fetchone()[0]
    return held


def disputes_page(
    connection: sqlite3.Connection, partner: str, after: int, limit: int, now_ms: int
) -> list[DisputeRow]:
    """Return disputes of a partner that were opened by then, with `sequence > after`."""
    return [DisputeRow._make(row) for row in connection.execute(_DISPUTES, (partner, after, now_ms, limit))]


def listed(connection: sqlite3.Connection, partner: str) -> list[dict[str, Any]]:
    """Return a partner's notifications and how far they got, for tests and the curious."""
    names = ("id", "type", "key", "made_at_ms", "attempts", "taken", "state")
    rows = connection.execute(_LISTED, (partner, limits.PAGE_ROWS_MAX))
    return [dict(zip(names, row, strict=True)) for row in rows]


def next_due_ms(connection: sqlite3.Connection) -> int | None:
    """Return when the next notification is due."""
    due: int | None = connection.execute(_NEXT).fetchone()[0]
    return due


def lease(connection: sqlite3.Connection, now_ms: int) -> list[Notification]:
    """Take what is due to be sent; nobody else gets it for a while, and the next process does after that."""
    rows = connection.execute(_DUE, (now_ms, limits.NOTIFICATIONS_AT_ONCE_MAX)).fetchall()
    due = [Notification._make(row) for row in rows]
    for notification in due:
        connection.execute(_LEASE, (now_ms + limits.NOTIFICATION_LEASE_MS, notification.id))
    return due


def note(connection: sqlite3.Connection, notification: Notification, *, taken: bool, now_ms: int) -> str:
    """Write down what became of a delivery; return the notification's state."""
    times = notification.taken + taken
    attempts = notification.attempts + 1
    state, due_ms = "waiting", now_ms + limits.NOTIFICATION_REPEAT_DELAY_MS
    if taken:
        if times >= limits.NOTIFICATION_DELIVERIES:
            state = "delivered"
    elif attempts >= limits.NOTIFICATION_ATTEMPTS_MAX:
        # Only the repeat of one that was taken is not worth more.
        state = "delivered" if times else "given_up"
    else:
        delay_ms = limits.NOTIFICATION_RETRY_DELAY_MS_MIN << min(attempts - 1, 20)
        due_ms = now_ms + min(delay_ms, limits.NOTIFICATION_RETRY_DELAY_MS_MAX)
    connection.execute(_MOVE, (state, due_ms, times, notification.id))
    return state


def drop(connection: sqlite3.Connection, notification: Notification) -> None:
    """Write down that there is nothing to tell: who closed the key knows what became of it."""
    connection.execute(_MOVE, ("moot", notification.made_at_ms, notification.taken, notification.id))


def result_body(notification: Notification, original_key: str | None, answer: dict[str, Any]) -> bytes:
    """Return the JSON that tells of a result; the same for every delivery."""
    data = {"partner": notification.partner, "original_key": original_key, **answer}
    return _body(notification, data)


def dispute_body(connection: sqlite3.Connection, notification: Notification) -> bytes:
    """Return the JSON that tells of a dispute as it was at that news; the same for every delivery."""
    row = DisputeRow._make(connection.execute(_DISPUTE, (notification.dispute_id,)).fetchone())
    as_of_ms = row.opened_at_ms if notification.type == _OPENED else row.closed_at_ms
    assert as_of_ms is not None
    entry = row.entry(as_of_ms)
    data = {name: entry.pop(name) for name in ("partner", "key", "original_key")}
    return _body(notification, {**data, "dispute": entry})


def _body(notification: Notification, data: dict[str, Any]) -> bytes:
    made = datetime.fromtimestamp(notification.made_at_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return orjson.dumps({"type": notification.type, "timestamp": made, "data": data})


def _add(connection: sqlite3.Connection, kind: str, partner: str, key: str, dispute_id: str | None, at_ms: int) -> None:
    name = "msg_" + blake2b(f"{key} {kind}".encode(), digest_size=12).hexdigest()
    connection.execute(_ADD, (name, kind, partner, key, dispute_id, at_ms, at_ms))
