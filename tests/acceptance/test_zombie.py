"""A worker stopped between its intent and its call to the acquirer, taken over, then continued, charges nothing twice.

Two processes over one book and one acquirer, both real; the first stops itself at the very place.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acquirer_process import AcquirerProcess, start_acquirer
from tests.store_choices import on_either_store, place_of

Place = dict[str, Any]


class Actor:
    """A running actor process."""

    def __init__(self, mode: str, place: Place, url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.actor_process", mode, json.dumps(place), url],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def hear(self, step: str) -> dict[str, Any]:
        """Read on until it says that it got so far."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said: dict[str, Any] = json.loads(line)
            if said["step"] == step:
                return said
        raise AssertionError(f"it ended before it said {step!r}")

    def wait_stopped(self) -> None:
        """Wait until the kernel says that it is stopped."""
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def go_on(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def end(self) -> None:
        """SIGKILL, where it has not ended by itself."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def wait(self) -> int:
        """Wait for its end; its exit code."""
        return self._process.wait()


@pytest.fixture
def acquirer(tmp_path: Path) -> Iterator[AcquirerProcess]:
    with start_acquirer(tmp_path / "acquirer") as process:
        yield process


@on_either_store
@pytest.mark.parametrize(
    ("settled_by", "status", "charges", "zombie_hears"),
    [
        ("perform", "captured", 1, "Approved"),
        ("close", "failed", 0, "operation_closed"),
    ],
)
def test_a_zombie_charges_nothing_twice(
    acquirer: AcquirerProcess,
    tmp_path: Path,
    kind: str,
    settled_by: str,
    status: str,
    charges: int,
    zombie_hears: str,
) -> None:
    book = place_of(kind, tmp_path)
    ask("create", book)
    zombie = Actor("pay-and-stop", book, acquirer.url)
    actors = [zombie]
    try:
        first = zombie.hear("started")
        key = zombie.hear("stopping")["key"]
        zombie.wait_stopped()
        assert operations(acquirer) == [], "it stopped before it asked"

        heir = Actor(settled_by, book, acquirer.url)
        actors.append(heir)
        second = heir.hear("started")
        assert second["epoch"] == first["epoch"] + 1
        assert second["open"] == [key], "it finds the intent that was never carried out"
        answer = heir.hear("answered")["result"]
        assert "status=201" in answer
        assert heir.wait() == 0
        before = ask("read", book)
        assert before["statuses"] == [status]
        assert before["epochs"][0] == first["epoch"]
        assert set(before["epochs"][1:]) == {second["epoch"]}

        zombie.go_on()
        assert zombie_hears in zombie.hear("performed")["outcome"], "it did ask, under the same key"
        assert zombie.hear("stopped")["why"] == "fenced"
        assert zombie.wait() == 0
    finally:
        for actor in actors:
            actor.end()

    (row,) = operations(acquirer)
    assert row["key"] == key
    assert row["charged"] is (charges == 1)
    # The zombie did ask: without the key being the same, or without its being closed, this would be another charge.
    assert row["attempts"] == charges + 1
    assert sum(found["charged"] for found in operations(acquirer)) == charges
    assert ask("read", book) == before, "the zombie wrote nothing"


def operations(acquirer: AcquirerProcess) -> list[dict[str, Any]]:
    answer = httpx.get(f"{acquirer.url}/operations", params={"partner": "acme"}, trust_env=False)
    found: list[dict[str, Any]] = answer.raise_for_status().json()["operations"]
    return found


def ask(mode: str, book: Place) -> dict[str, Any]:
    """Have the book made or read by a process of its own; give what it says."""
    actor = Actor(mode, book, "")
    try:
        return actor.hear({"create": "created", "read": "read"}[mode])
    finally:
        actor.end()
