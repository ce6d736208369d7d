"""What may be read of a partner: payments, refunds, balance, events, unknown operations. Reads commit nothing.

Pages go from new to old. A page has bounds in rows, in bytes, and in rows looked at (a filter without an index of its
own); where it ends before the rows do, it says from where the next one goes on.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson

from actors import codec, keyspace, limits, settlement_queries, views
from actors.answers import Answer, Refused
from actors.events import OperationReconciled, PartnerChanged
from actors.ids import created_range
from actors.partner import PartnerActor
from actors.payment import DisputeStatus, OperationState, Payment, PaymentStatus
from actors.refusals import Refusal, RefusalCode
from actors.settlement import needs_person
from actors.store import Key, Range

_PAYMENT_ID = re.compile(r"pay_[0-9A-HJKMNP-TV-Z]{26}")
_EVENT_ID = re.compile(r"evt_([0-9]{16})([0-9]{4})")

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
        case "count_open":
            return await _count_open(actor)
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


class _Page:
    """Rows of an answer, cut where they are as many or as many bytes as may be; what is left out begins the next page.

    `cursor`: the id of the last row that was looked at, shown or not. From there the next page goes on.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rows: list[orjson.Fragment] = []
        self._bytes = 0
        self._looked_at = 0
        self.cursor: str | None = None
        self.is_last = False

    @property
    def rows_wanted(self) -> int:
        """How many rows complete it, with one more to know whether there is a next page."""
        return self._limit + 1 - len(self._rows)

    @property
    def may_look_on(self) -> bool:
        """Whether it may look at more rows; one that looked at its share says that there is more, and from where."""
        return self._looked_at < limits.PAGE_ROWS_SCANNED_MAX

    def show(self, cursor: str, view: dict[str, Any]) -> bool:
        """Take a row in; False where it belongs to the next page."""
        row = orjson.dumps(view)
        if len(self._rows) == self._limit or (self._rows and self._bytes + len(row) > limits.PAGE_BYTES_MAX):
            return False
        self._rows.append(orjson.Fragment(row))
        self._bytes += len(row)
        self.skip(cursor)
        return True

    def skip(self, cursor: str) -> None:
        """Pass a row by."""
        self._looked_at += 1
        self.cursor = cursor

    def answer(self, actor: PartnerActor) -> Answer:
        """Give the page's answer."""
        cursor = None if self.is_last else self.cursor
        body = views.render_list(self._rows, has_more=not self.is_last, next_starting_after=cursor)
        return Answer(200, body, rate=actor.rate_state())


async def _list_payments(actor: PartnerActor, arguments: Arguments) -> Answer | Refused:
    page = _Page(_limit(arguments))
    low, high = created_range("pay", arguments.get("created_from_ms"), arguments.get("created_before_ms"))
    cursor = arguments.get("starting_after")
    if cursor is not None:
        if not _PAYMENT_ID.fullmatch(cursor):
            return _refused(RefusalCode.CURSOR_INVALID, f"{cursor!r} is no payment's id.", "/starting_after")
        high = min(high, cursor)
    status = None if arguments.get("status") is None else PaymentStatus(arguments["status"])
    reference = arguments.get("reference")
    if status is PaymentStatus.PROCESSING:
        await _fill_from_open(actor, page, low, high, reference)
    elif reference is not None:
        await _fill(actor, page, ("reference", reference), low, high, status)
    elif status is not None:
        await _fill(actor, page, ("status", status.value), low, high, None)
    else:
        await _fill(actor, page, ("payment",), low, high, None)
    return page.answer(actor)


async def _fill(
    actor: PartnerActor, page: _Page, prefix: Key, low: str, high: str, status: PaymentStatus | None
) -> None:
    """Show the payments that the range names, newest first, that have the status (None: any)."""
    while page.may_look_on:
        wanted = limits.PAGE_ROWS_READ_AT_ONCE
        if status is None:
            wanted = min(page.rows_wanted, wanted)
        rows = (await actor.store.read((), [Range((*prefix, low), (*prefix, high), wanted, reverse=True)])).ranges[0]
        if prefix == ("payment",):
            payments = [codec.decode_payment(row.value) for row in rows]
        else:
            payments = await _payments(actor, [str(row.key[-1]) for row in rows])
        if not _show(actor, page, payments, lambda payment: status in (None, payment.status)):
            return
        if len(rows) < wanted:
            page.is_last = True
            return
        high = str(rows[-1].key[-1])


async def _fill_from_open(actor: PartnerActor, page: _Page, low: str, high: str, reference: str | None) -> None:
    """Show the payments under way, which no index names: their open operations do."""
    ids = sorted({o.payment_id for o in actor.opens.values() if low <= o.payment_id < high}, reverse=True)
    for first in range(0, len(ids), limits.PAGE_ROWS_READ_AT_ONCE):
        if not page.may_look_on:
            return
        payments = await _payments(actor, ids[first : first + limits.PAGE_ROWS_READ_AT_ONCE])
        if not _show(
            actor,
            page,
            payments,
            lambda payment: payment.status is PaymentStatus.PROCESSING and reference in (None, payment.reference),
        ):
            return
    page.is_last = True


def _show(actor: PartnerActor, page: _Page, payments: Iterable[Payment], belongs: Callable[[Payment], bool]) -> bool:
    """Show those that belong into the page; False where it is full."""
    for payment in payments:
        if not belongs(payment):
            page.skip(payment.id)
        elif not page.show(payment.id, views.payment_view(payment, actor.profile.mode)):
            return False
    return True


async def _payments(actor: PartnerActor, ids: Iterable[str]) -> list[Payment]:
    keys = [keyspace.payment(payment_id) for payment_id in ids]
    if not keys:
        return []
    values = (await actor.store.read(keys)).values
    return [codec.decode_payment(value) for value in values if value is not None]


async def _list_events(actor: PartnerActor, arguments: Arguments) -> Answer | Refused:
    page = _Page(_limit(arguments))
    kind = arguments.get("type")
    cursor = arguments.get("starting_after")
    end: Key = keyspace.journal(keyspace.LAST_NUMBER)
    before = ""
    if cursor is not None:
        match = _EVENT_ID.fullmatch(cursor)
        if match is None:
            return _refused(RefusalCode.CURSOR_INVALID, f"{cursor!r} is no event's id.", "/starting_after")
        end, before = keyspace.journal(int(match[1]) + 1), cursor
    while page.may_look_on:
        wanted = limits.PAGE_ROWS_READ_AT_ONCE
        rows = (await actor.store.read((), [Range(("journal",), end, wanted, reverse=True)])).ranges[0]
        entries = [codec.decode_entry(row.value) for row in rows]
        # A settlement's entry names many payments, and none for partners to see.
        named = {
            event.payment_id
            for entry in entries
            for event in entry.events
            if not isinstance(event, OperationReconciled | PartnerChanged)
        }
        payments = {payment.id: payment for payment in await _payments(actor, named)}
        for entry in entries:
            for view in reversed(views.event_views(entry, payments)):
                if (before and view["id"] >= before) or kind not in (None, view["type"]):
                    continue
                if not page.show(view["id"], view):
                    return page.answer(actor)
            page.skip(views.event_id(entry.sequence, 0))
        if len(rows) < wanted:
            page.is_last = True
            break
        end = rows[-1].key
    return page.answer(actor)


async def _list_unknown(actor: PartnerActor) -> Answer:
    now_ms = actor.now_ms()
    opens = sorted(actor.opens.values(), key=lambda opened: opened.first_asked_ms)
    shown: list[dict[str, Any]] = []
    for first in range(0, len(opens), limits.PAGE_ROWS_READ_AT_ONCE):
        some = opens[first : first + limits.PAGE_ROWS_READ_AT_ONCE]
        payments = {payment.id: payment for payment in await _payments(actor, {o.payment_id for o in some})}
        shown += [
            views.unknown_view(payments[opened.payment_id], opened, now_ms, needs_person=needs_person(opened, now_ms))
            for opened in some
            if payments[opened.payment_id].operation(opened.operation_id).state is OperationState.UNKNOWN
        ]
        if len(shown) > limits.PAGE_ROWS_MAX:
            break
    page = shown[: limits.PAGE_ROWS_MAX]
    return Answer(200, views.render_list(page, has_more=len(shown) > len(page)))


async def _count_open(actor: PartnerActor) -> Answer:
    """Count what is not over: each number is right up to the rows that one look takes, and at least those beyond."""
    rows_max = limits.PAGE_ROWS_SCANNED_MAX
    unknown = 0
    opens = sorted(actor.opens.values(), key=lambda opened: opened.payment_id)
    for first in range(0, len(opens), limits.PAGE_ROWS_READ_AT_ONCE):
        some = opens[first : first + limits.PAGE_ROWS_READ_AT_ONCE]
        payments = {payment.id: payment for payment in await _payments(actor, {o.payment_id for o in some})}
        states = [payments[opened.payment_id].operation(opened.operation_id).state for opened in some]
        unknown += sum(state is OperationState.UNKNOWN for state in states)
    # Whatever holds money or waits for a customer is to be looked at some day, whatever its status is called.
    held = (await actor.store.read((), [Range(("due",), keyspace.due(keyspace.LAST_NUMBER, ""), rows_max)])).ranges[0]
    name = PaymentStatus.DISPUTED.value
    begin: Key = ("status", name)
    disputed = looked_at = 0
    while looked_at < rows_max:
        asked = Range(begin, ("status", name, keyspace.LAST), limits.PAGE_ROWS_READ_AT_ONCE)
        rows = (await actor.store.read((), [asked])).ranges[0]
        looked_at += len(rows)
        found = await _payments(actor, [str(row.key[-1]) for row in rows])
        disputed += sum(any(one.status is DisputeStatus.OPEN for one in payment.disputes) for payment in found)
        if len(rows) < limits.PAGE_ROWS_READ_AT_ONCE:
            break
        begin = (*rows[-1].key, "")
    else:
        disputed = max(disputed, 1)  # not all were looked at, so nobody may say that there is none
    counts = {"under_way": len(opens), "unknown": unknown, "held": len(held), "disputed": disputed}
    return Answer(200, orjson.dumps({"object": "open", "profile_version": actor.profile.version, **counts}))


def _limit(arguments: Arguments) -> int:
    limit = int(arguments.get("limit") or limits.PAGE_ROWS_DEFAULT)
    if not 1 <= limit <= limits.PAGE_ROWS_MAX:
        raise ValueError(f"limit is from 1 to {limits.PAGE_ROWS_MAX}")
    return limit


def _refused(code: RefusalCode, detail: str, pointer: str | None = None) -> Refused:
    return Refused(Refusal(code, detail, pointer))
