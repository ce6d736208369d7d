"""Payments of a whole gateway through a relay before its door: cut, slowed, sliced, tampered with, and whole again."""

import asyncio
from functools import partial
from pathlib import Path

import httpx
import pytest

from chaos.fault_proxy import FaultProxy
from chaos.gateway import Gateway
from chaos.ports import HOST, free_block
from chaos.toxics import Latency, ResetPeer, Slicer, Tamper
from tests.eventually import eventually_true

BODY = {"amount": 100, "currency": "EUR", "payment_method": "tok_approve", "capture_method": "automatic"}


@pytest.mark.timeout(300)
async def test_payments_go_through_the_proxy_whatever_it_does(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path / "gateway", cells=1)
    gateway.root.mkdir(parents=True)
    advertised = free_block(1)
    (gateway.root / "bulkhead.toml").write_text(f"door_advertised_port = {advertised}\n")
    try:
        async with FaultProxy((HOST, advertised), (HOST, gateway.ports.door), seed=1) as proxy:
            gateway.start()
            await asyncio.to_thread(gateway.wait_ready)
            key = await asyncio.to_thread(gateway.create_partner, "acme")
            async with httpx.AsyncClient(
                base_url=gateway.base_url,
                headers={"Authorization": f"Bearer {key}"},
                trust_env=False,
                timeout=20,
            ) as client:

                async def pay(name: str) -> httpx.Response:
                    return await client.post("/v1/payments", json=BODY, headers={"Idempotency-Key": name})

                paid = await pay("calm")
                assert paid.status_code == 201, paid.text
                assert proxy.accepted > 0, "the router goes another way"

                proxy.add(Latency(latency=300))
                slow = await pay("slow")
                assert slow.status_code == 201
                assert slow.elapsed.total_seconds() >= 0.3
                proxy.clear()
                proxy.add(Slicer(average_size=7, size_variation=3, delay=100))
                assert (await pay("sliced")).status_code == 201
                proxy.clear()

                proxy.add(ResetPeer())
                assert (await pay("reset")).status_code in {202, 503}
                proxy.clear()
                await proxy.disable()
                cut = await pay("cut")
                assert cut.status_code == 503, cut.text
                # The control plane asks the door itself, so it still sees a cell that answers.
                status = await asyncio.to_thread(gateway.status)
                assert [cell["answers"] for cell in status["cells"]] == [True]
                await proxy.enable()

                async def is_done(name: str) -> bool:
                    return (await pay(name)).status_code in {201, 202}

                tampered = [
                    Tamper(way="flip", every=1, stream="upstream"),
                    Tamper(way="flip", every=1),
                    Tamper(way="replay", every=1, stream="upstream"),
                    Tamper(way="inject", every=1),
                ]

                async def is_as_ever() -> bool:
                    return (await pay("calm")).content == paid.content

                async def has_opened_another(connections: int, name: str) -> bool:
                    assert (await pay(name)).status_code in {201, 202, 503}
                    return proxy.accepted > connections

                for number, toxic in enumerate(tampered):
                    await eventually_true(is_as_ever, within_s=30)
                    connections = proxy.accepted
                    proxy.add(toxic)
                    # The connection ends, and the router opens another one.
                    await eventually_true(partial(has_opened_another, connections, f"tampered-{number}"), within_s=30)
                    proxy.clear()

                for name in ("reset", "cut", *(f"tampered-{number}" for number in range(len(tampered)))):
                    await eventually_true(partial(is_done, name), within_s=30)
                assert (await pay("calm")).content == paid.content
            assert (await asyncio.to_thread(gateway.audit))["ok"]
    finally:
        await asyncio.to_thread(gateway.kill_everything)
