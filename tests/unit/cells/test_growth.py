"""Whose commands made a worker grow: what is counted to whom, and who is held to account."""

import contextlib

import pytest

from cells import limits
from cells.growth import GrowthLedger, accused
from cells.poison import Growth, Mark

MUCH = limits.WORKER_GROWTH_SUSPECT_BYTES
DECIDED = Mark("c1", "beta")


class Memory:
    """A process's memory, and what was told of who took it."""

    def __init__(self) -> None:
        self.resident_bytes = 1_000
        self.told: list[Growth] = []
        self.ledger = GrowthLedger(lambda: self.resident_bytes, self.told.append)

    def batch(self, partner_id: str, grows: int) -> None:
        with self.ledger.weighed(partner_id):
            self.resident_bytes += grows


def test_the_heaviest_partner_is_told_whenever_that_may_have_changed() -> None:
    memory = Memory()
    memory.batch("alpha", 0)
    assert memory.told == []
    memory.batch("alpha", 30)
    memory.resident_bytes += 1_000  # with nobody's batch
    memory.batch("beta", 20)
    memory.batch("beta", 15)
    memory.batch("beta", -10)
    grown = [("alpha", 30), ("alpha", 30), ("beta", 35), ("alpha", 30)]
    assert memory.told == [Growth(*told) for told in grown]


def test_a_partner_that_went_elsewhere_is_forgotten() -> None:
    memory = Memory()
    memory.batch("alpha", 30)
    memory.batch("beta", 20)
    memory.ledger.forget("alpha")
    assert memory.told[-1] == Growth("beta", 20)
    memory.ledger.forget("beta")
    assert memory.told[-1] == Growth("", 0)


def test_a_batch_that_fails_is_weighed_too() -> None:
    memory = Memory()
    with contextlib.suppress(ZeroDivisionError), memory.ledger.weighed("alpha"):
        memory.resident_bytes += 30
        raise ZeroDivisionError
    assert memory.told == [Growth("alpha", 30)]


@pytest.mark.parametrize(
    ("executing", "growth", "found"),
    [
        (None, None, None),
        (DECIDED, None, DECIDED),
        (DECIDED, Growth("alpha", MUCH), Mark("", "alpha")),  # beta's command only happened to be decided then
        (DECIDED, Growth("alpha", MUCH - 1), DECIDED),
        (None, Growth("alpha", MUCH), Mark("", "alpha")),
        (None, Growth("alpha", 1), Mark("", "alpha")),
    ],
)
def test_who_is_held_to_account(executing: Mark | None, growth: Growth | None, found: Mark | None) -> None:
    assert accused(executing, growth) == found
