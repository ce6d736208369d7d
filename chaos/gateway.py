"""A whole gateway, started as its user would start it, and killed as no user would. Sends no payments.

What belongs to it is found by the marker that all its processes carry in their environment; nothing else is touched.
"""

import contextlib
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from chaos import limits
from chaos.installation import GatewayError, Installation, environment, is_alive, wait_for
from chaos.ports import HOST, NoPortsError, free_block
from chaos.store_choice import SQLITE, StoreChoice
from control_plane import data_folder
from control_plane.data_folder import DataFolder
from control_plane.errors import NotRunningError
from control_plane.process_table import read_marker
from control_plane.processes import ray_folder
from control_plane.settings import MAIN_ACQUIRER, SECOND_ACQUIRER


@dataclass(frozen=True, slots=True)
class Ports:
    """The first port of each row; routers' is the last row."""

    acquirer: int
    second_acquirer: int
    redis: int
    door: int
    metrics: int
    ray: int
    router_metrics: int
    http: int


class Gateway(Installation):
    """One installation below `root`: its data in `root/data`, what `up` prints in `root/up.out`.

    It has one router unless asked for more, where `bulkhead up` has two: partners that share one share more.
    """

    def __init__(
        self,
        root: Path,
        *,
        cells: int,
        store: StoreChoice = SQLITE,
        second_acquirer: bool = False,
        routers: int = 1,
        up_arguments: Sequence[str] = (),
        more_environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(DataFolder(root / "data"), working_folder=root)
        self.root = root
        self.cells = cells
        self.store = store
        self.second_acquirer = second_acquirer
        self.routers = routers
        self.up_arguments = up_arguments
        self.more_environment = dict(more_environment or {})
        self.ports = free_ports(cells, routers)
        self.up: subprocess.Popen[bytes] | None = None
        self._seen: set[psutil.Process] = set()

    @property
    def base_url(self) -> str:
        """Where partners send their payments."""
        return f"http://{HOST}:{self.ports.http}"

    @property
    def metrics_url(self) -> str:
        """Where the first router tells its metrics."""
        return f"http://{HOST}:{self.ports.router_metrics}/metrics"

    @property
    def store_kind(self) -> str:
        """What keeps its partners' books."""
        return self.store.kind

    @property
    def acquirer_url(self) -> str:
        """Where the acquirer simulator listens."""
        return f"http://{HOST}:{self.ports.acquirer}"

    @property
    def acquirer_urls(self) -> dict[str, str]:
        """Where each simulator listens, by its acquirer's name."""
        second = {SECOND_ACQUIRER: f"http://{HOST}:{self.ports.second_acquirer}"} if self.second_acquirer else {}
        return {MAIN_ACQUIRER: self.acquirer_url, **second}

    @property
    def output(self) -> str:
        """What `up` printed, all starts together."""
        with contextlib.suppress(FileNotFoundError):
            return (self.root / "up.out").read_text(errors="replace")
        return ""

    # Start and end

    def start(self) -> None:
        """Run `bulkhead up` in the background; `wait_ready` follows."""
        assert self.up is None, "it was started already"
        self.root.mkdir(parents=True, exist_ok=True)
        ports = self.ports
        arguments = ["up", "--cells", self.cells, "--http-port", ports.http, "--acquirer-port", ports.acquirer]
        arguments += ["--door-port", ports.door, "--metrics-port", ports.metrics, "--ray-port", ports.ray]
        arguments += ["--redis-port", ports.redis, "--routers", self.routers]
        arguments += ["--router-metrics-port", ports.router_metrics]
        arguments += [*self.store.up_arguments, *self.up_arguments]
        arguments += ["--second-acquirer-port", ports.second_acquirer] if self.second_acquirer else []
        with (self.root / "up.out").open("ab") as output:
            self.up = subprocess.Popen(
                self.command(*arguments),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**environment(), **self.more_environment},
                cwd=self.root,
                start_new_session=True,  # a Ctrl-C at the experiment is the experiment's to handle
            )

    def wait_ready(self, timeout_ms: int = limits.START_TIMEOUT_MS) -> dict[str, Any]:
        """Wait until every process is ready and every partner served; give the status. Raises GatewayError."""

        def look() -> dict[str, Any] | None:
            self._require_running()
            with contextlib.suppress(NotRunningError):
                status = self.status()
                served = all(partner["state"] == "active" for partner in status["partners"])
                return status if status["ready"] and served else None
            return None

        status = wait_for(look, "the gateway is ready", timeout_ms)
        self.processes()  # so that `leftovers` knows them by more than their marker
        return status

    def interrupt(self) -> int:
        """Press Ctrl-C at `up` (SIGINT) and wait for its end; give its exit code. Raises GatewayError."""
        assert self.up is not None, "it was not started"
        self.processes()
        self.up.send_signal(signal.SIGINT)
        try:
            code = self.up.wait(limits.STOP_TIMEOUT_MS / 1_000)
        except subprocess.TimeoutExpired as error:
            raise GatewayError(f"`up` did not end within {limits.STOP_TIMEOUT_MS} ms of SIGINT") from error
        self.up = None
        return code

    def kill_everything(self) -> int:
        """SIGKILL `up` and all that is this gateway's, until nothing is left; give how many there were."""
        killed = 0
        found = self.processes()
        if self.up is not None:
            self.up.kill()
            self.up.wait()
            self.up = None
            killed += 1
        for _ in range(limits.KILL_ROUNDS_MAX):
            for process in found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            killed += len(psutil.wait_procs(found, limits.KILL_TIMEOUT_MS / 1_000)[0])
            found = self.leftovers()
            if not found:
                return killed
        raise GatewayError(f"still running after SIGKILL: {found}")

    def processes(self) -> list[psutil.Process]:
        """Give all living processes that carry this gateway's marker, and their descendants; not `up` itself."""
        found = super().processes()
        self._seen |= set(found)
        return found

    def kill_control_plane(self) -> None:
        """SIGKILL `up` alone; what it started goes on. `start` continues from there."""
        assert self.up is not None, "it was not started"
        self.up.kill()
        self.up.wait()
        self.up = None

    def census(self) -> Counter[str]:
        """Count the living processes by what started them and their names, strays included: `up` itself is not in it.

        A stray hides its marker and has lost its parent, but names this gateway's folders in its command line.
        """
        instance = data_folder.read_instance(self.folder)
        assert instance is not None
        ours = {process.pid for process in self.processes()}
        folders = (str(self.folder.run), str(ray_folder(instance.id)))
        counted: Counter[str] = Counter()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid in ours:
                    started_by = (read_marker(process.pid) or "").partition("/")[2] or "unmarked"
                    counted[f"{started_by} {process.name()}"] += 1
                elif self._is_stray(process, folders):
                    self._seen.add(process)
                    counted[f"stray {process.name()}"] += 1
        return counted

    def _is_stray(self, process: psutil.Process, folders: tuple[str, ...]) -> bool:
        itself = {os.getpid()} | ({self.up.pid} if self.up is not None else set())
        if process.pid in itself or not is_alive(process):
            return False
        return any(folder in word for word in process.cmdline() for folder in folders)

    def leftovers(self) -> list[psutil.Process]:
        """Give what is alive of all that was ever seen to be this gateway's."""
        self.processes()
        return [process for process in self._seen if is_alive(process)]

    def _require_running(self) -> None:
        assert self.up is not None, "it was not started"
        code = self.up.poll()
        if code is not None:
            raise GatewayError(f"`up` ended with exit code {code}:\n{self.output[-2_000:]}")


def free_ports(cells: int, routers: int) -> Ports:
    """Find a block of free ports. Another process may still take one before it is used; `up` says so then."""
    try:
        first = free_block(3 + 3 * cells + 2 * routers)
    except NoPortsError as error:
        raise GatewayError(str(error)) from error
    row = first + 3
    http = row + 3 * cells + routers
    return Ports(first, first + 1, first + 2, row, row + cells, row + 2 * cells, http - routers, http)
