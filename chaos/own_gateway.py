"""A gateway of an experiment's own: wiped, started, and ended with all that is its. Strikes nothing."""

import asyncio
import contextlib
import shutil
import signal
from pathlib import Path
from typing import Final

from chaos import limits
from chaos.clocks import Clock, ClockError
from chaos.door_proxies import DoorProxies
from chaos.fdb_server import FdbServer
from chaos.gateway import Gateway
from chaos.installation import GatewayError
from chaos.needs import Need, Needs
from chaos.store_choice import SQLITE, StoreChoice
from control_plane import data_folder
from control_plane.errors import ControlPlaneError

ROOT: Final = Path(".chaos")


class OwnGateway:
    """One gateway below `root`, with what `needs` asks for: a FoundationDB server, say.

    Commands may order faults of it; `bulkheads_off`: bulkheads that it goes without, commas between.
    """

    def __init__(
        self, root: Path, *, needs: Needs = frozenset(), cells: int = limits.CHAOS_CELLS, bulkheads_off: str = ""
    ) -> None:
        self._root = root.absolute()
        self.server = FdbServer(self._root / "fdb") if Need.FDB_SERVER in needs else None
        store = SQLITE if self.server is None else StoreChoice("fdb", self.server.cluster_file)
        off = ("--bulkheads-off", bulkheads_off) if bulkheads_off else ()
        self.proxies: DoorProxies | None = None
        self.clock: Clock | None = None
        self._moves_clock = Need.CLOCK in needs
        self.gateway = Gateway(self._root, cells=cells, store=store, up_arguments=("--fault-injection", *off))
        if Need.FAULT_PROXIES in needs:
            doors = {f"cell-{index}": self.gateway.ports.door + index for index in range(cells)}
            self.proxies = DoorProxies(self._root / "proxies", doors)
            advertised = ("--door-advertised-port", str(self.proxies.first_port))
            self.gateway.up_arguments = (*self.gateway.up_arguments, *advertised)

    def start(self) -> None:
        """Wipe what an earlier run left, and start it. Raises GatewayError, FdbServerError, StoreError and others."""
        self._make_room()
        if self.server is not None:
            self.server.start()
            asyncio.run(self.gateway.store.durability())  # waits until clients are answered, too
        if self.proxies is not None:
            self.proxies.start()
        if self._moves_clock:
            try:
                self.clock = Clock(self._root)
            except ClockError as error:
                raise GatewayError(str(error)) from error
            self.gateway.more_environment = self.clock.environment
        self.gateway.start()
        self.gateway.wait_ready()

    def stop(self) -> list[str]:
        """Stop it as its user would, then make sure; give what had to be killed."""
        leftovers: list[str] = []
        if self.server is not None:
            self.server.continue_()
        up = self.gateway.up
        if up is not None and up.poll() is None:
            up.send_signal(signal.SIGCONT)
            with contextlib.suppress(GatewayError):
                self.gateway.interrupt()
            leftovers = [str(process) for process in self.gateway.leftovers()]
        self.gateway.kill_everything()
        if self.proxies is not None:
            self.proxies.end()
        if self.server is not None:
            self.server.end()
        return leftovers

    def _make_room(self) -> None:
        if self.gateway.folder.root.exists():
            try:
                with data_folder.locked(self.gateway.folder):
                    self.gateway.kill_everything()
            except ControlPlaneError as error:
                raise GatewayError(f"a gateway runs on {self.gateway.folder.root}: {error.what}") from error
        if self.server is not None:
            self.server.end_left_over()
        if self.proxies is not None:
            self.proxies.end_left_over()
        if self._root.exists():
            shutil.rmtree(self._root)
        self._root.mkdir(mode=0o700, parents=True)
