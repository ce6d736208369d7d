"""A gateway's life as its operator sees it: up, a partner, a payment as the README shows it, Ctrl-C, up again."""

import asyncio
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from redis import Redis
from redis.exceptions import RedisError

from chaos.experiment import judge_at_rest
from chaos.gateway import Gateway
from chaos.history import Call
from chaos.installation import wait_for
from chaos.workload import read_book
from control_plane.settings import Settings
from tests.store_choices import chosen, on_either_store

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
README_BASE_URL = "http://127.0.0.1:8080"
CELLS = 2
REDIS_MS = 30_000


@pytest.mark.timeout(240)
@on_either_store
def test_up_pay_stop_and_up_again(make_gateway: Callable[..., Gateway], kind: str) -> None:
    gateway = make_gateway(CELLS, chosen(kind), routers=Settings().routers)
    assert "Bulkhead is ready" in gateway.output
    gateway.wait_spares()
    wait_for(lambda: redis_row(gateway), "Redis is ready", REDIS_MS)
    check_status(gateway.run_json("status"))

    key, answer = follow_readme(gateway)
    shown = readme_answer()
    assert answer.keys() == shown.keys()
    changing = {"id", "created_at", "operations"}
    assert {name: value for name, value in answer.items() if name not in changing} == {
        name: value for name, value in shown.items() if name not in changing
    }

    (router, other) = (row for row in gateway.status()["processes"] if row["role"] == "router")
    psutil.Process(router["pid"]).kill()
    assert asyncio.run(read_book(f"http://{other['endpoint']}", key)) == [answer], "the other router goes on"

    assert gateway.interrupt() == 0
    assert gateway.leftovers() == [], "Ctrl-C left processes behind"
    assert not any(is_listened_on(gateway.ports.http + index) for index in range(gateway.routers))
    assert gateway.run("status", "--json").returncode == 3, "what isn't running can be told from the exit code"

    refused = Gateway(gateway.root, cells=CELLS + 1, store=gateway.store)
    refused.start()
    assert refused.up is not None
    assert refused.up.wait(timeout=30) == 2
    assert f"this data was made with {CELLS} cells" in refused.output

    gateway.start()
    gateway.wait_ready()
    (payment,) = asyncio.run(read_book(gateway.base_url, key))
    assert payment == answer, "the payment is as it was acknowledged"
    assert curl(gateway, key) == answer, "its idempotency key gives the first answer again"
    judgement, audit = asyncio.run(judge_at_rest(gateway, {answer_partner(gateway): key}, [call_of(answer, gateway)]))
    assert audit["ok"]
    assert audit["payments"] == 1
    assert judgement.verdict == "right", judgement
    assert gateway.interrupt() == 0
    assert gateway.leftovers() == []


@pytest.mark.timeout(120)
def test_a_second_up_on_the_same_data_is_kept_out(make_gateway: Callable[[int], Gateway]) -> None:
    gateway = make_gateway(1)
    second = Gateway(gateway.root, cells=1)
    second.start()
    assert second.up is not None
    assert second.up.wait(timeout=30) == 2
    assert "another `bulkhead up` uses this data folder" in second.output
    assert gateway.status()["ready"], "the first goes on"


@pytest.mark.timeout(180)
def test_a_gateway_has_a_redis_of_its_own_and_pays_without_it(make_gateway: Callable[..., Gateway]) -> None:
    gateway = make_gateway(1)
    row = wait_for(lambda: redis_row(gateway), "Redis is ready", REDIS_MS)
    wait_for(lambda: is_connected(gateway) or None, "the router is connected to it", REDIS_MS)
    password = gateway.folder.redis_secret_file.read_bytes().hex()
    assert password not in gateway.folder.settings_file.read_text()
    assert password not in " ".join(psutil.Process(row["pid"]).cmdline())
    for given in (None, "wrong"):
        with Redis("127.0.0.1", gateway.ports.redis, password=given) as stranger, pytest.raises(RedisError):
            stranger.ping()
    with Redis("127.0.0.1", gateway.ports.redis, password=password) as known:
        assert known.config_get("save", "appendonly") == {"save": "", "appendonly": "no"}

    by_redis_ms = revoke(gateway, "told")
    print(f"\na revoked key was refused {by_redis_ms:.0f} ms after the directory was written, by Redis")  # noqa: T201 - a figure to read
    assert by_redis_ms < 1_000, "100 ms are promised on a machine that does nothing else"

    psutil.Process(row["pid"]).kill()
    _, answer = follow_readme(gateway)
    assert answer["status"] == "captured"
    again = wait_for(lambda: redis_row(gateway), "Redis is ready again", REDIS_MS)
    assert (again["pid"] != row["pid"], again["restarts"]) == (True, 1)
    wait_for(lambda: is_connected(gateway) or None, "the router is connected to it again", REDIS_MS)


def revoke(gateway: Gateway, partner: str) -> float:
    """Revoke a partner's key; give how long after the control plane wrote the directory it was good for, in ms."""
    made = gateway.run_json("partner", "create", "--id", partner)
    headers = {"Authorization": f"Bearer {made['key']['api_key']}"}
    with httpx.Client(base_url=gateway.base_url, headers=headers, trust_env=False, timeout=10) as client:
        assert client.get("/v1/balance").status_code == 200
        before = gateway.folder.directory_file.stat().st_mtime_ns
        with ThreadPoolExecutor(1) as pool:
            revoking = pool.submit(gateway.run_json, "partner", "revoke-key", partner, made["key"]["id"])
            while client.get("/v1/balance").status_code == 200:
                time.sleep(0.002)
            refused_ns = time.time_ns()
            revoking.result()
    written_ns = gateway.folder.directory_file.stat().st_mtime_ns
    assert written_ns > before
    return (refused_ns - written_ns) / 1_000_000


def redis_row(gateway: Gateway) -> dict[str, Any] | None:
    """Give the row of a Redis that runs: not of one whose end was not seen yet."""
    (row,) = (row for row in gateway.status()["processes"] if row["role"] == "redis")
    return row if row["health"] == "ready" and row["pid"] and psutil.pid_exists(row["pid"]) else None


def is_connected(gateway: Gateway) -> bool:
    text = httpx.get(gateway.metrics_url, trust_env=False, timeout=10).text
    return "bulkhead_router_redis_connected 1.0" in text


def check_status(status: dict[str, Any]) -> None:
    roles = [row["role"] for row in status["processes"]]
    assert {role: roles.count(role) for role in set(roles)} == {
        "control": 1,
        "acquirer": 1,
        "redis": 1,
        "ray": CELLS,
        "door": CELLS,
        "router": 2,
        "spare": CELLS,
    }
    assert all(row["health"] == "ready" and row["pid"] and row["endpoint"] for row in status["processes"])


def readme_block(language: str, word: str) -> str:
    """Give the README's first code block of a language that has the word in it."""
    blocks: list[str] = re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)
    return next(block for block in blocks if word in block)


def readme_answer() -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(readme_block("json", '"object":"payment"').replace("[…]", "[]"))
    return shown


def follow_readme(gateway: Gateway) -> tuple[str, dict[str, Any]]:
    """Do what the README says after `make up`: onboard a partner, pay. Give its key and the payment's answer."""
    lines = readme_block("sh", "curl").splitlines()
    assert lines[0].startswith("make up")
    said = run_shell(gateway, "\n".join([*lines[1:], "echo", 'echo "$KEY"']))
    answer, key = said.splitlines()
    return key, json.loads(answer)


def curl(gateway: Gateway, key: str) -> dict[str, Any]:
    """Send the README's payment once more."""
    block = readme_block("sh", "curl")
    answer: dict[str, Any] = json.loads(run_shell(gateway, f"KEY={key}\n" + block[block.index("curl") :]))
    return answer


def run_shell(gateway: Gateway, script: str) -> str:
    """Run the README's words against this gateway: only its port, its data and its virtual environment are others."""
    assert README_BASE_URL in script
    script = script.replace(README_BASE_URL, gateway.base_url).replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env={"PATH": "/usr/bin:/bin", "HOME": str(gateway.root), "BULKHEAD_DATA_FOLDER": str(gateway.folder.root)},
        cwd=gateway.root,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def answer_partner(gateway: Gateway) -> str:
    (partner,) = gateway.run_json("partner", "list")["partners"]
    name: str = partner["id"]
    return name


def call_of(answer: dict[str, Any], gateway: Gateway) -> Call:
    """Give the README's payment as a call, for the checker."""
    asked = {name: answer[name] for name in ("amount", "currency", "payment_method", "reference")}
    return Call(
        run="readme",
        partner=answer_partner(gateway),
        scenario="readme",
        step="create_payment",
        method="POST",
        path="/v1/payments",
        key="order-1001",
        body=json.dumps(asked).encode(),
        expected=(),
        usual=True,
        due_s=0,
        answered_s=0,
        status=201,
        answer=json.dumps(answer).encode(),
    )


def is_listened_on(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
