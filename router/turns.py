"""When a request's work may begin: at once where the event loop has little to do, else in turn, partner by partner.

Requests that arrive together would be worked off in the order of their arrival, all in one turn of the loop: hundreds
of one partner's before another's single one. So each turn begins so much work only, and the next looks at who waits.
"""

import asyncio
from collections.abc import Callable
from collections.abc import Set as AbstractSet

from cells.api.bulkheads import ALL_ON, Bulkhead
from router import limits
from router.fair_queue import FairQueue


class Turns:
    """Counts what work was begun in this turn of the loop. Who waits holds a place of its partner's (admission).

    Which turn it is tells the loop's own time, which libuv takes once a turn, in milliseconds (uv_now): so where nobody
    has to wait, nothing is planned, and the loop turns no more often than without this.
    """

    def __init__(self, bulkheads_off: AbstractSet[Bulkhead] = ALL_ON, time: Callable[[], float] | None = None) -> None:
        self._time = time
        self._is_off = Bulkhead.ROUTER_BUDGET in bulkheads_off
        self._queue: FairQueue[asyncio.Future[None]] = FairQueue(limits.QUANTUM_US)
        self._turn_s = 0.0
        self._begun_us = 0
        self._is_next_planned = False

    @property
    def waiting(self) -> int:
        """How many requests wait for their turn."""
        return len(self._queue)

    def enter(self, partner_id: str, announced_bytes: int) -> "asyncio.Future[None] | None":
        """Begin the work of a request now (None), or return what to await first."""
        if self._is_off:
            return None
        cost_us = limits.WORK_US + announced_bytes * limits.WORK_US_PER_KIB // 1_024
        loop = asyncio.get_running_loop()
        now_s = self._now_s(loop)
        if now_s != self._turn_s:
            self._turn_s, self._begun_us = now_s, 0
        if self._begun_us < limits.TURN_US and not self._queue:
            self._begun_us += cost_us
            return None
        waiting = loop.create_future()
        self._queue.push(partner_id, cost_us, waiting)
        if not self._is_next_planned:
            self._is_next_planned = True
            loop.call_soon(self._begin_turn, loop)
        return waiting

    def _now_s(self, loop: asyncio.AbstractEventLoop) -> float:
        return loop.time() if self._time is None else self._time()

    def _begin_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin the work of those who wait, as much as is one turn's."""
        self._turn_s, self._begun_us = self._now_s(loop), 0
        while self._queue and self._begun_us < limits.TURN_US:
            cost_us, waiting = self._queue.pop()
            if not waiting.done():  # its task may have been ended
                waiting.set_result(None)
                self._begun_us += cost_us
        self._is_next_planned = bool(self._queue)
        if self._is_next_planned:
            loop.call_soon(self._begin_turn, loop)
