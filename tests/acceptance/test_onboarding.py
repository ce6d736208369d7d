"""A whole gateway: many partners come from a file, each pays when its line is printed, whatever is killed meanwhile."""

import asyncio
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from chaos.gateway import Gateway
from chaos.installation import environment
from chaos.ports import free_block
from control_plane import client

# Too many for one pool a cell, so that some wait for a worker to start when the control plane is killed.
PARTNERS = 90
BODY = {"amount": 100, "currency": "EUR", "payment_method": "tok_approve"}


def write(folder: Path) -> Path:
    path = folder / "shops.csv"
    rows = "".join(f'shop_{number},pooled,"EUR,USD"\n' for number in range(PARTNERS))
    path.write_text("id,isolation,currencies\n" + rows)
    return path


def pay(base_url: str, key: str, currency: str = "EUR") -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(
        f"{base_url}/v1/payments", json={**BODY, "currency": currency}, headers=headers, timeout=15, trust_env=False
    )


def begin_import(gateway: Gateway, file: Path) -> "subprocess.Popen[str]":
    command = gateway.command("partner", "import", file, "--json")
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment(), "PYTHONUNBUFFERED": "1"},
        cwd=gateway.root,
    )


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_each_can_pay_when_its_line_is_printed_and_a_killed_import_is_said_again(
    make_gateway: Callable[..., Gateway],
) -> None:
    gateway = await asyncio.to_thread(make_gateway, 2)
    await asyncio.to_thread(_import_and_kill, gateway)
    await asyncio.to_thread(_say_it_again, gateway)


def _import_and_kill(gateway: Gateway) -> None:
    file = write(gateway.root)
    importing = begin_import(gateway, file)
    with importing:
        assert importing.stdout is not None
        line = importing.stdout.readline()
        assert pay(gateway.base_url, json.loads(line)["key"]["api_key"]).status_code == 201
        gateway.kill_control_plane()
        _, errors = importing.communicate(timeout=60)
    assert importing.returncode == 1, errors
    assert "ask again" in errors


def _say_it_again(gateway: Gateway) -> None:
    gateway.start()
    gateway.wait_ready()
    file = gateway.root / "shops.csv"
    keys_file = gateway.root / "keys.jsonl"
    done = gateway.run("partner", "import", file, "--keys-to", keys_file)
    assert done.returncode == 0, done.stderr
    keys = {}
    for line in keys_file.read_text().splitlines():  # of those that were not reached
        row = json.loads(line)
        keys[row["partner"]] = row["api_key"]
    assert keys_file.stat().st_mode & 0o777 == 0o600
    for number in range(PARTNERS):
        partner = f"shop_{number}"
        if partner not in keys:  # its key was made before the kill
            rotated = client.ask(gateway.folder, "POST", f"/partners/{partner}/keys", {"grace_s": 0})
            keys[partner] = rotated["key"]["api_key"]
        assert pay(gateway.base_url, keys[partner]).status_code == 201
    refused = pay(gateway.base_url, keys["shop_0"], "JPY")
    assert (refused.status_code, refused.json()["code"]) == (422, "currency_not_accepted")

    exported = gateway.root / "exported.csv"
    exported.write_text(gateway.run("partner", "export").stdout)
    again = gateway.run("partner", "import", exported)
    assert again.returncode == 0
    assert f"0 onboarded, {PARTNERS} were there before" in again.stderr
    verdict = gateway.run_json("audit-log", "verify")
    assert verdict["ok"], verdict["problems"]
    assert verdict["entries"] >= 3 * PARTNERS


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_an_operator_comes_over_the_port_with_its_role_and_no_more(make_gateway: Callable[..., Gateway]) -> None:
    port = free_block(1)
    gateway = await asyncio.to_thread(make_gateway, 1, up_arguments=("--admin-port", str(port)))
    made = await asyncio.to_thread(gateway.run_json, "operator", "add", "ann", "--role", "viewer")
    elsewhere = {
        **environment(),
        "BULKHEAD_ADMIN_URL": f"http://127.0.0.1:{port}",
        "BULKHEAD_OPERATOR_KEY": made["key"],
    }

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [*gateway.command()[:1], *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, env=elsewhere, cwd=os.sep, timeout=60, check=False
        )

    assert (await asyncio.to_thread(run, "status", "--json")).returncode == 0
    refused = await asyncio.to_thread(run, "partner", "create", "--id", "acme")
    assert refused.returncode == 4
    assert "viewer" in refused.stderr
    await asyncio.to_thread(gateway.run, "operator", "disable", "ann")
    assert (await asyncio.to_thread(run, "status")).returncode == 4
    assert await asyncio.to_thread(gateway.create_partner, "acme"), "the local operator needs nothing more"
