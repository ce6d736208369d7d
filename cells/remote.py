"""Ray, and nothing but Ray: the only file that imports it. Places, limits and watches workers; carries no payment.

A worker is a detached actor, so that it outlives its door; `max_restarts` and `max_task_retries` stay 0, because
only the door assigns partners. All calls here block: the door makes them in threads.
"""

import asyncio
import os
import socket
import struct
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import structlog
import uvloop

from cells import worker_limits
from cells.api import limits, logs
from cells.api.bulkheads import Bulkhead
from cells.ray_environment import ray_environment, require_loopback
from cells.worker import Worker, WorkerConfig

log = structlog.get_logger()

NAMESPACE: Final = "bulkhead"
_START_TIMEOUT_SECONDS: Final = limits.WORKER_START_TIMEOUT_MS / 1_000


class ClusterError(Exception):
    """Ray does not do what was asked: the cluster is gone, refuses us, or is too slow."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a worker is."""

    name: str
    pid: int
    host: str
    port: int
    heartbeat_port: int


class WorkerActor:
    """The Ray actor: runs a worker's event loop in a thread, beside Ray's own.

    It has no coroutine: Ray would take it for an asynchronous actor, and leave its main thread to Ray's loop.
    """

    def __init__(self, fields: dict[str, Any]) -> None:
        config = WorkerConfig(**fields)
        self._config = config
        self._ports: tuple[int, int] | None = None
        self._failure: BaseException | None = None
        self._started = threading.Event()
        threading.Thread(target=self._run, name="worker", daemon=True).start()

    def endpoint(self) -> tuple[int, str, int, int]:
        """Wait until the worker listens; give its pid, host and ports."""
        self._started.wait(_START_TIMEOUT_SECONDS)
        if self._ports is None:
            raise RuntimeError(f"the worker does not listen: {self._failure!r}")
        return os.getpid(), self._config.host, *self._ports

    def hold(self) -> None:
        """Keep the process's main thread, for ever. Without a task Ray's loop there wakes a hundred times a second."""
        threading.Event().wait()

    def _run(self) -> None:
        config = self._config
        logs.configure(config.log_file, process=config.name, cell=config.cell)
        worker_limits.apply(config.name, with_memory=Bulkhead.WORKER_MEMORY not in config.bulkheads_off)

        async def serve() -> None:
            worker = Worker(config)
            self._ports = await worker.start()
            self._started.set()
            await asyncio.Event().wait()

        try:
            uvloop.run(serve())
        except BaseException as error:
            self._failure = error
            raise
        finally:
            self._started.set()


class Cluster:
    """The cell's own Ray cluster, as its door sees it."""

    def __init__(self, address: str, token_file: Path) -> None:
        self.address = address
        self._token_file = token_file
        self._handles: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._ray: Any = None

    def connect(self) -> None:
        """Become a driver of the cluster, as soon as its head listens. Raises ClusterError."""
        os.environ.update(ray_environment(self._token_file))
        # Ray takes its token from the environment when it is imported. That takes half a second, and a head longer to
        # start: so the one is done while the other is waited for.
        import ray  # noqa: PLC0415

        self._await_head()
        self._ray = ray
        try:
            require_loopback()
            ray.init(
                address=self.address,
                namespace=NAMESPACE,
                log_to_driver=False,
                configure_logging=False,
            )
        except Exception as error:
            raise ClusterError(f"Ray at {self.address} can't be joined: {error}") from error

    def _await_head(self) -> None:
        """Wait until the head listens. Ray would wait for minutes, and not end when it is told to."""
        host, _, port = self.address.rpartition(":")
        until = time.monotonic() + limits.WORKER_START_TIMEOUT_MS / 1_000
        while True:
            try:
                with socket.create_connection((host, int(port)), timeout=1):
                    return
            except OSError as error:
                if time.monotonic() > until:
                    raise ClusterError(f"Ray at {self.address} does not listen: {error}") from error
            time.sleep(0.1)

    def open_raylet(self) -> int:
        """Open the process of the cluster's raylet on this machine, as a pidfd. Raises ClusterError."""
        try:
            with socket.socket(socket.AF_UNIX) as asking:
                asking.connect(self._ray._private.worker._global_node.raylet_socket_name)  # noqa: SLF001 - it tells nowhere else
                pid, _, _ = struct.unpack("3i", asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return os.pidfd_open(pid)
        except (AttributeError, OSError) as error:
            raise ClusterError(f"the raylet of Ray at {self.address} can't be watched: {error}") from error

    def existing(self) -> list[str]:
        """Name the workers that are there already, from before. Raises ClusterError."""
        try:
            return sorted(self._ray.util.list_named_actors())
        except Exception as error:
            raise ClusterError(f"Ray at {self.address} does not list its actors: {error}") from error

    def start_worker(self, config: WorkerConfig) -> Endpoint:
        """Start a worker and wait until it listens. Raises ClusterError."""
        try:
            handle = (
                self._ray.remote(WorkerActor)
                .options(
                    name=config.name,
                    lifetime="detached",
                    max_restarts=0,
                    max_task_retries=0,
                    num_cpus=0,
                )
                .remote(asdict(config))
            )
        except Exception as error:
            raise ClusterError(f"Ray at {self.address} starts no worker: {error}") from error
        with self._lock:
            self._handles[config.name] = handle  # at once: what does not answer is to be ended, too
        try:
            answer = self._ray.get(handle.endpoint.remote(), timeout=_START_TIMEOUT_SECONDS)
        except Exception as error:
            raise ClusterError(f"worker {config.name} does not answer: {error}") from error
        handle.hold.remote()
        pid, host, port, heartbeat_port = answer
        return Endpoint(config.name, pid, host, port, heartbeat_port)

    def kill_worker(self, name: str) -> None:
        """Have Ray end a worker, if it can; the door makes sure by the process's pid."""
        with self._lock:
            handle = self._handles.pop(name, None)
        if self._ray is None:
            return  # not joined yet: whoever joins looks what Ray still names
        try:
            # One that an earlier door started has to be asked for.
            self._ray.kill(self._ray.get_actor(name) if handle is None else handle, no_restart=True)
        except Exception as error:  # noqa: BLE001 - Ray has many; it may be gone itself
            log.warning("ray_ends_no_worker", worker=name, error=str(error))
