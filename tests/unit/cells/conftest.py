"""What several tests of the cell need: workers without Ray, and a door over them."""

from collections.abc import Iterator

import pytest

from tests.stand_in_cluster import StandInCluster, WorkerMaker


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
