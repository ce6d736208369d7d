"""Heartbeats from a worker to its door, sent by a thread of their own so that a busy event loop is not taken for death.

Each beat tells how long ago the worker's event loop last turned, and what the process holds: a stopped process sends
nothing, a looping one sends a growing lag, a leaking one a growing size. The door proves itself first
(HMAC over a nonce, key of role "door").
"""

import asyncio
import hashlib
import hmac
import secrets
import selectors
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import Final

from cells.api import limits
from cells.process_use import ProcessUse

# Loop lag in milliseconds, beat number, resident bytes, threads started since, whether no more files can be opened.
_BEAT: Final = struct.Struct(">IQQI?")
_NONCE_BYTES: Final = 32
_MAC_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class _Unproven:
    """A connection that has not proven to be a door's: its nonce, and until when it may."""

    nonce: bytes
    until: float


_Doors = dict[socket.socket, _Unproven | None]


class HeartbeatThread:
    """The worker's side: listens, checks each door that connects, then beats."""

    def __init__(self, key: bytes, host: str) -> None:
        self._key = key
        self._listener = socket.create_server((host, 0), backlog=limits.HEARTBEAT_CONNECTIONS_MAX)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self.loop_turned = time.monotonic()
        self._use = ProcessUse()
        self._threads_before = self._use.threads()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._ended.set()
        self._thread.join(timeout=2)

    def _run(self) -> None:
        doors: _Doors = {}  # None: proven
        number = 0
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            next_beat = time.monotonic()
            while not self._ended.is_set():
                for key, _ in selector.select(max(next_beat - time.monotonic(), 0)):
                    assert isinstance(key.fileobj, socket.socket)
                    if key.fileobj is self._listener:
                        self._accept(doors, selector)
                    elif key.fileobj in doors and not self._heard(key.fileobj, doors):  # or it just gave way
                        _drop(key.fileobj, doors, selector)
                if time.monotonic() >= next_beat:
                    number += 1
                    self._beat(number, doors, selector)
                    next_beat = time.monotonic() + limits.HEARTBEAT_INTERVAL_MS / 1_000
            for door in list(doors):
                _drop(door, doors, selector)
        self._listener.close()
        self._use.close()

    def _accept(self, doors: _Doors, selector: selectors.BaseSelector) -> None:
        try:
            door, _ = self._listener.accept()
        except OSError:
            return  # it went away again before we looked
        if len(doors) >= limits.HEARTBEAT_CONNECTIONS_MAX:
            # Who has proven nothing must not keep a door away, which would take this worker for dead.
            oldest = next((other for other, unproven in doors.items() if unproven is not None), None)
            if oldest is None:
                door.close()
                return
            _drop(oldest, doors, selector)
        door.setblocking(False)
        nonce = secrets.token_bytes(_NONCE_BYTES)
        doors[door] = _Unproven(nonce, time.monotonic() + limits.HANDSHAKE_TIMEOUT_MS / 1_000)
        selector.register(door, selectors.EVENT_READ)
        try:
            door.send(nonce)
        except OSError:
            _drop(door, doors, selector)

    def _heard(self, door: socket.socket, doors: _Doors) -> bool:
        try:
            data = door.recv(_MAC_BYTES)
        except OSError:
            return False
        unproven = doors[door]
        if unproven is None or not hmac.compare_digest(data, _mac(self._key, unproven.nonce)):
            return False
        doors[door] = None
        return True

    def _beat(self, number: int, doors: _Doors, selector: selectors.BaseSelector) -> None:
        now = time.monotonic()
        # The loop may turn between the two looks at the clock: then it is not late at all.
        lag_ms = min(max(int((now - self.loop_turned) * 1_000), 0), 0xFFFFFFFF)
        threads = max(self._use.threads() - self._threads_before, 0)
        beat = _BEAT.pack(lag_ms, number, self._use.resident_bytes(), threads, self._use.is_out_of_files())
        for door, unproven in list(doors.items()):
            try:
                # Half a beat would shift all that follow; who proves nothing must not keep a door's place.
                late = now > unproven.until if unproven is not None else door.send(beat) < len(beat)
            except OSError:  # gone, or it reads nothing: it connects again if it lives
                late = True
            if late:
                _drop(door, doors, selector)


class HeartbeatListener:
    """The door's side of one worker: when it was heard last, and how its event loop does."""

    def __init__(self) -> None:
        self.heard = time.monotonic()
        self.loop_lag_ms = 0
        self.resident_bytes = 0
        self.threads = 0
        self.is_out_of_files = False
        self._task: asyncio.Task[None] | None = None

    def start(self, host: str, port: int, key: bytes) -> None:
        """Begin to listen; connects again until stopped."""
        self._task = asyncio.create_task(self._listen(host, port, key), name=f"heartbeat-{port}")

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _listen(self, host: str, port: int, key: bytes) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection(host, port)
            except OSError:
                await asyncio.sleep(limits.HEARTBEAT_INTERVAL_MS / 1_000)
                continue
            try:
                writer.write(_mac(key, await reader.readexactly(_NONCE_BYTES)))
                while True:
                    beat = _BEAT.unpack(await reader.readexactly(_BEAT.size))
                    self.loop_lag_ms, _, self.resident_bytes, self.threads, self.is_out_of_files = beat
                    self.heard = time.monotonic()
            except (OSError, EOFError):
                await asyncio.sleep(limits.HEARTBEAT_INTERVAL_MS / 1_000)
            finally:
                writer.close()


def _mac(key: bytes, nonce: bytes) -> bytes:
    return hmac.digest(key, b"heartbeat " + nonce, hashlib.sha256)


def _drop(door: socket.socket, doors: _Doors, selector: selectors.BaseSelector) -> None:
    selector.unregister(door)
    doors.pop(door, None)
    door.close()
