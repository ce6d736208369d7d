"""A whole gateway: a partner is deleted with its grace, restored, deleted for good while things are killed."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from chaos.gateway import Gateway
from chaos.installation import wait_for
from control_plane import client
from control_plane.errors import ControlPlaneError

BODY = {"amount": 100, "currency": "EUR", "payment_method": "tok_approve"}
HELD = {**BODY, "capture_method": "manual"}


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_a_partner_goes_with_its_book_and_its_id_and_nobody_else_does(
    make_gateway: Callable[..., Gateway],
) -> None:
    gateway = await asyncio.to_thread(make_gateway, 1)
    await asyncio.to_thread(_delete, gateway)


def _delete(gateway: Gateway) -> None:
    acme, beta = gateway.create_partner("acme"), gateway.create_partner("beta")
    held = _pay(gateway, acme, HELD).json()["id"]
    refused = gateway.run("partner", "delete", "acme")
    assert refused.returncode == 2
    assert "open payments" in refused.stderr

    assert _ask(gateway, acme, "POST", f"/v1/payments/{held}/capture", {}).status_code == 200
    assert gateway.run("partner", "delete", "acme", "--grace", "1d").returncode == 0
    wait_for(lambda: _pay(gateway, acme, BODY).status_code == 403 or None, "acme pays nothing", 10_000)
    assert _ask(gateway, acme, "GET", f"/v1/payments/{held}").json()["status"] == "captured"
    assert gateway.run("partner", "restore", "acme").returncode == 0
    wait_for(lambda: _pay(gateway, acme, BODY).status_code == 201 or None, "acme pays again", 10_000)

    assert gateway.run("partner", "delete", "acme", "--grace", "0").returncode == 0
    gateway.kill_control_plane()  # wherever it is: the next one goes on
    gateway.start()
    gateway.wait_ready()
    wait_for(lambda: _is_gone(gateway) or None, "acme is gone", 60_000)
    wait_for(lambda: _pay(gateway, acme, BODY).status_code == 401 or None, "its key opens nothing", 10_000)
    again = gateway.run("partner", "create", "--id", "acme")
    assert again.returncode == 2
    assert "deleted" in again.stderr
    assert _pay(gateway, beta, BODY).status_code == 201
    books = sorted(path.name for path in gateway.folder.cell_folder("cell-0").rglob("*") if "acme" in path.name)
    assert books == []
    assert gateway.run_json("audit-log", "verify")["ok"]
    assert gateway.run_json("audit")["ok"]


def _pay(gateway: Gateway, key: str, body: dict[str, Any]) -> httpx.Response:
    return _ask(gateway, key, "POST", "/v1/payments", body)


def _ask(gateway: Gateway, key: str, verb: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.request(verb, gateway.base_url + path, json=body, headers=headers, timeout=15, trust_env=False)


def _is_gone(gateway: Gateway) -> bool:
    try:
        client.ask(gateway.folder, "GET", "/partners/acme")
    except ControlPlaneError as error:
        return "deleted" in error.what
    return False
