"""Partners on their way out: what keeps one from being deleted, and the steps after its grace.

    begin      actor: nothing is open -> registry: closing -> directory: suspended -> door: CONFIGURE
    restore    registry: as it was -> directory -> door: CONFIGURE            (until `erasing`)
    go on      after the grace, actor: nothing is open -> registry: erasing, keys forgotten -> directory without it
               -> door: ERASE_PARTNER -> registry: deleted

Each step is written down before it is taken and can be taken again, so the reconciler goes on wherever a crash left it.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import structlog

from control_plane import registry_deletions
from control_plane.doors import Doors
from control_plane.errors import ControlPlaneError, RefusedError
from control_plane.move_record import may_hold_copy
from control_plane.registry import Registry
from control_plane.registry_records import Partner, end_of_grace

log = structlog.get_logger()

RECONCILER = "reconciler"


class Deletions:
    """The steps of all deletions. Whoever calls sees to it that a partner's are taken one after the other."""

    def __init__(self, registry: Registry, doors: Doors, publish: Callable[[], Awaitable[tuple[str, ...]]]) -> None:
        self._registry = registry
        self._doors = doors
        self._publish = publish
        self._waits_for: dict[str, str] = {}

    def waits_for(self, partner_id: str) -> str:
        """Say why a deletion does not go on though its grace is over; empty where nothing keeps it."""
        return self._waits_for.get(partner_id, "")

    async def begin(self, partner_id: str, grace_s: int, who: str) -> Partner:
        """Write down that a partner is to be deleted. Raises RefusedError where something is open, DoorError."""
        partner = self._registry.partner(partner_id)
        if self._registry.deletion(partner_id) is None and self._registry.move(partner_id) is None:
            found = await self._doors.count_open(partner.cell, partner_id)
            if found.any:
                raise RefusedError(
                    f"{partner_id} has open payments: {found.described()}",
                    where=f"{partner_id}'s book in {partner.cell}",
                    hint="let it capture or void what it holds, and wait for the rest; then ask again",
                )
        return await registry_deletions.begin_deletion(self._registry, partner_id, end_of_grace(grace_s), who)

    async def restore(self, partner_id: str, who: str) -> Partner:
        """Take a deletion back. Raises RefusedError where it is too late."""
        partner = await registry_deletions.restore(self._registry, partner_id, who)
        self._waits_for.pop(partner_id, None)
        return partner

    async def go_on(self, partner_id: str) -> None:
        """Take the steps that are due. Raises ControlPlaneError, after which they are tried again."""
        partner = self._registry.partner(partner_id)
        deletion = self._registry.deletion(partner_id)
        assert deletion is not None
        if partner.status == "closing":
            if datetime.now(UTC) < datetime.fromisoformat(deletion.due_at):
                return
            try:
                why = await self._why_not_yet(partner)
            except ControlPlaneError as error:
                self._waits_for[partner_id] = error.what
                raise
            if why:
                if self._waits_for.get(partner_id) != why:
                    log.warning("partner_not_erased", partner=partner_id, why=why)
                self._waits_for[partner_id] = why
                return
            partner = await registry_deletions.begin_erasing(self._registry, partner_id, RECONCILER)
        self._waits_for.pop(partner_id, None)
        await self._publish()  # routers forget it before its cell does
        await self._doors.erase_partner(partner.cell, partner_id, partner.profile_version)
        await registry_deletions.end_deletion(self._registry, partner_id, RECONCILER)
        log.info("partner_deleted", partner=partner_id, cell=partner.cell)

    async def _why_not_yet(self, partner: Partner) -> str:
        """Say what keeps a partner; only under the profile that lets nothing begin is the answer for good."""
        move = self._registry.move(partner.id)
        if move is not None:
            return f"it is on its way to {move.target}"
        copies = [burial.cell for burial in self._registry.burials_of(partner.id) if may_hold_copy(burial)]
        if copies:
            return f"{copies[0]}, which gives no answer, may hold a copy of its book: bring it back, or remove it"
        found = await self._doors.count_open(partner.cell, partner.id)
        if found.profile_version < partner.profile_version:
            return "its worker has not taken yet that it is closing"
        return found.described() if found.any else ""
