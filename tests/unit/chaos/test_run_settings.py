"""What a run is told is read into values or refused in words; who would be hurt is asked first."""

from pathlib import Path
from typing import Any

import pytest

from chaos import partners
from chaos.catalogue import Scope
from chaos.installation import GatewayError
from chaos.run_settings import RunSettings, RunSettingsError
from router.directory import Cell, rendezvous

GIVEN: dict[str, Any] = {
    "data_folder": "data",
    "cell": "",
    "partner": "",
    "duration_s": 15.0,
    "load_per_second": 40.0,
    "seed": 1,
    "patience": 1.0,
    "own": "true",
    "force": False,
    "runs_folder": "chaos-runs",
    "bulkheads_off": "",
}


def test_texts_of_the_environment_are_values() -> None:
    settings = RunSettings.read({**GIVEN, "seed": "7", "duration_s": "20"})
    assert (settings.seed, settings.duration_s, settings.own, settings.force) == (7, 20.0, True, False)
    assert settings.runs_folder == Path.cwd() / "chaos-runs"
    assert settings.calm_s == 20


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"duration_s": 0.5}, "duration_s is 0.5: it is from 2 to 300"),
        ({"load_per_second": 1e9}, "load_per_second"),
        ({"seed": "x"}, "can't be read"),
        ({"partner": "acme"}, "'acme' is no partner of an experiment's"),
    ],
)
def test_what_can_t_be_is_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(RunSettingsError, match=told):
        RunSettings.read({**GIVEN, **wrong})


def test_partners_are_named_for_their_cells() -> None:
    cells = ("cell-0", "cell-1", "cell-2")
    homes = partners.names_for(cells, 2)
    known = [Cell(name=cell, host="-", port=1) for cell in cells]
    assert sorted(homes.values()) == sorted(cells * 2)
    assert all(rendezvous(name, known) == cell == partners.home_of(name, cells) for name, cell in homes.items())


def row(partner: str, cell: str, mode: str = "live", status: str = "active") -> dict[str, Any]:
    return {"id": partner, "cell": cell, "mode": mode, "status": status}


def test_a_cell_with_live_partners_is_not_struck() -> None:
    there = [row("acme", "cell-0"), row("test_shop", "cell-1", mode="test"), row("gone", "cell-1", status="suspended")]
    with pytest.raises(GatewayError, match="cell-0 serves live partners"):
        partners.require_harmless(there, Scope.CELL, "cell-0")
    with pytest.raises(GatewayError, match="this gateway serves live partners"):
        partners.require_harmless(there, Scope.ALL, "cell-1")
    partners.require_harmless(there, Scope.CELL, "cell-1")
    partners.require_harmless(there, Scope.PARTNER, "cell-0")
