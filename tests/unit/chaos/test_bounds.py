"""A bound that is exceeded is found, one that is caught in time is not; status and metrics are read as they are."""

import os

import pytest

from chaos.bounds import Bound, Reading, judge, room_of
from chaos.bounds_reader import of_router, of_status

ROOM = room_of(Bound.WORKER_MEMORY, 1)


def memory(*values: float, who: str = "worker-1", every_s: float = 0.5) -> list[Reading]:
    return [
        Reading(10 + number * every_s, Bound.WORKER_MEMORY, who, value, ROOM) for number, value in enumerate(values)
    ]


def test_what_is_within_its_room_is_no_finding() -> None:
    assert judge([]) == []
    assert judge(memory(*[ROOM] * 20)) == []


def test_a_worker_that_takes_too_much_may_live_until_it_is_found() -> None:
    assert judge(memory(100, 700, 700, 700, 700)) == [], "1.5 s, and then it was gone"
    (found,) = judge(memory(100, 700, 700, 900, 700, 700, 700))
    assert found.who == "worker-1"
    assert found.detail == "900 MiB in a worker where 512 are its room, for 2.5 s"
    assert (found.from_s, found.until_s) == (10, 10.5), "it grew between these two looks"
    assert judge(memory(100, 700, 700, 900, 700, 700, 700), patience=2) == []


def test_only_an_unbroken_time_above_counts_and_each_worker_has_its_own() -> None:
    assert judge(memory(700, 700, 700, 100, 700, 700, 700)) == []
    assert judge(memory(700, 700, 700) + memory(700, 700, 700, who="worker-2")) == []


@pytest.mark.parametrize("bound", [Bound.PARTNER_COMMANDS, Bound.CELL_REQUESTS])
def test_a_share_is_never_exceeded(bound: Bound) -> None:
    room = room_of(bound, 3)
    assert judge([Reading(1.0, bound, "ann", room, room)]) == []
    (found,) = judge([Reading(1.0, bound, "ann", room + 1, room)])
    assert (found.who, found.detail) == ("ann", f"{room + 1:.0f} {bound} where {room:.0f} are its room")


def test_a_status_tells_shares_of_these_partners_and_which_workers_to_look_at() -> None:
    rows = [("worker-1", "worker", os.getpid()), ("router-0", "router", os.getpid()), ("spare-1", "spare", None)]
    shares = [{"partner": "ann", "commands": 7, "worker": "worker-1"}, {"partner": "bob", "commands": 9}]
    status = {
        "partners": [*shares, {"partner": "eve"}],
        "processes": [{"process": name, "role": role, "pid": pid, "partner": "ann"} for name, role, pid in rows],
    }
    share, worker = of_status(status, {"ann", "eve"}, 5.0)
    assert (share.bound, share.who, share.value) == (Bound.PARTNER_COMMANDS, "ann", 7)
    assert worker.who == f"worker-1 (ann, pid {os.getpid()})"
    assert share.partners == worker.partners == ("ann",)
    assert 10 < worker.value < 10_000, "the memory of this test, in MiB"


def test_a_worker_that_has_ended_is_not_looked_at() -> None:
    status = {"partners": [], "processes": [{"process": "w", "role": "worker", "pid": 2**22 + 1, "partner": "ann"}]}
    assert of_status(status, {"ann"}, 5.0) == []


def test_a_routers_metrics_tell_each_cells_share() -> None:
    text = (
        "# TYPE bulkhead_router_cell_requests_running gauge\n"
        'bulkhead_router_cell_requests_running{cell="cell-0"} 3.0\n'
        'bulkhead_router_cell_requests_running{cell="cell-1"} 1500.0\n'
        "# TYPE bulkhead_router_requests_running gauge\n"
        "bulkhead_router_requests_running 1503.0\n"
    )
    readings = list(of_router(text, 3, 1.0))
    assert [(one.who, one.value, one.room) for one in readings] == [("cell-0", 3, 1_333), ("cell-1", 1_500, 1_333)]
    assert [found.who for found in judge(readings)] == ["cell-1"]
