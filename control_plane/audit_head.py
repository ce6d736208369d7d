"""The head of the audit log, kept in a file beside the store: who cuts the log off has to change both."""

import json
from dataclasses import asdict
from pathlib import Path

from control_plane.audit_chain import Head
from control_plane.errors import InputFileError
from router.directory_file import write_atomically


def write(path: Path, head: Head) -> None:
    """Keep the head. Raises OSError."""
    write_atomically(path, json.dumps(asdict(head)).encode())


def read(path: Path) -> Head | None:
    """Read what was kept last; None where nothing was. Raises InputFileError."""
    try:
        fields = json.loads(path.read_bytes())
        return parse(f"{fields['sequence']}:{fields['hash']}", str(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputFileError(
            f"the kept head of the audit log can't be read: {error}", where=str(path), hint="was it changed?"
        ) from error


def parse(text: str, where: str) -> Head:
    """Read `number:hash`, as `audit-log verify` prints it. Raises InputFileError."""
    number, _, hashed = text.partition(":")
    if not number.isascii() or not number.isdigit() or len(hashed) != 64 or set(hashed) - set("0123456789abcdef"):
        raise InputFileError(
            f"{text!r:.100} is no head of an audit log", where=where, hint="it is a number, a colon, and 64 hex digits"
        )
    return Head(int(number), hashed)
