"""What a shelf tells of itself, as gauges: asked beside everything, and never in its way."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from actors.store import Store
from cells import limits
from cells.shelf_health import ShelfHealth
from stores.health import Sample
from stores.sqlite_shelf import SqliteShelf
from tests.eventually import eventually

WELL = (
    Sample("place_reachable", "Whether it told.", 1.0),
    Sample("place_disks", "Its disks.", 2.0, {"state": "good"}),
    Sample("place_disks", "Its disks.", 1.0, {"state": "bad"}),
)
GONE = (Sample("place_reachable", "Whether it told.", 0.0),)


class StandInShelf:
    """A shelf that tells what it is told to tell."""

    def __init__(self) -> None:
        self.tells: Sequence[Sample] | Exception = WELL
        self.asked = 0

    async def create(self, *name: str) -> None: ...

    async def open(self, *name: str) -> Store:
        raise NotImplementedError

    async def wait_answers(self) -> None: ...

    async def names(self, folder: str) -> list[str]:
        raise NotImplementedError

    async def health(self) -> Sequence[Sample]:
        self.asked += 1
        if isinstance(self.tells, Exception):
            raise self.tells
        return self.tells


class Served:
    """What a scrape gives, by name and label values."""

    def __init__(self, health: ShelfHealth) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(health)

    def now(self) -> dict[tuple[str, ...], float]:
        text = generate_latest(self._registry).decode()
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> StandInShelf:
    monkeypatch.setattr(limits, "SHELF_HEALTH_DELAY_MS", 10)
    return StandInShelf()


@pytest.fixture
async def served(shelf: StandInShelf) -> AsyncIterator[Served]:
    health = ShelfHealth(shelf)
    served = Served(health)  # registered before it knows anything, as the door does
    health.start()
    yield served
    health.stop()


async def test_what_it_tells_is_served_and_replaced(shelf: StandInShelf, served: Served) -> None:
    await eventually(lambda: bool(served.now()))
    assert served.now() == {
        ("bulkhead_place_reachable",): 1,
        ("bulkhead_place_disks", "good"): 2,
        ("bulkhead_place_disks", "bad"): 1,
    }
    shelf.tells = GONE
    await eventually(lambda: len(served.now()) == 1)
    assert served.now() == {("bulkhead_place_reachable",): 0}


async def test_a_bug_of_its_leaves_no_old_news_and_ends_nothing(shelf: StandInShelf, served: Served) -> None:
    await eventually(lambda: bool(served.now()))
    shelf.tells = ValueError("a bug")
    await eventually(lambda: not served.now())
    shelf.tells = GONE
    await eventually(lambda: bool(served.now()))


async def test_a_shelf_that_has_nothing_to_tell_is_asked_once(tmp_path: Path, shelf: StandInShelf) -> None:
    assert await SqliteShelf(tmp_path).health() == ()
    shelf.tells = ()
    health = ShelfHealth(shelf)
    health.start()
    await asyncio.sleep(0.02)
    assert shelf.asked == 1
    assert Served(health).now() == {}
