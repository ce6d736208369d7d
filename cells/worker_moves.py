"""What a worker does of partners that move: their books are read here on their way out, and written on their way in.

Its door asks; which partner may move where is decided there and above. An error is an answer, never a dead worker.
"""

from typing import Any, Final

import msgpack
import structlog

from actors.errors import StoreError
from actors.partner import PartnerActor
from cells import door_answers
from cells.api import messages, moves
from cells.api.connection import Request
from cells.api.messages import NOT_MINE, Answer, MessageError, Method, Refusal, RefusalCode, Refused
from cells.arriving import Arriving, sum_rows
from cells.leaving import CopyLostError, Leaving
from stores.shelf import Shelf
from stores.tracked_store import TrackedStore

log = structlog.get_logger()

METHODS: Final = frozenset(
    {
        Method.BEGIN_LEAVING,
        Method.COPY_ROWS,
        Method.QUIESCE,
        Method.SEAL,
        Method.END_LEAVING,
        Method.TAKE_ROWS,
        Method.SUM_ROWS,
        Method.END_ARRIVAL,
    }
)


class WorkerMoves:
    """The copies that go on in one worker."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._leaving: dict[str, Leaving] = {}
        self._arriving: dict[str, Arriving] = {}
        self._summed: dict[str, TrackedStore] = {}

    async def handle(self, request: Request, owned: "tuple[PartnerActor, TrackedStore] | None") -> bytes:
        """Answer the door. `owned`: the partner's actor and its book, where they are here."""
        try:
            return await self._handle(request, owned)
        except (CopyLostError, StoreError) as error:
            log.warning("move_step_failed", method=request.method, partner=request.partner_id, error=str(error))
            return copy_lost(str(error) if isinstance(error, CopyLostError) else f"{type(error).__name__}: {error}")

    async def _handle(self, request: Request, owned: "tuple[PartnerActor, TrackedStore] | None") -> bytes:
        partner_id, method = request.partner_id, request.method
        if method == Method.TAKE_ROWS:
            door_epoch, data = fields(request, door_epoch=int, batch=bytes)
            return await self._take(partner_id, door_epoch, data)
        if method == Method.END_ARRIVAL:
            await self._forget_arriving(partner_id)
            return door_answers.ok({})
        if method == Method.SUM_ROWS:
            return await self._sum(partner_id, request)
        if method == Method.BEGIN_LEAVING:
            if owned is None:
                return NOT_MINE
            move_id, door_epoch = fields(request, move_id=str, door_epoch=int)
            await self.end(partner_id)
            leaving = self._leaving[partner_id] = Leaving(move_id, *owned, door_epoch)
            return door_answers.ok({"epoch": leaving.epoch})
        (move_id,) = fields(request, move_id=str)
        leaving = self._of(partner_id, move_id)
        match method:
            case Method.COPY_ROWS:
                (number,) = fields(request, number=int)
                return _bytes(await leaving.batch(number))
            case Method.QUIESCE:
                (number,) = fields(request, number=int | None)
                await leaving.quiesce()
                return _bytes(b"" if number is None else await leaving.batch(number))
            case Method.SEAL:
                to, token, batches, stream, directory_version = fields(
                    request, to=str, token=str, batches=int, stream=bytes, directory_version=int
                )
                try:
                    return _bytes(await leaving.seal(to, token, batches, stream, directory_version))
                finally:
                    if self._leaving.get(partner_id) is leaving:
                        del self._leaving[partner_id]
                    await leaving.end()  # also where it was refused: its book was kept open for it
            case _:
                await self.end(partner_id)
                return door_answers.ok({})

    async def end(self, partner_id: str) -> None:
        """Let go of a partner's copy, as one that is assigned or released needs it: its book is open once."""
        leaving = self._leaving.pop(partner_id, None)
        if leaving is not None:
            await leaving.end()
        await self._forget_arriving(partner_id)

    def _of(self, partner_id: str, move_id: str) -> Leaving:
        leaving = self._leaving.get(partner_id)
        if leaving is None or leaving.move_id != move_id:
            raise CopyLostError("this worker knows nothing of that copy")
        return leaving

    async def _take(self, partner_id: str, door_epoch: int, data: bytes) -> bytes:
        batch = moves.decode_batch(data)
        arriving = self._arriving.get(partner_id)
        if arriving is None:
            arriving = self._arriving[partner_id] = await Arriving.open(self._shelf, partner_id, batch, door_epoch)
        try:
            arrival = await arriving.take(data, batch)
        except BaseException:
            # Whatever it was, the next batch opens the book again and reads how far it is.
            await self._forget_arriving(partner_id)
            raise
        if arrival.is_complete:
            await self._forget_arriving(partner_id)
        return _bytes(moves.encode_arrival(arrival))

    async def _forget_arriving(self, partner_id: str) -> None:
        arriving = self._arriving.pop(partner_id, None)
        if arriving is not None:
            await arriving.close()

    async def _sum(self, partner_id: str, request: Request) -> bytes:
        (after,) = fields(request, after=list | None)
        store = await self._shelf.open("partners", partner_id)
        try:
            content, rows, following = await sum_rows(store, None if after is None else tuple(after))
        finally:
            await store.close()
        return _bytes(msgpack.packb([content, rows, following]))


def fields(request: Request, **kinds: Any) -> tuple[Any, ...]:
    """Read what a request says, in the order asked for. Raises MessageError."""
    try:
        said = msgpack.unpackb(request.body)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise MessageError(f"it can't be read: {error}") from error
    if not isinstance(said, dict):
        raise MessageError("it is no map")
    for name, kind in kinds.items():
        if not isinstance(said.get(name), kind) or isinstance(said.get(name), bool):
            raise MessageError(f"{name} can't be {said.get(name)!r:.40}")
    return tuple(said.get(name) for name in kinds)


def copy_lost(why: str) -> bytes:
    """Say that a copy can't go on; nothing was changed but the copy."""
    refusal = Refusal(RefusalCode.PARTNER_UNAVAILABLE, f"The copy can't go on: {why}", context={"copy": "lost"})
    return messages.encode_answer(Refused(refusal))


def not_ready(why: str) -> bytes:
    """Say that this can't begin yet, for want of what comes by itself; nothing was changed."""
    refusal = Refusal(RefusalCode.PARTNER_UNAVAILABLE, why, context={"copy": "not_ready"})
    return messages.encode_answer(Refused(refusal))


def _bytes(body: bytes) -> bytes:
    return messages.encode_answer(Answer(200, body))
