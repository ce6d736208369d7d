"""Load shedding: the order of what is shed, fair shares, lateness; and that one partner alone makes nobody be shed."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cells import limits
from cells.api import limits as wire_limits
from cells.api import messages
from cells.shedding import WORK, LoadShedder, Work, bounds

PARTNER_MAX = wire_limits.DOOR_PARTNER_COMMANDS_MAX + wire_limits.DOOR_PARTNER_NOTIFICATIONS_MAX
ROOMS = [limits.DOOR_COMMANDS_MAX, limits.WORKER_COMMANDS_MAX]


def fill(shedder: LoadShedder, partner: str, work: Work, count: int) -> int:
    return sum(shedder.enter(partner, work) for _ in range(count))


def test_every_command_has_a_class_of_work() -> None:
    assert WORK.keys() == messages.READS | messages.WRITES
    assert set(WORK.values()) == set(Work)


def test_what_goes_on_with_a_payment_is_a_follow_up() -> None:
    assert {method for method, work in WORK.items() if work is Work.FOLLOW_UP} == messages.WRITES - {
        "create_payment", "reconcile_operations", "record_change",
    }  # fmt: skip


@pytest.mark.parametrize("room", ROOMS)
def test_reads_are_shed_first_then_new_payments_then_the_rest(room: int) -> None:
    shedder = LoadShedder(room)
    flooders = [f"flooder{number}" for number in range(8)]
    for work in Work:
        for _ in range(room):
            for partner in flooders:
                shedder.enter(partner, work)
        assert shedder.under_way == bounds(room)[work].above_share
        shed = [kind for kind in Work if not shedder.enter("flooder0", kind)]
        assert shed == list(Work)[: list(Work).index(work) + 1]
        for _ in range(2 - len(shed) + 1):
            shedder.leave("flooder0")


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("work", Work)
def test_one_partner_alone_makes_nobody_be_shed(room: int, work: Work) -> None:
    shedder = LoadShedder(room)
    assert fill(shedder, "flooder", work, PARTNER_MAX) == PARTNER_MAX
    for kind in Work:
        assert shedder.enter("bystander", kind)


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("work", Work)
def test_who_is_within_its_share_is_served_whatever_the_others_do(room: int, work: Work) -> None:
    """Those who were there first hold more than their share only until what they hold has ended."""
    shedder = LoadShedder(room)
    flooders = [f"flooder{number}" for number in range(20)]
    under_way = [name for name in flooders for _ in range(PARTNER_MAX) if shedder.enter(name, work)]
    for _ in range(2 * room):
        shedder.leave(under_way.pop(0))
        under_way += [name for name in flooders if shedder.enter(name, work)]
    for kind in Work:
        assert shedder.enter("bystander", kind)
    assert sum(shedder.enter(name, work) for name in flooders) == 0


@pytest.mark.parametrize("room", ROOMS)
def test_the_last_room_is_for_follow_ups_also_where_all_are_within_their_shares(room: int) -> None:
    shedder = LoadShedder(room)
    admitted: Counter[Work] = Counter()
    for work in Work:
        for number in range(2 * room):
            admitted[work] += shedder.enter(f"{work}{number}", work)
        assert shedder.under_way == bounds(room)[work].within_share
    assert all(admitted.values())
    assert not shedder.enter("one_more", Work.FOLLOW_UP)


def test_a_late_loop_sheds_reads_then_new_payments_and_never_follow_ups() -> None:
    late_ms = 0.0
    shedder = LoadShedder(640, lambda: late_ms)
    fill(shedder, "busy", Work.FOLLOW_UP, 10)
    late_ms = limits.SHED_READS_LATE_MS
    assert [shedder.enter("busy", work) for work in Work] == [False, True, True]
    late_ms = limits.SHED_PAYMENTS_LATE_MS
    assert [shedder.enter("busy", work) for work in Work] == [False, False, True]
    assert all(shedder.enter(f"bystander-{work}", work) for work in Work), "who has nothing under way did not make it"
    late_ms = 0.0
    assert all(shedder.enter("busy", work) for work in Work)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(list(Work)), st.booleans()), max_size=300))
def test_it_counts_what_is_under_way_and_forgets_who_left(steps: list[tuple[str, Work, bool]]) -> None:
    shedder = LoadShedder(32)
    held: Counter[str] = Counter()
    for partner, work, enters in steps:
        if enters:
            held[partner] += shedder.enter(partner, work)
        elif held[partner]:
            shedder.leave(partner)
            held[partner] -= 1
        assert shedder.under_way == held.total() <= 32
    for partner, count in held.items():
        for _ in range(count):
            shedder.leave(partner)
    assert shedder.under_way == 0
    assert not shedder._held
