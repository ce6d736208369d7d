"""Many partners at once, through stand-in doors: each can pay when it is told of, and a crash loses none."""

from typing import Any

import pytest

from cells.api.messages import RefusalCode
from control_plane import limits
from control_plane.doors import Doors
from control_plane.errors import RefusedError
from control_plane.importing import Imported
from control_plane.partners import NewPartner, Partners
from control_plane.publishing import Publisher
from control_plane.registry import Registry
from tests.stand_in_door import Installation
from tests.unit.control_plane.test_partners import Crash, crashing, opens, published, wanted


def rows(count: int, **fields: Any) -> list[tuple[int, NewPartner]]:
    return [(number + 2, wanted(f"shop_{number}", **fields)) for number in range(count)]


async def run(control: Partners, wanted_rows: list[tuple[int, NewPartner]], **statuses: str) -> list[Imported]:
    assert control.check_import(wanted_rows) == {}
    return [one async for one in control.import_all(wanted_rows, statuses, "ann")]


async def test_each_opens_the_door_when_it_is_told_of(installation: Installation) -> None:
    control, registry, _, publisher = await installation.control_plane()
    asked = rows(40)
    lines = set()
    async for one in control.import_all(asked, {}, "ann"):
        assert one.key is not None
        assert opens(installation, one.key.text, one.partner.id)
        assert one.partner.id in installation.doors[one.partner.cell].books
        lines.add(one.line)
    assert lines == {line for line, _ in asked}
    assert {partner.status for partner in registry.partners()} == {"active"}
    assert publisher.version < len(asked) / 2, "many share a directory"


async def test_asked_again_it_changes_nothing_and_shows_no_key(installation: Installation) -> None:
    control, registry, _, _ = await installation.control_plane()
    await run(control, rows(3))
    before = registry.all_keys()
    again = await run(control, rows(4))
    assert sorted(one.line for one in again if one.key is None) == [2, 3, 4]
    assert [one.line for one in again if one.key is not None] == [5]
    assert [key for key in registry.all_keys() if key.partner_id != "shop_3"] == before


async def test_a_suspended_one_is_onboarded_and_kept_out(installation: Installation) -> None:
    control, registry, _, _ = await installation.control_plane()
    await run(control, rows(2), shop_1="suspended")
    assert [partner.status for partner in registry.partners()] == ["active", "suspended"]
    assert published(installation).partners["shop_1"].status == "suspended"
    await control.reconcile()
    cell = installation.doors[registry.partner("shop_1").cell]
    assert cell.profiles["shop_1"].status == "suspended"


async def test_rows_that_can_not_be_are_told_by_line(installation: Installation) -> None:
    control, _, _, _ = await installation.control_plane()
    await run(control, rows(1))
    asked = [(2, wanted("shop_0", rate_burst=1)), (3, wanted("other", acquirers=("third",))), (4, wanted("good"))]
    wrong = control.check_import(asked)
    assert sorted(wrong) == [2, 3]
    assert "rate_burst" in wrong[2]
    assert "third" in wrong[3]


async def test_more_than_an_installation_takes_are_refused(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    control, _, _, _ = await installation.control_plane()
    monkeypatch.setattr(limits, "PARTNERS_MAX", 4)
    with pytest.raises(RefusedError):
        control.check_import(rows(5))


async def test_a_door_that_refuses_costs_its_rows_only_until_it_is_asked_again(installation: Installation) -> None:
    control, registry, _, publisher = await installation.control_plane()
    away = publisher.place("shop_0")
    installation.doors[away].refuse = RefusalCode.PARTNER_UNAVAILABLE
    told = await run(control, rows(12))
    assert {one.partner.cell for one in told if one.why} == {away}
    assert all(one.partner.cell != away for one in told if one.key is not None)
    assert any(one.key is not None for one in told)
    installation.doors[away].refuse = None
    again = await run(control, rows(12))
    assert {one.line for one in again if one.key is not None} == {one.line for one in told if one.why}
    assert len(registry.all_keys()) == 12


STEPS = [(Registry, "begin_onboardings"), (Doors, "onboard"), (Registry, "admit"), (Publisher, "publish")]


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(("owner", "step"), STEPS, ids=[name for _, name in STEPS])
async def test_it_goes_on_after_a_crash_at_any_step(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, owner: type, step: str, before: bool
) -> None:
    control, _, _, _ = await installation.control_plane()
    with monkeypatch.context() as patched:
        patched.setattr(owner, step, crashing(getattr(owner, step), before=before))
        with pytest.raises((Crash, BaseExceptionGroup)):
            await run(control, rows(5))
    control, registry, _, _ = await installation.control_plane()
    await control.reconcile()
    told = await run(control, rows(5))
    assert len(told) == 5
    for one in told:
        key = one.key or (await control.rotate_key(one.partner.id, 0, "ann")).key
        assert key is not None
        assert opens(installation, key.text, one.partner.id)
        assert installation.doors[one.partner.cell].books.count(one.partner.id) == 1
    assert {partner.status for partner in registry.partners()} == {"active"}


async def test_who_stops_listening_stops_it_and_the_rest_is_finished(installation: Installation) -> None:
    control, registry, _, _ = await installation.control_plane()
    told = control.import_all(rows(30), {}, "ann")
    async for _ in told:
        break
    await told.aclose()
    await control.reconcile()
    assert {partner.status for partner in registry.partners()} == {"active"}
    assert len(await run(control, rows(30))) == 30
