"""The stores' contract for who may not know the actors: the control plane keeps its own data in a store, too.

Nothing is defined here. What each thing is stands in `actors.store`, `actors.errors` and `actors.limits`.
"""

from actors.errors import (
    CommitUnknownError,
    ConflictError,
    FencedError,
    StoreClientError,
    StoreCorruptError,
    StoreError,
    StoreExistsError,
    StoreLimitError,
    StoreMissingError,
    StoreUnavailableError,
)
from actors.limits import STORE_RANGE_ROWS_MAX, STORE_TRANSACTION_BYTES_MAX, STORE_VALUE_BYTES_MAX
from actors.record_types import checked
from actors.store import Check, Clear, Entry, Key, Mutation, Ownership, Put, Range, Snapshot, Store

__all__ = [
    "STORE_RANGE_ROWS_MAX",
    "STORE_TRANSACTION_BYTES_MAX",
    "STORE_VALUE_BYTES_MAX",
    "Check",
    "Clear",
    "CommitUnknownError",
    "ConflictError",
    "Entry",
    "FencedError",
    "Key",
    "Mutation",
    "Ownership",
    "Put",
    "Range",
    "Snapshot",
    "Store",
    "StoreClientError",
    "StoreCorruptError",
    "StoreError",
    "StoreExistsError",
    "StoreLimitError",
    "StoreMissingError",
    "StoreUnavailableError",
    "checked",
]
