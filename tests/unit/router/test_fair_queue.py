"""Deficit round robin: a flow gets as much as any other, however much of it waits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.fair_queue import FairQueue


def drained(queue: FairQueue[str]) -> list[str]:
    return [queue.pop()[1] for _ in range(len(queue))]


def test_one_flow_keeps_its_order() -> None:
    queue: FairQueue[str] = FairQueue(10)
    for name in "abc":
        queue.push("flow", 4, name)
    assert len(queue) == 3
    assert drained(queue) == ["a", "b", "c"]
    assert len(queue) == 0


def test_who_comes_behind_hundreds_of_another_flow_waits_for_one_round() -> None:
    queue: FairQueue[str] = FairQueue(10)
    for _ in range(390):
        queue.push("hostile", 10, "hostile")
    queue.push("bystander", 1, "bystander")
    assert drained(queue).index("bystander") <= 1


def test_cheap_items_are_let_through_by_the_cost_and_not_by_the_count() -> None:
    queue: FairQueue[str] = FairQueue(10)
    for _ in range(40):
        queue.push("dear", 10, "dear")
        queue.push("cheap", 1, "cheap")
    first = drained(queue)[:22]
    assert first.count("cheap") == 20
    assert first.count("dear") == 2


def test_a_flow_that_emptied_its_queue_saves_nothing() -> None:
    queue: FairQueue[str] = FairQueue(10)
    queue.push("a", 1, "a")
    queue.pop()
    for _ in range(3):
        queue.push("a", 10, "a")
        queue.push("b", 10, "b")
    assert drained(queue) == ["a", "b"] * 3


def test_no_item_is_dearer_than_a_round() -> None:
    with pytest.raises(AssertionError):
        FairQueue[str](10).push("a", 11, "a")


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 10)), max_size=80))
def test_everything_comes_out_once_and_no_flow_gets_far_ahead(pushed: list[tuple[str, int]]) -> None:
    queue: FairQueue[int] = FairQueue(10)
    for number, (flow, cost) in enumerate(pushed):
        queue.push(flow, cost, number)
    served = dict.fromkeys("abcd", 0)
    waiting = {flow: [number for number, (name, _) in enumerate(pushed) if name == flow] for flow in "abcd"}
    while queue:
        cost, number = queue.pop()
        flow = pushed[number][0]
        assert waiting[flow].pop(0) == number, "a flow keeps its order"
        served[flow] += cost
        behind = [served[other] for other in "abcd" if waiting[other]]
        assert not behind or served[flow] - min(behind) <= 3 * 10
    assert not any(waiting.values())
