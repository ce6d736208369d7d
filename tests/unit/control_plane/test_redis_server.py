import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from control_plane import redis_server, up
from control_plane.redis_server import Config, server_config
from control_plane.settings import Settings

SECRET = bytes(range(32))


def config(tmp_path: Path, **other: object) -> dict[str, object]:
    return {
        "host": "127.0.0.1",
        "port": 6390,
        "secret_file": str(tmp_path / "redis.key"),
        "server_config_file": str(tmp_path / "redis.conf"),
        **other,
    }


def start(tmp_path: Path, content: str, program: str | None) -> subprocess.CompletedProcess[str]:
    """Start it with a stand-in for redis-server that shows what it was given, its marker included."""
    (tmp_path / "redis.key").write_bytes(SECRET)
    (tmp_path / "config.json").write_text(content)
    found = tmp_path / "bin"
    found.mkdir()
    if program is not None:
        (found / "redis-server").write_text(program)
        (found / "redis-server").chmod(0o755)
    return subprocess.run(
        [sys.executable, "-P", "-m", "control_plane.redis_server", "--config", str(tmp_path / "config.json")],
        env={**os.environ, "PATH": str(found), "BULKHEAD_PROCESS": "id/redis"},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_it_becomes_a_server_whose_password_no_command_line_shows(tmp_path: Path) -> None:
    done = start(tmp_path, json.dumps(config(tmp_path)), '#!/bin/sh\necho "$@" "$BULKHEAD_PROCESS"\n')
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'redis.conf'} id/redis\n"), done.stderr
    file = tmp_path / "redis.conf"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert f"requirepass {SECRET.hex()}\n" in file.read_text()


def test_it_keeps_nothing_listens_on_the_loopback_and_is_bounded(tmp_path: Path) -> None:
    lines = server_config(Config.model_validate(config(tmp_path)), "p").splitlines()
    assert {"bind 127.0.0.1", "port 6390", 'save ""', "appendonly no", "maxmemory-policy noeviction"} <= set(lines)
    assert any(re.fullmatch(r"maxmemory [1-9]\d{6,}", line) for line in lines)
    assert "set-proc-title no" in lines, "its marker has to outlive its title"


@pytest.mark.parametrize(
    ("content", "why"),
    [("{", "JSON"), ('{"host": "127.0.0.1"}', "port"), ("absent secret", "/absent")],
)
def test_what_it_cant_use_is_said(tmp_path: Path, content: str, why: str) -> None:
    text = json.dumps(config(tmp_path, secret_file="/absent")) if content == "absent secret" else content
    done = start(tmp_path, text, "#!/bin/sh\n")
    assert done.returncode == 2
    assert why in done.stderr
    assert not (tmp_path / "redis.conf").exists()


def test_without_the_program_it_says_so(tmp_path: Path) -> None:
    done = start(tmp_path, json.dumps(config(tmp_path)), None)
    assert done.returncode == 2
    assert "there is no redis-server on PATH" in done.stderr


def test_up_goes_on_without_a_program_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    console = up.Console(said.append, lambda *_: None, lambda *_: None)
    wanted = Settings(data_folder=tmp_path)
    monkeypatch.setattr(redis_server, "is_installed", lambda: True)
    assert up.with_redis_that_is_there(wanted, console).starts_redis
    assert said == []
    monkeypatch.setattr(redis_server, "is_installed", lambda: False)
    assert up.with_redis_that_is_there(wanted, console).redis_url == "none"
    (line,) = said
    assert "redis-server is not installed" in line
    url = "redis://127.0.0.1:6379/0"
    assert up.with_redis_that_is_there(Settings(data_folder=tmp_path, redis_url=url), console).redis_url == url
