"""What is told of how long a partner that moved had to wait, also where nobody watched it to its end."""

import asyncio

import msgpack
import pytest

from cells.api import messages
from cells.api.connection import Request
from cells.api.messages import Answer, Method, Refused
from control_plane import limits
from control_plane.errors import DoorError
from control_plane.moves import MoveAbortedError
from tests.unit.cells.two_cells import PARTNER, Installed, lose, told_pause_ms


async def die_and_go_on(installed: Installed, before: str, later_ms: int, *, doors_too: bool = False) -> None:
    """Have the control plane die before a step, and the next one go on, so much later by the wall clock."""

    async def die() -> None:
        raise asyncio.CancelledError

    installed.doors.before[before] = die
    await asyncio.wait([await installed.moves.start(PARTNER, "cell-1", "ann")])
    move = installed.registry.move(PARTNER)
    assert move is not None
    assert move.quiesced_at_ms is not None
    if doors_too:
        await installed.source.close()
        await installed.source.open(1)
    then_ms = move.quiesced_at_ms + later_ms
    installed.again(lambda: then_ms)
    await installed.moves.resume()
    await asyncio.wait_for(asyncio.gather(*installed.moves._tasks.values()), 20)
    assert installed.registry.partner(PARTNER).cell == "cell-1"


@pytest.mark.parametrize("before", [Method.QUIESCE, Method.SEAL, Method.OPEN_ARRIVAL])
async def test_the_doors_tell_for_how_long_a_partner_waited(installed: Installed, before: str) -> None:
    await installed.onboard()
    await die_and_go_on(installed, before, 3_600_000)
    told_ms = await told_pause_ms(installed)
    assert told_ms is not None
    assert 0 <= told_ms < 20_000


@pytest.mark.parametrize(("later_ms", "told_ms"), [(5_000, 5_000), (-1, None)])
async def test_where_its_door_died_too_the_row_tells_since_when_a_sealed_partner_can_have_waited(
    installed: Installed, later_ms: int, told_ms: int | None
) -> None:
    await installed.onboard()
    await die_and_go_on(installed, Method.OPEN_ARRIVAL, later_ms, doors_too=True)
    assert await told_pause_ms(installed) == told_ms


async def test_where_its_door_died_too_who_is_not_sealed_waited_no_longer_than_the_lease(installed: Installed) -> None:
    await installed.onboard()
    await die_and_go_on(installed, Method.SEAL, 3_600_000, doors_too=True)
    assert await told_pause_ms(installed) == limits.QUIESCE_LEASE_MS


@pytest.mark.parametrize("is_opened_by_a_router", [False, True])
async def test_a_target_that_is_away_after_the_seal_counts(installed: Installed, is_opened_by_a_router: bool) -> None:
    await installed.onboard()
    comes_back: list[asyncio.Task[None]] = []

    async def come_back() -> None:
        await asyncio.sleep(0.5)
        if is_opened_by_a_router:
            answer = await installed.write(installed.source, "c1")
            assert isinstance(answer, Refused)
            body = msgpack.packb({"receipt": bytes.fromhex(str(answer.refusal.context["receipt"]))})
            request = Request("router", Method.OPEN_ARRIVAL, PARTNER, 5_000, body)
            assert isinstance(messages.decode_answer(await installed.target.door.handle(request)), Answer)
        installed.doors.dead.clear()

    async def die() -> None:
        installed.doors.dead.add("cell-1")
        comes_back.append(asyncio.create_task(come_back()))
        raise DoorError("it died just now")

    installed.doors.before[Method.OPEN_ARRIVAL] = die
    ended = await asyncio.wait_for(installed.moves.move(PARTNER, "cell-1", "ann"), 20)
    await comes_back[0]
    assert ended.pause_ms is not None
    assert 500 <= ended.pause_ms < 20_000


async def test_a_move_that_comes_to_nothing_tells_the_pause_that_it_cost(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MOVE_ATTEMPTS_MAX", 2)
    await installed.onboard()

    async def refuse() -> None:
        await asyncio.sleep(0.2)
        installed.doors.before[Method.COPY_ROWS] = lose
        await lose()

    installed.doors.before[Method.SEAL] = refuse
    with pytest.raises(MoveAbortedError) as found:
        await installed.moves.move(PARTNER, "cell-1", "ann")
    assert found.value.pause_ms is not None
    assert 200 <= found.value.pause_ms <= limits.QUIESCE_LEASE_MS
    assert await told_pause_ms(installed) == found.value.pause_ms
    installed.doors.before[Method.BEGIN_LEAVING] = lose
    monkeypatch.setattr(limits, "MOVE_ATTEMPTS_MAX", 1)
    with pytest.raises(MoveAbortedError) as found:
        await installed.moves.move(PARTNER, "cell-1", "ann")
    assert found.value.pause_ms == 0, "it was served all the time"
