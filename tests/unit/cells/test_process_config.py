"""A door or a Ray head that is started with what can't be used says so in a line, ends with 2 and touches nothing."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cells import door, process_config, ray_head

SECRET = b"s" * process_config.SECRET_BYTES


def config(folder: Path, **changes: Any) -> dict[str, Any]:
    fields = {
        "cell": "cell-0",
        "host": "127.0.0.1",
        "port": 1,
        "metrics_port": 2,
        "ray_address": "127.0.0.1:3",
        "ray_port": 3,
        "temp_folder": str(folder / "ray"),
        "token_file": str(folder / "token"),
        "secret_file": str(folder / "secret"),
        "folder": str(folder / "cell"),
        "place": {"store": "sqlite", "folder": str(folder / "cell")},
        "spares": 1,
        "acquirers": {"main": "http://127.0.0.1:4"},
        "log_file": None,
        "logs_folder": str(folder / "logs"),
        "fault_injection": False,
        "bulkheads_off": [],
    }
    return {name: value for name, value in (fields | changes).items() if value is not ...}


@pytest.mark.parametrize("main", [door.main, ray_head.main])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "can't be read as JSON"),
        (b"\xff\x00", "can't be read as JSON"),
        (b"[" * 100_000, "can't be read as JSON"),
        (b"[]", "no JSON object"),
        (b"{}", "is missing"),
        ({"token_file": ...}, "token_file is missing"),
        ({"token_file": 5}, "token_file can't be 5"),
        ({"token_file": "a\0b"}, "token_file can't be"),
        (None, "can't be read"),
    ],
)
def test_a_configuration_that_can_t_be_used(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    main: Callable[[], None],
    content: bytes | dict[str, Any] | None,
    said: str,
) -> None:
    file = tmp_path / "config.json"
    (tmp_path / "secret").write_bytes(SECRET)
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else json.dumps(config(tmp_path, **content)).encode())
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(sys, "argv", ["x", "--config", str(file)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert said in told
    assert str(file) in told
    assert told.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("secret", [b"", SECRET[:-1], SECRET + b"\n", None])
def test_a_secret_that_can_t_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], secret: bytes | None
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config(tmp_path)))
    if secret is not None:
        (tmp_path / "secret").write_bytes(secret)
    monkeypatch.setattr(sys, "argv", ["x", "--config", str(file)])
    with pytest.raises(SystemExit) as ended:
        door.main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert str(tmp_path / "secret") in told
    assert "s" * 10 not in told, "no secret is printed"


def test_fields_that_a_newer_control_plane_adds_are_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"port": 1, "colour": "blue"}')
    assert process_config.read(file, {"port": int}) == {"port": 1, "colour": "blue"}
