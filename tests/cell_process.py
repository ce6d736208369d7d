"""Starts one cell as the processes that it is: Ray's head and the door, on free ports. Usable outside pytest too.

Every process of the cell, Ray's own and its workers included, carries a mark of this cell in its environment or is of a
session that was begun here (Ray's agents write their titles over the mark). These are ended when the cell is stopped,
and nothing else is.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import orjson

from cells.api import frames, messages
from cells.api.connection import Peer
from cells.api.messages import Answer, Method

HOST: Final = "127.0.0.1"
CELL: Final = "cell-0"
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 8.0
STATUS_TIMEOUT_MS: Final = 5_000
_MARK: Final = "BULKHEAD_TEST_CELL"


class DoorProcess:
    """A running door."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, metrics_port: int) -> None:
        self.process = process
        self.pid = process.pid
        self.port = port
        self.metrics_url = f"http://{HOST}:{metrics_port}/metrics"

    def kill(self) -> None:
        """SIGKILL and wait."""
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        """SIGTERM and wait; its exit code. Raises TimeoutExpired after a SIGKILL."""
        self.process.terminate()
        return self.wait(STOP_TIMEOUT_S)

    def wait(self, timeout_s: float) -> int:
        """Wait for its end; its exit code. Raises TimeoutExpired after a SIGKILL."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


class CellProcess:
    """A running cell; its books stay in its folder when it ends."""

    def __init__(self, folder: Path, acquirers: dict[str, str], spares: int) -> None:
        self.folder = folder
        self.cell_folder = folder / CELL
        self.acquirers = acquirers
        self._spares = spares
        self._secret = secrets.token_bytes(32)
        self._mark = secrets.token_hex(16)
        # Short, because Unix sockets' names are limited to 107 bytes (unix(7)) and Ray appends about 70 of its own.
        self._ray_folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="bh"))
        self.ray_port = free_port()
        self._port = free_port()
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        self._write("secret", self._secret)
        self._write("token", secrets.token_hex(32).encode())
        self._ray: subprocess.Popen[bytes] | None = None
        self._doors: list[DoorProcess] = []
        self._sessions: set[int] = set()

    @property
    def door(self) -> DoorProcess:
        """The door that was started last."""
        return self._doors[-1]

    @property
    def port(self) -> int:
        """Where the door that was started last listens."""
        return self.door.port

    @property
    def ray_pid(self) -> int:
        """The pid of `ray start`, whose children are Ray's processes."""
        assert self._ray is not None
        return self._ray.pid

    def start_ray(self) -> None:
        """Start Ray's head and wait until it listens. Raises RuntimeError, with what it printed."""
        config = {
            "cell": CELL,
            "ray_port": self.ray_port,
            "temp_folder": str(self._ray_folder),
            "token_file": str(self.folder / "token"),
            "logs_folder": str(self.folder / "logs"),
        }
        self._ray = self._start("cells.ray_head", config)
        self._await_port(self._ray, self.ray_port, "cells.ray_head")

    def start_door(self, *, other_port: bool = False) -> DoorProcess:
        """Start a door, on the cell's port or on another, and wait until it listens. Raises RuntimeError."""
        port, metrics_port = free_port() if other_port else self._port, free_port()
        config = {
            "cell": CELL,
            "host": HOST,
            "port": port,
            "metrics_port": metrics_port,
            "ray_address": f"{HOST}:{self.ray_port}",
            "token_file": str(self.folder / "token"),
            "secret_file": str(self.folder / "secret"),
            "folder": str(self.cell_folder),
            "place": {"store": "sqlite", "folder": str(self.cell_folder)},
            "spares": self._spares,
            "acquirers": self.acquirers,
            "log_file": None,
            "logs_folder": str(self.folder / "logs"),
            "fault_injection": False,
            "bulkheads_off": [],
        }
        process = self._start("cells.door", config)
        self._doors.append(DoorProcess(process, port, metrics_port))
        self._await_port(process, port, "cells.door")
        return self.door

    def kill_door(self) -> None:
        """SIGKILL to the door."""
        self.door.kill()

    def restart_door(self) -> DoorProcess:
        """SIGKILL to the door, if it lives, and start it again on its port."""
        self.kill_door()
        return self.start_door()

    def kill_ray(self) -> None:
        """SIGKILL to Ray's head, all of its processes but the workers; the workers see it."""
        assert self._ray is not None
        for pid in self.pids_of("gcs_server", "raylet"):
            _signal(pid, signal.SIGKILL)
        self._ray.kill()
        self._ray.wait()

    def sweep_ray(self) -> None:
        """End what is left of Ray and its workers, as the supervisor does before it starts a head again."""
        self._kill_all(keep={door.pid for door in self._doors})
        for entry in self._ray_folder.iterdir():
            shutil.rmtree(entry, ignore_errors=True)

    def pids_of(self, *names: str) -> list[int]:
        """Name this cell's processes whose command begins with one of these names."""
        found = []
        for pid in self._marked():
            words = _command(pid).split()
            if words and Path(words[0]).name.startswith(names):
                found.append(pid)
        return found

    def processes(self) -> dict[int, str]:
        """Every process of this cell by its pid, with its command."""
        return {pid: _command(pid) for pid in self._marked()}

    def peer(self, role: str, port: int | None = None) -> Peer:
        """Make a connection to the door; the caller starts and closes it."""
        return Peer(HOST, port or self.port, role, frames.role_key(self._secret, role))

    async def status(self, port: int | None = None) -> dict[str, Any]:
        """Ask the door for everything that it knows."""
        peer = self.peer("control", port)
        await peer.start()
        try:
            assert await peer.wait_connected(STATUS_TIMEOUT_MS), "the door does not answer"
            answer = messages.decode_answer(await peer.request(Method.CELL_STATUS, "", b"", STATUS_TIMEOUT_MS))
        finally:
            await peer.aclose()
        assert isinstance(answer, Answer), answer
        status = orjson.loads(answer.body)
        assert isinstance(status, dict)
        return status

    async def worker_of(self, partner_id: str) -> dict[str, Any]:
        """Give the worker that has the partner, as the door tells it: worker, pid, endpoint, partners."""
        status = await self.status()
        (worker,) = [worker for worker in status["workers"] if partner_id in worker["partners"]]
        assert isinstance(worker, dict)
        return worker

    def stop(self) -> None:
        """End everything of this cell and leave nothing behind but its folder. Twice is no error."""
        self._kill_all(keep=set())  # crash-only: that is how a cell ends
        for process in [self._ray, *(door.process for door in self._doors)]:
            if process is not None:
                process.wait(STOP_TIMEOUT_S)  # killed; its end may still be on its way
        shutil.rmtree(self._ray_folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_bytes(data)

    def _start(self, module: str, config: dict[str, Any]) -> subprocess.Popen[bytes]:
        path = self.folder / f"{module}.json"
        path.write_text(json.dumps(config))
        with (self.folder / "logs" / f"{module}.out").open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", module, "--config", str(path)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, _MARK: self._mark},
                start_new_session=True,
            )
        self._sessions.add(process.pid)
        return process

    def _await_port(self, process: subprocess.Popen[bytes], port: int, module: str) -> None:
        until = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < until and process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex((HOST, port)) == 0:
                    return
            time.sleep(0.05)
        printed = (self.folder / "logs" / f"{module}.out").read_text()[-4_000:]
        self.stop()
        raise RuntimeError(f"{module} does not listen (exit code {process.poll()}): {printed}")

    def _marked(self) -> list[int]:
        mark = f"{_MARK}={self._mark}".encode()
        found = []
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit():
                continue
            try:
                environment = Path(entry.path, "environ").read_bytes()
            except OSError:  # it has ended meanwhile, or is not ours to read
                continue
            if mark in environment.split(b"\0") or _session(int(entry.name)) in self._sessions:
                found.append(int(entry.name))
        return found

    def _kill_all(self, keep: set[int]) -> None:
        until = time.monotonic() + STOP_TIMEOUT_S
        while left := [pid for pid in self._marked() if pid not in keep]:
            if time.monotonic() > until:
                raise RuntimeError(f"these do not end: {left}")
            for pid in left:
                _signal(pid, signal.SIGKILL)
            self._reap()
            time.sleep(0.02)
        self._reap()

    def _reap(self) -> None:
        for process in [self._ray, *(door.process for door in self._doors)]:
            if process is not None:
                process.poll()


def start_cell(folder: Path, acquirer_url: str, spares: int = 1, **others: str) -> CellProcess:
    """Start a cell over the books in `folder` (made where there are none) and wait until it listens.

    `others`: further acquirers by name. Raises RuntimeError, with what it printed, where it doesn't.
    """
    cell = CellProcess(folder, {"main": acquirer_url, **others}, spares)
    try:
        cell.start_ray()
        cell.start_door()
    except BaseException:
        cell.stop()
        raise
    return cell


def free_port() -> int:
    """Find a port that is free now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
