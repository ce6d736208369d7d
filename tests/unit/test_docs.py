"""The pages name what exists: a row of the protocol without its test is a promise without proof."""

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
    "docs/limits-and-errors.md",
]
CODE = ["actors", "cells", "router", "control_plane", "acquirer_simulator"]


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    named = set(
        re.findall(
            r"`((?:actors|cells|router|control_plane|acquirer_simulator|chaos|bench|docs|tests)/[\w/]+\.\w+)`", text
        )
    )
    assert named, f"{page} names no file at all"
    missing = sorted(name for name in named if not (ROOT / name).is_file())
    assert not missing, f"{page} names what does not exist"


def test_every_row_of_the_protocol_names_its_test() -> None:
    rows = re.findall(r"^\| \d+ \|.*$", (ROOT / "docs/protocol.md").read_text(), re.MULTILINE)
    assert len(rows) >= 19
    assert not [row for row in rows if "`tests/" not in row]


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
