"""A whole gateway with two acquirers: the first hangs for a partner. What is in flight stays, what is new goes on."""

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from chaos.gateway import Gateway
from control_plane import client

FIRST_SHOP, PLAIN_SHOP = "shop_two", "shop_one"


async def pay(http: httpx.AsyncClient, key: str, amount: int) -> httpx.Response:
    body = {"amount": amount, "currency": "EUR", "payment_method": "tok_approve"}
    headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": str(uuid.uuid4())}
    return await http.post("/v1/payments", json=body, headers=headers)


def charged_at(record: list[dict[str, Any]], partner: str, amounts: range) -> dict[int, list[str]]:
    """Give the acquirers that charged each amount."""
    found: dict[int, list[str]] = {}
    for row in record:
        if row["partner"] == partner and row["charged"] and row["amount"] in amounts:
            found.setdefault(row["amount"], []).append(row["acquirer"])
    return found


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_a_hanging_first_acquirer_costs_a_partner_what_was_in_flight_and_no_more(
    make_gateway: Callable[..., Gateway],
) -> None:
    gateway = await asyncio.to_thread(make_gateway, 1, second_acquirer=True)
    plain = await asyncio.to_thread(gateway.create_partner, PLAIN_SHOP)
    key = await asyncio.to_thread(gateway.create_partner, FIRST_SHOP, acquirers=["main"])
    refused = await asyncio.to_thread(gateway.run, "partner", "set-acquirers", FIRST_SHOP, "main,third")
    assert refused.returncode == 2
    assert "main, second" in refused.stdout + refused.stderr
    done = await asyncio.to_thread(gateway.run, "partner", "set-acquirers", FIRST_SHOP, "main,second")
    assert done.returncode == 0, done.stderr
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=gateway.base_url, trust_env=False, timeout=15, limits=limits) as http:
        assert (await pay(http, key, 1)).status_code == 201
        await asyncio.to_thread(gateway.set_fault, FIRST_SHOP, "hang")
        in_flight = await asyncio.gather(*(pay(http, key, 100 + n) for n in range(20)))
        assert {answer.status_code for answer in in_flight} == {202}
        (row,) = [row for row in gateway.status()["partners"] if row["partner"] == FIRST_SHOP]
        assert row["breakers"]["main"] != "closed"
        assert row["breakers"]["second"] == "closed"
        later = await asyncio.gather(*(pay(http, key, 200 + n) for n in range(20)))
        assert {answer.status_code for answer in later} == {201}
        bystanding = await asyncio.gather(*(pay(http, plain, 300 + n) for n in range(10)))
        assert {answer.status_code for answer in bystanding} == {201}

        await asyncio.to_thread(gateway.clear_fault, FIRST_SHOP)
        assert await asyncio.to_thread(gateway.wait_settled, 90_000) == 0
        again = await pay(http, key, 2)
        assert again.json()["status"] == "captured"

    record = await asyncio.to_thread(gateway.acquirer_record)
    # Where the first closed a key it had not charged, the payment failed; none was charged anywhere else.
    assert {tuple(names) for names in charged_at(record, FIRST_SHOP, range(100, 120)).values()} <= {("main",)}
    assert charged_at(record, FIRST_SHOP, range(200, 220)) == {200 + n: ["second"] for n in range(20)}
    assert charged_at(record, PLAIN_SHOP, range(300, 310)) == {300 + n: ["main"] for n in range(10)}
    assert charged_at(record, FIRST_SHOP, range(1, 3)) == {1: ["main"], 2: ["main"]}
    audit = await asyncio.to_thread(gateway.audit)
    assert audit["ok"], audit
    assert client.ask(gateway.folder, "GET", "/unknown")["operations"] == []
