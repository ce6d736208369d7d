"""Heartbeats: only a door that proves itself hears them, they tell the loop's lag, and silence is silence."""

import asyncio
import contextlib
import hashlib
import hmac
import selectors
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from cells import heartbeat
from cells.api import limits
from cells.heartbeat import HeartbeatListener, HeartbeatThread
from tests.eventually import eventually

HOST = "127.0.0.1"
KEY = b"k" * 32
BEAT_BYTES = 25


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEARTBEAT_INTERVAL_MS", 10)


@pytest.fixture
def worker() -> Iterator[HeartbeatThread]:
    thread = HeartbeatThread(KEY, HOST)
    thread.start()
    yield thread
    thread.stop()


@contextlib.asynccontextmanager
async def listening(port: int, key: bytes = KEY) -> AsyncIterator[HeartbeatListener]:
    listener = HeartbeatListener()
    listener.start(HOST, port, key)
    try:
        yield listener
    finally:
        await listener.stop()


def connect(worker: HeartbeatThread) -> socket.socket:
    return socket.create_connection((HOST, worker.port), timeout=5)


def read(door: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = door.recv(count - len(data))
        if not more:
            break
        data += more
    return data


def prove(door: socket.socket) -> None:
    door.sendall(hmac.digest(KEY, b"heartbeat " + read(door, 32), hashlib.sha256))


async def test_a_door_hears_beat_after_beat(worker: HeartbeatThread) -> None:
    async with listening(worker.port) as listener:
        for _ in range(3):
            before = listener.heard
            await eventually(lambda heard=before: listener.heard > heard)  # type: ignore[misc]


async def test_the_lag_of_the_worker_s_loop_is_told(worker: HeartbeatThread) -> None:
    async with listening(worker.port) as listener:
        worker.loop_turned = time.monotonic() - 5
        await eventually(lambda: 5_000 <= listener.loop_lag_ms < 8_000)
        worker.loop_turned = time.monotonic() + 1  # it turned after the thread had looked at the clock
        await eventually(lambda: listener.loop_lag_ms == 0)


async def test_a_door_with_another_key_hears_nothing(worker: HeartbeatThread) -> None:
    async with listening(worker.port, key=b"x" * 32) as stranger, listening(worker.port) as door:
        before = stranger.heard
        await eventually(lambda: door.heard > before)
        beats = door.heard
        await eventually(lambda: door.heard > beats)
        assert stranger.heard == before


async def test_a_worker_that_ends_falls_silent_and_one_that_comes_back_is_heard() -> None:
    first = HeartbeatThread(KEY, HOST)
    first.start()
    async with listening(first.port) as listener:
        await eventually(lambda: listener.heard > 0)
        first.stop()
        await asyncio.sleep(0.05)  # what was sent is read by now
        silent_since = listener.heard
        await asyncio.sleep(0.05)
        assert listener.heard == silent_since
        with pytest.MonkeyPatch.context() as patch:
            create_server = socket.create_server
            patch.setattr(
                socket,
                "create_server",
                lambda address, backlog: create_server((HOST, first.port), backlog=backlog),
            )
            second = HeartbeatThread(KEY, HOST)
        second.start()
        await eventually(lambda: listener.heard > silent_since)
        second.stop()


def test_a_wrong_proof_ends_the_connection(worker: HeartbeatThread) -> None:
    with connect(worker) as stranger:
        assert len(read(stranger, 32)) == 32
        stranger.sendall(bytes(32))
        assert read(stranger, 1) == b""


def test_a_proof_for_another_connection_is_worth_nothing(worker: HeartbeatThread) -> None:
    with connect(worker) as one, connect(worker) as other:
        read(one, 32)
        nonce = read(other, 32)
        one.sendall(hmac.digest(KEY, b"heartbeat " + nonce, hashlib.sha256))
        assert read(one, 1) == b""


def test_who_proves_nothing_loses_its_place(worker: HeartbeatThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT_MS", 100)
    silent = [connect(worker) for _ in range(limits.HEARTBEAT_CONNECTIONS_MAX)]
    try:
        for stranger in silent:
            assert len(read(stranger, 32)) == 32
            assert read(stranger, 1) == b""
        with connect(worker) as door:
            prove(door)
            assert len(read(door, BEAT_BYTES)) == BEAT_BYTES
    finally:
        for stranger in silent:
            stranger.close()


def test_strangers_keep_no_door_away(worker: HeartbeatThread) -> None:
    strangers = [connect(worker) for _ in range(limits.HEARTBEAT_CONNECTIONS_MAX * 3)]
    try:
        with connect(worker) as door:
            prove(door)
            assert len(read(door, BEAT_BYTES)) == BEAT_BYTES
    finally:
        for stranger in strangers:
            stranger.close()


def test_connections_are_bounded_and_a_place_that_is_left_can_be_taken(worker: HeartbeatThread) -> None:
    doors = [connect(worker) for _ in range(limits.HEARTBEAT_CONNECTIONS_MAX)]
    try:
        for door in doors:
            prove(door)
            read(door, BEAT_BYTES)
        with connect(worker) as one_too_many:
            assert read(one_too_many, 1) == b""
        doors.pop().close()
        for _ in range(100):
            with connect(worker) as door:
                if read(door, 1):
                    break
                time.sleep(0.01)
        else:
            pytest.fail("the place that was left could not be taken")
    finally:
        for door in doors:
            door.close()


def test_a_door_that_reads_nothing_never_gets_half_a_beat(worker: HeartbeatThread) -> None:
    """Its buffers fill up; then it is dropped, and what it did get are whole beats, one after the other."""
    with socket.create_server((HOST, 0)) as server, socket.socket() as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
        door.connect(server.getsockname())
        served, _ = server.accept()
        served.setblocking(False)
        served.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_609)
        with selectors.DefaultSelector() as selector:
            selector.register(served, selectors.EVENT_READ)
            doors: dict[socket.socket, heartbeat._Unproven | None] = {served: None}
            number = 0
            while doors:
                number += 1
                assert number < 1_000_000
                worker._beat(number, doors, selector)
        door.settimeout(5)
        numbers = []
        while len(beat := read(door, BEAT_BYTES)) == BEAT_BYTES:
            numbers.append(struct.unpack(">IQQI?", beat)[1])
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) > 10
