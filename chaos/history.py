"""What a client saw: one record per call, and how a history is kept in a file. Judges nothing: see checker.py.

Times are seconds of the machine's monotonic clock, one for all its processes (CLOCK_MONOTONIC, clock_gettime(2)).
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson


class Outcome(NamedTuple):
    """An answer in short: HTTP status, and a payment's or refund's status, a problem's code, or the object's name."""

    status: int
    word: str

    def __str__(self) -> str:
        return f"{self.status} {self.word}"


@dataclass(slots=True)
class Call:
    """One HTTP call as its client saw it. `answer` is what came, byte for byte; `error` says why nothing came.

    `due_s` is when the schedule wanted it sent, or when the answer that it needed first had come, whichever is later:
    latency counts from there, so that a client that falls behind hides nothing. `usual`: its latency is the gateway's
    own (no slow or silent token). `expected`: what may be answered while nothing is wrong.
    """

    run: str
    partner: str
    scenario: str
    step: str
    method: str
    path: str
    key: str | None
    body: bytes
    expected: tuple[Outcome, ...]
    usual: bool
    due_s: float
    sent_s: float = 0.0
    answered_s: float | None = None
    status: int | None = None
    answer: bytes = b""
    replayed: bool = False
    retry_after: str | None = None
    error: str | None = None
    failed_s: float | None = None  # when its client gave up on an answer
    repeat: int = 0  # 0 for the first attempt

    def anew(self, due_s: float, repeat: int) -> "Call":
        """Make the same request again, of which nothing is known yet."""
        return Call(
            run=self.run,
            partner=self.partner,
            scenario=self.scenario,
            step=self.step,
            method=self.method,
            path=self.path,
            key=self.key,
            body=self.body,
            expected=self.expected,
            usual=self.usual,
            due_s=due_s,
            repeat=repeat,
        )

    @property
    def latency_ms(self) -> float | None:
        """From when it was due to its whole answer; None without one."""
        return None if self.answered_s is None else (self.answered_s - self.due_s) * 1_000

    @property
    def ended_s(self) -> float | None:
        """When its client knew what came of it; None while it waits."""
        return self.failed_s if self.answered_s is None else self.answered_s

    @property
    def acknowledged(self) -> bool:
        """Whether the answer says that it was done, or that it is under way."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def outcome(self) -> Outcome | None:
        """The answer in short; None without an answer."""
        return None if self.status is None else Outcome(self.status, word_of(self.content()))

    def content(self) -> dict[str, Any]:
        """Read the answer as the JSON object that it should be; an empty one where it isn't."""
        try:
            content = orjson.loads(self.answer)
        except orjson.JSONDecodeError:
            return {}
        return content if isinstance(content, dict) else {}

    def request(self) -> dict[str, Any]:
        """Read the body that was sent; an empty object where there was none."""
        return dict(orjson.loads(self.body)) if self.body else {}


def word_of(content: dict[str, Any]) -> str:
    """Say an answer's content in one word."""
    kind = content.get("object")
    if kind in ("payment", "refund"):
        return str(content.get("status"))
    return str(kind or content.get("code") or "unreadable")


def save(calls: Iterable[Call], file: Path) -> None:
    """Write a history as JSON lines. Bytes stand in it as Latin-1, which keeps each of them as it is."""
    with file.open("wb") as out:
        for call in calls:
            fields = asdict(call)
            fields["body"] = call.body.decode("latin-1")
            fields["answer"] = call.answer.decode("latin-1")
            fields["expected"] = [[outcome.status, outcome.word] for outcome in call.expected]
            out.write(orjson.dumps(fields) + b"\n")


def load(file: Path) -> list[Call]:
    """Read a history back."""
    calls = []
    with file.open("rb") as lines:
        for line in lines:
            fields = orjson.loads(line)
            fields["body"] = fields["body"].encode("latin-1")
            fields["answer"] = fields["answer"].encode("latin-1")
            fields["expected"] = tuple(Outcome(*outcome) for outcome in fields["expected"])
            calls.append(Call(**fields))
    return calls
