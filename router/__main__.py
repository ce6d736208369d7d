"""Starts one router process: `python -m router --config FILE`. Only the process's own affairs stand here.

It listens before it imports the application, which takes most of a second: who connects meanwhile waits in the kernel's
queue and is answered a little later, where a connection would have been refused.
"""

import argparse
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Final

from router.settings import Settings, SettingsError, read_settings

# As uvicorn's own; it listens again with it.
_BACKLOG: Final = 2_048


def main() -> int:
    """Serve until SIGTERM or SIGINT; 0 after an orderly end, 2 where the settings can't be used."""
    parser = argparse.ArgumentParser(prog="python -m router", description="The front door of Bulkhead.")
    parser.add_argument("--config", type=Path, required=True, help="settings, as JSON")
    try:
        settings = read_settings(parser.parse_args().config)
        listener = _listen(settings)
    except SettingsError as error:
        sys.stderr.write(f"router: {error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"router: {settings.host}:{settings.port} can't be listened on: {error}\n")
        return 2
    with listener:
        return _serve(settings, listener)


def _serve(settings: Settings, listener: socket.socket) -> int:
    # Only now, while clients may connect already.
    import structlog  # noqa: PLC0415
    import uvicorn  # noqa: PLC0415

    from cells.api import logs  # noqa: PLC0415
    from listeners import server as listening  # noqa: PLC0415
    from router import limits  # noqa: PLC0415
    from router.app import create_app  # noqa: PLC0415

    log = structlog.get_logger()
    logs.configure(settings.log_file, process=settings.name)
    try:
        app = create_app(settings)
    except SettingsError as error:
        sys.stderr.write(f"router: {error}\n")
        return 2
    wanted = limits.CONNECTIONS_MAX + 1_024
    allowed = _raise_open_files(wanted)
    if allowed < wanted:
        log.warning("open_files_few", allowed=allowed, wanted=wanted)
    server = uvicorn.Server(
        listening.config(
            app,
            connections_max=limits.CONNECTIONS_MAX,
            proxies=tuple(map(str, settings.proxies)),
            guard=app.guard,
            lifespan="on",
            shutdown_s=limits.SHUTDOWN_S,
        )
    )
    # uvicorn raises the signal again when it has ended in good order; then it should do nothing.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    host, port = listener.getsockname()[:2]
    log.info("router_starts", host=host, port=port)
    server.run(sockets=listening.sockets(listener))
    log.info("router_ends")
    return 0


def _listen(settings: Settings) -> socket.socket:
    """Listen, at once after an earlier process too (SO_REUSEADDR).

    SO_REUSEPORT is off: a second router on the same port fails instead of taking half of the connections.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(_BACKLOG)
        listener.set_inheritable(False)
    except OSError:
        listener.close()
        raise
    return listener


def _raise_open_files(wanted: int) -> int:
    """Let as many files be open as the bound on connections needs, where the system allows it; give how many may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed


if __name__ == "__main__":
    sys.exit(main())
