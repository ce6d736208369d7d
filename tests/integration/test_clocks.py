"""A moved clock moves the wall clock of a running process, forward and back, and never its monotonic clock."""

import subprocess
import sys
from os import environ
from pathlib import Path

import pytest

from chaos.clocks import Clock, ClockError
from control_plane.process_table import MARKER

# Waits by each clock; the C library's, too, which tells a deadline by the wall clock.
WAITER = """
import ctypes, os, sys, threading, time
libc = ctypes.CDLL(None)
class Moment(ctypes.Structure): _fields_ = [("s", ctypes.c_long), ("ns", ctypes.c_long)]
semaphore = ctypes.create_string_buffer(64)
libc.sem_init(semaphore, 0, 0)
def deadline():
    now = time.time_ns() + 200_000_000
    return ctypes.byref(Moment(*divmod(now, 1_000_000_000)))
def waited(wait):
    began = time.monotonic(); wait(); return time.monotonic() - began
condition = threading.Condition()
def by_condition():
    with condition: condition.wait(0.2)
for _ in sys.stdin:
    print(waited(lambda: time.sleep(0.2)), waited(by_condition),
          waited(lambda: libc.sem_timedwait(semaphore, deadline())), flush=True)
"""
TELLER = "import sys, time\nfor _ in sys.stdin: print(time.time(), time.monotonic(), flush=True)"


def test_a_running_process_s_wall_clock_jumps(tmp_path: Path) -> None:
    try:
        clock = Clock(tmp_path)
    except ClockError as error:
        pytest.skip(str(error))
    with subprocess.Popen(
        [sys.executable, "-c", TELLER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**environ, **clock.environment},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        told = []
        for offset_s in (0, 3_600, -3_600, 0):
            clock.set_offset_s(offset_s)
            process.stdin.write("\n")
            process.stdin.flush()
            wall, monotonic = map(float, process.stdout.readline().split())
            told.append((wall - monotonic, monotonic))
        process.kill()
    right = told[0][0]
    assert [round(offset - right) for offset, _ in told] == [0, 3_600, -3_600, 0]
    assert 0 <= told[-1][1] - told[0][1] < 30


def test_waits_are_as_long_as_ever(tmp_path: Path) -> None:
    try:
        clock = Clock(tmp_path)
    except ClockError as error:
        pytest.skip(str(error))
    with subprocess.Popen(
        [sys.executable, "-c", WAITER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**environ, **clock.environment},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for offset_s in (0, 3_600, -3_600):
            clock.set_offset_s(offset_s)
            process.stdin.write("\n")
            process.stdin.flush()
            waits_s = [float(word) for word in process.stdout.readline().split()]
            assert len(waits_s) == 3
            assert all(0.19 <= wait_s < 2 for wait_s in waits_s), waits_s
        assert clock.moves(process.pid)
        process.kill()


@pytest.mark.parametrize(
    ("program", "marker", "is_moved"),
    [
        (sys.executable, "0a1b/cell-0.door", True),
        (sys.executable, "0a1b/acquirer", False),
        ("/bin/sh", "0a1b/cell-0.ray", False),
    ],
)
def test_whose_clock_it_is(tmp_path: Path, program: str, marker: str, is_moved: bool) -> None:
    try:
        clock = Clock(tmp_path)
    except ClockError as error:
        pytest.skip(str(error))
    script = "echo begun; read line" if program == "/bin/sh" else "print('begun', flush=True); input()"
    environment = {**environ, **clock.environment, MARKER: marker}
    with subprocess.Popen(
        [program, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        assert clock.moves(process.pid) is is_moved
        process.kill()


def test_without_a_compiler_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(ClockError, match="there is no C compiler"):
        Clock(tmp_path)
