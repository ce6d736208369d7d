"""The operating failures of an actor and its ports, as exceptions. Refusals are values (refusals.py), bugs assert.

BulkheadError
 +-- StoreError                    the store did not do what was asked
 |    +-- FencedError              another worker owns the partner: stop at once
 |    +-- ConflictError            nothing was written; read again and try again
 |    +-- CommitUnknownError       it may or may not have been written: acquire again before anything else
 |    +-- StoreLimitError          larger than FoundationDB allows; nothing was written
 |    +-- StoreUnavailableError    nothing was written: disk full, time-out before commit, file locked
 |    +-- StoreExistsError         a book is there already; onboarding never writes over one
 |    +-- StoreMissingError        the partner's book is not where it should be; never made anew
 |    +-- StoreCorruptError        the book can't be trusted: a person is needed
 |    +-- StoreClientError         a store's client library or cluster file can't be used: an operator is needed
 +-- AcquirerUnknownError          no final answer: the acquirer may or may not have done it
 +-- ActorStoppedError             the actor gave up its partner; ask the new owner
 +-- PartnerMovedError             the book is sealed: its partner lives in another cell
"""


class BulkheadError(Exception):
    """Root of every operating failure of ours."""


class StoreError(BulkheadError):
    """The store did not do what was asked."""


class FencedError(StoreError):
    """Another worker holds a newer epoch of this partner."""


class ConflictError(StoreError):
    """A check failed or another transaction was first; nothing was written."""


class CommitUnknownError(StoreError):
    """The commit may or may not have happened (FoundationDB 1021, a time-out, a failed fsync)."""


class StoreLimitError(StoreError):
    """A key, value or transaction is larger than FoundationDB allows; nothing was written."""


class StoreUnavailableError(StoreError):
    """The store can't serve now (full disk, lock, time-out before the commit); nothing was written."""


class StoreExistsError(StoreError):
    """A book is there already; onboarding never writes over one."""


class StoreMissingError(StoreError):
    """The partner's book is missing. It is made at onboarding only, never by opening it."""


class StoreCorruptError(StoreError):
    """The partner's book can't be read as what it should be."""


class StoreClientError(StoreError):
    """A store's client library is missing or doesn't fit, or its cluster file is none; the message says what to do."""


class AcquirerUnknownError(BulkheadError):
    """The acquirer gave no final answer; `kind` says how: timeout, refused, lost, server_error, malformed."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind


class ActorStoppedError(BulkheadError):
    """The actor no longer serves this partner. What was under way may have been written: the next owner knows."""


class PartnerMovedError(BulkheadError):
    """The partner's book is sealed. `receipt` says where the partner moved to, as its old cell wrote it down."""

    def __init__(self, receipt: bytes) -> None:
        super().__init__("the partner moved to another cell")
        self.receipt = receipt
