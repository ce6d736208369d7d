"""What an experiment needs is looked at before anything begins, and said in one sentence where it is missing."""

import re
from collections.abc import Iterable
from typing import Any

import pytest

from chaos import needs
from chaos.catalogue import EXPERIMENTS
from chaos.needs import Need


def status(*, fault_injection: bool) -> dict[str, Any]:
    return {"control_plane": {"fault_injection": fault_injection}}


def test_who_orders_faults_says_so() -> None:
    for experiment in EXPERIMENTS:
        orders = experiment.begin is not None and experiment.begin.function == "order_fault"
        assert (Need.FAULT_INJECTION in experiment.needs) is orders, experiment.name


@pytest.mark.parametrize(
    ("needed", "own", "on_path", "told"),
    [
        ([], False, [], None),
        ([Need.FDB_SERVER], False, ["fdbserver", "fdbcli"], "it needs a FoundationDB server .*: run it with --own"),
        ([Need.FDB_SERVER], True, ["fdbcli"], "fdbserver is not on PATH"),
        ([Need.FDB_SERVER], True, ["fdbserver", "fdbcli"], None),
        ([Need.FAULT_PROXIES], False, [], "it needs fault proxies before the gateway's doors: run it with --own"),
        ([Need.CLOCK], False, ["cc"], "it needs a gateway whose clock can be moved: run it with --own"),
        ([Need.CLOCK], True, [], "cc is not on PATH: a C compiler makes the clock"),
        ([Need.CLOCK], True, ["cc"], None),
        ([Need.STRACE], False, ["timeout"], "strace is not on PATH; tools/setup-tests"),
        ([Need.STRACE], False, ["strace", "timeout"], None),
    ],
)
def test_what_is_missing_here(
    needed: Iterable[Need], own: bool, on_path: list[str], told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}" if name in on_path else None)
    found = needs.missing_here(frozenset(needed), own=own)
    assert (found is None) is (told is None)
    assert re.match(told or "None", str(found))


def test_what_the_gateway_lacks() -> None:
    ordered, of_files = frozenset({Need.FAULT_INJECTION}), frozenset({Need.SQLITE})
    assert needs.missing_there(ordered, status(fault_injection=True), "fdb") is None
    assert "--fault-injection" in str(needs.missing_there(ordered, status(fault_injection=False), "sqlite"))
    assert needs.missing_there(of_files, status(fault_injection=False), "sqlite") is None
    assert "no SQLite files" in str(needs.missing_there(of_files, status(fault_injection=False), "fdb"))


def test_one_gateway_is_shared_by_those_whose_needs_leave_it_what_it_is() -> None:
    assert needs.is_shared(frozenset({Need.FAULT_PROXIES, Need.STRACE, Need.FAULT_INJECTION, Need.SQLITE}))
    assert not needs.is_shared(frozenset({Need.FDB_SERVER}))
    assert not needs.is_shared(frozenset({Need.CLOCK}))


def test_they_are_named_for_a_listing() -> None:
    assert needs.in_words(frozenset({Need.FDB_SERVER})) == ["--own", "fdbserver"]
    assert needs.in_words(frozenset({Need.STRACE, Need.SQLITE})) == ["SQLite books", "strace"]
