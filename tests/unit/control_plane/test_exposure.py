"""What is open to others on the network is refused at the start, unless the settings say that it is meant."""

from pathlib import Path
from typing import Any

import pytest

from control_plane.errors import SettingsError
from control_plane.exposure import insecurities, require_secure
from control_plane.settings import Settings


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"http_host": "0.0.0.0"}, ["http_host"]),
        ({"http_host": "::"}, ["http_host"]),
        ({"http_host": "gateway.example"}, ["http_host"]),
        ({"admin_host": "10.0.0.1", "admin_port": 9_000}, ["admin_host"]),
        ({"acquirer_url": "http://bank.example"}, ["acquirer_url"]),
        ({"acquirer_url": "http://127.0.0.1.bank.example:80"}, ["acquirer_url"]),
        ({"acquirers": {"bank": "http://10.0.0.1:1"}}, ["acquirers.bank"]),
        ({"redis_url": "redis://:a-password@10.0.0.1:6379/0"}, ["redis_url"]),
        ({"http_host": "::", "redis_url": "redis://r.example"}, ["http_host", "redis_url"]),
    ],
)
def test_what_is_open_to_others_is_refused_and_named(tmp_path: Path, fields: dict[str, Any], names: list[str]) -> None:
    settings = Settings(data_folder=tmp_path, **fields)
    with pytest.raises(SettingsError, match="in clear") as raised:
        require_secure(settings)
    assert raised.value.where == f"{', '.join(names)} in the settings"
    assert "insecure = true" in raised.value.hint
    assert "a-password" not in f"{raised.value}{raised.value.hint}"
    meant = settings.model_copy(update={"insecure": True})
    require_secure(meant)
    assert [name for name, _, _ in insecurities(meant)] == names, "it is said all the same"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"http_host": "localhost", "admin_host": "127.0.0.2", "admin_port": 9_000},
        {"http_host": "::1"},
        {"admin_host": "0.0.0.0"},
        {"acquirer_url": "http://127.0.0.1:1", "acquirers": {"bank": "http://[::1]:2"}, "second_acquirer_port": 3},
        {"acquirer_url": "https://bank.example", "redis_url": "rediss://r.example"},
        {"redis_url": "redis://localhost:1"},
        {"redis_url": "none"},
    ],
)
def test_what_stays_on_this_host_or_has_tls_starts(tmp_path: Path, fields: dict[str, Any]) -> None:
    require_secure(Settings(data_folder=tmp_path, **fields))
