"""How long a silent process is waited for, and what the kernel says of its work."""

import os
import signal
import subprocess
import sys
import time

import pytest

from control_plane import limits
from control_plane.process_table import ProcessHandle
from control_plane.supervisor import silence_ms_max


@pytest.mark.parametrize(
    ("answered", "wanted", "allowed_ms"),
    [
        (False, 0.0, limits.START_TIMEOUT_MS),
        (False, 1.0, limits.START_TIMEOUT_MS),
        (True, 0.0, limits.UNRESPONSIVE_MS_MAX),
        (True, 0.49, limits.UNRESPONSIVE_MS_MAX),
        (True, 0.5, limits.BUSY_SILENT_MS_MAX),
        (True, 1.0, limits.BUSY_SILENT_MS_MAX),
    ],
)
def test_a_silent_process_is_waited_for_longer_where_it_works(answered: bool, wanted: float, allowed_ms: int) -> None:
    assert silence_ms_max(limits.UNRESPONSIVE_MS_MAX, answered=answered, wanted=wanted) == allowed_ms


def test_the_kernel_tells_what_a_process_works_and_that_a_stopped_one_does_not() -> None:
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    handle = ProcessHandle.of_child(child)
    try:
        begun_ms = handle.wanted_cpu_ms()
        while handle.wanted_cpu_ms() < begun_ms + 20:
            assert not handle.has_ended()
        os.kill(child.pid, signal.SIGSTOP)
        while not handle.is_stopped():
            time.sleep(0.001)
        stopped_ms = handle.wanted_cpu_ms()
        time.sleep(0.05)
        assert handle.wanted_cpu_ms() == stopped_ms
    finally:
        handle.signal(signal.SIGKILL)
        child.wait()
    assert handle.wanted_cpu_ms() == 0.0, "it is gone"
    handle.close()
