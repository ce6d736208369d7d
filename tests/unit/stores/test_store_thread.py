"""A store's thread: who claims a late call decides, what was given up never starts, and the thread ends."""

import asyncio
import functools
import threading

import pytest

from actors.errors import CommitUnknownError, StoreUnavailableError
from stores.store_thread import Call, StoreThread

TIMEOUT_MS = 5_000


class Gate:
    """Blocks the thread until the test opens it."""

    def __init__(self, thread: StoreThread) -> None:
        self._opened = threading.Event()
        thread.post(self._wait)

    def _wait(self) -> None:
        assert self._opened.wait(30), "the test never opened it"

    def open(self) -> None:
        self._opened.set()


async def test_results_and_errors_come_back_in_order() -> None:
    thread = StoreThread("test")
    order: list[int] = []

    def work(number: int, _: Call[int]) -> int:
        order.append(number)
        if number == 2:
            raise ValueError(number)
        return number

    results = await asyncio.gather(
        *(thread.run(functools.partial(work, number), TIMEOUT_MS) for number in range(5)),
        return_exceptions=True,
    )
    assert order == [0, 1, 2, 3, 4]
    assert [type(result) for result in results] == [int, int, ValueError, int, int]
    await thread.finish(lambda: None)


async def test_a_call_that_was_given_up_in_the_queue_never_starts() -> None:
    thread = StoreThread("test")
    gate = Gate(thread)
    started: list[str] = []
    canceled = asyncio.create_task(thread.run(lambda _: started.append("canceled"), TIMEOUT_MS))
    await asyncio.sleep(0)
    canceled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await canceled
    with pytest.raises(StoreUnavailableError):
        await thread.run(lambda _: started.append("late"), 10)
    gate.open()
    await thread.run(lambda _: started.append("next"), TIMEOUT_MS)
    assert started == ["next"]
    await thread.finish(lambda: None)


async def test_a_late_call_is_unknown_once_its_work_has_claimed_it() -> None:
    thread = StoreThread("test")
    claimed, resumed = threading.Event(), threading.Event()

    def work(call: Call[None]) -> None:
        assert call.claim()
        claimed.set()
        assert resumed.wait(30)

    with pytest.raises(CommitUnknownError):
        await thread.run(work, 50)
    assert claimed.is_set()
    resumed.set()
    await thread.finish(lambda: None)


async def test_work_finds_out_that_it_was_given_up() -> None:
    thread = StoreThread("test")
    given_up = threading.Event()
    seen: list[bool] = []

    def work(call: Call[None]) -> None:
        assert given_up.wait(30)
        seen.append(call.claim())

    with pytest.raises(StoreUnavailableError):
        await thread.run(work, 50)
    given_up.set()
    await thread.run(lambda _: None, TIMEOUT_MS)
    assert seen == [False]
    await thread.finish(lambda: None)


async def test_the_last_work_is_done_and_the_thread_ends() -> None:
    thread = StoreThread("test of the end")
    await thread.run(lambda _: None, TIMEOUT_MS)
    done = threading.Event()
    await thread.finish(done.set)
    assert done.is_set()
    for running in threading.enumerate():
        if running.name == thread.name:
            running.join(5)
            assert not running.is_alive()


async def test_a_thread_that_never_started_has_nothing_to_finish() -> None:
    done = threading.Event()
    await StoreThread("test").finish(done.set)
    assert not done.is_set()


async def test_a_process_without_threads_to_spare_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    thread = StoreThread("test")
    started: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(StoreUnavailableError):
            await thread.run(lambda _: started.append("refused"), TIMEOUT_MS)
    await thread.run(lambda _: started.append("next"), TIMEOUT_MS)
    assert started == ["next"]
    await thread.finish(lambda: None)
