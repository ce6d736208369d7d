"""What may be read of a partner: payments, refunds, balance, events, unknown operations. Reads commit nothing.

Pages go from new to old. A list with a filter that has no index of its own looks at a bounded number of rows.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from actors import codec, keyspace, limits, settlement_queries, views
from actors.answers import Answer, Refused
from actors.events import OperationReconciled
from actors.ids import created_range
from actors.partner import PartnerActor
from actors.payment import OperationState, Payment, PaymentStatus
from actors.refusals import Refusal, RefusalCode
from actors.settlement import needs_person
from actors.store import Key, Range

_PAYMENT_ID = re.compile(r"pay_[0-9A-HJKMNP-TV-Z]{26}")
_EVENT_ID = re.compile(r"evt_(\d{16})(\d{4})")
_ROUNDS_MAX = limits.PAGE_ROWS_SCANNED_MAX // limits.PAGE_ROWS_MAX

Arguments = Mapping[str, Any]


async def query(actor: PartnerActor, method: str, arguments: Arguments) -> Answer | Refused:
    """Answer a read. Raises StoreError, and ValueError for a method or arguments that are none."""
    match method:
        case "get_payment":
            return await _get_payment(actor, str(arguments["payment_id"]))
        case "list_payments":
            return await _list_payments(actor, arguments)
        case "get_refund":
            return await _get_refund(actor, str(arguments["refund_id"]))
        case "get_balance":
            return Answer(200, views.render_balance(actor.standing.balances), rate=actor.rate_state())
        case "list_events":
            return await _list_events(actor, arguments)
        case "list_unknown":
            return await _list_unknown(actor)
        case "compare_settlement":
            return await settlement_queries.compare(actor, arguments)
        case "list_unreconciled":
            return await settlement_queries.list_unreconciled(actor, arguments)
        case _:
            raise ValueError(f"{method!r} reads nothing")


async def _get_payment(actor: PartnerActor, payment_id: str) -> Answer | Refused:
    payment = await actor.payment(payment_id)
    if payment is None:
        return _refused(RefusalCode.PAYMENT_NOT_FOUND, f"There is no payment {payment_id}.")
    return Answer(200, views.render_payment(payment, actor.profile.mode), rate=actor.rate_state())


async def _get_refund(actor: PartnerActor, refund_id: str) -> Answer | Refused:
    named = (await actor.store.read([keyspace.refund(refund_id)])).values[0]
    payment = None if named is None else await actor.payment(codec.decode_text(named))
    if payment is None:
        return _refused(RefusalCode.REFUND_NOT_FOUND, f"There is no refund {refund_id}.")
    return Answer(200, views.render_refund(payment, payment.operation(refund_id)), rate=actor.rate_state())


async def _list_payments(actor: PartnerActor, arguments: Arguments) -> Answer | Refused:
    limit = _limit(arguments)
    low, high = created_range("pay", arguments.get("created_from_ms"), arguments.get("created_before_ms"))
    cursor = arguments.get("starting_after")
    if cursor is not None:
        if not _PAYMENT_ID.fullmatch(cursor):
            return _refused(RefusalCode.CURSOR_INVALID, f"{cursor!r} is no payment's id.", "/starting_after")
        high = min(high, cursor)
    status = None if arguments.get("status") is None else PaymentStatus(arguments["status"])
    reference = arguments.get("reference")
    if status is PaymentStatus.PROCESSING:
        found = await _processing(actor, low, high, reference)
    elif reference is not None:
        found = await _indexed(actor, ("reference", reference), low, high, limit, status)
    elif status is not None:
        found = await _indexed(actor, ("status", status.value), low, high, limit, None)
    else:
        page = Range(("payment", low), ("payment", high), limit + 1, reverse=True)
        rows = (await actor.store.read((), [page])).ranges[0]
        found = [codec.decode_payment(row.value) for row in rows]
    shown = [views.payment_view(payment, actor.profile.mode) for payment in found[:limit]]
    return Answer(200, views.render_list(shown, has_more=len(found) > limit), rate=actor.rate_state())


async def _indexed(
    actor: PartnerActor, prefix: Key, low: str, high: str, limit: int, status: PaymentStatus | None
) -> list[Payment]:
    """Give up to limit + 1 payments that an index names, newest first, that have the status."""
    found: list[Payment] = []
    rows_at_once = limit + 1 if status is None else limits.PAGE_ROWS_MAX
    for _ in range(_ROUNDS_MAX):
        page = Range((*prefix, low), (*prefix, high), rows_at_once, reverse=True)
        rows = (await actor.store.read((), [page])).ranges[0]
        payments = await _payments(actor, [str(row.key[-1]) for row in rows])
        found += [payment for payment in payments if status is None or payment.status is status]
        if len(found) > limit or len(rows) < rows_at_once:
            break
        high = str(rows[-1].key[-1])
    return found[: limit + 1]


async def _processing(actor: PartnerActor, low: str, high: str, reference: str | None) -> list[Payment]:
    ids = {opened.payment_id for opened in actor.opens.values() if low <= opened.payment_id < high}
    payments = await _payments(actor, sorted(ids, reverse=True))
    return [
        payment
        for payment in payments
        if payment.status is PaymentStatus.PROCESSING and reference in (None, payment.reference)
    ]


async def _payments(actor: PartnerActor, ids: Iterable[str]) -> list[Payment]:
    keys = [keyspace.payment(payment_id) for payment_id in ids]
    if not keys:
        return []
    values = (await actor.store.read(keys)).values
    return [codec.decode_payment(value) for value in values if value is not None]


async def _list_events(actor: PartnerActor, arguments: Arguments) -> Answer | Refused:
    limit = _limit(arguments)
    kind = arguments.get("type")
    cursor = arguments.get("starting_after")
    end: Key = keyspace.journal(keyspace.LAST_NUMBER)
    before = ""
    if cursor is not None:
        match = _EVENT_ID.fullmatch(cursor)
        if match is None:
            return _refused(RefusalCode.CURSOR_INVALID, f"{cursor!r} is no event's id.", "/starting_after")
        end, before = keyspace.journal(int(match[1]) + 1), cursor
    found: list[dict[str, Any]] = []
    rows_at_once = limits.PAGE_ROWS_MAX
    for _ in range(_ROUNDS_MAX):
        page = Range(("journal",), end, rows_at_once, reverse=True)
        rows = (await actor.store.read((), [page])).ranges[0]
        entries = [codec.decode_entry(row.value) for row in rows]
        # A settlement's entry names many payments, and none for partners to see.
        named = {
            event.payment_id
            for entry in entries
            for event in entry.events
            if not isinstance(event, OperationReconciled)
        }
        payments = {payment.id: payment for payment in await _payments(actor, named)}
        for entry in entries:
            found += [
                view
                for view in reversed(views.event_views(entry, payments))
                if (not before or view["id"] < before) and kind in (None, view["type"])
            ]
        if len(found) > limit or len(rows) < rows_at_once:
            break
        end = rows[-1].key
    return Answer(200, views.render_list(found[:limit], has_more=len(found) > limit), rate=actor.rate_state())


async def _list_unknown(actor: PartnerActor) -> Answer:
    now_ms = actor.now_ms()
    opens = sorted(actor.opens.values(), key=lambda opened: opened.first_asked_ms)
    payments = {payment.id: payment for payment in await _payments(actor, {o.payment_id for o in opens})}
    shown = [
        views.unknown_view(payments[opened.payment_id], opened, now_ms, needs_person=needs_person(opened, now_ms))
        for opened in opens
        if payments[opened.payment_id].operation(opened.operation_id).state is OperationState.UNKNOWN
    ]
    page = shown[: limits.PAGE_ROWS_MAX]
    return Answer(200, views.render_list(page, has_more=len(shown) > len(page)))


def _limit(arguments: Arguments) -> int:
    limit = int(arguments.get("limit") or limits.PAGE_ROWS_DEFAULT)
    if not 1 <= limit <= limits.PAGE_ROWS_MAX:
        raise ValueError(f"limit is from 1 to {limits.PAGE_ROWS_MAX}")
    return limit


def _refused(code: RefusalCode, detail: str, pointer: str | None = None) -> Refused:
    return Refused(Refusal(code, detail, pointer))
