"""What the control plane's tests share."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from control_plane.data_folder import DataFolder
from tests.stand_in_door import Installation, StandInDoor


@pytest.fixture
async def installation(tmp_path: Path) -> AsyncIterator[Installation]:
    made = Installation(DataFolder(tmp_path / "data"), {name: StandInDoor(name) for name in ("cell-0", "cell-1")})
    await made.start()
    yield made
    await made.aclose()


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("BULKHEAD_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
