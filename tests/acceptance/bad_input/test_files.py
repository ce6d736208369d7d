"""Files that others damaged, as it runs and before it starts: payments go on, or one line says what is wrong."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.acceptance.bad_input.conftest import Site


@pytest.mark.parametrize("damage", ["garbage", "nested", "pipe"])
def test_a_damaged_directory_stops_no_payment_and_is_published_again(site: Site, damage: str) -> None:
    file = site.gateway.folder.directory_file
    good = file.read_bytes()
    version = site.gateway.status()["directory_version"]
    with site.unharmed():
        file.unlink()
        match damage:
            case "empty":
                file.write_bytes(b"")
            case "garbage":
                file.write_bytes(os.urandom(100_000))
            case "cut off":
                file.write_bytes(good[: len(good) // 2])
            case "nested":
                file.write_bytes(b'{"version":999999,"checksum":"x","payload":' + b"[" * 600 + b"]" * 600 + b"}")
            case "pipe":
                os.mkfifo(file)
            case _:
                file.mkdir()
        site.pay()
        if damage == "folder":
            file.rmdir()  # a folder is not written over
        until = time.monotonic() + 30
        while site.gateway.status()["directory_version"] == version or not file.is_file():
            site.pay()
            assert time.monotonic() < until, "it was not published again"
            time.sleep(0.2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("cells = 'many'\n", "error: cells: Input should be a valid integer"),
        ("cells = = 1\n", "error: not TOML"),
        ("colour = 'blue'\n", "error: colour: there is no such setting"),
        ("cells = 1\n[" + "a." * 2_000 + "a]\n" + "x = " + "[" * 3_000, "error: "),
    ],
)
def test_settings_that_can_t_be_used_start_nothing(tmp_path: Path, settings: str, said: str) -> None:
    (tmp_path / "bulkhead.toml").write_text(settings)
    script = Path(sys.executable).with_name("bulkhead")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BULKHEAD_")}
    before = {process.pid for process in psutil.process_iter()}
    done = subprocess.run(
        [script, "up"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    what, where, to_do = done.stderr.strip().splitlines()
    assert what.startswith(said)
    assert where.startswith("where: ")
    assert "bulkhead.toml" in where
    assert to_do.startswith("to do: ")
    assert [path.name for path in tmp_path.iterdir()] == ["bulkhead.toml"], "not even a folder was made"
    left = [p for p in psutil.process_iter() if p.pid not in before and str(tmp_path) in _folder_of(p)]
    assert left == []


def _folder_of(process: psutil.Process) -> str:
    try:
        return process.cwd()
    except psutil.Error:
        return ""
