"""Open-loop load over HTTP: journeys begin when their schedule says, whatever the gateway does. Judges nothing.

The client repeats nothing by itself. `repeat_unanswered` is what a partner does after a disaster: the same calls again
under the same keys. `python -m chaos.workload --plan FILE --history FILE` runs a load in a process of its own.
"""

import argparse
import asyncio
import random
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson
import uvloop

from chaos import history, limits
from chaos.history import Call
from chaos.scenarios import MIXES, Content, Maker, Scenario, Step, calls_per_journey

_ANSWERS_THAT_MEAN_AGAIN: Final = frozenset({409, 429, 503})
_CODES_THAT_MEAN_AGAIN: Final = frozenset(
    {
        "idempotency_key_in_use",
        "payment_processing",
        "rate_limited",
        "cpu_budget_exhausted",
        "too_many_reads",
        "too_many_in_flight",
        "mailbox_full",
        "cell_overloaded",
        "worker_overloaded",
        "acquirer_unavailable",
        "partner_unavailable",
        "partner_moved",
        "outcome_unknown",
        "overloaded",
        "not_ready",
    }
)


@dataclass(frozen=True, slots=True)
class PartnerLoad:
    """One partner's share of a load."""

    partner: str
    api_key: str
    requests_per_second: float


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole load. `run` names it in keys and references; each of its payments has an amount from `first_amount` on.

    `begin_s` is a moment of the monotonic clock, `seconds` how long journeys begin. `series`: what the schedule is
    drawn for, where a run that has another name is to have the same one.
    """

    run: str
    base_url: str
    seed: int
    begin_s: float
    seconds: float
    partners: tuple[PartnerLoad, ...]
    mix: str = "mixed"
    first_amount: int = 1_000
    series: str = ""

    @property
    def dice_name(self) -> str:
        """What seeds its dice, beside the seed."""
        return self.series or self.run

    @classmethod
    def read(cls, data: bytes) -> "Plan":
        """Read a plan from JSON."""
        fields = orjson.loads(data)
        partners = tuple(PartnerLoad(**partner) for partner in fields.pop("partners"))
        return cls(partners=partners, **fields)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One journey of the schedule. `at_s` counts from the load's begin."""

    at_s: float
    partner: str
    scenario: str
    number: int


def schedule(plan: Plan) -> list[Arrival]:
    """Fix when which journey begins: Poisson arrivals for each partner, the same for the same plan."""
    mix = MIXES[plan.mix]
    per_journey = calls_per_journey(mix)
    arrivals: list[Arrival] = []
    for load in plan.partners:
        dice = random.Random(f"{plan.seed}/{plan.dice_name}/{load.partner}")
        rate = load.requests_per_second / per_journey
        at_s = dice.expovariate(rate) if rate else plan.seconds
        number = 0
        while at_s < plan.seconds:
            name = dice.choices(list(mix), [scenario.weight for scenario in mix.values()])[0]
            arrivals.append(Arrival(at_s, load.partner, name, number))
            number += 1
            at_s += dice.expovariate(rate)
    assert len(arrivals) <= limits.JOURNEYS_PLANNED_MAX, "a load too large for one client"
    return sorted(arrivals, key=lambda arrival: (arrival.at_s, arrival.partner))


def client_session() -> aiohttp.ClientSession:
    """Make a session that never queues, never repeats and never redirects. Call it inside the event loop."""
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=limits.CLIENT_DEADLINE_MS / 1_000),
        trust_env=False,
    )
    # aiohttp would send a GET again by itself where a kept connection turns out to be closed.
    session._retry_connection = False  # noqa: SLF001 - there is no public way to say so
    return session


async def send(session: aiohttp.ClientSession, base_url: str, api_key: str, call: Call) -> None:
    """Send one call, once, and note what came of it."""
    headers = {"Authorization": f"Bearer {api_key}"}
    if call.key is not None:
        headers["Idempotency-Key"] = call.key
    if call.body:
        headers["Content-Type"] = "application/json"
    call.sent_s = time.monotonic()
    try:
        async with session.request(
            call.method, base_url + call.path, data=call.body or None, headers=headers, allow_redirects=False
        ) as response:
            call.answer = await response.read()
            call.answered_s = time.monotonic()
            call.status = response.status
            call.replayed = response.headers.get("Idempotent-Replayed") == "true"
            call.retry_after = response.headers.get("Retry-After")
    except TimeoutError:
        call.error = f"no answer within {limits.CLIENT_DEADLINE_MS} ms"
    except (aiohttp.ClientError, OSError) as error:
        call.error = f"{type(error).__name__}: {error}"
    if call.error is not None:
        call.answered_s, call.status = None, None  # it began to come, and did not come whole
        call.failed_s = time.monotonic()


async def send_one(base_url: str, api_key: str, call: Call) -> None:
    """Send one call by itself; whatever comes of it stands in it."""
    async with client_session() as session:
        await send(session, base_url, api_key, call)


@dataclass(slots=True)
class Counts:
    """One partner's figures while a load is under way, for a person who watches. `errors`: not what was expected."""

    answered: int = 0
    acknowledged: int = 0
    refused_429: int = 0
    errors: int = 0
    slowest_ms: float = 0

    def add(self, call: Call) -> None:
        """Count one call that came to its end."""
        self.answered += call.status is not None
        self.acknowledged += call.acknowledged
        self.refused_429 += call.status == 429
        self.errors += call.status != 429 and call.outcome not in call.expected
        if call.usual and call.latency_ms is not None:
            self.slowest_ms = max(self.slowest_ms, call.latency_ms)


class Load:
    """One load under way. `calls` holds every call that was sent, from the moment it is sent."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.calls: list[Call] = []
        self._keys = {load.partner: load.api_key for load in plan.partners}
        self._mix: dict[str, Scenario] = MIXES[plan.mix]
        self._counts = {load.partner: Counts() for load in plan.partners}
        self._journeys: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Let no further call begin."""
        self._stopped.set()

    def take_counts(self) -> dict[str, dict[str, float]]:
        """Give each partner's figures so far; `slowest_ms` begins anew with each look."""
        rows = {partner: asdict(counts) for partner, counts in self._counts.items()}
        for counts in self._counts.values():
            counts.slowest_ms = 0
        return rows

    async def run(self) -> list[Call]:
        """Run the whole schedule; give the history. Raises RuntimeError where this client itself can't keep up."""
        async with client_session() as session:
            try:
                await self._begin_all(session)
            finally:
                # Interrupted: nobody waits for them, and their session is closed next.
                open_still = list(self._journeys)
                for task in open_still:
                    task.cancel()
                await asyncio.gather(*open_still, return_exceptions=True)
        return self.calls

    async def _begin_all(self, session: aiohttp.ClientSession) -> None:
        """Begin each journey at its time, and wait for their ends."""
        for arrival in schedule(self.plan):
            due_s = self.plan.begin_s + arrival.at_s
            if await self._stopped_until(due_s):
                break
            if len(self._journeys) >= limits.JOURNEYS_OPEN_MAX:
                raise RuntimeError(f"{limits.JOURNEYS_OPEN_MAX} journeys are open: this client can't keep up")
            task = asyncio.create_task(self._travel(session, arrival, due_s))
            self._journeys.add(task)
            task.add_done_callback(self._journeys.discard)
        if self._journeys:
            ended, open_still = await asyncio.wait(self._journeys, timeout=limits.JOURNEYS_END_MS_MAX / 1_000)
            for task in open_still:
                task.cancel()
            await asyncio.gather(*ended)  # a bug in a journey is told, not lost
            assert not open_still, "a journey outlived the deadlines of all its calls"

    async def _travel(self, session: aiohttp.ClientSession, arrival: Arrival, due_s: float) -> None:
        plan = self.plan
        name = f"{plan.run}-{arrival.number}"
        dice = random.Random(f"{plan.seed}/{plan.dice_name}/{arrival.partner}/{arrival.number}")
        journey = self._mix[arrival.scenario].make(Maker(name, plan.first_amount + arrival.number, dice))
        try:
            step = next(journey)
            while True:
                due_s += step.pause_ms / 1_000
                if await self._stopped_until(due_s):
                    return
                call = _call(plan.run, arrival.partner, arrival.scenario, step, due_s)
                self.calls.append(call)
                await send(session, plan.base_url, self._keys[arrival.partner], call)
                self._counts[arrival.partner].add(call)
                content: Content | None = None
                if call.acknowledged and call.outcome in step.expected and call.status != 202:
                    content = call.content()
                if call.answered_s is None:
                    return  # this client does not know what became of it, so it does not go on
                step = journey.send(content)
                due_s = max(due_s, call.answered_s)
        except StopIteration:
            return

    async def _stopped_until(self, due_s: float) -> bool:
        """Wait until then; say whether the load was stopped before."""
        wait_s = due_s - time.monotonic()
        if wait_s > 0 and not self._stopped.is_set():
            try:
                async with asyncio.timeout(wait_s):
                    await self._stopped.wait()
            except TimeoutError:
                return False
        return self._stopped.is_set()


def _call(run: str, partner: str, scenario: str, step: Step, due_s: float) -> Call:
    return Call(
        run=run,
        partner=partner,
        scenario=scenario,
        step=step.name,
        method=step.method,
        path=step.path,
        key=step.key,
        body=step.body,
        expected=step.expected,
        usual=step.usual,
        due_s=due_s,
    )


async def repeat_unanswered(
    calls: Iterable[Call],
    base_url: str,
    api_keys: dict[str, str],
    *,
    delay_ms: int = limits.REPEAT_DELAY_MS,
    repeats_max: int = limits.REPEATS_MAX,
) -> list[Call]:
    """Repeat every write that was not answered, under its own key, until it has a final answer; give the repeats.

    What is answered with "again later" is repeated too, at most `repeats_max` times.
    """
    slots = asyncio.Semaphore(limits.REPEATS_AT_ONCE_MAX)
    repeats: list[Call] = []

    async def one(session: aiohttp.ClientSession, first: Call) -> None:
        for number in range(1, repeats_max + 1):
            call = first.anew(time.monotonic(), number)
            repeats.append(call)
            async with slots:
                await send(session, base_url, api_keys[call.partner], call)
            if not means_again(call):
                return
            await asyncio.sleep(delay_ms / 1_000)

    async with client_session() as session:
        await asyncio.gather(*(one(session, call) for call in calls if call.key is not None and means_again(call)))
    return repeats


def means_again(call: Call) -> bool:
    """Say whether the call has no answer yet, or one that says to ask again."""
    if call.status is None:
        return True
    outcome = call.outcome
    assert outcome is not None
    return outcome.status in _ANSWERS_THAT_MEAN_AGAIN and outcome.word in _CODES_THAT_MEAN_AGAIN


def is_left_open(call: Call) -> bool:
    """Say whether its client can't know whether the call was carried out."""
    return call.outcome is None or call.outcome.word == "outcome_unknown"


class BookError(Exception):
    """A partner's payments can't be read; the message says what was answered."""


async def read_book(base_url: str, api_key: str) -> list[dict[str, Any]]:
    """Read all of a partner's payments through the API, page by page. Raises BookError where it can't be read."""
    payments: list[dict[str, Any]] = []
    async with client_session() as session:
        after = ""
        for _ in range(limits.BOOK_PAGES_MAX):
            headers = {"Authorization": f"Bearer {api_key}"}
            async with session.get(f"{base_url}/v1/payments?limit=100{after}", headers=headers) as response:
                page = orjson.loads(await response.read())
                if response.status != 200:
                    raise BookError(f"a list of payments was answered with {response.status}: {page}")
            payments += page["data"]
            if not page["has_more"]:
                return payments
            after = f"&starting_after={page['next_starting_after']}"
    raise BookError(f"a book has more than {limits.BOOK_PAGES_MAX} pages")


async def _report(load: Load) -> None:
    while True:
        await asyncio.sleep(limits.PROGRESS_INTERVAL_MS / 1_000)
        sys.stdout.buffer.write(orjson.dumps(load.take_counts()) + b"\n")
        sys.stdout.buffer.flush()


async def _run(plan: Plan, history_file: Path) -> None:
    load = Load(plan)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, load.stop)
    reporting = asyncio.create_task(_report(load))
    try:
        await load.run()
    finally:
        reporting.cancel()
        await asyncio.gather(reporting, return_exceptions=True)
        history.save(load.calls, history_file)


def plan_json(plan: Plan) -> bytes:
    """Give a plan as JSON."""
    return orjson.dumps(asdict(plan))


def main() -> None:
    """Run one load."""
    parser = argparse.ArgumentParser(description="Run one load against a gateway.")
    parser.add_argument("--plan", type=Path, required=True, help="JSON, as chaos.demo writes it")
    parser.add_argument("--history", type=Path, required=True, help="where the history goes, as JSON lines")
    arguments = parser.parse_args()
    uvloop.run(_run(Plan.read(arguments.plan.read_bytes()), arguments.history))


if __name__ == "__main__":
    main()
