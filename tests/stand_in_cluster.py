"""A stand-in for Ray: a Cluster whose workers are real processes (tests/worker_process.py), started in milliseconds."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from cells.remote import Cluster, ClusterError, Endpoint
from cells.worker import WorkerConfig

HOST = "127.0.0.1"
SAYS_WITHIN_S = 10.0


class WorkerMaker:
    """The process that workers are forked from. One serves many tests."""

    def __init__(self, errors_file: Path, environment: Mapping[str, str] | None = None) -> None:
        with errors_file.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.worker_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
                bufsize=0,  # so that select() tells of every line
            )
        self._lock = threading.Lock()
        self._made: list[int] = []
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            self._process.communicate()
            raise RuntimeError(f"no worker can be made: {errors_file.read_text()}")

    def make(self, config: WorkerConfig) -> Endpoint:
        """Start a worker and wait until it listens."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(asdict(config)).encode() + b"\n")
            while select.select([self._process.stdout], [], [], SAYS_WITHIN_S)[0]:
                line = self._process.stdout.readline()
                if not line:
                    raise ClusterError("the process that workers are forked from has ended")
                said = json.loads(line)
                with contextlib.suppress(ProcessLookupError):  # a door may have killed it meanwhile
                    self._made.append(os.pidfd_open(said["pid"]))
                if said["name"] == config.name:  # or it is what an earlier one said too late
                    return Endpoint(config.name, said["pid"], HOST, said["port"], said["heartbeat_port"])
        # A door may have killed it meanwhile: its mark is there before it says where it listens.
        raise ClusterError(f"{config.name} did not say where it listens")

    def end(self) -> None:
        """End it, and with it whatever worker nobody else has ended: each has a session of its own."""
        self._process.kill()
        for pidfd in self._made:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
        # Those that it forked and that never said who they are are of its process group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


class StandInCluster(Cluster):
    """Answers as Cluster does, without Ray. `raylet` is a process that stands in for the raylet."""

    def __init__(self, maker: WorkerMaker) -> None:
        self.raylet = subprocess.Popen(["sleep", "infinity"])
        self.endpoints: dict[str, Endpoint] = {}
        self.started: list[str] = []
        self.killed: list[str] = []
        self.starts_fail = False
        self.connected = threading.Event()  # while it is cleared, Ray is not joined
        self.connected.set()
        self.slow = threading.Event()  # while it is cleared, nothing starts
        self.slow.set()
        self._maker = maker

    def connect(self) -> None:
        """Wait, where the test ordered it; there is no Ray to join."""
        self.connected.wait()

    def open_raylet(self) -> int:
        """Open the process that stands in for the raylet."""
        return os.pidfd_open(self.raylet.pid)

    def existing(self) -> list[str]:
        """Name the workers that nobody ended."""
        return sorted(self.endpoints)

    def start_worker(self, config: WorkerConfig) -> Endpoint:
        """Start a worker, unless the test ordered otherwise."""
        self.slow.wait()
        if self.starts_fail:
            raise ClusterError("as the test ordered")
        endpoint = self._maker.make(config)
        self.endpoints[config.name] = endpoint
        self.started.append(config.name)
        return endpoint

    def kill_worker(self, name: str) -> None:
        """Forget it, as Ray would; the process itself is the door's business."""
        self.killed.append(name)
        self.endpoints.pop(name, None)

    def end(self) -> None:
        """End all workers that live."""
        self.raylet.kill()
        self.raylet.wait()
        for endpoint in self.endpoints.values():
            try:
                os.kill(endpoint.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
