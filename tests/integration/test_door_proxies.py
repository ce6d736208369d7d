"""The fault proxies of a gateway of our own: a process that is started, ruled and ended, one proxy a cell."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from chaos.door_proxies import DoorProxies
from chaos.installation import GatewayError
from chaos.ports import HOST
from chaos.toxics import Bandwidth, Latency


@pytest.fixture
def door() -> Iterator[int]:
    """A door that says back what it hears."""
    with socket.create_server((HOST, 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                while heard := connection.recv(1_024):
                    connection.sendall(heard)

        Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]


def test_a_cell_s_network_is_spoilt_and_made_whole(tmp_path: Path, door: int) -> None:
    proxies = DoorProxies(tmp_path / "proxies", {"cell-0": door})
    proxies.start()
    try:
        with pytest.raises(GatewayError, match="no router goes through the proxy of cell-0"):
            proxies.spoil("cell-0", [])
        with socket.create_connection((HOST, proxies.first_port)) as client:
            client.settimeout(10)
            assert said_back_s(client) < 0.3
            proxies.spoil("cell-0", [Latency(stream="upstream", latency=400).fields()])
            assert said_back_s(client) >= 0.4
            proxies.make_whole()
            proxies.spoil("cell-0", [Bandwidth(rate=0).fields()])
            client.sendall(b"held")
            client.settimeout(0.3)
            with pytest.raises(TimeoutError):
                client.recv(4)
            proxies.make_whole()
            client.settimeout(10)
            assert client.recv(4) == b"held", "what was held back is lost"
        with pytest.raises(GatewayError, match=r"refuse GET /proxies/cell-1: .*there is no proxy 'cell-1'"):
            proxies.spoil("cell-1", [])
        proxies.end_left_over()  # as a later run would, had this one been killed
    finally:
        proxies.end()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, proxies.first_port))


def said_back_s(client: socket.socket) -> float:
    began_s = time.monotonic()
    client.sendall(b"ping")
    assert client.recv(4) == b"ping"
    return time.monotonic() - began_s
