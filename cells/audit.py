"""Audits one cell: `python -m cells.audit --place JSON --acquirer-url URL [--acquirers JSON] [--json]`; exit 1 if not.

Works beside running workers (it only reads) and without them. The acquirer's record is read before the books, so
that everything in it has its intent in the books already; what succeeded since is asked for by its key.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

import aiohttp
import orjson

from actors import codec, keyspace
from actors.bookkeeping import (
    AcquirerDispute,
    AcquirerRecord,
    Books,
    compare_acquirer,
    compare_disputes,
    compare_reconciled,
    compare_records,
)
from actors.errors import StoreError
from actors.payment import OperationState, Payment, PaymentStatus
from actors.profile import MAIN_ACQUIRER
from actors.records import OpenOperation, Reconciled
from actors.rules import Standing
from actors.store import Key, Range, Store
from stores.shelf import Shelf, open_shelf

_ROWS_AT_ONCE: Final = 500
_ROUNDS_MAX: Final = 20
_ACQUIRER_TIMEOUT_SECONDS: Final = 10


class AuditError(Exception):
    """The audit could not be made: the acquirer does not tell, or a book never stands still."""


async def audit_cell(
    shelf: Shelf,
    acquirer_url: str,
    others: Mapping[str, str] | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Audit every partner's book of the cell; give one report. `others`: further acquirers' addresses by name.

    `told` is called with each partner that was audited. Raises AuditError.
    """
    timeout = aiohttp.ClientTimeout(total=_ACQUIRER_TIMEOUT_SECONDS)
    # Whose book is gone is known by the cell's own; what stands there unknown to it is audited, too.
    names = await _known_partners(shelf)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        urls = {MAIN_ACQUIRER: acquirer_url, **(others or {})}
        acquirers = {name: _AcquirerRecords(session, url) for name, url in urls.items()}
        reports = []
        for name in sorted(names):
            reports.append(await _audit_partner(shelf, name, acquirers))
            told(name)
    return {"partners": reports, "ok": all(report["ok"] for report in reports)}


async def _known_partners(shelf: Shelf) -> set[str]:
    try:
        store = await shelf.open("cell")
        try:
            known = {str(key[1]) for key, _ in await _rows(store, ("partner",), keyspace.LAST)}
            return known | set(await shelf.names("partners"))
        finally:
            await store.close()
    except StoreError as error:
        raise AuditError(f"the cell's own book can't be read: {type(error).__name__}: {error}") from error


class _AcquirerRecords:
    """Reads the acquirer's own record, a partner at a time."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url.rstrip("/")

    async def of_partner(self, partner_id: str) -> dict[str, AcquirerRecord]:
        records: dict[str, AcquirerRecord] = {}
        after = ""
        while True:
            parameters = {"partner": partner_id, "limit": str(_ROWS_AT_ONCE)} | ({"after": after} if after else {})
            page = await self._get("/operations", parameters)
            for row in page["operations"]:
                records[row["key"]] = _record(row)
            if not page.get("next"):
                return records
            after = str(page["next"])

    async def disputes_of(self, partner_id: str) -> dict[str, AcquirerDispute]:
        disputes: dict[str, AcquirerDispute] = {}
        after = "0"
        while True:
            parameters = {"partner": partner_id, "limit": str(_ROWS_AT_ONCE), "after": after}
            page = await self._get("/disputes", parameters)
            if page is None:
                raise AuditError(f"the acquirer at {self._url} does not tell its disputes")
            for row in page["disputes"]:
                disputes[row["id"]] = AcquirerDispute(row["key"], row["amount"], row["currency"], row["status"])
            if not page.get("next"):
                return disputes
            after = str(page["next"])

    async def of_key(self, key: str) -> AcquirerRecord | None:
        row = await self._get(f"/operations/{key}", {})
        return None if row is None else _record(row)

    async def _get(self, path: str, parameters: dict[str, str]) -> Any:
        try:
            async with self._session.get(self._url + path, params=parameters) as response:
                if response.status == 404:
                    return None
                response.raise_for_status()
                return orjson.loads(await response.read())
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise AuditError(f"the acquirer at {self._url} does not tell its record: {error!r}") from error


def _record(row: dict[str, Any]) -> AcquirerRecord:
    return AcquirerRecord(row["key"], row["kind"], row["amount"], row["currency"], row["result"], bool(row["charged"]))


async def _audit_partner(shelf: Shelf, partner_id: str, acquirers: Mapping[str, _AcquirerRecords]) -> dict[str, Any]:
    records = {name: await acquirer.of_partner(partner_id) for name, acquirer in acquirers.items()}
    try:
        store = await shelf.open("partners", partner_id)
        try:
            books, differences = await _audit_book(store)
        finally:
            await store.close()
    except StoreError as error:
        return _report(partner_id, Books(), [f"the book can't be read: {type(error).__name__}: {error}"])
    for operation_id, (payment, operation) in books.operations.items():
        if payment.acquirer not in acquirers:
            differences.append(
                f"{operation_id}: its acquirer {payment.acquirer!r} is in the settings no more: not compared"
            )
            continue
        known = records[payment.acquirer].get(operation_id)
        # What the acquirer had not performed when it was asked for its record, it may have performed by now.
        if operation.state is OperationState.SUCCEEDED and (known is None or not known.charged):
            late = await acquirers[payment.acquirer].of_key(operation_id)
            if late is not None:
                records[payment.acquirer][operation_id] = late
    for name, acquirer in acquirers.items():
        differences += compare_acquirer(books, records[name], name)
        if any(payment.disputes and payment.acquirer == name for payment in books.payments.values()):
            differences += compare_disputes(books, await acquirer.disputes_of(partner_id), name)
    return _report(partner_id, books, differences)


def _report(partner_id: str, books: Books, differences: list[str]) -> dict[str, Any]:
    balances: dict[str, dict[str, int]] = {}
    for (currency, account), amount in sorted(books.balances.items()):
        balances.setdefault(currency, {})[account] = amount
    return {
        "partner": partner_id,
        "ok": not differences,
        "differences": differences,
        "payments": len(books.payments),
        "operations": len(books.operations),
        "in_doubt": sum(operation.is_open for _, operation in books.operations.values()),
        "journal_entries": books.sequence,
        "balances": balances,
    }


async def _audit_book(store: Store) -> tuple[Books, list[str]]:
    """Replay the journal and compare. A book in use moves on: only what moved is read again, until it stands still."""
    books = Books()
    payments: dict[str, Payment] = {}
    statuses: dict[str, set[str]] = {}
    await _catch_up(store, books)
    for row in await _rows(store, ("payment",), keyspace.LAST):
        payment = codec.decode_payment(row[1])
        payments[payment.id] = payment
    for row in await _rows(store, ("status",), keyspace.LAST):
        statuses.setdefault(str(row[0][2]), set()).add(str(row[0][1]))
    reconciled: dict[str, Reconciled] = {}
    for row in await _rows(store, ("reconciled",), keyspace.LAST):
        reconciled[str(row[0][1])] = codec.decode_reconciled(row[1])
    for _ in range(_ROUNDS_MAX):
        settled = len(books.reconciled)
        touched = await _catch_up(store, books)
        # From here on one snapshot a payment: what is read is as of the journal's end, or later than it.
        for payment_id in touched:
            await _read_again(store, payment_id, payments, statuses)
        opens = await _opens(store)
        await _read_settled(store, list(books.reconciled)[settled:], reconciled)
        # Where the journal has grown no further, all that was read since its last entry is of one moment.
        after = Range(keyspace.journal(books.sequence + 1), keyspace.journal(keyspace.LAST_NUMBER), 1)
        snapshot = await store.read([keyspace.HEAD], [after])
        if not snapshot.ranges[0]:
            head = snapshot.values[0]
            standing = Standing() if head is None else codec.decode_standing(head)
            records = compare_records(books, standing, payments, opens, statuses)
            return books, books.differences + records + compare_reconciled(books, reconciled)
    raise AuditError("the book is written to without a pause; audit it when there is less traffic")


async def _catch_up(store: Store, books: Books) -> set[str]:
    touched: set[str] = set()
    while True:
        begin = keyspace.journal(books.sequence + 1)
        page = Range(begin, keyspace.journal(keyspace.LAST_NUMBER), _ROWS_AT_ONCE)
        rows = (await store.read((), [page])).ranges[0]
        touched |= books.take(codec.decode_entry(row.value) for row in rows)
        if len(rows) < _ROWS_AT_ONCE:
            return touched


async def _read_again(
    store: Store, payment_id: str, payments: dict[str, Payment], statuses: dict[str, set[str]]
) -> None:
    indexed = [keyspace.status(status.value, payment_id) for status in PaymentStatus]
    data, *named = (await store.read([keyspace.payment(payment_id), *indexed])).values
    if data is not None:
        payments[payment_id] = codec.decode_payment(data)
    statuses.pop(payment_id, None)
    for status, value in zip(PaymentStatus, named, strict=True):
        if value is not None:
            statuses.setdefault(payment_id, set()).add(status.value)


async def _read_settled(store: Store, operation_ids: list[str], reconciled: dict[str, Reconciled]) -> None:
    for begin in range(0, len(operation_ids), _ROWS_AT_ONCE):
        some = operation_ids[begin : begin + _ROWS_AT_ONCE]
        values = (await store.read([keyspace.reconciled(operation_id) for operation_id in some])).values
        for operation_id, value in zip(some, values, strict=True):
            if value is not None:
                reconciled[operation_id] = codec.decode_reconciled(value)


async def _opens(store: Store) -> dict[str, OpenOperation]:
    return {
        opened.operation_id: opened
        for opened in (codec.decode_open(value) for _, value in await _rows(store, ("open",), keyspace.LAST))
    }


async def _rows(store: Store, prefix: Key, last: str) -> list[tuple[Key, bytes]]:
    found: list[tuple[Key, bytes]] = []
    begin = prefix
    while True:
        rows = (await store.read((), [Range(begin, (*prefix, last), _ROWS_AT_ONCE)])).ranges[0]
        found += [(row.key, row.value) for row in rows]
        if len(rows) < _ROWS_AT_ONCE:
            return found
        begin = (*rows[-1].key, "")


def main() -> None:
    """Audit a cell and print the report."""
    parser = argparse.ArgumentParser(description="Audit the books of one cell against its journals and its acquirer.")
    parser.add_argument("--place", type=json.loads, required=True, help="where the cell's books stand, as JSON")
    parser.add_argument("--acquirer-url", required=True, help="where the acquirer tells its own record")
    parser.add_argument("--acquirers", type=json.loads, default={}, help="further acquirers by name, as JSON")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--progress", action="store_true", help="tell of each partner on stderr: audited PARTNER")
    options = parser.parse_args()
    told = _tell if options.progress else lambda _: None
    try:
        report = asyncio.run(audit_cell(open_shelf(options.place), options.acquirer_url, options.acquirers, told))
    except AuditError as error:
        sys.stderr.write(f"The audit could not be made: {error}\n")
        sys.exit(2)
    if options.json:
        sys.stdout.write(orjson.dumps(report).decode() + "\n")
    else:
        for partner in report["partners"]:
            verdict = "agrees" if partner["ok"] else "DISAGREES"
            figures = f"{partner['payments']} payments, {partner['operations']} operations"
            sys.stdout.write(f"{partner['partner']}: {verdict} ({figures}, {partner['in_doubt']} in doubt)\n")
            sys.stdout.writelines(f"  {difference}\n" for difference in partner["differences"])
    sys.exit(0 if report["ok"] else 1)


def _tell(partner_id: str) -> None:
    sys.stderr.write(f"audited {partner_id}\n")


if __name__ == "__main__":
    main()
