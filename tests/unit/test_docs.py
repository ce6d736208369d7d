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
]


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    named = set(
        re.findall(r"`((?:actors|cells|router|control_plane|acquirer_simulator|chaos|docs|tests)/[\w/]+\.\w+)`", text)
    )
    assert named, f"{page} names no file at all"
    missing = sorted(name for name in named if not (ROOT / name).is_file())
    assert not missing, f"{page} names what does not exist"


def test_every_row_of_the_protocol_names_its_test() -> None:
    rows = re.findall(r"^\| \d+ \|.*$", (ROOT / "docs/protocol.md").read_text(), re.MULTILINE)
    assert len(rows) >= 19
    assert not [row for row in rows if "`tests/" not in row]
