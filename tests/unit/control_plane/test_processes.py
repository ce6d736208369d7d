import json
from pathlib import Path

import pytest

from control_plane import up
from control_plane.cell_rules import first_cells
from control_plane.data_folder import DataFolder, Instance
from control_plane.process_table import MARKER
from control_plane.processes import ProcessSpec, plan
from control_plane.settings import Settings

INSTANCE = Instance("0123456789abcdef", "5eed" * 8, 2, "sqlite", "2026-11-22T00:00:00.000Z")


def planned(tmp_path: Path, version: str = "1", digest: str = "d", **fields: object) -> dict[str, ProcessSpec]:
    settings = Settings(data_folder=tmp_path, **fields)  # type: ignore[arg-type]
    specs = plan(settings, DataFolder(tmp_path), INSTANCE, first_cells(settings, "now"), version, lambda _: digest)
    assert [spec.stage for spec in specs] == sorted(spec.stage for spec in specs), "in the order of their start"
    return {spec.name: spec for spec in specs}


def test_every_process_of_an_installation_is_planned(tmp_path: Path) -> None:
    specs = planned(tmp_path, cells=2, routers=2)
    assert list(specs) == [
        "acquirer", "redis", "cell-0.ray", "cell-1.ray", "cell-0.door", "cell-1.door", "router-0", "router-1",
    ]  # fmt: skip
    assert {name: spec.port for name, spec in specs.items()} == {
        "acquirer": 8090,
        "redis": 6390,
        "cell-0.ray": 8301,
        "cell-1.ray": 8302,
        "cell-0.door": 8101,
        "cell-1.door": 8102,
        "router-0": 8080,
        "router-1": 8081,
    }
    assert [name for name, spec in specs.items() if spec.optional] == ["redis"]
    assert specs["cell-1.door"].config["ray_address"] == "127.0.0.1:8302"
    assert specs["cell-1.door"].config["acquirers"] == {"main": "http://127.0.0.1:8090"}


def test_a_real_acquirer_is_not_simulated(tmp_path: Path) -> None:
    specs = planned(tmp_path, acquirer_url="https://bank.example")
    assert "acquirer" not in specs
    assert specs["cell-0.door"].config["acquirers"] == {"main": "https://bank.example"}


def test_a_second_simulator_has_its_own_port_record_and_key(tmp_path: Path) -> None:
    specs = planned(tmp_path, second_acquirer_port=8091, acquirers={"bank": "https://bank.example"})
    first, second = specs["acquirer"].config, specs["acquirer-second"].config
    assert (specs["acquirer-second"].port, second["port"]) == (8091, 8091)
    for name in ("record_file", "log_file", "notify_secret_file", "notify_urls"):
        assert first[name] != second[name]
    assert second["notify_urls"][0].endswith("/v1/acquirers/second/notifications")
    urls = {"main": "http://127.0.0.1:8090", "bank": "https://bank.example", "second": "http://127.0.0.1:8091"}
    assert specs["cell-0.door"].config["acquirers"] == urls
    assert specs["router-0"].config["acquirer_key_files"].keys() == urls.keys()


def test_each_process_carries_the_marker_and_has_a_fingerprint_of_its_own(tmp_path: Path) -> None:
    specs = planned(tmp_path)
    for name, spec in specs.items():
        assert spec.environment[MARKER] == f"{INSTANCE.id}/{name}"
        assert spec.environment["SPT_NOENV"] == "1", "a title of its own does not overwrite the marker"
        assert spec.argv[1] == "-P", "nothing is imported from the working folder"
    assert len({spec.fingerprint for spec in specs.values()}) == len(specs)


@pytest.mark.parametrize("changed", [{"version": "2"}, {"digest": "e"}, {"spares_per_cell": 2}])
def test_what_runs_with_something_else_is_not_adopted(tmp_path: Path, changed: dict[str, object]) -> None:
    before, after = planned(tmp_path)["cell-0.door"], planned(tmp_path, **changed)["cell-0.door"]  # type: ignore[arg-type]
    assert before.fingerprint != after.fingerprint
    assert before.fingerprint == planned(tmp_path)["cell-0.door"].fingerprint


def test_routers_know_no_secret_of_a_cell(tmp_path: Path) -> None:
    router = planned(tmp_path)["router-0"]
    assert ".secret" not in json.dumps(router.config)
    assert router.config == planned(tmp_path, cells=2)["router-0"].config, "a cell that comes or goes restarts none"


def test_routers_are_told_of_redis_where_there_is_one(tmp_path: Path) -> None:
    def told(**fields: object) -> tuple[object, object, bool]:
        specs = planned(tmp_path, **fields)  # type: ignore[arg-type]
        config = specs["router-0"].config
        return config["redis_url"], config["redis_secret_file"], "redis" in specs

    own = str(tmp_path / "secrets" / "redis.key")
    assert told() == ("redis://127.0.0.1:6390/0", own, True)
    assert told(redis_port=7000) == ("redis://127.0.0.1:7000/0", own, True)
    assert told(redis_url="none") == ("", None, False)
    url = "redis://127.0.0.1:6379/0"
    assert told(redis_url=url) == (url, None, False)


def test_sockets_of_ray_fit_into_a_unix_sockets_name(tmp_path: Path) -> None:
    specs = planned(tmp_path / ("deep" * 20), cells=64, door_port=9000, metrics_port=9100, ray_port=9200)
    longest = max(len(str(spec.scratch)) for spec in specs.values() if spec.scratch is not None)
    assert longest + len("/session_2026-11-22_17-20-34_123456_1234567/sockets/plasma_store") <= 107


def test_the_version_of_the_code_is_another_with_any_file_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "some_code"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(up, "_PACKAGES_OF_PROCESSES", ("some_code",))
    found = [up.code_version.__wrapped__()]
    (package / "more.py").write_text("A = 1")
    found.append(up.code_version.__wrapped__())
    (package / "more.py").write_text("A = 2")
    found.append(up.code_version.__wrapped__())
    (package / "more.py").rename(package / "other.py")
    found.append(up.code_version.__wrapped__())
    assert len(set(found)) == len(found)
    assert found[-1] == up.code_version.__wrapped__()
