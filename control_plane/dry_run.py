"""Dry runs: what is asked is checked as always, up to its first write, which is shown and not made.

The gate sets it for one request, and only on routes that write to the registry before they do anything else, or that
look here before they act (`partner release`, `unknown resolve`, `partner move`, `rebalance --apply`).
"""

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final

from control_plane.registry_records import Change

ASKED: Final[ContextVar[bool]] = ContextVar("dry_run", default=False)


class DryRunDone(Exception):  # noqa: N818 - no error: it ends what must not be done
    """What would be written: the entries of the audit log, none where nothing would change; `more` is told beside."""

    def __init__(self, changes: Sequence[Change], more: Mapping[str, Any] | None = None) -> None:
        super().__init__("this was a dry run")
        self.changes = tuple(changes)
        self.more = dict(more or {})
