"""A settlement file through the whole gateway, as its operator reconciles it: matched, wrong, killed in the middle."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

from chaos.gateway import Gateway

PAYMENTS_AT_ONCE = 16
# A day that ends in the middle of the test would split its file in two.
SECONDS_WANTED_OF_THE_DAY = 180


class Operator:
    """Fetches the day's file and reconciles it, with the command line."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.day = datetime.now(UTC).date().isoformat()
        self.file = gateway.root / "day.csv"

    def fetch(self) -> None:
        answer = httpx.get(
            f"{self.gateway.acquirer_url}/settlements/{self.day}.csv",
            params={"preliminary": "true"},
            trust_env=False,
            timeout=30,
        )
        answer.raise_for_status()
        self.file.write_bytes(answer.content)

    def arguments(self, *options: str) -> tuple[str, ...]:
        # Clocks of one machine agree; with the usual margin this minute's payments would not be looked for yet.
        return ("reconcile", str(self.file), "--clock-margin", "0", "--json", *options)

    def reconcile(self, *options: str) -> tuple[int, dict[str, Any]]:
        done = self.gateway.run(*self.arguments(*options))
        assert done.stdout, done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        return done.returncode, report

    def begin(self) -> subprocess.Popen[bytes]:
        """Reconcile in the background."""
        script = Path(sys.executable).with_name("bulkhead")
        command = [str(script), "--data-folder", str(self.gateway.folder.root), *self.arguments()]
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.gateway.root
        )

    def balances(self, partner: str, currency: str = "EUR") -> dict[str, int]:
        report = self.gateway.audit()
        assert report["ok"], report
        (row,) = [row for row in report["partners"] if row["partner"] == partner]
        found: dict[str, int] = row["balances"][currency]
        return found


def send(gateway: Gateway, key: str, path: str, **body: Any) -> dict[str, Any]:
    answer = httpx.post(
        f"{gateway.base_url}{path}", json=body, headers={"Authorization": f"Bearer {key}"}, trust_env=False, timeout=10
    )
    assert answer.status_code in {200, 201, 202}, answer.text
    found: dict[str, Any] = answer.json()
    return found


def pay(gateway: Gateway, key: str, token: str = "tok_approve", amount: int = 10_000, **fields: Any) -> dict[str, Any]:
    return send(gateway, key, "/v1/payments", amount=amount, currency="EUR", payment_method=token, **fields)


async def pay_many(gateway: Gateway, key: str, count: int) -> None:
    slots = asyncio.Semaphore(PAYMENTS_AT_ONCE)
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session:

        async def one() -> None:
            body = {"amount": 10_000, "currency": "EUR", "payment_method": "tok_approve"}
            async with slots, session.post(f"{gateway.base_url}/v1/payments", json=body) as answer:
                assert answer.status == 201, await answer.text()

        await asyncio.gather(*(one() for _ in range(count)))


@pytest.fixture
def operator(make_gateway: Callable[[int], Gateway]) -> Operator:
    seconds_left = 86_400 - time.time() % 86_400
    if seconds_left < SECONDS_WANTED_OF_THE_DAY:
        time.sleep(seconds_left + 1)
    return Operator(make_gateway(1))


@pytest.mark.timeout(420)
def test_a_day_is_settled_and_what_is_wrong_with_it_is_told(operator: Operator) -> None:
    gateway = operator.gateway
    keys = {name: gateway.create_partner(name) for name in ("acme", "beta")}
    paid = pay(gateway, keys["acme"])
    send(gateway, keys["acme"], f"/v1/payments/{paid['id']}/refunds", amount=3_000)
    held = pay(gateway, keys["acme"], capture_method="manual")
    send(gateway, keys["acme"], f"/v1/payments/{held['id']}/capture", amount=4_000)
    pay(gateway, keys["acme"], "tok_decline_stolen_card")
    operator.fetch()

    code, report = operator.reconcile("--dry-run")
    assert (code, report["counts"]["matched"], report["ok"]) == (0, 3, True), report
    assert operator.balances("acme")["acquirer_receivable"] == 11_000, "nothing is posted yet"
    for repeated in (0, 3):
        code, report = operator.reconcile()
        assert (code, report["counts"]["matched"], report["counts"]["repeated"]) == (0, 3, repeated), report
    balances = operator.balances("acme")
    assert balances["acquirer_receivable"] == 0
    assert (balances["cash_at_bank"], balances["acquirer_fees"]) == (10_740, 175 + 85)
    assert balances["partner_payable"] == -11_000, "what is owed to the partner is untouched"

    short = pay(gateway, keys["beta"], "tok_settle_short")
    dear = pay(gateway, keys["beta"], "tok_settle_fee")
    missing = pay(gateway, keys["beta"], "tok_settle_missing")
    failed = pay(gateway, keys["beta"], "tok_decline_stolen_card")
    extra = failed["operations"][0]["id"]
    for key, partner in ((extra, "beta"), ("op_01ZZZZZZZZZZZZZZZZZZZZZZZZ", "acme")):
        fields = {"partner": partner, "kind": "purchase", "amount": 700, "currency": "EUR", "original_key": None}
        answer = httpx.put(
            f"{gateway.acquirer_url}/settlement-extras/{key}", json={"date": operator.day, **fields}, trust_env=False
        )
        answer.raise_for_status()
    operator.fetch()
    code, report = operator.reconcile()
    assert code == 1
    counts = report["counts"]
    assert [counts[name] for name in ("matched", "differing", "extra", "missing")] == [3, 2, 2, 1], report
    found = {one["key"]: (one["verdict"], one["reasons"], one["posted"]) for one in report["differences"]}
    assert found == {
        extra: ("extra", ["operation_failed"], False),
        "op_01ZZZZZZZZZZZZZZZZZZZZZZZZ": ("extra", ["operation_unknown"], False),
        missing["operations"][0]["id"]: ("missing", ["in_no_file"], False),
        short["operations"][0]["id"]: ("differing", ["amount"], True),
        dear["operations"][0]["id"]: ("differing", ["fee"], True),
    }
    assert [one["grave"] for one in report["differences"]] == [True, True, False, False, False]
    balances = operator.balances("beta")
    assert balances["acquirer_receivable"] == 10_000, "what no file has is still owed"
    assert balances["settlement_differences"] == 1_000 + 7
    assert operator.reconcile()[1]["counts"]["repeated"] == 5

    whole = operator.file.read_bytes()
    operator.file.write_bytes(whole[:-20])
    cut = gateway.run(*operator.arguments())
    assert (cut.returncode, cut.stdout) == (2, "")
    assert "truncated" in cut.stderr


@pytest.mark.long
@pytest.mark.timeout(420)
def test_a_reconciliation_is_killed_and_goes_on_whoever_dies(operator: Operator) -> None:
    gateway = operator.gateway
    key = gateway.create_partner("acme", rate_per_second=5_000, rate_burst=5_000)
    asyncio.run(pay_many(gateway, key, 1_500))
    operator.fetch()

    # The same file twice at once, and the worker dies: the batches under way go to the next one.
    worker = gateway.worker_of("acme")
    before = batches(gateway)
    first, second = operator.begin(), operator.begin()
    wait_until_posting(gateway, before)
    worker.send_signal(signal.SIGKILL)
    reports = [json.loads(process.communicate(timeout=120)[0]) for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0], reports
    assert [report["counts"]["matched"] for report in reports] == [1_500, 1_500]
    assert gateway.worker_of("acme").pid != worker.pid
    fees = 175 * 1_500
    expected = {"acquirer_receivable": 0, "acquirer_fees": fees, "cash_at_bank": 15_000_000 - fees}
    assert expected.items() <= operator.balances("acme").items()

    # The command itself killed in the middle: the next one says what was posted before, and does the rest.
    asyncio.run(pay_many(gateway, key, 1_500))
    operator.fetch()
    before = batches(gateway)
    process = operator.begin()
    wait_until_posting(gateway, before + 15)  # those of the first 1,500 payments are looked at once more
    process.kill()
    process.communicate()
    code, report = operator.reconcile()
    assert (code, report["counts"]["matched"]) == (0, 3_000)
    assert 1_500 < report["counts"]["repeated"] <= 3_000
    balances = operator.balances("acme")
    assert (balances["acquirer_receivable"], balances["acquirer_fees"]) == (0, 2 * fees)
    assert "settlement_differences" not in balances


def wait_until_posting(gateway: Gateway, before: float) -> None:
    """Wait until more batches were decided than before."""
    until = time.monotonic() + 60
    while batches(gateway) <= before:
        assert time.monotonic() < until, "no batch was posted"


def batches(gateway: Gateway) -> float:
    """Count the batches of settlement rows that workers decided so far, by the door's metrics."""
    text = httpx.get(f"http://127.0.0.1:{gateway.ports.metrics}/metrics", trust_env=False, timeout=10).text
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith("bulkhead_actor_commands_total{") and "reconcile_operations" in line
    )
