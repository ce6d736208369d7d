"""The page of metrics on a port of its own, over a real socket."""

import socket

import httpx
import pytest

from listeners.metrics_page import MetricsPage


async def render() -> bytes:
    return b"bulkhead_things_total 1.0\n"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_it_serves_metrics_and_nothing_else() -> None:
    page, port = MetricsPage(render), free_port()
    await page.start("127.0.0.1", port)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            found = await client.get("/metrics")
            assert (found.status_code, found.content) == (200, await render())
            assert found.headers["content-type"].startswith("text/plain; version=")
            assert (await client.get("/livez")).status_code == 404
            refused = await client.post("/metrics", content=b"x" * 100_000)
            assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
            assert (await client.get("/metrics", headers={"x": "y" * 60_000})).status_code == 431
    finally:
        await page.aclose()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


async def test_a_port_that_is_taken_is_told_by_its_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        await MetricsPage(render).start("127.0.0.1", taken.getsockname()[1])
