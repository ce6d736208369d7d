"""The pages name what exists: a row of the protocol without its test is a promise without proof."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "ARCHITECTURE.md",
    "docs/protocol.md",
    "docs/payments.md",
    "docs/notifications.md",
    "docs/settlement.md",
    "docs/performance.md",
    "docs/soak.md",
    "docs/chaos.md",
    "docs/limits-and-errors.md",
    "docs/keyspace.md",
    "docs/foundationdb.md",
    "docs/operations.md",
]
CODE = ["actors", "cells", "router", "control_plane", "acquirer_simulator"]


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    named = set(
        re.findall(
            r"`((?:actors|cells|router|control_plane|acquirer_simulator|stores|chaos|bench|docs|tests)/[\w/]+\.\w+)`",
            text,
        )
    )
    assert named, f"{page} names no file at all"
    missing = sorted(name for name in named if not (ROOT / name).is_file())
    assert not missing, f"{page} names what does not exist"


def test_every_row_of_the_protocol_names_its_test() -> None:
    rows = re.findall(r"^\| \d+ \|.*$", (ROOT / "docs/protocol.md").read_text(), re.MULTILINE)
    assert len(rows) >= 19
    assert not [row for row in rows if "`tests/" not in row]


def test_every_row_of_the_protocol_has_a_number_of_its_own_and_each_reference_finds_it() -> None:
    page = (ROOT / "docs/protocol.md").read_text()
    numbers = [int(number) for number in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)]
    assert numbers == sorted(set(numbers)), "each number once, and rising"
    rows = re.findall(r"^\| \d+ \|.*$", page, re.MULTILINE)
    named = {
        int(number)
        for row in rows
        for found in re.findall(r"\b[Aa]s (\d+)(?: or (\d+))?", row)
        for number in found
        if number
    }
    for file in [*PAGES, "CHANGELOG.md"]:
        for first, last in re.findall(r"\brows? (\d+)(?:\s+to\s+(\d+))?", (ROOT / file).read_text()):
            named |= {int(first), int(last or first)}
    assert len(named) > 10
    assert named <= set(numbers)


def test_whatever_reads_the_wall_clock_stands_in_the_table_of_clocks() -> None:
    """A new reader of the wall clock needs a row that says what a wrong clock does to it."""
    reads_it = re.compile(
        r"\btime\.time\(|\btime_ns\(|datetime\.(?:now|today|utcnow)\(|(?<!def )\bULID\(\)|\bWebhook\("
    )
    found = {
        str(file.relative_to(ROOT))
        for folder in CODE
        for file in (ROOT / folder).rglob("*.py")
        if reads_it.search(file.read_text().replace("monotonic_ns(", ""))
    }
    _, _, section = (ROOT / "docs/protocol.md").read_text().partition("## Clocks")
    rows = [row for row in section.partition("\n## ")[0].splitlines() if row.startswith("| ")][1:]
    assert len(rows) >= 10
    assert not [row for row in rows if "`tests/" not in row]
    told = {
        name for row in rows if "| wall" in row for name in re.findall(r"`([a-z_]+/[\w/]+\.py)`", row.split("|")[1])
    }
    assert found == told


def _keys_in(file: str) -> set[tuple[str, ...]]:
    """The texts that each key in a file begins with: all tuples whose first parts are texts."""
    keys = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Tuple):
            parts = [part.value if isinstance(part, ast.Constant) else None for part in node.elts]
            texts = parts[: parts.index(None)] if None in parts else parts
            if texts and all(isinstance(text, str) for text in texts):
                keys.add(tuple(map(str, texts)))
    return keys


def test_every_key_has_its_row_in_the_keyspace() -> None:
    page = (ROOT / "docs/keyspace.md").read_text()
    told = {tuple(re.findall(r'"(\w+)"', key)) for key in re.findall(r"^\| `\(([^)]*)\)` \|", page, re.MULTILINE)}
    assert len(told) >= 12
    book_name = ("control",)
    for file in ("actors/keyspace.py", "control_plane/registry_keys.py"):
        assert not _keys_in(file) - told - {book_name}, f"docs/keyspace.md does not name these of {file}"
    _, _, book = page.partition("## A partner's book")
    for key in re.findall(r'^\| `\(("[^)]*)\)` \|', book.partition("**The store's own rows.**")[0], re.MULTILINE):
        assert tuple(re.findall(r'"(\w+)"', key)) in _keys_in("actors/keyspace.py"), f"there is no key ({key})"
