"""A whole gateway: what an operator changes of a partner, the partner sees in its own events."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from chaos.gateway import Gateway
from chaos.installation import wait_for

EVENTS_MS = 20_000


def events(gateway: Gateway, key: str, kind: str) -> list[dict[str, Any]]:
    """Give a partner's events of a type, newest first."""
    answer = httpx.get(
        f"{gateway.base_url}/v1/events?type={kind}",
        headers={"Authorization": f"Bearer {key}"},
        timeout=15,
        trust_env=False,
    )
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


@pytest.mark.timeout(180)
async def test_a_partner_sees_that_its_key_was_rotated(make_gateway: Callable[..., Gateway]) -> None:
    gateway = await asyncio.to_thread(make_gateway, 1)
    await asyncio.to_thread(_rotate, gateway)


def _rotate(gateway: Gateway) -> None:
    gateway.create_partner("acme")
    made = gateway.run_json("partner", "rotate-key", "acme", "--grace", "0")["key"]
    (event,) = wait_for(
        lambda: events(gateway, made["api_key"], "partner.key_rotated") or None, "it is told", EVENTS_MS
    )
    assert (event["data"]["key_id"], event["data"]["hint"]) == (made["id"], made["api_key"][-4:])
    assert made["api_key"] not in str(event)
    assert gateway.run_json("audit")["ok"]
    assert gateway.run_json("partner", "show", "acme")["changes_untold"] == 0
