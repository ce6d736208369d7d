"""A store that notes which rows are written while its book is copied, so that the copy can follow what changes.

Every partner's book is opened behind one. While nobody copies it costs a test of `None` a commit.
"""

from collections.abc import Iterable, Sequence

from actors.store import Check, Key, Mutation, Ownership, Range, Snapshot, Store
from stores import limits


class TrackedStore:
    """See `actors.store.Store` for the contract; reads, commits and errors are those of the store behind it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # In the order of their first change; None: nobody copies.
        self._changed: dict[Key, None] | None = None
        self._is_kept_open = False

    async def acquire(self, door_epoch: int, above: int = 0) -> Ownership:
        """Raise the epoch and own the partner from now on; see the contract."""
        return await self._store.acquire(door_epoch, above)

    async def read(self, keys: Sequence[Key], ranges: Sequence[Range] = ()) -> Snapshot:
        """Read committed rows at one moment; see the contract."""
        return await self._store.read(keys, ranges)

    async def commit(self, checks: Sequence[Check], mutations: Sequence[Mutation]) -> None:
        """Write all or nothing, durably; see the contract."""
        try:
            await self._store.commit(checks, mutations)
        finally:
            # Afterwards: a copy that reads a row before it is written comes back for it. Also where it failed, or is
            # not known: a row that is copied once more than needed is no harm.
            if self._changed is not None:
                self.note(mutation.key for mutation in mutations)

    async def close(self) -> None:
        """Close the store, unless a copy holds it open."""
        if not self._is_kept_open:
            await self._store.close()

    # For who copies

    def track(self) -> None:
        """Begin to note what changes, from nothing."""
        self._changed = {}

    @property
    def is_tracked(self) -> bool:
        """Whether every change since `track` is known. It ends by itself where there are too many."""
        return self._changed is not None

    @property
    def changed(self) -> int:
        """How many rows changed and were not taken."""
        return len(self._changed or ())

    def take_changed(self, rows: int) -> list[Key]:
        """Take some keys of rows that changed, the oldest first. They count as unchanged from now on."""
        if self._changed is None:
            return []
        taken = [key for _, key in zip(range(rows), self._changed, strict=False)]
        for key in taken:
            del self._changed[key]
        return taken

    def note(self, keys: Iterable[Key]) -> None:
        """Take rows for changed: such as were taken and not copied after all."""
        if self._changed is not None:
            self._changed.update(dict.fromkeys(keys))
            if len(self._changed) > limits.TRACKED_ROWS_MAX:
                self._changed = None

    def keep_open(self) -> None:
        """Stay open when the actor that has it closes it; `release` closes it."""
        self._is_kept_open = True

    async def release(self) -> None:
        """Note nothing more, and close the store if it was only kept open."""
        self._changed = None
        if self._is_kept_open:
            self._is_kept_open = False
            await self._store.close()
