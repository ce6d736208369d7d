"""System calls of a running process are made slow or fail, and it goes on unharmed, however its tracer ends."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.installation import wait_for
from chaos.syscalls import (
    CONTROL,
    DISK_FULL,
    SYNCS_FAIL,
    SystemCallFault,
    SystemCallFaultError,
    Tracer,
    slow_syncs,
    tracer_of,
)

# Writes and syncs once for each line that it reads, and says how that went and how long it took.
WRITER = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
for line in sys.stdin:
    began = time.monotonic()
    try:
        os.pwrite(fd, b"x", 0); os.fdatasync(fd)
        told = "ok"
    except OSError as error:
        told = os.strerror(error.errno)
    print(told, time.monotonic() - began, flush=True)
"""
pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


class Writer:
    def __init__(self, file: Path) -> None:
        self.file = file
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def write(self) -> tuple[str, float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        told, _, seconds = self.process.stdout.readline().strip().rpartition(" ")
        return told, float(seconds)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    writer = Writer(tmp_path / "book")
    assert writer.write()[0] == "ok"
    yield writer
    writer.process.kill()
    writer.process.communicate()


@pytest.mark.parametrize(
    ("fault", "told"), [(CONTROL, "ok"), (DISK_FULL, "No space left on device"), (SYNCS_FAIL, "Input/output error")]
)
def test_calls_fail_while_traced_and_only_then(writer: Writer, fault: SystemCallFault, told: str) -> None:
    with Tracer(writer.pid, fault, files=[writer.file]):
        assert writer.write()[0] == told
    assert tracer_of(writer.pid) == 0
    assert writer.write()[0] == "ok"


def test_syncs_are_slow(writer: Writer) -> None:
    with Tracer(writer.pid, slow_syncs(300), files=[writer.file]):
        assert writer.write()[1] >= 0.3
    assert writer.write()[1] < 0.3


def test_other_files_are_left_alone(writer: Writer, tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    with Tracer(writer.pid, DISK_FULL, files=[tmp_path / "other"]):
        assert writer.write()[0] == "ok"


def test_a_killed_tracer_harms_nobody(writer: Writer) -> None:
    with Tracer(writer.pid, DISK_FULL):
        os.kill(tracer_of(writer.pid), signal.SIGKILL)
        wait_for(lambda: tracer_of(writer.pid) == 0 or None, "the tracer is gone", 5_000)
        assert writer.write()[0] == "ok"


def test_a_tracer_ends_by_itself(writer: Writer) -> None:
    tracer = Tracer(writer.pid, DISK_FULL, seconds_max=1)
    tracer.start()
    wait_for(lambda: tracer_of(writer.pid) == 0 or None, "the tracer has ended", 10_000)
    assert writer.write()[0] == "ok"
    tracer.end()


def test_what_can_t_be_traced_is_said(writer: Writer) -> None:
    with Tracer(writer.pid, CONTROL), pytest.raises(SystemCallFaultError, match="traced by"):
        Tracer(writer.pid, CONTROL).start()
    with pytest.raises(SystemCallFaultError, match="no process"):
        Tracer(2**22 - 1, CONTROL).start()
