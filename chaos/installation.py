"""A gateway that is up, as those who run experiments on it see it: what an operator asks, and the acquirer's word.

Starts and ends nothing: `chaos/gateway.py` has one of its own, `Attached` is one that somebody else runs.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

from chaos import limits
from control_plane import client, data_folder
from control_plane.data_folder import DataFolder
from control_plane.errors import ControlPlaneError, DoorError, NotRunningError
from control_plane.load import routers_of
from control_plane.process_table import find_marked
from control_plane.settings import MAIN_ACQUIRER, SECOND_ACQUIRER, Settings

T = TypeVar("T")


class GatewayError(Exception):
    """The gateway under test did not do what every experiment needs of it."""


class Installation:
    """One installation that is up. Commands run in `working_folder`, where no settings of others lie about."""

    def __init__(self, folder: DataFolder, *, working_folder: Path) -> None:
        self.folder = folder
        self.working_folder = working_folder

    @property
    def base_url(self) -> str:
        """Where partners send their payments."""
        raise NotImplementedError

    @property
    def metrics_url(self) -> str:
        """Where the first router tells its metrics."""
        raise NotImplementedError

    @property
    def acquirer_url(self) -> str:
        """Where the acquirer simulator listens."""
        raise NotImplementedError

    @property
    def acquirer_urls(self) -> dict[str, str]:
        """Where each simulator listens, by its acquirer's name."""
        return {MAIN_ACQUIRER: self.acquirer_url}

    @property
    def store_kind(self) -> str:
        """What keeps its partners' books (stores.shelf.KINDS)."""
        raise NotImplementedError

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run one `bulkhead` command on this data folder."""
        return subprocess.run(
            self.command(*arguments),
            check=False,
            capture_output=True,
            text=True,
            timeout=limits.COMMAND_TIMEOUT_MS / 1_000,
            env=environment(),
            cwd=self.working_folder,
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

    def is_well(self, partners: Collection[str]) -> bool:
        """Say whether all processes are ready, each cell has its spare, and these partners are served.

        Redis, too, for which nobody else waits.
        """
        status = self.status()
        rows = [row for row in status["partners"] if row["partner"] in partners]
        return (
            bool(status["ready"])
            and all(row["health"] == "ready" for row in status["processes"] if row["role"] == "redis")
            and all(cell["answers"] and cell["spares"] for cell in status["cells"])
            and len(rows) == len(partners)
            and all(row["state"] == "active" and row["breaker"] == "closed" for row in rows)
        )

    def wait_well(self, partners: Collection[str], timeout_ms: int = limits.START_TIMEOUT_MS) -> None:
        """Wait until all is well. Raises GatewayError."""
        wait_for(lambda: self.is_well(partners) or None, "all is well", timeout_ms)

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
        pid = worker_pid(self.status(), partner)
        if pid is None:
            raise GatewayError(f"status shows no worker of {partner}")
        return psutil.Process(pid)

    def wait_settled(self, timeout_ms: int = limits.SETTLE_TIMEOUT_MS, partners: Collection[str] | None = None) -> int:
        """Wait until no operation is open or unknown; give how many are, after that time, still.

        `partners`: of these only, where others go on meanwhile.
        """

        def look() -> int | None:
            self._require_running()
            return 0 if self.open_operations(partners) == 0 else None

        with contextlib.suppress(GatewayError):
            wait_for(look, "all operations are settled", timeout_ms)
        return self.open_operations(partners)

    def open_operations(self, partners: Collection[str] | None = None) -> int:
        """Count the operations whose outcome is to come; -1 where not all partners can be asked."""
        with contextlib.suppress(ControlPlaneError):
            rows = [row for row in self.status()["partners"] if partners is None or row["partner"] in partners]
            if all(row["state"] == "active" for row in rows):
                return sum(row["in_flight"] for row in rows)
        return -1

    # The acquirer

    def set_fault(self, partner: str, mode: str, **more: int) -> None:
        """Let the acquirer hang, refuse or worse for one partner; `delay_ms` where it is to be slow."""
        answer = httpx.put(f"{self.acquirer_url}/faults/{partner}", json={"mode": mode, **more}, trust_env=False)
        answer.raise_for_status()

    def clear_fault(self, partner: str) -> None:
        """Let the acquirer serve that partner again."""
        httpx.delete(f"{self.acquirer_url}/faults/{partner}", trust_env=False).raise_for_status()

    def acquirer_record(self, partner: str | None = None) -> list[dict[str, Any]]:
        """Read all that every acquirer was asked and did, or that for one partner; each row says whose it is."""
        rows: list[dict[str, Any]] = []
        for name, url in self.acquirer_urls.items():
            rows += [{**row, "acquirer": name} for row in _record_at(url, partner)]
        return rows

    def processes(self) -> list[psutil.Process]:
        """Give all living processes that carry this gateway's marker; not `up` itself."""
        instance = data_folder.read_instance(self.folder)
        found: list[psutil.Process] = []
        for handle in [] if instance is None else find_marked(instance.id):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(handle.pid))
            handle.close()
        return [process for process in found if is_alive(process)]

    def command(self, *arguments: object) -> list[str]:
        """Give a `bulkhead` command on this data folder, to be run."""
        # The script that stands beside the interpreter, as a user would call it.
        script = Path(sys.executable).with_name("bulkhead")
        return [str(script), "--data-folder", str(self.folder.root), *map(str, arguments)]

    def _require_running(self) -> None:
        """Raise GatewayError where it can't come to be ready any more; who did not start it can't tell."""


class Attached(Installation):
    """One that somebody else runs, found by its data folder."""

    def __init__(self, folder: DataFolder) -> None:
        super().__init__(folder, working_folder=folder.root)
        try:
            self._settings = Settings(**json.loads(folder.settings_file.read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise NotRunningError(
                f"no Bulkhead was ever started on this data folder: {error}",
                where=str(folder.root),
                hint="start it (bulkhead up), name it with --data-folder, or let the experiment start one: --own",
            ) from error

    @property
    def base_url(self) -> str:
        """Where partners send their payments: the first router."""
        return f"http://{self._settings.http_host}:{self._settings.http_port}"

    @property
    def metrics_url(self) -> str:
        """Where the first router tells its metrics."""
        return routers_of(self._settings)[0]

    @property
    def store_kind(self) -> str:
        """What keeps its partners' books."""
        return self._settings.store

    @property
    def acquirer_url(self) -> str:
        """Where the acquirer simulator listens. Raises GatewayError where it is another acquirer."""
        if not self._settings.starts_simulator:
            raise GatewayError("its acquirer is not the simulator, whose record and faults every experiment needs")
        return self._settings.acquirer

    @property
    def acquirer_urls(self) -> dict[str, str]:
        """Where each simulator listens, by its acquirer's name. Raises GatewayError as `acquirer_url` does."""
        second = self._settings.acquirer_urls.get(SECOND_ACQUIRER)
        return {MAIN_ACQUIRER: self.acquirer_url, **({SECOND_ACQUIRER: second} if second else {})}


def worker_pid(status: Mapping[str, Any], partner: str | None) -> int | None:
    """Find in a status the process of a partner's worker, its own or one that it shares; None where it has none."""
    name = next((row["worker"] for row in status["partners"] if row["partner"] == partner), None)
    return next((row["pid"] for row in status["processes"] if name is not None and row["process"] == name), None)


def _record_at(url: str, partner: str | None) -> list[dict[str, Any]]:
    operations: list[dict[str, Any]] = []
    after = "0"
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as session:
        for _ in range(limits.RECORD_PAGES_MAX):
            page = session.get(
                "/operations", params={"partner": partner or "", "after": after, "limit": limits.RECORD_PAGE_ROWS}
            )
            page.raise_for_status()
            found = page.json()
            operations += found["operations"]
            if found["next"] is None:
                return operations
            after = found["next"]
    raise GatewayError(f"an acquirer's record has more than {limits.RECORD_PAGES_MAX} pages")


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


def environment() -> dict[str, str]:
    """Give our environment without settings of another installation."""
    return {name: value for name, value in os.environ.items() if not name.startswith("BULKHEAD_")}
