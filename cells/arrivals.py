"""The door's side of partners that come from another cell: rows until the last, then the receipt that opens the book.

Until then the book stands in its place without being a partner's: the cell's own book says which is which. The receipt
proves that the old cell sealed its book for this move, whoever brings it.
"""

import asyncio
import hmac
import time
import weakref
from typing import Any

import msgpack
import structlog

from actors import keyspace
from actors.errors import StoreError, StoreMissingError
from actors.store import Clear, Put
from actors.values import dataclass
from cells import door_answers, door_metrics, limits
from cells.api import messages, moves
from cells.api.connection import PeerError, Request
from cells.api.messages import NOT_MINE, Answer, MessageError, Method, Profile, RefusalCode
from cells.api.moves import Arrival, Receipt
from cells.arriving import read_arrival
from cells.cell_book import CellBook
from cells.ownership import Ownership
from cells.seats import Seat
from cells.worker_moves import copy_lost, fields, not_ready
from cells.workforce import Link
from stores.shelf import Shelf

log = structlog.get_logger()

_VERSION = 2
_NONE_READY = "no worker is ready here to serve it; one is being started"


@dataclass(frozen=True, slots=True)
class Expected:
    """A partner that may come, as the cell's book keeps it. A later attempt of a move begins the copy anew."""

    move_id: str
    attempt: int
    token_hash: bytes
    profile: Profile
    # Where its book may be, in other cells' places in the same store: the first ones lose it to the later ones and to
    # us, never the other way. None of them: it is copied here.
    places: tuple[dict[str, Any], ...] = ()
    # Whether the other cell seals it. A dead one can't.
    is_sealed: bool = True


class Arrivals:
    """Who is on the way into this cell."""

    def __init__(
        self,
        seats: dict[str, Seat],
        book: CellBook,
        shelf: Shelf,
        ownership: Ownership,
        tombstones: dict[str, Receipt],
    ) -> None:
        self._seats = seats
        self._book = book
        self._shelf = shelf
        self._ownership = ownership
        self._tombstones = tombstones
        self._links: dict[str, Link] = {}
        self._complete: dict[str, Arrival] = {}
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self.expected: dict[str, Expected] = {}
        # The moves that ended here, the newest last: what is said of them once more comes late.
        self.ended: dict[str, list[str]] = {}

    async def handle(self, request: Request) -> bytes:
        """Answer the control plane, or a router that brings a receipt. Raises MessageError."""
        async with self._locks.setdefault(request.partner_id, asyncio.Lock()):
            expected = self.expected.get(request.partner_id)
            answer = await self._answer(request)
        seat = self._seats.get(request.partner_id)
        is_sealed = expected is not None and expected.is_sealed
        if request.method == Method.OPEN_ARRIVAL and is_sealed and seat is not None and request.role == "control":
            # So the control plane measures what the partner waits for. Of a dead cell's no router is told before.
            await self._ownership.wait_settled(seat, limits.ARRIVAL_SERVED_WAIT_MS)
        return answer

    async def _answer(self, request: Request) -> bytes:
        match request.method:
            case Method.BEGIN_ARRIVAL:
                return await self._begin(request)
            case Method.HOLD_PLACE:
                return await self._hold(request)
            case Method.TAKE_ROWS:
                return await self._take(request)
            case Method.ARRIVAL_STATUS:
                return await self._status(request.partner_id)
            case Method.OPEN_ARRIVAL:
                return await self._open(request)
            case _:
                return await self._end(request)

    # Steps

    async def _begin(self, request: Request) -> bytes:
        """Make an empty book for what comes; what an earlier attempt left of it is removed."""
        move_id, attempt, token_hash = fields(request, move_id=str, attempt=int, token_hash=bytes)
        profile = door_answers.profile_of(request)
        partner_id = profile.partner_id
        if partner_id != request.partner_id:
            raise MessageError(f"the profile is of {partner_id!r}")
        if partner_id in self._seats:
            return copy_lost(f"{partner_id} is served here already")
        held = self.expected.get(partner_id)
        if held is not None and held.move_id == move_id and held.attempt >= attempt:
            return copy_lost(f"attempt {held.attempt} of this move was begun already")
        if held is not None and held.move_id > move_id:
            # A control plane that was stopped and goes on: what arrived may be all that a sealed book leads to.
            return copy_lost(f"a later move, {held.move_id}, was begun here")
        if move_id in self.ended.get(partner_id, ()):
            return copy_lost("that move has ended here; this was said before and comes late")
        places, is_sealed = optional_places(request)
        # What may be erased is what an earlier attempt copied here. The book of a partner that left is erased by the
        # move by which it left: until then it may be the only one.
        is_ours = held is not None and not held.places
        if not is_ours and partner_id in await self._shelf.names("partners"):
            return copy_lost(f"there is a book of {partner_id} here, and nothing says that it may be erased")
        if is_sealed and not await self._ownership.make_place(profile):
            return not_ready(_NONE_READY)
        expected = Expected(move_id, attempt, token_hash, profile, places, is_sealed)
        error = await self._book.write(Put(("arriving", partner_id), encode_expected(expected)))
        if error is not None:
            return _unavailable(error)
        self.expected[partner_id] = expected
        self._complete.pop(partner_id, None)
        try:
            await self._forget(partner_id)
            if is_ours:
                await self._shelf.erase("partners", partner_id)
            if not places:
                await self._shelf.create("partners", partner_id)
        except StoreError as found:
            return _unavailable(found)
        return door_answers.ok({})

    async def _hold(self, request: Request) -> bytes:
        """Hold a place for who comes, also where this is another door than the one that did, or its worker died."""
        (move_id,) = fields(request, move_id=str)
        expected = self.expected.get(request.partner_id)
        if expected is None or expected.move_id != move_id:
            return copy_lost(f"{request.partner_id} is not expected here by that move")
        return door_answers.ok({}) if await self._ownership.make_place(expected.profile) else not_ready(_NONE_READY)

    async def _take(self, request: Request) -> bytes:
        partner_id = request.partner_id
        expected = self.expected.get(partner_id)
        if expected is None:
            return copy_lost(f"{partner_id} is not expected here")
        self._ownership.hold_place(expected.profile)  # where it is lost, the first worker that is ready is the next one
        link = self._links.get(partner_id)
        if link is None or not link.connection.is_open:
            link = self._ownership.held_place(partner_id) or self._ownership.any_worker()
            if link is None:
                return copy_lost("there is no worker now")
            self._links[partner_id] = link
        said = {"door_epoch": self._book.door_epoch, "batch": request.body}
        body = await _ask(link, request.method, partner_id, said)
        answer = messages.decode_answer(body)
        if isinstance(answer, Answer):
            arrival = moves.decode_arrival(answer.body)
            if arrival.is_complete:
                self._complete[partner_id] = arrival
        return body

    async def _status(self, partner_id: str) -> bytes:
        """Tell how the book came here, also long after."""
        try:
            arrival = await read_arrival(self._shelf, partner_id)
        except (StoreError, MessageError) as error:
            return _unavailable(error)
        if arrival is None:
            return copy_lost("this book came from nowhere")
        return messages.encode_answer(Answer(200, moves.encode_arrival(arrival)))

    async def _open(self, request: Request) -> bytes:
        """Make the book a partner's. The commit in the cell's book is the moment; done again, it is done already."""
        (data,) = fields(request, receipt=bytes)
        receipt = moves.decode_receipt(data)
        partner_id = request.partner_id
        began = time.monotonic()
        seat = self._seats.get(partner_id)
        if seat is not None:
            return await self._is_open_already(seat)
        expected = self.expected.get(partner_id)
        is_proof = expected is not None and (
            expected.move_id == receipt.move_id
            and receipt.to == self._book.cell
            and hmac.compare_digest(moves.hash_token(receipt.token), expected.token_hash)
        )
        if expected is None or not is_proof:
            return copy_lost("the receipt is not of a move that is expected here")
        refused = await self._require_all_there(partner_id, expected, receipt, data)
        if refused is not None:
            return refused
        profile = expected.profile
        if request.role == "control":
            profile = door_answers.profile_of(request)
        unwritten = await self._book.write(
            Put(("partner", partner_id), msgpack.packb(messages.encode_profile(profile))),
            Clear(("arriving", partner_id)),
            Clear(("moved", partner_id)),
            self._ended_row(partner_id, receipt.move_id),
        )
        if unwritten is not None:
            return _unavailable(unwritten)
        self._note_ended(partner_id, receipt.move_id)
        self._drop(partner_id)
        self._tombstones.pop(partner_id, None)
        seat = self._seats[partner_id] = Seat(profile)
        self._ownership.activate_soon(seat, "arrival")
        _note_opened(seat, began)
        door_metrics.ARRIVED.inc()
        log.info("partner_arrived", partner=partner_id, sequence=receipt.sequence, above_epoch=receipt.epoch)
        return door_answers.ok({"state": seat.state, "was_open": False})

    async def _is_open_already(self, seat: Seat) -> bytes:
        """Say so, but not of a seat from before whose book was taken over while this cell was dead."""
        try:
            if not seat.is_ready and seat.partner_id not in await self._shelf.names("partners"):
                return copy_lost("it is served here no more, and was not told so yet")
        except StoreError as error:
            return _unavailable(error)
        return door_answers.ok({"state": seat.state, "was_open": True, "opened_in_ms": seat.opened_in_ms})

    async def _require_all_there(
        self, partner_id: str, expected: Expected, receipt: Receipt, data: bytes
    ) -> bytes | None:
        """See to it that the book here is the one that was sealed: taken over, or copied to the last row."""
        try:
            if expected.places:
                await self._adopt(partner_id, expected.places, data if expected.is_sealed else None)
                return None
            arrival = self._complete.get(partner_id) or await read_arrival(self._shelf, partner_id)
        except (StoreError, MessageError) as error:
            return _unavailable(error)
        held = None if arrival is None else (arrival.sequence, arrival.batches, arrival.stream)
        if held == (receipt.sequence, receipt.batches, receipt.stream):
            return None
        log.error("arrival_differs", partner=partner_id, receipt=str(receipt), arrival=str(arrival))
        return copy_lost("what arrived is not what was sealed")

    async def _adopt(self, partner_id: str, places: tuple[dict[str, Any], ...], sealed_by: bytes | None) -> None:
        """Take the book over from where it is. It only gets on from one place to a later one, so it is found."""
        for number, place in enumerate(places, 1):
            try:
                await self._shelf.adopt(place, ("partners", partner_id), seal=keyspace.MOVED, sealed_by=sealed_by)
            except StoreMissingError:
                if number == len(places):
                    raise
            else:
                return

    async def end_lost(self, partner_id: str, move_id: str) -> bytes | None:
        """Expect a partner no more that is in another cell; give why that could not be written down.

        What is said of that move later is refused, also where this cell never heard of it before.
        """
        if not move_id or move_id in self.ended.get(partner_id, ()):
            return None
        async with self._locks.setdefault(partner_id, asyncio.Lock()):
            return await self._remove(partner_id, move_id)

    async def _end(self, request: Request) -> bytes:
        """Remove what arrived of a move that was given up."""
        (move_id,) = fields(request, move_id=str)
        partner_id = request.partner_id
        if partner_id in self._seats:
            return copy_lost(f"{partner_id} is served here already")
        expected = self.expected.get(partner_id)
        if expected is not None and expected.move_id != move_id:
            return door_answers.ok({})
        return await self._remove(partner_id, move_id) or door_answers.ok({})

    # Inside

    async def _remove(self, partner_id: str, move_id: str) -> bytes | None:
        """Remove what a move that has ended copied here, if it is the one; give why it could not be."""
        expected = self.expected.get(partner_id)
        try:
            if expected is None or expected.move_id <= move_id:
                await self._forget(partner_id)
            if expected is not None and expected.move_id <= move_id and not expected.places:
                await self._shelf.erase("partners", partner_id)
        except StoreError as error:
            return _unavailable(error)
        return await self._drop_for_good(partner_id, move_id)

    async def _drop_for_good(self, partner_id: str, move_id: str) -> bytes | None:
        """Write down that a move has ended here, and that nobody is expected by it; give why it can't be written."""
        expected = self.expected.get(partner_id)
        is_another = expected is not None and expected.move_id > move_id  # one at a time: an older one is over, too
        rows = [] if is_another else [Clear(("arriving", partner_id))]
        unwritten = await self._book.write(*rows, self._ended_row(partner_id, move_id))
        if unwritten is not None:
            return _unavailable(unwritten)
        self._note_ended(partner_id, move_id)
        if not is_another:
            self._drop(partner_id)
            self._ownership.free_place(partner_id)
        return None

    async def _forget(self, partner_id: str) -> None:
        """Have the worker that wrote the book close it."""
        link = self._links.pop(partner_id, None)
        if link is not None and link.connection.is_open:
            await _ask(link, Method.END_ARRIVAL, partner_id, {})

    def _ended_row(self, partner_id: str, move_id: str) -> Put:
        return Put(("ended", partner_id), msgpack.packb(self._ended_with(partner_id, move_id)))

    def _ended_with(self, partner_id: str, move_id: str) -> list[str]:
        kept = [known for known in self.ended.get(partner_id, ()) if known != move_id]
        return [*kept, move_id][-limits.ENDED_MOVES_KEPT_MAX :]

    def _note_ended(self, partner_id: str, move_id: str) -> None:
        self.ended[partner_id] = self._ended_with(partner_id, move_id)

    def _drop(self, partner_id: str) -> None:
        self.expected.pop(partner_id, None)
        self._links.pop(partner_id, None)
        self._complete.pop(partner_id, None)


def _note_opened(seat: Seat, began: float) -> None:
    """Note how long it took, once the partner is served: where a router brought the receipt no one else measures it."""

    def note(_: object) -> None:
        if seat.is_ready:
            seat.opened_in_ms = int((time.monotonic() - began) * 1_000)

    assert seat.activation is not None
    seat.activation.add_done_callback(note)


def encode_expected(expected: Expected) -> bytes:
    """Give the bytes that the cell's book keeps."""
    profile = messages.encode_profile(expected.profile)
    return bytes(
        msgpack.packb(
            [
                _VERSION,
                expected.move_id,
                expected.attempt,
                expected.token_hash,
                profile,
                expected.places,
                expected.is_sealed,
            ]
        )
    )


def read_expected(partner_id: str, value: bytes) -> Expected | None:
    """Read one that the cell's book keeps. One that can't be read is begun anew by the move's next attempt."""
    try:
        version, move_id, attempt, token_hash, profile, places, is_sealed = msgpack.unpackb(value)
        if version == 1:  # there was one place, or none
            places = [] if places is None else [places]
        if version in {1, _VERSION}:
            known = messages.decode_profile(profile)
            return Expected(str(move_id), int(attempt), bytes(token_hash), known, tuple(places), bool(is_sealed))
        error = f"version {version!r}"
    except (MessageError, ValueError, TypeError) as found:
        error = str(found)
    log.error("arrival_unreadable", partner=partner_id, error=error)
    return None


def read_ended(partner_id: str, value: bytes) -> list[str] | None:
    """Read the moves that ended here; without them a message that comes late makes an empty book of no use."""
    try:
        found = msgpack.unpackb(value)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        log.error("ended_moves_unreadable", partner=partner_id, error=str(error))  # noqa: TRY400 - no bug of ours
        return None
    return [str(move_id) for move_id in found] if isinstance(found, list) else None


def optional_places(request: Request) -> tuple[tuple[dict[str, Any], ...], bool]:
    """Read where the book may be that is to be taken over, and whether its cell seals it. Raises MessageError."""
    said = msgpack.unpackb(request.body)
    places, is_sealed = said.get("places", []), said.get("is_sealed", True)
    is_list = isinstance(places, list) and all(isinstance(place, dict) for place in places)
    if not is_list or not isinstance(is_sealed, bool):
        raise MessageError(f"places and is_sealed can't be {places!r:.80} and {is_sealed!r:.20}")
    return tuple(places), is_sealed


async def _ask(link: Link, method: str, partner_id: str, said: dict[str, Any]) -> bytes:
    try:
        body = await link.connection.request(method, partner_id, msgpack.packb(said), limits.MOVE_TIMEOUT_MS)
    except PeerError as error:
        return copy_lost(f"the worker that writes it gave no answer: {error}")
    return copy_lost("the worker knows no such book") if body == NOT_MINE else body


def _unavailable(error: Exception) -> bytes:
    return door_answers.refused(RefusalCode.PARTNER_UNAVAILABLE, f"{type(error).__name__}: {error}")
