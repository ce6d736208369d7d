"""A stand-in for an acquirer: it answers what a test scripts, and keeps a record as a real one does.

One record may have several connections: those of a partner's owner and of a zombie. An operation is performed at
most once by its key; a closed key performs nothing; a request may get lost on the way, or arrive late.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from actors.acquirer import Accepted, Approved, Challenged, Declined, Instruction, NeverPerformed
from actors.errors import AcquirerUnknownError

_Outcome = TypeVar("_Outcome")
CLOSED = Declined("operation_closed", retryable=True)
Final = Approved | Declined | NeverPerformed
Word = Approved | Declined | Challenged | Accepted


@dataclass(frozen=True, slots=True)
class Step:
    """What one call meets. `outcome`: what the operation becomes, if it is performed now for the first time."""

    outcome: Word | None = None
    arrives: bool = True
    lost: str | None = None  # no answer: the kind of AcquirerUnknownError
    delay_ms: int = 0
    arrives_after_ms: int | None = None  # given up by the caller, and performed so much later
    gate: asyncio.Event | None = None  # waits for this before it arrives

    def __post_init__(self) -> None:
        assert self.arrives_after_ms is None or self.lost is not None


APPROVE = Step()
TIMEOUT_CHARGED = Step(lost="timeout")
TIMEOUT_NOT_CHARGED = Step(lost="timeout", arrives=False)
REFUSED = Step(lost="refused", arrives=False)
MALFORMED = Step(lost="malformed")


def decline(code: str = "insufficient_funds", *, retryable: bool = True) -> Step:
    """Decline with a code."""
    return Step(Declined(code, retryable))


def challenge(expires_ms: int) -> Step:
    """Ask for the customer."""
    return Step(Challenged("https://bank.example/challenges/1", expires_ms))


ACCEPT = Step(Accepted())


@dataclass(slots=True)
class AcquirerRecord:
    """The acquirer's own books: by key what was asked, what became of it, and how often money moved."""

    instructions: dict[str, Instruction] = field(default_factory=dict)
    outcomes: dict[str, Final] = field(default_factory=dict)
    waiting: dict[str, Challenged | Accepted] = field(default_factory=dict)  # not decided yet
    charges: Counter[str] = field(default_factory=Counter)

    def perform(self, instruction: Instruction, wanted: Word | None) -> Word:
        """Perform the operation, or give what it became, or what it waits for."""
        self._check_same(instruction)
        key = instruction.key
        if key in self.outcomes or not isinstance(wanted, Challenged | Accepted):
            # Asking again does not stand in for the customer; what the acquirer decides by itself may be decided now.
            challenge = self.waiting.get(key)
            return challenge if isinstance(challenge, Challenged) else self.decide(key, wanted)
        return self.waiting.setdefault(key, wanted)

    def confirm(self, instruction: Instruction, wanted: Word | None) -> Word:
        """Go on with what waits for its customer, or give what it became."""
        self._check_same(instruction)
        key = instruction.key
        assert key in self.waiting or key in self.outcomes, f"{key} is confirmed and was never challenged"
        if isinstance(wanted, Challenged | Accepted) and key not in self.outcomes:
            self.waiting[key] = wanted
            return wanted
        return self.decide(key, wanted)

    def decide(self, key: str, wanted: Word | None = None) -> Approved | Declined:
        """Decide an operation, once for ever."""
        if key not in self.outcomes:
            outcome = wanted if isinstance(wanted, Approved | Declined) else Approved(f"ref-{len(self.outcomes) + 1}")
            self.outcomes[key] = outcome
            self.waiting.pop(key, None)
            if isinstance(outcome, Approved):
                self.charges[key] += 1
        outcome_known = self.outcomes[key]
        return CLOSED if isinstance(outcome_known, NeverPerformed) else outcome_known

    def _check_same(self, instruction: Instruction) -> None:
        known = self.instructions.setdefault(instruction.key, instruction)
        assert known == instruction, f"{instruction.key} is asked for in two ways: {known}, {instruction}"

    def close(self, instruction: Instruction) -> Approved | Declined | NeverPerformed:
        """Make sure that the key performs nothing from now on, or give what it became."""
        self.instructions.setdefault(instruction.key, instruction)
        self.waiting.pop(instruction.key, None)
        return self.outcomes.setdefault(instruction.key, NeverPerformed())


class ScriptedAcquirer:
    """One connection to the record. Steps are taken in order; with none left, `otherwise` says."""

    def __init__(
        self, record: AcquirerRecord | None = None, otherwise: Callable[[Instruction], Step] = lambda _: APPROVE
    ) -> None:
        self.record = record or AcquirerRecord()
        self.otherwise = otherwise
        self.calls: list[tuple[str, str]] = []  # "perform" | "confirm" | "close", key
        self.in_flight = 0
        self.in_flight_max = 0
        self.closed = 0
        self._steps: deque[Step] = deque()

    def script(self, *steps: Step) -> None:
        """Say what the next calls meet."""
        self._steps.extend(steps)

    async def confirm(self, instruction: Instruction, timeout_ms: int) -> Word:
        step = self._next("confirm", instruction)
        return await self._call(step, timeout_ms, lambda: self.record.confirm(instruction, step.outcome))

    async def perform(self, instruction: Instruction, timeout_ms: int) -> Word:
        step = self._next("perform", instruction)
        return await self._call(step, timeout_ms, lambda: self.record.perform(instruction, step.outcome))

    async def close_key(self, instruction: Instruction, timeout_ms: int) -> Approved | Declined | NeverPerformed:
        step = self._next("close", instruction)
        return await self._call(step, timeout_ms, lambda: self.record.close(instruction))

    async def aclose(self) -> None:
        self.closed += 1

    def _next(self, call: str, instruction: Instruction) -> Step:
        self.calls.append((call, instruction.key))
        return self._steps.popleft() if self._steps else self.otherwise(instruction)

    async def _call(self, step: Step, timeout_ms: int, arrive: Callable[[], _Outcome]) -> _Outcome:
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        try:
            async with asyncio.timeout(timeout_ms / 1_000):
                if step.gate is not None:
                    await step.gate.wait()
                await asyncio.sleep(step.delay_ms / 1_000)
                if step.arrives_after_ms is not None:
                    asyncio.get_running_loop().call_later(step.arrives_after_ms / 1_000, arrive)
                elif step.arrives:
                    outcome = arrive()
                if step.lost == "timeout":
                    await asyncio.Event().wait()
        except TimeoutError as error:
            raise AcquirerUnknownError("timeout") from error
        finally:
            self.in_flight -= 1
        if step.lost is not None:
            raise AcquirerUnknownError(step.lost)
        return outcome
