"""What is said when a partner moves from one cell to another: the copy's batches, the seal's receipt, the tombstone.

    source                                          target
    BEGIN_LEAVING {move_id}                         BEGIN_ARRIVAL {move_id, token_hash, profile}
    COPY_ROWS {move_id, number}  -> a batch     ->  TAKE_ROWS (the batch, unread)       while the partner is served
                                                    HOLD_PLACE {move_id}
    QUIESCE {move_id, number}    -> a batch     ->  TAKE_ROWS (the last one, `is_last`) while its commands wait
    SEAL {move_id, to, token, ...} -> a receipt ->  OPEN_ARRIVAL (the receipt)          from now on only forward

Only the control plane carries these. The seal is the one moment in which the partner changes its cell: a commit in the
source's book, under the epoch of the copy. The token is made by the control plane, known to the target as a hash only
and told by the source only once it is sealed; so whoever holds a receipt has proof of the seal, and a router that was
told one by the tombstone may open the target, too, when the control plane is gone.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgpack

from actors.values import dataclass
from cells.api.messages import MessageError

_VERSION: Final = 1
# Of a receipt that names the directory's version. One without it keeps its bytes: they are compared with the book's.
_RECEIPT_VERSION: Final = 2
_DIGEST_BYTES: Final = 32
_MODULUS: Final = 1 << (8 * _DIGEST_BYTES)
NO_STREAM: Final = bytes(_DIGEST_BYTES)


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows of a book: (encoded key, value or None where there is none any more), in the order of the copy.

    `number` counts from 0. `epoch` is the source owner's: a batch of another epoch belongs to another copy. `sequence`:
    of the partner's journal, in the last batch; None in all others. `is_scanned`: every row was sent once; `changed`:
    rows that were written since.
    """

    move_id: str
    epoch: int
    number: int
    rows: tuple[tuple[bytes, bytes | None], ...]
    is_scanned: bool = False
    changed: int = 0
    sequence: int | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof of the seal, kept in the sealed book and in the tombstone. `epoch`: the last one in the old cell.

    `directory_version`: the one that was published when it was sealed, so it has the new cell; 0: not known.
    """

    move_id: str
    to: str
    token: str
    epoch: int
    sequence: int
    batches: int
    stream: bytes
    directory_version: int = 0


@dataclass(frozen=True, slots=True)
class Arrival:
    """How far a copy is, kept in the target's book and written with each batch.

    `stream`: the hash of all batches in their order. `content`: the sum of all rows' hashes, whatever the order.
    """

    move_id: str
    epoch: int
    batches: int = 0
    stream: bytes = NO_STREAM
    content: bytes = NO_STREAM
    rows: int = 0
    sequence: int | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the last batch is there."""
        return self.sequence is not None


def next_stream(stream: bytes, batch: bytes) -> bytes:
    """Give the hash of a stream of batches that one more was added to."""
    return hashlib.blake2b(stream + batch, digest_size=_DIGEST_BYTES).digest()


def add_content(content: bytes, key: bytes, value: bytes, *, sign: int = 1) -> bytes:
    """Add a row to the sum of all rows' hashes, or take it away.

    A sum does not depend on the order, so a book that is written to while it is copied can be followed row by row. It
    is there to find what was lost or altered on the way, not to withstand somebody who chooses the rows.
    """
    digest = hashlib.blake2b(len(key).to_bytes(4, "big") + key + value, digest_size=_DIGEST_BYTES).digest()
    total = (int.from_bytes(content, "big") + sign * int.from_bytes(digest, "big")) % _MODULUS
    return total.to_bytes(_DIGEST_BYTES, "big")


def sum_contents(one: bytes, other: bytes) -> bytes:
    """Give the sum over the rows of both."""
    total = (int.from_bytes(one, "big") + int.from_bytes(other, "big")) % _MODULUS
    return total.to_bytes(_DIGEST_BYTES, "big")


def encode_batch(batch: Batch) -> bytes:
    """Give the batch's bytes."""
    return _pack(batch.move_id, batch.epoch, batch.number, batch.rows, batch.is_scanned, batch.changed, batch.sequence)


def decode_batch(data: bytes) -> Batch:
    """Read a batch. Raises MessageError."""
    move_id, epoch, number, rows, is_scanned, changed, sequence = _unpack(data, {_VERSION: 7}, "a batch of rows")
    _require(move_id, str)
    _require(is_scanned, bool)
    for count in (epoch, number, changed):
        _require_count(count)
    if sequence is not None:
        _require_count(sequence)
    _require(rows, list)
    for row in rows:
        if not (isinstance(row, list) and len(row) == 2 and isinstance(row[0], bytes)):
            raise MessageError("a batch's row is no key and value")
        _require(row[1], bytes | None)
    return Batch(move_id, epoch, number, tuple((key, value) for key, value in rows), is_scanned, changed, sequence)


def encode_receipt(receipt: Receipt) -> bytes:
    """Give the receipt's bytes."""
    fields = [
        receipt.move_id,
        receipt.to,
        receipt.token,
        receipt.epoch,
        receipt.sequence,
        receipt.batches,
        receipt.stream,
    ]
    if not receipt.directory_version:
        return _pack(*fields)
    return _pack(*fields, receipt.directory_version, version=_RECEIPT_VERSION)


def decode_receipt(data: bytes) -> Receipt:
    """Read a receipt. Raises MessageError."""
    counts = {_VERSION: 7, _RECEIPT_VERSION: 8}
    move_id, to, token, epoch, sequence, batches, stream, *newer = _unpack(data, counts, "a receipt")
    for text in (move_id, to, token):
        _require(text, str)
    for count in (epoch, sequence, batches, *newer):
        _require_count(count)
    _require(stream, bytes)
    return Receipt(move_id, to, token, epoch, sequence, batches, stream, *newer)


def encode_arrival(arrival: Arrival) -> bytes:
    """Give the arrival's bytes."""
    return _pack(
        arrival.move_id,
        arrival.epoch,
        arrival.batches,
        arrival.stream,
        arrival.content,
        arrival.rows,
        arrival.sequence,
    )


def decode_arrival(data: bytes) -> Arrival:
    """Read an arrival. Raises MessageError."""
    move_id, epoch, batches, stream, content, rows, sequence = _unpack(data, {_VERSION: 7}, "an arrival")
    _require(move_id, str)
    for count in (epoch, batches, rows):
        _require_count(count)
    if sequence is not None:
        _require_count(sequence)
    _require(stream, bytes)
    _require(content, bytes)
    return Arrival(move_id, epoch, batches, stream, content, rows, sequence)


def hash_token(token: str) -> bytes:
    """Give the form in which the target knows the token before the seal."""
    return hashlib.sha256(token.encode()).digest()


def _pack(*fields: Any, version: int = _VERSION) -> bytes:
    return bytes(msgpack.packb([version, *fields]))


def _unpack(data: bytes, counts: Mapping[int, int], what: str) -> list[Any]:
    """Give the fields of a version that is among these; `counts`: how many each has."""
    try:
        fields = msgpack.unpackb(data)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise MessageError(f"{what} can't be read: {error}") from error
    if not isinstance(fields, list) or not fields or type(fields[0]) is not int:
        raise MessageError(f"{what} has no version")
    if len(fields) - 1 != counts.get(fields[0]):
        raise MessageError(f"{what} is not of a version that is known here ({fields[0]})")
    return fields[1:]


def _require(value: object, kind: Any) -> None:
    if not isinstance(value, kind):
        raise MessageError(f"{value!r:.80} is no {kind}")


def _require_count(value: object) -> None:
    if type(value) is not int or value < 0:
        raise MessageError(f"{value!r:.80} is no count")
