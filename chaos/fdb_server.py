"""A FoundationDB server of its own, for experiments and tests: one process that is killed and stopped as they like.

Needs `fdbserver` and `fdbcli` on PATH and nothing else of this package but its limits. Also finds the servers of a
cluster that run on this machine. Everything that is started here ends with `end`.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Final

import psutil

from chaos import limits, ports

SERVER: Final = "fdbserver"
CLI: Final = "fdbcli"
REDUNDANCY: Final = "single"
ENGINE: Final = "ssd"
_AVAILABLE: Final = "The database is available"
_CONFIGURED: Final = ("Database created", "Database already exists")
_ANY_ADDRESS: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, not listened on


class FdbServerError(Exception):
    """The server does not do what every experiment needs of it."""


def missing_programs() -> str | None:
    """Say which of the programs are not on PATH; None where both are."""
    missing = [name for name in (SERVER, CLI) if shutil.which(name) is None]
    return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not on PATH" if missing else None


class FdbServer:
    """One server on a loopback port, its data, its logs and its cluster file below `root`.

    Start it again after a kill and it is the same database: what it acknowledged is there.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._process: subprocess.Popen[bytes] | None = None
        self._port: int | None = None

    @property
    def cluster_file(self) -> Path:
        """What clients are given; it is there once the server was started."""
        return self._root / "fdb.cluster"

    @property
    def pid(self) -> int | None:
        """The server's process; None while there is none."""
        return None if self._process is None else self._process.pid

    def start(self, *, wait: bool = True) -> None:
        """Start it, for the first time or after a kill. Waits until it serves, where wanted. Raises FdbServerError."""
        assert self._process is None, "it runs already"
        missing = missing_programs()
        if missing is not None:
            raise FdbServerError(missing)
        is_new = self._port is None
        if self._port is None:
            self._port = self._prepare()
        with (self._root / "fdbserver.out").open("ab") as output:
            self._process = subprocess.Popen(
                self._command(self._port),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C at the experiment is the experiment's to handle
            )
        try:
            if is_new:
                self._ask_until(f"configure new {REDUNDANCY} {ENGINE}", _CONFIGURED)
            if wait or is_new:
                self.wait_available()
        except BaseException:
            self.kill()
            raise

    def wait_available(self) -> None:
        """Wait until the database takes transactions. Raises FdbServerError."""
        self._ask_until("status minimal", (_AVAILABLE,))

    def kill(self) -> None:
        """SIGKILL, and wait for its end; nothing where it does not run. `start` continues on the same data."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """SIGSTOP: it holds its port and its connections, and does nothing."""
        assert self._process is not None, "it does not run"
        self._process.send_signal(signal.SIGSTOP)

    def continue_(self) -> None:
        """SIGCONT; nothing where it does not run, or was not stopped."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """End it, whatever state it is in, and give its data's space back. Its logs and its cluster file stay."""
        self.kill()  # its data is not needed any more
        self.end_left_over()
        shutil.rmtree(self._data, ignore_errors=True)

    def end_left_over(self) -> None:
        """End a server on this very data folder whose starter was killed."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.name() == SERVER and f"--datadir={self._data}" in process.cmdline():
                    process.kill()
                    found.append(process)
        psutil.wait_procs(found, limits.KILL_TIMEOUT_MS / 1_000)

    @property
    def _data(self) -> Path:
        return self._root / "data"

    @property
    def _logs(self) -> Path:
        return self._root / "logs"

    def _prepare(self) -> int:
        for folder in (self._root, self._data, self._logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.cluster_file.exists():
            ((_, port),) = addresses_of(self.cluster_file)
            return port  # the same database, under the address that it knows itself by
        port = ports.free_block(1)
        self.cluster_file.write_text(f"bulkhead:{os.urandom(4).hex()}@{ports.HOST}:{port}\n")
        return port

    def _command(self, port: int) -> list[str]:
        return [
            str(shutil.which(SERVER)),
            f"--public-address={ports.HOST}:{port}",
            f"--listen-address={ports.HOST}:{port}",
            f"--cluster-file={self.cluster_file}",
            f"--datadir={self._data}",
            f"--logdir={self._logs}",
        ]

    def _ask_until(self, what: str, said: tuple[str, ...]) -> None:
        """Have fdbcli do something, again and again until it says one of these."""
        until = time.monotonic() + limits.FDB_SERVER_START_TIMEOUT_MS / 1_000
        while True:
            assert self._process is not None
            if self._process.poll() is not None:
                told = (self._root / "fdbserver.out").read_text(errors="replace").strip()
                raise FdbServerError(f"{SERVER} ended with {self._process.returncode}: {told[-1_000:]}")
            answer = self._ask(what)
            if any(words in answer for words in said):
                return
            if time.monotonic() > until:
                raise FdbServerError(f"{SERVER} does not serve; {CLI} says: {answer[-1_000:]}")
            time.sleep(limits.POLL_INTERVAL_MS / 1_000)

    def _ask(self, what: str) -> str:
        timeout_s = limits.FDB_CLI_TIMEOUT_MS / 1_000
        try:
            done = subprocess.run(
                [
                    str(shutil.which(CLI)),
                    "-C",
                    str(self.cluster_file),
                    "--timeout",
                    f"{timeout_s:.0f}",
                    "--exec",
                    what,
                ],
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=2 * timeout_s,
            )
        except subprocess.TimeoutExpired as error:
            return str(error)
        return done.stdout


def addresses_of(cluster_file: Path) -> list[tuple[str, int]]:
    """Give the hosts and ports in a cluster file, those of its coordinators."""
    lines = [line.strip() for line in cluster_file.read_text().splitlines()]
    (line,) = [line for line in lines if line and not line.startswith("#")]
    found = []
    for address in line.rpartition("@")[2].split(","):
        host, _, port = address.removesuffix(":tls").rpartition(":")
        found.append((host.strip("[]"), int(port)))
    return found


def servers_here(cluster_file: Path) -> list[psutil.Process]:
    """Find the processes of this machine that listen where a cluster file says; those of other users are not seen."""
    wanted = set(addresses_of(cluster_file))
    ports_wanted = {port for _, port in wanted}
    pids = set()
    for connection in psutil.net_connections(kind="tcp"):
        if connection.status != psutil.CONN_LISTEN or connection.pid is None or not connection.laddr:
            continue
        host, port = connection.laddr
        if (host, port) in wanted or (host in _ANY_ADDRESS and port in ports_wanted and _is_here(wanted, port)):
            pids.add(connection.pid)
    found = []
    for pid in sorted(pids):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return found


def _is_here(wanted: set[tuple[str, int]], port: int) -> bool:
    """Say whether one of the addresses with this port is one of this machine's."""
    own = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    return any(host in own for host, number in wanted if number == port)
