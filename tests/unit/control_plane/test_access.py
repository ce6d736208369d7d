"""What changes nothing and is in the audit log: the like is one entry, and nobody has more written than their share."""

from collections import Counter

import pytest

from control_plane import limits
from control_plane.access import NOBODY, OPERATOR_KEY_FAILED, READ, Access, AccessLog
from control_plane.registry import Registry
from control_plane.registry_records import ACCESSES, Change
from stores.contract import StoreUnavailableError
from stores.sqlite_store import SqliteStore
from tests.stand_in_door import Installation

WINDOW_S = limits.ACCESS_WINDOW_MS / 1_000


class Scene:
    """An access log over a registry, and its clock."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.now = 0.0
        self.log = AccessLog(registry, lambda: self.now)

    async def entries(self) -> list[Change]:
        return [entry async for entry in self.registry.audit_log() if entry.what in ACCESSES]


@pytest.fixture
async def scene(installation: Installation) -> Scene:
    _, registry, *_ = await installation.control_plane()
    return Scene(registry)


def times(entries: list[Change]) -> Counter[str]:
    counted: Counter[str] = Counter()
    for entry in entries:
        counted[entry.who] += entry.detail["times"]
    return counted


async def test_who_has_no_key_fills_no_disk_and_hides_nobody_else(scene: Scene) -> None:
    """Ten minutes of 100 bad keys a second, each from another address; an operator reads two partners meanwhile."""
    tries = 0
    for second in range(600):
        for _ in range(100):
            address = f"2001:db8::{tries:x}"
            scene.log.note(Access(NOBODY, OPERATOR_KEY_FAILED, address, f"p{tries % 40}"))
            tries += 1
        if second in {7, 500}:
            scene.log.note(Access("ann", READ, "192.0.2.1", "acme"))
        await scene.log.work()
        assert len(scene.log._counts) <= limits.ACCESS_ROWS_MAX + 3
        scene.now += 1
    scene.now += WINDOW_S
    await scene.log.work()
    entries = await scene.entries()
    strangers = [entry for entry in entries if entry.who == NOBODY]
    assert len(strangers) <= limits.ACCESS_ENTRIES_NOBODY_MAX + 600 // WINDOW_S + 1
    assert times(entries) == {NOBODY: tries, "ann": 2}, "each is counted, if not told apart"
    assert strangers[0].origin == "2001:db8::0"
    assert "others" in strangers[-1].detail
    named = strangers[-1].detail["partners"]
    assert len(named) == len(set(named)) == limits.ACCESS_PARTNERS_NAMED_MAX
    assert set(named) <= {f"p{number}" for number in range(40)}
    head = scene.registry.head
    for _ in range(3):
        scene.now += WINDOW_S
        await scene.log.work()
    assert (scene.registry.head, scene.log._counts) == (head, {}), "who is gone is forgotten"


async def test_one_operators_flood_takes_nothing_of_anothers(scene: Scene) -> None:
    for number in range(3 * limits.ACCESS_ROWS_MAX):
        scene.log.note(Access("eve", READ, "192.0.2.1", None, (("route", f"/{number}"),)))
    scene.log.note(Access("ann", READ, "192.0.2.2", "acme"))
    for _ in range(10):
        await scene.log.work()
    entries = await scene.entries()
    assert Counter(entry.who for entry in entries)["ann"] == 1
    assert Counter(entry.who for entry in entries)["eve"] <= limits.ACCESS_ENTRIES_OPERATOR_MAX
    scene.now += WINDOW_S
    await scene.log.work()
    assert times(await scene.entries())["eve"] == 3 * limits.ACCESS_ROWS_MAX


async def test_while_the_store_is_away_it_is_counted_and_written_afterwards(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise StoreUnavailableError("disk I/O error")

    with monkeypatch.context() as patched:
        patched.setattr(SqliteStore, "commit", away)
        for _ in range(5):
            scene.log.note(Access("ann", READ, "192.0.2.1", "acme"))
            await scene.log.work()
            scene.now += 1
        assert await scene.entries() == []
    await scene.log.work()
    assert times(await scene.entries()) == {"ann": 5}
