"""What the benchmark of the gateway is asked to measure: one store or both, given rates or the knee."""

from pathlib import Path

import pytest

from bench.gateway import FDBSERVER, ROLES, Step, _as_map, _parse, _table
from chaos.store_choice import SQLITE, StoreChoice


@pytest.fixture
def cluster_file(tmp_path: Path) -> Path:
    file = tmp_path / "fdb.cluster"
    file.write_text("test:test@127.0.0.1:4500\n")
    return file


def test_by_default_the_knee_of_sqlite_is_looked_for() -> None:
    options = _parse([])
    assert (options.stores, options.rates) == ((SQLITE,), ())


def test_two_stores_have_the_same_rates(cluster_file: Path) -> None:
    options = _parse(["--stores", "sqlite,fdb", "--cluster-file", str(cluster_file)])
    assert options.stores == (SQLITE, StoreChoice("fdb", cluster_file))
    assert options.rates[0] == 100
    assert _parse(["--store", "fdb", "--cluster-file", str(cluster_file), "--rates", "5,7.5"]).rates == (5, 7.5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--stores", "fdb"], "--stores is sqlite,fdb"),
        (["--stores", "sqlite,fdb"], "--store fdb needs --cluster-file"),
        (["--rates", "fast"], "not 'fast'"),
        (["--rates", "0"], "above 0"),
        (["--rates", "nan"], "above 0"),
    ],
)
def test_what_is_wrong_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    with pytest.raises(SystemExit):
        _parse(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_the_table_has_a_column_for_the_servers_where_there_are_any() -> None:
    def step(store: str, **cpu: float) -> Step:
        return Step(store, 100, 1, 1, {}, 99, {"p50": 1, "p90": 1, "p99": 1, "p99.9": 1}, cpu, 0, 0, 1, 0)

    of_sqlite = step("sqlite", **dict.fromkeys(ROLES, 1.0))
    of_fdb = step("fdb", **dict.fromkeys((*ROLES, FDBSERVER), 1.0))
    headings = [column.header for column in _table([_as_map(of_sqlite), _as_map(of_fdb)]).columns]
    assert FDBSERVER in headings
    assert FDBSERVER not in [column.header for column in _table([_as_map(of_sqlite)]).columns]
