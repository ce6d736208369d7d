"""One cell's disk, made slow or full: its workers' system calls on its books, those of workers that start later, too.

A machine's cells share their disk. What strikes only the calls of one cell's workers is to them as if it were theirs.
"""

import contextlib
import threading
from pathlib import Path
from typing import Any

from chaos import limits
from chaos.installation import GatewayError, Installation
from chaos.syscalls import SystemCallFault, SystemCallFaultError, Tracer, store_files
from control_plane.errors import ControlPlaneError


class CellDisk:
    """The fault of one cell's disk, from `start` to `end`."""

    def __init__(self, gateway: Installation, cell: str, fault: SystemCallFault) -> None:
        self._gateway = gateway
        self._cell = cell
        self._fault = fault
        self._tracers: dict[int, Tracer] = {}
        self._over = threading.Event()
        self._following: threading.Thread | None = None

    def start(self) -> None:
        """Strike all workers that there are, and go on with those that start. Raises GatewayError."""
        books = sorted(self._gateway.folder.cell_folder(self._cell).glob("partners/*.sqlite"))
        pids = worker_pids(self._gateway.status(), self._cell)
        if not books or not pids:
            raise GatewayError(
                f"{self._cell} has {len(books)} books and {len(pids)} workers: there is nothing to strike"
            )
        files = [file for book in books for file in store_files(book)]
        try:
            for pid in pids:
                self._trace(pid, files)
        except SystemCallFaultError as error:
            self.end()
            raise GatewayError(str(error)) from error
        self._following = threading.Thread(target=self._follow, args=(files,), name="chaos-disk", daemon=True)
        self._following.start()

    def end(self) -> None:
        """Let go of all of them. They go on, whatever they were at."""
        self._over.set()
        if self._following is not None:
            self._following.join()
        tracers, self._tracers = self._tracers, {}
        for tracer in tracers.values():
            tracer.end()

    def _follow(self, files: list[Path]) -> None:
        while not self._over.wait(limits.CHAOS_LOOK_MS / 1_000):
            with contextlib.suppress(ControlPlaneError, SystemCallFaultError):  # it ended meanwhile: looked at again
                for pid in worker_pids(self._gateway.status(), self._cell):
                    self._trace(pid, files)

    def _trace(self, pid: int, files: list[Path]) -> None:
        if pid not in self._tracers:
            tracer = Tracer(pid, self._fault, files=files)
            tracer.start()
            self._tracers[pid] = tracer


def worker_pids(status: dict[str, Any], cell: str) -> list[int]:
    """Give the processes of a cell's workers, pools and spares, by what status tells."""
    roles = {"worker", "pool", "spare"}
    return [row["pid"] for row in status["processes"] if row["cell"] == cell and row["role"] in roles and row["pid"]]
