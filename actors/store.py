"""The store's contract: what a partner's actor needs of SQLite, FoundationDB or memory. No implementation goes in.

Keys are tuples of str, int and bytes in FoundationDB's tuple encoding, so that their order is the same in every
store (https://github.com/apple/foundationdb/blob/main/design/tuple.md). Values are bytes. A transaction never
leaves one partner's keyspace. The contract is as small as Deno KV's: one snapshot read, one atomic write.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from actors.values import dataclass

Part = str | int | bytes
Key = tuple[Part, ...]


class Entry(NamedTuple):
    """One stored row."""

    key: Key
    value: bytes


@dataclass(frozen=True, slots=True)
class Range:
    """Rows with `begin <= key < end`, in key order or in reverse, at most `limit` (<= STORE_RANGE_ROWS_MAX)."""

    begin: Key
    end: Key
    limit: int
    reverse: bool = False


@dataclass(frozen=True, slots=True)
class Check:
    """The transaction takes place only if `key` still holds `value` (None: is absent)."""

    key: Key
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Put:
    """Write `value` under `key`."""

    key: Key
    value: bytes


@dataclass(frozen=True, slots=True)
class Clear:
    """Remove `key`; removing what is absent is no error."""

    key: Key


Mutation = Put | Clear


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What `read` saw, all at one moment: the keys' values and the ranges' rows, in the order asked."""

    values: tuple[bytes | None, ...]
    ranges: tuple[tuple[Entry, ...], ...]


@dataclass(frozen=True, slots=True)
class Ownership:
    """Who owns the partner: `epoch` rises with every acquire, `door_epoch` never falls."""

    epoch: int
    door_epoch: int


class Store(Protocol):
    """One partner's keyspace. Safe for one event loop; calls may overlap."""

    async def acquire(self, door_epoch: int, above: int = 0) -> Ownership:
        """Raise the epoch, to more than `above`, and own the partner from now on; older owners' commits fail.

        Raises FencedError where a newer door was here already, StoreError otherwise.
        """

    async def read(self, keys: Sequence[Key], ranges: Sequence[Range] = ()) -> Snapshot:
        """Read committed rows at one moment. Doesn't check ownership: a zombie may read what is stale."""

    async def commit(self, checks: Sequence[Check], mutations: Sequence[Mutation]) -> None:
        """Write all or nothing, durably before it returns, if this store still owns the partner.

        Raises FencedError, ConflictError, StoreLimitError, StoreUnavailableError (nothing was written) or
        CommitUnknownError (call `acquire` before anything else: only then can the transaction no longer commit).
        """

    async def close(self) -> None:
        """Give back files and threads. Calling it twice is no error."""
