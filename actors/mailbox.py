"""What lies in an actor's mailbox: partners' commands, and what acquirer and timers tell. Only shapes."""

import asyncio
import time
from dataclasses import dataclass, field

from actors import keyspace
from actors.acquirer import Word
from actors.answers import Answer, Refused
from actors.commands import Envelope, Notification
from actors.events import AcquirerContradicted
from actors.payment import Operation
from actors.store import Key

Result = Answer | Refused


@dataclass(slots=True)
class Ask:
    """A command that waits for its answer, until `deadline` on the loop's clock (seconds)."""

    envelope: Envelope
    method: str
    future: asyncio.Future[Result]
    deadline: float
    arrived: float = field(default_factory=time.monotonic)
    timer: asyncio.TimerHandle | None = None
    joined: bool = False  # its intent is committed: from here on it is never told that nothing was written

    @property
    def once_key(self) -> Key:
        """Where its idempotency record is."""
        command = self.envelope.command
        if isinstance(command, Notification):
            return keyspace.notification(command.acquirer, command.notification_id)
        return keyspace.once(self.envelope.idempotency_key, self.envelope.command_id)

    def resolve(self, result: Result) -> None:
        """Answer, if nobody did."""
        if self.timer is not None:
            self.timer.cancel()
        if not self.future.done():
            self.future.set_result(result)


@dataclass(frozen=True, slots=True)
class Overdue:
    """A command's deadline is near and its operation's outcome is still to come."""

    ask: Ask
    operation_id: str


@dataclass(frozen=True, slots=True)
class Settled:
    """The acquirer's word on an operation; `confirmations`: how often it had been confirmed when it was asked."""

    operation_id: str
    outcome: Word
    confirmations: int = 0


@dataclass(frozen=True, slots=True)
class Lost:
    """An attempt at an operation ended without a final word; `attempts` were made by now."""

    operation_id: str
    why: str
    attempts: int


@dataclass(frozen=True, slots=True)
class Expire:
    """An authorization or a challenge may be due."""

    payment_id: str


@dataclass(frozen=True, slots=True)
class Sweep:
    """The idempotency records of the journal's entries behind `after_sequence` are past their retention."""

    after_sequence: int
    once_keys: tuple[Key, ...]
    swept_sequence: int


Told = Settled | Lost | Expire | Sweep
Item = Ask | Overdue | Told


@dataclass(slots=True)
class Effects:
    """What a batch lets out once it is committed."""

    answers: list[tuple[Ask, Result]] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    settled: list[tuple[Operation, str, Answer | None]] = field(default_factory=list)  # with the payment's id
    contradictions: list[AcquirerContradicted] = field(default_factory=list)
    waiting: list[tuple[Ask, str]] = field(default_factory=list)
