"""The demo ends by itself or by Ctrl-C, and leaves nothing running."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from chaos.gateway import Gateway
from chaos.installation import is_alive
from tests.store_choices import chosen, on_either_store

ROOT = Path(__file__).parents[2]


@pytest.mark.long
@pytest.mark.timeout(150)
@on_either_store
def test_ctrl_c_in_the_midst_of_trouble_leaves_nothing(tmp_path: Path, kind: str) -> None:
    small = ["--seconds", "30", "--cells", "1", "--partners", "6"]
    demo = subprocess.Popen(
        [sys.executable, "-m", "chaos.demo", *small, *chosen(kind).arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    gateway = Gateway(tmp_path / ".demo", cells=1)
    descendants: list[psutil.Process] = []
    try:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "SIGKILL of" in line:
                descendants = [*psutil.Process(demo.pid).children(recursive=True), *gateway.processes()]
                demo.send_signal(signal.SIGINT)
        assert demo.wait() == 130
        assert len(descendants) > 10, "it was not interrupted in its midst"
        assert [process for process in descendants if is_alive(process)] == []
        assert gateway.leftovers() == []
    finally:
        demo.kill()
        demo.wait()
        assert demo.stdout is not None
        demo.stdout.close()
        gateway.kill_everything()


@pytest.mark.timeout(150)
def test_the_demo_does_not_wipe_a_running_gateways_data(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path / ".demo", cells=1)
    gateway.start()
    try:
        gateway.wait_ready()
        demo = subprocess.run(
            [sys.executable, "-m", "chaos.demo"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert demo.returncode == 2
        assert "a gateway runs on" in demo.stdout
        assert gateway.status()["ready"], "it was left in peace"
    finally:
        gateway.kill_everything()
