"""A whole gateway, started as its user would start it, and killed as no user would. Sends no payments.

What belongs to it is found by the marker that all its processes carry in their environment; nothing else is touched.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

from chaos import limits
from chaos.ports import HOST, NoPortsError, free_block
from chaos.store_choice import SQLITE, StoreChoice
from control_plane import client, data_folder
from control_plane.data_folder import DataFolder
from control_plane.errors import ControlPlaneError, DoorError, NotRunningError
from control_plane.process_table import find_marked, read_marker
from control_plane.processes import ray_folder
from control_plane.settings import MAIN_ACQUIRER, SECOND_ACQUIRER

T = TypeVar("T")


class GatewayError(Exception):
    """The gateway under test did not do what every experiment needs of it."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The first port of each row."""

    http: int
    acquirer: int
    door: int
    metrics: int
    ray: int
    second_acquirer: int


class Gateway:
    """One installation below `root`: its data in `root/data`, what `up` prints in `root/up.out`."""

    def __init__(
        self,
        root: Path,
        *,
        cells: int,
        store: StoreChoice = SQLITE,
        second_acquirer: bool = False,
        up_arguments: Sequence[str] = (),
    ) -> None:
        self.root = root
        self.cells = cells
        self.store = store
        self.second_acquirer = second_acquirer
        self.up_arguments = up_arguments
        self.ports = free_ports(cells)
        self.folder = DataFolder(root / "data")
        self.up: subprocess.Popen[bytes] | None = None
        self._seen: set[psutil.Process] = set()

    @property
    def base_url(self) -> str:
        """Where partners send their payments."""
        return f"http://{HOST}:{self.ports.http}"

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
        arguments += [*self.store.up_arguments, *self.up_arguments]
        arguments += ["--second-acquirer-port", ports.second_acquirer] if self.second_acquirer else []
        with (self.root / "up.out").open("ab") as output:
            self.up = subprocess.Popen(
                self._command(*arguments),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(),
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
        instance = data_folder.read_instance(self.folder)
        if instance is None:
            return []
        found: set[psutil.Process] = set()
        for handle in find_marked(instance.id):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.add(psutil.Process(handle.pid))
            handle.close()
        self._seen |= found
        return [process for process in found if is_alive(process)]

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

    # What an operator asks

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run one `bulkhead` command on this data folder."""
        return subprocess.run(
            self._command(*arguments),
            check=False,
            capture_output=True,
            text=True,
            timeout=limits.COMMAND_TIMEOUT_MS / 1_000,
            env=_environment(),
            cwd=self.root,
        )

    def run_json(self, *arguments: object) -> dict[str, Any]:
        """Run one command with --json. Raises GatewayError where it prints no JSON object."""
        done = self.run(*arguments, "--json")
        try:
            found = json.loads(done.stdout)
        except json.JSONDecodeError as error:
            raise GatewayError(f"`bulkhead {arguments}` ended with {done.returncode}: {done.stderr}") from error
        assert isinstance(found, dict)
        return found

    def status(self) -> dict[str, Any]:
        """Give what `bulkhead status --json` shows, without a process of its own. Raises ControlPlaneError."""
        return client.ask(self.folder, "GET", "/status")

    def audit(self) -> dict[str, Any]:
        """Run `bulkhead audit --json`."""
        return self.run_json("audit")

    def wait_spares(self, timeout_ms: int = limits.START_TIMEOUT_MS) -> None:
        """Wait until every cell has a warm spare again. Raises GatewayError."""

        def look() -> bool | None:
            self._require_running()
            return True if all(cell["answers"] and cell["spares"] for cell in self.status()["cells"]) else None

        wait_for(look, "every cell has a spare", timeout_ms)

    def create_partner(self, partner: str, **limits_: Any) -> str:
        """Onboard a partner; give its API key. Asked again where a door was not there yet. Raises ControlPlaneError."""
        for attempt in range(3):
            try:
                found = client.ask(self.folder, "POST", "/partners", {"id": partner, **limits_})
                return str(found["key"]["api_key"])
            except DoorError:
                if attempt == 2:
                    raise
        raise AssertionError("unreachable")

    def worker_of(self, partner: str) -> psutil.Process:
        """Find the process of a partner's worker. Raises GatewayError."""
        for process in self.status()["processes"]:
            if process["role"] == "worker" and process["partner"] == partner:
                return psutil.Process(process["pid"])
        raise GatewayError(f"status shows no worker of {partner}")

    def wait_settled(self, timeout_ms: int = limits.SETTLE_TIMEOUT_MS) -> int:
        """Wait until no operation is open or unknown; give how many are, after that time, still."""

        def look() -> int | None:
            self._require_running()
            return 0 if self.open_operations() == 0 else None

        with contextlib.suppress(GatewayError):
            wait_for(look, "all operations are settled", timeout_ms)
        return self.open_operations()

    def open_operations(self) -> int:
        """Count the operations whose outcome is to come; -1 where not all partners can be asked."""
        with contextlib.suppress(ControlPlaneError):
            partners = self.status()["partners"]
            if all(partner["state"] == "active" for partner in partners):
                return sum(partner["in_flight"] for partner in partners)
        return -1

    # The acquirer

    def set_fault(self, partner: str, mode: str) -> None:
        """Let the acquirer hang or refuse for one partner."""
        answer = httpx.put(f"{self.acquirer_url}/faults/{partner}", json={"mode": mode}, trust_env=False)
        answer.raise_for_status()

    def clear_fault(self, partner: str) -> None:
        """Let the acquirer serve that partner again."""
        httpx.delete(f"{self.acquirer_url}/faults/{partner}", trust_env=False).raise_for_status()

    def acquirer_record(self) -> list[dict[str, Any]]:
        """Read all that every acquirer was asked and did; each row says whose it is."""
        return [{**row, "acquirer": name} for name, url in self.acquirer_urls.items() for row in self._record_at(url)]

    def _record_at(self, url: str) -> list[dict[str, Any]]:
        operations: list[dict[str, Any]] = []
        after = "0"
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as session:
            for _ in range(limits.RECORD_PAGES_MAX):
                page = session.get("/operations", params={"after": after, "limit": limits.RECORD_PAGE_ROWS})
                page.raise_for_status()
                found = page.json()
                operations += found["operations"]
                if found["next"] is None:
                    return operations
                after = found["next"]
        raise GatewayError(f"the acquirer's record has more than {limits.RECORD_PAGES_MAX} pages")

    def _command(self, *arguments: object) -> list[str]:
        # The script that stands beside the interpreter, as a user would call it.
        script = Path(sys.executable).with_name("bulkhead")
        return [str(script), "--data-folder", str(self.folder.root), *map(str, arguments)]

    def _require_running(self) -> None:
        assert self.up is not None, "it was not started"
        code = self.up.poll()
        if code is not None:
            raise GatewayError(f"`up` ended with exit code {code}:\n{self.output[-2_000:]}")


def free_ports(cells: int) -> Ports:
    """Find a block of free ports. Another process may still take one before it is used; `up` says so then."""
    try:
        first = free_block(3 + 3 * cells)
    except NoPortsError as error:
        raise GatewayError(str(error)) from error
    row = first + 3
    return Ports(first, first + 1, row, row + cells, row + 2 * cells, second_acquirer=first + 2)


def wait_for(look: Callable[[], T | None], what: str, timeout_ms: int) -> T:
    """Look again and again until there is something; give it. Raises GatewayError after the time."""
    until = time.monotonic() + timeout_ms / 1_000
    while True:
        found = look()
        if found is not None:
            return found
        if time.monotonic() > until:
            raise GatewayError(f"waited {timeout_ms} ms in vain until {what}")
        time.sleep(limits.POLL_INTERVAL_MS / 1_000)


def is_alive(process: psutil.Process) -> bool:
    """Say whether a process runs; one that ended and that its parent did not take note of does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _environment() -> dict[str, str]:
    """Give our environment without settings of another installation."""
    return {name: value for name, value in os.environ.items() if not name.startswith("BULKHEAD_")}
