"""Logs: one JSON object a line, ours and the libraries' alike, in files that stay within their bound."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from cells.api import logs


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    path = tmp_path / "cell-0.door.log"
    logs.configure(str(path), process="cell-0.door", cell="cell-0")
    yield path
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_holds_what_is_bound_and_what_is_told(log_file: Path) -> None:
    structlog.get_logger().bind(partner="acme").info("operation_settled", payment="pay_1", amount=5)
    (line,) = _lines(log_file)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "operation_settled",
        "level": "info",
        "process": "cell-0.door",
        "cell": "cell-0",
        "partner": "acme",
        "payment": "pay_1",
        "amount": 5,
    }


def test_a_library_says_it_in_the_same_form(log_file: Path) -> None:
    logging.getLogger("asyncio").error("a task was %s", "lost")
    logging.getLogger("asyncio").debug("nobody reads this")
    (line,) = _lines(log_file)
    assert (line["event"], line["level"], line["cell"]) == ("a task was lost", "error", "cell-0")


def test_below_the_level_nothing_is_written(log_file: Path) -> None:
    structlog.get_logger().debug("nobody reads this")
    assert _lines(log_file) == []


def test_an_exception_is_told_without_its_variables(log_file: Path) -> None:
    secret = "s3cr3t"
    try:
        int(f"{len(secret)} variables")
    except ValueError:
        structlog.get_logger().exception("it_failed")
    assert secret not in log_file.read_text()
    assert _lines(log_file)[0]["exception"][0]["exc_type"] == "ValueError"


def test_files_are_rotated_within_their_bound(log_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOG_FILE_BYTES_MAX", 10_000)
    monkeypatch.setattr(logs, "LOG_FILE_CHARACTERS_UNLOOKED_MAX", 500)
    log = structlog.get_logger()
    for number in range(500):
        log.info("line", number=number, text="x" * 100)
    files = sorted(log_file.parent.iterdir())
    assert len(files) == 1 + logs.LOG_FILES_KEPT
    assert all(file.stat().st_size <= 10_000 + 500 + 300 for file in files)
    assert _lines(log_file)[-1]["number"] == 499


def test_a_line_without_end_is_cut_and_keeps_what_is_short(log_file: Path) -> None:
    structlog.get_logger().error(
        "it_failed", trace=[{"exc_type": "RecursionError", "frames": ['"'] * 200_000}], partner="a"
    )
    structlog.get_logger().error("it_failed", **{f"field_{n}": "x" * 900 for n in range(100)})
    for text in log_file.read_text().splitlines():
        assert len(text) <= logs.LOG_LINE_BYTES_MAX
    first, second = _lines(log_file)
    assert (first["event"], first["level"], first["partner"]) == ("it_failed", "error", "a")
    assert first["cut_from_bytes"] > 200_000
    assert first["trace"].startswith('[{"exc_type":"RecursionError"')
    assert second["cut_from_bytes"] > 90_000
