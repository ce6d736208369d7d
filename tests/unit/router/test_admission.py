"""Admission: a partner or a cell that hangs fills its own share and nobody else's."""

import contextlib

import pytest

from cells.api.bulkheads import Bulkhead
from cells.api.messages import RefusalCode
from router import limits
from router.admission import Admission
from router.problems import EdgeCode, ProblemError


@pytest.fixture
def admission(monkeypatch: pytest.MonkeyPatch) -> Admission:
    monkeypatch.setattr(limits, "REQUESTS_MAX", 8)
    monkeypatch.setattr(limits, "PARTNER_REQUESTS_MAX", 3)
    return Admission()


def test_a_partner_that_hangs_leaves_room_for_others(admission: Admission) -> None:
    with contextlib.ExitStack() as held:
        for _ in range(3):
            held.enter_context(admission.partner("acme"))
        with pytest.raises(ProblemError) as caught, admission.partner("acme"):
            pass
        assert caught.value.problem.code is RefusalCode.TOO_MANY_IN_FLIGHT
        with admission.partner("globex"):
            assert admission.running == 4
    with admission.partner("acme"):
        assert admission.running == 1


def test_the_router_is_full_at_its_bound(admission: Admission) -> None:
    with contextlib.ExitStack() as held:
        for number in range(8):
            held.enter_context(admission.partner(f"partner_{number}"))
        with pytest.raises(ProblemError) as caught, admission.partner("late"):
            pass
        assert caught.value.problem.code is EdgeCode.OVERLOADED
        assert caught.value.problem.kind.status == 503


def test_a_cell_that_hangs_leaves_the_other_cells_their_shares(admission: Admission) -> None:
    with contextlib.ExitStack() as held:
        for _ in range(2):
            held.enter_context(admission.cell("cell-0", 4))
        with pytest.raises(ProblemError) as caught, admission.cell("cell-0", 4):
            pass
        assert caught.value.problem.code is EdgeCode.OVERLOADED
        for name in ("cell-1", "cell-2", "cell-3"):
            for _ in range(2):
                held.enter_context(admission.cell(name, 4))
        assert [admission.running_of_cell(name) for name in ("cell-0", "cell-3", "cell-9")] == [2, 2, 0]
    with admission.cell("cell-0", 4):
        pass


def test_places_come_back_after_an_error_and_leave_nothing_behind(admission: Admission) -> None:
    for _ in range(20):
        with pytest.raises(ZeroDivisionError), admission.partner("acme"), admission.cell("cell-0", 4):
            raise ZeroDivisionError
    assert admission.running == 0
    assert admission._partners == {}
    assert admission._cells == {}


@pytest.mark.parametrize("off", [Bulkhead.PARTNER_SHARE, Bulkhead.CELL_SHARE])
def test_a_share_that_is_switched_off_bounds_nothing(admission: Admission, off: Bulkhead) -> None:
    def take(shares: Admission, held: contextlib.ExitStack) -> None:
        for _ in range(4):
            place = shares.partner("acme") if off is Bulkhead.PARTNER_SHARE else shares.cell("cell-0", 4)
            held.enter_context(place)

    with contextlib.ExitStack() as held, pytest.raises(ProblemError):
        take(admission, held)
    with contextlib.ExitStack() as held:
        take(Admission({off}), held)
