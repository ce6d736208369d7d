"""Faults that a command orders by its metadata, for chaos experiments on test installations.

The worker does them in the moment of the decision, as a bug in the rules would: so the command is the one that its
mark names. Without the setting `fault_injection` nothing here is made, and the key is a partner's own metadata.
"""

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import structlog

from cells import limits

log = structlog.get_logger()

METADATA_KEY: Final = "bulkhead_fault"
_FORM: Final = re.compile(r"(crash|loop|leak|slow|files|threads)(?::([0-9]{1,6}))?", re.ASCII)
_MEGABYTE: Final = 1 << 20


class FaultKind(StrEnum):
    """What a worker can be told to do."""

    CRASH = "crash"  # the process ends at once
    LOOP = "loop"  # it computes for ever and never lets another thread run
    LEAK = "leak"  # it takes so many megabytes and keeps them
    SLOW = "slow"  # deciding takes so many milliseconds
    FILES = "files"  # it opens so many files and keeps them
    THREADS = "threads"  # it starts so many threads, which never end


_COUNTED: Final = frozenset(FaultKind) - {FaultKind.CRASH, FaultKind.LOOP}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. `amount` is in megabytes, milliseconds, files or threads, where the kind has one."""

    kind: FaultKind
    amount: int = 0


def parse(arguments: Mapping[str, Any]) -> Fault | None:
    """Read the fault that a command's arguments order; None where they order none that is known."""
    metadata = arguments.get("metadata")
    text = metadata.get(METADATA_KEY) if isinstance(metadata, Mapping) else None
    found = _FORM.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return None
    kind, amount = FaultKind(found[1]), found[2]
    if (amount is not None) != (kind in _COUNTED):
        return None
    if amount is not None and int(amount) > limits.FAULT_AMOUNT_MAX:
        return None
    return Fault(kind, int(amount or 0))


class FaultInjector:
    """Does what the commands at hand order, as each is decided. `executing` marks them before."""

    def __init__(self, executing: Callable[[str, str], None]) -> None:
        self._mark = executing
        self._ordered: dict[str, Fault] = {}
        self._leaked: list[bytearray] = []
        self._opened: list[int] = []

    @contextlib.contextmanager
    def ordered(self, command_id: str, arguments: Mapping[str, Any]) -> Iterator[None]:
        """Know what the command orders, as long as it is under way."""
        fault = parse(arguments)
        if fault is not None:
            self._ordered[command_id] = fault
        try:
            yield
        finally:
            self._ordered.pop(command_id, None)

    def executing(self, partner_id: str, command_id: str) -> None:
        """Mark the partner's command, then do what it orders."""
        self._mark(partner_id, command_id)
        fault = self._ordered.get(command_id)
        if fault is None:
            return
        log.warning("fault_injected", command_id=command_id, kind=fault.kind.value, amount=fault.amount)
        match fault.kind:
            case FaultKind.CRASH:
                os.kill(os.getpid(), signal.SIGKILL)
            case FaultKind.LOOP:
                _loop()
            case FaultKind.LEAK:
                for _ in range(fault.amount):
                    # Written to, a megabyte after the other: so the memory is taken, and not only promised.
                    self._leaked.append(bytearray(b"\xaa") * _MEGABYTE)
            case FaultKind.SLOW:
                time.sleep(fault.amount / 1_000)
            case FaultKind.FILES:
                for _ in range(fault.amount):
                    self._opened.append(os.open(os.devnull, os.O_RDONLY))
            case FaultKind.THREADS:
                for _ in range(fault.amount):
                    threading.Thread(target=threading.Event().wait, daemon=True).start()


def _loop() -> None:
    """Hold Python's lock for ever: no signal handler and no other thread gets its turn, as in a runaway regex."""
    re.fullmatch(r"(a|a)*b", "a" * 64)
