"""The fault proxies' HTTP API: what Toxiproxy's clients ask for, and what comes of garbage."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web import Application, Request

from chaos.fault_proxy import FaultProxy
from chaos.fault_proxy_api import make_app, read_proxy
from chaos.ports import HOST

Client = TestClient[Request, Application]


@pytest.fixture
async def proxy() -> AsyncIterator[FaultProxy]:
    async with FaultProxy((HOST, 0), (HOST, 1)) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: FaultProxy) -> AsyncIterator[Client]:
    async with TestClient(TestServer(make_app({"doors": proxy}))) as client:
        yield client


async def test_a_toxic_is_added_shown_replaced_and_removed(client: Client, proxy: FaultProxy) -> None:
    toxic: dict[str, Any] = {"name": "late", "type": "latency", "attributes": {"latency": 5}}
    made = await client.post("/proxies/doors/toxics", json=toxic)
    assert made.status == 200
    assert (await made.json())["attributes"] == {"latency": 5, "jitter": 0}
    assert (await client.post("/proxies/doors/toxics", json=toxic)).status == 409
    toxic["attributes"] = {"latency": 9}
    assert (await client.post("/proxies/doors/toxics/late", json=toxic)).status == 200
    assert [one.fields()["attributes"]["latency"] for one in proxy.toxics] == [9]
    listed = await (await client.get("/proxies")).json()
    assert listed["doors"]["toxics"][0]["name"] == "late"
    assert listed["doors"]["enabled"] is True
    assert (await client.delete("/proxies/doors/toxics/late")).status == 204
    assert (await client.delete("/proxies/doors/toxics/late")).status == 404
    assert proxy.toxics == ()


async def test_it_goes_down_and_is_reset(client: Client, proxy: FaultProxy) -> None:
    await client.post("/proxies/doors/toxics", json={"type": "timeout"})
    assert (await client.post("/proxies/doors", json={"enabled": False})).status == 200
    assert not proxy.enabled
    assert (await client.post("/reset")).status == 204
    assert proxy.enabled
    assert proxy.toxics == ()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"enabled":1}', b'{"enabled":true,"more":1}', b"\xff" * 100])
async def test_garbage_is_told_and_changes_nothing(client: Client, proxy: FaultProxy, body: bytes) -> None:
    for path in ("/proxies/doors", "/proxies/doors/toxics"):
        answer = await client.post(path, data=body)
        assert answer.status == 400
        assert (await answer.json())["error"]
    assert proxy.enabled
    assert proxy.toxics == ()


async def test_what_is_not_there_and_what_is_too_large(client: Client) -> None:
    for path in ("/proxies/other", "/proxies/doors/toxics/other", "/elsewhere"):
        assert (await client.get(path)).status == 404
    assert (await client.post("/proxies/doors/toxics", data=b"x" * 100_000)).status == 413


def test_a_proxy_is_read_from_its_option() -> None:
    assert read_proxy("doors=9000=127.0.0.1:8101") == ("doors", (HOST, 9000), ("127.0.0.1", 8101))
    for text in ("", "a=1", "=1=h:2", "a=0=h:2", "a=1=h:70000", "a=1=2", "a=x=h:2"):
        with pytest.raises(ValueError):
            read_proxy(text)
