"""The acquirer's record: what it was asked and what it did, on disk before anything is answered. No HTTP goes in.

One SQLite file (WAL, `synchronous=FULL`) with one writer. Requests that arrive while a commit is being fsynced form the
next batch and share its fsync (group commit). A batch's statements run on the event loop, since they touch memory only;
the commit, which waits for the disk, runs on the writer's thread. No batch begins before the one before has ended,
so a decision only ever sees what is durable or what is in its own batch. Keys are kept for ever.
"""

import asyncio
import contextlib
import fcntl
import os
import sqlite3
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Final, NamedTuple

import prometheus_client
import structlog

from acquirer_simulator import limits, outbox
from acquirer_simulator.rules import Decision, Operation, Original, captured_at_once, decide, reference_of
from acquirer_simulator.settlements import Movement
from acquirer_simulator.tokens import Behaviour
from acquirer_simulator.tokens import behaviour as behaviour_of

log = structlog.get_logger()

_BATCH_OPERATIONS: Final = prometheus_client.Histogram(
    "bulkhead_acquirer_simulator_batch_operations",
    "Operations that shared one fsync.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
_COMMIT_SECONDS: Final = prometheus_client.Histogram(
    "bulkhead_acquirer_simulator_commit_seconds",
    "Time of one commit with its fsync.",
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5),
)
_COMMITS_FAILED: Final = prometheus_client.Counter(
    "bulkhead_acquirer_simulator_commits_failed", "Batches that could not be written."
)

SCHEMA_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE operations (
    sequence INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    partner TEXT, kind TEXT, amount INTEGER, currency TEXT, payment_method TEXT, original_key TEXT,
    result TEXT NOT NULL CHECK (result IN ('unperformed', 'approved', 'declined', 'closed')),
    code TEXT,
    retryable INTEGER NOT NULL,
    expires_at_ms INTEGER,
    captured INTEGER NOT NULL,
    refunded INTEGER NOT NULL,
    voided INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    first_at_ms INTEGER NOT NULL,
    last_at_ms INTEGER NOT NULL,
    CHECK (0 <= refunded AND refunded <= captured AND captured <= amount)
) STRICT;
CREATE INDEX operations_by_partner ON operations (partner, sequence);
"""
_COLUMNS: Final = (
    "sequence, key, partner, kind, amount, currency, payment_method, original_key, result, code, retryable, "
    "expires_at_ms, captured, refunded, voided, attempts, first_at_ms, last_at_ms"
)
_FIND: Final = f"SELECT {_COLUMNS} FROM operations WHERE key = ?"  # noqa: S608 - constants only
_PAGE: Final = f"SELECT {_COLUMNS} FROM operations WHERE sequence > ? ORDER BY sequence LIMIT ?"  # noqa: S608
_PAGE_OF_PARTNER: Final = (
    f"SELECT {_COLUMNS} FROM operations WHERE partner = ? AND sequence > ? ORDER BY sequence LIMIT ?"  # noqa: S608
)
_MOVEMENTS: Final = (
    "SELECT partner, kind, key, original_key, amount, currency, payment_method, first_at_ms FROM operations "
    "WHERE sequence > ? AND sequence <= ? AND result = 'approved' AND kind IN ('capture', 'purchase', 'refund') "
    "AND first_at_ms >= ? AND first_at_ms < ? AND partner = ifnull(?, partner) ORDER BY sequence"
)
_INSERT: Final = f"INSERT INTO operations ({_COLUMNS}) VALUES (NULL{', ?' * (_COLUMNS.count(',') - 2)}, ?, ?)"  # noqa: S608
_COUNT_ATTEMPT: Final = "UPDATE operations SET attempts = attempts + 1, last_at_ms = ? WHERE sequence = ?"
_NAME_CLOSED: Final = (
    "UPDATE operations SET partner = ?, kind = ?, amount = ?, currency = ?, payment_method = ?, original_key = ? "
    "WHERE sequence = ?"
)
# What was decided later took place then: that is its day in the settlement files.
_DECIDE: Final = (
    "UPDATE operations SET result = ?, code = ?, retryable = ?, expires_at_ms = ?, captured = ?, first_at_ms = ? "
    "WHERE sequence = ?"
)
_CLOSE: Final = "UPDATE operations SET result = 'closed', last_at_ms = ? WHERE sequence = ?"
_MOVE_ORIGINAL: Final = "UPDATE operations SET captured = ?, refunded = ?, voided = ? WHERE key = ?"
_DISPUTABLE: Final = frozenset({"purchase", "capture"})
_UNDECIDED: Final = Decision(code=None, expires_at_ms=None, original_after=None)


class KeyReusedError(Exception):
    """The key belongs to an operation with another body; nothing was changed."""


class KeyUnknownError(Exception):
    """Nothing was ever asked for under the key."""


class RecordUnavailableError(Exception):
    """The record can't be written now, or takes no more; whether the operation took place is for a later ask."""


class RecordUnusableError(Exception):
    """Another process has the record open, or the file is not a record of this version."""


class Row(NamedTuple):
    """One key as the record holds it. `partner` to `original_key` are None where only a close named the key."""

    sequence: int
    key: str
    partner: str | None
    kind: str | None
    amount: int | None
    currency: str | None
    payment_method: str | None
    original_key: str | None
    result: str
    code: str | None
    retryable: int
    expires_at_ms: int | None
    captured: int
    refunded: int
    voided: int
    attempts: int
    first_at_ms: int
    last_at_ms: int

    def answer(self) -> dict[str, Any]:
        """Return the outcome as it is answered; the same for every ask of a final one."""
        return {
            "key": self.key,
            "result": self.result,
            "reference": reference_of(self.key) if self.result == "approved" else None,
            "code": self.code,
            "retryable": bool(self.retryable),
            "expires_at_ms": self.expires_at_ms,
        }

    def entry(self) -> dict[str, Any]:
        """Return the whole row for an audit. `charged`: the operation took effect, whatever its kind."""
        return {
            **self._asdict(),
            "reference": reference_of(self.key) if self.result == "approved" else None,
            "retryable": bool(self.retryable),
            "voided": bool(self.voided),
            "charged": self.result == "approved",
        }


class Performed(NamedTuple):
    """The row of a key, and whether this very request was the first with it."""

    row: Row
    first: bool


class Record:
    """The open record of one acquirer; one process has it at a time. `now_ms` gives the Unix time in ms."""

    def __init__(self, file: Path, now_ms: Callable[[], int]) -> None:
        """Open or make the record. Raises RecordUnusableError, OSError or sqlite3.Error."""
        self._now_ms = now_ms
        self._queue: deque[tuple[Callable[[int], Any], asyncio.Future[Any]]] = deque()
        self._busy = False
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._planned = asyncio.Event()
        self._has_planned = False
        self._lock = _lock(file)
        try:
            self.writer = _open(file)
            self._reader = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        except BaseException:
            os.close(self._lock)
            raise
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="record")

    async def perform(self, operation: Operation, behaviour: Behaviour) -> Performed:
        """Perform the operation once for ever, or find what became of it; durable before it returns.

        Raises KeyReusedError or RecordUnavailableError.
        """
        performed: Performed = await self._submit(partial(self._perform, operation, behaviour))
        return performed

    async def confirm(self, operation: Operation, behaviour: Behaviour) -> Row:
        """Go on with an operation whose customer came back, or return what became of it.

        Raises KeyReusedError, KeyUnknownError or RecordUnavailableError.
        """
        row: Row = await self._submit(partial(self._confirm, operation, behaviour))
        return row

    async def lease_due(self) -> list[tuple[outbox.Notification, bytes]]:
        """Take the notifications that are due, with their bodies. Raises RecordUnavailableError."""
        due: list[tuple[outbox.Notification, bytes]] = await self._submit(self._lease_due)
        return due

    async def note_delivery(self, notification: outbox.Notification, *, taken: bool) -> str:
        """Write down what became of a delivery; return the notification's state. Raises RecordUnavailableError."""
        state: str = await self._submit(partial(self._note_delivery, notification, taken))
        return state

    async def wait_planned(self, time_ms: int) -> None:
        """Wait until another notification is planned, or so long."""
        self._planned.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(time_ms / 1000):
                await self._planned.wait()

    def next_due_ms(self) -> int | None:
        """Return when the next notification is due."""
        return outbox.next_due_ms(self._reader)

    def disputes(self, partner: str, after: int, limit: int) -> tuple[list[dict[str, Any]], int | None]:
        """Return disputes of a partner as they stand now, and after which the next page begins."""
        now_ms = self._now_ms()
        rows = outbox.disputes_page(self._reader, partner, after, limit, now_ms)
        return [row.entry(now_ms) for row in rows], rows[-1].sequence if len(rows) == limit else None

    def notifications(self, partner: str) -> list[dict[str, Any]]:
        """Return a partner's notifications and how far they got."""
        return outbox.listed(self._reader, partner)

    async def close_key(self, key: str, operation: Operation | None) -> Row:
        """Make sure that nothing is ever performed under `key` from now on, or return what was.

        Raises KeyReusedError or RecordUnavailableError.
        """
        row: Row = await self._submit(partial(self._close_key, key, operation))
        return row

    def find(self, key: str) -> Row | None:
        """Return the durable row of a key."""
        found = self._reader.execute(_FIND, (key,)).fetchone()
        return None if found is None else Row._make(found)

    def page(self, partner: str | None, after: int, limit: int) -> list[Row]:
        """Return durable rows with `sequence > after` in order of arrival, of one partner or of all."""
        assert 0 < limit <= limits.PAGE_ROWS_MAX
        if partner is None:
            rows = self._reader.execute(_PAGE, (after, limit))
        else:
            rows = self._reader.execute(_PAGE_OF_PARTNER, (partner, after, limit))
        return [Row._make(row) for row in rows.fetchall()]

    def now_ms(self) -> int:
        """Return the record's own time."""
        return self._now_ms()

    def last_sequence(self) -> int:
        """Return the sequence of the newest durable row, 0 where there is none."""
        found: int | None = self._reader.execute("SELECT max(sequence) FROM operations").fetchone()[0]
        return found or 0

    def movements(self, partner: str | None, after: int, from_ms: int, until_ms: int) -> list[Movement]:
        """Return the money movements performed in a time, out of the next SETTLEMENT_OPERATIONS_AT_ONCE rows."""
        through = after + limits.SETTLEMENT_OPERATIONS_AT_ONCE
        rows = self._reader.execute(_MOVEMENTS, (after, through, from_ms, until_ms, partner))
        return [Movement._make(row) for row in rows.fetchall()]

    async def aclose(self) -> None:
        """Finish what is queued and give back the files. Calling it twice is no error."""
        if self._closed:
            return
        self._closed = True
        await self._idle.wait()
        self._thread.shutdown()
        self._reader.close()
        self.writer.close()
        os.close(self._lock)

    # The writer.

    def _submit(self, work: Callable[[int], Any]) -> asyncio.Future[Any]:
        if self._closed or len(self._queue) >= limits.QUEUE_OPERATIONS_MAX:
            raise RecordUnavailableError("closed" if self._closed else "queue full")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._queue.append((work, future))
        if not self._busy:
            self._busy = True
            self._idle.clear()
            loop.call_soon(self._begin_batch)
        return future

    def _begin_batch(self) -> None:
        size = min(len(self._queue), limits.BATCH_OPERATIONS_MAX)
        batch = [self._queue.popleft() for _ in range(size)]
        futures = [future for _, future in batch]
        outcomes: list[Any] = []
        now_ms = self._now_ms()
        try:
            self.writer.execute("BEGIN IMMEDIATE")
            for work, _ in batch:
                try:
                    outcomes.append(work(now_ms))
                except (KeyReusedError, KeyUnknownError) as error:  # found before anything was written
                    outcomes.append(error)
        except Exception as error:  # noqa: BLE001 - whatever it was, all of the batch must hear of it
            self._end_batch(futures, [_unavailable(error)] * size)
            return
        commit = asyncio.get_running_loop().run_in_executor(self._thread, self._commit)
        commit.add_done_callback(partial(self._after_commit, futures, outcomes))
        _BATCH_OPERATIONS.observe(size)

    def _commit(self) -> None:
        began = perf_counter()
        self.writer.execute("COMMIT")
        _COMMIT_SECONDS.observe(perf_counter() - began)

    def _after_commit(
        self, futures: list[asyncio.Future[Any]], outcomes: list[Any], commit: asyncio.Future[None]
    ) -> None:
        error = commit.exception()
        self._end_batch(futures, outcomes if error is None else [_unavailable(error)] * len(futures))

    def _end_batch(self, futures: list[asyncio.Future[Any]], outcomes: list[Any]) -> None:
        if self.writer.in_transaction:
            try:
                self.writer.execute("ROLLBACK")
            except sqlite3.Error as error:  # the next batch fails at its BEGIN and tries to roll back again
                log.error("rollback_failed", error=repr(error))  # noqa: TRY400 - the cause is logged already
        for future, outcome in zip(futures, outcomes, strict=True):
            if future.cancelled():
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
        if self._has_planned:
            self._has_planned = False
            self._planned.set()
        if self._queue:
            asyncio.get_running_loop().call_soon(self._begin_batch)
        else:
            self._busy = False
            self._idle.set()

    # What runs inside a transaction.

    def _perform(self, operation: Operation, behaviour: Behaviour, now_ms: int) -> Performed:
        row = self._find_written(operation.key)
        if row is not None:
            self._check_same(row, operation)
            self.writer.execute(_COUNT_ATTEMPT, (now_ms, row.sequence))
            row = row._replace(attempts=row.attempts + 1, last_at_ms=now_ms)
            return Performed(self._decide_if_ripe(row, operation, behaviour, now_ms), first=False)
        if behaviour.notifies_after_ms is not None:
            outbox.add_result(self.writer, operation, now_ms + behaviour.notifies_after_ms)
            self._plan()
        if not behaviour.performs:
            return Performed(self._insert(operation.key, operation, "unperformed", now_ms), first=True)
        original = self._original(operation, now_ms)
        decision = decide(operation, behaviour, original, now_ms)
        if decision.code is not None:
            return Performed(self._insert(operation.key, operation, "declined", now_ms, decision), first=True)
        if decision.original_after is not None:
            after = decision.original_after
            moved = (after.captured, after.refunded, after.voided, operation.original_key)
            assert self.writer.execute(_MOVE_ORIGINAL, moved).rowcount == 1
        if behaviour.dispute is not None and operation.kind in _DISPUTABLE:
            outbox.add_dispute(self.writer, operation, behaviour.dispute, now_ms)
            self._plan()
        return Performed(self._insert(operation.key, operation, "approved", now_ms, decision), first=True)

    def _close_key(self, key: str, operation: Operation | None, now_ms: int) -> Row:
        row = self._find_written(key)
        if row is None:
            return self._insert(key, operation, "closed", now_ms)
        if operation is not None:
            self._check_same(row, operation)
        if row.result != "unperformed":
            return row
        self.writer.execute(_CLOSE, (now_ms, row.sequence))
        return row._replace(result="closed", last_at_ms=now_ms)

    def _confirm(self, operation: Operation, behaviour: Behaviour, now_ms: int) -> Row:
        row = self._find_written(operation.key)
        if row is None:
            raise KeyUnknownError(operation.key)
        self._check_same(row, operation)
        if row.result != "unperformed" or behaviour.challenge_ms is None:
            return row
        if now_ms >= row.first_at_ms + behaviour.challenge_ms:
            return self._decide(row, operation, behaviour._replace(decline="challenge_expired"), now_ms)
        return self._decide(row, operation, behaviour, now_ms) if behaviour.finishes else row

    def _decide_if_ripe(self, row: Row, operation: Operation, behaviour: Behaviour, now_ms: int) -> Row:
        """Decide an operation that was to be decided by itself by now."""
        if row.result != "unperformed" or behaviour.decides_after_ms is None:
            return row
        ripe = now_ms >= row.first_at_ms + behaviour.decides_after_ms
        return self._decide(row, operation, behaviour, now_ms) if ripe else row

    def _decide(self, row: Row, operation: Operation, behaviour: Behaviour, now_ms: int) -> Row:
        """Decide an opening operation that was not performed when it was asked for."""
        decision = decide(operation, behaviour, None, now_ms)
        assert decision.original_after is None
        decided = row._replace(
            result="declined" if decision.code is not None else "approved",
            code=decision.code,
            retryable=int(decision.retryable),
            expires_at_ms=decision.expires_at_ms,
            captured=captured_at_once(operation) if decision.code is None else 0,
            first_at_ms=now_ms,
        )
        figures = (decided.result, decided.code, decided.retryable, decided.expires_at_ms, decided.captured, now_ms)
        self.writer.execute(_DECIDE, (*figures, row.sequence))
        return decided

    def _lease_due(self, now_ms: int) -> list[tuple[outbox.Notification, bytes]]:
        due = []
        for notification in outbox.lease(self.writer, now_ms):
            if notification.type != outbox.RESULT:
                due.append((notification, outbox.dispute_body(self.writer, notification)))
                continue
            row = self._find_written(notification.key)
            assert row is not None, "a notification of what was never asked for"
            operation = Operation._make(row[1:8])
            row = self._decide_if_ripe(row, operation, behaviour_of(operation.payment_method, operation.kind), now_ms)
            if row.result in {"approved", "declined"}:
                due.append((notification, outbox.result_body(notification, row.original_key, row.answer())))
            else:
                outbox.drop(self.writer, notification)
        return due

    def _note_delivery(self, notification: outbox.Notification, taken: bool, now_ms: int) -> str:
        self._plan()  # it is due again long before its lease would have ended
        return outbox.note(self.writer, notification, taken=taken, now_ms=now_ms)

    def _plan(self) -> None:
        """Have the notifier look again when this batch is committed."""
        self._has_planned = True

    def _find_written(self, key: str) -> Row | None:
        found = self.writer.execute(_FIND, (key,)).fetchone()
        return None if found is None else Row._make(found)

    def _check_same(self, row: Row, operation: Operation) -> None:
        if row[1:8] == operation:
            return
        if row.partner is not None:
            raise KeyReusedError(row.key)
        self.writer.execute(_NAME_CLOSED, (*operation[1:], row.sequence))

    def _original(self, operation: Operation, now_ms: int) -> Original | None:
        key = operation.original_key
        row = None if key is None else self._find_written(key)
        if row is None or row.result != "approved" or row.kind not in {"authorization", "purchase"}:
            return None
        assert row.partner is not None
        assert row.amount is not None
        assert row.currency is not None
        return Original(
            row.partner,
            row.amount,
            row.currency,
            row.captured,
            row.refunded,
            bool(row.voided),
            row.expires_at_ms,
            outbox.held_by_disputes(self.writer, row.key, now_ms) if operation.kind == "refund" else 0,
        )

    def _insert(
        self, key: str, operation: Operation | None, result: str, now_ms: int, decision: Decision = _UNDECIDED
    ) -> Row:
        values = (
            *((key, None, None, None, None, None, None) if operation is None else operation),
            result,
            decision.code,
            int(decision.retryable),
            decision.expires_at_ms,
            captured_at_once(operation) if operation is not None and result == "approved" else 0,
            0,
            0,
            0 if result == "closed" else 1,
            now_ms,
            now_ms,
        )
        sequence = self.writer.execute(_INSERT, values).lastrowid
        return Row._make((sequence, *values))


def _unavailable(error: BaseException) -> RecordUnavailableError:
    _COMMITS_FAILED.inc()
    log.error("batch_failed", error=repr(error))
    failure = RecordUnavailableError(repr(error))
    failure.__cause__ = error
    return failure


def _lock(file: Path) -> int:
    """Take the record's lock; the kernel gives it back when the process ends, however it ends."""
    descriptor = os.open(f"{file}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise RecordUnusableError(f"another process has {file} open") from error
    return descriptor


def _open(file: Path) -> sqlite3.Connection:
    assert sqlite3.threadsafety == 3, "statements and commits of the one connection run on two threads"
    connection = sqlite3.connect(
        file, timeout=limits.RECORD_LOCK_TIMEOUT_MS / 1000, isolation_level=None, check_same_thread=False
    )
    try:
        version = _version(connection)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint={limits.WAL_CHECKPOINT_PAGES}")
        if version == 0:
            connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
            _sync_folder(file.parent)
        connection.executescript(f"BEGIN IMMEDIATE; {outbox.SCHEMA} COMMIT;")
    except BaseException:
        connection.close()
        raise
    return connection


def _version(connection: sqlite3.Connection) -> int:
    """Return the record's version, 0 for a new file. Raises RecordUnusableError for one made by another program."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version not in {0, SCHEMA_VERSION}:
        raise RecordUnusableError(f"the record has version {version}, not {SCHEMA_VERSION}")
    return version


def _sync_folder(folder: Path) -> None:
    """Make the new file's name durable too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
