"""Through the whole gateway: challenges, results that come later, disputes, and a worker that dies as it is told.

HTTP to the gateway, the acquirer's notifications back to it, and what a GET then shows.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from chaos.gateway import Gateway

PATIENCE_S = 20.0
NOTIFIED_TWICE = 2


class Shop:
    """One partner, as its own program sees the gateway."""

    def __init__(self, gateway: Gateway, client: httpx.AsyncClient) -> None:
        self.gateway = gateway
        self.client = client
        self._keys = 0

    async def post(self, path: str, expected: int, **fields: Any) -> dict[str, Any]:
        self._keys += 1
        answer = await self.client.post(path, json=fields, headers={"Idempotency-Key": f"k-{self._keys}"})
        assert answer.status_code == expected, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def pay(self, token: str, expected: int = 201, *, manual: bool = False) -> dict[str, Any]:
        method = "manual" if manual else "automatic"
        return await self.post(
            "/v1/payments", expected, amount=1_000, currency="EUR", payment_method=token, capture_method=method
        )

    async def get(self, payment: dict[str, Any]) -> dict[str, Any]:
        answer = await self.client.get(f"/v1/payments/{payment['id']}")
        found: dict[str, Any] = answer.json()
        return found

    async def until(self, payment: dict[str, Any], look: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Ask for the payment until it is as it should become."""
        until = time.monotonic() + PATIENCE_S
        while not look(found := await self.get(payment)):
            assert time.monotonic() < until, found
            await asyncio.sleep(0.05)
        return found

    async def notifications(self, payment: dict[str, Any]) -> list[dict[str, Any]]:
        """Give the notifications about a payment's operations, from the acquirer's own list."""
        keys = {operation["id"] for operation in payment["operations"]}
        async with httpx.AsyncClient(base_url=self.gateway.acquirer_url, trust_env=False) as acquirer:
            listed = (await acquirer.get("/notifications", params={"partner": "shop"})).json()
        return [row for row in listed["notifications"] if row["key"] in keys]


@asynccontextmanager
async def opened(gateway: Gateway) -> AsyncIterator[Shop]:
    key = await asyncio.to_thread(gateway.create_partner, "shop")
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(
        base_url=gateway.base_url, headers=headers, trust_env=False, timeout=PATIENCE_S
    ) as client:
        yield Shop(gateway, client)


@pytest.mark.timeout(240)
async def test_challenges_later_results_and_disputes(make_gateway: Callable[[int], Gateway]) -> None:
    gateway = await asyncio.to_thread(make_gateway, 1)
    async with opened(gateway) as shop:
        await asyncio.gather(
            challenges(shop),
            canceled(shop),
            expired(shop),
            decided_later(shop),
            told_after_a_time_out(shop),
            disputes(shop),
        )
        await worker_dies_as_it_is_told(shop)
        settled = await asyncio.to_thread(gateway.wait_settled)
        audit = await asyncio.to_thread(gateway.audit)
    assert settled == 0
    assert audit["ok"], audit
    assert audit["in_doubt"] == 0


async def challenges(shop: Shop) -> None:
    for manual, status in ((False, "captured"), (True, "authorized")):
        payment = await shop.pay("tok_challenge", manual=manual)
        assert payment["status"] == "requires_action"
        page = await shop.client.get(payment["next_action"]["redirect_to_url"]["url"], headers={"Authorization": ""})
        assert page.status_code == 200
        refused = await shop.post(f"/v1/payments/{payment['id']}/capture", 409)
        assert refused["code"] == "payment_state_invalid"
        confirmed = await shop.post(f"/v1/payments/{payment['id']}/confirm", 200)
        assert (confirmed["status"], confirmed["next_action"]) == (status, None)
    payment = await shop.pay("tok_challenge_decline")
    failed = await shop.post(f"/v1/payments/{payment['id']}/confirm", 200)
    assert (failed["status"], failed["failure"]["code"]) == ("failed", "authentication_failed")


async def canceled(shop: Shop) -> None:
    payment = await shop.pay("tok_challenge_abandoned")
    assert (await shop.post(f"/v1/payments/{payment['id']}/confirm", 200))["status"] == "requires_action"
    assert (await shop.post(f"/v1/payments/{payment['id']}/void", 200))["status"] == "canceled"


async def expired(shop: Shop) -> None:
    payment = await shop.pay("tok_challenge_expires_1000")
    ended = await shop.until(payment, lambda found: found["status"] == "failed")
    assert ended["failure"]["code"] == "challenge_expired"


async def decided_later(shop: Shop) -> None:
    began = time.monotonic()
    payments = {token: await shop.pay(token, 202) for token in ("tok_async_approve", "tok_async_decline")}
    assert time.monotonic() - began < 5, "nobody waits for a deadline"
    approved = await shop.until(payments["tok_async_approve"], lambda found: found["status"] == "captured")
    declined = await shop.until(payments["tok_async_decline"], lambda found: found["status"] == "failed")
    assert declined["failure"]["code"] == "insufficient_funds"
    until = time.monotonic() + PATIENCE_S
    while (rows := await shop.notifications(approved)) and rows[0]["taken"] < NOTIFIED_TWICE:
        assert time.monotonic() < until, rows
        await asyncio.sleep(0.05)
    assert [row["state"] for row in rows] == ["delivered"]
    assert await shop.get(approved) == approved, "told twice, it changed once"
    # One that is never told shows when the acquirer is asked again.
    silent = await shop.pay("tok_async_unnotified", 202)
    await shop.until(silent, lambda found: found["status"] == "captured")
    assert await shop.notifications(silent) == []


async def told_after_a_time_out(shop: Shop) -> None:
    payment = await shop.pay("tok_timeout_notified")
    assert payment["status"] == "captured"
    events = (await shop.client.get("/v1/events", params={"limit": 100})).json()["data"]
    types = [event["type"] for event in events if event["data"]["payment_id"] == payment["id"]]
    assert types == ["payment.captured", "operation.unknown", "payment.created"], "newest first"


async def disputes(shop: Shop) -> None:
    opened_only, won, lost, backwards = [
        await shop.pay(token)
        for token in ("tok_dispute", "tok_dispute_won", "tok_dispute_lost", "tok_dispute_backwards")
    ]
    disputed = await shop.until(opened_only, lambda found: found["status"] == "disputed")
    assert (disputed["dispute"]["status"], disputed["amount_disputed"]) == ("open", 1_000)
    refused = await shop.post(f"/v1/payments/{disputed['id']}/refunds", 409)
    assert refused["code"] == "payment_state_invalid"
    for payment, status, end in ((won, "captured", "won"), (lost, "disputed", "lost"), (backwards, "captured", "won")):
        found = await shop.until(
            payment,
            lambda found, end=end: (found["dispute"] or {}).get("status") == end,  # type: ignore[misc]
        )
        assert found["status"] == status
    refund = await shop.post(f"/v1/payments/{won['id']}/refunds", 201)
    assert refund["status"] == "succeeded", "what was won back can be given back"
    captured = await shop.pay("tok_dispute", manual=True)
    await shop.post(f"/v1/payments/{captured['id']}/capture", 200)
    found = await shop.until(captured, lambda found: found["status"] == "disputed")
    assert found["dispute"]["operation_id"] == found["operations"][1]["id"]


async def worker_dies_as_it_is_told(shop: Shop) -> None:
    """The worker stops before the notification comes and is killed with it in its socket: the next one takes it."""
    worker = await asyncio.to_thread(shop.gateway.worker_of, "shop")
    payment = await shop.pay("tok_async_approve", 202)
    worker.suspend()
    await asyncio.sleep(1.2)  # the notification is on its way to the worker now
    worker.kill()
    await shop.until(payment, lambda found: found.get("status") == "captured")
