"""The settlement file: which day an operation belongs to, what it costs, and how a test makes the file wrong."""

import csv
import io
import itertools
from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import pytest

from acquirer_simulator import limits, settlements
from acquirer_simulator.app import Waits, make_app
from acquirer_simulator.record import Record
from acquirer_simulator.rules import Operation, reference_of
from acquirer_simulator.tokens import behaviour

DAY = date(2026, 11, 21)
START_MS = settlements.day_start_ms(DAY)
DAY_MS = settlements.DAY_MS


class Acquirer:
    """The simulator in this process, at a time that a test sets."""

    def __init__(self, folder: Path) -> None:
        self.now_ms = START_MS + 1_000
        self.record = Record(folder / "record.db", lambda: self.now_ms)
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(make_app(self.record, Waits(), "http://acquirer")), base_url="http://acquirer"
        )
        self._numbers = itertools.count(1)

    async def perform(
        self, kind: str = "purchase", amount: int = 10_000, token: str = "tok_approve", **changes: Any
    ) -> str:
        key = f"op_{next(self._numbers)}"
        fields = {"partner": "acme", "currency": "EUR", "original_key": None} | changes
        operation = Operation(key, fields["partner"], kind, amount, fields["currency"], token, fields["original_key"])
        await self.record.perform(operation, behaviour(token, kind))
        return key

    async def fetch(self, day: date = DAY, **query: str) -> httpx.Response:
        return await self.client.get(f"/settlements/{day}.csv", params=query)

    async def rows(self, day: date = DAY, **query: str) -> list[dict[str, str]]:
        """All lines of a file, by column."""
        answer = await self.fetch(day, **query)
        assert answer.status_code == 200, answer.text
        return list(csv.DictReader(io.StringIO(answer.text)))

    async def keys(self, day: date = DAY, **query: str) -> list[str]:
        return [row["key"] for row in await self.rows(day, **query) if row["settlement_v1"] == "row"]


@pytest.fixture
async def acquirer(tmp_path: Path) -> AsyncIterator[Acquirer]:
    made = Acquirer(tmp_path)
    yield made
    await made.client.aclose()
    await made.record.aclose()


def over(acquirer: Acquirer) -> None:
    """Let the day end."""
    acquirer.now_ms = START_MS + DAY_MS + limits.SETTLEMENT_FINAL_AFTER_MS


async def test_the_file_to_the_letter(acquirer: Acquirer) -> None:
    await acquirer.perform()
    acquirer.now_ms += 1
    await acquirer.perform("refund", 300, original_key="op_1")
    await acquirer.perform("authorization", 500, partner="beta", currency="JPY")
    await acquirer.perform("capture", 400, partner="beta", currency="JPY", original_key="op_3")
    over(acquirer)
    answer = await acquirer.fetch()
    assert answer.headers["content-type"].startswith("text/csv")
    assert answer.content.decode() == "\r\n".join(
        [
            "settlement_v1,settlement_date,partner,kind,key,original_key,reference,currency,gross,fee,net,first_at,rows",
            "file,2026-11-21,,final,,,,,,,,2026-11-22T00:00:00.000Z,",
            f"row,2026-11-21,acme,purchase,op_1,,{reference_of('op_1')},EUR,10000,175,9825,2026-11-21T00:00:01.000Z,",
            f"row,2026-11-21,acme,refund,op_2,op_1,{reference_of('op_2')},EUR,-300,0,-300,2026-11-21T00:00:01.001Z,",
            f"row,2026-11-21,beta,capture,op_4,op_3,{reference_of('op_4')},JPY,400,31,369,2026-11-21T00:00:01.001Z,",
            "total,,,,,,,EUR,9700,175,9525,,2",
            "total,,,,,,,JPY,400,31,369,,1",
            "end,2026-11-21,,,,,,,,,,,3",
            "",
        ]
    )


async def test_only_money_that_moved_is_in_it(acquirer: Acquirer) -> None:
    await acquirer.perform("authorization")
    await acquirer.perform("verification", 0)
    await acquirer.perform("void", original_key="op_1")
    await acquirer.perform(token="tok_decline_stolen_card")
    await acquirer.perform(token="tok_timeout_not_charged")
    await acquirer.record.close_key("closed", None)
    kept = await acquirer.perform(token="tok_timeout_charged")
    over(acquirer)
    assert await acquirer.keys() == [kept]


async def test_an_operation_belongs_to_the_day_of_its_performance(acquirer: Acquirer) -> None:
    expected: dict[date, list[str]] = {}
    for day, at_ms in (
        (date(2026, 11, 20), START_MS - 1),
        (DAY, START_MS),
        (DAY, START_MS + DAY_MS - 1),
        (date(2026, 11, 22), START_MS + DAY_MS),
    ):
        acquirer.now_ms = at_ms
        expected.setdefault(day, []).append(await acquirer.perform())
    acquirer.now_ms = START_MS + 3 * DAY_MS
    for day, keys in expected.items():
        assert await acquirer.keys(day) == keys


async def test_asking_a_key_again_later_moves_nothing_to_another_day(acquirer: Acquirer) -> None:
    operation = Operation("k", "acme", "purchase", 5, "EUR", "tok_approve", None)
    await acquirer.record.perform(operation, behaviour("tok_approve", "purchase"))
    acquirer.now_ms = START_MS + DAY_MS + 5
    await acquirer.record.perform(operation, behaviour("tok_approve", "purchase"))
    acquirer.now_ms += DAY_MS * 2
    assert await acquirer.keys() == ["k"]
    assert await acquirer.keys(date(2026, 11, 22)) == []


async def test_a_day_that_is_not_over_has_a_preliminary_file_only(acquirer: Acquirer) -> None:
    key = await acquirer.perform()
    acquirer.now_ms += 500
    refused = await acquirer.fetch()
    assert (refused.status_code, refused.json()["error"]) == (409, "day_not_over")
    _, file, *_ = [{}, *await acquirer.rows(preliminary="true")]
    assert (file["kind"], file["first_at"]) == ("preliminary", "2026-11-21T00:00:01.500Z")
    assert await acquirer.keys(preliminary="true") == [key]
    # Just after midnight what was begun before it may not be in the record yet.
    acquirer.now_ms = START_MS + DAY_MS + limits.SETTLEMENT_FINAL_AFTER_MS - 1
    assert (await acquirer.fetch()).status_code == 409
    over(acquirer)
    for query in ({}, {"preliminary": "true"}):
        (file, *_) = await acquirer.rows(**query)
        assert file["kind"] == "final"
    assert (await acquirer.fetch(date(2026, 11, 23), preliminary="true")).status_code == 409, "nothing of it is known"


async def test_a_file_of_one_partner(acquirer: Acquirer) -> None:
    await acquirer.perform()
    beta = await acquirer.perform(partner="beta")
    over(acquirer)
    file, row, *_ = await acquirer.rows(partner="beta")
    assert (file["partner"], row["key"]) == ("beta", beta)
    assert await acquirer.keys(partner="nobody") == []


async def test_tokens_make_the_file_wrong(acquirer: Acquirer) -> None:
    missing = await acquirer.perform(token="tok_settle_missing")
    late = await acquirer.perform(token="tok_settle_late")
    short = await acquirer.perform(token="tok_settle_short")
    tiny = await acquirer.perform(token="tok_settle_short", amount=1)
    charged = await acquirer.perform(token="tok_settle_fee")
    refund = await acquirer.perform("refund", 4_000, token="tok_settle_short", original_key=short)
    acquirer.now_ms = START_MS + 4 * DAY_MS
    rows = {row["key"]: (int(row["gross"]), int(row["fee"])) for row in await acquirer.rows() if row["key"]}
    assert rows == {
        short: (9_000, settlements.fee_of("purchase", 9_000, "EUR")),
        tiny: (0, 25),
        charged: (10_000, 175 + settlements.OVERCHARGE_MINOR_UNITS),
        refund: (-3_600, 0),
    }
    assert await acquirer.keys(date(2026, 11, 22)) == [late]
    assert missing not in await acquirer.keys(date(2026, 11, 23))


async def test_an_extra_row_comes_and_goes(acquirer: Acquirer) -> None:
    extra = {
        "date": "2026-11-21",
        "partner": "acme",
        "kind": "capture",
        "amount": 700,
        "currency": "EUR",
        "original_key": "op_0",
    }
    over(acquirer)
    assert (await acquirer.client.put("/settlement-extras/op_x", json=extra)).status_code == 200
    assert await acquirer.keys() == ["op_x"]
    assert await acquirer.keys(partner="beta") == []
    acquirer.now_ms += DAY_MS
    assert await acquirer.keys(date(2026, 11, 22)) == []
    assert (await acquirer.client.delete("/settlement-extras/op_x")).status_code == 204
    assert await acquirer.keys() == []


@pytest.mark.parametrize(
    "change",
    [
        {"date": "2026-11-31"},
        {"date": "1969-12-31"},
        {"date": 5},
        {"partner": "A"},
        {"kind": "void"},
        {"kind": []},
        {"amount": -1},
        {"amount": True},
        {"currency": "eur"},
        {"original_key": "a b"},
        {"more": 1},
    ],
)
async def test_other_extra_rows_are_refused(acquirer: Acquirer, change: dict[str, Any]) -> None:
    extra = {"date": "2026-11-21", "partner": "p", "kind": "refund", "amount": 1, "currency": "EUR"}
    answer = await acquirer.client.put("/settlement-extras/k", json={**extra, "original_key": None, **change})
    assert answer.status_code == 400


async def test_extra_rows_are_bounded(acquirer: Acquirer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SETTLEMENT_EXTRAS_MAX", 1)
    extra = {
        "date": "2026-11-21",
        "partner": "p",
        "kind": "refund",
        "amount": 1,
        "currency": "EUR",
        "original_key": "k",
    }
    assert (await acquirer.client.put("/settlement-extras/a", json=extra)).status_code == 200
    assert (await acquirer.client.put("/settlement-extras/a", json=extra)).status_code == 200
    assert (await acquirer.client.put("/settlement-extras/b", json=extra)).status_code == 503


@pytest.mark.parametrize("path", ["2026-11-31.csv", "yesterday.csv", "2026-11-21.csv?partner=A"])
async def test_other_files_are_refused(acquirer: Acquirer, path: str) -> None:
    over(acquirer)
    assert (await acquirer.client.get(f"/settlements/{path}")).status_code == 400


async def test_a_long_record_is_looked_at_in_parts(acquirer: Acquirer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SETTLEMENT_OPERATIONS_AT_ONCE", 3)
    keys = [await acquirer.perform() for _ in range(10)]
    over(acquirer)
    assert await acquirer.keys() == keys


async def test_an_empty_day_has_a_whole_file(acquirer: Acquirer) -> None:
    over(acquirer)
    assert [row["settlement_v1"] for row in await acquirer.rows()] == ["file", "end"]
