"""What several tests of the cell need: workers without Ray, and one door or two over them."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cells import limits as cell_limits
from control_plane import limits
from tests.stand_in_cluster import StandInCluster, WorkerMaker
from tests.unit.cells.open_cell import OpenCell, opened
from tests.unit.cells.two_cells import Installed, installed_at


@pytest.fixture(scope="session")
def worker_maker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerMaker]:
    maker = WorkerMaker(tmp_path_factory.mktemp("workers") / "errors")
    yield maker
    maker.end()


@pytest.fixture
def cluster(worker_maker: WorkerMaker) -> Iterator[StandInCluster]:
    stand_in = StandInCluster(worker_maker)
    yield stand_in
    stand_in.end()


@pytest.fixture
def clusters(worker_maker: WorkerMaker) -> Iterator[list[StandInCluster]]:
    made = [StandInCluster(worker_maker) for _ in range(2)]
    yield made
    for cluster in made:
        cluster.end()


@pytest.fixture
async def installed(
    tmp_path: Path, clusters: list[StandInCluster], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Installed]:
    monkeypatch.setattr(limits, "MOVE_RETRY_DELAY_MS_MIN", 10)
    monkeypatch.setattr(cell_limits, "QUIESCE_LEASE_MS", 400)
    async with installed_at(tmp_path, clusters) as made:
        yield made


@pytest.fixture
async def cell(tmp_path: Path, cluster: StandInCluster) -> AsyncIterator[OpenCell]:
    async with opened(tmp_path, cluster) as made:
        yield made
