"""Judges whether a partner's breaker kept new payments from an acquirer that failed, by what its answers say. Pure.

Each payment's answer tells, in the partner's own time, when it was let in. So many of them have to fail until the
breaker opens (`actors/breaker.py`); from then on only probes may be let in, a few for each time that it is open and
they take. The others are to be refused at once, so that no customer waits for an acquirer that is known to be dead, and
the acquirer is not asked by everybody as it comes back. Only what the history proves is a finding.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from actors import limits as actor_limits
from chaos import limits
from chaos.history import Call
from chaos.offenders import Offender, offenders_of


@dataclass(frozen=True, slots=True)
class TooMany:
    """More was let in than probes. `offenders`: the payments past those that were allowed."""

    detail: str
    offenders: tuple[Offender, ...]


def judge(calls: Iterable[Call], begin_ms: float, end_ms: float, fails_after_ms: int) -> TooMany | None:
    """Say in what way too many payments were let in while the acquirer failed; None where they weren't.

    `calls` of one partner, repeats included; the acquirer failed whatever it was asked from `begin_ms` to `end_ms`
    (Unix time), each time after `fails_after_ms`.
    """
    admitted = [(at_ms, call) for at_ms, call in let_in(calls) if begin_ms <= at_ms <= end_ms]
    if len(admitted) < actor_limits.BREAKER_FAILURES_TO_OPEN:
        return None
    last_ms, _ = admitted[actor_limits.BREAKER_FAILURES_TO_OPEN - 1]
    opened_ms = last_ms + fails_after_ms + limits.CHAOS_BREAKER_LATE_MS
    probes = [call for at_ms, call in admitted if at_ms > opened_ms]
    if not probes:
        return None
    # One round more: what the breaker was at when it had to be open is not known.
    rounds = 2 + int((end_ms - opened_ms) / (actor_limits.BREAKER_OPEN_MS + fails_after_ms))
    allowed = rounds * actor_limits.BREAKER_PROBES
    if len(probes) <= allowed:
        return None
    detail = (
        f"{len(probes)} new payments were let in within {(end_ms - opened_ms) / 1_000:.1f} s in which the breaker had "
        f"to be open, after {actor_limits.BREAKER_FAILURES_TO_OPEN} had failed; {allowed} probes are allowed"
    )
    return TooMany(detail, tuple(offenders_of(probes[allowed:])))


def let_in(calls: Iterable[Call]) -> list[tuple[float, Call]]:
    """Give when each new payment was let in, in Unix time (ms), in order; answers to repeats tell the same."""
    found: dict[str, tuple[float, Call]] = {}
    for call in calls:
        if call.step != "create_payment" or not call.acknowledged:
            continue
        content = call.content()
        operations = content.get("operations") or []
        if operations and operations[0].get("created_at"):
            created = datetime.fromisoformat(str(operations[0]["created_at"])).timestamp() * 1_000
            found.setdefault(str(content.get("id")), (created, call))
    return sorted(found.values(), key=lambda one: one[0])
