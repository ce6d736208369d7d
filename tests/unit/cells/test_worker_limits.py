"""The bounds of a worker's process, each met by a process that is forked for it."""

import os
import resource
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cells import cpu_share, limits, process_use, worker_limits
from cells.process_use import ProcessUse

MEGABYTE = 1_048_576


def status_of(work: Callable[[], int]) -> int:
    """Give the status of a process that does the work and ends with what it gives."""
    pid = os.fork()
    if pid == 0:
        ended_with = 99
        try:
            ended_with = work()
        finally:
            os._exit(ended_with)
    return os.waitpid(pid, 0)[1]


def exit_code(work: Callable[[], int]) -> int:
    return os.waitstatus_to_exitcode(status_of(work))


def _megabytes_taken(most: int) -> int:
    kept = []
    for taken in range(most):
        try:
            kept.append(bytearray(b"\xaa") * MEGABYTE)
        except MemoryError:
            return taken
    return most


def _files_opened() -> int:
    opened = 0
    try:
        while True:
            os.open(os.devnull, os.O_RDONLY)
            opened += 1
    except OSError:
        return opened


def test_memory_is_refused_above_what_was_there_and_the_process_can_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WORKER_DATA_BYTES_MAX", 50 * MEGABYTE)

    def work() -> int:
        worker_limits.apply("w0", with_memory=True)
        return _megabytes_taken(100)

    assert 40 < exit_code(work) < 100  # what this process of many tests had freed before is there, too


def test_without_its_bulkhead_memory_is_not_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WORKER_DATA_BYTES_MAX", 50 * MEGABYTE)

    def work() -> int:
        worker_limits.apply("w0", with_memory=False)
        return _megabytes_taken(100)

    assert exit_code(work) == 100


def test_out_of_memory_the_process_dies_by_a_signal() -> None:
    def work() -> int:
        worker_limits.apply("w0", with_memory=True)
        try:
            bytearray(2 * limits.WORKER_DATA_BYTES_MAX)
        except MemoryError:
            worker_limits.end_out_of_memory()
        return 0

    assert exit_code(work) == -signal.SIGKILL


def test_files_are_refused_above_those_that_were_open_and_what_is_held_can_be_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "WORKER_FILES_MAX", 20)

    def work() -> int:
        use = ProcessUse()
        worker_limits.apply("w0", with_memory=True)
        assert not use.is_out_of_files()
        opened = _files_opened()
        assert use.is_out_of_files()
        assert use.resident_bytes() > MEGABYTE
        assert use.threads() >= 1
        return opened

    assert 15 <= exit_code(work) <= 25  # what is counted changes while it is counted


def test_a_bound_of_the_machine_s_that_is_lower_stays() -> None:
    def work() -> int:
        lower = process_use.open_files() + 10
        resource.setrlimit(resource.RLIMIT_NOFILE, (lower, lower))
        worker_limits.apply("w0", with_memory=True)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (lower, lower)
        return 0

    assert exit_code(work) == 0


@pytest.mark.parametrize("bounded", [False, True])
def test_a_crash_dumps_nothing(tmp_path_factory: pytest.TempPathFactory, bounded: bool) -> None:
    folder = tmp_path_factory.mktemp("crash")

    def work() -> int:
        os.chdir(folder)
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
        if bounded:
            worker_limits.apply("w0", with_memory=True)
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGSEGV)
        return 0

    status = status_of(work)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGSEGV
    if bounded:
        assert not os.WCOREDUMP(status)
        assert list(folder.iterdir()) == []
    elif not os.WCOREDUMP(status):
        pytest.skip("this machine dumps nobody's core")


def test_a_thread_s_stack_takes_little_of_the_bound() -> None:
    def work() -> int:
        worker_limits.apply("w0", with_memory=True)
        before = process_use.data_bytes()
        for _ in range(20):
            threading.Thread(target=threading.Event().wait, daemon=True).start()
        return (process_use.data_bytes() - before) // MEGABYTE // 20

    assert exit_code(work) <= 2


@pytest.mark.parametrize("leads", [False, True])
def test_a_worker_is_a_session_of_its_own_and_gives_way(leads: bool) -> None:
    def work() -> int:
        if leads:  # as Ray has it
            os.setpgid(0, 0)
        niceness = os.nice(0)
        worker_limits.apply("w0", with_memory=True)
        assert os.getsid(0) == os.getpid()
        return os.nice(0) - niceness

    assert exit_code(work) == limits.WORKER_NICENESS


def test_threads_are_counted() -> None:
    use = ProcessUse()
    before = use.threads()
    ended = threading.Event()
    more = [threading.Thread(target=ended.wait, daemon=True) for _ in range(3)]
    for thread in more:
        thread.start()
    assert use.threads() == before + 3
    ended.set()
    use.close()


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel gives sessions no shares")
def test_the_workers_session_has_a_smaller_share_than_others() -> None:
    def share() -> str:  # nothing, where this process is still in the session of the machine's first
        return Path("/proc/self/autogroup").read_text()

    before = share()

    def work() -> int:
        worker_limits.apply("w0", with_memory=False)
        return int(share().rpartition("nice")[2])

    assert exit_code(work) == limits.WORKER_NICENESS
    assert share() == before, "only its own session"


def test_a_kernel_that_was_asked_too_often_is_asked_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(limits, "SESSION_NICENESS_DELAY_MS", 1)
    asked: list[int] = []

    class Busy:
        def write_text(self, text: str) -> None:
            asked.append(int(text))
            if len(asked) < 3:
                raise BlockingIOError

    monkeypatch.setattr(cpu_share, "_SESSION", Busy())
    cpu_share.give_way()
    assert asked == [limits.WORKER_NICENESS] * 3
    asked.clear()
    monkeypatch.setattr(cpu_share, "_SESSION", tmp_path / "no" / "such" / "file")
    cpu_share.give_way()  # a kernel without it
