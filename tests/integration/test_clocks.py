"""A moved clock moves the wall clock of a running process, forward and back, and never its monotonic clock."""

import subprocess
import sys
from os import environ
from pathlib import Path

import pytest

from chaos.clocks import Clock, ClockError

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
