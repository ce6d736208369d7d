"""Starts the installation's own Redis and becomes it: `python -m control_plane.redis_server --config FILE`.

On the loopback, with a password, nothing on disk, memory bounded. It is never the truth about anything, so it may be
killed at any time. The process is replaced by redis-server, whose pid the supervisor watches.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from control_plane import limits
from router.directory_file import write_atomically

PROGRAM: Final = "redis-server"
WITHOUT: Final = "each learns of 429s by itself, and of a revoked key within a second"
EXIT_CONFIG: Final = 2


class Config(BaseModel):
    """What the supervisor writes for it. `server_config_file` is made anew at each start, for this user only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: Annotated[str, Field(pattern=r"^[0-9.]+$")]
    port: Annotated[int, Field(ge=1, le=65_535)]
    secret_file: Path
    server_config_file: Path


def is_installed() -> bool:
    """Say whether there is a redis-server on PATH."""
    return shutil.which(PROGRAM) is not None


def server_config(config: Config, password: str) -> str:
    """Give what redis-server reads: https://redis.io/docs/latest/operate/oss_and_stack/management/config/."""
    lines = [
        f"bind {config.host}",
        f"port {config.port}",
        f"requirepass {password}",
        'save ""',
        "appendonly no",
        f"maxmemory {limits.REDIS_MEMORY_BYTES_MAX}",
        "maxmemory-policy noeviction",
        f"maxclients {limits.REDIS_CLIENTS_MAX}",
        "daemonize no",
        'logfile ""',
        # A title of its own would overwrite the marker in its environment (Redis 6.2 and later know this line).
        "set-proc-title no",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:  # noqa: RET503 - execv does not return
    """Replace this process by redis-server; 2 where that can't be."""
    parser = argparse.ArgumentParser(prog="python -m control_plane.redis_server", description="Start Redis.")
    parser.add_argument("--config", type=Path, required=True, help="JSON: host, port, secret_file, server_config_file")
    file: Path = parser.parse_args().config
    program = shutil.which(PROGRAM)
    if program is None:
        sys.stderr.write(f"control_plane.redis_server: there is no {PROGRAM} on PATH; install it\n")
        return EXIT_CONFIG
    try:
        config = Config.model_validate_json(file.read_bytes())
        text = server_config(config, config.secret_file.read_bytes().hex())
        write_atomically(config.server_config_file, text.encode())
    except (OSError, ValidationError) as error:
        sys.stderr.write(f"control_plane.redis_server: {file}: {error}\n")
        return EXIT_CONFIG
    os.execv(program, [program, str(config.server_config_file)])  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    sys.exit(main())
