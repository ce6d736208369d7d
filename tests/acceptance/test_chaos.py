"""A short selection of experiments on one gateway that is up, as an operator runs them; and Ctrl-C in one of them.

Money and errors are judged as strictly as ever. Times are stretched by PATIENCE, for a CI machine may be busy: where
other programs take much of it, a run may say "unknown" of a tail, and of nothing else.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from chaos import limits
from chaos.gateway import Gateway
from chaos.installation import environment, wait_for

CELLS = 2
OPTIONS = ("--duration", "4", "--patience", "6", "--seed", "3", "--load", "30")
BULKHEAD = Path(sys.executable).with_name("bulkhead")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    made = Gateway(tmp_path_factory.mktemp("chaos"), cells=CELLS)
    made.start()
    made.wait_ready()
    yield made
    made.kill_everything()


def start(gateway: Gateway, name: str, *options: str) -> "subprocess.Popen[str]":
    command = [str(BULKHEAD), "--data-folder", str(gateway.folder.root), "chaos", "run", name, *OPTIONS, *options]
    return subprocess.Popen(
        command,
        cwd=gateway.root,
        env={name: value for name, value in os.environ.items() if not name.startswith("BULKHEAD_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(gateway: Gateway, name: str) -> dict[str, Any]:
    process = start(gateway, name, "--json")
    out, errors = process.communicate(timeout=150)
    print(out, errors)  # noqa: T201 - pytest shows it where the test fails
    assert process.returncode in {0, 3}, out
    (found,) = json.loads(out)["runs"]
    assert found["exit_code"] == process.returncode
    return dict(found)


def require_contained(found: dict[str, Any]) -> None:
    assert found["broken"] == []
    assert found["audit"]["ok"]
    assert found["checkers"]["verdict"] == "right"
    of_time = ("while the fault lasted", "are promised")
    assert all(any(words in what for words in of_time) for what in found["not_known"]), found["not_known"]
    assert all(group["errors"] == 0 for group in found["groups"])


@pytest.mark.timeout(240)
def test_a_killed_worker_is_contained_and_told(gateway: Gateway) -> None:
    found = run(gateway, "worker-killed")
    require_contained(found)
    assert found["detected_by"].endswith("worker_dead")
    folder = Path(found["folder"])
    assert {file.name for file in folder.iterdir()} == {"journal.json", "history.jsonl", "report.html"}
    page = (folder / "report.html").read_text()
    assert found["verdict"].capitalize() in page
    assert "http://" not in page.replace("http://www.w3.org", ""), "the page needs no network"
    for file in folder.iterdir():
        assert "sk_test_" not in file.read_text(), "no API key stands in a report"
    journal = json.loads((folder / "journal.json").read_text())
    assert journal["status"] == ("completed" if found["verdict"] == "contained" else "failed")
    assert journal["bulkhead"]["verdict"] == found["verdict"]
    ours = [row for row in gateway.status()["partners"] if row["partner"].startswith("chaos_")]
    assert len(ours) == CELLS * (limits.CHAOS_PARTNERS_PER_CELL + limits.CHAOS_POOLED_PER_CELL)
    assert {row["status"] for row in ours} == {"suspended"}


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", ["pool-killed", "book-corrupted"])
def test_whoever_does_not_share_the_worker_or_the_book_notices_nothing(gateway: Gateway, name: str) -> None:
    found = run(gateway, name)
    require_contained(found)
    target, *others = found["groups"]
    assert len(target["partners"]) == (limits.CHAOS_POOLED_PER_CELL if name == "pool-killed" else 1)
    assert not [other for other in others if other["excused"]]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", ["acquirer-failing", pytest.param("acquirer-hanging", marks=pytest.mark.long)])
def test_an_acquirer_in_trouble_costs_its_partner_only(gateway: Gateway, name: str) -> None:
    found = run(gateway, name)
    require_contained(found)
    target, *others = found["groups"]
    assert target["group"] == "target"
    assert target["hit"], "its own partner did notice"
    assert not [other for other in others if other["excused"]]


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_takes_its_fault_away(gateway: Gateway, number: signal.Signals) -> None:
    process = start(gateway, "acquirer-hanging", "--duration", "60")
    try:
        wait_for(lambda: faults(gateway) or None, "the acquirer hangs", 120_000)
        process.send_signal(number)
        wait_for(lambda: not faults(gateway) or None, "it is well again", 10_000)
        out, errors = process.communicate(timeout=150)
        assert process.returncode == 130, out + errors
        assert "Traceback" not in errors
        assert "checkers and audit" in out, "it ends calm and with the audit"
    finally:
        process.kill()


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["no-fault", "worker-killed"])
def test_chaos_toolkits_own_program_takes_the_experiments(gateway: Gateway, name: str, tmp_path: Path) -> None:
    told = json.loads(gateway.run("chaos", "list", "--json").stdout)["experiments"]
    (file,) = [row["file"] for row in told if row["name"] == name]
    variables = {"DATA_FOLDER": gateway.folder.root, "DURATION_S": 4, "LOAD_PER_SECOND": 30, "PATIENCE": 6}
    command = [BULKHEAD.with_name("chaos"), "--no-version-check", "run", "--var", "seed:int=3", file]
    done = subprocess.run(
        command,
        check=False,
        cwd=tmp_path,
        env={**environment(), **{f"BULKHEAD_CHAOS_{key}": str(value) for key, value in variables.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    journal = json.loads((tmp_path / "journal.json").read_text())
    found = journal["bulkhead"]
    require_contained(found)
    assert found["seed"] == 3
    assert done.returncode == (0 if found["verdict"] == "contained" else 1), done.stdout
    assert f"verdict: {found['verdict']}; report: {found['folder']}" in done.stdout
    assert Path(found["folder"]).parent == tmp_path / "chaos-runs"
    assert {file.name for file in Path(found["folder"]).iterdir()} == {"journal.json", "history.jsonl", "report.html"}


def faults(gateway: Gateway) -> dict[str, Any]:
    return dict(httpx.get(f"{gateway.acquirer_url}/faults", trust_env=False).json()["faults"])


def test_what_can_not_be_run_says_so_and_ends_with_2(gateway: Gateway, tmp_path: Path) -> None:
    ask: Callable[..., subprocess.CompletedProcess[str]] = gateway.run
    for arguments, told in (
        (("chaos", "run", "no-such-thing"), "there is no experiment 'no-such-thing'"),
        (("chaos", "run"), "name one experiment, or say --all"),
        (("chaos", "run", "door-killed", "--cell", "cell-9", "--runs", tmp_path), "there is no cell 'cell-9'"),
        (("chaos", "run", "fdb-server-killed", "--runs", tmp_path), "run it with --own"),
        (
            ("chaos", "run", "network-cut", "--runs", tmp_path),
            "fault proxies before the gateway's doors: run it with --own",
        ),
        (("chaos", "run", "poison-command", "--runs", tmp_path), "start it with --fault-injection, or say --own"),
    ):
        done = ask(*arguments)
        assert done.returncode == 2, done.stdout + done.stderr
        assert told in done.stdout + done.stderr
