"""`bulkhead audit-log list|verify|export`: who changed, read or tried what, and whether anybody changed that since."""

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from control_plane import audit_chain, audit_head, audit_key, client, limits, screen
from control_plane.audit_chain import Head
from control_plane.audit_key import AuditKeyFiles
from control_plane.command_line import AsJson, explained, where
from control_plane.data_folder import DataFolder
from control_plane.errors import EXIT_FAILED, EXIT_OK, InputFileError
from control_plane.registry_records import ACCESSES, Change
from control_plane.settings import SYSLOG, Settings

T = TypeVar("T")

app = typer.Typer(help="The audit log: who did what, and whether it is whole.", no_args_is_help=True)


@app.command("list")
@explained
def list_entries(
    context: typer.Context,
    *,
    partner: Annotated[str | None, typer.Option(help="Of this partner only.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=limits.AUDIT_ENTRIES_SHOWN_MAX, help="So many, the newest.")] = 50,
    changes: Annotated[bool, typer.Option("--changes", help="Leave out what was only read, refused or tried.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the newest entries, the newest first: what was changed, read, refused and tried with keys that are not good.

    What is alike within a minute is one entry, which says how often it came.

    \b
    Examples:
    bulkhead audit-log list --partner acme
    bulkhead audit-log list --limit 500 --json | jq '.entries[] | select(.who == "ann")'
    """  # noqa: D301 - it is to be a backspace: what follows it keeps its lines
    folder = where(context).folder()
    told = (line["entry"] for line in _counted(_stream(folder), _length(folder)) if "entry" in line)
    wanted = (entry for entry in told if not changes or entry["what"] not in ACCESSES)
    newest = deque((entry for entry in wanted if partner in {None, entry["partner_id"]}), maxlen=limit)
    if as_json:
        screen.show_json({"entries": list(reversed(newest))})
    else:
        screen.show_audit_log(list(reversed(newest)))


@app.command("export")
@explained
def export_entries(
    context: typer.Context,
    *,
    after: Annotated[int, typer.Option(min=0, help="Only what came after this number.")] = 0,
) -> None:
    """Print all entries as JSON lines, each with its hash, the oldest first.

    A hash is HMAC-SHA-256 of the entry's other fields but `keyed` (and `origin` where it is empty), as JSON with sorted
    names, without spaces, in ASCII; of entries before the seal, whose `keyed` is false, it is SHA-256. An auditor needs
    this file, the key (in secrets/audit.key, or where audit_key_file says), and a head that was kept elsewhere.

    \b
    Examples:
    bulkhead audit-log export > audit.jsonl
    bulkhead audit-log verify --file audit.jsonl
    """  # noqa: D301 - it is to be a backspace: what follows it keeps its lines
    for line in _stream(where(context).folder(), after):
        if "entry" in line:
            screen.show_as_it_is(json.dumps({**line["entry"], "hash": line["hash"]}) + "\n")


@app.command("verify")
@explained
def verify_entries(
    context: typer.Context,
    *,
    head: Annotated[str | None, typer.Option(help="A head that you kept, as this command printed it.")] = None,
    file: Annotated[Path | None, typer.Option(help="Verify this file of `audit-log export` instead.")] = None,
    key_file: Annotated[Path | None, typer.Option(help="The log's key, where it is not this installation's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Follow the chain of hashes, and compare its end with what is known elsewhere.

    Tells of entries that were changed, are missing, stand in another order, were written without the key or were cut
    off at the end. Without the key it is checked that entries follow each other and end in the heads, not what they
    say. The heads in the store and in audit_head.json could be put back along with the log: name a second place for
    them (audit_head_copy in the settings), or keep what this prints.

    Exit codes: 0 it is whole, 1 it is not.

    \b
    Examples:
    bulkhead audit-log verify
    bulkhead audit-log verify --head 1042:6f3a...
    bulkhead audit-log verify --file audit.jsonl --key-file audit.key
    """  # noqa: D301 - it is to be a backspace: what follows it keeps its lines
    settings = where(context).load()
    folder = DataFolder(settings.data_folder)
    heads = [] if head is None else [("--head", audit_head.parse(head, "option --head"))]
    key = None if key_file is None else audit_key.read(AuditKeyFiles(key_file))
    if not client.is_elsewhere():  # of another installation's log what lies here says nothing
        heads += _kept_here(settings, folder)
        key = key or _own_key(settings, folder)
    if file is not None:
        verdict = audit_chain.verify(_counted(_read_file(file), None), heads, key)
    else:
        lines = list(_counted(_stream(folder), _length(folder)))
        (told,) = (line["head"] for line in lines if "head" in line)
        if told is not None:
            heads.append(("the store", Head(**told)))
        entries = ((Change(**line["entry"]), str(line["hash"])) for line in lines if "entry" in line)
        verdict = audit_chain.verify(entries, heads, key)
    if as_json:
        screen.show_json({"ok": not verdict.problems, **asdict(verdict)})
    else:
        screen.show_audit_verdict(verdict)
    raise typer.Exit(EXIT_FAILED if verdict.problems else EXIT_OK)


def _kept_here(settings: Settings, folder: DataFolder) -> Iterator[tuple[str, Head]]:
    """Yield the heads that this installation keeps beside the log and elsewhere. Raises InputFileError."""
    files = [folder.audit_head_file, AuditKeyFiles.of(settings, folder).seal]
    if settings.audit_head_copy not in {"", SYSLOG}:
        files.append(Path(settings.audit_head_copy))
    for file in files:
        kept = audit_head.read(file)
        if kept is not None:
            yield str(file), kept


def _own_key(settings: Settings, folder: DataFolder) -> bytes | None:
    """Return the installation's key, None where this user may not read it. Raises FolderError where it is damaged."""
    files = AuditKeyFiles.of(settings, folder)
    return audit_key.read(files) if os.access(files.key, os.R_OK) else None


def _stream(folder: DataFolder, after: int = 0) -> Iterator[dict[str, Any]]:
    return client.stream(folder, "GET", f"/audit-log?after={after}")


def _length(folder: DataFolder) -> int | None:
    """Give how long the log is by the head that is kept here, for who watches; None where none is."""
    kept = None if client.is_elsewhere() else audit_head.read(folder.audit_head_file)
    return None if kept is None else kept.sequence


def _counted(lines: Iterable[T], of: int | None) -> Iterator[T]:
    """Give what is read, and show how far it is."""
    with screen.counting("reading the audit log") as told:
        for number, line in enumerate(lines, start=1):
            if number % limits.AUDIT_PROGRESS_ENTRIES == 0:
                told(number, of)
            yield line


def _read_file(path: Path) -> Iterator[tuple[Change, str]]:
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    fields = json.loads(line)
                    told = str(fields.pop("hash"))
                    yield Change(**fields), told
                except (ValueError, TypeError, KeyError, RecursionError) as error:
                    raise InputFileError(
                        f"it is no entry of an audit log: {error}",
                        where=f"{path}, line {number}",
                        hint="was it changed?",
                    ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputFileError(f"it can't be read: {error}", where=str(path), hint="name a file of `export`") from error
