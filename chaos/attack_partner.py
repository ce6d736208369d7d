"""The attack of a partner with a good key: its worst requests, on many connections, at its full limit. Judges nothing.

`python -m chaos.attack_partner` reads its orders (`Orders`, as JSON) from its input and writes at its end how many
answers of each status it got. It ends by itself after `seconds`.
"""

import asyncio
import itertools
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import orjson
import uvloop

from chaos import limits

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_BYTES: Final = limits.CHAOS_HOSTILE_BODY_BYTES


@dataclass(frozen=True, slots=True)
class Orders:
    """One attack. Each connection begins with `at_once` requests in a row; all together then send `per_second`."""

    base_url: str
    api_key: str
    connections: int
    at_once: int
    per_second: float
    seconds: float


class Attack:
    """One attack, in a process of its own: `module` reads its orders as JSON from its input."""

    def __init__(self, module: str, orders: "DataclassInstance") -> None:
        self._module = module
        self._orders = orders
        self._process: subprocess.Popen[bytes] | None = None
        self.answers: dict[str, int] = {}

    @property
    def pid(self) -> int | None:
        """Its process, once it has one."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C at the experiment is the experiment's to handle
        )
        assert self._process.stdin is not None
        self._process.stdin.write(orjson.dumps(asdict(self._orders)))  # not as arguments: there is a key in it
        self._process.stdin.close()

    def end(self) -> None:
        """End it, and read how many answers of each status it got."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        with process.stdout, suppress(subprocess.TimeoutExpired, ValueError):
            process.wait(limits.JOURNEYS_END_MS_MAX / 1_000)
            self.answers = orjson.loads(process.stdout.read())
        if process.poll() is None:
            process.kill()
            process.wait()


def bodies() -> dict[str, bytes]:
    """Return the bodies that cost a router most, by name."""
    payment = {"amount": 1, "currency": "EUR", "payment_method": "tok_approve"}
    fields = {f"{number:x}": 1 for number in range(_BYTES // 10)}
    deep = 1_000
    return {
        "digit groups": orjson.dumps(payment | {"description": "4 " * (_BYTES // 2)}),
        "unknown fields": orjson.dumps(fields),
        "wrong metadata": orjson.dumps(payment | {"metadata": fields}),
        "wide": b'{"metadata":[' + b"1," * (_BYTES // 2) + b"1]}",
        "deep": b'{"a":' * deep + b"1" + b"}" * deep,
        "long text": orjson.dumps(payment | {"reference": "\u00e9" * (_BYTES // 2)}),
        "no json": b"[" * _BYTES,
    }


def requests(orders: Orders) -> Iterator[bytes]:
    """Yield its requests without an end: each kind of body, a list and a read after the other."""
    host = urlsplit(orders.base_url).netloc
    head = f"Host: {host}\r\nAuthorization: Bearer {orders.api_key}\r\n"
    of_posts = f"POST /v1/payments HTTP/1.1\r\n{head}Content-Type: application/json\r\nContent-Length: "
    posts = [f"{of_posts}{len(body)}\r\n\r\n".encode() + body for body in bodies().values()]
    reads = [
        f"GET {path} HTTP/1.1\r\n{head}\r\n".encode()
        for path in (
            "/v1/payments?limit=100",
            "/v1/events?limit=100",
            "/v1/balance",
            f"/v1/payments?reference={'4%20' * 2_000}",
        )
    ]
    pairs = zip(itertools.cycle(posts), itertools.cycle(reads))
    return itertools.chain.from_iterable(pairs)


async def _attack(orders: Orders) -> Counter[str]:
    answers: Counter[str] = Counter()
    address = urlsplit(orders.base_url)
    assert address.hostname is not None
    sending = requests(orders)
    pause_s = orders.connections / orders.per_second
    loop = asyncio.get_running_loop()
    until_s = loop.time() + orders.seconds

    async def attend(number: int) -> None:
        """Send on one connection, and on a new one wherever that was ended."""
        due_s = loop.time() + pause_s * (1 + number / orders.connections)
        first = orders.at_once
        while loop.time() < until_s:
            try:
                reader, writer = await asyncio.open_connection(address.hostname, address.port)
            except OSError as error:
                answers[type(error).__name__] += 1
                await asyncio.sleep(pause_s)
                continue
            try:
                while loop.time() < until_s:
                    count, first = max(first, 1), 0
                    writer.write(b"".join(itertools.islice(sending, count)))
                    for _ in range(count):
                        answers[await _read_answer(reader)] += 1
                    await asyncio.sleep(max(due_s - loop.time(), 0.0))
                    due_s += pause_s
            except (OSError, EOFError) as error:
                answers[type(error).__name__] += 1
            finally:
                writer.close()

    tasks = [asyncio.create_task(attend(number)) for number in range(orders.connections)]
    loop.add_signal_handler(signal.SIGTERM, lambda: [task.cancel() for task in tasks])
    await asyncio.gather(*tasks, return_exceptions=True)
    return answers


async def _read_answer(reader: asyncio.StreamReader) -> str:
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    await reader.readexactly(length)
    return head[9:12].decode()


def main() -> int:
    """Attack as the orders say; write how many answers of each status came."""
    orders = Orders(**orjson.loads(sys.stdin.buffer.read()))
    sys.stdout.buffer.write(orjson.dumps(uvloop.run(_attack(orders))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
