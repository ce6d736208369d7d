"""On which store an experiment runs: what `up` is told, what a report says, and one line for what can't be."""

import asyncio
from pathlib import Path

import pytest

from chaos import demo, soak, store_choice
from chaos.store_choice import SQLITE, StoreChoice

LINE = "test:test@127.0.0.1:4500\n"


@pytest.fixture
def cluster_file(tmp_path: Path) -> Path:
    file = tmp_path / "fdb.cluster"
    file.write_text(LINE)
    return file


def test_sqlite_is_the_default_and_up_is_told_nothing() -> None:
    assert demo.parse([]).store == soak.parse([]).store == SQLITE
    assert SQLITE.up_arguments == SQLITE.arguments == []
    assert SQLITE.servers_here() == []
    assert "synchronous=FULL" in asyncio.run(SQLITE.durability())


def test_foundationdb_is_handed_on_to_up_and_to_the_command_that_repeats_a_soak(cluster_file: Path) -> None:
    store = demo.parse(["--store", "fdb", "--cluster-file", str(cluster_file)]).store
    assert store.up_arguments == ["--store", "fdb", "--cluster-files", str(cluster_file)]
    options = soak.parse(["--store", "fdb", "--cluster-file", str(cluster_file)])
    assert not options.has_own_server
    assert f"--store fdb --cluster-file {cluster_file}" in options.command
    assert "--store" not in soak.parse([]).command


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--store", "redis"], "invalid choice: 'redis'"),
        (["--store", "fdb"], "--store fdb needs --cluster-file FILE"),
        (["--cluster-file", "x"], "--cluster-file is for --store fdb"),
        (["--store", "fdb", "--cluster-file", "/nowhere/fdb.cluster"], "can't be read (No such file or directory)"),
        (["--store", "fdb", "--cluster-file", __file__], "is no FoundationDB cluster file"),
    ],
)
def test_what_is_wrong_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as ended:
        demo.parse(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_soak_without_a_cluster_file_needs_the_server_s_programs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit):
        soak.parse(["--store", "fdb"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "fdbserver and fdbcli are not on PATH" in line
    for name in ("fdbserver", "fdbcli"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o700)
    options = soak.parse(["--store", "fdb", "--only", "FoundationDB server killed"])
    assert options.has_own_server
    assert "--store fdb --only 'FoundationDB server killed'" in options.command


@pytest.mark.parametrize("with_cluster", [False, True])
def test_only_a_server_of_the_soak_s_own_is_struck(
    capsys: pytest.CaptureFixture[str], cluster_file: Path, *, with_cluster: bool
) -> None:
    on = ["--store", "fdb", "--cluster-file", str(cluster_file)] if with_cluster else []
    with pytest.raises(SystemExit):
        soak.parse([*on, "--only", "FoundationDB server stopped"])
    assert "is for a server that the soak starts" in capsys.readouterr().err


def test_what_a_cluster_tells_of_its_durability_is_said_in_words() -> None:
    status = {"cluster": {"configuration": {"redundancy_mode": "double", "storage_engine": "ssd-2"}}}
    said = store_choice.in_words(status)
    assert "redundancy mode double, storage engine ssd-2" in said
    assert "transaction logs' fsync" in said
    assert "redundancy mode unknown" in store_choice.in_words({})


def test_a_choice_without_a_cluster_file_has_no_servers_to_look_for() -> None:
    assert StoreChoice("fdb").servers_here() == []
