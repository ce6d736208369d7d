"""Files of partners, as operators hand them in and get them back: CSV with a header, or JSON lines.

Reading tells every row that is wrong, by its line, and never stops at the first. Asks nobody and changes nothing.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from control_plane import limits, partner_fields
from control_plane.errors import InputFileError
from control_plane.partner_fields import FIELDS, PartnerFields
from control_plane.terminal import of_cell, to_cell

FORMATS: Final = ("csv", "jsonl")
_LISTS: Final = frozenset({"acquirers", "currencies"})


@dataclass(frozen=True, slots=True)
class Row:
    """A partner, and the line it stands in."""

    line: int
    fields: PartnerFields


@dataclass(frozen=True, slots=True)
class BadRow:
    """A line that is no partner, and why."""

    line: int
    why: str


def read(path: Path) -> tuple[list[Row], list[BadRow]]:
    """Read a file; its name's end says which format it has. Raises InputFileError where it is no such file at all."""
    kind = format_of(path)
    text = _read_text(path)
    read_rows = _read_csv(text, path) if kind == "csv" else _read_lines(text)
    rows: list[Row] = []
    bad: list[BadRow] = []
    lines_of: dict[str, int] = {}
    for line, fields in read_rows:
        if len(rows) + len(bad) >= limits.IMPORT_PARTNERS_MAX:
            raise InputFileError(
                f"it has more than {limits.IMPORT_PARTNERS_MAX} rows", where=str(path), hint="split it into several"
            )
        row = fields if isinstance(fields, BadRow) else _parse(line, fields)
        if isinstance(row, BadRow):
            bad.append(row)
        elif row.fields.id in lines_of:
            bad.append(BadRow(line, f"id: {row.fields.id!r} stands in line {lines_of[row.fields.id]} already"))
        else:
            lines_of[row.fields.id] = line
            rows.append(row)
    return rows, bad


def write(fields: Iterable[PartnerFields], kind: str) -> str:
    """Give a file of partners, as `read` reads it."""
    assert kind in FORMATS, kind
    if kind == "jsonl":
        return "".join(json.dumps(one.model_dump(), ensure_ascii=False) + "\n" for one in fields)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(FIELDS)
    for one in fields:
        writer.writerow([_cell(value) for value in one.model_dump().values()])
    return out.getvalue()


def _cell(value: Any) -> Any:
    return to_cell(",".join(value) if isinstance(value, list) else value) if isinstance(value, str | list) else value


def format_of(path: Path) -> str:
    """Say which format a file's name promises. Raises InputFileError."""
    kind = path.suffix.removeprefix(".").lower()
    if kind not in FORMATS:
        raise InputFileError(
            f"its name ends with neither of {', '.join('.' + name for name in FORMATS)}",
            where=str(path),
            hint="CSV has a header and a row a partner, JSON lines an object a partner",
        )
    return kind


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(limits.IMPORT_FILE_BYTES_MAX + 1)
        if len(raw) > limits.IMPORT_FILE_BYTES_MAX:
            raise InputFileError(
                f"it has more than {limits.IMPORT_FILE_BYTES_MAX} bytes", where=str(path), hint="split it into several"
            )
        return raw.decode("utf-8-sig")  # Excel writes a mark in front
    except (OSError, UnicodeDecodeError) as error:
        raise InputFileError(f"it can't be read: {error}", where=str(path), hint="it is UTF-8 text") from error


def _read_csv(text: str, path: Path) -> Iterable[tuple[int, dict[str, Any] | BadRow]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header = _header(reader, path)
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader, None)
        except csv.Error as error:
            yield line, BadRow(line, f"no CSV: {error}")
            return  # where the next row begins is not known any more
        if values is None:
            return
        if not values:
            continue
        if len(values) != len(header):
            yield line, BadRow(line, f"{len(values)} columns; the header has {len(header)}")
            continue
        # An empty cell is as one that is not there.
        fields: dict[str, Any] = {name: of_cell(value) for name, value in zip(header, values, strict=True) if value}
        for name in _LISTS & fields.keys():
            fields[name] = [part.strip() for part in fields[name].split(",") if part.strip()]
        yield line, fields


def _header(reader: Any, path: Path) -> Sequence[str]:
    try:
        header = next(reader, None) or []
    except csv.Error as error:
        raise InputFileError(f"its header is no CSV: {error}", where=f"{path}, line 1", hint="mend it") from error
    unknown = [name for name in header if name not in FIELDS]
    if unknown or "id" not in header or len(set(header)) < len(header):
        what = f"there is no column {unknown[0]!r:.40}" if unknown else "the header needs `id`, and each column once"
        raise InputFileError(
            what, where=f"{path}, line 1", hint=f"columns: {', '.join(FIELDS)}; all but id may be missing"
        )
    return header


def _read_lines(text: str) -> Iterable[tuple[int, dict[str, Any] | BadRow]]:
    for line, part in enumerate(text.split("\n"), start=1):
        if not part.strip():
            continue
        try:
            fields = json.loads(part)
        except (ValueError, RecursionError) as error:
            yield line, BadRow(line, f"no JSON: {error}")
            continue
        yield line, fields if isinstance(fields, dict) else BadRow(line, "no JSON object")


def _parse(line: int, fields: dict[str, Any]) -> Row | BadRow:
    try:
        return Row(line, PartnerFields.model_validate(fields))
    except ValidationError as error:
        return BadRow(line, partner_fields.explain(error))
