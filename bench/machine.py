"""What a measurement was taken on: cores, memory, kernel, file system, and how long an fsync takes there just now."""

import os
import platform
import time
from pathlib import Path
from typing import Any, Final

import psutil

FSYNCS: Final = 200
BLOCK_BYTES: Final = 4_096


def describe(folder: Path) -> dict[str, Any]:
    """Describe the machine and the disk below `folder`."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "file_system": _file_system(folder),
        "fsync_ms": _fsyncs_ms(folder),
    }


def lines(machine: dict[str, Any]) -> list[str]:
    """Say it in words."""
    fsync = machine["fsync_ms"]
    cores = f"{machine['cores']} cores ({machine['processor']})"
    took = f"p50 {fsync['p50']} ms, p99 {fsync['p99']} ms"
    return [
        f"Machine: {cores}, {machine['memory_gib']} GiB, {machine['system']}, Python {machine['python']}.",
        f"Disk: {machine['file_system']}; one writer's fsync of {BLOCK_BYTES} bytes took {took}.",
    ]


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        return platform.processor()
    return platform.processor()


def _file_system(folder: Path) -> str:
    best = max(
        (part for part in psutil.disk_partitions(all=True) if folder.resolve().is_relative_to(part.mountpoint)),
        key=lambda part: len(part.mountpoint),
        default=None,
    )
    return "unknown" if best is None else best.fstype


def _fsyncs_ms(folder: Path) -> dict[str, float]:
    """Append and fsync, one after the other, as one book's writer does."""
    took: list[float] = []
    file = folder / "fsync-probe"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for _ in range(FSYNCS):
            os.write(descriptor, b"x" * BLOCK_BYTES)
            began = time.perf_counter()
            os.fdatasync(descriptor)
            took.append((time.perf_counter() - began) * 1e3)
    finally:
        os.close(descriptor)
        file.unlink()
    took.sort()
    return {"p50": round(took[FSYNCS // 2], 2), "p99": round(took[int(FSYNCS * 0.99)], 2)}
