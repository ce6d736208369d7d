"""Reads an acquirer's settlement file: checks every line, and splits its rows by partner into temporary files.

One pass, in bounded memory, whatever the file's size; nothing is believed before its trailer has been seen to agree.
The format is that of acquirer_simulator/settlements.py, told in docs/settlement.md. Nothing is sent anywhere here.
"""

import csv
import hashlib
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, Final, NamedTuple, Protocol

import msgpack

from cells.api import limits as wire_limits
from control_plane import limits
from control_plane.errors import ControlPlaneError, InputFileError
from router.directory import PARTNER_ID

VERSION_NAME: Final = "settlement_v1"
COLUMNS: Final = (
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
PAID_OUT: Final = frozenset({"capture", "purchase"})
TAKEN_BACK: Final = frozenset({"refund"})

_KEY: Final = rf"[A-Za-z0-9._:~-]{{1,{wire_limits.SETTLEMENT_KEY_CHARACTERS_MAX}}}"
_AMOUNT: Final = r"0|-?[1-9][0-9]{0,12}"
_DAY: Final = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_INSTANT: Final = rf"{_DAY}T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\.[0-9]{{3}}Z"
# What each field of a row is, and how that is said to a person.
_FIELDS: Final[dict[str, tuple[str, str]]] = {
    "settlement_date": (_DAY, "a day, YYYY-MM-DD"),
    "partner": (PARTNER_ID, "a partner's id"),
    # Kinds that this version does not know are for the partner's actor to hold.
    "kind": (r"[a-z_]{1,40}", "a kind of money movement"),
    "key": (_KEY, "an operation's id"),
    "original_key": (f"(?:{_KEY})?", "an operation's id, or empty"),
    "reference": (rf"[!-~]{{1,{wire_limits.SETTLEMENT_REFERENCE_CHARACTERS_MAX}}}", "a reference"),
    "currency": (r"[A-Z]{3}", "a currency, three capital letters"),
    "gross": (_AMOUNT, "an amount in minor units"),
    "fee": (_AMOUNT, "an amount in minor units"),
    "net": (_AMOUNT, "an amount in minor units"),
    "first_at": (_INSTANT, "an instant, YYYY-MM-DDThh:mm:ss.sssZ"),
    "rows": ("", "empty"),
}
assert tuple(_FIELDS) == COLUMNS
# One look at a row that is as it should be; field by field only where it is not. No field may hold the separator.
_SEPARATOR: Final = "\x1f"
_ROW: Final = re.compile(_SEPARATOR.join(f"(?:{pattern})" for pattern, _ in _FIELDS.values()), re.ASCII)
_COUNT: Final = re.compile(r"0|[1-9][0-9]{0,11}", re.ASCII)
_SUM: Final = re.compile(r"0|-?[1-9][0-9]{0,20}", re.ASCII)
_UNKNOWN_GROUP: Final = "-"  # no partner's id


class Row(NamedTuple):
    """One money movement as the file has it; `line` is its line's number. Amounts in minor units, refunds negative."""

    line: int
    partner: str
    kind: str
    key: str
    original_key: str | None
    reference: str
    currency: str
    gross: int
    fee: int
    first_at: str


@dataclass(slots=True)
class Total:
    """Sums of one currency."""

    gross: int = 0
    fee: int = 0
    rows: int = 0


@dataclass(slots=True)
class SettlementFile:
    """A file that was read whole and agrees with itself. `partner`: it is of one only."""

    path: Path
    sha256: str = ""
    day: str = ""
    final: bool = False
    partner: str | None = None
    until_ms: int = 0
    rows: int = 0
    totals: dict[str, Total] = field(default_factory=dict)
    groups: "Groups | None" = None

    @property
    def start_ms(self) -> int:
        """When its day begins in UTC, as Unix time."""
        return int(datetime.fromisoformat(self.day).replace(tzinfo=UTC).timestamp()) * 1_000

    def describe(self) -> dict[str, Any]:
        """Give what the file says of itself, for reports."""
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "settlement_date": self.day,
            "kind": "final" if self.final else "preliminary",
            "partner": self.partner,
            "rows": self.rows,
            "totals": [
                {
                    "currency": currency,
                    "gross": total.gross,
                    "fee": total.fee,
                    "net": total.gross - total.fee,
                    "rows": total.rows,
                }
                for currency, total in sorted(self.totals.items())
            ],
        }


class Groups:
    """The rows by partner, in one temporary file each; those of partners that are not known, in one together."""

    def __init__(self, folder: Path, known: frozenset[str]) -> None:
        self._folder = folder
        self._known = known
        self._buffers: dict[str, bytearray] = {}
        self._buffered_bytes = 0
        self._pack = msgpack.Packer().pack
        self.counts: dict[str, int] = {}

    def add(self, row: Row) -> None:
        """Put a row to its partner's. Raises OSError."""
        name = row.partner if row.partner in self._known else _UNKNOWN_GROUP
        packed = self._pack(row)
        self._buffers.setdefault(name, bytearray()).extend(packed)
        self.counts[name] = self.counts.get(name, 0) + 1
        self._buffered_bytes += len(packed)
        if self._buffered_bytes >= limits.SETTLEMENT_BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered. Files are opened for that only: there may be more partners than file handles."""
        for name, buffer in self._buffers.items():
            with (self._folder / name).open("ab") as file:
                file.write(buffer)
        self._buffers.clear()
        self._buffered_bytes = 0

    def rows(self, partner: str) -> Iterator[Row]:
        """Give a partner's rows in the file's order."""
        return self._rows(partner)

    def rows_of_unknown_partners(self) -> Iterator[Row]:
        """Give the rows of partners that are not known."""
        return self._rows(_UNKNOWN_GROUP)

    def duplicates(self) -> Iterator[tuple[Row, int]]:
        """Give rows whose key stood in an earlier row of the same partner, with that row's line."""
        for name in sorted(self.counts):
            # Of a partner with very many rows, a part of the keys at a time.
            parts = self.counts[name] // limits.SETTLEMENT_KEYS_AT_ONCE_MAX + 1
            for part in range(parts):
                yield from self._duplicates(name, part, parts)

    def _duplicates(self, name: str, part: int, parts: int) -> Iterator[tuple[Row, int]]:
        seen: set[int] = set()
        suspects: set[int] = set()
        for row in self._rows(name):
            digest = hash((row.partner, row.key))
            if digest % parts == part:
                (suspects if digest in seen else seen).add(digest)
        if not suspects:
            return
        lines: dict[tuple[str, str], int] = {}
        for row in self._rows(name):
            identity = (row.partner, row.key)
            if hash(identity) in suspects and lines.setdefault(identity, row.line) != row.line:
                yield row, lines[identity]

    def _rows(self, name: str) -> Iterator[Row]:
        if name not in self.counts:
            return
        with (self._folder / name).open("rb") as file:
            yield from map(Row._make, msgpack.Unpacker(file, use_list=False))


class Progress(Protocol):
    """Is told how many bytes were read so far."""

    def __call__(self, bytes_read: int, /) -> None:
        """Take note."""


@contextmanager
def opened(path: Path, known_partners: frozenset[str], progress: Progress) -> Iterator[SettlementFile]:
    """Read a file whole and give it, with its rows by partner for as long as the block runs.

    Raises InputFileError where any line is wrong, ControlPlaneError where the temporary folder takes no more.
    """
    with TemporaryDirectory(prefix="bulkhead-settlement-") as folder:
        groups = Groups(Path(folder), known_partners)
        reader = _Reader(path, groups, progress)
        try:
            with path.open("rb", buffering=0) as raw:
                settlement = reader.read(raw)
        except FileNotFoundError as error:
            raise InputFileError(f"there is no file {path}", where=str(path)) from error
        except OSError as error:
            raise ControlPlaneError(
                f"the file can't be read or split: {error}",
                where=f"{path}, {folder}",
                hint="rows are split in the temporary folder, about as large as the file; TMPDIR moves it",
            ) from error
        yield settlement


class _Hashed(io.RawIOBase):
    """A file that sums up what is read of it, so that what was checked is what was summed up."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self.digest = hashlib.sha256()
        self.bytes_read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count: int = self._raw.readinto(buffer) or 0  # type: ignore[attr-defined]
        self.digest.update(memoryview(buffer)[:count])
        self.bytes_read += count
        return count


class _LineError(Exception):
    """What is wrong with one line; those behind it are looked at all the same."""


class _FileError(Exception):
    """What is wrong with the whole file from here on."""


class _Reader:
    """Reads one file."""

    def __init__(self, path: Path, groups: Groups, progress: Progress) -> None:
        self._path = path
        self._groups = groups
        self._progress = progress
        self._file = SettlementFile(path, groups=groups)
        self._errors: list[str] = []
        self._totals_said: dict[str, tuple[int, int, int, int]] = {}
        self._line = 0

    def read(self, raw: BinaryIO) -> SettlementFile:
        hashed = _Hashed(raw)
        lines = _lines(io.BufferedReader(hashed, limits.SETTLEMENT_READ_BYTES), self._count_line)
        records = csv.reader(lines, strict=True)
        try:
            self._read_header(records)
            self._read_records(records, lambda: self._progress(hashed.bytes_read))
            if not self._errors:
                self._groups.flush()
                self._refuse_duplicates()
        except _FileError as error:
            self._errors.append(f"line {max(self._line, 1)}: {error}")
        except csv.Error as error:
            self._errors.append(f"line {max(self._line, 1)}: not CSV: {error}")
        if self._errors:
            raise InputFileError(
                "the file is not a settlement file that can be believed; nothing of it was posted:\n  "
                + "\n  ".join(self._errors),
                where=str(self._path),
                hint="fetch it again from the acquirer; docs/settlement.md describes the format",
            )
        self._file.sha256 = hashed.digest.hexdigest()
        return self._file

    def _count_line(self) -> None:
        self._line += 1

    def _read_header(self, records: Iterator[list[str]]) -> None:
        header = next(records, None)
        if not header:
            raise _FileError("the file is empty")
        name = header[0]
        if name != VERSION_NAME:
            if re.fullmatch(r"settlement_v[0-9]{1,9}", name, re.ASCII):
                raise _FileError(f"the file is of version {name[12:]}; this program knows 1")
            raise _FileError(f"the header must begin with {VERSION_NAME}; this is no settlement file")
        if tuple(header[1:]) != COLUMNS:
            raise _FileError(f"the header of {VERSION_NAME} must be {VERSION_NAME},{','.join(COLUMNS)}")
        said = next(records, None)
        if said is None or said[:1] != ["file"] or len(said) != len(header):
            raise _FileError("the first line behind the header must be of the kind `file`")
        fields = dict(zip(COLUMNS, said[1:], strict=True))
        others = [name for name in COLUMNS if fields[name] and name not in _FILE_FIELDS]
        if (
            others
            or not _is_day(fields["settlement_date"])
            or fields["kind"] not in {"final", "preliminary"}
            or not re.fullmatch(f"(?:{PARTNER_ID})?", fields["partner"], re.ASCII)
            or not _is_instant(fields["first_at"])
        ):
            raise _FileError(
                "the `file` line needs settlement_date, kind (final or preliminary), first_at, and at most partner"
            )
        self._file.day = fields["settlement_date"]
        self._file.final = fields["kind"] == "final"
        self._file.partner = fields["partner"] or None
        self._file.until_ms = _instant_ms(fields["first_at"])
        start_ms = self._file.start_ms
        if not start_ms <= self._file.until_ms <= start_ms + DAY_MS or (
            self._file.final and self._file.until_ms != start_ms + DAY_MS
        ):
            raise _FileError("what the file covers (first_at) must end in its day, and with it where it is final")

    def _read_records(self, records: Iterator[list[str]], tell: Callable[[], None]) -> None:
        for fields in records:
            if len(self._errors) >= limits.SETTLEMENT_ERRORS_SHOWN_MAX:
                raise _FileError("too many wrong lines; what follows was not looked at")
            if not self._line % limits.SETTLEMENT_PROGRESS_LINES:
                tell()
            try:
                ended = self._take(fields)
            except _LineError as error:
                self._errors.append(f"line {self._line}: {error}")
                ended = fields[:1] == ["end"]
            if ended:
                if next(records, None) is not None:
                    raise _FileError("something follows the last line (`end`)")
                tell()
                return
        raise _FileError("the file ends without its last line (`end`): it is truncated")

    def _take(self, fields: list[str]) -> bool:
        """Take a line; say whether it is the last."""
        if len(fields) != len(COLUMNS) + 1:
            if fields[:1] == ["end"]:
                raise _LineError("the last line (`end`) is not whole: the file is truncated")
            raise _LineError(f"{len(COLUMNS) + 1} fields are wanted, there are {len(fields)}")
        match fields[0]:
            case "row":
                self._take_row(fields)
            case "total":
                self._take_total(fields)
            case "end":
                self._take_end(fields)
                return True
            case other:
                raise _LineError(f"no line is of the kind {other[:40]!r}")
        return False

    def _take_row(self, fields: list[str]) -> None:
        if self._totals_said:
            raise _LineError("a row behind the totals")
        if _ROW.fullmatch(_SEPARATOR.join(fields[1:])) is None:
            raise _LineError(_explain(fields[1:]))
        _, day, partner, kind, key, original_key, reference, currency, gross_text, fee_text, net_text, first_at, _ = (
            fields
        )
        gross, fee = int(gross_text), int(fee_text)
        if day != self._file.day:
            raise _LineError(f"settlement_date: the file is of {self._file.day}, this row of {day}")
        if self._file.partner is not None and partner != self._file.partner:
            raise _LineError(f"partner: the file is of {self._file.partner} only, this row of {partner}")
        if not _is_day(first_at[:10]):
            raise _LineError("first_at: there is no such day")
        _check_amounts(kind, gross, fee, int(net_text))
        self._add_up(currency, gross, fee)
        if not self._errors:
            self._groups.add(
                Row(self._line, partner, kind, key, original_key or None, reference, currency, gross, fee, first_at)
            )

    def _add_up(self, currency: str, gross: int, fee: int) -> None:
        if self._file.rows >= limits.SETTLEMENT_FILE_ROWS_MAX:
            raise _FileError(f"more than {limits.SETTLEMENT_FILE_ROWS_MAX} rows")
        total = self._file.totals.get(currency)
        if total is None:
            if len(self._file.totals) >= limits.SETTLEMENT_CURRENCIES_MAX:
                raise _FileError(f"more than {limits.SETTLEMENT_CURRENCIES_MAX} currencies")
            total = self._file.totals[currency] = Total()
        total.gross += gross
        total.fee += fee
        total.rows += 1
        self._file.rows += 1

    def _take_total(self, fields: list[str]) -> None:
        named = dict(zip(COLUMNS, fields[1:], strict=True))
        if any(named[name] for name in COLUMNS if name not in _TOTAL_FIELDS):
            raise _LineError(f"a total has {', '.join(_TOTAL_FIELDS)} only")
        currency = named["currency"]
        sums = [named[name] for name in ("gross", "fee", "net")]
        if not all(_SUM.fullmatch(text) for text in sums) or not _COUNT.fullmatch(named["rows"]):
            raise _LineError("a total has sums in minor units and a number of rows")
        if currency in self._totals_said:
            raise _LineError(f"a second total of {currency}")
        found = self._file.totals.get(currency, Total())
        said = (*map(int, sums), int(named["rows"]))
        computed = (found.gross, found.fee, found.gross - found.fee, found.rows)
        self._totals_said[currency] = computed
        if said != computed and not self._errors:
            raise _LineError(
                f"the total of {currency} says gross {said[0]}, fee {said[1]}, net {said[2]} in {said[3]} rows; "
                f"the rows give {computed[0]}, {computed[1]}, {computed[2]} in {computed[3]}"
            )

    def _take_end(self, fields: list[str]) -> None:
        named = dict(zip(COLUMNS, fields[1:], strict=True))
        if any(named[name] for name in COLUMNS if name not in _END_FIELDS) or not _COUNT.fullmatch(named["rows"]):
            raise _LineError("the last line (`end`) has settlement_date and rows only")
        if named["settlement_date"] != self._file.day:
            raise _LineError(f"settlement_date: the file is of {self._file.day}")
        if self._errors:
            return
        if int(named["rows"]) != self._file.rows:
            raise _LineError(f"the last line says {named['rows']} rows; there are {self._file.rows}")
        lacking = self._file.totals.keys() - self._totals_said.keys()
        if lacking:
            raise _LineError(f"there is no total of {', '.join(sorted(lacking))}")

    def _refuse_duplicates(self) -> None:
        for row, line in self._groups.duplicates():
            if len(self._errors) >= limits.SETTLEMENT_ERRORS_SHOWN_MAX:
                return
            self._errors.append(f"line {row.line}: {row.key} of {row.partner} stands in line {line} already")


_FILE_FIELDS: Final = frozenset({"settlement_date", "partner", "kind", "first_at"})
_TOTAL_FIELDS: Final = ("currency", "gross", "fee", "net", "rows")
_END_FIELDS: Final = ("settlement_date", "rows")


def _lines(file: BinaryIO, count: Callable[[], None]) -> Iterator[str]:
    """Give the lines as text. Raises _FileError at one that is too long or not ASCII."""
    first = True
    while line := file.readline(limits.SETTLEMENT_LINE_BYTES_MAX + 1):
        count()
        if len(line) > limits.SETTLEMENT_LINE_BYTES_MAX:
            raise _FileError(f"the line is longer than {limits.SETTLEMENT_LINE_BYTES_MAX} bytes")
        if first and line.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
            raise _FileError("the file begins with a byte order mark; it must be plain ASCII")
        first = False
        try:
            yield line.decode("ascii")
        except UnicodeDecodeError as error:
            raise _FileError(f"byte {error.start + 1} is no ASCII; is the file compressed, or in UTF-16?") from error


def _check_amounts(kind: str, gross: int, fee: int, net: int) -> None:
    most = wire_limits.SETTLEMENT_AMOUNT_MINOR_UNITS_MAX
    if max(abs(gross), abs(fee)) > most:
        raise _LineError(f"gross and fee are at most {most}")
    if net != gross - fee:
        raise _LineError(f"net: {gross} less {fee} is {gross - fee}, not {net}")
    if (kind in PAID_OUT and gross < 0) or (kind in TAKEN_BACK and gross > 0):
        raise _LineError(f"gross: a {kind} of {gross} has the wrong sign")


def _explain(fields: list[str]) -> str:
    for (name, (pattern, meaning)), value in zip(_FIELDS.items(), fields, strict=True):
        if re.fullmatch(pattern, value, re.ASCII) is None:
            return f"{name}: {value[:60]!r} is not {meaning}"
    return "a field holds a control character"


@lru_cache(maxsize=64)
def _is_day(text: str) -> bool:
    if re.fullmatch(_DAY, text, re.ASCII) is None:
        return False
    try:
        return date.fromisoformat(text).year >= 1970
    except ValueError:
        return False


def _is_instant(text: str) -> bool:
    return re.fullmatch(_INSTANT, text, re.ASCII) is not None and _is_day(text[:10])


def _instant_ms(text: str) -> int:
    moment = datetime.fromisoformat(text)
    return int(moment.timestamp()) * 1_000 + moment.microsecond // 1_000
