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

from actors.errors import FencedError
from actors.mailbox import Ask, Item
from actors.partner import PartnerActor, _Effects
from actors.staging import Draft
from cells import worker
from cells.worker import Worker, WorkerConfig

POISON = "POISON"  # its worker dies as it decides it
STUCK = "STUCK"  # its worker's loop hangs as it decides it
GIVE_UP = "GIVEUP"  # its actor gives its partner up as it decides it
STALL = "STALL"  # it is never answered


class HarmfulActor(PartnerActor):
    """Decides as it should, but for the commands that order harm."""

    def _decide_one(self, draft: Draft, effects: _Effects, item: Item, now_ms: int) -> None:
        if isinstance(item, Ask):
            command_id = item.envelope.command_id
            if command_id.startswith(POISON):
                os.kill(os.getpid(), signal.SIGKILL)
            if command_id.startswith(STUCK):
                time.sleep(60)
            if command_id.startswith(STALL):
                return
        super()._decide_one(draft, effects, item, now_ms)

    async def _process(self, batch: list[Item]) -> None:
        if any(isinstance(item, Ask) and item.envelope.command_id.startswith(GIVE_UP) for item in batch):
            raise FencedError("as the test ordered")
        await super()._process(batch)


async def _serve(config: WorkerConfig) -> None:
    worker.PartnerActor = HarmfulActor  # type: ignore[attr-defined]  # what a worker hosts is not for others
    serving = Worker(config)
    port, heartbeat_port = await serving.start()
    said = {"name": config.name, "pid": os.getpid(), "port": port, "heartbeat_port": heartbeat_port}
    os.write(1, json.dumps(said).encode() + b"\n")
    await asyncio.get_running_loop().create_future()


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the dead
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    for line in sys.stdin:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            asyncio.run(_serve(WorkerConfig(**json.loads(line))))


if __name__ == "__main__":
    main()
