"""Starts the acquirer simulator as the process that it is, on a free port of its own. Usable outside pytest too."""

import json
import os
import selectors
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import IO, Self

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 5.0
NOTIFICATION_KEY = b"n" * 32


class AcquirerProcess:
    """A running simulator; its record stays in its folder when it ends, for the next one."""

    def __init__(self, process: subprocess.Popen[bytes], host: str, port: int, record_file: Path) -> None:
        self._process = process
        self.port = port
        self.url = f"http://{host}:{port}"
        self.pid = process.pid
        self.record_file = record_file

    def stop(self) -> int:
        """Ask it to end (SIGTERM) and wait; its exit code. Raises TimeoutExpired after a SIGKILL. Twice is no error."""
        return self._end(signal.SIGTERM)

    def kill(self) -> int:
        """SIGKILL and wait; its exit code."""
        return self._end(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: it holds its connections and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _end(self, number: signal.Signals) -> int:
        if self._process.poll() is None:
            self._process.send_signal(number)
        try:
            return self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            assert self._process.stdout is not None
            self._process.stdout.close()


def start_acquirer(folder: Path, port: int = 0, notify_url: str | None = None) -> AcquirerProcess:
    """Start it over the record in `folder` (made where there is none) and wait until it listens.

    Raises RuntimeError, with what it printed, where it doesn't. `port` 0 takes a free one. What it tells goes to
    `notify_url`, signed with NOTIFICATION_KEY.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "acquirer.json"
    record_file = folder / "acquirer.db"
    settings: dict[str, object] = {
        "host": "127.0.0.1",
        "port": port,
        "record_file": str(record_file),
        "log_file": str(folder / "acquirer.log"),
    }
    if notify_url is not None:
        key_file = folder / "notifications.key"
        key_file.write_bytes(NOTIFICATION_KEY)
        settings |= {"notify_urls": [notify_url], "notify_secret_file": str(key_file)}
    config.write_text(json.dumps(settings))
    errors_file = folder / "acquirer.err"
    with errors_file.open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "acquirer_simulator", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    assert process.stdout is not None
    line = _first_line(process.stdout, START_TIMEOUT_S)
    if not line:
        process.kill()
        process.wait()
        process.stdout.close()
        raise RuntimeError(f"the acquirer did not start: {errors_file.read_text()}")
    address = json.loads(line)
    return AcquirerProcess(process, address["host"], address["port"], record_file)


def _first_line(stream: IO[bytes], timeout_s: float) -> bytes:
    """Return the line, or nothing where the time passes or the stream ends. The process writes it in one piece."""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        return stream.readline() if selector.select(timeout_s) else b""
