"""A whole gateway for each test that asks for one, with nothing of it left afterwards."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from chaos.gateway import Gateway
from chaos.store_choice import SQLITE, StoreChoice


@pytest.fixture
def make_gateway(tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    """Give what starts a gateway of so many cells, on SQLite or another store, and waits until it is ready."""
    made: list[Gateway] = []

    def make(
        cells: int,
        store: StoreChoice = SQLITE,
        up_arguments: Sequence[str] = (),
        *,
        second_acquirer: bool = False,
        routers: int = 1,
    ) -> Gateway:
        gateway = Gateway(
            tmp_path / f"gateway-{len(made)}",
            cells=cells,
            store=store,
            second_acquirer=second_acquirer,
            routers=routers,
            up_arguments=up_arguments,
        )
        made.append(gateway)
        gateway.start()
        gateway.wait_ready()
        return gateway

    yield make
    for gateway in made:
        gateway.kill_everything()
