"""Runs the acquirer simulator: `python -m acquirer_simulator --config FILE`, or with --host, --port, --record-file.

The configuration is JSON: {"host", "port", "record_file", "log_file", "notify_urls", "notify_secret_file"}. Port 0
takes a free one. Without notify_urls nothing is notified. When it listens, one line of JSON with the host and port goes
to standard output. SIGTERM and SIGINT end it within 2 s, whatever hangs.
"""

import argparse
import asyncio
import contextlib
import json
import resource
import signal
import socket
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import structlog
import uvicorn
import uvloop

from acquirer_simulator import limits, logs
from acquirer_simulator.app import Waits, make_app
from acquirer_simulator.notifier import Notifier
from acquirer_simulator.record import Record, RecordUnusableError
from listeners import server as listening

log = structlog.get_logger()


class Settings(NamedTuple):
    """Where to listen, what to write to (no `log_file`: standard error), whom to notify, signed with which key."""

    host: str = "127.0.0.1"
    port: int = 0
    record_file: str = "acquirer.db"
    log_file: str | None = None
    notify_urls: tuple[str, ...] = ()
    notify_secret_file: str | None = None


class Server(uvicorn.Server):
    """uvicorn's server that also ends what waits on purpose, and exits 0 on a signal."""

    def __init__(self, config: uvicorn.Config, waits: Waits) -> None:
        super().__init__(config)
        self._waits = waits

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGTERM and SIGINT, from the loop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        yield

    def end_if_failed(self, task: asyncio.Task[None]) -> None:
        """End the process with a task that should run for ever: its supervisor starts both anew."""
        if not task.cancelled():
            log.error("notifier_failed", error=repr(task.exception()))
            self._stop()

    def _stop(self) -> None:
        self.should_exit = True
        self._waits.stop()


def read_settings(arguments: list[str]) -> Settings:
    """Return the settings from a configuration file, with plain options over it. Exits where they are wrong."""
    parser = argparse.ArgumentParser(prog="python -m acquirer_simulator", description=__doc__)
    parser.add_argument("--config", type=Path, help="JSON file with host, port, record_file, log_file")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--record-file")
    parser.add_argument("--log-file")
    given = vars(parser.parse_args(arguments))
    file: Path | None = given.pop("config")
    try:
        settings = Settings(**json.loads(file.read_bytes())) if file else Settings()
    except (OSError, ValueError, TypeError) as error:
        parser.error(f"{file}: {error}")
    return settings._replace(**{name: value for name, value in given.items() if value is not None})


async def serve(settings: Settings, secret: bytes) -> None:
    """Serve until a signal comes. Raises OSError where the address is taken, RecordUnusableError or sqlite3.Error."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((settings.host, settings.port), backlog=1))
        record = Record(Path(settings.record_file), _now_ms)
        waits = Waits()
        host, port = listener.getsockname()[:2]
        server = Server(
            listening.config(
                make_app(record, waits, f"http://{host}:{port}"),
                connections_max=limits.CONNECTIONS_MAX,
                date_header=False,
            ),
            waits,
        )
        log.info("listening", host=host, port=port, record_file=settings.record_file)
        sys.stdout.write(json.dumps({"event": "listening", "host": host, "port": port}) + "\n")
        sys.stdout.flush()
        notifying: asyncio.Task[None] | None = None
        if settings.notify_urls:
            notifying = asyncio.create_task(Notifier(record, settings.notify_urls, secret, _now_ms).run())
            notifying.add_done_callback(server.end_if_failed)
        try:
            await server.serve(sockets=[listener])
        finally:
            if notifying is not None:
                notifying.cancel()
                await asyncio.gather(notifying, return_exceptions=True)
            await record.aclose()
        log.info("stopped")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def main() -> int:
    """Run the process; the exit code."""
    settings = read_settings(sys.argv[1:])
    logs.configure(settings.log_file)
    _, open_files_hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_files = (
        limits.OPEN_FILES_WANTED
        if open_files_hard == resource.RLIM_INFINITY
        else min(limits.OPEN_FILES_WANTED, open_files_hard)
    )
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files_hard))
    try:
        secret = b"" if settings.notify_secret_file is None else Path(settings.notify_secret_file).read_bytes()
        uvloop.run(serve(settings, secret))
    except (OSError, RecordUnusableError, sqlite3.Error) as error:
        log.exception("failed")
        sys.stderr.write(f"acquirer_simulator: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
