"""The partner's actor: the imperative shell that serialises one partner. A plain asyncio class, without Ray.

It drains its bounded mailbox, decides each command in isolation, writes what they decided in one commit, then
answers: nothing leaves before the commit. What queues up behind a commit forms the next batch. Two commits an
operation: the intent, then the acquirer's word; between them the partner's other work goes on (settlement.py).
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager

import structlog

from actors import codec, keyspace, limits, metrics, rate_limit, reconciliation, rules
from actors.acquirer import Acquirer
from actors.acquirers import Acquirers
from actors.answers import Answer, RateState, Refused, outcome_unknown, unavailable
from actors.bulkheads import ALL_ON, Bulkhead
from actors.clock import Clock, PartnerTime, SystemClock
from actors.commands import CreatePayment, Envelope, ReconcileOperations, RecordChange, ResolveOperation
from actors.deciding import Deciding, told_of
from actors.errors import (
    ActorStoppedError,
    CommitUnknownError,
    ConflictError,
    FencedError,
    PartnerMovedError,
    StoreError,
    StoreUnavailableError,
)
from actors.mailbox import Ask, Effects, Expire, Item, Lost, Overdue, Result, Settled, Sweep, Told
from actors.payment import Operation, Payment
from actors.profile import Profile
from actors.records import OpenOperation
from actors.refusals import Refusal, RefusalCode
from actors.settlement import Settlement
from actors.staging import Draft, State
from actors.store import Check, Key, Range, Store
from actors.timers import Timers

log = structlog.get_logger()


class _WrongGuessError(Exception):
    """What was guessed to be absent has to be read."""


class PartnerActor:
    """One partner. `executing` is told which command is being decided, so that a deadly one can be found.

    `weighed` is entered while a batch is decided, so that what makes the process grow can be found.
    `on_out_of_memory` ends the process: it may hold other partners, and nobody can go on in it.
    """

    def __init__(  # noqa: PLR0913 - one call, by name
        self,
        profile: Profile,
        store: Store,
        acquirers: Mapping[str, Acquirer],
        *,
        clock: Clock | None = None,
        executing: Callable[[str], None] = lambda _: None,
        weighed: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
        on_stopped: Callable[[str], None] = lambda _: None,
        on_out_of_memory: Callable[[], None] = lambda: None,
        bulkheads_off: AbstractSet[Bulkhead] = ALL_ON,
    ) -> None:
        self.profile = profile
        self.store = store
        self.bulkheads_off = bulkheads_off
        self.acquirers = Acquirers(acquirers, bulkheads_off)
        self._weighed = weighed
        self.on_out_of_memory = on_out_of_memory
        self.epoch = 0
        self._clock = clock or SystemClock()
        self._time = PartnerTime(self._clock, 0)
        self._on_stopped = on_stopped
        self._state = State(rules.Standing())
        self._asks: deque[Ask] = deque()
        self._told: deque[Told | Overdue] = deque()
        self._woken: set[Expire | Sweep] = set()
        self._batch: list[Item] = []
        self._batches_to_read = 0
        self._door_epoch = 0
        self._work = asyncio.Event()
        self._waiters: dict[str, list[Ask]] = {}
        self._meters = metrics.Meters(profile.partner_id)
        self._deciding = Deciding(self, executing)
        self._settlement = Settlement(self, self._meters)
        self._timers = Timers(self)
        self._task: asyncio.Task[None] | None = None
        self._stopped: str | None = None
        self._log = log.bind(partner=profile.partner_id)

    # What the worker calls

    async def start(self, door_epoch: int) -> int:
        """Own the partner, load its head, resume what is open; give the epoch.

        Raises StoreError, and PartnerMovedError where the book is sealed because its partner moved away.
        """
        self._door_epoch = door_epoch
        await self._reacquire()
        self._task = asyncio.create_task(self._serve(), name=f"actor-{self.profile.partner_id}")
        self._timers.start()
        self._log.info("actor_started", epoch=self.epoch, open_operations=len(self._state.opens))
        return self.epoch

    async def ask(self, method: str, envelope: Envelope, budget_ms: int) -> Result:
        """Have a command decided and give its answer, by its deadline. Raises ActorStoppedError."""
        self._check_running()
        if len(self._asks) >= limits.MAILBOX_COMMANDS_MAX and Bulkhead.PARTNER_SHARE not in self.bulkheads_off:
            return Refused(Refusal(RefusalCode.MAILBOX_FULL, "The partner's mailbox is full.", retry_after_ms=1_000))
        if max(len(envelope.command_id), len(envelope.idempotency_key or "")) > limits.IDEMPOTENCY_KEY_CHARACTERS_MAX:
            return Refused(Refusal(RefusalCode.COMMAND_TOO_LARGE, "The idempotency key is too long."))
        loop = asyncio.get_running_loop()
        budget_ms = max(min(budget_ms, limits.COMMAND_DEADLINE_MS) - limits.ANSWER_MARGIN_MS, 0)
        ask = Ask(envelope, method, loop.create_future(), loop.time() + budget_ms / 1_000)
        self._asks.append(ask)
        self._work.set()
        result = await ask.future
        outcome = result.refusal.code if isinstance(result, Refused) else result.status
        self._meters.answered(method, outcome, time.monotonic() - ask.arrived)
        return result

    def configure(self, profile: Profile) -> None:
        """Take a newer profile; an older one is ignored."""
        assert profile.partner_id == self.profile.partner_id
        if profile.version > self.profile.version:
            self.profile = profile
            self._log.info("profile_taken", version=profile.version, status=profile.status)

    async def stop(self, why: str = "released") -> None:
        """Give the partner up: nothing is committed or asked after this. Open requests get ActorStoppedError."""
        self._stop(why)
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._settlement.stop()
        await self._timers.stop()
        await self.store.close()

    # What settlement, timers and queries see

    @property
    def opens(self) -> dict[str, OpenOperation]:
        """The operations whose outcome is to come."""
        return {key: value for key, value in self._state.opens.items() if value is not None}

    @property
    def standing(self) -> rules.Standing:
        """What is committed of the partner as a whole."""
        return self._state.standing

    @property
    def mailbox_depth(self) -> int:
        """How many commands wait."""
        return len(self._asks)

    def now_ms(self) -> int:
        """Give the partner's time."""
        return self._time.now_ms()

    def monotonic_ms(self) -> int:
        """Give the monotonic clock, for waits."""
        return self._clock.monotonic_ms()

    def cached_payment(self, payment_id: str) -> Payment | None:
        """Give a payment as it was committed last, if it is at hand."""
        return self._state.payments.get(payment_id)

    async def payment(self, payment_id: str) -> Payment | None:
        """Give a payment as it was committed last. Raises StoreError."""
        cached = self._state.payments.get(payment_id)
        if cached is not None:
            return cached
        data = (await self.store.read([keyspace.payment(payment_id)])).values[0]
        return None if data is None else codec.decode_payment(data)

    def tell(self, item: Told) -> None:
        """Put what came from the acquirer or a timer before the next batch."""
        if isinstance(item, Expire | Sweep):
            if item in self._woken:
                return  # timers tell again what was not dealt with yet
            self._woken.add(item)
        self._told.append(item)
        self._work.set()

    def rate_state(self) -> RateState:
        """Give the rate limit as it stands."""
        profile = self.profile
        left, reset_us = rate_limit.remaining(
            self._state.standing.arrival_us, self._time.now_ms() * 1_000, profile.rate_per_second, profile.rate_burst
        )
        return RateState(profile.rate_per_second, profile.rate_burst, left, -(-reset_us // 1_000))

    # The loop

    async def _serve(self) -> None:
        try:
            while True:
                await self._work.wait()
                self._batch = self._next_batch()
                if self._batch:
                    await self._process(self._batch)
                    self._woken.difference_update(item for item in self._batch if isinstance(item, Expire | Sweep))
                else:
                    self._work.clear()
        except FencedError as error:
            metrics.EPOCH_CONFLICTS.labels(self.profile.partner_id).inc()
            self._log.warning("actor_fenced", epoch=self.epoch, error=str(error))
            self._stop("fenced")
        except StoreError as error:
            self._log.exception("actor_lost_its_store", error=str(error))
            self._stop(f"store: {error}")
        except Exception as error:  # noqa: BLE001 - whatever it is, the partner is given up, not left hanging
            if isinstance(error, MemoryError):
                self.on_out_of_memory()
            self._log.exception("actor_failed")
            self._stop(f"bug: {error!r}")

    def _next_batch(self) -> list[Item]:
        batch: list[Item] = []
        while self._told and len(batch) < limits.BATCH_COMMANDS_MAX:
            batch.append(self._told.popleft())
        now = asyncio.get_running_loop().time()
        while self._asks and len(batch) < limits.BATCH_COMMANDS_MAX:
            ask = self._asks.popleft()
            if ask.deadline <= now and not ask.joined:
                ask.resolve(unavailable("The command waited past its deadline; nothing was written."))
            elif not ask.future.done():
                batch.append(ask)
        return batch

    async def _process(self, batch: list[Item]) -> None:
        unknown = False
        loop = asyncio.get_running_loop()
        # A store may take its time to say no: what waits for this batch is to be answered before its deadline.
        last_attempt_at = loop.time() + limits.COMMIT_RETRY_MS_MAX / 1_000
        for attempt in range(limits.COMMIT_ATTEMPTS_MAX):
            if attempt and loop.time() > last_attempt_at:
                break
            guessed: list[Key] = []
            try:
                guessed = await self._read_for(batch)
                with self._weighed():
                    draft, effects, decided = self._deciding.decide_all(self._state, batch)
                self._put_back(batch, decided)
                _require_written(guessed, draft)
                if draft.writes or draft.standing is not self._state.standing:
                    began = time.monotonic()
                    await self.store.commit([Check(key, None) for key in guessed], draft.mutations())
                    metrics.COMMIT_SECONDS.observe(time.monotonic() - began)
                    metrics.BATCH_COMMANDS.observe(len(batch))
            except (ConflictError, StoreUnavailableError, _WrongGuessError) as error:
                if guessed and not isinstance(error, StoreUnavailableError):
                    self._batches_to_read = limits.BATCHES_READ_AFTER_WRONG_GUESS
                else:
                    self._note_failure(error)
            except CommitUnknownError as error:
                unknown = True
                self._note_failure(error)
                # Only a new epoch makes sure that the lost transaction can't commit later.
                await self._reacquire()
            else:
                draft.adopt()
                self._let_out(effects, draft.due_ms)
                return
            finally:
                self._state.forget_answered()
        self._give_back(batch, unknown=unknown)

    def _note_failure(self, error: Exception) -> None:
        metrics.COMMIT_FAILURES.labels(self.profile.partner_id, type(error).__name__).inc()
        self._log.warning("commit_failed", error=f"{type(error).__name__}: {error}")

    async def _reacquire(self) -> None:
        ownership = await self.store.acquire(self._door_epoch)
        self.epoch = ownership.epoch
        await self._load()
        # A commit whose answer was lost may have begun operations, or ended some that commands wait for.
        self._settlement.follow(self._state.opens)
        for operation_id in [name for name in self._waiters if name not in self._state.opens]:
            self._asks.extendleft(self._waiters.pop(operation_id))

    def _give_back(self, batch: list[Item], *, unknown: bool) -> None:
        for item in batch:
            if isinstance(item, Ask):
                may_be_written = unknown or item.joined
                item.resolve(
                    outcome_unknown() if may_be_written else unavailable("The store does not take writes now.")
                )
            elif isinstance(item, Overdue):
                item.ask.resolve(outcome_unknown())
            elif isinstance(item, Settled | Lost):
                self.tell_later(item, limits.ACQUIRER_RETRY_DELAY_MS_MIN)

    def tell_later(self, item: Settled | Lost, delay_ms: int) -> None:
        """Tell again what could not be written: the acquirer's word is not lost. Timers look again by themselves."""
        loop = asyncio.get_running_loop()
        loop.call_later(delay_ms / 1_000, lambda: self.tell(item) if self._stopped is None else None)

    # Reading

    async def _load(self) -> None:
        opens: dict[str, OpenOperation | None] = {}
        begin: Key = ("open",)
        while True:
            page = Range(begin, ("open", keyspace.LAST), limits.STORE_RANGE_ROWS_MAX)
            snapshot = await self.store.read([keyspace.HEAD, keyspace.MOVED], [page])
            moved = snapshot.values[1]
            if moved is not None:
                raise PartnerMovedError(moved)
            rows = snapshot.ranges[0]
            for row in rows:
                opened = codec.decode_open(row.value)
                opens[opened.operation_id] = opened
            if len(rows) < limits.STORE_RANGE_ROWS_MAX:
                break
            begin = (*rows[-1].key, "")
        head = snapshot.values[0]
        standing = rules.Standing() if head is None else codec.decode_standing(head)
        self._state = State(standing, opens=opens)
        # One later than what is committed: ids of one millisecond rise within one owner only.
        floor_ms = max(standing.floor_ms + 1, self._time.now_ms() if self.epoch else 0)
        self._time = PartnerTime(self._clock, floor_ms)

    async def _read_for(self, batch: list[Item]) -> list[Key]:
        """Have at hand what the batch's decisions look at; give the idempotency records guessed to be absent.

        A new payment comes under a new key, so a batch of nothing else is decided without a read: its commit checks the
        guess. After a wrong one, some batches are read for, so that a flood of replays or refusals is decided once.
        """
        state = self._state
        self._trim(state)
        keys, row_keys, guesses = self._looked_at_by(batch)
        self._batches_to_read = max(self._batches_to_read - 1, 0)
        if not self._batches_to_read and not row_keys and len(guesses) == len(keys):
            for key in guesses:
                state.take_once(key, None)
            return guesses
        if keys or row_keys:
            wanted = list(keys)
            snapshot = await self.store.read(wanted + row_keys)
            state.rows = dict(zip(row_keys, snapshot.values[len(wanted) :], strict=True))
            for key, data in zip(wanted, snapshot.values, strict=False):
                name = keys[key]
                if name is None:
                    state.take_once(key, None if data is None else codec.decode_once(data))
                elif data is not None:
                    state.payments[name] = codec.decode_payment(data)
        return []

    def _looked_at_by(self, batch: list[Item]) -> tuple[dict[Key, str | None], list[Key], list[Key]]:
        """Give the keys to read (a payment's with its id), the raw rows, and which of the keys new payments bring."""
        state = self._state
        keys: dict[Key, str | None] = {}
        row_keys: list[Key] = []
        guesses: list[Key] = []
        for item in batch:
            if isinstance(item, Ask) and isinstance(item.envelope.command, ReconcileOperations):
                row_keys += reconciliation.keys_of(item.envelope.command)
                continue
            if isinstance(item, Ask) and isinstance(item.envelope.command, RecordChange):
                row_keys.append(keyspace.change(item.envelope.command.change_id))
                continue
            payment_id = self.payment_id_of(item)
            if payment_id is not None and payment_id not in state.payments:
                keys[keyspace.payment(payment_id)] = payment_id
            is_new = isinstance(item, Ask) and isinstance(item.envelope.command, CreatePayment)
            for once_key in self._once_keys_of(item):
                if once_key not in state.onces and once_key not in keys:
                    keys[once_key] = None
                    if is_new:
                        guesses.append(once_key)
        return keys, row_keys, guesses

    def payment_id_of(self, item: Item) -> str | None:
        """Give the payment that an item is about, where it is known; None for a new one."""
        if isinstance(item, Expire):
            return item.payment_id
        if isinstance(item, Ask):
            command = item.envelope.command
            if isinstance(command, CreatePayment | ReconcileOperations | RecordChange):
                return None
            if not isinstance(command, ResolveOperation):
                return command.payment_id
            operation_id = command.operation_id
        elif isinstance(item, Sweep):
            return None
        else:
            operation_id = item.operation_id
        opened = self._state.opens.get(operation_id)
        return None if opened is None else opened.payment_id

    def _once_keys_of(self, item: Item) -> list[Key]:
        keys = []
        operation_id = None
        if isinstance(item, Ask):
            keys.append(item.once_key)
            operation_id = told_of(item.envelope)
        elif isinstance(item, Settled | Overdue):
            operation_id = item.operation_id
        opened = None if operation_id is None else self._state.opens.get(operation_id)
        if opened is not None and opened.once_key is not None:
            keys.append(opened.once_key)
        return keys

    def _trim(self, state: State) -> None:
        """Keep the cache within its bound; idempotency records are read anew each time."""
        if len(state.payments) > limits.PAYMENTS_CACHED_MAX:
            held = {opened.payment_id for opened in state.opens.values() if opened is not None}
            for payment_id in list(state.payments)[: len(state.payments) - limits.PAYMENTS_CACHED_MAX // 2]:
                if payment_id not in held:
                    del state.payments[payment_id]

    def _put_back(self, batch: list[Item], index: int) -> None:
        """Leave the batch's items from `index` on to the next batch: they did not fit into this one."""
        for item in reversed(batch[index:]):
            if isinstance(item, Ask):
                self._asks.appendleft(item)
            else:
                self._told.appendleft(item)
        del batch[index:]

    # After the commit

    def _let_out(self, effects: Effects, due_ms: int | None) -> None:
        loop = asyncio.get_running_loop()
        for ask, result in effects.answers:
            ask.resolve(result)
        # Before those of this batch begin to wait: an operation may have been answered and confirmed in one batch.
        for operation, payment_id, answer in effects.settled:
            if not operation.is_open:
                self._settlement.forget(operation.id)
            asks = self._waiters.pop(operation.id, ())
            self._log_settled(operation, payment_id, asks)
            for ask in asks:
                assert answer is not None, f"somebody waits for {operation.id}, which nobody asked for"
                ask.resolve(Answer(answer.status, answer.body, answer.replayed, self.rate_state()))
        for event in effects.contradictions:
            self._log.error(
                "acquirer_contradicts", payment=event.payment_id, operation=event.operation_id, claim=event.claim
            )
        for ask, operation_id in effects.waiting:
            ask.joined = True
            if operation_id in self._state.opens:
                self._waiters.setdefault(operation_id, []).append(ask)
                ask.timer = loop.call_at(ask.deadline, self._overdue, ask, operation_id)
            elif any(operation_id == settled.id for settled, _, _ in effects.settled):
                # Joined a command whose outcome was committed in this very batch: it is known now.
                self._asks.appendleft(ask)
            else:
                raise FencedError(f"{operation_id} is open and was not begun here: another worker owns the partner")
        for operation_id in effects.started:
            self._settlement.pursue(operation_id)
        self._timers.look(due_ms)

    def _log_settled(self, operation: Operation, payment_id: str, asks: Sequence[Ask]) -> None:
        """Write the one line that every word on an operation gets; nobody's ids where nobody waited any more."""
        envelope = asks[0].envelope if asks else None
        self._log.info(
            "operation_settled" if operation.is_final else f"operation_{operation.state.value}",
            payment=payment_id,
            operation=operation.id,
            kind=operation.kind.value,
            state=operation.state.value,
            code=None if operation.failure is None else operation.failure.code,
            request_id=None if envelope is None else envelope.request_id,
            command_id=None if envelope is None else envelope.command_id,
        )

    def _overdue(self, ask: Ask, operation_id: str) -> None:
        if not ask.future.done() and self._stopped is None:
            self._told.append(Overdue(ask, operation_id))
            self._work.set()

    # The end

    def _check_running(self) -> None:
        if self._stopped is not None or self._task is None:
            raise ActorStoppedError(self._stopped or "not started")

    def _stop(self, why: str) -> None:
        if self._stopped is not None:
            return
        self._stopped = why
        error = ActorStoppedError(why)
        asks = [*self._asks, *(item for item in self._batch if isinstance(item, Ask))]
        asks += [ask for waiters in self._waiters.values() for ask in waiters]
        for ask in asks:
            if ask.timer is not None:
                ask.timer.cancel()
            if not ask.future.done():
                ask.future.set_exception(error)
        self._asks.clear()
        self._told.clear()
        self._waiters.clear()
        self._settlement.abandon()
        self._on_stopped(why)


def _require_written(guessed: list[Key], draft: Draft) -> None:
    """Raise _WrongGuessError where the commit would not check a guess: what was refused may have been a replay."""
    if any(key not in draft.onces for key in guessed):
        raise _WrongGuessError
