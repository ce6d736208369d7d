"""One thread that does a store's blocking work, one call after the other, for an event loop that never blocks.

A call that is late is settled exactly: whoever claims it first, the caller that gives up or the thread that is about
to commit, decides whether it can still take effect. Knows nothing of SQLite.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from actors.errors import CommitUnknownError, StoreUnavailableError
from stores import limits

T = TypeVar("T")


class Call(Generic[T]):
    """One piece of work on its way through the thread and back."""

    __slots__ = ("_claimed", "_loop", "_work", "future")

    def __init__(self, work: "Callable[[Call[T]], T]", loop: asyncio.AbstractEventLoop) -> None:
        self._work = work
        self._loop = loop
        self._claimed = threading.Lock()
        self.future: asyncio.Future[T] = loop.create_future()

    def claim(self) -> bool:
        """Say True to the first who asks: the thread before its COMMIT, or the caller that waits no longer."""
        return self._claimed.acquire(blocking=False)

    def __call__(self) -> None:
        """Do the work, in the thread."""
        if self._claimed.locked():
            return  # the caller gave up while this stood in the queue
        result: T | None = None
        error: BaseException | None = None
        try:
            result = self._work(self)
        except BaseException as raised:  # noqa: BLE001 - whatever it is, it belongs to the caller
            error = raised
        # Where the loop is closed nobody waits any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._settle, result, error)

    def _settle(self, result: T | None, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)  # type: ignore[arg-type]  # without an error there is a result
        else:
            self.future.set_exception(error)


class StoreThread:
    """A thread with a bounded queue; it starts with its first work."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    async def run(self, work: Callable[[Call[T]], T], timeout_ms: int) -> T:
        """Do `work(call)` in the thread and return or raise what it does.

        Raises StoreUnavailableError where too many calls wait, or where the time is up and the work can't take effect
        any more; CommitUnknownError where the time is up and the work had claimed its call already.
        """
        if self._queue.qsize() >= limits.STORE_CALLS_PENDING_MAX:
            raise StoreUnavailableError(f"{self.name}: {limits.STORE_CALLS_PENDING_MAX} calls are waiting")
        return await self._run(work, timeout_ms)

    async def _run(self, work: Callable[[Call[T]], T], timeout_ms: int) -> T:
        loop = asyncio.get_running_loop()
        call = Call(work, loop)
        self.post(call)
        timer = loop.call_later(timeout_ms / 1000, self._give_up, call)
        try:
            return await call.future
        except asyncio.CancelledError:
            call.claim()  # what hasn't come to its COMMIT yet never will
            raise
        finally:
            timer.cancel()

    def post(self, work: Callable[[], None]) -> None:
        """Do `work` in the thread; nobody waits for it, and it must not raise. May be called from any thread.

        Raises StoreUnavailableError where the process gets no more threads.
        """
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    self._start()
        self._queue.put(work)

    def _start(self) -> None:
        # A daemon: a disk that hangs in fsync must not keep the process from ending.
        thread = threading.Thread(target=self._serve, name=self.name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise StoreUnavailableError(f"{self.name}: {error}") from error
        self._thread = thread

    async def finish(self, work: Callable[[], None]) -> None:
        """Do `work` as the last thing and end the thread; a thread that never started does nothing.

        Raises StoreUnavailableError where the thread is not done in time; it ends by itself once it can.
        """
        if self._thread is None:
            return
        self.post(work)
        try:
            await self._run(lambda _: None, limits.STORE_CLOSE_TIMEOUT_MS)
        finally:
            self._queue.put(None)

    def _serve(self) -> None:
        while (work := self._queue.get()) is not None:
            work()

    def _give_up(self, call: Call[T]) -> None:
        if call.future.done():
            return
        if call.claim():
            error: Exception = StoreUnavailableError(f"{self.name}: out of time; nothing was written")
        else:
            error = CommitUnknownError(f"{self.name}: out of time while it was committing")
        call.future.set_exception(error)
