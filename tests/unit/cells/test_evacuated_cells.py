"""A cell dies, and the cell that takes its partners over dies, too: at each step, killed or only thought dead."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from actors.errors import StoreUnavailableError
from cells.api.messages import Answer, Method, RefusalCode, Refused
from control_plane.errors import RefusedError
from tests.unit.actors.virtual_time import in_virtual_time
from tests.unit.cells.evacuated_cells import CELLS, HOME, PARTNER, Installation, installed
from tests.unit.cells.simulated_cells import on_virtual_time


@pytest.fixture(autouse=True, scope="module")
def _simulated() -> Iterator[None]:
    with on_virtual_time():
        yield


def code(answer: Answer | Refused) -> RefusalCode:
    assert isinstance(answer, Refused), answer
    return answer.refusal.code


# At which step of its takeover the second cell dies. `adopt`: the book has its path, and the cell does not know it yet.
DEATHS = [
    ("before", Method.BEGIN_ARRIVAL),
    ("after", Method.BEGIN_ARRIVAL),
    ("before", Method.OPEN_ARRIVAL),
    ("after", "adopt"),
    ("after", Method.OPEN_ARRIVAL),
]


async def lose_two(ground: Installation, when: str, step: str, *, killed: bool) -> tuple[str, str]:
    """Have the partner's cell die, and the one that takes it over at a step; give that one and the one that is left."""
    await ground.onboard()
    assert isinstance(await ground.pay(HOME, "c1"), Answer)
    second: list[str] = []

    async def die() -> None:
        move = ground.registry.move(PARTNER)
        assert move is not None
        second.append(move.target)
        await ground.die(move.target, killed=killed)

    if step == "adopt":
        die_as_it_adopts(ground, die)
    else:
        getattr(ground.doors, when)[step] = die
    await ground.die(HOME, killed=killed)
    await ground.evacuate(HOME)
    await asyncio.sleep(1)
    (third,) = set(CELLS) - {HOME, second[0]}
    return second[0], third


def die_as_it_adopts(ground: Installation, die: Callable[[], Awaitable[None]]) -> None:
    """Have the first cell that takes the book over die before it can write that down."""
    died: list[bool] = []
    for name in CELLS[1:]:
        shelf: Any = ground.cells[name].door._shelf

        async def adopt_and_die(*args: Any, adopt: Any = shelf.adopt, **kwargs: Any) -> None:
            await adopt(*args, **kwargs)
            if not died:
                died.append(True)
                await die()
                raise StoreUnavailableError("as the test ordered")

        shelf.adopt = adopt_and_die


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "silent"])
@pytest.mark.parametrize(("when", "step"), DEATHS)
@in_virtual_time
async def test_a_third_cell_takes_over_who_was_about_to_be_taken_over(when: str, step: str, killed: bool) -> None:
    async with installed() as ground:
        second, third = await lose_two(ground, when, step, killed=killed)
        assert ground.registry.partner(PARTNER).cell == HOME
        told = await ground.evacuate(second)
        assert told["targets"] == {PARTNER: third}
        await ground.settled()
        await asyncio.sleep(1)
        assert ground.registry.partner(PARTNER).cell == third
        assert len(await ground.payments(third)) == 1
        assert isinstance(await ground.pay(third, "c2"), Answer)
        # One writer: whoever of the other two still lives was fenced.
        assert list(ground.owners()) == [third]
        if not killed:
            for cell in (HOME, second):
                assert not isinstance(await ground.pay(cell, "c3"), Answer)
        assert len(await ground.payments(third)) == 2
        # Both are to be told, and until then nobody goes to either.
        assert {burial.cell for burial in ground.registry.burials()} == {HOME, second}
        await ground.tell()
        assert {burial.cell for burial in ground.registry.burials()} == {HOME, second}
        for cell in (HOME, second):
            with pytest.raises(RefusedError, match="was not told yet"):
                await ground.moves.start(PARTNER, cell, "ann")


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "silent"])
@pytest.mark.parametrize(("when", "step"), DEATHS)
@in_virtual_time
async def test_both_are_told_when_they_are_back_and_take_partners_again(when: str, step: str, killed: bool) -> None:
    async with installed() as ground:
        second, third = await lose_two(ground, when, step, killed=killed)
        await ground.evacuate(second)
        await ground.settled()
        await ground.come_back(HOME)
        await ground.tell()
        # The second would still fetch the book from the first, if it heard of its own move once more.
        with pytest.raises(RefusedError, match=f"{second} was not told yet"):
            await ground.moves.start(PARTNER, HOME, "ann")
        await ground.come_back(second)
        await ground.tell()
        assert not ground.registry.burials()
        for cell in (HOME, second):
            assert code(await ground.pay(cell, "c2")) is RefusalCode.PARTNER_MOVED
            assert not ground.cells[cell].door._arrivals.expected
        for cell in (HOME, second, third):
            await ground.moves.move(PARTNER, cell, "ann")
            assert isinstance(await ground.pay(cell, f"c-{cell}"), Answer)
        assert len(await ground.payments(third)) == 4


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "silent"])
@pytest.mark.parametrize(("when", "step"), DEATHS)
@in_virtual_time
async def test_what_was_said_of_the_first_takeover_comes_late(when: str, step: str, killed: bool) -> None:
    async with installed() as ground:
        second, third = await lose_two(ground, when, step, killed=killed)
        late = [request for cell, request in ground.doors.said if cell == second]
        await ground.evacuate(second)
        await ground.settled()
        await ground.come_back(second)
        for request in late:  # before it is told: it may expect the partner, and finds no book
            await ground.cells[second].handle(request)
        assert list(ground.owners()) == [third]
        await ground.come_back(HOME)
        await ground.tell()
        await ground.moves.move(PARTNER, HOME, "ann")
        for request in late:  # and after that, when the book is back where that move would take it from
            await ground.cells[second].handle(request)
        await asyncio.sleep(1)
        assert list(ground.owners()) == [HOME]
        assert isinstance(await ground.pay(HOME, "c2"), Answer)


@in_virtual_time
async def test_three_die_one_after_the_other_and_the_first_takes_it_back_once_it_was_told() -> None:
    async with installed() as ground:
        second, third = await lose_two(ground, "after", "adopt", killed=True)

        async def die() -> None:
            await ground.die(third, killed=True)

        ground.doors.before[Method.OPEN_ARRIVAL] = die
        await ground.evacuate(second)
        await asyncio.sleep(2)
        with pytest.raises(RefusedError, match="no other cell can open the book"):
            await ground.evacuate(third)
        await ground.come_back(third)  # it goes on by itself
        await ground.settled()
        assert ground.registry.partner(PARTNER).cell == third
        assert len(await ground.payments(third)) == 1


@in_virtual_time
async def test_a_takeover_can_not_be_aborted_and_says_what_helps() -> None:
    async with installed() as ground:
        second, _ = await lose_two(ground, "before", Method.OPEN_ARRIVAL, killed=True)
        with pytest.raises(RefusedError, match="can only go forward") as found:
            await ground.moves.abort(PARTNER, "ann")
        assert found.value.hint is not None
        assert f"bulkhead cell evacuate {second}" in found.value.hint


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "silent"])
@in_virtual_time
async def test_who_was_sealed_for_a_cell_that_died_is_taken_over_by_another(killed: bool) -> None:
    async with installed() as ground:
        await ground.onboard()
        await ground.pay(HOME, "c1")

        async def die() -> None:
            await ground.die("cell-1", killed=killed)

        ground.doors.after[Method.SEAL] = die
        leaving = await ground.moves.start(PARTNER, "cell-1", "ann")
        await asyncio.sleep(1)
        assert not leaving.done()
        await ground.evacuate("cell-1")
        await ground.settled()
        assert ground.registry.partner(PARTNER).cell == "cell-2"
        assert len(await ground.payments("cell-2")) == 1
        await ground.come_back("cell-1")
        await ground.tell()
        assert not ground.registry.burials()
        for cell in (HOME, "cell-1"):
            assert code(await ground.pay(cell, "c2")) is RefusalCode.PARTNER_MOVED
        assert list(ground.owners()) == ["cell-2"]
