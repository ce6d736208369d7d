"""What strikes lead to, and what stays of it after an operator's word."""

import msgpack
import pytest

from cells import escalation, limits
from cells.escalation import DEDICATED, QUARANTINED, Escalation, EscalationError, Strikes

WINDOW = limits.STRIKES_WINDOW_MS


def test_strikes_count_within_their_window_and_for_their_partner() -> None:
    strikes = Strikes()
    assert [strikes.add("alpha", now) for now in (0, 1, WINDOW - 1)] == [1, 2, 3]
    assert strikes.add("alpha", WINDOW) == 3  # the first is too old by now
    assert strikes.add("alpha", 3 * WINDOW) == 1
    assert strikes.add("beta", 3 * WINDOW) == 1
    strikes.forget("alpha")
    assert strikes.add("alpha", 3 * WINDOW) == 1


def test_stalls_of_different_partners_at_once_are_the_machine_s_and_count_for_none_of_them() -> None:
    strikes = Strikes()
    together = limits.STALLS_TOGETHER_MS
    for round_ms in range(0, 10 * together, together):
        counts = [strikes.add(name, round_ms, is_stall=True) for name in ("alpha", "beta", "gamma", "delta")]
        assert max(counts) <= 1
    later = 20 * together
    assert [strikes.add("alpha", later + at, is_stall=True) for at in (0, 1, 2)] == [1, 2, 3]  # alone, it is its own
    assert strikes.add("beta", later + 3) == 1  # a death counts, whatever stalls meanwhile


@pytest.mark.parametrize(
    ("strikes", "isolation", "kind"),
    [
        (1, "pooled", None),
        (2, "pooled", DEDICATED),
        (3, "dedicated", None),
        (4, "pooled", QUARANTINED),
        (4, "dedicated", QUARANTINED),
    ],
)
def test_what_strikes_lead_to(strikes: int, isolation: str, kind: str | None) -> None:
    assert escalation.verdict(strikes, isolation) == kind


APART, OUT = Escalation(DEDICATED, 1, "why"), Escalation(QUARANTINED, 1, "why")


@pytest.mark.parametrize(
    ("found", "isolation", "to_pool", "after"),
    [
        (OUT, "dedicated", False, None),
        (OUT, "pooled", False, APART),  # out of quarantine, and into no pool by that
        (OUT, "pooled", True, OUT),  # to be pooled is not to be released
        (APART, "pooled", True, None),
        (APART, "pooled", False, APART),
        (None, "pooled", False, None),
    ],
)
def test_what_stays_after_an_operator_s_word(
    found: Escalation | None, isolation: str, to_pool: bool, after: Escalation | None
) -> None:
    assert escalation.after_release(found, isolation=isolation, to_pool=to_pool) == after


def test_it_is_read_as_it_was_written_and_never_guessed_at() -> None:
    assert escalation.decode(escalation.encode(OUT)) == OUT
    for value in (b"", b"\xc1", msgpack.packb([2, DEDICATED, 1, ""]), msgpack.packb([1, "else", 1, "why"])):
        with pytest.raises(EscalationError):
            escalation.decode(value)
