"""Ctrl-C in the middle of an experiment: its task is cancelled once, and what cleans up after that is left alone."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from typing import Final

_STOPS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.asynccontextmanager
async def interruptible() -> AsyncIterator[None]:
    """Cancel this task at the first signal; what cleans up after that is not interrupted again, it is bounded."""
    task = asyncio.current_task()
    assert task is not None
    told = False

    def stop() -> None:
        nonlocal told
        if not told:
            told = True
            task.cancel()

    loop = asyncio.get_running_loop()
    for number in _STOPS:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in _STOPS:
            loop.remove_signal_handler(number)
