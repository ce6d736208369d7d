"""The door's side of partners that leave for another cell: copy, quiesce, seal, and the tombstone that stays.

A partner is served until it is quiesced. From then on its commands wait, for QUIESCE_LEASE_MS at most and no longer
than the connection lasts on which that was asked for: nobody has to come back for it to be served again. With the seal
it is gone; what waits, and what comes later, is told where it went.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgpack
import structlog

from actors import keyspace
from actors.errors import StoreError, StoreMissingError
from actors.store import Clear, Put
from cells import door_answers, door_metrics, limits
from cells.api import messages, moves
from cells.api.connection import PeerError, Request
from cells.api.messages import NOT_MINE, Answer, MessageError, Method, RefusalCode, Refused
from cells.api.moves import Receipt
from cells.cell_book import CellBook
from cells.ownership import Ownership
from cells.seats import Seat
from cells.worker_moves import copy_lost, fields
from cells.workforce import Link
from stores.shelf import Shelf

log = structlog.get_logger()


@dataclass(eq=False, slots=True)
class _Departure:
    """One copy of a partner on its way out. `over` ends the time in which its commands wait."""

    move_id: str
    link: Link
    hold: "asyncio.Task[None] | None" = None
    is_over: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Departures:
    """Who leaves this cell, and who left it."""

    def __init__(self, seats: dict[str, Seat], book: CellBook, shelf: Shelf, ownership: Ownership) -> None:
        self._seats = seats
        self._book = book
        self._shelf = shelf
        self._ownership = ownership
        self._departing: dict[str, _Departure] = {}
        # By which move each partner's commands waited last, and how long, in ms: one for each that was here, at most.
        self._held: dict[str, tuple[str, int]] = {}
        self.tombstones: dict[str, Receipt] = {}
        self._not_kept: set[str] = set()  # tombstones that only this door knows of
        # Expects a partner no more whose book another cell took over (arrivals.py).
        self.end_arrival: Callable[[str, str], Awaitable[bytes | None]] | None = None
        ownership.on_sealed = self._depart

    def tombstone(self, partner_id: str) -> bytes | None:
        """Give the answer to whoever asks for a partner that left; None where it was never here."""
        receipt = self.tombstones.get(partner_id)
        return None if receipt is None else door_answers.moved(receipt)

    async def handle(self, request: Request) -> bytes:
        """Answer the control plane. Raises MessageError."""
        match request.method:
            case Method.BEGIN_LEAVING:
                return await self._begin(request)
            case Method.COPY_ROWS:
                return await self._copy(request)
            case Method.QUIESCE:
                return await self._quiesce(request)
            case Method.SEAL:
                return await self._seal(request)
            case Method.END_LEAVING:
                return await self._end(request)
            case Method.SUM_ROWS:
                return await self._sum(request)
            case Method.BURY_MOVED:
                return await self._bury(request)
            case _:
                return await self._erase(request)

    async def stop(self) -> None:
        """Hold nobody any more."""
        holds = [departure.hold for departure in self._departing.values() if departure.hold is not None]
        for hold in holds:
            hold.cancel()
        await asyncio.gather(*holds, return_exceptions=True)

    # Steps

    async def _begin(self, request: Request) -> bytes:
        (move_id,) = fields(request, move_id=str)
        seat = self._seats.get(request.partner_id)
        if seat is None:
            return self._not_here(request.partner_id)
        if seat.is_quarantined:
            return copy_lost("the partner is quarantined; release it first")
        departure = self._departing.get(request.partner_id)
        if departure is not None:
            await self._resume(departure)
        link = seat.link
        if link is None or not seat.is_ready:
            return copy_lost(f"the partner is not served now ({seat.why or seat.state})")
        body = await self._ask(seat, link, request.method, {"move_id": move_id, "door_epoch": self._book.door_epoch})
        if not _is_refused(body):
            self._departing[seat.partner_id] = _Departure(move_id, link)
            if self._held_ms(seat.partner_id, move_id) is None:
                self._held[seat.partner_id] = move_id, 0
        return body

    async def _copy(self, request: Request) -> bytes:
        found = self._going_on(request)
        if isinstance(found, bytes):
            return found
        seat, departure = found
        return await self._ask(seat, departure.link, request.method, msgpack.unpackb(request.body))

    async def _quiesce(self, request: Request) -> bytes:
        found = self._going_on(request)
        if isinstance(found, bytes):
            return found
        seat, departure = found
        async with departure.lock:
            if departure.hold is None and seat.is_handed_over:
                return copy_lost("the partner is being handed to another worker")
            if departure.hold is None:
                seat.is_handed_over = True  # from now on what comes waits
                seat.changed.clear()
                hold = self._hold(seat, departure, request.asker_left)
                departure.hold = asyncio.create_task(hold, name=f"hold-{seat.partner_id}")
                seat.activation = departure.hold  # nobody else gives it a worker meanwhile
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(limits.QUIESCE_DRAIN_MS_MAX / 1_000):
                        while seat.under_way:
                            await seat.quiet.wait()
                # Told before: what is sent back by the stopping actor is nobody's fault.
                seat.handovers += 1
            body = await self._ask(seat, departure.link, request.method, msgpack.unpackb(request.body))
            if _is_refused(body):
                departure.over.set()
            return body

    async def _seal(self, request: Request) -> bytes:
        found = self._going_on(request)
        if isinstance(found, bytes):
            return found
        seat, departure = found
        async with departure.lock:
            if departure.hold is None or departure.is_over:
                return copy_lost("the partner is not quiesced, or no more")
            body = await self._ask(seat, departure.link, request.method, msgpack.unpackb(request.body))
            answer = messages.decode_answer(body)
            if isinstance(answer, Answer):
                departure.is_over = True
                await self._depart(seat, moves.decode_receipt(answer.body))
                if seat.partner_id in self._not_kept:
                    body = copy_lost("it is sealed, and its tombstone could not be kept; ask again")
            # Otherwise it may be sealed all the same: whoever opens the book next finds out.
            departure.over.set()
            return body

    async def _end(self, request: Request) -> bytes:
        """Serve the partner again, unless it is sealed; say whether it is, and for how long its commands waited."""
        (move_id,) = fields(request, move_id=str)
        partner_id = request.partner_id
        deadline = time.monotonic() + limits.MOVE_TIMEOUT_MS / 1_000
        departure = self._departing.get(partner_id)
        if departure is not None and departure.move_id == move_id:
            await self._resume(departure)
        receipt = self.tombstones.get(partner_id)
        if receipt is not None and receipt.move_id == move_id:
            return await self._told(partner_id, receipt)
        seat = self._seats.get(partner_id)
        if seat is None:
            return self._not_here(partner_id)
        # A seal whose outcome was lost shows when the book is opened.
        if not await self._ownership.wait_settled(seat, int((deadline - time.monotonic()) * 1_000)):
            return copy_lost("whether it is sealed is not known yet; ask again")
        if seat.is_quarantined and seat.receipt is None:
            try:
                await self._look_for_seal(seat)
            except StoreError as error:
                return copy_lost(f"whether it is sealed is not known yet: {type(error).__name__}: {error}")
        receipt = self.tombstones.get(partner_id)
        if receipt is not None and receipt.move_id == move_id:
            return await self._told(partner_id, receipt)
        return door_answers.ok({"receipt": "", "held_ms": self._held_ms(partner_id, move_id)})

    async def _told(self, partner_id: str, receipt: Receipt) -> bytes:
        """Give the receipt, once the tombstone is kept: what follows takes the book away that would tell of it."""
        error = await self._keep(partner_id, receipt) if partner_id in self._not_kept else None
        if error is not None:
            return copy_lost(f"its tombstone can't be kept now: {type(error).__name__}: {error}")
        held_ms = self._held_ms(partner_id, receipt.move_id)
        return door_answers.ok({"receipt": moves.encode_receipt(receipt).hex(), "held_ms": held_ms})

    async def _look_for_seal(self, seat: Seat) -> None:
        """Open the book of a partner that no worker opens; a seal that is still under way comes to nothing."""
        store = await self._shelf.open("partners", seat.partner_id)
        try:
            await store.acquire(self._book.door_epoch)
            (moved,) = (await store.read([keyspace.MOVED])).values
        finally:
            await store.close()
        if moved is not None:
            await self._depart(seat, moves.decode_receipt(moved))

    async def _sum(self, request: Request) -> bytes:
        if request.partner_id not in self.tombstones:
            return copy_lost("only a sealed book stays as it is while it is read")
        link = self._ownership.any_worker()
        if link is None:
            return copy_lost("there is no worker now")
        try:
            return await link.connection.request(
                request.method, request.partner_id, request.body, limits.MOVE_TIMEOUT_MS
            )
        except PeerError as error:
            return copy_lost(str(error))

    async def _erase(self, request: Request) -> bytes:
        (move_id,) = fields(request, move_id=str)
        receipt = self.tombstones.get(request.partner_id)
        if receipt is None or receipt.move_id != move_id:
            return copy_lost("that is not the move by which the partner left")
        if request.partner_id in self._not_kept:
            error = await self._keep(request.partner_id, receipt)
            if error is not None:
                return copy_lost(f"its tombstone can't be kept now: {type(error).__name__}: {error}")
        try:
            await self._shelf.erase("partners", request.partner_id)
        except StoreError as error:
            return door_answers.refused(RefusalCode.PARTNER_UNAVAILABLE, f"{type(error).__name__}: {error}")
        log.info("moved_book_erased", partner=request.partner_id, to=receipt.to)
        return door_answers.ok({})

    async def _bury(self, request: Request) -> bytes:
        """Let go of a partner that is in another cell: its book went, or never came, while this one was away."""
        data, arrival_id = fields(request, receipt=bytes, arrival_id=str)
        receipt = moves.decode_receipt(data)
        partner_id = request.partner_id
        assert self.end_arrival is not None
        unwritten = await self.end_arrival(partner_id, arrival_id)
        if unwritten is not None:
            return unwritten
        seat = self._seats.get(partner_id)
        if seat is None:
            if partner_id not in self.tombstones:
                self.tombstones[partner_id] = receipt
                self._not_kept.add(partner_id)
            return await self._buried(partner_id)
        try:
            store = await self._shelf.open("partners", partner_id)
            await store.close()
        except StoreMissingError:
            if self._seats.get(partner_id) is not seat:
                return copy_lost("it came and went meanwhile; ask again")
            link = seat.link
            await self._depart(seat, receipt)
            if link is not None:
                await self._ownership.let_go(partner_id, link)
            return await self._buried(partner_id)
        except StoreError as error:
            return door_answers.refused(RefusalCode.PARTNER_UNAVAILABLE, f"{type(error).__name__}: {error}")
        return copy_lost("its book is here")

    # Inside

    async def _buried(self, partner_id: str) -> bytes:
        """Say that it was told, once the tombstone is kept: no book here would tell the next door of it."""
        receipt = self.tombstones[partner_id]
        error = await self._keep(partner_id, receipt) if partner_id in self._not_kept else None
        if error is not None:
            return copy_lost(f"its tombstone can't be kept now: {type(error).__name__}: {error}")
        return door_answers.ok({})

    def _going_on(self, request: Request) -> "tuple[Seat, _Departure] | bytes":
        (move_id,) = fields(request, move_id=str)
        seat = self._seats.get(request.partner_id)
        if seat is None:
            return self._not_here(request.partner_id)
        departure = self._departing.get(request.partner_id)
        if departure is None or departure.move_id != move_id or departure.is_over:
            return copy_lost("the door knows nothing of that copy, or it is over")
        if seat.link is not departure.link:
            return copy_lost("the partner has another worker than when it began")
        return seat, departure

    def _not_here(self, partner_id: str) -> bytes:
        return self.tombstone(partner_id) or door_answers.not_here(partner_id, self._book.cell)

    async def _hold(self, seat: Seat, departure: _Departure, asker_left: asyncio.Event | None) -> None:
        began = time.monotonic()
        try:
            await _wait_for_either(departure.over, asker_left, limits.QUIESCE_LEASE_MS)
            async with departure.lock:  # a seal under way ends first
                is_sealed = departure.is_over
                departure.is_over = True
            seat.is_handed_over = False
            if not is_sealed and seat.receipt is None:
                log.warning("partner_not_moved", partner=seat.partner_id, move_id=departure.move_id)
                await self._ownership.serve_again(seat, departure.link)
        finally:
            self._held[seat.partner_id] = departure.move_id, int((time.monotonic() - began) * 1_000)
            self._forget(seat.partner_id, departure)

    def _held_ms(self, partner_id: str, move_id: str) -> int | None:
        """Give for how long a partner's commands waited by that move; None: another door may know."""
        held = self._held.get(partner_id)
        return held[1] if held is not None and held[0] == move_id else None

    async def _resume(self, departure: _Departure) -> None:
        """End a copy and, where its partner was quiesced, wait until it is served again, for a time."""
        departure.over.set()
        if departure.hold is not None:
            await asyncio.wait([departure.hold], timeout=limits.MOVE_TIMEOUT_MS / 1_000)
            return
        for partner_id, found in list(self._departing.items()):
            if found is departure:
                departure.is_over = True
                self._forget(partner_id, departure)
                seat = self._seats.get(partner_id)
                if seat is not None and seat.link is departure.link:
                    await self._ask(seat, departure.link, Method.END_LEAVING, {"move_id": departure.move_id})

    def _forget(self, partner_id: str, departure: _Departure) -> None:
        if self._departing.get(partner_id) is departure:
            del self._departing[partner_id]

    async def _depart(self, seat: Seat, receipt: Receipt) -> None:
        """Take note that a partner's book is sealed. Until that is kept, the book itself tells the next door."""
        partner_id = seat.partner_id
        self.tombstones[partner_id] = receipt
        self._seats.pop(partner_id, None)
        seat.receipt = receipt
        seat.state = "moved"
        link, seat.link = seat.link, None
        if link is not None:
            self._ownership.leave(partner_id, link)
        seat.changed.set()
        await self._keep(partner_id, receipt)
        door_metrics.DEPARTED.inc()
        log.info("partner_left", partner=partner_id, to=receipt.to, epoch=receipt.epoch, sequence=receipt.sequence)

    async def _keep(self, partner_id: str, receipt: Receipt) -> StoreError | None:
        """Keep the tombstone in the cell's book; give why it could not be kept."""
        self._not_kept.add(partner_id)
        error = await self._book.write(
            Put(("moved", partner_id), moves.encode_receipt(receipt)),
            Clear(("partner", partner_id)),
            Clear(("escalation", partner_id)),
        )
        if error is None:
            self._not_kept.discard(partner_id)
        return error

    async def _ask(self, seat: Seat, link: Link, method: str, said: dict[str, Any]) -> bytes:
        try:
            body = await link.connection.request(method, seat.partner_id, msgpack.packb(said), limits.MOVE_TIMEOUT_MS)
        except PeerError as error:
            return copy_lost(f"its worker gave no answer: {error}")
        return copy_lost("its worker serves it no more") if body == NOT_MINE else body


async def _wait_for_either(one: asyncio.Event, other: asyncio.Event | None, timeout_ms: int) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in (one, other) if event is not None]
    try:
        await asyncio.wait(waits, timeout=timeout_ms / 1_000, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def read_tombstone(partner_id: str, value: bytes) -> Receipt | None:
    """Read a tombstone that the cell's book keeps; one that can't be read costs its partner's stragglers an error."""
    try:
        return moves.decode_receipt(value)
    except MessageError as error:
        log.error("tombstone_unreadable", partner=partner_id, error=str(error))  # noqa: TRY400 - no bug of ours
        return None


def _is_refused(body: bytes) -> bool:
    return isinstance(messages.decode_answer(body), Refused)
