"""What partners are told of operators' changes, and that it reaches them once whatever dies in between."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from actors.commands import CHANGES
from cells.api.messages import Method, RefusalCode
from control_plane import api_keys, limits
from control_plane.doors import Doors
from control_plane.errors import RefusedError
from control_plane.informing import Informer
from control_plane.notices import PROTECTIVE, notice_of
from control_plane.partners import NewPartner
from control_plane.registry import Registry
from control_plane.registry_records import Change
from tests.stand_in_door import Installation

AT = "2026-11-22T12:00:00.500Z"
ACME = NewPartner("acme", "Acme", "test", 50, 100, 256)


def change(what: str, **detail: Any) -> Change:
    return Change(7, AT, "ann", what, "acme", detail, "p")


@pytest.mark.parametrize(
    ("what", "detail", "told"),
    [
        (
            "key_added",
            {"key": "key_2", "hint": "wxyz", "others_end_at": AT},
            ("key_rotated", {"key_id": "key_2", "hint": "wxyz", "older_keys_end_at": AT}),
        ),
        ("key_added", {"key": "key_1", "hint": "wxyz"}, None),
        ("key_revoked", {"key": "key_1"}, ("key_revoked", {"key_id": "key_1"})),
        ("partner_suspended", {"status": ["active", "suspended"]}, ("suspended", {})),
        ("partner_suspended", {"status": ["onboarding", "suspended"]}, None),
        ("partner_active", {"status": ["suspended", "active"]}, ("resumed", {})),
        ("partner_active", {"status": ["onboarding", "active"]}, None),
        ("partner_limits", {"rate_burst": [1, 9]}, ("limits_changed", {"rate_burst": 9})),
        ("partner_acquirers", {"acquirers": [[], ["main", "x"]]}, ("acquirers_changed", {"acquirers": "main,x"})),
        ("partner_currencies", {"currencies": [["EUR"], []]}, ("currencies_changed", {"currencies": "all"})),
        ("partner_closing", {"due_at": AT}, ("deletion_requested", {"erased_from": AT})),
        ("partner_restored", {"status": ["closing", "active"]}, ("deletion_withdrawn", {})),
        ("partner_dedicated", {"isolation": ["pooled", "dedicated"]}, None),
    ],
)
def test_which_changes_a_partner_is_told(
    what: str, detail: dict[str, Any], told: tuple[str, dict[str, Any]] | None
) -> None:
    notice = notice_of(change(what, **detail))
    assert (None if notice is None else (notice.what, notice.detail)) == told
    if notice is not None:
        assert notice.what in CHANGES
        assert notice.at_ms == 1_795_348_800_500
        assert "ann" not in repr(notice)
        assert notice == notice_of(change(what, **detail)), "its name is the same for ever"


def test_a_protective_change_is_one_that_a_partner_is_told() -> None:
    assert PROTECTIVE <= CHANGES


class Cell:
    """The partners' actors behind a stand-in door: what each was told, as often as it was."""

    def __init__(self, installation: Installation) -> None:
        self.told: list[dict[str, Any]] = []
        self.refuse: RefusalCode | None = None
        for door in installation.doors.values():
            door.actors[Method.RECORD_CHANGE] = self._take

    def _take(self, _partner_id: str, arguments: dict[str, Any]) -> dict[str, Any] | RefusalCode:
        if self.refuse is not None:
            return self.refuse
        self.told.append(arguments)
        return {"object": "acknowledgement"}

    @property
    def whats(self) -> list[str]:
        return [arguments["what"] for arguments in self.told]


async def inform(registry: Registry, doors: Doors) -> None:
    """One round, to its end."""
    informer = Informer(registry, doors)
    await informer.tell()
    await asyncio.gather(*informer._telling.values())
    await informer.stop()


async def test_changes_are_told_in_their_order_and_once(installation: Installation) -> None:
    cell = Cell(installation)
    partners, registry, doors, _ = await installation.control_plane()
    first = await partners.create(ACME, "ann")
    assert registry.notices("acme") == [], "its first key is no change"
    assert first.key is not None
    await partners.set_status("acme", "suspended", "ann")
    rotated = await partners.rotate_key("acme", 0, "ann")
    await partners.revoke_key("acme", first.key.id, "ann")
    await inform(registry, doors)
    await inform(registry, doors)
    assert cell.whats == ["suspended", "key_rotated", "key_revoked"]
    assert rotated.key is not None
    assert cell.told[1]["detail"]["key_id"] == rotated.key.id
    assert rotated.key.text not in repr(cell.told)


async def test_who_is_not_served_now_is_told_later_also_by_a_control_plane_made_anew(
    installation: Installation,
) -> None:
    cell = Cell(installation)
    cell.refuse = RefusalCode.PARTNER_QUARANTINED
    partners, registry, doors, _ = await installation.control_plane()
    await partners.create(ACME, "ann")
    await partners.set_limits("acme", {"rate_burst": 9}, "ann")
    await inform(registry, doors)
    _, registry, doors, _ = await installation.control_plane()
    (notice,) = registry.notices("acme")
    cell.refuse = None
    await inform(registry, doors)
    assert [arguments["change_id"] for arguments in cell.told] == [notice.change_id]
    assert registry.notices("acme") == []


async def test_one_that_was_told_and_not_forgotten_is_told_again_under_the_same_name(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Cell(installation)
    partners, registry, doors, _ = await installation.control_plane()
    await partners.create(ACME, "ann")
    await partners.set_limits("acme", {"rate_burst": 9}, "ann")

    async def die(_informer: object, _told: object) -> None:
        raise RefusedError("it died")

    with monkeypatch.context() as dying:
        dying.setattr(Informer, "_forget", die)
        await inform(registry, doors)
    await inform(registry, doors)
    assert len(cell.told) == 2
    assert cell.told[0] == cell.told[1]


async def test_what_an_erased_partner_was_not_told_is_forgotten(installation: Installation) -> None:
    cell = Cell(installation)
    partners, registry, doors, _ = await installation.control_plane()
    await partners.create(ACME, "ann")
    await partners.delete("acme", 0, "ann")
    await partners.reconcile()
    assert registry.find("acme") is None
    await inform(registry, doors)
    assert cell.told == []
    assert registry.partners_to_tell() == []


async def test_a_partner_that_is_not_told_is_changed_no_more_but_for_its_protection(
    installation: Installation,
) -> None:
    partners, registry, _, _ = await installation.control_plane()
    first = await partners.create(ACME, "ann")
    for burst in range(1, limits.NOTICES_PER_PARTNER_MAX + 1):
        await registry.set_limits("acme", {"rate_burst": burst}, "ann")
    head = registry.head
    with pytest.raises(RefusedError, match="was not told yet of 32 changes"):
        await registry.add_key("acme", api_keys.make(b"p" * 32, "test", "acme"), "ann", others_end_at=datetime.now(UTC))
    assert registry.head == head
    assert first.key is not None
    await registry.revoke_key("acme", first.key.id, "ann")
    await registry.set_status("acme", "suspended", "ann")
