"""A process that is one partner's actor over a book and a real acquirer, for tests that stop it in mid-payment.

python -m tests.actor_process MODE PLACE [ACQUIRER_URL]: it writes a JSON line per step. PLACE is where the book stands,
as JSON (stores.shelf). MODE is `pay-and-stop` (makes a
payment and raises SIGSTOP on itself right before it asks the acquirer), `perform` (takes the partner over and settles
what is open), `close` (likewise, but its calls to perform never get out, so that it closes the key), `create`
(makes the book) or `read` (owns nothing and tells what is in it).
"""

import asyncio
import json
import os
import signal
import sys

import structlog

from actors import codec, keyspace
from actors.acquirer import (
    Accepted,
    Acquirer,
    Approved,
    Challenged,
    Declined,
    Instruction,
    NeverPerformed,
)
from actors.commands import CreatePayment, Envelope
from actors.errors import AcquirerUnknownError, ActorStoppedError
from actors.partner import PartnerActor
from actors.profile import MAIN_ACQUIRER, Profile
from actors.store import Range
from cells.http_acquirer import HttpAcquirer
from cells.http_client import HttpClient
from stores.shelf import Shelf, open_shelf

PARTNER = "acme"
BOOK = ("partners", PARTNER)
COMMAND_ID = "01M8000000000000000000000Z"
Word = Approved | Declined | Challenged | Accepted
COMMAND = CreatePayment(1_250, "EUR", "tok_approve", reference="order-1001")


class StopBefore:
    """An acquirer before which the whole process stops, as if its machine had been suspended."""

    def __init__(self, inner: Acquirer) -> None:
        self._inner = inner

    async def confirm(self, instruction: Instruction, timeout_ms: int) -> Word:
        return await self._inner.confirm(instruction, timeout_ms)

    async def perform(self, instruction: Instruction, timeout_ms: int) -> Word:
        say({"step": "stopping", "key": instruction.key})
        os.kill(os.getpid(), signal.SIGSTOP)
        outcome = await self._inner.perform(instruction, timeout_ms)
        say({"step": "performed", "outcome": repr(outcome)})
        return outcome

    async def close_key(self, instruction: Instruction, timeout_ms: int) -> Approved | Declined | NeverPerformed:
        return await self._inner.close_key(instruction, timeout_ms)

    async def aclose(self) -> None:
        await self._inner.aclose()


class NothingGetsOut:
    """An acquirer whose performing calls are lost on the way there; closing a key gets through."""

    def __init__(self, inner: Acquirer) -> None:
        self._inner = inner

    async def confirm(self, instruction: Instruction, timeout_ms: int) -> Word:
        return await self._inner.confirm(instruction, timeout_ms)

    async def perform(self, instruction: Instruction, timeout_ms: int) -> Word:
        raise AcquirerUnknownError("lost", "it never got out")

    async def close_key(self, instruction: Instruction, timeout_ms: int) -> Approved | Declined | NeverPerformed:
        outcome = await self._inner.close_key(instruction, timeout_ms)
        say({"step": "closed", "outcome": repr(outcome)})
        return outcome

    async def aclose(self) -> None:
        await self._inner.aclose()


def say(fields: dict[str, object]) -> None:
    """Tell the test, at once."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


async def run(mode: str, shelf: Shelf, url: str) -> None:
    """Be the actor."""
    client = HttpClient()
    inner = HttpAcquirer(client, url, PARTNER)
    acquirer: Acquirer = {"pay-and-stop": StopBefore, "perform": lambda one: one, "close": NothingGetsOut}[mode](inner)
    store = await shelf.open(*BOOK)
    stopped: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    actor = PartnerActor(Profile(PARTNER, 1), store, {MAIN_ACQUIRER: acquirer}, on_stopped=stopped.set_result)
    epoch = await actor.start(1)
    say({"step": "started", "epoch": epoch, "open": list(actor.opens)})
    # The takeover is told of the same command, as a door does; it joins the intent that it finds.
    envelope = Envelope(COMMAND_ID, "req_1", COMMAND, "order-1001", b"fingerprint")
    try:
        result = await actor.ask("create_payment", envelope, 8_000)
    except ActorStoppedError:
        say({"step": "stopped", "why": await stopped})
    else:
        say({"step": "answered", "result": repr(result)})
    await actor.stop("done")
    await client.aclose()


async def create(shelf: Shelf) -> None:
    """Make the book."""
    await shelf.create(*BOOK)
    say({"step": "created"})


async def read(shelf: Shelf) -> None:
    """Tell what the book has, without owning it."""
    store = await shelf.open(*BOOK)
    journal = Range(("journal", 0), ("journal", keyspace.LAST_NUMBER), 1_000)
    payments = Range(("payment", ""), ("payment", keyspace.LAST), 1_000)
    found = await store.read([], [journal, payments])
    await store.close()
    epochs = [codec.decode_entry(row.value).epoch for row in found.ranges[0]]
    statuses = [codec.decode_payment(row.value).status.value for row in found.ranges[1]]
    raw = [entry.value.hex() for rows in found.ranges for entry in rows]
    say({"step": "read", "epochs": epochs, "statuses": statuses, "raw": raw})


async def main(mode: str, place: str, *rest: str) -> None:
    """Do what is asked."""
    shelf = open_shelf(json.loads(place))
    match mode:
        case "create":
            await create(shelf)
        case "read":
            await read(shelf)
        case _:
            await run(mode, shelf, rest[0])


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(main(*sys.argv[1:]))
