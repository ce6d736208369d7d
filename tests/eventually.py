"""Waiting for what other processes do, with a bound. What can be awaited is awaited; this is for the rest."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

EVENTUALLY_S: Final = 8.0
_LOOK_EVERY_S: Final = 0.005


async def eventually(condition: Callable[[], bool], within_s: float = EVENTUALLY_S) -> None:
    """Wait until the condition holds. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - other processes set no event of ours
            await asyncio.sleep(_LOOK_EVERY_S)


async def eventually_true(condition: Callable[[], Awaitable[bool]], within_s: float = EVENTUALLY_S) -> None:
    """Wait until a condition that must itself be asked for holds. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while not await condition():  # noqa: ASYNC110 - as above
            await asyncio.sleep(_LOOK_EVERY_S)
