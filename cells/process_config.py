"""What a cell's process is started with, read and checked: its configuration (JSON) and the cell's secret.

Whatever is wrong is one line that names the file; the process then ends with exit code 2 and has touched nothing.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

SECRET_BYTES: Final = 32
EXIT_CONFIG: Final = 2


class ConfigError(ValueError):
    """A configuration or a secret can't be used; the message says which file and why."""


def read(path: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Read a configuration that has at least these fields, of these types. Raises ConfigError."""
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: it can't be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: it is no JSON object")
    for name, kind in fields.items():
        if name not in config:
            raise ConfigError(f"{path}: {name} is missing")
        value = config[name]
        if (
            not isinstance(value, kind)
            or isinstance(value, bool) is not (kind is bool)
            or (isinstance(value, str) and "\0" in value)
        ):
            raise ConfigError(f"{path}: {name} can't be {value!r:.100}")
    return config


def read_secret(path: Path) -> bytes:
    """Read a secret of SECRET_BYTES. Raises ConfigError."""
    try:
        secret = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"a secret can't be read: {error}") from error
    if len(secret) != SECRET_BYTES:
        raise ConfigError(f"{path}: a secret has {SECRET_BYTES} bytes, this has {len(secret)}")
    return secret
