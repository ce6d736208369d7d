"""What a reconciliation reads of a partner without writing: a file's rows compared, and what no file has paid yet.

Both look at a bounded number of rows at a time, so that payments go on in between. Nothing here is for partners.
"""

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson

from actors import codec, commands, keyspace, limits, reconciliation, views
from actors.answers import Answer
from actors.events import OperationApproved
from actors.ledger import Account
from actors.payment import Payment
from actors.profile import MAIN_ACQUIRER
from actors.records import JournalEntry, Reconciled
from actors.store import Range

if TYPE_CHECKING:
    from actors.partner import PartnerActor


async def compare(actor: "PartnerActor", arguments: Mapping[str, Any]) -> Answer:
    """Say what rows of a settlement file are, and post nothing. Raises StoreError, CommandError."""
    command = commands.parse_reconcile(arguments)
    keys = reconciliation.keys_of(command)
    rows = dict(zip(keys, (await actor.store.read(keys)).values, strict=True))

    def payment_of(payment_id: str) -> Payment | None:
        data = rows[keyspace.payment(payment_id)]
        return None if data is None else codec.decode_payment(data)

    def known_of(operation_id: str) -> Reconciled | None:
        data = rows[keyspace.reconciled(operation_id)]
        return None if data is None else codec.decode_reconciled(data)

    return Answer(200, reconciliation.render(reconciliation.compare(command, payment_of, known_of)))


async def list_unreconciled(actor: "PartnerActor", arguments: Mapping[str, Any]) -> Answer:
    """Give money movements that succeeded from `from_ms` on and before `before_ms` and stand in no file yet.

    Looks at PAGE_ROWS_SCANNED_MAX entries of the journal behind `after`; `next` is where the following page begins,
    None at the end. The journal is in the order of time. Of one acquirer's payments only.

    Raises StoreError, KeyError, TypeError, ValueError.
    """
    from_ms, before_ms = int(arguments["from_ms"]), int(arguments["before_ms"])
    acquirer = str(arguments.get("acquirer") or MAIN_ACQUIRER)
    after = arguments.get("after")
    after = await _sequence_before(actor, from_ms) if after is None else int(after)
    found: list[dict[str, Any]] = []
    for _ in range(limits.PAGE_ROWS_SCANNED_MAX // limits.PAGE_ROWS_MAX):
        page = Range(keyspace.journal(after + 1), keyspace.journal(keyspace.LAST_NUMBER), limits.PAGE_ROWS_MAX)
        rows = (await actor.store.read((), [page])).ranges[0]
        entries = [codec.decode_entry(row.value) for row in rows]
        wanted = list(itertools.takewhile(lambda entry: entry.at_ms < before_ms, entries))
        found += await _unpaid(actor, wanted, acquirer)
        if len(wanted) < limits.PAGE_ROWS_MAX:
            return Answer(200, orjson.dumps({"operations": found, "next": None}))
        after = wanted[-1].sequence
    return Answer(200, orjson.dumps({"operations": found, "next": after}))


async def _unpaid(actor: "PartnerActor", entries: list[JournalEntry], acquirer: str) -> list[dict[str, Any]]:
    approved: dict[str, OperationApproved] = {}
    for entry in entries:
        # What moves money changes what the acquirer owes us.
        if any(posting.account is Account.ACQUIRER_RECEIVABLE for posting in entry.postings):
            approved |= {e.operation_id: e for e in entry.events if isinstance(e, OperationApproved)}
    if not approved:
        return []
    keys = [keyspace.reconciled(operation_id) for operation_id in approved]
    values = (await actor.store.read(keys)).values
    missing = [event for event, value in zip(approved.values(), values, strict=True) if value is None]
    if not missing:
        return []
    data = (await actor.store.read([keyspace.payment(event.payment_id) for event in missing])).values
    found = []
    for event, value in zip(missing, data, strict=True):
        assert value is not None, f"the journal names {event.payment_id}, which is not there"
        payment = codec.decode_payment(value)
        if payment.acquirer != acquirer:
            continue
        operation = payment.operation(event.operation_id)
        found.append(
            {
                "operation_id": operation.id,
                "payment_id": payment.id,
                "kind": operation.kind.value,
                "amount": operation.amount,
                "currency": payment.currency,
                "succeeded_at": views.timestamp(event.at_ms),
                "reference": operation.acquirer_reference,
            }
        )
    return found


async def _sequence_before(actor: "PartnerActor", from_ms: int) -> int:
    """Find the last journal entry before an instant, by halves."""
    low, high = 0, actor.standing.sequence  # entries up to `low` are before it, those behind `high` are not
    while low < high:
        middle = (low + high + 1) // 2
        page = Range(keyspace.journal(middle), keyspace.journal(keyspace.LAST_NUMBER), 1)
        rows = (await actor.store.read((), [page])).ranges[0]
        if rows and codec.decode_entry(rows[0].value).at_ms < from_ms:
            low = middle
        else:
            high = middle - 1
    return low
