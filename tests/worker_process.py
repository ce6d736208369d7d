"""Runs workers without Ray, as processes forked from one that has everything imported: a new one costs milliseconds.

`python -m tests.worker_process` reads a WorkerConfig (JSON) a line; each new worker says who it is in a line of its
own. Some commands do harm, so that tests can order it: what a command does stands in its id.
"""

import asyncio
import json
import os
import signal
import sys
import time

import structlog

from actors.commands import Envelope
from actors.mailbox import Result
from actors.partner import PartnerActor
from cells import worker, worker_limits
from cells.api.bulkheads import Bulkhead
from cells.poison import Marker
from cells.worker import Worker, WorkerConfig

POISON = "POISON"  # its worker dies as it decides it
STUCK = "STUCK"  # its worker's loop hangs as it decides it
GIVE_UP = "GIVEUP"  # its actor gives its partner up as it decides it
STALL = "STALL"  # it is never answered


class HarmfulMarker(Marker):
    """Marks as it should, and does harm in the moment of the decision."""

    def executing(self, partner_id: str, command_id: str) -> None:
        """Die or hang, if the command orders it."""
        super().executing(partner_id, command_id)
        if command_id.startswith(POISON):
            os.kill(os.getpid(), signal.SIGKILL)
        if command_id.startswith(STUCK):
            time.sleep(60)


class HarmfulActor(PartnerActor):
    """Answers as it should, but for the commands that order harm."""

    async def ask(self, method: str, envelope: Envelope, budget_ms: int) -> Result:
        """Give up or stay silent, if the command orders it."""
        if envelope.command_id.startswith(GIVE_UP):
            await self.stop("as the test ordered")
        if envelope.command_id.startswith(STALL):
            await asyncio.get_running_loop().create_future()
        return await super().ask(method, envelope, budget_ms)


async def _serve(config: WorkerConfig) -> None:
    worker.Marker = HarmfulMarker  # type: ignore[attr-defined]  # what a worker is made of is not for others
    worker.PartnerActor = HarmfulActor  # type: ignore[attr-defined]
    worker_limits.apply(config.name, with_memory=Bulkhead.WORKER_MEMORY not in config.bulkheads_off)
    serving = Worker(config)
    port, heartbeat_port = await serving.start()
    said = {"name": config.name, "pid": os.getpid(), "port": port, "heartbeat_port": heartbeat_port}
    os.write(1, json.dumps(said).encode() + b"\n")
    await asyncio.get_running_loop().create_future()


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the dead
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    os.write(1, b"ready\n")
    for line in sys.stdin:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            asyncio.run(_serve(WorkerConfig(**json.loads(line))))


if __name__ == "__main__":
    main()
