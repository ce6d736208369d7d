"""What the acquirer decides later and tells by itself: challenges, late results, disputes, deliveries and their end."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from acquirer_simulator import limits
from acquirer_simulator.outbox import Notification
from acquirer_simulator.record import KeyReusedError, KeyUnknownError, Record
from acquirer_simulator.rules import Operation
from acquirer_simulator.tokens import behaviour

START_MS = 1_000_000


class Clock:
    def __init__(self) -> None:
        self.now_ms = START_MS

    def __call__(self) -> int:
        return self.now_ms


class Bank:
    """A record, asked as the endpoints ask it."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.file = folder / "record.db"
        self.record = Record(self.file, self.clock)

    async def perform(self, key: str, token: str, kind: str = "purchase", original: str | None = None) -> str:
        operation = Operation(key, "p", kind, 1_000, "EUR", token, original)
        return (await self.record.perform(operation, behaviour(token, kind))).row.result

    async def confirm(self, key: str, token: str, kind: str = "purchase") -> tuple[str, str | None]:
        operation = Operation(key, "p", kind, 1_000, "EUR", token, None)
        row = await self.record.confirm(operation, behaviour(token, kind))
        return row.result, row.code

    async def close(self, key: str) -> str:
        return (await self.record.close_key(key, None)).result

    async def due(self) -> list[dict[str, Any]]:
        """Lease what is due and give the bodies."""
        return [orjson.loads(body) for _, body in await self.record.lease_due()]

    async def restart(self) -> None:
        await self.record.aclose()
        self.record = Record(self.file, self.clock)


@pytest.fixture
async def bank(tmp_path: Path) -> AsyncIterator[Bank]:
    made = Bank(tmp_path)
    yield made
    await made.record.aclose()


@pytest.mark.parametrize("kind", ["authorization", "purchase", "verification"])
async def test_a_challenge_is_charged_when_it_is_confirmed_and_once(bank: Bank, kind: str) -> None:
    assert await bank.perform("k", "tok_challenge", kind) == "unperformed"
    bank.clock.now_ms += 60_000
    assert await bank.perform("k", "tok_challenge", kind) == "unperformed", "asking again is no confirmation"
    assert await bank.confirm("k", "tok_challenge", kind) == ("approved", None)
    assert await bank.confirm("k", "tok_challenge", kind) == ("approved", None)
    assert await bank.perform("k", "tok_challenge", kind) == "approved"
    assert await bank.close("k") == "approved"
    row = bank.record.find("k")
    assert row is not None
    assert row.captured == (1_000 if kind == "purchase" else 0)
    assert row.first_at_ms == START_MS + 60_000, "its day in the settlement files is that of its charge"
    assert (row.expires_at_ms is not None) is (kind == "authorization")


@pytest.mark.parametrize(
    ("token", "after_ms", "outcome"),
    [
        ("tok_challenge_decline", 0, ("declined", "authentication_failed")),
        ("tok_challenge_abandoned", 0, ("unperformed", None)),
        ("tok_challenge_expires_500", 499, ("unperformed", None)),
        ("tok_challenge_expires_500", 500, ("declined", "challenge_expired")),
        ("tok_challenge", limits.CHALLENGE_VALIDITY_MS, ("declined", "challenge_expired")),
    ],
)
async def test_how_a_challenge_ends(bank: Bank, token: str, after_ms: int, outcome: tuple[str, str | None]) -> None:
    await bank.perform("k", token)
    bank.clock.now_ms += after_ms
    assert await bank.confirm("k", token) == outcome


async def test_a_closed_challenge_is_never_charged(bank: Bank) -> None:
    await bank.perform("k", "tok_challenge")
    assert await bank.close("k") == "closed"
    assert await bank.confirm("k", "tok_challenge") == ("closed", None)


async def test_only_what_was_asked_for_can_be_confirmed(bank: Bank) -> None:
    with pytest.raises(KeyUnknownError):
        await bank.confirm("k", "tok_challenge")
    await bank.perform("k", "tok_challenge")
    with pytest.raises(KeyReusedError):
        await bank.confirm("k", "tok_challenge_decline")
    await bank.perform("plain", "tok_approve")
    assert await bank.confirm("plain", "tok_approve") == ("approved", None)


@pytest.mark.parametrize(
    ("token", "result", "notified"),
    [
        ("tok_async_approve", "approved", True),
        ("tok_async_decline", "declined", True),
        ("tok_async_unnotified", "approved", False),
    ],
)
async def test_what_is_decided_later_shows_when_asked_again_and_by_a_notification(
    bank: Bank, token: str, result: str, notified: bool
) -> None:
    assert await bank.perform("k", token) == "unperformed"
    bank.clock.now_ms += limits.ASYNC_RESULT_MS - 1
    assert await bank.perform("k", token) == "unperformed"
    assert await bank.due() == []
    bank.clock.now_ms += 1
    told = await bank.due()
    assert await bank.perform("k", token) == result
    assert len(told) == notified
    if notified:
        assert told[0]["type"] == "operation.result"
        data = told[0]["data"]
        assert (data["partner"], data["key"], data["original_key"], data["result"]) == ("p", "k", None, result)


async def test_what_was_closed_before_it_was_decided_is_not_told(bank: Bank) -> None:
    await bank.perform("k", "tok_async_approve")
    assert await bank.close("k") == "closed"
    bank.clock.now_ms += limits.ASYNC_RESULT_MS
    assert await bank.due() == []
    assert [row["state"] for row in bank.record.notifications("p")] == ["moot"]
    assert await bank.perform("k", "tok_async_approve") == "closed"


async def deliver(bank: Bank, *, taken: bool) -> list[str]:
    """Deliver all that is due; give the states."""
    due: list[tuple[Notification, bytes]] = await bank.record.lease_due()
    return [await bank.record.note_delivery(notification, taken=taken) for notification, _ in due]


async def test_each_notification_is_sent_twice_with_the_same_body(bank: Bank) -> None:
    await bank.perform("k", "tok_async_approve")
    bank.clock.now_ms += limits.ASYNC_RESULT_MS
    ((first, body),) = await bank.record.lease_due()
    assert await bank.record.note_delivery(first, taken=True) == "waiting"
    bank.clock.now_ms += limits.NOTIFICATION_REPEAT_DELAY_MS
    ((second, again),) = await bank.record.lease_due()
    assert (second.id, again) == (first.id, body)
    assert await bank.record.note_delivery(second, taken=True) == "delivered"
    assert bank.record.next_due_ms() is None


async def test_what_is_not_taken_is_sent_again_with_growing_waits_and_given_up_in_the_end(bank: Bank) -> None:
    await bank.perform("k", "tok_async_approve")
    waits: list[int] = []
    states: list[str] = []
    while (due_ms := bank.record.next_due_ms()) is not None:
        waits.append(due_ms - bank.clock.now_ms)
        bank.clock.now_ms = due_ms
        states += await deliver(bank, taken=False)
    assert states == ["waiting"] * (limits.NOTIFICATION_ATTEMPTS_MAX - 1) + ["given_up"]
    assert waits[1:5] == [200, 400, 800, 1_600]
    assert max(waits) == limits.NOTIFICATION_RETRY_DELAY_MS_MAX
    assert sum(waits) < 24 * 3_600_000, "while a gateway remembers its id"


async def test_what_was_being_sent_as_the_process_died_is_sent_by_the_next(bank: Bank) -> None:
    await bank.perform("k", "tok_async_approve")
    bank.clock.now_ms += limits.ASYNC_RESULT_MS
    assert len(await bank.due()) == 1
    await bank.restart()
    assert await bank.due() == [], "it may still arrive"
    bank.clock.now_ms += limits.NOTIFICATION_LEASE_MS
    assert len(await bank.due()) == 1


async def test_a_dispute_of_a_purchase_and_of_a_capture(bank: Bank) -> None:
    await bank.perform("pay", "tok_dispute_won")
    await bank.perform("auth", "tok_dispute", "authorization")
    await bank.perform("cap", "tok_dispute", "capture", "auth")
    assert bank.record.disputes("p", 0, 10) == ([], None), "nobody disputes anything yet"
    bank.clock.now_ms += limits.DISPUTE_OPENS_MS
    told = await bank.due()
    assert [(news["type"], news["data"]["key"], news["data"]["original_key"]) for news in told] == [
        ("dispute.opened", "pay", None),
        ("dispute.opened", "cap", "auth"),
    ]
    assert {news["data"]["dispute"]["status"] for news in told} == {"open"}
    bank.clock.now_ms += limits.DISPUTE_CLOSES_MS
    (won,) = await bank.due()
    assert (won["type"], won["data"]["dispute"]["status"]) == ("dispute.won", "won")
    rows, following = bank.record.disputes("p", 0, 10)
    assert [(row["key"], row["status"]) for row in rows] == [("pay", "won"), ("cap", "open")]
    assert following is None
    assert bank.record.disputes("p", 0, 1)[1] is not None


async def test_a_dispute_can_be_told_in_the_wrong_order(bank: Bank) -> None:
    await bank.perform("pay", "tok_dispute_backwards")
    told = []
    while (due_ms := bank.record.next_due_ms()) is not None:
        bank.clock.now_ms = due_ms
        for notification, body in await bank.record.lease_due():
            told.append(orjson.loads(body))
            await bank.record.note_delivery(notification, taken=True)
    assert [news["type"] for news in told[:1]] == ["dispute.won"]
    opened = [news for news in told if news["type"] == "dispute.opened"]
    assert {news["data"]["dispute"]["status"] for news in opened} == {"open"}
    assert all(news["data"]["dispute"]["closed_at_ms"] is None for news in opened), "as it stood then"


async def test_what_a_dispute_holds_can_t_be_refunded_as_well(bank: Bank) -> None:
    await bank.perform("pay", "tok_dispute_won")
    bank.clock.now_ms += limits.DISPUTE_OPENS_MS
    assert await bank.perform("re_1", "tok_dispute_won", "refund", "pay") == "declined"
    row = bank.record.find("re_1")
    assert row is not None
    assert row.code == "charge_disputed"
    bank.clock.now_ms += limits.DISPUTE_CLOSES_MS
    assert await bank.perform("re_2", "tok_dispute_won", "refund", "pay") == "approved"


async def test_a_record_of_before_there_were_notifications_gets_their_tables(bank: Bank) -> None:
    await bank.perform("k", "tok_approve")
    bank.record.writer.executescript("DROP TABLE notifications; DROP TABLE disputes;")
    await bank.restart()
    assert await bank.perform("k", "tok_approve") == "approved"
    await bank.perform("k2", "tok_async_approve")
    assert bank.record.next_due_ms() == START_MS + limits.ASYNC_RESULT_MS
