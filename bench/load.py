"""The benchmark's load: payments sent at moments fixed in advance, over kept connections. Judges and starts nothing.

Open loop: a payment's latency counts from the moment at which the schedule wanted it sent, so neither a slow gateway
nor a slow client hides anything (no coordinated omission). `python -m bench.load --plan FILE --results FILE` runs one
load in a process of its own, whose CPU is accounted for apart. A connection carries one request at a time.
"""

import argparse
import asyncio
import random
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, cast

import httptools
import orjson
import uvloop

CONNECTIONS_MAX: Final = 1_000
DEADLINE_MS: Final = 10_000
TICK_MS: Final = 1


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What is sent. `begin_s`: a moment of the monotonic clock; `keys`: API keys by partner; `run`: names the keys."""

    host: str
    port: int
    keys: dict[str, str]
    per_second: float
    begin_s: float
    seconds: float
    seed: int = 1
    run: str = "run"

    def encode(self) -> bytes:
        """Give the plan as JSON."""
        return orjson.dumps(asdict(self))


@dataclass(slots=True)
class LoadResults:
    """What came back. Latencies in ms, in the order of the answers; `outcomes` counts "201 captured" and the like."""

    sent: int
    latencies_ms: list[float]
    outcomes: dict[str, int]
    last_answer_s: float
    late_ms_max: float  # how late this client itself sent a payment at worst

    @classmethod
    def read(cls, data: bytes) -> "LoadResults":
        """Read results from JSON."""
        return cls(**orjson.loads(data))


def schedule(plan: LoadPlan) -> list[tuple[float, str]]:
    """Fix when which partner pays: Poisson arrivals, the same for the same plan."""
    dice = random.Random(f"{plan.seed}/{plan.run}")
    partners = list(plan.keys)
    arrivals = []
    at_s = dice.expovariate(plan.per_second)
    while at_s < plan.seconds:
        arrivals.append((at_s, dice.choice(partners)))
        at_s += dice.expovariate(plan.per_second)
    return arrivals


class _Connection(asyncio.Protocol):
    """One kept connection; `done` hears of each whole answer, and of a connection that ended under its request."""

    def __init__(self, load: "Load") -> None:
        self._load = load
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""
        self.due_s: float | None = None

    def send(self, request: bytes, due_s: float) -> None:
        assert self.due_s is None, "one request at a time"
        assert self._transport is not None
        self.due_s = due_s
        self._transport.write(request)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._load.ended(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        body, self._body = self._body, b""
        due_s, self.due_s = self.due_s, None
        assert due_s is not None
        self._load.answered(self, self._parser.get_status_code(), body, due_s)


class Load:
    """One load under way."""

    def __init__(self, plan: LoadPlan) -> None:
        self._plan = plan
        self._heads = {
            partner: (
                f"POST /v1/payments HTTP/1.1\r\nHost: {plan.host}:{plan.port}\r\nAuthorization: Bearer {key}\r\n"
                "Content-Type: application/json\r\n"
            ).encode()
            for partner, key in plan.keys.items()
        }
        self._idle: list[_Connection] = []
        self._connections: set[_Connection] = set()
        self._opening = 0
        self._waiting: deque[tuple[bytes, float]] = deque()
        self._opens: set[asyncio.Task[None]] = set()
        self._outcomes: Counter[str] = Counter()
        self._latencies_ms: list[float] = []
        self._settled = 0
        self._last_answer_s = plan.begin_s
        self._late_ms_max = 0.0

    async def run(self) -> LoadResults:
        """Send the whole schedule and wait for its answers, at most DEADLINE_MS past its end."""
        plan = self._plan
        arrivals = deque(schedule(plan))
        number = 0
        while arrivals:
            now_s = time.monotonic() - plan.begin_s
            while arrivals and arrivals[0][0] <= now_s:
                at_s, partner = arrivals.popleft()
                number += 1
                self._late_ms_max = max(self._late_ms_max, (now_s - at_s) * 1_000)
                self._send(self._request(partner, number), plan.begin_s + at_s)
            if arrivals:
                await asyncio.sleep(max(arrivals[0][0] - now_s, TICK_MS / 1_000))
        end_s = time.monotonic() + DEADLINE_MS / 1_000
        while self._settled < number and time.monotonic() < end_s:  # noqa: ASYNC110 - bounded, and off the measure
            await asyncio.sleep(0.01)
        if number > self._settled:
            self._outcomes["no answer"] += number - self._settled
        results = LoadResults(
            number, self._latencies_ms, dict(self._outcomes), self._last_answer_s, round(self._late_ms_max, 1)
        )
        for connection in list(self._connections):
            connection.close()
        for task in self._opens:
            task.cancel()
        await asyncio.gather(*self._opens, return_exceptions=True)
        return results

    def answered(self, connection: _Connection, status: int, body: bytes, due_s: float) -> None:
        """Take one answer, and use its connection for the next payment."""
        now_s = time.monotonic()
        content = orjson.loads(body)
        word = content.get("status") if content.get("object") == "payment" else content.get("code")
        self._outcomes[f"{status} {word}"] += 1
        if status == 201:
            self._latencies_ms.append(round((now_s - due_s) * 1_000, 3))
        self._last_answer_s = now_s
        self._settled += 1
        self._use(connection)

    def ended(self, connection: _Connection) -> None:
        """Take note of a connection that is no more."""
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if connection.due_s is not None:
            self._outcomes["connection lost"] += 1
            self._settled += 1

    def _use(self, connection: _Connection) -> None:
        if self._waiting:
            connection.send(*self._waiting.popleft())
        else:
            self._idle.append(connection)

    def _send(self, request: bytes, due_s: float) -> None:
        if self._idle:
            self._idle.pop().send(request, due_s)
            return
        self._waiting.append((request, due_s))
        if len(self._connections) + self._opening < CONNECTIONS_MAX:
            self._opening += 1
            task = asyncio.create_task(self._open())
            self._opens.add(task)
            task.add_done_callback(self._opens.discard)

    async def _open(self) -> None:
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self), self._plan.host, self._plan.port
            )
        except OSError:
            self._outcomes["no connection"] += len(self._waiting)
            self._settled += len(self._waiting)
            self._waiting.clear()
            return
        finally:
            self._opening -= 1
        self._connections.add(connection)
        self._use(connection)

    def _request(self, partner: str, number: int) -> bytes:
        name = f"{self._plan.run}-{number}"
        body = b'{"amount":%d,"currency":"EUR","payment_method":"tok_approve","reference":"%b"}' % (
            1_000 + number % 100_000,
            name.encode(),
        )
        return self._heads[partner] + b"Idempotency-Key: %b\r\nContent-Length: %d\r\n\r\n%b" % (
            name.encode(),
            len(body),
            body,
        )


def main() -> None:
    """Run one load."""
    parser = argparse.ArgumentParser(description="Send one open-loop load of payments.")
    parser.add_argument("--plan", type=Path, required=True, help="JSON of a LoadPlan")
    parser.add_argument("--results", type=Path, required=True, help="where the LoadResults go, as JSON")
    arguments = parser.parse_args()
    load = Load(LoadPlan(**orjson.loads(arguments.plan.read_bytes())))
    results = uvloop.run(load.run())
    arguments.results.write_bytes(orjson.dumps(asdict(results)))


if __name__ == "__main__":
    main()
