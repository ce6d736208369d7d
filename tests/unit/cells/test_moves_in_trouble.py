"""A partner moves between two doors over real worker processes: what is dead, late or doubled between the steps."""

import asyncio
import contextlib
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest

from actors.errors import StoreError, StoreUnavailableError
from actors.store import Mutation
from cells import limits as cell_limits
from cells.api import messages, moves
from cells.api.connection import Request
from cells.api.messages import Answer, Method, RefusalCode, Refused
from cells.escalation import QUARANTINED, Escalation
from control_plane import limits
from control_plane.burials import Burials
from control_plane.door_moves import CopyLostError, DoorMoves
from control_plane.errors import DoorError, RefusedError
from control_plane.move_record import Move
from control_plane.moves import MoveAbortedError
from control_plane.partners import to_profile
from tests.unit.cells.open_cell import OpenCell, code
from tests.unit.cells.two_cells import DIRECTORY_VERSION, PARTNER, Installed, lose, rows, told_pause_ms

# What dies, is late or comes twice


async def kill(cell: OpenCell, partner_id: str) -> None:
    os.kill(cell.link(partner_id).endpoint.pid, signal.SIGKILL)
    await asyncio.sleep(0.05)


@pytest.mark.parametrize("method", [Method.COPY_ROWS, Method.QUIESCE, Method.SEAL])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_its_worker_dies_at_a_step(installed: Installed, method: str, when: str) -> None:
    await installed.onboard()
    await installed.write(installed.source, "c1")
    pid = installed.source.link(PARTNER).endpoint.pid

    async def die() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.05)

    getattr(installed.doors, when)[method] = die
    await asyncio.wait_for(installed.moves.move(PARTNER, "cell-1", "ann"), 20)
    assert len(await installed.payments(installed.target)) == 1


STEPS = (
    Method.BEGIN_ARRIVAL,
    Method.BEGIN_LEAVING,
    Method.COPY_ROWS,
    Method.TAKE_ROWS,
    Method.QUIESCE,
    Method.SEAL,
    Method.OPEN_ARRIVAL,
    Method.ARRIVAL_STATUS,
    Method.SUM_ROWS,
    Method.ERASE_MOVED,
)


class Killed(BaseException):
    """The control plane dies here."""


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_the_control_plane_dies_at_a_step_and_the_next_one_goes_on(
    installed: Installed, step: str, when: str
) -> None:
    await installed.onboard()
    await installed.write(installed.source, "c1")

    async def die() -> None:
        raise asyncio.CancelledError  # ends the move's task where it stands

    getattr(installed.doors, when)[step] = die
    with contextlib.suppress(asyncio.CancelledError):
        await (await installed.moves.start(PARTNER, "cell-1", "ann"))
    assert installed.registry.move(PARTNER) is not None
    await installed.moves.stop()
    installed.again()
    await installed.moves.resume()
    await asyncio.wait_for(asyncio.gather(*installed.moves._tasks.values()), 20)
    assert installed.registry.move(PARTNER) is None
    assert installed.registry.partner(PARTNER).cell == "cell-1"
    assert len(await installed.payments(installed.target)) == 1


@pytest.mark.parametrize("step", STEPS)
async def test_an_answer_is_lost_and_the_step_is_taken_again(installed: Installed, step: str) -> None:
    await installed.onboard()
    await installed.write(installed.source, "c1")

    async def lose() -> None:
        raise DoorError("the answer was lost")

    installed.doors.after[step] = lose
    await asyncio.wait_for(installed.moves.move(PARTNER, "cell-1", "ann"), 20)
    assert len(await installed.payments(installed.target)) == 1


@pytest.mark.parametrize("side", ["cell-0", "cell-1"])
@pytest.mark.parametrize("step", [Method.COPY_ROWS, Method.QUIESCE, Method.SEAL, Method.OPEN_ARRIVAL])
async def test_a_door_dies_at_a_step(installed: Installed, side: str, step: str) -> None:
    await installed.onboard()
    await installed.write(installed.source, "c1")

    async def die() -> None:
        cell = installed.cells[side]
        await cell.close()
        await cell.open(1)

    installed.doors.before[step] = die
    await asyncio.wait_for(installed.moves.move(PARTNER, "cell-1", "ann"), 30)
    assert len(await installed.payments(installed.target)) == 1


async def test_nobody_comes_back_and_the_partner_is_served_again(installed: Installed) -> None:
    await installed.onboard()

    async def die() -> None:
        raise asyncio.CancelledError

    installed.doors.after[Method.QUIESCE] = die
    with contextlib.suppress(asyncio.CancelledError):
        await (await installed.moves.start(PARTNER, "cell-1", "ann"))
    began = asyncio.get_running_loop().time()
    assert isinstance(await installed.write(installed.source, "c1", budget_ms=4_000), Answer)
    assert asyncio.get_running_loop().time() - began < 5


async def test_a_control_plane_that_dies_leaves_nobody_waiting(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell_limits, "QUIESCE_LEASE_MS", 3_600_000)
    await installed.onboard()
    waiting: list[asyncio.Task[Answer | Refused]] = []

    async def die() -> None:
        waiting.append(asyncio.create_task(installed.write(installed.source, "c1", budget_ms=20_000)))
        await asyncio.sleep(0.1)
        assert not waiting[0].done()
        installed.doors.left.set()
        raise asyncio.CancelledError

    installed.doors.before[Method.SEAL] = die
    with contextlib.suppress(asyncio.CancelledError):
        await (await installed.moves.start(PARTNER, "cell-1", "ann"))
    assert isinstance(await waiting[0], Answer), "served where it was, long before the lease ends"
    installed.again()
    await installed.moves.resume()
    await asyncio.wait_for(asyncio.gather(*installed.moves._tasks.values()), 20)
    assert installed.registry.partner(PARTNER).cell == "cell-1"
    told_ms = await told_pause_ms(installed)
    assert told_ms is not None
    assert 100 <= told_ms < 20_000


async def test_a_connection_that_ends_under_the_seal_undoes_nothing(installed: Installed) -> None:
    await installed.onboard()

    async def leave() -> None:
        installed.doors.left.set()

    installed.doors.before[Method.SEAL] = leave
    await asyncio.wait_for(installed.moves.move(PARTNER, "cell-1", "ann"), 20)
    assert await installed.payments(installed.target) == []
    assert code(await installed.write(installed.source, "late")) is RefusalCode.PARTNER_MOVED


async def test_a_seal_that_comes_after_the_lease_seals_nothing(installed: Installed) -> None:
    await installed.onboard()

    async def late() -> None:
        await asyncio.sleep(cell_limits.QUIESCE_LEASE_MS / 1_000 + 0.3)

    installed.doors.before[Method.SEAL] = late
    await asyncio.wait_for(installed.moves.move(PARTNER, "cell-1", "ann"), 20)
    assert installed.doors.asked.count(Method.SEAL) == 2
    assert len(await installed.payments(installed.target)) == 0


async def test_a_move_is_aborted_while_it_copies_and_nothing_is_left_of_it(installed: Installed) -> None:
    await installed.onboard()
    held = asyncio.Event()

    async def hold() -> None:
        held.set()
        await asyncio.sleep(0.2)

    installed.doors.before[Method.TAKE_ROWS] = hold
    task = await installed.moves.start(PARTNER, "cell-1", "ann")
    await held.wait()
    # What is under way is caught up with its first batch: so that it can be aborted, its seal is turned away once.
    installed.doors.before[Method.SEAL] = lose
    await installed.moves.abort(PARTNER, "ann")
    with pytest.raises(MoveAbortedError):
        await task
    assert installed.registry.move(PARTNER) is None
    assert installed.registry.partner(PARTNER).cell == "cell-0"
    assert not installed.target.book(PARTNER).exists()
    assert isinstance(await installed.write(installed.source, "c1"), Answer)
    assert code(await installed.write(installed.target, "c2")) is RefusalCode.PARTNER_MOVED


async def test_a_move_whose_target_died_is_given_up_and_the_target_is_told_when_it_is_back(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MOVE_ATTEMPTS_MAX", 2)
    await installed.onboard()
    await installed.write(installed.source, "c1")

    async def die() -> None:
        installed.doors.dead.add("cell-1")

    installed.doors.after[Method.TAKE_ROWS] = die
    with pytest.raises(MoveAbortedError, match="stays in cell-0"):
        await asyncio.wait_for(installed.moves.move(PARTNER, "cell-1", "ann"), 20)
    assert installed.registry.move(PARTNER) is None
    assert isinstance(await installed.write(installed.source, "c2"), Answer)
    assert installed.target.book(PARTNER).exists(), "what arrived lies there still"
    with pytest.raises(RefusedError, match="cell-1 was not told yet"):
        await installed.moves.start(PARTNER, "cell-1", "ann")

    burials = Burials(installed.registry, DoorMoves(installed.doors))
    await burials.tell()
    await asyncio.gather(*burials._telling.values())
    assert len(installed.registry.burials()) == 1, "it is dead still"
    installed.doors.dead.clear()
    for _ in range(2):
        await burials.tell()
        await asyncio.gather(*burials._telling.values())
        assert not installed.registry.burials()
        assert not installed.target.book(PARTNER).exists()
    assert code(await installed.write(installed.target, "c3")) is RefusalCode.PARTNER_MOVED
    await installed.moves.move(PARTNER, "cell-1", "ann")
    assert len(await installed.payments(installed.target)) == 2


async def test_a_router_opens_the_arrival_when_the_control_plane_is_gone(installed: Installed) -> None:
    await installed.onboard()
    await installed.write(installed.source, "c1")

    async def die() -> None:
        raise asyncio.CancelledError

    installed.doors.before[Method.OPEN_ARRIVAL] = die
    with contextlib.suppress(asyncio.CancelledError):
        await (await installed.moves.start(PARTNER, "cell-1", "ann"))
    answer = await installed.write(installed.source, "c2")
    assert isinstance(answer, Refused)
    receipt = bytes.fromhex(str(answer.refusal.context["receipt"]))
    forged = moves.encode_receipt(replace(moves.decode_receipt(receipt), token="0" * 64))
    for proof, is_opened in ((forged, False), (receipt, True), (receipt, True)):
        request = Request("router", Method.OPEN_ARRIVAL, PARTNER, 5_000, msgpack.packb({"receipt": proof}))
        opened = messages.decode_answer(await installed.target.door.handle(request))
        assert isinstance(opened, Answer) is is_opened
    assert len(await installed.payments(installed.target)) == 1
    # And the next control plane finds it done.
    installed.again()
    await installed.moves.resume()
    await asyncio.wait_for(asyncio.gather(*installed.moves._tasks.values()), 20)
    assert installed.registry.partner(PARTNER).cell == "cell-1"
    told_ms = await told_pause_ms(installed)
    assert told_ms is not None
    assert 0 <= told_ms < 20_000, "until the seal, and for as long as the router's opening took"


# A control plane that was stopped and goes on, and what is lost in the wrong moment


async def test_a_beginning_that_is_late_erases_no_sealed_book(installed: Installed) -> None:
    await installed.onboard()
    await installed.write(installed.source, "c1")
    first = await installed.moves.move(PARTNER, "cell-1", "ann")

    async def die() -> None:
        raise asyncio.CancelledError

    installed.doors.before[Method.OPEN_ARRIVAL] = die
    await asyncio.wait([await installed.moves.start(PARTNER, "cell-0", "ann")])
    held = await rows(installed.target)
    with pytest.raises(CopyLostError, match=r"nothing says that it may be erased|has ended here"):
        await DoorMoves(installed.doors).begin_arrival(first, to_profile(installed.registry.partner(PARTNER)))
    assert await rows(installed.target) == held
    await go_on(installed)
    assert len(await installed.payments(installed.source)) == 1


async def test_a_beginning_that_is_late_takes_no_later_moves_place(installed: Installed) -> None:
    await installed.onboard()
    await installed.write(installed.source, "c1")

    async def die() -> None:
        raise asyncio.CancelledError

    installed.doors.before[Method.OPEN_ARRIVAL] = die
    await asyncio.wait([await installed.moves.start(PARTNER, "cell-1", "ann")])
    late = Move("move_0", PARTNER, "cell-0", "cell-1", "t" * 64, "copying", 1, "ann", "")
    with pytest.raises(CopyLostError, match="later move"):
        await DoorMoves(installed.doors).begin_arrival(late, to_profile(installed.registry.partner(PARTNER)))
    await go_on(installed)
    assert len(await installed.payments(installed.target)) == 1


async def go_on(installed: Installed) -> None:
    installed.again()
    await installed.moves.resume()
    await asyncio.wait_for(asyncio.gather(*installed.moves._tasks.values()), 20)


async def test_a_tombstone_that_was_not_kept_is_kept_before_anything_follows(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    await installed.onboard()
    await installed.write(installed.source, "c1")
    book = installed.source.door._book
    write = book.write

    async def fail_once(*mutations: Mutation) -> StoreError | None:
        monkeypatch.setattr(book, "write", write)
        return StoreUnavailableError("as the test ordered")

    async def order() -> None:
        monkeypatch.setattr(book, "write", fail_once)

    installed.doors.before[Method.SEAL] = order
    await asyncio.wait_for(installed.moves.move(PARTNER, "cell-1", "ann"), 20)
    assert installed.doors.asked.count(Method.END_LEAVING) == 1
    await installed.source.close()
    await installed.source.open(1)
    answer = await installed.write(installed.source, "late")
    assert code(answer) is RefusalCode.PARTNER_MOVED
    assert isinstance(answer, Refused)
    assert answer.refusal.context["to"] == "cell-1"
    await installed.moves.move(PARTNER, "cell-0", "ann")
    assert len(await installed.payments(installed.source)) == 1


async def test_a_partner_that_is_quarantined_as_it_is_sealed_goes_forward(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    await installed.onboard()
    await installed.write(installed.source, "c1")
    seat = installed.source.door._seats[PARTNER]
    link = installed.source.link(PARTNER)
    request = link.connection.request

    async def lose(method: str, *rest: Any) -> bytes:
        answer = await request(method, *rest)
        if method == Method.SEAL:
            os.kill(link.endpoint.pid, signal.SIGKILL)
            installed.source.door._ownership._set_escalation(seat, Escalation(QUARANTINED, 0, "as the test ordered"))
            await asyncio.sleep(0.1)
            return messages.encode_answer(Refused(messages.Refusal(RefusalCode.PARTNER_UNAVAILABLE, "lost")))
        return answer

    monkeypatch.setattr(link.connection, "request", lose)
    await asyncio.wait_for(installed.moves.move(PARTNER, "cell-1", "ann"), 20)
    assert len(await installed.payments(installed.target)) == 1


async def test_an_abort_that_came_too_late_aborts_no_later_move(installed: Installed) -> None:
    await installed.onboard()
    aborting: list[asyncio.Task[Move]] = []

    async def abort() -> None:
        aborting.append(asyncio.create_task(installed.moves.abort(PARTNER, "ann")))
        await asyncio.sleep(0)

    installed.doors.before[Method.SEAL] = abort
    await installed.moves.move(PARTNER, "cell-1", "ann")
    await asyncio.gather(*aborting, return_exceptions=True)
    await installed.moves.move(PARTNER, "cell-0", "ann")
    assert installed.registry.partner(PARTNER).cell == "cell-0"


async def test_a_worker_dies_that_holds_a_place_for_a_partner_that_left(installed: Installed) -> None:
    await installed.onboard(isolation="pooled")
    for mate in ("beta", "gamma"):
        profile = {"partner_id": mate, "version": 1, "isolation": "pooled"}
        await installed.source.control(Method.ONBOARD, {"profile": profile})
    await installed.moves.move(PARTNER, "cell-1", "ann")
    installed.source.link("beta").partners.add(PARTNER)
    await kill(installed.source, "beta")
    for mate in ("beta", "gamma"):
        await installed.source.serves(mate)


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def test_a_seal_that_is_refused_leaves_no_book_open(installed: Installed) -> None:
    await installed.onboard()
    doors = DoorMoves(installed.doors)
    link = installed.source.link(PARTNER)
    move = Move("move_1", PARTNER, "cell-0", "cell-1", "t" * 64, "copying", 1, "ann", "")

    async def refused() -> int:
        await doors.begin_leaving(move)
        await doors.copy_rows(move, 0)
        await doors.quiesce(move, 1)
        with pytest.raises(CopyLostError):
            await doors.seal(move, moves.Arrival(move.id, 1), DIRECTORY_VERSION)
        await doors.end_leaving(move)
        return open_files(link.endpoint.pid)

    first = await refused()
    assert [await refused() for _ in range(3)][-1] <= first
