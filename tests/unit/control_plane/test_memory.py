from pathlib import Path

import pytest

from control_plane import limits, memory
from control_plane.errors import RefusedError


def test_a_thousand_dedicated_workers_do_not_fit_into_24_gb() -> None:
    with pytest.raises(RefusedError, match=r"1000 partners.*need about 61\.8 GB of memory, 24\.0 GB are available"):
        memory.require_room(dedicated=1_000, pooled=0, spares=4, cells=4, available=24_000_000_000)
    memory.require_room(dedicated=24, pooled=0, spares=4, cells=4, available=4_000_000_000)


def test_a_thousand_pooled_partners_fit() -> None:
    memory.require_room(dedicated=0, pooled=1_000, spares=4, cells=4, available=8_000_000_000)
    with pytest.raises(RefusedError, match="1000 pooled ones"):
        memory.require_room(dedicated=0, pooled=1_000, spares=4, cells=4, available=5_000_000_000)


def test_one_more_needs_room_too() -> None:
    memory.require_room_for_more(1, 0, limits.WORKER_MEMORY_BYTES)
    memory.require_room_for_more(0, 1, limits.POOLED_PARTNER_MEMORY_BYTES)
    with pytest.raises(RefusedError, match="1 more dedicated partner"):
        memory.require_room_for_more(1, 0, limits.WORKER_MEMORY_BYTES - 1)
    with pytest.raises(RefusedError, match="1 pooled"):
        memory.require_room_for_more(0, 1, limits.POOLED_PARTNER_MEMORY_BYTES - 1)
    with pytest.raises(RefusedError):
        memory.require_room_for_more(0, 1_000, 1_000 * limits.POOLED_PARTNER_MEMORY_BYTES)


def test_a_container_may_have_less_than_its_machine(tmp_path: Path) -> None:
    machine = memory.available_bytes(tmp_path)
    assert machine > 0
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 500000\ninactive_file 300000\n")
    (tmp_path / "memory.max").write_text("1000000\n")
    assert memory.available_bytes(tmp_path) == 400_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_bytes(tmp_path) > 400_000
