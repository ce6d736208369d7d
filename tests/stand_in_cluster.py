"""A stand-in for Ray: a Cluster whose workers are real processes (tests/worker_process.py), started in milliseconds."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path

from cells.remote import Cluster, ClusterError, Endpoint
from cells.worker import WorkerConfig

HOST = "127.0.0.1"


class WorkerMaker:
    """The process that workers are forked from. One serves many tests."""

    def __init__(self, errors_file: Path) -> None:
        with errors_file.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.worker_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        self._lock = threading.Lock()
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
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise ClusterError("the process that workers are forked from has ended")
        said = json.loads(line)
        assert said["name"] == config.name
        return Endpoint(config.name, said["pid"], HOST, said["port"], said["heartbeat_port"])

    def end(self) -> None:
        """End it, and with it whatever worker nobody else has ended: they are of its process group."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


class StandInCluster(Cluster):
    """Answers as Cluster does, without Ray. `head` is what listens at the cluster's address."""

    def __init__(self, maker: WorkerMaker) -> None:
        self.head = socket.create_server((HOST, 0))
        self.address = f"{HOST}:{self.head.getsockname()[1]}"
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
        self.head.close()
        for endpoint in self.endpoints.values():
            try:
                os.kill(endpoint.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
