"""Text of others on an operator's terminal and in a spreadsheet: shown, and never carried out."""

import json
import re
from typing import Any, Final

from rich import markup

# Control characters of ASCII and Latin-1 but line ends and tabs, and those that turn the direction of writing (Unicode
# Technical Report 36): a terminal obeys the first, a reader is misled by the second.
_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# What a spreadsheet takes for the beginning of a formula (OWASP, CSV injection), and the sign that says it is none.
_FORMULA: Final = re.compile("'*[=+\\-@\t\r\uff1d\uff0b\uff0d\uff20]")
_TEXT: Final = "'"


def printable(text: str) -> str:
    r"""Return the text with control characters written as `\u001b`."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def escape(text: str) -> str:
    """Return the text so that rich prints it as it is, control characters written out."""
    return markup.escape(printable(text))  # noqa: TID251 - this is the one place


def to_json(value: Any) -> str:
    """Encode JSON for a terminal and for programs: control characters are escaped, other text is as it is."""
    return printable(json.dumps(value, indent=2, ensure_ascii=False))


def to_cell(text: str) -> str:
    """Return a CSV cell's text that no spreadsheet takes for a formula; `of_cell` gives the text again."""
    return _TEXT + text if _FORMULA.match(text) else text


def of_cell(cell: str) -> str:
    """Return the text that `to_cell` was given."""
    return cell[1:] if cell.startswith(_TEXT) and _FORMULA.match(cell[1:]) else cell
