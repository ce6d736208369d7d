"""Partners on their way from one cell to another: the steps, written down before they are taken, each repeatable.

A move is driven by its row in the registry (move_record.py). Whatever ends in the middle, this control plane, a door or
a worker, it goes on from there: before the seal by beginning the copy anew, after it only forward. The rules are those
of docs/protocol.md; the cells hold them, also against a control plane that is late, doubled or wrong.
"""

import asyncio
import secrets
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import structlog

from cells.api.ids import new_ulid
from cells.api.messages import MessageError, Profile
from cells.api.moves import Arrival, decode_receipt, encode_receipt
from control_plane import dry_run, limits, registry_moves
from control_plane.data_folder import timestamp
from control_plane.door_moves import Copied, CopyLostError, DoorMoves, NotReadyError, Opened, evacuated
from control_plane.dry_run import DryRunDone
from control_plane.errors import ControlPlaneError, DoorError, NotFoundError, RefusedError
from control_plane.move_record import Move, burial_of_arrival, is_caught_up, may_abort, way_between
from control_plane.registry import Registry
from control_plane.registry_records import Partner

log = structlog.get_logger()


class MoveAbortedError(RefusedError):
    """The partner was not moved: it is served where it was. `pause_ms`: as of a move, what it cost all the same."""

    def __init__(self, what: str, *, pause_ms: int | None, where: str = "", hint: str = "") -> None:
        super().__init__(what, where=where, hint=hint)
        self.pause_ms = pause_ms


class Moves:
    """All moves of this installation. One at a time for each partner, side by side for different ones.

    `directory_version` gives the one that is published now: it has every cell of `places`.
    """

    def __init__(
        self,
        registry: Registry,
        doors: DoorMoves,
        publish: Callable[[], Awaitable[object]],
        directory_version: Callable[[], int],
        to_profile: Callable[[Partner], Profile],
        places: Callable[[], Mapping[str, Mapping[str, Any]]],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._registry = registry
        self._doors = doors
        self._now_ms = now_ms
        self._publish = publish
        self._directory_version = directory_version
        self._to_profile = to_profile
        self._places = places
        self._monotonic = monotonic
        self._tasks: dict[str, asyncio.Task[Move]] = {}
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._slots: dict[tuple[str, str], asyncio.Semaphore] = {}
        self._aborting: set[str] = set()
        self._not_before: dict[str, float] = {}
        self._opening: dict[str, tuple[str, float]] = {}  # by partner: whose target is asked to serve it, since when

    def running(self) -> list[Move]:
        """Give the moves that did not end, by partner."""
        return self._registry.moves()

    async def move(self, partner_id: str, to_cell: str, who: str) -> Move:
        """Move a partner and give the move as it ended; one that is under way to that cell is joined.

        Raises NotFoundError, RefusedError, and MoveAbortedError where the partner stayed where it was.
        """
        return await asyncio.shield(await self.start(partner_id, to_cell, who))

    async def start(self, partner_id: str, to_cell: str, who: str) -> "asyncio.Task[Move]":
        """Write a move down and begin it. Raises NotFoundError, RefusedError."""
        async with self._locks.setdefault(partner_id, asyncio.Lock()):
            held = self._registry.move(partner_id)
            if held is None:
                held = await registry_moves.begin_move(self._registry, self._new(partner_id, to_cell, who))
            elif held.target != to_cell:
                raise RefusedError(
                    f"{partner_id} is on its way to {held.target} already",
                    hint=f"wait for its end, or abort it: bulkhead partner move {partner_id} --abort",
                )
            elif dry_run.ASKED.get():
                raise DryRunDone(())  # it is joined, which writes nothing
            return self._run(held)

    def new_evacuation(self, partner_id: str, to_cell: str, who: str) -> Move:
        """Give the move that takes a partner over from a cell that is dead; its owners there are fenced.

        The cell is not asked, so it may be alive after all: then the partner's requests are sent on by its tombstone
        as soon as it is told. Raises RefusedError where the two cells share no FoundationDB cluster.
        """
        new = self._new(partner_id, to_cell, who)
        if new.way != "hand_over":
            raise RefusedError(
                f"{partner_id}'s book is in {new.source}'s own files: only that cell can give it",
                hint="bring the cell back; evacuation is for cells that share a FoundationDB cluster",
            )
        return replace(new.paused(None), way="evacuate")

    def fence(self, held: Move) -> Move:
        """Give the move that goes on with a hand-over whose source is dead, and does not ask it any more.

        One that was being taken back is another one: its target may have been told that it is over, for good.
        """
        fenced = held.as_evacuation()
        if held.state != "aborting":
            return fenced
        return replace(fenced, id=f"move_{new_ulid()}", token=secrets.token_hex(32))

    async def abort(self, partner_id: str, who: str) -> Move:
        """Take a move back that is not sealed yet, and give it. Raises NotFoundError, RefusedError."""
        held = self._registry.move(partner_id)
        if held is None:
            raise NotFoundError(f"{partner_id} is on no way anywhere", hint="see the moves: bulkhead partner moves")
        if held.way == "evacuate" and not held.has_arrived:
            raise RefusedError(
                f"{partner_id} is taken over from {held.source}, which is dead: that can only go forward",
                hint=f"where {held.target} died too: bulkhead cell evacuate {held.target}",
            )
        if not may_abort(held):
            raise RefusedError(
                f"{partner_id} is served by {held.target} already: its move can only go forward",
                hint=f"move it back: bulkhead partner move {partner_id} --to {held.source}",
            )
        await self._registry.note(who, "partner_move_abort_asked", partner_id, {"move": held.id})
        if self._registry.move(partner_id) is None:
            raise NotFoundError(f"{partner_id}'s move ended just now", hint=f"see: bulkhead partner show {partner_id}")
        self._aborting.add(partner_id)
        try:
            await asyncio.wait([self._run(held)])
        finally:
            self._aborting.discard(partner_id)  # it went forward all the same, or its row says that it was aborted
        return held

    async def resume(self) -> None:
        """Go on with every move that did not end: after a start, and with those that wait for a cell."""
        for move in self._registry.moves():
            if self._monotonic() >= self._not_before.get(move.partner_id, 0.0):
                self._run(move)

    async def halt(self, partner_ids: Iterable[str]) -> None:
        """Leave these partners' moves where they are; `resume` goes on with what their rows say by then."""
        tasks = [task for name in partner_ids if (task := self._tasks.pop(name, None)) is not None]
        for task in tasks:
            task.cancel()
            self._not_before.pop(task.get_name(), None)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def stop(self) -> None:
        """Leave all moves where they are; their rows say where that is."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Inside

    def _new(self, partner_id: str, to_cell: str, who: str) -> Move:
        partner = self._registry.partner(partner_id)
        if partner.status == "onboarding":
            raise RefusedError(f"partner {partner_id!r} is still being onboarded", where=partner.cell)
        if partner.status == "erasing":
            raise RefusedError(f"{partner_id} is being erased, so it stays where it is", where=partner.cell)
        places = self._places()
        if to_cell not in places:
            raise NotFoundError(f"there is no cell {to_cell!r}", hint="see them all: bulkhead cell list")
        if partner.cell == to_cell:
            raise RefusedError(f"{partner_id} is in {to_cell} already")
        return Move(
            id=f"move_{new_ulid()}",
            partner_id=partner_id,
            source=partner.cell,
            target=to_cell,
            token=secrets.token_hex(32),
            state="copying",
            attempt=1,
            who=who,
            started_at=timestamp(),
            way=way_between(places[partner.cell], places[to_cell]),
        )

    def _run(self, move: Move) -> "asyncio.Task[Move]":
        task = self._tasks.get(move.partner_id)
        if task is None or task.done():
            task = self._tasks[move.partner_id] = asyncio.create_task(self._carry_out(move), name=move.partner_id)
            task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[Move]") -> None:
        if task.cancelled() or task.exception() is None:
            return
        self._not_before[task.get_name()] = self._monotonic() + limits.MOVE_RESUME_DELAY_MS / 1_000
        log.warning("move_ended", partner=task.get_name(), error=str(task.exception()))

    async def _carry_out(self, move: Move) -> Move:
        """Take step after step until the move has ended, whatever state it is found in."""
        while True:
            move = self._registry.move(move.partner_id) or move
            match move.state:
                case "copying" if move.way == "copy":
                    move = await self._try(move, self._copy)
                case "copying":
                    move = await self._try(move, self._take_over)
                case "sealing":
                    move = await self._try(move, self._find_out)
                case "aborting":
                    move = await self._try(move, self._take_back)
                case "clearing":
                    move = await self._try(move, self._compare)
                case _:
                    return await self._try(move, self._erase)

    async def _try(self, move: Move, step: Callable[[Move], Awaitable[Move]]) -> Move:
        """Take a step, again and again until it passes: what fails is written down where operators see it."""
        delay_ms = limits.MOVE_RETRY_DELAY_MS_MIN
        began = self._monotonic()
        began_as = move.state, move.way
        while True:
            try:
                if move.partner_id in self._aborting and move.state == "copying" and may_abort(move):
                    return await registry_moves.put_move(
                        self._registry, replace(move, state="aborting", why="an operator aborted it")
                    )
                async with self._slots_between(move):
                    return await step(move)
            except NotReadyError as error:
                delay_ms = limits.MOVE_RETRY_DELAY_MS_MIN  # who looks often takes the next worker
                is_over = self._monotonic() - began > limits.MOVE_READY_WAIT_MS_MAX / 1_000
                found = self._registry.move(move.partner_id) or move
                is_over = is_over and may_abort(found)
                move = replace(found, state="aborting", why=error.what) if is_over else replace(found, why=error.what)
                if move != found:
                    move = await registry_moves.put_move(self._registry, move)
            except (DoorError, CopyLostError, MessageError) as error:
                why = error.what if isinstance(error, ControlPlaneError) else str(error)
                log.warning("move_step_failed", partner=move.partner_id, state=move.state, error=why)
                move = await self._failed(move, why)
            if (move.state, move.way) != began_as:
                return move  # another step is next: of one that was sealing the source is asked what became of it
            await asyncio.sleep(delay_ms / 1_000)
            delay_ms = min(delay_ms * 2, limits.MOVE_RETRY_DELAY_MS_MAX)
            move = self._registry.move(move.partner_id) or move
            if (move.state, move.way) != began_as:
                return move

    def _slots_between(self, move: Move) -> asyncio.Semaphore:
        """Give what bounds the steps between two cells: those of a cell that hangs hold up no others."""
        return self._slots.setdefault((move.source, move.target), asyncio.Semaphore(limits.MOVE_STEPS_AT_ONCE_MAX))

    async def _failed(self, move: Move, why: str) -> Move:
        current = self._registry.move(move.partner_id) or move
        if current.state != "copying":
            return await registry_moves.put_move(self._registry, replace(current, why=why))
        if current.attempt >= limits.MOVE_ATTEMPTS_MAX and current.way != "evacuate":
            return await registry_moves.put_move(self._registry, replace(current, state="aborting", why=why))
        return await registry_moves.put_move(self._registry, current.tried_again(why))

    # Steps

    async def _copy(self, move: Move) -> Move:
        """Copy while the partner is served, then seal and open: the way on which nothing fails."""
        profile = self._to_profile(self._registry.partner(move.partner_id))
        await self._doors.begin_arrival(move, profile)
        await self._doors.begin_leaving(move)
        number = scanned_at = 0
        while True:
            began = self._monotonic()
            copied = await self._doors.copy_rows(move, number)
            arrival = await self._doors.take_rows(move, copied.data)
            number += 1
            batch = copied.batch
            is_near = is_caught_up(
                is_scanned=batch.is_scanned, changed=batch.changed, rows_max=limits.MOVE_ROWS_LEFT_MAX
            )
            if is_near and await self._has_place(move):
                break
            if move.partner_id in self._aborting:
                raise CopyLostError("an operator aborted it")
            scanned_at = scanned_at or (number if batch.is_scanned else 0)
            if scanned_at and number - scanned_at >= limits.MOVE_CATCH_UP_BATCHES_MAX:
                why = (
                    f"after {number} batches {batch.changed} rows are left: the book changes faster than it is copied, "
                    f"or {move.target} has no worker ready for it"
                )
                return await registry_moves.put_move(self._registry, replace(move, state="aborting", why=why))
            # A copy takes half of the time at most; the rest is its cells' partners'.
            await asyncio.sleep(self._monotonic() - began)
        sealing = replace(move, state="sealing", rows=arrival.rows, quiesced_at_ms=self._now_ms())
        move = await registry_moves.put_move(self._registry, sealing)
        began = self._monotonic()
        left: Copied | None = await self._doors.quiesce(move, number)
        while left is not None:
            arrival = await self._doors.take_rows(move, left.data)
            number += 1
            left = None if arrival.is_complete else await self._doors.copy_rows(move, number)
        receipt = await self._doors.seal(move, arrival, self._directory_version())
        await self._open(move, receipt, profile)
        pause_ms = int((self._monotonic() - began) * 1_000)
        return await self._arrived(replace(move.paused(pause_ms), rows=arrival.rows))

    async def _has_place(self, move: Move) -> bool:
        """Say whether the target still has a ready worker for who comes: its door or worker of then may be gone.

        Where not, it is waited for a little, and copied on meanwhile: what there is of the copy is not thrown away.
        """
        try:
            await self._doors.hold_place(move)
        except NotReadyError:
            await asyncio.sleep(limits.MOVE_RETRY_DELAY_MS_MIN / 1_000)
            return False
        return True

    async def _take_over(self, move: Move) -> Move:
        """Have the target take the book over where it stands: nothing is copied."""
        profile = self._to_profile(self._registry.partner(move.partner_id))
        if move.way == "evacuate" and move.attempt > 1 and await self._is_open(move, profile):
            return await self._arrived(move)
        places = self._places()
        await self._doors.begin_arrival(move, profile, [places[cell] for cell in move.left])
        if move.way == "evacuate":
            return await registry_moves.put_move(self._registry, replace(move, state="sealing"))
        await self._doors.begin_leaving(move)
        move = await registry_moves.put_move(
            self._registry, replace(move, state="sealing", quiesced_at_ms=self._now_ms())
        )
        began = self._monotonic()
        await self._doors.quiesce(move, None)
        receipt = await self._doors.seal(move, Arrival(move.id, 0), self._directory_version())
        await self._open(move, receipt, profile)
        return await self._arrived(move.paused(int((self._monotonic() - began) * 1_000)))

    async def _is_open(self, move: Move, profile: Profile) -> bool:
        """Say whether the target serves the partner already: a router may have opened it, or this before it ended."""
        try:
            await self._doors.open_arrival(move, _evacuated(move), profile)
        except CopyLostError as error:
            log.info("not_open_yet", partner=move.partner_id, why=error.what)
            return False
        return True

    async def _find_out(self, move: Move) -> Move:
        """Ask the source whether it sealed: forward if it did, the copy anew if not. A dead one is not asked.

        The doors tell for how long the partner's commands waited. One that was started meanwhile can't; then it is
        the longest that it can have been.
        """
        if move.way == "evacuate":
            profile = self._to_profile(self._registry.partner(move.partner_id))
            await self._doors.open_arrival(move, _evacuated(move), profile)
            return await self._arrived(move)
        left = await self._doors.end_leaving(move)
        if left.receipt is None:
            waited_ms = self._waited_ms(move)
            longest_ms = None if waited_ms is None else min(waited_ms, limits.QUIESCE_LEASE_MS)
            told = move.paused(longest_ms if left.held_ms is None else left.held_ms)
            return await registry_moves.put_move(self._registry, told.tried_again(move.why or "it was not sealed"))
        decode_receipt(left.receipt)
        profile = self._to_profile(self._registry.partner(move.partner_id))
        opened = await self._open(move, left.receipt, profile)
        if left.held_ms is not None and opened.in_ms is not None:
            # Between the two nobody waited: whoever came was given the receipt, and had the target open the book.
            return await self._arrived(move.paused(left.held_ms + opened.in_ms))
        return await self._arrived(move.paused(None if opened.was_open else self._waited_ms(move)))

    async def _open(self, move: Move, receipt: bytes, profile: Profile) -> Opened:
        """Have the target serve the partner, and tell how long that took: since it was asked first, if it was away."""
        move_id, since = self._opening.get(move.partner_id, ("", 0.0))
        is_first = move_id != move.id
        if is_first:
            since = self._monotonic()
            self._opening[move.partner_id] = move.id, since
        opened = await self._doors.open_arrival(move, receipt, profile)
        del self._opening[move.partner_id]
        if opened.was_open and is_first:
            return opened
        return replace(opened, in_ms=int((self._monotonic() - since) * 1_000))

    def _waited_ms(self, move: Move) -> int | None:
        """Give for how long a partner's commands can wait by now; None: not known, or the clock was set back."""
        waited_ms = -1 if move.quiesced_at_ms is None else self._now_ms() - move.quiesced_at_ms
        return None if waited_ms < 0 else waited_ms

    async def _arrived(self, move: Move) -> Move:
        moved = await registry_moves.partner_moved(self._registry, replace(move, state="clearing", why=""))
        log.info("partner_moved", partner=move.partner_id, to=move.target, pause_ms=move.pause_ms, rows=move.rows)
        return moved

    async def _compare(self, move: Move) -> Move:
        """Publish where the partner is; then hold what came there against what was sealed."""
        await self._publish()
        if move.way != "copy":
            return await registry_moves.put_move(self._registry, replace(move, state="erasing", why=""))
        arrival: Arrival = await self._doors.arrival_status(move)
        content, rows = await self._doors.sum_rows(move)
        if (content, rows) != (arrival.content, arrival.rows):
            # Not tried again at once: it takes a person, and reading both books costs their cells something.
            raise RefusedError(
                f"the books differ: {rows} rows were sealed in {move.source}, {arrival.rows} came to {move.target}",
                where=f"{move.partner_id}'s books",
                hint="the old book is kept; ask for help before anything is removed",
            )
        return await registry_moves.put_move(self._registry, replace(move, state="erasing", why=""))

    async def _erase(self, move: Move) -> Move:
        """Erase the old book; the new one has all of it."""
        if move.way == "copy":
            await self._doors.erase_moved(move)
        return await registry_moves.end_move(self._registry, move, "partner_moved")

    async def _take_back(self, move: Move) -> Move:
        """Serve the partner where it was, and remove what arrived; where it is sealed, go forward all the same.

        A target that gives no answer is told when it is back: nobody waits for it.
        """
        left = await self._doors.end_leaving(move)
        if left.receipt is not None:
            self._aborting.discard(move.partner_id)
            return await registry_moves.put_move(self._registry, replace(move, state="sealing"))
        untold = []
        try:
            await self._doors.end_arrival(move)
        except DoorError as error:
            log.warning("target_not_told", partner=move.partner_id, cell=move.target, error=error.what)
            untold = [burial_of_arrival(move)]
        ended = await registry_moves.end_move(self._registry, move, "partner_not_moved", untold)
        if ended is not move:
            return ended  # another one took its place meanwhile
        self._aborting.discard(move.partner_id)
        raise MoveAbortedError(
            f"{ended.partner_id} stays in {ended.source}: {ended.why}",
            pause_ms=ended.pause_ms,
            where=f"its move to {ended.target}",
            hint="nothing is lost; ask again once that is mended",
        )


def _evacuated(move: Move) -> bytes:
    return encode_receipt(evacuated(move.id, move.target, move.token))
