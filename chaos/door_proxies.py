"""Fault proxies before the doors of a gateway of our own, in a process of their own: the network of one cell is spoilt.

Routers are told the proxies' ports (`--door-advertised-port`). Without a toxic what comes is passed on as it is.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import httpx
import psutil

from chaos import limits
from chaos.installation import GatewayError, wait_for
from chaos.ports import HOST, NoPortsError, free_block

_MODULE: Final = "chaos.fault_proxy_api"


class DoorProxies:
    """A row of proxies, one a cell. `doors`: the port of each cell's door, in the order of the cells."""

    def __init__(self, folder: Path, doors: Mapping[str, int]) -> None:
        self._folder = folder
        self._doors = dict(doors)
        try:
            self.first_port = free_block(len(self._doors) + 1)
        except NoPortsError as error:
            raise GatewayError(str(error)) from error
        self._control_port = self.first_port + len(self._doors)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Their process; None while there is none."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start them, and wait until they can be ruled. Raises GatewayError."""
        assert self._process is None, "they run already"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        arguments = ["--control-port", str(self._control_port)]
        for index, (cell, port) in enumerate(self._doors.items()):
            arguments += ["--proxy", f"{cell}={self.first_port + index}={HOST}:{port}"]
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _MODULE, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                start_new_session=True,  # a Ctrl-C at the experiment is the experiment's to handle
            )
        wait_for(self._answers, "the fault proxies listen", limits.FAULT_PROXY_START_TIMEOUT_MS)

    def end(self) -> None:
        """End them; nothing where they do not run."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def end_left_over(self) -> None:
        """End proxies in this very folder whose starter was killed."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if _MODULE in process.cmdline() and process.cwd() == str(self._folder):
                    process.kill()
                    found.append(process)
        psutil.wait_procs(found, limits.KILL_TIMEOUT_MS / 1_000)

    def spoil(self, cell: str, toxics: Iterable[Mapping[str, Any]]) -> None:
        """Put toxics in force on the way to a cell's door. Raises GatewayError, httpx.HTTPError."""
        if not self._ask("GET", f"/proxies/{cell}")["connections"]:
            raise GatewayError(f"no router goes through the proxy of {cell}: nothing would be struck")
        for toxic in toxics:
            self._ask("POST", f"/proxies/{cell}/toxics", toxic)

    def make_whole(self) -> None:
        """Take all toxics away. Raises GatewayError, httpx.HTTPError."""
        self._ask("POST", "/reset")

    @property
    def _output(self) -> Path:
        return self._folder / "proxies.out"

    def _answers(self) -> bool | None:
        assert self._process is not None
        if self._process.poll() is not None:
            raise GatewayError(f"the fault proxies ended: {self._output.read_text(errors='replace')[-1_000:]}")
        try:
            self._ask("GET", "/proxies")
        except httpx.TransportError:
            return None
        return True

    def _ask(self, method: str, path: str, content: Mapping[str, Any] | None = None) -> dict[str, Any]:
        url = f"http://{HOST}:{self._control_port}{path}"
        timeout_s = limits.FAULT_PROXY_API_TIMEOUT_MS / 1_000
        answer = httpx.request(method, url, json=content, trust_env=False, timeout=timeout_s)
        if answer.is_error:
            raise GatewayError(f"the fault proxies refuse {method} {path}: {answer.text}")
        found = answer.json() if answer.content else {}
        assert isinstance(found, dict)
        return found
