"""`bulkhead chaos` lists what there is, says what it would do, and refuses in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from chaos import catalogue, command, run_report, session
from chaos.catalogue import Experiment
from chaos.needs import Need, Needs
from control_plane import cli


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["--data-folder", "nowhere", "chaos", *arguments])


def test_list() -> None:
    found = json.loads(run("list", "--json").stdout)["experiments"]
    assert [row["name"] for row in found] == catalogue.names()
    assert found[1]["allows"]["other cells"] == "at most a delay"
    assert all(Path(row["file"]).is_file() for row in found)
    assert "worker-killed" in run("list").stdout


def test_a_dry_run_says_what_would_be_done_and_does_nothing(tmp_path: Path) -> None:
    done = run("run", "door-killed", "--cell", "cell-1", "--dry-run", "--runs", str(tmp_path / "runs"))
    assert done.exit_code == 0
    assert "cell is struck: cell-1" in done.stdout
    assert "Nothing was done." in done.stdout
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_for_programs_is_json_alone(tmp_path: Path) -> None:
    options = ("--dry-run", "--json", "--runs", str(tmp_path / "runs"), "--duration", "7")
    done = run("run", "door-killed", "--cell", "cell-1", *options)
    (plan,) = json.loads(done.stdout)["plans"]
    assert (plan["experiment"], plan["scope"], plan["cell"], plan["duration_s"]) == ("door-killed", "cell", "cell-1", 7)
    assert plan["allows"]["other cells"] == "at most a delay"
    assert not plan["own"]
    assert plan["data_folder"].endswith("/nowhere")
    everything = json.loads(run("run", "--all", "--own", *options).stdout)["plans"]
    assert len(everything) > 20
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("run", "nonsense"), "there is no experiment 'nonsense'"),
        (("run",), "name one experiment, or say --all"),
        (("run", "no-fault", "--all"), "name one experiment, or say --all"),
        (("run", "no-fault", "--duration", "0.1"), "duration_s is 0.1"),
        (("run", "fdb-server-killed"), "fdb-server-killed can't be run: it needs a FoundationDB server of the exp"),
        (("run", "worker-killed", "--partner", "acme"), "'acme' is no partner of an experiment's"),
    ],
)
def test_wrong_usage_ends_with_2(arguments: tuple[str, ...], told: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert told in done.stderr


@pytest.mark.parametrize(
    ("status", "found", "aborted", "code"),
    [
        ("completed", {"verdict": "contained"}, False, 0),
        ("completed", {"verdict": "not contained"}, False, 1),
        ("completed", {"verdict": "unknown"}, False, 3),
        ("interrupted", {"verdict": "unknown"}, False, 130),
        ("interrupted", {"verdict": "not contained"}, True, 1),
        ("interrupted", {"verdict": "contained", "failure": "no worker"}, False, 2),
    ],
)
def test_exit_codes(status: str, found: dict[str, Any], aborted: bool, code: int) -> None:
    assert run_report.exit_code({"status": status, "bulkhead": found}, aborted=aborted) == code


def test_those_that_change_their_gateway_run_when_the_shared_one_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Own:
        def __init__(self, _root: Path, *, needs: Needs, bulkheads_off: str) -> None:
            assert needs == {Need.FAULT_PROXIES}
            assert bulkheads_off == ""

        def start(self) -> None:
            told.append("start")

        def stop(self) -> None:
            told.append("stop")

    def run_one(one: Experiment, _document: Any, _wanted: Any) -> dict[str, Any]:
        told.append(f"{one.name} {'alone' if session.lent() is None else 'shared'}")
        return {"experiment": one.name, "exit_code": 130 if len(told) > 6 else 0}

    monkeypatch.setattr(command, "OwnGateway", Own)
    monkeypatch.setattr(command, "run_one", run_one)
    names = ("clock-back", "worker-killed", "network-cut")
    found = [(catalogue.read(document), document) for document in map(catalogue.load, names)]
    wanted = command.Wanted({"bulkheads_off": ""}, own=True, as_json=False)
    assert command._run_all(found, wanted) == [0, 0, 0]
    assert told == ["start", "worker-killed shared", "network-cut shared", "stop", "clock-back alone"]
    assert command._run_all(found, wanted) == [130], "what was interrupted is not gone on with"
    assert told[-1] == "stop"
