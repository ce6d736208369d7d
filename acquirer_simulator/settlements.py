"""The daily settlement file: which money movements a day has, what they cost, and how they are written. Pure: no I/O.

The file is CSV (RFC 4180: CRLF, the same number of fields in each line), ASCII, and is written as it is read from the
record, so a line never depends on a later one. Amounts are integers in minor units; `gross` and `net` are signed from
the merchant's side: captures and purchases positive, refunds negative. `net` is `gross` less `fee`.

| `settlement_v1` | is | fields beside it |
|---|---|---|
| `file` | the first line | `settlement_date`; `partner` where the file is of one only; `kind`: `final` or `preliminary`; `first_at`: operations performed before this instant are in it |
| `row` | one settled money movement | all but `rows`; `original_key` is empty for a purchase |
| `total` | one for each currency, behind all rows | `currency`, sums of `gross`, `fee` and `net`, and `rows`: how many |
| `end` | the last line; a file without it is truncated | `settlement_date`, `rows`: of all currencies |

An operation belongs to the day (UTC) in which it was performed. Payment methods that make a day's file wrong:

| token | the file |
|---|---|
| `tok_settle_missing` | never has the payment's operations |
| `tok_settle_late` | has them a day late |
| `tok_settle_short` | pays a tenth less of each, at least 1 |
| `tok_settle_fee` | takes 7 minor units more of each |
"""  # noqa: E501 - a table's line can't be broken

import csv
import io
from collections.abc import Iterable
from datetime import UTC, date, datetime
from typing import Final, NamedTuple

import iso4217

from acquirer_simulator.rules import reference_of
from acquirer_simulator.tokens import SETTLED_LATE, SETTLED_NEVER, SETTLED_OVERCHARGED, SETTLED_SHORT

HEADER: Final = (
    "settlement_v1",
    "settlement_date",
    "partner",
    "kind",
    "key",
    "original_key",
    "reference",
    "currency",
    "gross",
    "fee",
    "net",
    "first_at",
    "rows",
)
DAY_MS: Final = 24 * 3_600_000
MONEY_KINDS: Final = frozenset({"capture", "purchase", "refund"})
OVERCHARGE_MINOR_UNITS: Final = 7

# The schedule of fees: so many hundredths of a percent of the amount, rounded half up, and a fixed part by the
# currency's number of decimals (ISO 4217), in minor units. Refunds cost nothing and bring no fee back.
FEE_BASIS_POINTS: Final = 150
FEE_FIXED_BY_DECIMALS: Final = (25, 25, 25, 250, 2_500)
_DECIMALS: Final = {currency.code: currency.exponent or 0 for currency in iso4217.Currency}
_DECIMALS_ELSE: Final = 2


class Movement(NamedTuple):
    """A money movement as the record has it, or one that a test makes up."""

    partner: str
    kind: str
    key: str
    original_key: str | None
    amount: int
    currency: str
    payment_method: str
    first_at_ms: int


class Row(NamedTuple):
    """A money movement as the file has it."""

    partner: str
    kind: str
    key: str
    original_key: str
    reference: str
    currency: str
    gross: int
    fee: int
    first_at_ms: int


def day_start_ms(day: date) -> int:
    """Return the Unix time in ms at which the day begins in UTC."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1_000


def timestamp(at_ms: int) -> str:
    """Return RFC 3339 in UTC with milliseconds."""
    return datetime.fromtimestamp(at_ms // 1_000, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{at_ms % 1_000:03d}Z"


def fee_of(kind: str, amount: int, currency: str) -> int:
    """Return what the acquirer keeps of a movement, in minor units."""
    if kind == "refund":
        return 0
    decimals = _DECIMALS.get(currency, _DECIMALS_ELSE)
    return (amount * FEE_BASIS_POINTS + 5_000) // 10_000 + FEE_FIXED_BY_DECIMALS[decimals]


def settle(movement: Movement, start_ms: int, until_ms: int) -> Row | None:
    """Return the row of a movement in the file of the day that begins at `start_ms`; None where it is not in it."""
    method = movement.payment_method
    delay_ms = DAY_MS if method == SETTLED_LATE else 0
    if method == SETTLED_NEVER or not start_ms <= movement.first_at_ms + delay_ms < until_ms:
        return None
    amount = movement.amount
    if method == SETTLED_SHORT:
        amount = max(amount - max(amount // 10, 1), 0)
    fee = fee_of(movement.kind, amount, movement.currency)
    if method == SETTLED_OVERCHARGED:
        fee += OVERCHARGE_MINOR_UNITS
    return Row(
        movement.partner,
        movement.kind,
        movement.key,
        movement.original_key or "",
        reference_of(movement.key),
        movement.currency,
        -amount if movement.kind == "refund" else amount,
        fee,
        movement.first_at_ms,
    )


class Writer:
    """Writes one file, piece by piece; keeps no rows, only their totals."""

    def __init__(self, day: date, partner: str | None, until_ms: int, *, final: bool) -> None:
        self._day = day.isoformat()
        self._partner = partner or ""
        self._until_ms = until_ms
        self._kind = "final" if final else "preliminary"
        self._totals: dict[str, list[int]] = {}

    def begin(self) -> bytes:
        """Return the header and the line that says what the file is."""
        said = {"settlement_date": self._day, "partner": self._partner, "kind": self._kind}
        return _lines([HEADER, _line("file", first_at=timestamp(self._until_ms), **said)])

    def rows(self, rows: Iterable[Row]) -> bytes:
        """Return further rows."""
        lines: list[tuple[str | int, ...]] = []
        for row in rows:
            net = row.gross - row.fee
            total = self._totals.setdefault(row.currency, [0, 0, 0])
            total[0] += row.gross
            total[1] += row.fee
            total[2] += 1
            lines.append(("row", self._day, *row[:8], net, timestamp(row.first_at_ms), ""))
        return _lines(lines)

    def end(self) -> bytes:
        """Return the totals and the last line."""
        lines = [
            _line("total", currency=currency, gross=gross, fee=fee, net=gross - fee, rows=count)
            for currency, (gross, fee, count) in sorted(self._totals.items())
        ]
        count = sum(total[2] for total in self._totals.values())
        return _lines([*lines, _line("end", settlement_date=self._day, rows=count)])


def _line(record: str, **fields: str | int) -> tuple[str | int, ...]:
    return (record, *(fields.get(name, "") for name in HEADER[1:]))


def _lines(lines: Iterable[Iterable[str | int]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(lines)
    return text.getvalue().encode("ascii")
