"""How far deletions are, as the registry keeps it: closing, erasing, deleted. What they do is in deletions.py.

Each is one commit, as in registry.py, and may raise what is said there.
"""

from dataclasses import replace
from datetime import datetime

from control_plane import limits
from control_plane.data_folder import timestamp
from control_plane.errors import RefusedError
from control_plane.move_record import may_hold_copy
from control_plane.registry import Registry
from control_plane.registry_records import Deletion, Partner


async def begin_deletion(registry: Registry, partner_id: str, due_at: datetime, who: str) -> Partner:
    """Write down that a partner is to be deleted; nothing changes where that is so already."""
    async with registry.writing() as draft:
        found = registry.partner(partner_id)
        move = registry.move(partner_id)
        if move is not None:
            raise RefusedError(
                f"{partner_id} is on its way to {move.target}",
                hint=f"wait for its end, or abort it: bulkhead partner move {partner_id} --abort",
            )
        if registry.count_deletions() >= limits.DELETIONS_MAX:
            raise RefusedError(f"{limits.DELETIONS_MAX} partners were deleted here already, the most there may be")
        if registry.deletion(partner_id) is None:
            draft.put_partner(replace(found, status="closing", profile_version=found.profile_version + 1))
            due = timestamp(due_at)
            draft.put_deletion(Deletion(partner_id, "closing", found.status, who, timestamp(), due), new=True)
            detail = {"status": [found.status, "closing"], "due_at": due}
            draft.note(who, "partner_closing", partner_id, detail)
    return registry.partner(partner_id)


async def restore(registry: Registry, partner_id: str, who: str) -> Partner:
    """Take back that a partner is to be deleted; nothing changes where it is not. Raises RefusedError too late."""
    async with registry.writing() as draft:
        found, deletion = registry.partner(partner_id), registry.deletion(partner_id)
        if found.status == "erasing":
            raise RefusedError(f"{partner_id} is being erased, which goes only forward")
        if deletion is not None:
            status = deletion.status_before
            draft.put_partner(replace(found, status=status, profile_version=found.profile_version + 1))
            draft.forget_deletion(partner_id)
            draft.note(who, "partner_restored", partner_id, {"status": [found.status, status]})
    return registry.partner(partner_id)


async def begin_erasing(registry: Registry, partner_id: str, who: str) -> Partner:
    """Write down that a partner's book is erased from now on, and forget its keys: from here it goes only forward.

    Doing it again changes nothing.
    """
    async with registry.writing() as draft:
        found, deletion = registry.partner(partner_id), registry.deletion(partner_id)
        assert deletion is not None, f"{partner_id} is not being deleted"
        move = registry.move(partner_id)
        if move is not None:
            raise RefusedError(f"{partner_id} is on its way to {move.target}")
        for burial in registry.burials_of(partner_id):
            if may_hold_copy(burial):
                raise RefusedError(f"{burial.cell} may hold a copy of {partner_id}'s book, and is to remove it first")
        if found.status == "closing":
            draft.put_partner(replace(found, status="erasing"))
            draft.put_deletion(replace(deletion, state="erasing"))
            keys = registry.keys(partner_id)
            for key in keys:
                draft.forget_key(key)
            detail = {"status": [found.status, "erasing"], "keys": [key.id for key in keys]}
            draft.note(who, "partner_erasing", partner_id, detail)
    return registry.partner(partner_id)


async def end_deletion(registry: Registry, partner_id: str, who: str) -> None:
    """Write down that nothing is left of a partner but the audit log, and that its id is taken for ever."""
    async with registry.writing() as draft:
        found, deletion = registry.partner(partner_id), registry.deletion(partner_id)
        assert deletion is not None, f"{partner_id} is not being deleted"
        assert found.status == deletion.state == "erasing"
        draft.forget_partner(partner_id)
        draft.put_deletion(replace(deletion, state="deleted", ended_at=timestamp()))
        draft.note(who, "partner_deleted", partner_id, {"cell": found.cell, "asked_by": deletion.who})
