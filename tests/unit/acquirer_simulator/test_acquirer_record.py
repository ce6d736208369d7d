"""The record on a real file: once for ever, closed for ever, one fsync for many, and a disk that is full."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from acquirer_simulator import limits
from acquirer_simulator.record import KeyReusedError, Record, RecordUnavailableError, RecordUnusableError
from acquirer_simulator.rules import Operation
from acquirer_simulator.tokens import Answering, Behaviour

PLAIN = Behaviour()
NEVER = Behaviour(Answering.SILENT, performs=False)
AUTHORIZATION = Operation("auth", "p", "authorization", 1_000, "EUR", "tok_approve", None)
CAPTURE = Operation("capture", "p", "capture", 600, "EUR", "tok_approve", "auth")


class Clock:
    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def record(tmp_path: Path, clock: Clock) -> AsyncIterator[Record]:
    opened = Record(tmp_path / "record.db", clock)
    yield opened
    await opened.aclose()


async def test_the_first_answer_again(record: Record, clock: Clock) -> None:
    first, was_first = await record.perform(AUTHORIZATION, PLAIN)
    clock.now_ms += 5
    again, was_first_again = await record.perform(AUTHORIZATION, PLAIN)

    assert (was_first, was_first_again) == (True, False)
    assert again.answer() == first.answer()
    assert first.answer() == {
        "key": "auth",
        "result": "approved",
        "reference": first.entry()["reference"],
        "code": None,
        "retryable": False,
        "expires_at_ms": 1_000_000 + limits.AUTHORIZATION_VALIDITY_MS,
    }
    assert record.find("auth") == again
    assert (again.attempts, again.first_at_ms, again.last_at_ms) == (2, 1_000_000, 1_000_005)


@pytest.mark.parametrize(
    "change",
    [
        {"partner": "q"},
        {"kind": "purchase"},
        {"amount": 1},
        {"currency": "USD"},
        {"payment_method": "tok_slow_1"},
        {"original_key": "o"},
    ],
)
async def test_another_body_changes_nothing(record: Record, change: dict[str, str | int]) -> None:
    await record.perform(AUTHORIZATION, PLAIN)
    before = record.find("auth")
    other = Operation(**{**AUTHORIZATION._asdict(), **change})

    with pytest.raises(KeyReusedError):
        await record.perform(other, PLAIN)
    with pytest.raises(KeyReusedError):
        await record.close_key("auth", other)

    assert record.find("auth") == before


async def test_a_reused_key_takes_only_itself_out_of_its_batch(record: Record) -> None:
    outcomes = await asyncio.gather(
        record.perform(AUTHORIZATION, PLAIN),
        record.perform(AUTHORIZATION._replace(amount=1), PLAIN),
        record.perform(CAPTURE, PLAIN),
        return_exceptions=True,
    )

    assert [getattr(outcome, "first", type(outcome)) for outcome in outcomes] == [True, KeyReusedError, True]


async def test_captures_and_refunds_at_once_share_what_is_left(record: Record) -> None:
    await record.perform(AUTHORIZATION, PLAIN)
    captures = await asyncio.gather(*(record.perform(CAPTURE._replace(key=f"c{i}"), PLAIN) for i in range(5)))
    refunds = await asyncio.gather(
        *(record.perform(CAPTURE._replace(key=f"r{i}", kind="refund", amount=400), PLAIN) for i in range(5))
    )

    assert [performed.row.result for performed in captures] == ["approved"] + ["declined"] * 4
    assert captures[1].row.code == "amount_exceeds_authorization"
    assert [performed.row.result for performed in refunds] == ["approved"] + ["declined"] * 4
    assert refunds[1].row.code == "amount_exceeds_capture"
    original = record.find("auth")
    assert original is not None
    assert (original.captured, original.refunded) == (600, 400)


async def test_an_original_must_be_approved_and_be_an_original(record: Record) -> None:
    await record.perform(AUTHORIZATION, Behaviour(decline="stolen_card"))
    await record.perform(AUTHORIZATION._replace(key="verified", kind="verification"), PLAIN)
    await record.perform(AUTHORIZATION._replace(key="bought", kind="purchase"), PLAIN)
    await record.perform(CAPTURE._replace(key="refunded", kind="refund", original_key="bought"), PLAIN)

    for original_key in ["auth", "verified", "refunded", "unheard-of"]:
        asked = CAPTURE._replace(key=f"of-{original_key}", original_key=original_key)
        assert (await record.perform(asked, PLAIN)).row.code == "original_not_found"


async def test_an_authorization_expires_at_its_millisecond(record: Record, clock: Clock) -> None:
    await record.perform(AUTHORIZATION, Behaviour(validity_ms=50))
    clock.now_ms += 49
    in_time = await record.perform(CAPTURE._replace(amount=1), PLAIN)
    clock.now_ms += 1
    too_late = await record.perform(CAPTURE._replace(key="late", amount=1), PLAIN)

    assert (in_time.row.result, too_late.row.code) == ("approved", "authorization_expired")


async def test_a_closed_key_never_performs(record: Record) -> None:
    closed = await record.close_key("auth", None)
    performed = await record.perform(AUTHORIZATION, PLAIN)

    assert closed.answer() == performed.row.answer()
    assert closed.answer() == {
        "key": "auth",
        "result": "closed",
        "reference": None,
        "code": None,
        "retryable": False,
        "expires_at_ms": None,
    }
    named = record.find("auth")
    assert named is not None
    assert (named.partner, named.amount, named.attempts) == ("p", 1_000, 1)
    with pytest.raises(KeyReusedError):
        await record.perform(AUTHORIZATION._replace(amount=1), PLAIN)


async def test_closing_what_was_performed_tells_what_it_became(record: Record) -> None:
    approved = (await record.perform(AUTHORIZATION, PLAIN)).row
    declined = (await record.perform(CAPTURE._replace(amount=5_000), PLAIN)).row

    assert (await record.close_key("auth", AUTHORIZATION)).answer() == approved.answer()
    assert (await record.close_key("capture", None)).answer() == declined.answer()
    assert declined.code == "amount_exceeds_authorization"


async def test_what_is_never_performed_is_asked_for_and_can_be_closed(record: Record) -> None:
    await record.perform(AUTHORIZATION, NEVER)
    row, first = await record.perform(AUTHORIZATION, NEVER)

    assert (row.result, row.attempts, first, row.entry()["charged"]) == ("unperformed", 2, False, False)
    assert (await record.perform(CAPTURE, PLAIN)).row.code == "original_not_found"
    assert (await record.close_key("auth", AUTHORIZATION)).result == "closed"
    assert (await record.perform(AUTHORIZATION, NEVER)).row.result == "closed"


async def test_many_share_a_commit_and_order_is_kept(record: Record) -> None:
    commits: list[str] = []
    record.writer.set_trace_callback(lambda statement: commits.append(statement) if statement == "COMMIT" else None)
    total = limits.BATCH_OPERATIONS_MAX + 44

    rows = await asyncio.gather(*(record.perform(AUTHORIZATION._replace(key=f"k{i}"), PLAIN) for i in range(total)))

    assert len(commits) == 2
    assert [performed.row.sequence for performed in rows] == list(range(1, total + 1))
    first_page = record.page("p", 0, 200)
    rest = record.page(None, first_page[-1].sequence, 200)
    assert [row.key for row in first_page + rest] == [f"k{i}" for i in range(total)]
    assert record.page("q", 0, 10) == []


async def test_nothing_is_answered_before_its_commit(record: Record, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "record.db")
    asked = asyncio.ensure_future(record.perform(AUTHORIZATION, PLAIN))
    seen_at_the_answer: list[int] = []
    asked.add_done_callback(
        lambda _: seen_at_the_answer.append(other.execute("SELECT count(*) FROM operations").fetchone()[0])
    )
    await asked
    await asyncio.sleep(0)

    assert seen_at_the_answer == [1]
    assert record.writer.execute("PRAGMA synchronous").fetchone() == (2,)
    assert record.writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.close()


async def test_a_full_disk_performs_nothing_and_is_over_when_there_is_room(record: Record) -> None:
    await record.perform(AUTHORIZATION, PLAIN)
    pages = record.writer.execute("PRAGMA page_count").fetchone()[0]
    record.writer.execute(f"PRAGMA max_page_count={pages}")

    outcomes = await asyncio.gather(
        record.perform(CAPTURE, PLAIN),
        *(record.perform(AUTHORIZATION._replace(key="k" * 200 + str(i)), PLAIN) for i in range(100)),
        return_exceptions=True,
    )

    assert {type(outcome) for outcome in outcomes} == {RecordUnavailableError}
    assert len(record.page(None, 0, 10)) == 1
    original = record.find("auth")
    assert original is not None
    assert original.captured == 0
    record.writer.execute("PRAGMA max_page_count=1000000")
    assert (await record.perform(CAPTURE, PLAIN)).first


async def test_a_commit_that_fails_leaves_nothing_behind(record: Record) -> None:
    class CommitFails:
        """The connection, but its next COMMIT fails as it does when the disk does."""

        def __init__(self, real: sqlite3.Connection) -> None:
            self.real = real
            self.failed = False

        @property
        def in_transaction(self) -> bool:
            return self.real.in_transaction

        def close(self) -> None:
            self.real.close()

        def execute(self, statement: str, values: tuple[object, ...] = ()) -> sqlite3.Cursor:
            if statement == "COMMIT" and not self.failed:
                self.failed = True
                raise sqlite3.OperationalError("disk I/O error")
            return self.real.execute(statement, values)

    record.writer = CommitFails(record.writer)  # type: ignore[assignment]  # what the record uses of it

    with pytest.raises(RecordUnavailableError):
        await record.perform(AUTHORIZATION, PLAIN)
    assert record.find("auth") is None
    assert (await record.perform(AUTHORIZATION, PLAIN)).first


async def test_the_queue_is_bounded(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "QUEUE_OPERATIONS_MAX", 3)

    outcomes = await asyncio.gather(
        *(record.perform(AUTHORIZATION._replace(key=f"k{i}"), PLAIN) for i in range(5)), return_exceptions=True
    )

    assert [isinstance(outcome, RecordUnavailableError) for outcome in outcomes] == [False, False, False, True, True]


async def test_what_is_queued_is_finished_at_the_end_and_read_again(tmp_path: Path, clock: Clock) -> None:
    record = Record(tmp_path / "record.db", clock)
    asked = [
        asyncio.ensure_future(record.perform(AUTHORIZATION._replace(key=f"k{i}"), PLAIN))
        for i in range(limits.BATCH_OPERATIONS_MAX * 2)
    ]
    await asyncio.sleep(0)
    await record.aclose()
    await record.aclose()
    answers = [performed.row.answer() for performed in await asyncio.gather(*asked)]
    with pytest.raises(RecordUnavailableError):
        await record.perform(AUTHORIZATION, PLAIN)

    again = Record(tmp_path / "record.db", clock)
    assert [row.answer() for row in again.page(None, 0, 1_000)] == answers
    await again.aclose()


async def test_one_process_has_the_record(record: Record, tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(RecordUnusableError, match="another process"):
        Record(tmp_path / "record.db", clock)


def test_a_record_of_another_version_or_a_corrupt_one_is_refused(tmp_path: Path, clock: Clock) -> None:
    newer = sqlite3.connect(tmp_path / "newer.db")
    newer.execute("PRAGMA user_version=2")
    newer.close()
    (tmp_path / "corrupt.db").write_bytes(b"not a database" * 100)

    for _ in range(2):  # the lock is given back after a failure
        with pytest.raises(RecordUnusableError, match="version 2"):
            Record(tmp_path / "newer.db", clock)
        with pytest.raises(sqlite3.DatabaseError):
            Record(tmp_path / "corrupt.db", clock)
