"""Settings: what is wrong with them is said, and which file it was."""

import json
from pathlib import Path

import pytest

from router.settings import SettingsError, read_secret, read_settings

GOOD = {
    "name": "router-0",
    "host": "127.0.0.1",
    "port": 8080,
    "metrics_port": 8181,
    "directory_file": "/data/directory/directory.json",
    "data_folder": "/data/routers/router-0",
    "directory_key_file": "/data/secrets/routers/directory.pub",
    "pepper_file": "/data/secrets/pepper",
    "cell_keys_folder": "/data/secrets",
    "log_file": None,
}


def test_settings_are_read(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(GOOD))
    settings = read_settings(tmp_path / "c.json")
    assert settings.port == 8080
    assert settings.cell_keys_folder == Path("/data/secrets")


@pytest.mark.parametrize("change", [{"port": 70_000}, {"name": "../x"}, {"colour": 1}, {"host": None}])
def test_wrong_settings_are_named(tmp_path: Path, change: dict[str, object]) -> None:
    (tmp_path / "c.json").write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(SettingsError, match=next(iter(change))):
        read_settings(tmp_path / "c.json")


def test_missing_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="nowhere"):
        read_settings(tmp_path / "nowhere.json")


def test_a_secret_has_its_length(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(b"s" * 32)
    (tmp_path / "short").write_bytes(b"s" * 31)
    assert read_secret(tmp_path / "good") == b"s" * 32
    for name in ("short", "none"):
        with pytest.raises(SettingsError, match=name):
            read_secret(tmp_path / name)
