"""A load in a process of its own, so that nothing of the experiment delays it. Judges nothing."""

import contextlib
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

import orjson

from chaos import history, limits
from chaos.history import Call
from chaos.workload import Plan, plan_json


class LoadError(Exception):
    """A load did not run as it was planned."""


class LoadProcess:
    """One load. `counts` is what it told last, by partner (chaos.workload.Counts)."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.plan = plan
        self._plan_file = folder / f"{plan.run}.plan.json"
        self._history_file = folder / f"{plan.run}.history.jsonl"
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self.counts: dict[str, dict[str, float]] = {}

    @property
    def pid(self) -> int | None:
        """Its process, once it has one."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it; its journeys begin when its plan says."""
        self._plan_file.touch(mode=0o600)  # it holds keys
        self._plan_file.write_bytes(plan_json(self.plan))
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "chaos.workload"),
                *("--plan", str(self._plan_file), "--history", str(self._history_file)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C at the experiment is the experiment's to handle
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def has_ended(self) -> bool:
        """Whether it has ended, by itself or otherwise."""
        return self._process is not None and self._process.poll() is not None

    def wait(self) -> list[Call]:
        """Wait for its end; give its history. Raises LoadError."""
        assert self._process is not None, "it was not started"
        code = self._process.wait()
        assert self._reader is not None
        self._reader.join()
        self._plan_file.unlink(missing_ok=True)  # its keys are of no use any more
        if code != 0:
            raise LoadError(f"the load {self.plan.run} ended with exit code {code}")
        return history.load(self._history_file)

    def finish(self) -> list[Call]:
        """Let no further call begin, wait for those under way; give its history. Raises LoadError."""
        assert self._process is not None, "it was not started"
        self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(limits.JOURNEYS_END_MS_MAX / 1_000)
        self.kill()
        return self.wait()

    def kill(self) -> None:
        """End it at once; nothing where it has ended, or never began. Its history is lost."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _read(self, output: IO[bytes]) -> None:
        with output:
            for line in output:
                self.counts = orjson.loads(line)
