"""Starts the cell's own Ray cluster and becomes its head: `python -m cells.ray_head --config FILE`.

As small as Ray gets on one machine: no dashboard, no autoscaler, no log monitor, no agents (cells/ray_slim.py), a small
object store, a token of its own, and all sockets on loopback. `ray start --block` runs in this process.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

from cells import cpu_share, process_config, ray_gcs, ray_slim
from cells.ray_environment import LOOPBACK, RayUnknownError, ray_environment, require_loopback

OBJECT_STORE_BYTES = 80_000_000
CPUS_OFFERED = 4  # workers ask for none; Ray only wants to know some


def main() -> None:
    """Run Ray's head in this process."""
    parser = argparse.ArgumentParser(description="Start one cell's Ray cluster.")
    parser.add_argument(
        "--config", type=Path, required=True, help="JSON: cell, ray_port, temp_folder, token_file, logs_folder"
    )
    try:
        config = process_config.read(
            parser.parse_args().config,
            {"cell": str, "ray_port": int, "temp_folder": str, "token_file": str, "logs_folder": str},
        )
    except process_config.ConfigError as error:
        sys.stderr.write(f"cells.ray_head: {error}\n")
        sys.exit(process_config.EXIT_CONFIG)
    temp_folder = Path(config["temp_folder"])
    temp_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # What the GCS finds when it is started again; a new head begins anew.
    storage = temp_folder / "gcs"
    shutil.rmtree(storage, ignore_errors=True)
    storage.mkdir(mode=0o700)
    os.environ.update(ray_environment(Path(config["token_file"])))
    os.environ.update({"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(storage)})
    try:
        require_loopback()
        ray_slim.slim()
        ray_gcs.keep_running(config["ray_port"], Path(config["logs_folder"]) / f"{config['cell']}.ray.gcs")
    except RayUnknownError as error:
        sys.stderr.write(f"cells.ray_head: {error}\n")
        sys.exit(process_config.EXIT_CONFIG)
    from ray.scripts.scripts import cli  # noqa: PLC0415 - the environment comes first

    cpu_share.give_way()  # the supervisor gives each process a session
    cli(_arguments(config["ray_port"], temp_folder))


def _arguments(port: int, temp_folder: Path) -> list[str]:
    return [
        "start",
        "--head",
        "--block",
        f"--port={port}",
        f"--node-ip-address={LOOPBACK}",
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


if __name__ == "__main__":
    main()
