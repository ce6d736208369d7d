"""Cells come and go on a gateway that is up: with the control plane killed on the way, and a stop and start between."""

from collections.abc import Callable, Mapping
from typing import Any

import httpx
import psutil
import pytest

from chaos.gateway import Gateway
from chaos.installation import wait_for
from control_plane import client
from router import directory
from tests.store_choices import chosen, on_either_store

START_MS = 120_000


def cells(gateway: Gateway) -> dict[str, dict[str, Any]]:
    return {cell["cell"]: cell for cell in gateway.run_json("cell", "list")["cells"]}


def wait_state(gateway: Gateway, cell: str, state: str) -> None:
    wait_for(lambda: cells(gateway).get(cell, {}).get("state") == state or None, f"{cell} is {state}", START_MS)


def partner_of(cell: str, names: Mapping[str, float]) -> str:
    """Give the id of a partner that belongs to a cell by the hash."""
    told = [directory.Cell(name=name, weight=weight, host="h", port=1) for name, weight in names.items()]
    return next(name for name in (f"p{number}" for number in range(999)) if directory.rendezvous(name, told) == cell)


def pay(gateway: Gateway, key: str) -> httpx.Response:
    return httpx.post(
        f"{gateway.base_url}/v1/payments",
        json={"amount": 1_999, "currency": "EUR", "payment_method": "tok_approve"},
        headers={"Authorization": f"Bearer {key}"},
        timeout=12,
    )


def router_of(gateway: Gateway) -> psutil.Process:
    row = next(row for row in gateway.status()["processes"] if row["role"] == "router")
    return psutil.Process(row["pid"])


@pytest.mark.long
@pytest.mark.timeout(500)
@on_either_store
def test_a_cell_comes_takes_a_partner_and_goes(make_gateway: Callable[..., Gateway], kind: str) -> None:
    gateway = make_gateway(1, chosen(kind))
    first = gateway.create_partner("acme")
    assert pay(gateway, first).status_code == 201
    router = router_of(gateway)

    # The control plane is killed while the new cell starts; the next one goes on with it.
    planned = gateway.run_json("cell", "add", "--dry-run")
    assert planned["cell"]["name"] == "cell-1"
    assert set(cells(gateway)) == {"cell-0"}, "a dry run adds nothing"
    client.ask(gateway.folder, "POST", "/cells", {})
    gateway.kill_control_plane()
    assert pay(gateway, first).status_code == 201
    gateway.start()
    gateway.wait_ready()
    wait_state(gateway, "cell-1", "active")
    assert router_of(gateway) == router, "a cell that comes restarts no router"

    new = partner_of("cell-1", {"cell-0": 1, "cell-1": 1})
    key = gateway.create_partner(new)
    shown = gateway.run_json("partner", "show", new)
    assert shown["partner"]["cell"] == "cell-1"
    assert pay(gateway, key).status_code == 201
    assert pay(gateway, first).status_code == 201

    # What is there stays after an orderly stop, too.
    assert gateway.interrupt() == 0
    assert gateway.leftovers() == []
    gateway.start()
    gateway.wait_ready()
    assert {cell["state"] for cell in cells(gateway).values()} == {"active"}
    assert pay(gateway, key).status_code == 201

    # A cell in which partners are is not removed; an empty one is.
    assert gateway.run("cell", "remove", "cell-1").returncode == 2
    assert gateway.run_json("cell", "drain", "cell-1")["partners_there"] == 1
    refused = gateway.run("cell", "remove", "cell-1")
    assert refused.returncode == 2
    assert "1 partners are in cell-1 still" in refused.stderr
    done = gateway.run_json("rebalance", "--apply", "--by", "drain", "--watch")
    assert (done["run"]["state"], done["counts"]["done"], done["steps"]) == ("done", 1, 1)
    assert pay(gateway, key).status_code == 201, "it is served where it is now"
    client.ask(gateway.folder, "POST", "/cells/cell-1/remove", {})
    gateway.kill_control_plane()
    assert [pay(gateway, one).status_code for one in (first, key)] == [201, 201]
    gateway.start()
    gateway.wait_ready()
    wait_state(gateway, "cell-1", "removed")
    assert not any("cell-1" in name for name in gateway.census())
    assert gateway.folder.removed_cell_folder("cell-1").is_dir()
    assert router_of(gateway).is_running()
    assert [pay(gateway, one).status_code for one in (first, key)] == [201, 201]
    audit = gateway.audit()
    assert audit["ok"], audit
    assert audit["payments"] == 10
