"""What an actor gives back: an outcome whose body is rendered once, or a refusal; each with the rate limit's state."""

from actors.refusals import Refusal, RefusalCode
from actors.values import dataclass


@dataclass(frozen=True, slots=True)
class RateState:
    """What the RateLimit headers tell: at most `burst` at once, `remaining` now, all of it again in `reset_ms`."""

    per_second: int
    burst: int
    remaining: int
    reset_ms: int


@dataclass(frozen=True, slots=True)
class Answer:
    """An outcome. `body` is JSON, rendered where it was committed, and sent on byte for byte."""

    status: int
    body: bytes
    replayed: bool = False
    rate: RateState | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """A refusal on its way back."""

    refusal: Refusal
    rate: RateState | None = None


def unavailable(detail: str) -> Refused:
    """Say that nothing was written."""
    return Refused(Refusal(RefusalCode.PARTNER_UNAVAILABLE, detail, retry_after_ms=1_000))


def outcome_unknown() -> Refused:
    """Say that it may have been written."""
    return Refused(
        Refusal(
            RefusalCode.OUTCOME_UNKNOWN,
            "It is not known whether this was written; ask again with the same idempotency key.",
            retry_after_ms=1_000,
        )
    )
