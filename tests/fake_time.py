"""The clock that a test moves (chaos/clocks.py); where there is none, the test says so and is skipped."""

from pathlib import Path

import pytest

from chaos.clocks import Clock, ClockError


class FakeTime(Clock):
    """See Clock."""

    def __init__(self, folder: Path) -> None:
        try:
            super().__init__(folder)
        except ClockError as error:
            pytest.skip(f"{error}; `make test` does that")
