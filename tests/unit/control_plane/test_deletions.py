"""Partners that are deleted, over a stand-in door: what refuses it, the grace, and crashes between all steps."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cells.api.messages import Method, RefusalCode
from control_plane import registry_deletions, registry_moves
from control_plane.data_folder import timestamp
from control_plane.doors import Doors
from control_plane.errors import NotFoundError, RefusedError
from control_plane.move_record import Move, burial_of_arrival
from control_plane.publishing import Publisher
from tests.stand_in_door import Installation
from tests.unit.control_plane.test_partners import Crash, crashing, home, opens, published, wanted

MONTH_S = 30 * 24 * 3_600


@pytest.mark.parametrize("what", ["under_way", "held", "disputed"])
async def test_a_partner_with_something_open_is_not_deleted(installation: Installation, what: str) -> None:
    control, registry, _, _ = await installation.control_plane()
    await control.create(wanted(), "ann")
    head = registry.head
    home(installation).open = {what: 1}
    with pytest.raises(RefusedError, match="has open payments"):
        await control.delete("acme", 0, "ann")
    assert (registry.head, registry.deletion("acme")) == (head, None)


async def test_a_partner_on_a_move_or_still_onboarding_is_not_deleted(installation: Installation) -> None:
    control, registry, _, _ = await installation.control_plane()
    created = (await control.create(wanted(), "ann")).partner
    move = Move("move_1", "acme", created.cell, "cell-9", "token", "copying", 1, "ann", timestamp())
    await registry_moves.begin_move(registry, move)
    with pytest.raises(RefusedError, match="on its way to cell-9"):
        await control.delete("acme", 0, "ann")
    await registry_moves.end_move(registry, move, "partner_not_moved")
    await control.delete("acme", MONTH_S, "ann")
    await registry_moves.begin_move(
        registry, move
    )  # one that is closing may move: a cell that is drained does not wait for its grace
    with pytest.raises(RefusedError, match="on its way"):
        await registry_deletions.begin_erasing(registry, "acme", "ann")
    await registry_moves.end_move(registry, move, "partner_not_moved")
    await registry_deletions.begin_erasing(registry, "acme", "ann")
    with pytest.raises(RefusedError, match="being erased"):
        await registry_moves.begin_move(registry, move)
    await registry.begin_onboarding(replace(created, id="beta", status="onboarding"), "ann")
    with pytest.raises(RefusedError, match="still being onboarded"):
        await control.delete("beta", 0, "ann")


async def test_within_its_grace_it_reads_only_and_is_restored_as_it_was(installation: Installation) -> None:
    control, registry, _, _ = await installation.control_plane()
    key = (await control.create(wanted(), "ann")).key
    assert key is not None
    await control.set_status("acme", "suspended", "ann")
    for before in ("suspended", "active"):
        await control.set_status("acme", before, "ann")
        changed = await control.delete("acme", MONTH_S, "ann")
        assert (changed.partner.status, changed.door_behind) == ("closing", "")
        await control.reconcile()
        assert opens(installation, key.text), "it may fetch its data"
        assert published(installation).partners["acme"].status == "suspended"
        assert home(installation).profiles["acme"].status == "suspended"
        assert home(installation).count(Method.ERASE_PARTNER) == 0
        with pytest.raises(RefusedError, match="being deleted"):
            await control.set_status("acme", "active", "ann")
        again = await control.delete("acme", 0, "bob")
        assert again.partner.profile_version == changed.partner.profile_version, "said again it changes nothing"
        await control.restore("acme", "ann")
        assert (registry.partner("acme").status, registry.deletion("acme")) == (before, None)
        assert home(installation).profiles["acme"].status == before
    version = registry.partner("acme").profile_version
    await control.restore("acme", "ann")
    assert registry.partner("acme").profile_version == version


async def test_after_its_grace_nothing_is_left_but_the_log_and_its_id(installation: Installation) -> None:
    control, registry, _, _ = await installation.control_plane()
    await control.create(wanted(), "ann")
    door = home(installation)
    await control.delete("acme", 0, "ann")
    await control.reconcile()
    assert (door.books, door.profiles, registry.partners(), registry.all_keys()) == ([], {}, [], [])
    assert "acme" not in published(installation).partners
    with pytest.raises(NotFoundError, match="it was deleted at"):
        await control.restore("acme", "ann")
    _, reopened, _, _ = await installation.control_plane()
    control, registry, _, _ = await installation.control_plane()
    assert reopened.deletion("acme") == registry.deletion("acme")
    with pytest.raises(RefusedError, match="never given again"):
        await control.create(wanted(), "ann")
    assert control.check_import([(2, wanted())]).keys() == {2}
    whats = [change.what for change in await registry.changes("acme")]
    assert whats[:3] == ["partner_deleted", "partner_erasing", "partner_closing"]
    assert "key_added" in whats


async def test_what_slipped_in_before_the_end_keeps_it_until_it_has_ended(installation: Installation) -> None:
    control, registry, _, _ = await installation.control_plane()
    await control.create(wanted(), "ann")
    door = home(installation)
    await control.delete("acme", 0, "ann")
    door.open = {"held": 1}
    await control.reconcile()
    assert registry.partner("acme").status == "closing"
    assert "1 payments that are authorized" in control.deletions.waits_for("acme")
    door.open = {}
    door.profiles["acme"] = replace(door.profiles["acme"], version=1)  # its worker missed it
    door.refuse = RefusalCode.PARTNER_UNAVAILABLE
    await control.reconcile()
    assert registry.partner("acme").status == "closing"
    door.refuse = None
    installation.now += 3_600
    await control.reconcile()
    assert registry.partners() == []


async def test_a_copy_of_its_book_in_a_cell_that_is_dead_keeps_it(installation: Installation) -> None:
    control, registry, _, _ = await installation.control_plane()
    created = (await control.create(wanted(), "ann")).partner
    move = Move("move_1", "acme", created.cell, "cell-9", "token", "aborting", 1, "ann", timestamp())
    await registry_moves.begin_move(registry, move)
    await registry_moves.end_move(registry, move, "partner_not_moved", [burial_of_arrival(move)])
    await control.delete("acme", 0, "ann")
    await control.reconcile()
    assert "cell-9" in control.deletions.waits_for("acme")
    with pytest.raises(RefusedError, match="may hold a copy"):
        await registry_deletions.begin_erasing(registry, "acme", "ann")
    await registry_moves.forget_burials(registry, registry.burials())
    installation.now += 3_600
    await control.reconcile()
    assert registry.partners() == []


async def test_a_worker_that_may_still_begin_payments_keeps_it(installation: Installation) -> None:
    control, registry, _, _ = await installation.control_plane()
    await control.create(wanted(), "ann")
    await control.delete("acme", 0, "ann")
    home(installation).profiles["acme"] = replace(home(installation).profiles["acme"], version=1)
    await control.deletions.go_on("acme")
    assert registry.partner("acme").status == "closing"
    assert "has not taken" in control.deletions.waits_for("acme")


STEPS = [
    (registry_deletions, "begin_deletion"),
    (Publisher, "publish"),
    (Doors, "configure"),
    (Doors, "count_open"),
    (registry_deletions, "begin_erasing"),
    (Doors, "erase_partner"),
    (registry_deletions, "end_deletion"),
]


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(("owner", "step"), STEPS, ids=[name for _, name in STEPS])
async def test_a_deletion_goes_on_after_a_crash_at_any_step(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, owner: object, step: str, before: bool
) -> None:
    control, _, _, _ = await installation.control_plane()
    await control.create(wanted(), "ann")
    door = home(installation)
    await _crash(monkeypatch, owner, step, before, lambda: control.delete("acme", 0, "ann"))

    control, registry, _, _ = await installation.control_plane()
    await control.delete("acme", 0, "ann")
    await _crash(monkeypatch, owner, step, before, lambda: control.deletions.go_on("acme"))

    control, registry, _, _ = await installation.control_plane()
    await control.reconcile()
    await control.reconcile()
    assert (door.books, registry.partners(), registry.all_keys()) == ([], [], [])
    assert "acme" not in published(installation).partners
    deletion = registry.deletion("acme")
    assert deletion is not None
    assert deletion.state == "deleted"
    whats = [change.what for change in await registry.changes("acme")]
    assert whats[:3] == ["partner_deleted", "partner_erasing", "partner_closing"], "each once"


async def _crash(
    monkeypatch: pytest.MonkeyPatch, owner: object, step: str, before: bool, work: Callable[[], Any]
) -> None:
    """Do the work with a crash at the step, where the work comes to it."""
    with monkeypatch.context() as patched:
        patched.setattr(owner, step, crashing(getattr(owner, step), before=before))
        try:
            await work()
        except Crash:
            pass
        else:
            assert step != "publish", "each part publishes"
