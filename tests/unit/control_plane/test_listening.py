import os
import socket
from pathlib import Path

import pytest

from control_plane import listening
from control_plane.cell_rules import first_cells
from control_plane.data_folder import DataFolder, Instance
from control_plane.listening import Listener, Row, beyond, rows_of
from control_plane.processes import plan
from control_plane.settings import Settings

ROWS = [
    Row("router-0", frozenset({"192.0.2.7"}), 8080),
    Row("cell-0.door", frozenset({"127.0.0.1"}), 8101),
    Row("control plane", frozenset({"127.0.0.1", "::1"}), 8070),
    Row("router-1", frozenset({"0.0.0.0"}), 8081),
    Row("router-2", frozenset({"::"}), 8082),
]


@pytest.mark.parametrize(
    "listener",
    [
        Listener("router-0", 1, "192.0.2.7", 8080),
        Listener("cell-0.door", 2, "127.0.0.1", 8101),
        Listener("cell-0.door", 2, "::ffff:127.0.0.1", 8101),
        Listener("cell-0.door", 2, "127.0.0.1", 40_123),  # Ray's driver in it
        Listener("cell-0.ray", 3, "::1", 40_124),
        Listener("control plane", 4, "::1", 8070),
        Listener("router-1", 5, "0.0.0.0", 8081),
        Listener("router-1", 5, "192.0.2.7", 8081),
        Listener("router-2", 6, "::", 8082),
        Listener("router-2", 6, "0.0.0.0", 8082),
    ],
)
def test_what_the_settings_say_may_listen(listener: Listener) -> None:
    assert beyond([listener], ROWS) == []


@pytest.mark.parametrize(
    "listener",
    [
        Listener("cell-0.ray", 3, "::", 8301),  # all interfaces
        Listener("cell-0.ray", 3, "0.0.0.0", 40_124),
        Listener("cell-0.ray", 3, "192.0.2.7", 40_124),
        Listener("cell-0.ray", 3, "::ffff:192.0.2.7", 40_124),
        Listener("cell-0.door", 2, "0.0.0.0", 8101),  # its port, on more than its address
        Listener("router-0", 1, "0.0.0.0", 8080),
        Listener("router-0", 1, "192.0.2.7", 8081),  # another's port
        Listener("router-0", 1, "127.0.0.1", 40_123),  # only Ray chooses ports
        Listener("redis", 7, "127.0.0.1", 6390),
        Listener("control plane", 4, "127.0.0.1", 8071),
    ],
)
def test_what_they_do_not_say_may_not(listener: Listener) -> None:
    assert beyond([listener], ROWS) == [listener]


def test_the_rows_are_those_of_the_settings_and_cells(tmp_path: Path) -> None:
    settings = Settings(data_folder=tmp_path, cells=1, http_host="0.0.0.0", admin_port=8070)
    instance = Instance("0123456789abcdef", "5eed" * 8, 1, "sqlite", "2026-11-22T00:00:00.000Z")
    specs = plan(settings, DataFolder(tmp_path), instance, first_cells(settings, "now"), "1", lambda _: "d")
    found = {(row.process, address, row.port) for row in rows_of(settings, specs) for address in row.addresses}
    assert found >= {
        ("router-0", "0.0.0.0", 8080),
        ("cell-0.door", "127.0.0.1", 8101),
        ("cell-0.door", "127.0.0.1", 8201),
        ("cell-0.ray", "127.0.0.1", 8301),
        ("acquirer", "127.0.0.1", 8090),
        ("redis", "127.0.0.1", 6390),
        ("control plane", "127.0.0.1", 8070),
    }


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_sockets_are_read_from_the_kernel(
    family: socket.AddressFamily, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "names_of_marked", lambda _: {})
    with socket.create_server((address, 0), family=family) as server:
        port = server.getsockname()[1]
        with socket.create_connection((address, port)):  # a connection is no listener
            seen = listening.read_listeners("0123456789abcdef", os.getpid())
    ours = [listener for listener in seen.listeners if listener.port == port]
    assert [(one.process, one.address) for one in ours] == [("control plane", address)]
    assert seen.unseen == ()


def test_a_process_that_has_ended_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "names_of_marked", lambda _: {2**22 + 1: "router-0"})
    assert listening.read_listeners("0123456789abcdef", None).listeners == ()
