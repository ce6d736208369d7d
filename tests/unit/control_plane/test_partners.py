"""Partners through a scripted stand-in for their door (tests/stand_in_door.py), with crashes between all steps."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cells.api.messages import Method, RefusalCode
from control_plane import limits, partners
from control_plane.doors import Doors
from control_plane.errors import (
    ControlPlaneError,
    DoorError,
    NotFoundError,
    RefusedError,
    RegistryError,
    RegistryLostError,
    SettingsError,
)
from control_plane.partners import NewPartner
from control_plane.publishing import Publisher
from control_plane.registry import Registry
from control_plane.settings import Settings
from control_plane.up import require_acquirers
from router import directory
from stores.contract import StoreUnavailableError
from stores.sqlite_store import SqliteStore
from tests.stand_in_door import Installation, StandInDoor


def wanted(partner_id: str = "acme", **fields: Any) -> NewPartner:
    known = {"name": "Acme", "mode": "test", "rate_per_second": 50, "rate_burst": 100, "in_flight_max": 256}
    return NewPartner(id=partner_id, **{**known, **fields})


def published(installation: Installation) -> directory.Directory:
    return installation.directory()


def home(installation: Installation, partner_id: str = "acme") -> StandInDoor:
    cell = published(installation).cell_of(partner_id)
    assert cell is not None
    return installation.doors[cell.name]


def opens(installation: Installation, key: str, partner_id: str = "acme") -> bool:
    """Whether a router would let this key in now."""
    hashed = directory.hash_key(installation.folder.pepper_file.read_bytes(), key)
    now = datetime.now(UTC)
    found = published(installation).partners[partner_id].keys
    return any(record.hash == hashed and (record.expires_at is None or record.expires_at > now) for record in found)


async def test_a_partner_is_onboarded_then_published_then_its_key_is_given(installation: Installation) -> None:
    control, registry, _, _ = await installation.control_plane()
    created = await control.create(wanted(rate_burst=7), "ann")
    assert created.key is not None
    assert opens(installation, created.key.text)
    door = home(installation)
    assert door.cell == created.partner.cell
    assert door.books == ["acme"]
    assert door.profiles["acme"].rate_burst == 7
    assert door.profiles["acme"].version == registry.partner("acme").profile_version == 1
    assert published(installation).partners["acme"].rate_burst == 7
    others = [other for other in installation.doors.values() if other is not door]
    assert all(not other.books for other in others)


class Crash(BaseException):
    """The control plane dies here: nothing after it runs."""


def crashing(method: Callable[..., Any], *, before: bool) -> Callable[..., Any]:
    async def crash(*arguments: Any, **options: Any) -> Any:
        if not before:
            await method(*arguments, **options)
        raise Crash

    return crash


STEPS = [
    (Registry, "begin_onboarding"),
    (Doors, "onboard"),
    (Registry, "activate"),
    (Registry, "add_key"),
    (Publisher, "publish"),
]


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(("owner", "step"), STEPS, ids=[name for _, name in STEPS])
async def test_onboarding_goes_on_after_a_crash_at_any_step(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, owner: type, step: str, before: bool
) -> None:
    control, _, _, _ = await installation.control_plane()
    with monkeypatch.context() as patched:
        patched.setattr(owner, step, crashing(getattr(owner, step), before=before))
        with pytest.raises(Crash):
            await control.create(wanted(), "ann")

    control, registry, _, publisher = await installation.control_plane()
    await publisher.publish()
    await control.reconcile()
    if registry.keys("acme"):
        # The key was made but never shown: a new one takes its place, and nothing else is done again.
        assert step == "publish" or (step == "add_key" and not before)
        with pytest.raises(RefusedError) as refused:
            await control.create(wanted(), "ann")
        assert "rotate-key acme --grace 0" in refused.value.hint
        key = (await control.rotate_key("acme", 0, "ann")).key
    else:
        key = (await control.create(wanted(), "ann")).key
    assert key is not None
    assert opens(installation, key.text)
    assert len(published(installation).partners["acme"].keys) == 1, "a key that nobody saw opens nothing"
    assert home(installation).books == ["acme"]
    assert registry.partner("acme").status == "active"


async def test_an_onboarding_that_stopped_is_finished_without_being_asked(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    control, _, _, _ = await installation.control_plane()
    with monkeypatch.context() as patched:
        patched.setattr(Doors, "onboard", crashing(Doors.onboard, before=True))
        with pytest.raises(Crash):
            await control.create(wanted(), "ann")
    control, registry, _, publisher = await installation.control_plane()
    await publisher.publish()
    assert "acme" not in published(installation).partners, "no router knows a partner without a book"
    await control.reconcile()
    assert registry.partner("acme").status == "active"
    assert published(installation).partners["acme"].keys == ()
    created = await control.create(wanted(), "ann")
    assert created.key is not None
    assert opens(installation, created.key.text)


async def test_a_lost_book_is_never_replaced_by_an_empty_one(installation: Installation) -> None:
    control, _, _, _ = await installation.control_plane()
    await control.create(wanted(), "ann")
    door = home(installation)
    door.books.clear()  # the cell's disk is gone, and a fresh door stands in its place
    door.profiles.clear()
    door.asked.clear()
    for _ in range(3):
        await control.reconcile()
        installation.now += limits.CONFIGURE_RETRY_DELAY_MS_MAX / 1000
    with pytest.raises(RefusedError, match="exists already"):
        await control.create(wanted(), "ann")
    await control.set_limits("acme", {"rate_burst": 9}, "ann")
    assert door.count(Method.ONBOARD) == 0
    assert door.count(Method.CONFIGURE) == 4
    assert door.books == []


async def test_a_door_that_is_behind_is_configured_until_it_is_not(installation: Installation) -> None:
    control, registry, _, _ = await installation.control_plane()
    await control.create(wanted(), "ann")
    door = home(installation)
    door.refuse = RefusalCode.PARTNER_UNAVAILABLE
    changed = await control.set_limits("acme", {"rate_per_second": 5}, "ann")
    assert "partner_unavailable" in changed.door_behind
    assert published(installation).partners["acme"].rate_per_second == 5, "routers know at once"
    assert door.profiles["acme"].rate_per_second == 50
    door.refuse = None
    await control.reconcile()
    assert door.profiles["acme"].rate_per_second == 5
    asked = door.count(Method.CONFIGURE)
    await control.reconcile()
    assert door.count(Method.CONFIGURE) == asked, "a door that is not behind is left alone"
    assert registry.partner("acme").profile_version == door.profiles["acme"].version == 2


async def test_a_door_that_keeps_refusing_is_asked_ever_less(installation: Installation) -> None:
    control, _, _, _ = await installation.control_plane()
    await control.create(wanted(), "ann")
    door = home(installation)
    door.refuse = RefusalCode.PARTNER_UNAVAILABLE
    await control.set_limits("acme", {"rate_per_second": 5}, "ann")
    door.asked.clear()
    minutes = 30
    for _ in range(minutes * 60 * 1000 // limits.RECONCILE_INTERVAL_MS // 10):
        await control.reconcile()
        installation.now += 10 * limits.RECONCILE_INTERVAL_MS / 1000
    at_most = minutes * 60_000 // limits.CONFIGURE_RETRY_DELAY_MS_MAX + 7
    assert 5 < door.count(Method.CONFIGURE) <= at_most


async def test_one_dead_door_keeps_no_other_cell_waiting(installation: Installation) -> None:
    control, _, _, _ = await installation.control_plane()
    by_cell: dict[str, str] = {}
    for index in range(20):
        created = await control.create(wanted(f"partner_{index}"), "ann")
        by_cell.setdefault(created.partner.cell, created.partner.id)
    assert set(by_cell) == {"cell-0", "cell-1"}
    await installation.servers[0].aclose()
    changed = await control.set_limits(by_cell["cell-1"], {"rate_burst": 9}, "ann")
    assert changed.door_behind == ""
    behind = await control.set_limits(by_cell["cell-0"], {"rate_burst": 9}, "ann")
    assert "cell-0's door" in behind.door_behind
    await control.reconcile()  # raises nothing


async def test_a_registry_from_a_backup_takes_the_lead_again(installation: Installation) -> None:
    control, registry, _, _ = await installation.control_plane()
    await control.create(wanted(), "ann")
    door = home(installation)
    door.profiles["acme"] = partners.to_profile(await registry.raise_profile_version("acme", 7))
    control, registry, _, _ = await installation.control_plane()
    registry._held.partners["acme"] = replace(registry.partner("acme"), profile_version=2, rate_burst=3)
    await control.reconcile()
    assert door.profiles["acme"].rate_burst == 3
    assert door.profiles["acme"].version == registry.partner("acme").profile_version == 9


async def test_suspending_and_resuming_reach_router_and_door(installation: Installation) -> None:
    control, _, _, _ = await installation.control_plane()
    await control.create(wanted(), "ann")
    await control.set_status("acme", "suspended", "ann")
    assert published(installation).partners["acme"].status == "suspended"
    assert home(installation).profiles["acme"].status == "suspended"
    await control.set_status("acme", "active", "ann")
    assert published(installation).partners["acme"].status == "active"
    assert home(installation).profiles["acme"].status == "active"


async def test_a_rotated_key_stays_good_for_its_grace(installation: Installation) -> None:
    control, _, _, _ = await installation.control_plane()
    first = (await control.create(wanted(), "ann")).key
    second = (await control.rotate_key("acme", 3_600, "ann")).key
    assert first is not None
    assert second is not None
    assert opens(installation, first.text)
    assert opens(installation, second.text)
    ends = {key.id: key.expires_at for key in published(installation).partners["acme"].keys}
    end = ends[first.id]
    assert end is not None
    assert timedelta(minutes=59) < end - datetime.now(UTC) <= timedelta(minutes=60)
    third = (await control.rotate_key("acme", 0, "ann")).key
    assert third is not None
    assert [opens(installation, key.text) for key in (first, second, third)] == [False, False, True]


async def test_a_revoked_key_opens_nothing(installation: Installation) -> None:
    control, _, _, _ = await installation.control_plane()
    key = (await control.create(wanted(), "ann")).key
    assert key is not None
    await control.revoke_key("acme", key.id, "ann")
    assert not opens(installation, key.text)
    with pytest.raises(NotFoundError):
        await control.revoke_key("acme", "key_0", "ann")


async def test_another_partner_under_the_same_id_is_refused(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    control, _, _, _ = await installation.control_plane()
    with monkeypatch.context() as patched:
        patched.setattr(Doors, "onboard", crashing(Doors.onboard, before=True))
        with pytest.raises(Crash):
            await control.create(wanted(), "ann")
    with pytest.raises(RefusedError, match="another mode: 'test'"):
        await control.create(wanted(mode="live"), "ann")


async def test_a_door_that_is_away_is_said_and_the_partner_stays_onboarding(installation: Installation) -> None:
    control, registry, _, _ = await installation.control_plane()
    for door in installation.doors.values():
        door.refuse = RefusalCode.PARTNER_UNAVAILABLE
    with pytest.raises(RefusedError, match="partner_unavailable"):
        await control.create(wanted(), "ann")
    for server in installation.servers:
        await server.aclose()
    limits_at_once = {"DOOR_CONNECT_TIMEOUT_MS": 10}
    with pytest.MonkeyPatch.context() as patched:
        for name, value in limits_at_once.items():
            patched.setattr(limits, name, value)
        with pytest.raises(DoorError, match="not onboarded yet"):
            await control.create(wanted(), "ann")
    assert registry.partner("acme").status == "onboarding"
    with pytest.raises(RefusedError, match="still being onboarded"):
        await control.set_status("acme", "suspended", "ann")
    with pytest.raises(RefusedError, match="still being onboarded"):
        await control.rotate_key("acme", 0, "ann")


async def test_a_partner_that_does_not_fit_is_not_begun(installation: Installation) -> None:
    _, registry, client, publisher = await installation.control_plane()

    def refuse(_dedicated: int, _pooled: int) -> None:
        raise RefusedError("no room")

    control = partners.Partners(registry, client, publisher, b"p" * 32, require_room=refuse)
    with pytest.raises(RefusedError, match="no room"):
        await control.create(wanted(), "ann")
    assert registry.partners() == []


async def test_a_change_that_is_written_down_but_not_published_is_said_to_be(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    control, registry, _, _ = await installation.control_plane()
    await control.create(wanted(), "ann")

    async def away(*_: object) -> int:
        raise RegistryError("the registry can't be used: disk full")

    with monkeypatch.context() as patched:
        patched.setattr(Registry, "take_directory_version", away)
        with pytest.raises(ControlPlaneError, match="is written down, but routers don't know of it yet"):
            await control.set_status("acme", "suspended", "ann")
        await control.reconcile()  # logs it and goes on
    assert registry.partner("acme").status == "suspended"
    assert published(installation).partners["acme"].status == "active"
    await control.reconcile()
    assert published(installation).partners["acme"].status == "suspended"
    assert home(installation).profiles["acme"].status == "suspended"


async def test_reconciling_goes_on_from_memory_while_the_registrys_store_is_away(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    control, registry, _, _ = await installation.control_plane()
    await control.create(wanted(), "ann")
    home(installation).refuse = RefusalCode.PARTNER_UNAVAILABLE
    await control.set_limits("acme", {"rate_burst": 9}, "ann")
    home(installation).refuse = None

    async def away(*_: object) -> None:
        raise StoreUnavailableError("gone")

    with monkeypatch.context() as patched:
        patched.setattr(SqliteStore, "read", away)
        patched.setattr(SqliteStore, "commit", away)
        await control.reconcile()
    assert home(installation).profiles["acme"].rate_burst == 9
    assert registry.lost is None


async def test_one_that_was_taken_over_changes_nothing_any_more(installation: Installation) -> None:
    control, registry, _, _ = await installation.control_plane()
    await control.create(wanted(), "ann")
    newer, _, _, _ = await installation.control_plane()
    with pytest.raises(RegistryLostError):
        await control.set_status("acme", "suspended", "ann")
    await control.reconcile()  # raises nothing: the supervisor sees `lost`
    assert registry.lost is not None
    assert (await newer.set_status("acme", "suspended", "ann")).partner.profile_version == 2


async def test_isolation_is_a_profile_s_and_to_be_pooled_ends_being_kept_apart(installation: Installation) -> None:
    control, registry, _, _ = await installation.control_plane()
    await control.create(wanted(), "ann")
    pooled = await control.set_isolation("acme", "pooled", "ann")
    assert (pooled.partner.isolation, pooled.partner.profile_version, pooled.door_behind) == ("pooled", 2, "")
    (door,) = [door for door in installation.doors.values() if "acme" in door.profiles]
    assert (door.profiles["acme"].isolation, door.released) == ("pooled", [("acme", True)])
    again = await control.set_isolation("acme", "pooled", "ann")  # it may be kept apart all the same
    assert (again.partner.profile_version, len(door.released)) == (2, 2)
    assert (await control.set_isolation("acme", "dedicated", "ann")).partner.profile_version == 3
    await control.release("acme", "ann")
    assert door.released[2:] == [("acme", False)]
    changes = [change.what for change in await registry.changes("acme")]
    assert changes[:3] == ["partner_released", "partner_dedicated", "partner_pooled"]


async def test_acquirers_reach_the_door_with_a_newer_profile_and_unknown_ones_are_refused(
    installation: Installation,
) -> None:
    control, registry, _, _ = await installation.control_plane()
    await control.create(wanted(), "ann")
    await control.set_acquirers("acme", ("main", "second"), "ann")
    assert registry.partner("acme").profile_version == 2
    assert home(installation).profiles["acme"].acquirers == ("main", "second")
    await control.set_acquirers("acme", ("main", "second"), "ann")
    assert registry.partner("acme").profile_version == 2
    for names in (("main", "third"), ("main", "main")):
        with pytest.raises(RefusedError) as refused:
            await control.set_acquirers("acme", names, "ann")
        assert "main, second" in refused.value.hint
    with pytest.raises(RefusedError):
        await control.create(wanted("other", acquirers=("third",)), "ann")
    with pytest.raises(SettingsError, match=r"acme.*second"):
        require_acquirers(Settings(), registry.partners())
    require_acquirers(Settings(second_acquirer_port=8091), registry.partners())


async def test_a_live_partner_never_meets_a_simulator(installation: Installation) -> None:
    installation.simulators = ("main",)
    control, registry, _, _ = await installation.control_plane()
    for acquirers in ((), ("main",), ("second", "main")):
        with pytest.raises(RefusedError, match="'main' is a simulator"):
            await control.create(wanted(mode="live", acquirers=acquirers), "ann")
    assert registry.partners() == []
    key = (await control.create(wanted(mode="live", acquirers=("second",)), "ann")).key
    assert key is not None
    for acquirers in ((), ("main",), ("second", "main")):
        with pytest.raises(RefusedError, match="'main' is a simulator"):
            await control.set_acquirers("acme", acquirers, "ann")
    assert registry.partner("acme").acquirers == ("second",)
    simulated = Settings(second_acquirer_port=8091)
    with pytest.raises(SettingsError, match="'acme' is live, and its acquirer 'second' is a simulator"):
        require_acquirers(simulated, registry.partners())
    require_acquirers(Settings(acquirers={"second": "https://bank.example"}), registry.partners())
