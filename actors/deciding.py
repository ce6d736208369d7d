"""What each item of a batch leads to: commands, the acquirer's words, timers. Synchronous; touches no store.

Each is decided in isolation, in a draft of its own, by the rules; an exception, a too-large write or a refusal takes
only its own command out. What comes of it is let out by the actor (partner.py) after the commit.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from actors import codec, keyspace, limits, reconciliation, rules, views
from actors.answers import Answer, Refused
from actors.commands import Envelope, Notification, ReconcileOperations, RecordChange, ResolveOperation
from actors.events import AcquirerContradicted, PartnerChanged
from actors.ids import IdMint
from actors.mailbox import Ask, Effects, Expire, Item, Lost, Overdue, Settled, Sweep
from actors.payment import OperationState, Payment
from actors.records import JournalEntry, Once, Reconciled
from actors.refusals import Refusal, RefusalCode
from actors.staging import Draft, State, TooLargeError, outcome_answer
from actors.store import Key

if TYPE_CHECKING:
    from actors.partner import PartnerActor

log = structlog.get_logger()

# What does not ask for something new but tells what became of something.
_TELLING = ResolveOperation | Notification


class Deciding:
    """The deciding part of one partner's actor. `executing` is told which command is being decided."""

    def __init__(self, actor: "PartnerActor", executing: Callable[[str], None]) -> None:
        self._actor = actor
        self._executing = executing
        self._mint = IdMint()
        self._log = log.bind(partner=actor.profile.partner_id)

    def decide_all(self, state: State, batch: list[Item]) -> tuple[Draft, Effects, int]:
        """Decide the batch's items on top of `state`; give the changes, what they let out, and how many fitted."""
        whole = Draft(state)
        effects = Effects()
        now_ms = self._actor.now_ms()
        decided = len(batch)
        size_bytes = 0
        for index, item in enumerate(batch):
            draft = Draft(whole)
            own = Effects()
            try:
                if isinstance(item, Ask):
                    self._executing(item.envelope.command_id)
                self._decide_one(draft, own, item, now_ms)
            except TooLargeError as error:
                self._leave_out(effects, item, RefusalCode.COMMAND_TOO_LARGE, str(error))
                continue
            except MemoryError:
                self._actor.on_out_of_memory()  # now, while it is this command that is being decided
                raise
            except Exception as error:  # noqa: BLE001 - a bug in the rules takes its own command out, nobody else's
                self._log.exception("command_failed", item=type(item).__name__)
                self._leave_out(effects, item, RefusalCode.INTERNAL_ERROR, type(error).__name__)
                continue
            size_bytes += draft.size_bytes()
            if index and size_bytes > limits.BATCH_BYTES_MAX:
                decided = index
                break
            draft.merge()
            effects.answers += own.answers
            effects.started += own.started
            effects.settled += own.settled
            effects.contradictions += own.contradictions
            effects.waiting += own.waiting
        self._executing("")
        return whole, effects, decided

    def _leave_out(self, effects: Effects, item: Item, code: RefusalCode, detail: str) -> None:
        if isinstance(item, Ask | Overdue):
            ask = item if isinstance(item, Ask) else item.ask
            effects.answers.append((ask, Refused(Refusal(code, f"The command was not taken: {detail}."))))
        elif isinstance(item, Settled | Lost):
            self._actor.tell_later(item, limits.ACQUIRER_RETRY_DELAY_MS_MAX)

    def _decide_one(self, draft: Draft, effects: Effects, item: Item, now_ms: int) -> None:
        match item:
            case Ask():
                self._decide_ask(draft, effects, item, now_ms)
            case Settled():
                self._decide_settled(draft, effects, item, now_ms)
            case Lost():
                self._decide_lost(draft, item, now_ms)
            case Overdue():
                self._decide_overdue(draft, effects, item)
            case Expire():
                self._decide_expire(draft, effects, item, now_ms)
            case Sweep() if item.after_sequence == draft.standing.swept_sequence:
                for key in item.once_keys:
                    draft.clear(key)
                draft.standing = replace(draft.standing, swept_sequence=item.swept_sequence)

    def _decide_ask(self, draft: Draft, effects: Effects, ask: Ask, now_ms: int) -> None:
        envelope = ask.envelope
        if isinstance(envelope.command, ReconcileOperations):
            self._decide_reconcile(draft, effects, ask, envelope.command, now_ms)
            return
        if isinstance(envelope.command, RecordChange):
            self._decide_change(draft, effects, ask, envelope.command, now_ms)
            return
        once_key = ask.once_key
        once = draft.once(once_key)
        if once is not None:
            self._decide_again(effects, ask, once)
            return
        payment_id = self._actor.payment_id_of(ask)
        payment = None if payment_id is None else draft.payment(payment_id)
        told_id = told_of(envelope)
        opened = None if told_id is None else draft.open(told_id)
        ids = self._mint.ids(now_ms)
        decision = rules.decide(
            self._actor.profile,
            draft.standing,
            payment,
            envelope.command,
            now_ms,
            ids,
            acquirer=self._acquirer_for(payment),
            bulkheads_off=self._actor.bulkheads_off,
        )
        if isinstance(decision, Refusal):
            effects.answers.append((ask, Refused(decision, self._actor.rate_state())))
            return
        if not decision.events:  # a notification of what is known
            effects.answers.append((ask, Answer(200, views.render_acknowledgement())))
            return
        after = draft.record(
            decision.events,
            payment_id=ids.payment_id if payment is None else payment.id,
            now_ms=now_ms,
            cause=envelope.command_id,
            request_id=envelope.request_id,
            epoch=self._actor.epoch,
            once_key=once_key,
            arrival_us=decision.arrival_us,
        )
        operation_id = told_id or next(iter(draft.opens))  # the one that the command set going
        draft.put_once(once_key, Once(envelope.command_id, envelope.fingerprint, after.id, operation_id, now_ms))
        if told_id is not None:
            assert payment is not None, f"{told_id} is told of without its payment"
            if not payment.operation(told_id).is_final and after.operation(told_id).is_final:
                self._answer_settled(draft, effects, after, told_id, None if opened is None else opened.once_key)
            effects.contradictions += [e for e in decision.events if isinstance(e, AcquirerContradicted)]
            resolved = isinstance(envelope.command, ResolveOperation)
            body = views.render_payment(after, self._actor.profile.mode) if resolved else views.render_acknowledgement()
            effects.answers.append((ask, draft.answer(once_key, Answer(200, body))))
            return
        effects.started.append(operation_id)
        effects.waiting.append((ask, operation_id))

    def _acquirer_for(self, payment: Payment | None) -> str | None:
        """Give the acquirer to be asked: a payment's own for ever, for a new one a choice. None: it does not answer."""
        acquirers, now_ms = self._actor.acquirers, self._actor.monotonic_ms()
        if payment is None:
            return acquirers.choose(self._actor.profile.choices, now_ms)
        return payment.acquirer if acquirers.allows(payment.acquirer, now_ms) else None

    def _decide_again(self, effects: Effects, ask: Ask, once: Once) -> None:
        envelope = ask.envelope
        if once.fingerprint != envelope.fingerprint:
            refusal = Refusal(
                RefusalCode.IDEMPOTENCY_KEY_REUSED,
                "This idempotency key was used for another request; take a new key for a new request.",
            )
            effects.answers.append((ask, Refused(refusal)))
        elif once.status is not None:
            replayed = once.command_id != envelope.command_id
            effects.answers.append((ask, Answer(once.status, once.body, replayed)))
        elif once.command_id == envelope.command_id:
            effects.waiting.append((ask, once.operation_id))
        else:
            refusal = Refusal(
                RefusalCode.IDEMPOTENCY_KEY_IN_USE,
                "The first request with this idempotency key is still under way.",
                retry_after_ms=1_000,
            )
            effects.answers.append((ask, Refused(refusal)))

    def _decide_reconcile(
        self, draft: Draft, effects: Effects, ask: Ask, command: ReconcileOperations, now_ms: int
    ) -> None:
        """Post rows of a settlement file. Each operation's row makes it happen once, so no answer need be kept."""

        def payment_of(payment_id: str) -> Payment | None:
            cached = draft.payment(payment_id)
            data = None if cached is not None else draft.row(keyspace.payment(payment_id))
            return cached if data is None else codec.decode_payment(data)

        def known_of(operation_id: str) -> Reconciled | None:
            data = draft.row(keyspace.reconciled(operation_id))
            return None if data is None else codec.decode_reconciled(data)

        findings = reconciliation.compare(command, payment_of, known_of)
        posted = reconciliation.to_post(command, findings, now_ms)
        if posted:
            cause = f"settlement:{command.file}:{command.operator}"
            draft.record_reconciled(
                posted,
                entry=JournalEntry(
                    draft.standing.sequence + 1, now_ms, cause, ask.envelope.request_id, self._actor.epoch, (), ()
                ),
            )
        effects.answers.append((ask, Answer(200, reconciliation.render(findings))))

    def _decide_change(self, draft: Draft, effects: Effects, ask: Ask, command: RecordChange, now_ms: int) -> None:
        """Write down what an operator changed. The change's row makes it happen once, however often it is told."""
        if draft.row(keyspace.change(command.change_id)) is None:
            event = PartnerChanged(command.change_id, command.what, command.at_ms, command.detail)
            sequence, cause = draft.standing.sequence + 1, f"operator:{command.change_id}"
            entry = JournalEntry(sequence, now_ms, cause, ask.envelope.request_id, self._actor.epoch, (), ())
            draft.record_change(event, entry=entry)
        effects.answers.append((ask, Answer(200, views.render_acknowledgement())))

    def _decide_settled(self, draft: Draft, effects: Effects, item: Settled, now_ms: int) -> None:
        opened = draft.open(item.operation_id)
        if opened is None:
            return  # known already: a person, a notification or an earlier word was first
        payment = draft.payment(opened.payment_id)
        assert payment is not None, f"{item.operation_id} is open without its payment"
        events = rules.settle(self._actor.profile, payment, item.operation_id, item.outcome, now_ms, item.confirmations)
        after = payment
        if events:
            after = draft.record(
                events,
                payment_id=payment.id,
                now_ms=now_ms,
                cause=f"acquirer:{item.operation_id}",
                request_id="",
                epoch=self._actor.epoch,
            )
        elif payment.operation(item.operation_id).state is not OperationState.ACCEPTED:
            return  # an old word, of before the operation was confirmed: the new one is on its way
        # Also where its acceptance is known already: the commit of it may have lost the answers to who waited.
        self._answer_settled(draft, effects, after, item.operation_id, opened.once_key)

    def _answer_settled(
        self, draft: Draft, effects: Effects, payment: Payment, operation_id: str, once_key: Key | None
    ) -> None:
        """Keep the answer to the command that set the operation going; what was kept first is what all are told."""
        answer = None
        if once_key is not None:
            answer = draft.answer(once_key, outcome_answer(payment, operation_id, self._actor.profile.mode))
        effects.settled.append((payment.operation(operation_id), payment.id, answer))

    def _decide_lost(self, draft: Draft, item: Lost, now_ms: int) -> None:
        opened = draft.open(item.operation_id)
        if opened is None:
            return
        payment = draft.payment(opened.payment_id)
        assert payment is not None, f"{item.operation_id} is open without its payment"
        draft.put_open(replace(opened, attempts=max(opened.attempts, item.attempts)))
        events = rules.lose(payment, item.operation_id, item.why, now_ms)
        if events:
            draft.record(
                events,
                payment_id=payment.id,
                now_ms=now_ms,
                cause=f"acquirer:{item.operation_id}",
                request_id="",
                epoch=self._actor.epoch,
            )

    def _decide_overdue(self, draft: Draft, effects: Effects, item: Overdue) -> None:
        """Say 202 and keep having said so: the answer is on disk before it leaves, and is replayed from then on."""
        opened = draft.open(item.operation_id)
        if opened is None:
            return  # settled meanwhile: its answer is on the way
        payment = draft.payment(opened.payment_id)
        assert payment is not None, f"{item.operation_id} is open without its payment"
        answer = draft.answer(item.ask.once_key, outcome_answer(payment, item.operation_id, self._actor.profile.mode))
        effects.answers.append((item.ask, replace(answer, rate=self._actor.rate_state())))

    def _decide_expire(self, draft: Draft, effects: Effects, item: Expire, now_ms: int) -> None:
        payment = draft.payment(item.payment_id)
        assert payment is not None, f"{item.payment_id} is due and does not exist"
        events = rules.expire(payment, now_ms, self._mint.ids(now_ms))
        if not events:
            return
        draft.record(
            events, payment_id=payment.id, now_ms=now_ms, cause="expiry", request_id="", epoch=self._actor.epoch
        )
        effects.started += draft.opens


def told_of(envelope: Envelope) -> str | None:
    """Give the operation that a person or the acquirer tells of; None for a command of a partner."""
    command = envelope.command
    return command.operation_id if isinstance(command, _TELLING) else None
