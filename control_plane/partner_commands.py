"""The commands for many partners at once, `bulkhead partner import` and `export`. Decides nothing itself."""

import itertools
import json
import os
from pathlib import Path
from typing import IO, Annotated, Any, Self

import typer

from control_plane import client, partner_fields, partner_file, screen
from control_plane.command_line import AsJson, where
from control_plane.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE, InputFileError
from control_plane.registry_records import Partner
from control_plane.screen import Imported


def import_partners(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="Partners: .csv with a header, or .jsonl with an object a line.")],
    *,
    partial: Annotated[
        bool, typer.Option("--partial", help="Onboard the good rows, also where others are bad.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is wrong with it; onboard nobody.")] = False,
    keys_to: Annotated[
        Path | None, typer.Option(help="Write ids and keys to this new file (mode 0600), not to the screen.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Onboard all partners of a file; each can pay from the moment that its line is printed.

    Columns: id, name, mode, status, rate_per_second, rate_burst, in_flight_max, isolation, acquirers, currencies.
    Only id has to be there. Every row is checked first; one that is wrong keeps all out, unless --partial.
    Repeat it after a failure: who is there already is left as it is, and its key is not shown again.

    Exit codes: 0 all are there, 1 some rows are not, 2 the file can't be read or nothing was done for its errors.

    \b
    Examples:
    bulkhead partner import shops.csv --dry-run
    bulkhead partner import shops.csv --keys-to keys.jsonl
    """  # noqa: D301 - it is to be a backspace: what follows it keeps its lines
    folder = where(context).folder()
    rows, bad = partner_file.read(file)
    refused = bool(bad) and not partial
    body = {
        "rows": [{"line": row.line, "partner": row.fields.model_dump()} for row in rows],
        "partial": partial,
        "dry_run": dry_run or refused,
    }
    counts = Imported(dry_run=dry_run)
    with _KeyFile(None if dry_run or refused else keys_to) as key_file, screen.importing(len(rows)) as shown:
        wrong = [{"line": one.line, "error": one.why} for one in bad]
        for told in itertools.chain(wrong, client.stream(folder, "POST", "/partners/import", body)):
            kept = key_file.keep(told)
            counts.count(kept)
            shown.tell(kept, as_json=as_json)
    screen.show_imported(counts)
    raise typer.Exit(_exit_code(counts))


def _exit_code(counts: Imported) -> int:
    if not counts.wrong:
        return EXIT_OK
    return EXIT_FAILED if counts.created or counts.there else EXIT_USAGE


def export_partners(
    context: typer.Context,
    *,
    kind: Annotated[str, typer.Option("--format", help="csv or jsonl.")] = "csv",
) -> None:
    """Print all partners as `partner import` reads them. Keys are not in it: they are stored nowhere.

    \b
    Examples:
    bulkhead partner export > partners.csv
    bulkhead partner export --format jsonl | jq .id
    """  # noqa: D301 - as above
    if kind not in partner_file.FORMATS:
        raise InputFileError(f"{kind!r} is no format", where="option --format", hint="csv or jsonl")
    found = client.ask(where(context).folder(), "GET", "/partners")
    fields = (partner_fields.of_partner(_partner(row)) for row in found["partners"])
    screen.show_as_it_is(partner_file.write(fields, kind))


def _partner(row: dict[str, Any]) -> Partner:
    return Partner(**{**row, "acquirers": tuple(row["acquirers"]), "currencies": tuple(row["currencies"])})


class _KeyFile:
    """A new file that only this user can read, to which keys go instead of to the screen; None: there is none."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        if self._path is not None:
            try:
                descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise InputFileError(
                    f"the file for the keys can't be made: {error.strerror}",
                    where=str(self._path),
                    hint="name one that is not there yet, in a folder that can be written",
                ) from error
            self._file = os.fdopen(descriptor, "w", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            assert self._path is not None
            if not self._path.stat().st_size:
                self._path.unlink()  # no key came, so the same command can be said again

    def keep(self, told: dict[str, Any]) -> dict[str, Any]:
        """Write down the key that is told of, and give what is told without it."""
        if self._file is None or "key" not in told:
            return told
        key = told["key"]
        self._file.write(json.dumps({"partner": told["partner"]["id"], **key}) + "\n")
        self._file.flush()  # what is shown as onboarded has its key on file, also where this ends in the middle
        return {**told, "key": {name: value for name, value in key.items() if name != "api_key"}}
