"""A worker's control group, on folders that look like the kernel's. What the kernel makes of it is not tested here."""

import os
import time
from pathlib import Path

import pytest

from cells import limits, worker_cgroup


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The group that was handed over; the worker is in its group `main`."""
    folder = tmp_path / "system.slice" / "bulkhead.service"
    (folder / "main").mkdir(parents=True)
    (tmp_path / "own").write_text("1:name=systemd:/elsewhere\n0::/system.slice/bulkhead.service/main\n")
    for group in (tmp_path, folder):
        (group / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
        (group / "cgroup.procs").write_text("")
    monkeypatch.setattr(os, "getxattr", lambda *_: b"1")
    remove = os.rmdir

    def remove_as_the_kernel(group: Path) -> None:
        for file in group.iterdir():
            file.unlink()
        remove(group)

    monkeypatch.setattr(os, "rmdir", remove_as_the_kernel)
    return folder


def join(root: Path, *, with_memory: bool = True) -> Path | None:
    return worker_cgroup.join("cell-0-w0-abc", with_memory=with_memory, threads=30, root=root, own=root / "own")


def content(group: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in group.iterdir()}


def test_a_worker_gets_a_bounded_group_beside_its_starter_s(tmp_path: Path, parent: Path) -> None:
    group = join(tmp_path)
    assert group == parent / "bulkhead-worker-cell-0-w0-abc"
    assert content(group) == {
        "memory.max": str(limits.WORKER_GROUP_BYTES_MAX),
        "cpu.weight": str(limits.WORKER_CPU_WEIGHT),
        "pids.max": str(30 + limits.WORKER_GROUP_THREADS_MAX),
        "cgroup.procs": str(os.getpid()),
    }
    assert (parent / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"


def test_without_its_bulkhead_memory_is_not_bounded(tmp_path: Path, parent: Path) -> None:
    group = join(tmp_path, with_memory=False)
    assert group is not None
    assert group.parent == parent
    assert "memory.max" not in content(group)


def test_where_groups_are_not_handed_over_there_is_none_and_nothing_is_written(
    tmp_path: Path, parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def says_nothing(*_: object) -> bytes:
        raise OSError(61, "No data available")

    def is_refused() -> bool:
        refused = join(tmp_path) is None
        return refused and sorted(path.name for path in parent.iterdir()) == untouched

    untouched = sorted(path.name for path in parent.iterdir())
    (parent / "cgroup.procs").write_text("4711\n")  # the kernel allows no groups beside processes
    assert is_refused()
    (parent / "cgroup.procs").write_text("")
    (parent / "cgroup.controllers").write_text("cpu pids\n")
    assert is_refused()
    (parent / "cgroup.controllers").write_text("cpu memory pids\n")
    (tmp_path / "own").write_text("0::/\n")
    assert is_refused()
    (tmp_path / "own").write_text("0::/system.slice/bulkhead.service/main\n")
    monkeypatch.setattr(os, "getxattr", says_nothing)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert is_refused(), "root may write everywhere, and is not told that it may here"
    monkeypatch.setattr(os, "geteuid", lambda: 1_000)
    assert join(tmp_path) is not None


def test_with_version_1_there_is_none(tmp_path: Path, parent: Path) -> None:
    (tmp_path / "cgroup.controllers").unlink()
    assert join(tmp_path) is None
    assert not list(parent.glob("bulkhead-*"))


def test_what_the_kernel_refuses_costs_the_group_and_not_the_worker(tmp_path: Path, parent: Path) -> None:
    (parent / "cgroup.subtree_control").mkdir()
    assert join(tmp_path) is None


def test_groups_of_dead_workers_are_taken_away(tmp_path: Path, parent: Path) -> None:
    for name, populated, age_s in (("dead", 0, 3_600), ("alive", 1, 3_600), ("young", 0, 0)):
        group = parent / f"bulkhead-worker-{name}"
        group.mkdir()
        (group / "cgroup.events").write_text(f"populated {populated}\nfrozen 0\n")
        os.utime(group, (time.time() - age_s,) * 2)
    mine = join(tmp_path)
    left = {path.name.removeprefix("bulkhead-worker-") for path in parent.glob("bulkhead-*")}
    assert mine is not None
    assert left == {"alive", "young", mine.name.removeprefix("bulkhead-worker-")}
