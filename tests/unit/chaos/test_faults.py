"""The table of faults and the plan made of it: the same seed gives the same blows, and every kind comes to its turn."""

import itertools
from pathlib import Path

import pytest

from chaos import faults, limits
from chaos.faults import KINDS, Blow, Target

CELLS = {"cell-0": ["ann", "bob"], "cell-1": ["eve"]}
PAGE = Path(__file__).resolve().parents[3] / "docs" / "soak.md"


def test_a_seed_gives_one_plan_and_another_seed_another() -> None:
    first, again, other = (list(itertools.islice(faults.plan(seed, CELLS), 80)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_every_kind_comes_once_before_any_comes_twice() -> None:
    rounds = list(itertools.islice(faults.plan(7, CELLS), 2 * len(KINDS)))
    for half in (rounds[: len(KINDS)], rounds[len(KINDS) :]):
        assert {fault.kind.name for fault in half} == {kind.name for kind in KINDS}
    assert [fault.number for fault in rounds] == list(range(len(rounds)))


def test_every_process_is_killed_and_stopped_alone() -> None:
    alone = {(kind.strikes[0].target, kind.strikes[0].blow) for kind in KINDS if len(kind.strikes) == 1}
    assert alone == set(itertools.product(Target, Blow))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_fault_strikes_somebody_of_its_cell(kind: faults.Kind) -> None:
    fault = next(faults.plan(3, CELLS, (kind,)))
    if fault.partner is not None:
        assert fault.cell is not None
        assert fault.partner in CELLS[fault.cell]
    low, high = limits.SOAK_CALM_MS
    assert low <= fault.pause_ms <= high
    for blow, strike in zip(fault.blows, kind.strikes, strict=True):
        assert strike.after_ms[0] <= blow.after_ms <= strike.after_ms[1]
        assert (blow.stop_ms > 0) is (blow.blow is Blow.STOP)


def test_whom_a_fault_excuses() -> None:
    kind = faults.kind_named("worker and spare killed")
    fault = next(faults.plan(3, {"cell-1": ["eve", "kim"]}, (kind,)))
    (other,) = {"eve", "kim"} - {fault.partner}
    assert fault.excuses(str(fault.partner), "cell-1") == kind.own
    assert fault.excuses(other, "cell-1") == kind.cell
    assert fault.excuses("joe", "cell-0") == kind.others
    assert kind.own != kind.cell


def test_no_other_cell_ever_notices_what_strikes_a_cell() -> None:
    shared = {Target.ROUTER, Target.ACQUIRER, Target.FDB_SERVER}
    for kind in KINDS:
        if not {strike.target for strike in kind.strikes} & shared:
            assert kind.others == faults.NO_ERROR, kind.name


def test_a_gateway_of_any_store_is_spared_what_strikes_a_server_that_it_may_not_have() -> None:
    spared = set(KINDS) - set(faults.KINDS_OF_ANY_STORE)
    assert {kind.name for kind in spared} == {"FoundationDB server killed", "FoundationDB server stopped"}
    assert all(kind.own == kind.cell == kind.others for kind in spared), "one cluster is everybody's"


def test_the_page_shows_the_table() -> None:
    assert faults.table() in PAGE.read_text(), "write chaos.faults.table() into docs/soak.md"
