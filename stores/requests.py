"""What is asked of a store, encoded and held against FoundationDB's limits, before any store does anything.

Every store uses these, so that a partner that lives in one fits into each other. No I/O goes in.
"""

from collections.abc import Sequence
from typing import NamedTuple

from actors import limits as actor_limits
from actors.errors import StoreLimitError
from actors.store import Check, Key, Mutation, Put, Range
from actors.values import dataclass
from stores import limits, tuple_keys

KEY_BYTES_MAX = actor_limits.STORE_KEY_BYTES_MAX - limits.STORE_PREFIX_BYTES_MAX


class EncodedRange(NamedTuple):
    """A range with its bounds encoded."""

    begin: bytes
    end: bytes
    limit: int
    reverse: bool


@dataclass(frozen=True, slots=True)
class EncodedRead:
    """The keys and ranges of one read, in the order asked."""

    keys: tuple[bytes, ...]
    ranges: tuple[EncodedRange, ...]


@dataclass(frozen=True, slots=True)
class EncodedCommit:
    """The checks of one commit and what it leaves under each key (None: nothing). The last mutation of a key counts."""

    checks: tuple[tuple[bytes, bytes | None], ...]
    writes: dict[bytes, bytes | None]


def encode_read(keys: Sequence[Key], ranges: Sequence[Range]) -> EncodedRead:
    """Encode a read. Raises StoreLimitError."""
    if len(keys) > limits.STORE_READ_KEYS_MAX:
        raise StoreLimitError(f"{len(keys)} keys in one read; at most {limits.STORE_READ_KEYS_MAX}")
    if len(ranges) > limits.STORE_READ_RANGES_MAX:
        raise StoreLimitError(f"{len(ranges)} ranges in one read; at most {limits.STORE_READ_RANGES_MAX}")
    for asked in ranges:
        if not 1 <= asked.limit <= actor_limits.STORE_RANGE_ROWS_MAX:
            raise StoreLimitError(f"a range of {asked.limit} rows; between 1 and {actor_limits.STORE_RANGE_ROWS_MAX}")
    return EncodedRead(
        tuple(map(_encode_key, keys)),
        tuple(
            EncodedRange(_encode_key(asked.begin), _encode_key(asked.end), asked.limit, asked.reverse)
            for asked in ranges
        ),
    )


def encode_commit(checks: Sequence[Check], mutations: Sequence[Mutation]) -> EncodedCommit:
    """Encode a commit. Raises StoreLimitError.

    The size is counted as FoundationDB does, a little on the safe side: each mutation's key also stands twice in
    a conflict range, a cleared key is a range itself, and every key carries the subspace's prefix.
    """
    transaction_bytes = 0
    encoded_checks = []
    for check in checks:
        key = _encode_key(check.key)
        encoded_checks.append((key, check.value))
        transaction_bytes += 2 * (len(key) + limits.STORE_PREFIX_BYTES_MAX)
    writes: dict[bytes, bytes | None] = {}
    for mutation in mutations:
        key = _encode_key(mutation.key)
        if isinstance(mutation, Put):
            value = mutation.value
            if len(value) > actor_limits.STORE_VALUE_BYTES_MAX:
                raise StoreLimitError(f"a value of {len(value)} bytes; at most {actor_limits.STORE_VALUE_BYTES_MAX}")
            writes[key] = value
            transaction_bytes += len(value)
        else:
            writes[key] = None
        transaction_bytes += 4 * (len(key) + limits.STORE_PREFIX_BYTES_MAX)
    transaction_bytes += (len(checks) + 2 * len(mutations)) * limits.STORE_MUTATION_OVERHEAD_BYTES
    if transaction_bytes > actor_limits.STORE_TRANSACTION_BYTES_MAX:
        raise StoreLimitError(
            f"a transaction of {transaction_bytes} bytes; at most {actor_limits.STORE_TRANSACTION_BYTES_MAX}"
        )
    return EncodedCommit(tuple(encoded_checks), writes)


def _encode_key(key: Key) -> bytes:
    encoded = tuple_keys.encode(key)
    if len(encoded) > KEY_BYTES_MAX:
        raise StoreLimitError(f"a key of {len(encoded)} bytes; at most {KEY_BYTES_MAX}")
    return encoded
