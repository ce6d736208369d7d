"""The attack of a stranger without a key: much is begun at a router's port, and nothing is finished. Judges nothing.

`python -m chaos.attack_stranger` reads its orders (`Orders`, as JSON) from its input and writes at its end how its
connections ended, by the status of the answer. It ends by itself after `seconds`.
"""

import asyncio
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import orjson
import uvloop

from chaos import limits

_HELD_S: Final = limits.CHAOS_STRANGER_HELD_MS / 1_000


@dataclass(frozen=True, slots=True)
class Orders:
    """One attack: so many connections of each kind at a time (`beginnings`)."""

    base_url: str
    connections: int
    seconds: float


def beginnings(host: str) -> dict[str, Callable[[], bytes]]:
    """Return what a stranger begins, by name: heads without an end, requests in a row, notifications without a body."""
    head = f"GET /v1/payments HTTP/1.1\r\nHost: {host}\r\n".encode()
    upgrade = head + b"Connection: upgrade\r\nUpgrade: h2c\r\n\r\n"

    def notification() -> bytes:
        signed = f"webhook-id: msg_1\r\nwebhook-timestamp: {time.time():.0f}\r\nwebhook-signature: v1,AAAA\r\n"
        target = f"POST /v1/acquirers/main/notifications HTTP/1.1\r\nHost: {host}\r\n{signed}"
        return f"{target}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{".encode()

    return {
        "half a head": lambda: head + b"X-Header: " + b"a" * limits.CHAOS_STRANGER_HEAD_BYTES,
        "a head too long": lambda: head + b"X-Header: " + b"a" * 40 * limits.CHAOS_STRANGER_HEAD_BYTES,
        "upgrades in a row": lambda: upgrade * limits.CHAOS_STRANGER_UPGRADES,
        "half a notification": notification,
    }


async def _attack(orders: Orders) -> Counter[str]:
    ends: Counter[str] = Counter()
    address = urlsplit(orders.base_url)
    assert address.hostname is not None
    loop = asyncio.get_running_loop()
    until_s = loop.time() + orders.seconds

    async def attend(name: str, begin: Callable[[], bytes]) -> None:
        while loop.time() < until_s:
            try:
                reader, writer = await asyncio.open_connection(address.hostname, address.port)
            except OSError as error:
                ends[f"{name}: {type(error).__name__}"] += 1
                await asyncio.sleep(_HELD_S / 10)
                continue
            try:
                writer.write(begin())
                async with asyncio.timeout(_HELD_S):
                    answer = await reader.readuntil(b"\r\n")
                ends[f"{name}: {answer[9:12].decode()}"] += 1
                await asyncio.sleep(_HELD_S / 10)
            except (OSError, EOFError, TimeoutError) as error:
                ends[f"{name}: {type(error).__name__}"] += 1
            finally:
                writer.close()

    tasks = [
        asyncio.create_task(attend(name, begin))
        for name, begin in beginnings(address.netloc).items()
        for _ in range(orders.connections)
    ]
    loop.add_signal_handler(signal.SIGTERM, lambda: [task.cancel() for task in tasks])
    await asyncio.gather(*tasks, return_exceptions=True)
    return ends


def main() -> int:
    """Attack as the orders say; write how connections ended."""
    orders = Orders(**orjson.loads(sys.stdin.buffer.read()))
    sys.stdout.buffer.write(orjson.dumps(uvloop.run(_attack(orders))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
