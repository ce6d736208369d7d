"""An event loop whose time is a number: a wait costs nothing, hours pass in milliseconds, and every run is the same.

It serves code that talks to nothing outside of its loop. A loop in which nothing can ever happen any more says so.
"""

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
START_MS = 1_790_000_000_000  # 2026-09-21


class _Selector(selectors.SelectSelector):
    """Instead of waiting it moves the loop's time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everything waits, and nothing is going to happen")
        self.now += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop over virtual time."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return self._virtual.now


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end on a loop of its own."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def in_virtual_time(test: Callable[Arguments, Coroutine[Any, Any, None]]) -> Callable[Arguments, None]:
    """Make an asynchronous test one that pytest runs on virtual time."""

    @functools.wraps(test)
    def wrapper(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        run(test(*args, **kwargs))

    return wrapper


class VirtualClock:
    """The clocks of a machine on the running loop's time; the wall clock can be set."""

    def __init__(self) -> None:
        self.wall_offset_ms = 0

    def wall_ms(self) -> int:
        return START_MS + self.wall_offset_ms + self.monotonic_ms()

    def monotonic_ms(self) -> int:
        return int(asyncio.get_running_loop().time() * 1_000)


class HandClock:
    """Clocks that a test moves by hand, without a loop."""

    def __init__(self, wall_ms: int = START_MS, monotonic_ms: int = 0) -> None:
        self.wall = wall_ms
        self.monotonic = monotonic_ms

    def wall_ms(self) -> int:
        return self.wall

    def monotonic_ms(self) -> int:
        return self.monotonic

    def advance(self, by_ms: int) -> None:
        self.wall += by_ms
        self.monotonic += by_ms
