"""`dataclass` for values that are made for every payment: frozen to the type checker, not at run time.

A frozen dataclass sets its fields one call at a time, five times as slow; making values was an eighth of an actor's
time. mypy, which every change has to pass, refuses what would change one all the same.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(*, frozen: bool, slots: bool) -> Callable[[type[Any]], type[Any]]:
        """Make a class as `dataclasses.dataclass` does, with what a frozen one has: equality and a hash."""
        assert frozen, "what may change is an ordinary dataclass"
        return dataclasses.dataclass(slots=slots, unsafe_hash=True)


__all__ = ["dataclass"]
