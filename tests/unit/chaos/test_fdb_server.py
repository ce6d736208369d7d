"""Where a cluster's servers listen, and finding them on this machine; a server itself is for the acceptance tests."""

import os
import socket
from pathlib import Path

import pytest

from chaos import fdb_server
from chaos.fdb_server import FdbServer, FdbServerError


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("a:b@127.0.0.1:4500", [("127.0.0.1", 4500)]),
        ("# ours\n\na:b@10.0.0.1:4500:tls,10.0.0.2:4501:tls\n", [("10.0.0.1", 4500), ("10.0.0.2", 4501)]),
        ("a:b@[::1]:4500", [("::1", 4500)]),
    ],
)
def test_the_addresses_in_a_cluster_file(tmp_path: Path, line: str, found: list[tuple[str, int]]) -> None:
    file = tmp_path / "fdb.cluster"
    file.write_text(line)
    assert fdb_server.addresses_of(file) == found


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_who_listens_there_is_found(tmp_path: Path, host: str) -> None:
    file = tmp_path / "fdb.cluster"
    with socket.create_server((host, 0)) as listener:
        port = listener.getsockname()[1]
        file.write_text(f"a:b@127.0.0.1:{port}")
        assert [process.pid for process in fdb_server.servers_here(file)] == [os.getpid()]
        file.write_text(f"a:b@192.0.2.1:{port}")
        assert fdb_server.servers_here(file) == [], "that is another machine's"


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fdb_server.missing_programs() == "fdbserver and fdbcli are not on PATH"
    with pytest.raises(FdbServerError, match="not on PATH"):
        FdbServer(tmp_path / "fdb").start()
    (tmp_path / "fdbcli").write_text("#!/bin/sh\n")
    (tmp_path / "fdbcli").chmod(0o700)
    assert fdb_server.missing_programs() == "fdbserver is not on PATH"


def test_a_server_that_ends_at_once_is_told_with_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, script in (("fdbserver", "echo no disk today; exit 3"), ("fdbcli", "sleep 0.2")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    server = FdbServer(tmp_path / "fdb")
    with pytest.raises(FdbServerError, match=r"ended with 3: no disk today"):
        server.start()
    assert server.pid is None
    server.end()
