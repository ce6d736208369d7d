"""`bulkhead reconcile`: hands a settlement file's rows to the partners' actors, and gathers what they say of them.

Only the actors decide and post. What they are asked can be asked again at any point, by anybody, with the same result:
each operation is posted once. The doors are asked directly, so that a control plane that ends in the middle is no loss.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final, TypeVar

from cells.api import limits as wire_limits
from cells.api.messages import UNTOUCHED, RefusalCode
from control_plane import limits, settlement_file
from control_plane.data_folder import DataFolder
from control_plane.doors import Doors, SettlementBatch, cell_addresses
from control_plane.errors import ControlPlaneError, DoorError, SettingsError
from control_plane.opening import read_registered, read_registered_cells
from control_plane.registry_records import Partner
from control_plane.settings import MAIN_ACQUIRER, Settings
from control_plane.settlement_file import DAY_MS, Groups, Row, SettlementFile

T = TypeVar("T")

# Refusals that may end by themselves: the partner is being taken over, or has too much to do.
_PASSING: Final = UNTOUCHED | {RefusalCode.OUTCOME_UNKNOWN}
_VERDICTS: Final = ("extra", "missing", "differing")
# Rows that prove a charge, or a payment, of which our books know nothing: shown first.
_GRAVE: Final = frozenset(
    {"operation_unknown", "operation_open", "operation_failed", "other_acquirer", "paid_before", "partner_unknown"}
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an operator asks for, of whose file. `differences`: where to write all of them, as JSON lines."""

    file: Path
    dry_run: bool = False
    clock_margin_s: int = limits.SETTLEMENT_CLOCK_MARGIN_S_DEFAULT
    differences: Path | None = None
    acquirer: str = MAIN_ACQUIRER


@dataclass(frozen=True, slots=True)
class Told:
    """Who is told how far it is: bytes read, rows handed over, that it began and how it ended.

    `begun` returns as whom the control plane knows who asks; a dry run is not told.
    """

    read: Callable[[int], None] = lambda _: None
    compared: Callable[[int, int], None] = lambda _done, _of: None
    begun: Callable[[dict[str, Any]], str] = lambda _file: "nobody"
    ended: Callable[[dict[str, int]], None] = lambda _counts: None


@dataclass(slots=True)
class PartnerResult:
    """How many of a partner's rows are what. `repeated`: posted before, among the matched and differing."""

    partner: str
    cell: str | None
    rows: int = 0
    matched: int = 0
    differing: int = 0
    extra: int = 0
    missing: int = 0
    repeated: int = 0
    not_asked: str | None = None


@dataclass(slots=True)
class Differences:
    """All differences to a file, where one is wanted, and a bounded part of each verdict to show."""

    path: Path | None
    sink: IO[str] | None
    shown: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {verdict: [] for verdict in _VERDICTS})
    found: int = 0

    @classmethod
    @contextmanager
    def opened(cls, path: Path | None) -> Iterator["Differences"]:
        """Open the file, where one is wanted. Raises ControlPlaneError."""
        if path is None:
            yield cls(None, None)
            return
        try:
            sink = path.open("w", encoding="utf-8")
        except OSError as error:
            raise _unwritten(path, error) from error
        differences = cls(path, sink)
        try:
            yield differences
        finally:
            differences.close()

    def close(self) -> None:
        """Write what is left. Raises ControlPlaneError."""
        assert self.path is not None
        assert self.sink is not None
        try:
            self.sink.close()
        except OSError as error:
            raise _unwritten(self.path, error) from error

    def add(self, difference: dict[str, Any]) -> None:
        """Take one. Raises ControlPlaneError."""
        self.found += 1
        if self.path is not None and self.sink is not None:
            try:
                self.sink.write(json.dumps(difference) + "\n")
            except OSError as error:
                raise _unwritten(self.path, error) from error
        shown = self.shown[difference["verdict"]]
        if len(shown) < limits.SETTLEMENT_DIFFERENCES_SHOWN_MAX:
            shown.append(difference)

    def in_order(self) -> list[dict[str, Any]]:
        """Give those to be shown, what proves a charge that the books don't know first."""
        shown = [difference for verdict in _VERDICTS for difference in self.shown[verdict]]
        return sorted(shown, key=lambda one: (not one["grave"], _VERDICTS.index(one["verdict"]), one["line"] or 0))


def run(settings: Settings, folder: DataFolder, wanted: Wanted, told: Told) -> dict[str, Any]:
    """Reconcile a file and give the report with `ok`. Raises InputFileError before anything is sent or posted.

    Where a partner can't be asked the report says so; the same command then goes on where it was.
    """
    if wanted.acquirer not in settings.acquirer_urls:
        raise SettingsError(
            f"there is no acquirer {wanted.acquirer!r}",
            where="option --acquirer",
            hint=f"those of the settings are: {', '.join(settings.acquirer_urls)}",
        )
    partners = {partner.id: partner for partner in asyncio.run(read_registered(settings, folder))}
    known = frozenset(partner.id for partner in partners.values() if partner.status != "onboarding")
    with (
        settlement_file.opened(wanted.file, known, told.read) as settlement,
        Differences.opened(wanted.differences) as differences,
    ):
        said = settlement.describe()
        named = {name: value for name, value in said.items() if name != "path"}
        operator = "nobody" if wanted.dry_run else told.begun({**named, "acquirer": wanted.acquirer})
        asked = {name: partner for name, partner in partners.items() if name in known}
        results = asyncio.run(_run(settings, folder, wanted, told, operator, settlement, asked, differences))
    report = _report(wanted, said, results, differences)
    if not wanted.dry_run:
        told.ended(report["counts"])
    return report


async def _run(
    settings: Settings,
    folder: DataFolder,
    wanted: Wanted,
    told: Told,
    operator: str,
    settlement: SettlementFile,
    partners: dict[str, Partner],
    differences: Differences,
) -> list[PartnerResult]:
    doors = await Doors.connect(cell_addresses(await read_registered_cells(settings, folder)), folder)
    try:
        await doors.wait_connected()
        job = Job(doors, settings.acquirer_fees.model_dump(), wanted, operator, settlement, differences, told.compared)
        return await job.run(partners)
    finally:
        await doors.aclose()


class Job:
    """One file on its way to the actors."""

    def __init__(
        self,
        doors: Doors,
        fees: dict[str, Any],
        wanted: Wanted,
        operator: str,
        settlement: SettlementFile,
        differences: Differences,
        compared: Callable[[int, int], None],
    ) -> None:
        assert settlement.groups is not None
        self._doors = doors
        self._fees = fees
        self._wanted = wanted
        self._operator = operator
        self._file = settlement
        self._groups: Groups = settlement.groups
        self._differences = differences
        self._compared = compared
        self._done = 0
        self._dead_cells: set[str] = set()

    async def run(self, partners: dict[str, Partner]) -> list[PartnerResult]:
        """Ask every partner that the file is about: also one without a row, for what is missing."""
        if self._file.partner is not None:
            partners = {name: partner for name, partner in partners.items() if name == self._file.partner}
        slots = asyncio.Semaphore(limits.SETTLEMENT_PARTNERS_AT_ONCE_MAX)

        async def one(partner: Partner) -> PartnerResult:
            async with slots:
                return await self._partner(partner)

        results = await asyncio.gather(*(one(partner) for partner in partners.values()))
        return [*results, *self._unknown_partners()]

    async def _partner(self, partner: Partner) -> PartnerResult:
        result = PartnerResult(partner.id, partner.cell)
        try:
            held = await self._rows(partner, result)
            await self._missing(partner, result, held)
        except ControlPlaneError as error:
            result.not_asked = error.what
        return result

    async def _rows(self, partner: Partner, result: PartnerResult) -> "_Named":
        """Hand over the partner's rows; give those of which nothing was posted, which are not missing all the same."""
        named = _Named()
        for index, rows in enumerate(_batches(self._groups.rows(partner.id))):
            arguments = {
                "file": self._file.sha256,
                "settled_on": self._file.day,
                "operator": self._operator,
                "fees": self._fees,
                "acquirer": self._wanted.acquirer,
                "rows": [
                    [row.key, row.original_key, row.kind, row.reference, row.currency, row.gross, row.fee]
                    for row in rows
                ],
            }
            command_id = self._command_id(partner.id, index)
            found = await self._patiently(partner.cell, lambda: self._send(partner, command_id, arguments))  # noqa: B023
            self._take(result, rows, found, named)
            self._done += len(rows)
            self._compared(self._done, self._file.rows)
        return named

    async def _send(self, partner: Partner, command_id: str, arguments: dict[str, Any]) -> SettlementBatch:
        return await self._doors.reconcile(
            partner.cell, partner.id, command_id, arguments, post=not self._wanted.dry_run
        )

    def _take(self, result: PartnerResult, rows: tuple[Row, ...], found: SettlementBatch, named: "_Named") -> None:
        by_key = {row.key: row for row in rows}
        result.rows += len(rows)
        result.matched += found.matched
        result.repeated += found.repeated
        for finding in found.findings:
            row = by_key[finding.key]
            if finding.verdict == "extra":
                result.extra += 1
            else:
                result.differing += 1
            self._differences.add(
                _difference(
                    result.partner,
                    finding.verdict,
                    list(finding.reasons),
                    **_of_row(row),
                    owed=finding.owed,
                    fee_agreed=finding.fee_agreed,
                    payment_id=finding.payment_id,
                    state=finding.state,
                    posted=finding.posted and not self._wanted.dry_run,
                )
            )
            if not finding.posted:
                named.add(row.key)
        if self._wanted.dry_run:
            for row in rows:
                named.add(row.key)

    async def _missing(self, partner: Partner, result: PartnerResult, named: "_Named") -> None:
        """Find what succeeded in the day and stands in no file.

        The day ends early by the margin, and began early by it: so each operation is looked for with one file, and one
        shortly before midnight not before the file that it may be in instead.
        """
        margin_ms = self._wanted.clock_margin_s * 1_000
        from_ms = self._file.start_ms - margin_ms
        before_ms = min(self._file.until_ms, self._file.start_ms + DAY_MS) - margin_ms
        after: int | None = None
        span, acquirer = (from_ms, before_ms), self._wanted.acquirer
        while before_ms > from_ms:
            page = await self._patiently(
                partner.cell,
                lambda: self._doors.list_unreconciled(partner.cell, partner.id, span, after, acquirer),  # noqa: B023
            )
            for operation in page.operations:
                if operation.operation_id in named:
                    continue
                result.missing += 1
                self._differences.add(
                    _difference(
                        partner.id,
                        "missing",
                        ["in_no_file"],
                        key=operation.operation_id,
                        kind=operation.kind,
                        reference=operation.reference,
                        currency=operation.currency,
                        owed=-operation.amount if operation.kind == "refund" else operation.amount,
                        payment_id=operation.payment_id,
                        state="succeeded",
                        succeeded_at=operation.succeeded_at,
                    )
                )
            if page.next is None:
                return
            after = page.next

    async def _patiently(self, cell: str, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask again while the answer may still come: all that is asked here can be asked twice."""
        give_up_at = time.monotonic() + (0 if cell in self._dead_cells else limits.SETTLEMENT_PATIENCE_MS / 1_000)
        delay_ms = limits.SETTLEMENT_RETRY_DELAY_MS_MIN
        while True:
            try:
                answer = await ask()
            except ControlPlaneError as error:
                if not isinstance(error, DoorError) and error.code not in _PASSING:
                    raise
                if time.monotonic() >= give_up_at:
                    if isinstance(error, DoorError):
                        self._dead_cells.add(cell)  # its other partners are asked once
                    raise
            else:
                self._dead_cells.discard(cell)
                return answer
            await asyncio.sleep(delay_ms / 1_000)
            delay_ms = min(delay_ms * 2, limits.SETTLEMENT_RETRY_DELAY_MS_MAX)

    def _unknown_partners(self) -> Iterator[PartnerResult]:
        results: dict[str, PartnerResult] = {}
        result: PartnerResult | None = None
        for row in self._groups.rows_of_unknown_partners():
            result = results.get(row.partner)
            if result is None:
                # A file of nothing but made-up partners is shown as what it is, in bounded memory.
                name = row.partner if len(results) < limits.PARTNERS_MAX else "(others)"
                result = results.setdefault(name, PartnerResult(name, None))
            result.rows += 1
            result.extra += 1
            self._differences.add(_difference(row.partner, "extra", ["partner_unknown"], **_of_row(row)))
        yield from results.values()

    def _command_id(self, partner_id: str, index: int) -> str:
        """Give the same id for the same batch of the same file, so that one that ends workers is known again."""
        wanted = self._wanted
        text = f"{self._file.sha256} {partner_id} {index} {wanted.dry_run} {wanted.acquirer}"
        return f"settle-{hashlib.blake2b(text.encode(), digest_size=20).hexdigest()}"


class _Named:
    """Keys that the file names, as digests: a partner may have very many."""

    def __init__(self) -> None:
        self._digests: set[int] = set()

    def add(self, key: str) -> None:
        self._digests.add(hash(key))

    def __contains__(self, key: str) -> bool:
        return hash(key) in self._digests


def _unwritten(path: Path, error: OSError) -> ControlPlaneError:
    return ControlPlaneError(
        f"the differences can't be written: {error}",
        where=str(path),
        hint="name another file, and ask again: what is posted is not posted twice",
    )


def _batches(rows: Iterator[Row]) -> Iterator[tuple[Row, ...]]:
    while batch := tuple(islice(rows, wire_limits.SETTLEMENT_ROWS_MAX)):
        yield batch


def _of_row(row: Row) -> dict[str, Any]:
    return {
        "line": row.line,
        "key": row.key,
        "kind": row.kind,
        "reference": row.reference,
        "currency": row.currency,
        "gross": row.gross,
        "fee": row.fee,
        "first_at": row.first_at,
    }


def _difference(partner: str, verdict: str, reasons: list[str], **known: Any) -> dict[str, Any]:
    fields: dict[str, Any] = dict.fromkeys(
        (
            "key",
            "kind",
            "currency",
            "owed",
            "gross",
            "fee_agreed",
            "fee",
            "payment_id",
            "state",
            "reference",
            "first_at",
            "succeeded_at",
            "line",
        )
    )
    said = {"partner": partner, "verdict": verdict, "reasons": reasons, "grave": bool(_GRAVE & set(reasons))}
    return {**said, **fields, "posted": False, **known}


def _report(
    wanted: Wanted, said: dict[str, Any], results: list[PartnerResult], differences: Differences
) -> dict[str, Any]:
    names = ("rows", "matched", "differing", "extra", "missing", "repeated")
    counts: dict[str, int] = {name: sum(getattr(result, name) for result in results) for name in names}
    shown = differences.in_order()
    unasked = [result for result in results if result.not_asked is not None]
    return {
        "ok": not differences.found and not unasked,
        "dry_run": wanted.dry_run,
        "acquirer": wanted.acquirer,
        "file": said,
        "counts": {**counts, "not_asked": len(unasked)},
        "partners": [
            asdict(result)
            for result in sorted(results, key=lambda result: result.partner)
            if result.rows or result.missing or result.not_asked is not None
        ],
        "differences": shown,
        "differences_left_out": differences.found - len(shown),
    }
