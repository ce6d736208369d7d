"""The steps of a move, as the doors take them: each a request that may be repeated. What to do next is in moves.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import orjson

from cells.api import moves as wire
from cells.api.messages import Answer, MessageError, Method, Profile, Refused, encode_profile
from cells.api.moves import Arrival, Batch, Receipt
from control_plane import limits
from control_plane.doors import Doors
from control_plane.errors import DoorError, RefusedError
from control_plane.move_record import Burial, Move


class CopyLostError(RefusedError):
    """This copy can't go on, or this step is not to be taken now; nothing but the copy was changed."""


class NotReadyError(RefusedError):
    """The target has no worker that is ready for the partner; one comes by itself. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class Copied:
    """A batch as it came from the source, read and unread."""

    data: bytes
    batch: Batch


@dataclass(frozen=True, slots=True)
class Left:
    """What a source says of a copy that is over: the receipt, if it is sealed, and how long commands waited for it.

    `held_ms`: until the seal, or until the partner was served again; None: its door does not know.
    """

    receipt: bytes | None
    held_ms: int | None


@dataclass(frozen=True, slots=True)
class Opened:
    """A target that serves the partner: whether somebody else had it do so before, and how soon it was served then.

    `in_ms`: as the target tells it, where somebody else had; None: it does not.
    """

    was_open: bool
    in_ms: int | None


class DoorMoves:
    """Asks the two doors of a move. Each method raises DoorError (it may be done), CopyLostError, NotReadyError."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors

    async def begin_leaving(self, move: Move) -> None:
        """Begin a copy at the source, under the epoch that its owner has now."""
        await self._ask(move.source, Method.BEGIN_LEAVING, move, {"move_id": move.id})

    async def copy_rows(self, move: Move, number: int) -> Copied:
        """Give the batch of that number."""
        return _copied(await self._ask(move.source, Method.COPY_ROWS, move, {"move_id": move.id, "number": number}))

    async def quiesce(self, move: Move, number: int | None) -> Copied | None:
        """Stop the partner for a while, and give the next batch, where one is asked for."""
        answer = await self._ask(move.source, Method.QUIESCE, move, {"move_id": move.id, "number": number})
        return None if number is None else _copied(answer)

    async def seal(self, move: Move, arrival: Arrival, directory_version: int) -> bytes:
        """Seal the source's book for what arrived, and give the receipt. Where nothing was copied, nothing arrived.

        `directory_version`: one that has the target; routers that are behind are told it.
        """
        said = {
            "move_id": move.id,
            "to": move.target,
            "token": move.token,
            "batches": arrival.batches,
            "stream": arrival.stream,
            "directory_version": directory_version,
        }
        return (await self._ask(move.source, Method.SEAL, move, said)).body

    async def end_leaving(self, move: Move) -> Left:
        """Have the source serve the partner, unless it is sealed."""
        told = _json(await self._ask(move.source, Method.END_LEAVING, move, {"move_id": move.id}))
        return Left(bytes.fromhex(str(told.get("receipt", ""))) or None, _milliseconds(told.get("held_ms")))

    async def begin_arrival(self, move: Move, profile: Profile, places: Sequence[Mapping[str, Any]] = ()) -> None:
        """Make an empty book at the target, where what an earlier attempt left is removed; or say where it may be."""
        said = {
            "move_id": move.id,
            "attempt": move.attempt,
            "token_hash": wire.hash_token(move.token),
            "profile": encode_profile(profile),
            "places": [dict(place) for place in places],
            "is_sealed": move.way != "evacuate",
        }
        await self._ask(move.target, Method.BEGIN_ARRIVAL, move, said)

    async def hold_place(self, move: Move) -> None:
        """See to it that the target holds a place in a ready worker, whatever became of the one of the beginning."""
        await self._ask(move.target, Method.HOLD_PLACE, move, {"move_id": move.id})

    async def take_rows(self, move: Move, data: bytes) -> Arrival:
        """Hand a batch to the target; give how far it is."""
        answer = await self._send(move.target, Method.TAKE_ROWS, move.partner_id, data)
        return wire.decode_arrival(answer.body)

    async def arrival_status(self, move: Move) -> Arrival:
        """Ask the target how the book came there."""
        return wire.decode_arrival((await self._ask(move.target, Method.ARRIVAL_STATUS, move, {})).body)

    async def open_arrival(self, move: Move, receipt: bytes, profile: Profile) -> Opened:
        """Have the target serve the partner; once is enough."""
        said = {"receipt": receipt, "profile": encode_profile(profile)}
        told = _json(await self._ask(move.target, Method.OPEN_ARRIVAL, move, said))
        return Opened(told.get("was_open") is True, _milliseconds(told.get("opened_in_ms")))

    async def end_arrival(self, move: Move) -> None:
        """Remove what arrived at the target."""
        await self._ask(move.target, Method.END_ARRIVAL, move, {"move_id": move.id})

    async def sum_rows(self, move: Move) -> tuple[bytes, int]:
        """Sum up the sealed book at the source: the content and how many rows."""
        content, rows = wire.NO_STREAM, 0
        after: list[Any] | None = None
        while True:
            answer = await self._ask(move.source, Method.SUM_ROWS, move, {"after": after})
            part, count, after = msgpack.unpackb(answer.body)
            content, rows = wire.sum_contents(content, part), rows + count
            if after is None:
                return content, rows

    async def bury_moved(self, burial: Burial) -> None:
        """Tell a cell that was dead that the partner is in another one."""
        receipt = wire.encode_receipt(evacuated(burial.move_id, burial.target, burial.token))
        said = msgpack.packb({"receipt": receipt, "arrival_id": burial.arrival_id})
        await self._send(burial.cell, Method.BURY_MOVED, burial.partner_id, said)

    async def erase_moved(self, move: Move) -> None:
        """Erase the sealed book at the source; its tombstone stays."""
        await self._ask(move.source, Method.ERASE_MOVED, move, {"move_id": move.id})

    async def _ask(self, cell: str, method: str, move: Move, said: dict[str, Any]) -> Answer:
        return await self._send(cell, method, move.partner_id, msgpack.packb(said))

    async def _send(self, cell: str, method: str, partner_id: str, body: bytes) -> Answer:
        answer = await self._doors.ask(cell, method, partner_id, body, limits.MOVE_STEP_TIMEOUT_MS)
        if isinstance(answer, Refused):
            refusal = answer.refusal
            if refusal.context.get("copy") == "not_ready":
                raise NotReadyError(f"{cell}: {refusal.detail}", where=f"{cell}'s door")
            raise CopyLostError(f"{cell}: {refusal.detail}", where=f"{cell}'s door")
        return answer


def evacuated(move_id: str, target: str, token: str) -> Receipt:
    """Give the receipt of a book that nobody sealed: the token is proof that the control plane wants it."""
    return Receipt(move_id, target, token, 0, 0, 0, wire.NO_STREAM)


def _copied(answer: Answer) -> Copied:
    try:
        return Copied(answer.body, wire.decode_batch(answer.body))
    except MessageError as error:
        raise DoorError(
            f"a batch can't be read: {error}", hint="run the same version of Bulkhead everywhere"
        ) from error


def _json(answer: Answer) -> dict[str, Any]:
    found = orjson.loads(answer.body)
    return found if isinstance(found, dict) else {}


def _milliseconds(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None
