"""Starts the cell's own Ray cluster and becomes it: `python -m cells.ray_head --config FILE`.

As small as Ray gets on one machine: no dashboard, no autoscaler, no log monitor, no agents (cells/ray_slim.py), a small
object store, a token of its own. The process is replaced by `ray start --block`, whose pid the supervisor watches.
"""

import argparse
import os
import sys
from pathlib import Path

from cells import cpu_share, process_config
from cells.remote import ray_environment

OBJECT_STORE_BYTES = 80_000_000
SLIMMING = "cells.ray_slim.slim"
CPUS_OFFERED = 4  # workers ask for none; Ray only wants to know some


def main() -> None:
    """Replace this process by Ray's head."""
    parser = argparse.ArgumentParser(description="Start one cell's Ray cluster.")
    parser.add_argument("--config", type=Path, required=True, help="JSON: cell, ray_port, temp_folder, token_file")
    try:
        config = process_config.read(
            parser.parse_args().config, {"ray_port": int, "temp_folder": str, "token_file": str}
        )
    except process_config.ConfigError as error:
        sys.stderr.write(f"cells.ray_head: {error}\n")
        sys.exit(process_config.EXIT_CONFIG)
    temp_folder = Path(config["temp_folder"])
    temp_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    environment = os.environ | ray_environment(Path(config["token_file"])) | {"RAY_START_HOOK": SLIMMING}
    ray = str(Path(sys.executable).with_name("ray"))
    arguments = [
        ray,
        "start",
        "--head",
        "--block",
        f"--port={config['ray_port']}",
        "--node-ip-address=127.0.0.1",
        # Zero: ports as the system gives them, so that many clusters live on one machine.
        "--min-worker-port=0",
        "--max-worker-port=0",
        "--dashboard-port=0",
        "--dashboard-agent-listen-port=0",
        f"--num-cpus={CPUS_OFFERED}",
        "--num-gpus=0",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        "--include-dashboard=false",
        "--include-log-monitor=false",
        "--no-monitor",
        "--disable-usage-stats",
        f"--temp-dir={temp_folder}",
    ]
    cpu_share.give_way()  # the supervisor gives each process a session
    os.execve(ray, arguments, environment)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
