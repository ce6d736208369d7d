"""What a door says by itself, and how it reads profiles. Bytes in and out; who owns which partner is in door.py."""

import re
from datetime import UTC, datetime
from typing import Any, Final

import msgpack
import orjson
import structlog

from cells import limits
from cells.api import messages, moves
from cells.api.connection import Request
from cells.api.messages import Answer, Profile, Refusal, RefusalCode, Refused
from cells.api.moves import Receipt
from cells.escalation import Escalation

log = structlog.get_logger()

_PARTNER_ID: Final = re.compile(r"[a-z0-9_]{1,40}")


def kept_profile(partner_id: str, value: bytes) -> Profile:
    """Read a profile that the cell's book keeps. One that can't be read costs its partner's writes, not the cell.

    Version 0 is older than any, so the control plane hands the right one over as soon as it looks.
    """
    try:
        profile = messages.decode_profile(msgpack.unpackb(value))
        if profile.partner_id == partner_id:
            return profile
        error = f"it is of {profile.partner_id!r}"
    except (messages.MessageError, ValueError) as found:
        error = str(found)
    log.error("profile_unreadable", partner=partner_id, error=error)
    return Profile(partner_id, 0, status="suspended")


def profile_of(request: Request) -> Profile:
    """Read the profile that a request of the control plane carries. Raises MessageError."""
    try:
        fields = msgpack.unpackb(request.body)["profile"]
    except (KeyError, TypeError, ValueError) as error:
        raise messages.MessageError(f"there is no profile in it ({error!r})") from error
    profile = messages.decode_profile(fields)
    if not _PARTNER_ID.fullmatch(profile.partner_id):  # it becomes a file's name
        raise messages.MessageError(f"{profile.partner_id!r} is no partner's id")
    return profile


def wants_pool(request: Request) -> bool:
    """Read whether a partner is released to go to a pool. Raises MessageError."""
    try:
        found = msgpack.unpackb(request.body)["to_pool"]
    except (KeyError, TypeError, ValueError) as error:
        raise messages.MessageError(f"there is no to_pool in it ({error!r})") from error
    if not isinstance(found, bool):
        raise messages.MessageError(f"to_pool can't be {found!r:.40}")
    return found


def ok(fields: dict[str, Any]) -> bytes:
    """Say that it was done."""
    return messages.encode_answer(Answer(200, orjson.dumps({"ok": True, **fields})))


def refused(code: RefusalCode, detail: str, retry_after_ms: int | None = None) -> bytes:
    """Refuse."""
    return messages.encode_answer(Refused(Refusal(code, detail, retry_after_ms=retry_after_ms)))


def not_here(partner_id: str, cell: str) -> bytes:
    """Say that a partner was never of this cell."""
    return refused(RefusalCode.PARTNER_MOVED, f"{partner_id} is not of cell {cell}.")


def moved(receipt: Receipt, *, is_tried: bool = False) -> bytes:
    """Tell where a partner went, with the proof that opens its book there. Routers read it, partners never see it.

    `is_tried`: the command may have been written before the partner left.
    """
    context: dict[str, str | int] = {
        "to": receipt.to,
        "epoch": receipt.epoch,
        "receipt": moves.encode_receipt(receipt).hex(),
        "tried": int(is_tried),
    }
    refusal = Refusal(RefusalCode.PARTNER_MOVED, "The partner moved to another cell.", context=context)
    return messages.encode_answer(Refused(refusal))


def unavailable(why: str) -> bytes:
    """Say that nothing was written, and why."""
    detail = "The partner can't be served now; nothing was written."
    return refused(RefusalCode.PARTNER_UNAVAILABLE, f"{detail} {why}".strip(), 1_000)


def partner_quarantined(found: Escalation) -> bytes:
    """Refuse whatever a partner asks that is executed no more, and say why and since when."""
    since = datetime.fromtimestamp(found.since_ms / 1_000, UTC).isoformat(timespec="seconds")
    detail = f"Nothing of this partner is executed since {since}, until an operator releases it: {found.why}."
    return refused(RefusalCode.PARTNER_QUARANTINED, detail, limits.QUARANTINE_RETRY_AFTER_MS)


def quarantined() -> bytes:
    """Refuse a command that ended its worker twice."""
    return refused(RefusalCode.COMMAND_QUARANTINED, "This command ended its worker twice; it is not tried again.")


def overloaded() -> bytes:
    """Shed a command."""
    detail = "The partner's cell has too much to do, so this was not looked at. Its idempotency key is free: try again."
    return refused(RefusalCode.CELL_OVERLOADED, detail, limits.SHED_RETRY_AFTER_MS)


def says_nothing_done(body: bytes) -> bool:
    """Say whether a worker wrote nothing: true of its own try, and not known of the one that was lost before."""
    answer = messages.decode_answer(body)
    return isinstance(answer, Refused) and answer.refusal.code in messages.UNTOUCHED


def outcome_unknown() -> bytes:
    """Say that nobody knows; never a success, never a failure."""
    detail = "It is not known whether this was done; ask again with the same idempotency key."
    return refused(RefusalCode.OUTCOME_UNKNOWN, detail, 1_000)
