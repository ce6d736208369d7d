"""A partner moves between two doors over real worker processes: the steps, and what is refused.

The way between them is the control plane's own (control_plane/moves.py) over a real registry; only the sockets to the
doors and Ray are left out.
"""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from cells import limits as cell_limits
from cells.api import messages, moves
from cells.api.connection import Request
from cells.api.messages import Answer, Command, Method, RefusalCode, Refused
from control_plane import limits
from control_plane.door_moves import CopyLostError, DoorMoves
from control_plane.errors import DoorError, NotFoundError, RefusedError
from control_plane.move_record import Move
from control_plane.moves import MoveAbortedError
from control_plane.partners import to_profile
from tests.unit.cells.open_cell import code
from tests.unit.cells.two_cells import DIRECTORY_VERSION, PARTNER, Installed, rows

# The way on which nothing fails


async def test_a_partner_lives_in_its_new_cell_with_all_that_it_had(installed: Installed) -> None:
    await installed.onboard()
    for number in range(3):
        await installed.write(installed.source, f"c{number}")
    before = await installed.payments(installed.source)
    held = await rows(installed.source)
    epoch = installed.source.door._seats[PARTNER].epoch
    ended = await installed.moves.move(PARTNER, "cell-1", "ann")
    assert ended.rows == len(held)
    assert await installed.payments(installed.target) == before
    assert installed.registry.partner(PARTNER).cell == "cell-1"
    assert installed.registry.move(PARTNER) is None
    assert installed.published[-1] == "cell-1"
    assert not installed.source.book(PARTNER).exists()
    status = await installed.target.partner(PARTNER)
    assert epoch is not None
    assert status["epoch"] > epoch + 1
    changes = await installed.registry.changes(PARTNER)
    assert changes[0].what == "partner_moved"
    assert 0 <= changes[0].detail["pause_ms"] < 5_000
    assert "token" not in changes[0].detail


async def test_the_old_cell_tells_where_it_went_with_the_proof(installed: Installed) -> None:
    await installed.onboard()
    await installed.moves.move(PARTNER, "cell-1", "ann")
    answer = await installed.write(installed.source, "late")
    assert code(answer) is RefusalCode.PARTNER_MOVED
    assert isinstance(answer, Refused)
    receipt = moves.decode_receipt(bytes.fromhex(str(answer.refusal.context["receipt"])))
    assert (receipt.to, answer.refusal.context["to"], answer.refusal.context["tried"]) == ("cell-1", "cell-1", 0)
    assert receipt.directory_version == DIRECTORY_VERSION, "a router that does not know that cell needs this one"


async def test_a_command_that_waits_for_the_move_is_sent_on_and_one_that_was_under_way_is_found(
    installed: Installed,
) -> None:
    await installed.onboard()
    # Its acquirer does not answer, so that it is open when the partner moves.
    first = asyncio.create_task(installed.write(installed.source, "open"))
    await asyncio.sleep(0.1)
    waiting: list[asyncio.Task[Answer | Refused]] = []

    async def come() -> None:
        waiting.append(asyncio.create_task(installed.write(installed.source, "waits")))
        await asyncio.sleep(0)

    installed.doors.before[Method.SEAL] = come
    await installed.moves.move(PARTNER, "cell-1", "ann")
    told = await waiting[0]
    assert code(told) is RefusalCode.PARTNER_MOVED
    sent_again = await first
    if isinstance(sent_again, Refused):  # it was under way: its door can't know what became of it there
        assert sent_again.refusal.code is RefusalCode.PARTNER_MOVED
        assert sent_again.refusal.context["tried"] == 1
    there = await installed.write(installed.target, "open")
    assert isinstance(there, Answer)
    assert len(await installed.payments(installed.target)) == 1


async def test_what_is_written_while_it_is_copied_is_there_too(installed: Installed) -> None:
    await installed.onboard()
    book: dict[Any, bytes] = {}
    # A busy machine refuses some of them, so that the rows decide how many are enough: more than two batches.
    for number in range(100):
        await asyncio.gather(*(installed.write(installed.source, f"c{number}-{each}") for each in range(20)))
        book = await rows(installed.source)
        if len(book) > 2 * cell_limits.COPY_ROWS_MAX:
            break

    async def pay() -> None:
        await installed.write(installed.source, f"during-{len(installed.doors.asked)}")
        if len(installed.doors.asked) < 8:
            installed.doors.before[Method.COPY_ROWS] = pay

    installed.doors.before[Method.COPY_ROWS] = pay
    await installed.moves.move(PARTNER, "cell-1", "ann")
    assert installed.doors.asked.count(Method.COPY_ROWS) >= 3
    made = await rows(installed.target)
    assert sum(key[0] == "payment" for key in made) > sum(key[0] == "payment" for key in book)


async def test_who_writes_faster_than_it_is_copied_stays_and_is_served(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MOVE_ROWS_LEFT_MAX", 0)
    monkeypatch.setattr(limits, "MOVE_CATCH_UP_BATCHES_MAX", 2)
    await installed.onboard()

    async def pay() -> None:
        """Change more rows than the next batch takes."""
        made = 0
        for number in range(100):
            name = f"c{len(installed.doors.asked)}-{number}"
            writes = (installed.write(installed.source, f"{name}-{each}") for each in range(20))
            made += sum(isinstance(answer, Answer) for answer in await asyncio.gather(*writes))
            if made >= 60:
                break
        installed.doors.before[Method.COPY_ROWS] = pay

    installed.doors.before[Method.COPY_ROWS] = pay
    with pytest.raises(MoveAbortedError, match="changes faster than it is copied"):
        await installed.moves.move(PARTNER, "cell-1", "ann")
    assert installed.registry.partner(PARTNER).cell == "cell-0"
    assert isinstance(await installed.write(installed.source, "after"), Answer)


async def test_nobody_is_moved_to_where_no_worker_is_ready(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    await installed.onboard()
    take_spare = installed.target.workforce.take_spare
    monkeypatch.setattr(installed.target.workforce, "take_spare", lambda: None)
    moving = asyncio.create_task(installed.moves.move(PARTNER, "cell-1", "ann"))
    for _ in range(200):
        move = installed.registry.move(PARTNER)
        if move is not None and "no worker is ready" in move.why:
            break
        await asyncio.sleep(0.01)
    assert "no worker is ready" in installed.registry.moves()[0].why
    assert isinstance(await installed.write(installed.source, "c1"), Answer)
    assert not {Method.BEGIN_LEAVING, Method.QUIESCE} & set(installed.doors.asked)
    monkeypatch.setattr(installed.target.workforce, "take_spare", take_spare)
    await asyncio.wait_for(moving, 30)
    assert len(await installed.payments(installed.target)) == 1


async def test_a_place_is_held_for_who_comes_and_given_back_where_it_does_not(installed: Installed) -> None:
    await installed.onboard()
    links = installed.target.workforce.links
    for _ in range(3_000):
        if links:
            break
        await asyncio.sleep(0.01)
    (spare,) = [link for link in links.values() if not link.partners]

    async def die() -> None:
        assert spare.partners == {PARTNER}
        raise DoorError("as the test ordered")

    installed.doors.before[Method.BEGIN_LEAVING] = die
    await installed.moves.move(PARTNER, "cell-1", "ann")
    assert installed.target.link(PARTNER) is spare
    await installed.moves.move(PARTNER, "cell-0", "ann")
    assert not spare.partners

    async def abort() -> None:
        asked.append(asyncio.create_task(installed.moves.abort(PARTNER, "ann")))
        raise DoorError("as the test ordered")

    asked: list[asyncio.Task[Any]] = []
    installed.doors.before[Method.BEGIN_LEAVING] = abort
    with pytest.raises(MoveAbortedError):
        await installed.moves.move(PARTNER, "cell-1", "ann")
    await asked[0]
    assert PARTNER not in {name for link in installed.target.workforce.links.values() for name in link.partners}


async def test_the_pause_that_is_told_lasts_until_the_partner_is_served(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    await installed.onboard()
    activate = installed.target.door._ownership._activate

    async def slowly(*arguments: Any) -> None:
        await asyncio.sleep(0.6)
        await activate(*arguments)

    monkeypatch.setattr(installed.target.door._ownership, "_activate", slowly)
    ended = await installed.moves.move(PARTNER, "cell-1", "ann")
    assert ended.pause_ms is not None
    assert ended.pause_ms >= 600
    assert isinstance(await installed.write(installed.target, "c1"), Answer)


async def test_there_and_back_again(installed: Installed) -> None:
    await installed.onboard()
    await installed.write(installed.source, "c1")
    await installed.moves.move(PARTNER, "cell-1", "ann")
    await installed.write(installed.target, "c2")
    first = (await installed.target.partner(PARTNER))["epoch"]
    await installed.moves.move(PARTNER, "cell-0", "ann")
    assert len(await installed.payments(installed.source)) == 2
    assert code(await installed.write(installed.target, "c3")) is RefusalCode.PARTNER_MOVED
    assert (await installed.source.partner(PARTNER))["epoch"] > first


async def test_a_pooled_partner_leaves_its_mates_alone(installed: Installed) -> None:
    await installed.onboard(isolation="pooled")
    for mate in ("beta", "gamma"):
        profile = {"partner_id": mate, "version": 1, "isolation": "pooled"}
        await installed.source.control(Method.ONBOARD, {"profile": profile})
    pool = installed.source.link("beta")
    await installed.moves.move(PARTNER, "cell-1", "ann")
    assert installed.source.link("beta") is pool
    assert pool.partners == {"beta", "gamma"}
    for mate in ("beta", "gamma"):
        await installed.source.serves(mate)


# What can't be moved


async def test_who_is_not_there_and_where_nobody_lives(installed: Installed) -> None:
    await installed.onboard()
    with pytest.raises(NotFoundError, match="there is no cell"):
        await installed.moves.move(PARTNER, "cell-7", "ann")
    with pytest.raises(RefusedError, match="is in cell-0 already"):
        await installed.moves.move(PARTNER, "cell-0", "ann")
    with pytest.raises(NotFoundError):
        await installed.moves.move("nobody", "cell-1", "ann")
    with pytest.raises(NotFoundError):
        await installed.moves.abort(PARTNER, "ann")


@pytest.mark.parametrize("method", [Method.SEAL, Method.BEGIN_ARRIVAL, Method.TAKE_ROWS, Method.ERASE_MOVED])
async def test_only_the_control_plane_moves_partners(installed: Installed, method: str) -> None:
    await installed.onboard()
    request = Request("router", method, PARTNER, 1_000, messages.encode_command(Command("c", "r", {})))
    assert code(messages.decode_answer(await installed.source.door.handle(request))) is RefusalCode.INTERNAL_ERROR


async def test_a_batch_that_comes_twice_or_out_of_turn(installed: Installed) -> None:
    await installed.onboard()
    await installed.write(installed.source, "c1")
    doors = DoorMoves(installed.doors)
    move = Move("move_1", PARTNER, "cell-0", "cell-1", "t" * 64, "copying", 1, "ann", "")
    await doors.begin_arrival(move, to_profile(installed.registry.partner(PARTNER)))
    await doors.begin_leaving(move)
    first = await doors.copy_rows(move, 0)
    assert (await doors.copy_rows(move, 0)).data == first.data
    arrived = await doors.take_rows(move, first.data)
    assert await doors.take_rows(move, first.data) == arrived
    second = await doors.copy_rows(move, 1)
    third = await doors.copy_rows(move, 2)
    with pytest.raises(CopyLostError, match="batch 1 comes next"):
        await doors.take_rows(move, third.data)
    await doors.take_rows(move, second.data)
    with pytest.raises(CopyLostError, match="attempt 1"):
        await doors.begin_arrival(move, to_profile(installed.registry.partner(PARTNER)))


async def test_a_damaged_copy_is_never_sealed(installed: Installed) -> None:
    await installed.onboard()
    await installed.write(installed.source, "c1")
    doors = DoorMoves(installed.doors)
    move = Move("move_1", PARTNER, "cell-0", "cell-1", "t" * 64, "copying", 1, "ann", "")
    await doors.begin_arrival(move, to_profile(installed.registry.partner(PARTNER)))
    await doors.begin_leaving(move)
    batch = (await doors.copy_rows(move, 0)).batch
    altered = replace(batch, rows=(*batch.rows[:-1], (batch.rows[-1][0], b"other")))
    await doors.take_rows(move, moves.encode_batch(altered))
    last = await doors.quiesce(move, 1)
    arrival = await doors.take_rows(move, last.data)
    with pytest.raises(CopyLostError):
        await doors.seal(move, arrival, DIRECTORY_VERSION)
    await asyncio.sleep(0.1)
    assert isinstance(await installed.write(installed.source, "c2"), Answer)
