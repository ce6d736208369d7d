"""Turns: where the event loop is behind, work begins partner by partner; where it is not, at once."""

import asyncio

import uvloop

from cells.api.bulkheads import Bulkhead
from router import limits
from router.turns import Turns

AT_ONCE = -(-limits.TURN_US // limits.WORK_US)  # what one turn begins of the smallest requests


def one_turn() -> float:
    """Time that stands still: all that is begun is of one turn, but for those that the loop plans."""
    return 1.0


async def work(turns: Turns, partner: str, done: list[str], announced_bytes: int = 0) -> None:
    turn = turns.enter(partner, announced_bytes)
    if turn is not None:
        await turn
    done.append(partner)


def test_where_little_is_to_do_nobody_waits_and_nothing_is_planned() -> None:
    async def check() -> None:
        turns = Turns()
        for _ in range(50):
            assert turns.enter("acme", 0) is None
            await asyncio.sleep(0.001)

    uvloop.run(check())


def test_one_request_waits_for_one_turn_behind_hundreds_of_another_partner() -> None:
    async def check() -> None:
        turns, done = Turns(), list[str]()
        hostile = [work(turns, "hostile", done, limits.BODY_BYTES_MAX) for _ in range(390)]
        await asyncio.gather(*hostile, work(turns, "bystander", done))
        assert done.index("bystander") <= 8
        assert len(done) == 391
        assert turns.waiting == 0

    uvloop.run(check())


def test_a_turn_begins_so_much_only() -> None:
    async def check() -> None:
        turns = Turns(time=one_turn)
        begun = [turns.enter("acme", 0) for _ in range(5 * AT_ONCE)]
        assert begun.count(None) == AT_ONCE
        await asyncio.sleep(0)
        assert turns.waiting == 3 * AT_ONCE, "one more turn has begun as much again"
        assert turns.enter("acme", 0) is not None, "nobody gets ahead of those who wait"

    uvloop.run(check())


def test_one_whose_task_ended_meanwhile_holds_nobody_up() -> None:
    async def check() -> None:
        turns, done = Turns(time=one_turn), list[str]()
        tasks = [asyncio.create_task(work(turns, "acme", done)) for _ in range(3 * AT_ONCE)]
        await asyncio.sleep(0)
        for task in tasks[AT_ONCE : 2 * AT_ONCE]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert len(done) == 2 * AT_ONCE
        assert turns.waiting == 0

    uvloop.run(check())


def test_it_can_be_switched_off_to_see_what_it_is_for() -> None:
    async def check() -> None:
        turns = Turns(frozenset({Bulkhead.ROUTER_BUDGET}))
        assert all(turns.enter("acme", limits.BODY_BYTES_MAX) is None for _ in range(100))

    uvloop.run(check())
