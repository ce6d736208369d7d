"""How an operation gets its outcome: slots, a circuit breaker, and asking again until the acquirer's word is final.

"Not found" is never final: a paused zombie may still send. So an operation is settled by performing its key again,
and after some attempts by closing the key at the acquirer first. Past the acquirer's retention of keys a person
decides (`bulkhead unknown`). Every operation under way has one task here; the task dies with the actor. An operation
that the acquirer accepted is asked for at a slow pace, for the case that its notification gets lost.
"""

import asyncio
import random
import time
from collections.abc import Collection
from typing import TYPE_CHECKING

import structlog

from actors import limits, metrics
from actors.acquirer import Accepted, Challenged, Instruction, Word
from actors.acquirers import Way
from actors.errors import AcquirerUnknownError, StoreError
from actors.mailbox import Lost, Settled
from actors.payment import Operation, OperationState, Payment
from actors.records import OpenOperation

if TYPE_CHECKING:
    from actors.partner import PartnerActor

log = structlog.get_logger()


class Settlement:
    """The acquirers' side of one partner's actor."""

    def __init__(self, actor: "PartnerActor", meters: metrics.Meters) -> None:
        self._actor = actor
        self._meters = meters
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._log = log.bind(partner=actor.profile.partner_id)

    def pursue(self, operation_id: str) -> None:
        """Begin to ask for an operation's outcome."""
        running = self._tasks.get(operation_id)
        if running is not None and not running.cancelling():
            return
        task = asyncio.create_task(self._pursue(operation_id), name=f"settle-{operation_id}")
        self._tasks[operation_id] = task
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        operation_id = task.get_name().removeprefix("settle-")
        if self._tasks.get(operation_id) is task:  # or another began as this one was being cancelled
            del self._tasks[operation_id]

    def forget(self, operation_id: str) -> None:
        """Stop asking: the outcome is known."""
        task = self._tasks.get(operation_id)
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    def follow(self, operation_ids: Collection[str]) -> None:
        """Ask for exactly these from now on."""
        for operation_id in list(self._tasks):
            if operation_id not in operation_ids:
                self.forget(operation_id)
        for operation_id in operation_ids:
            self.pursue(operation_id)

    def abandon(self) -> None:
        """Stop asking for everything: another worker resumes it."""
        for task in list(self._tasks.values()):
            task.cancel()

    async def stop(self) -> None:
        """End all that is under way and give back the connection."""
        self.abandon()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self._actor.acquirers.aclose()

    async def _pursue(self, operation_id: str) -> None:
        while True:
            try:
                opened, payment = await self._load(operation_id)
            except StoreError as error:
                self._log.warning("settlement_cannot_read", operation=operation_id, error=str(error))
                await self._pause(1)
            else:
                break
        if opened is None or payment is None:
            return
        way = self._actor.acquirers.way(payment.acquirer)
        way.pursued += 1
        try:
            await self._ask_until_final(way, opened, payment)
        finally:
            way.pursued -= 1

    async def _ask_until_final(self, way: Way, opened: OpenOperation, payment: Payment) -> None:
        operation_id = opened.operation_id
        instruction = instruction_of(self._actor.profile.partner_id, payment, operation_id)
        operation = payment.operation(operation_id)
        accepted = operation.state is OperationState.ACCEPTED
        attempts, polls = opened.attempts, 0
        while True:
            async with way.slots:
                # The slot first: who waited for one must still look at the breaker, and at the key's age, right before.
                await self._await_breaker(way)
                if needs_person(opened, self._actor.now_ms()):
                    break
                # What it accepted is never closed: there is nothing to find out, only to wait for.
                lost = attempts >= limits.ACQUIRER_ATTEMPTS_BEFORE_CLOSE and not accepted
                close = lost or operation.withdrawn is not None
                outcome = await self._attempt(way, payment.acquirer, instruction, operation, close=close)
            if isinstance(outcome, Accepted):
                if not accepted:
                    self._actor.tell(Settled(operation_id, outcome))
                accepted = True
                await self._pause_poll(polls)
                polls += 1
                continue
            if not isinstance(outcome, AcquirerUnknownError):
                self._actor.tell(Settled(operation_id, outcome, operation.confirmations))
                return
            attempts += 1
            self._actor.tell(Lost(operation_id, outcome.kind, attempts))
            await self._pause(attempts)
        # Also for one that was never asked: only what is unknown can be resolved.
        self._actor.tell(Lost(operation_id, "key_forgotten", attempts))
        self._log.error("operation_needs_person", operation=operation_id, payment=payment.id)

    async def _load(self, operation_id: str) -> tuple[OpenOperation | None, Payment | None]:
        opened = self._actor.opens.get(operation_id)
        if opened is None:
            return None, None
        return opened, await self._actor.payment(opened.payment_id)

    async def _attempt(
        self, way: Way, acquirer: str, instruction: Instruction, operation: Operation, *, close: bool
    ) -> Word | AcquirerUnknownError:
        breaker = way.breaker
        breaker.begin(self._actor.monotonic_ms())
        began = time.monotonic()
        outcome: Word | AcquirerUnknownError
        try:
            if close:
                outcome = await way.port.close_key(instruction, limits.ACQUIRER_TIMEOUT_MS)
            elif operation.confirmations:
                outcome = await way.port.confirm(instruction, limits.ACQUIRER_TIMEOUT_MS)
            else:
                outcome = await way.port.perform(instruction, limits.ACQUIRER_TIMEOUT_MS)
            if isinstance(outcome, Challenged) and instruction.original_key is not None:
                raise AcquirerUnknownError("malformed", f"a {instruction.kind} has no customer to ask")  # noqa: TRY301
        except AcquirerUnknownError as error:
            outcome = error
            breaker.fail(self._actor.monotonic_ms())
            self._log.info(
                "acquirer_gave_no_outcome", acquirer=acquirer, operation=instruction.key, kind=error.kind, closing=close
            )
        except asyncio.CancelledError:
            breaker.give_up()
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the operation is not left alone
            if isinstance(error, MemoryError):
                self._actor.on_out_of_memory()
            # A bug of the client: it may have sent, so the outcome is as unknown as after a time-out.
            outcome = AcquirerUnknownError("client_failed", repr(error))
            breaker.fail(self._actor.monotonic_ms())
            self._log.exception("acquirer_client_failed", operation=instruction.key)
        else:
            breaker.succeed()
        name = outcome.kind if isinstance(outcome, AcquirerUnknownError) else type(outcome).__name__.lower()
        self._meters.asked_acquirer(acquirer, instruction.kind, name, time.monotonic() - began)
        return outcome

    async def _await_breaker(self, way: Way) -> None:
        while not way.breaker.allows(self._actor.monotonic_ms()):  # noqa: ASYNC110 - it waits for time
            await asyncio.sleep(limits.BREAKER_OPEN_MS / 2_000 * random.uniform(0.5, 1.5))  # noqa: S311 - jitter

    async def _pause(self, attempts: int) -> None:
        delay_ms = min(limits.ACQUIRER_RETRY_DELAY_MS_MIN << min(attempts, 20), limits.ACQUIRER_RETRY_DELAY_MS_MAX)
        await asyncio.sleep(delay_ms / 1_000 * random.uniform(0.5, 1.0))  # noqa: S311 - jitter

    async def _pause_poll(self, polls: int) -> None:
        delay_ms = min(limits.ACQUIRER_POLL_DELAY_MS_MIN << min(polls, 20), limits.ACQUIRER_POLL_DELAY_MS_MAX)
        await asyncio.sleep(delay_ms / 1_000 * random.uniform(0.5, 1.0))  # noqa: S311 - jitter


def needs_person(opened: OpenOperation, now_ms: int) -> bool:
    """Say whether the acquirer may have forgotten the operation's key, so that asking again could charge twice."""
    return now_ms - opened.first_asked_ms >= limits.ACQUIRER_KEY_RETENTION_MS


def instruction_of(partner_id: str, payment: Payment, operation_id: str) -> Instruction:
    """Give what the acquirer is told. The same operation always gives the same instruction."""
    operation = payment.operation(operation_id)
    original = payment.first.id
    return Instruction(
        operation.id,
        partner_id,
        operation.kind.value,
        operation.amount,
        payment.currency,
        payment.payment_method,
        None if operation.id == original else original,
    )
