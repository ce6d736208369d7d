import json
import os
from pathlib import Path

import pytest

from control_plane import doors, settings
from control_plane.cell_rules import first_cells
from control_plane.errors import SettingsError
from control_plane.publishing import cells_of_directory


def test_defaults_stand_where_nothing_is_set(tmp_path: Path) -> None:
    found = settings.load(None, {})
    assert (found.cells, found.routers, found.spares_per_cell, found.http_port) == (4, 2, 1, 8080)
    assert found.http_host == "127.0.0.1"
    assert found.data_folder == tmp_path / "data"
    assert found.starts_simulator
    assert found.acquirer == "http://127.0.0.1:8090"


def test_options_win_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "bulkhead.toml"
    file.write_text("cells = 2\nrouters = 2\nspares_per_cell = 2\n")
    monkeypatch.setenv("BULKHEAD_ROUTERS", "3")
    monkeypatch.setenv("BULKHEAD_SPARES_PER_CELL", "3")
    found = settings.load(None, {"spares_per_cell": 4, "cells": None})
    assert (found.cells, found.routers, found.spares_per_cell) == (2, 3, 4)


def test_the_file_is_found_by_option_then_by_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_option, by_environment = tmp_path / "a.toml", tmp_path / "b.toml"
    by_option.write_text("cells = 5\n")
    by_environment.write_text("cells = 6\n")
    monkeypatch.setenv("BULKHEAD_SETTINGS", str(by_environment))
    assert settings.load(None, {}).cells == 6
    assert settings.load(by_option, {}).cells == 5


def test_a_relative_folder_in_a_file_lies_beside_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    file = tmp_path / "b.toml"
    file.write_text('data_folder = "books"\n')
    monkeypatch.chdir(elsewhere)
    assert settings.load(file, {}).data_folder == tmp_path / "books"
    assert settings.load(file, {"data_folder": Path("mine")}).data_folder == elsewhere / "mine"
    monkeypatch.setenv("BULKHEAD_DATA_FOLDER", "theirs")
    assert settings.load(file, {}).data_folder == elsewhere / "theirs"


@pytest.mark.parametrize("url", ["other", "http://127.0.0.1", "redis://"])
def test_a_redis_url_is_one_or_none_and_its_password_is_not_repeated(url: str) -> None:
    assert settings.load(None, {"redis_url": "redis://:a-password@127.0.0.1:6379/0"}).redis_url
    assert settings.load(None, {}).starts_redis
    assert not settings.load(None, {"redis_url": "none", "redis_port": 8080}).starts_redis, "nobody listens there"
    with pytest.raises(SettingsError, match="redis_port and http_port both want port 8080"):
        settings.load(None, {"redis_port": 8080})
    with pytest.raises(SettingsError, match="redis_url: must be") as found:
        settings.load(None, {"redis_url": f"{url}#a-password"})
    assert "a-password" not in str(found.value)


def test_a_named_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no settings file"):
        settings.load(tmp_path / "none.toml", {})


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("cels = 3\n", "cels: there is no such setting"),
        ("cells = 0\n", "cells: .*greater than or equal to 1"),
        ("cells = 'many'\n", "cells: .*integer"),
        ("cells = \n", "not TOML"),
        ("acquirer_url = 'ftp://bank'\n", "acquirer_url: must be an http"),
        ("[acquirers]\nbank = 'ftp://bank'\n", "acquirers: bank must be name=URL"),
        ("[acquirers]\nmain = 'https://bank'\n", "acquirers: main is what acquirer_url sets"),
        ("[acquirers]\n'Bank 1' = 'https://bank'\n", "acquirers: .*pattern"),
        ("acquirers = 'a=https://b,a=https://c'\n", "acquirers: one name stands there twice"),
        ("second_acquirer_port = 8091\n[acquirers]\nsecond = 'https://b'\n", "second_acquirer_port: "),
        ("second_acquirer_port = 8080\n", "second_acquirer_port and http_port both want port 8080"),
        ("http_port = 8101\n", "door_port and http_port both want port 8101"),
        ("routers = 11\n", "acquirer_port and http_port both want port 8090"),
        ("[acquirer_fees]\nbasis_points = 10001\n", "acquirer_fees: .*10000"),
        ("[acquirer_fees]\nfixed = [1, 2]\n", "acquirer_fees: "),
        ("[acquirer_fees]\npercent = 1\n", "acquirer_fees: "),
        ("ray_port = 65534\n", "ray_port: 4 ports from 65534 on go past 65535"),
        ("door_advertised_port = 65534\n", "door_advertised_port: 4 ports from there on go past 65535"),
        ("door_advertised_port = 0\n", "door_advertised_port: .*greater than or equal to 1"),
        ("cells = true\n", "cells: should be a number"),
        ("cells = 1.5\n", "cells: .*integer"),
        ("cells = nan\n", "cells: .*finite"),
        ("cells = 99999999999999999999999\n", "cells: .*less than or equal"),
        ("[cells]\nmany = 1\n", "cells: .*integer"),
        ("cells = 1\ncells = 2\n", "not TOML"),
        ("http_host = 5\n", "http_host: .*string"),
        ('http_host = "a\\u0000"\n', "http_host: should hold no NUL"),
        ('data_folder = "a\\u0000b"\n', "data_folder: should hold no NUL"),
        ("data_folder = 5\n", "data_folder: .*path"),
        ("store = 'postgres'\n", "store: .*'sqlite' or 'fdb'"),
        ("store = 'fdb'\n", "cluster_files: 0 files for 4 cells; name one that all cells share, or one for each"),
        ("store = 'fdb'\ncluster_files = ['a', 'b']\n", "cluster_files: 2 files for 4 cells"),
        (
            "store = 'fdb'\ncells = 2\ncluster_files = ['a', 'b']\n",
            "control_cluster_file: with a cluster for each cell, name the control plane's own",
        ),
        ("cluster_files = ['a']\n", "cluster_files: these are for FoundationDB"),
        ("store = 'fdb'\ncluster_files = [5]\n", "cluster_files: .*path"),
        ("cells = " + "[" * 5_000 + "]" * 5_000, "not TOML: nested too deeply"),
        ("x = '" + "a" * 100_000 + "'", "more than 65536 bytes"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path: Path, content: str, what: str) -> None:
    file = tmp_path / "b.toml"
    file.write_text(content)
    with pytest.raises(SettingsError, match=what) as raised:
        settings.load(file, {})
    assert str(file) in raised.value.where
    assert raised.value.hint


@pytest.mark.parametrize("in_place", ["bytes", "folder", "pipe"])
def test_what_is_no_text_is_explained_and_not_waited_for(tmp_path: Path, in_place: str) -> None:
    file = tmp_path / "bulkhead.toml"
    if in_place == "bytes":
        file.write_bytes(b"\xff\xfe\x00")
    elif in_place == "folder":
        file.mkdir()
    else:
        os.mkfifo(file)
    with pytest.raises(SettingsError, match="can't be read"):
        settings.load(None, {})


def test_cluster_files_are_shared_or_one_a_cell_and_lie_beside_the_settings_file(tmp_path: Path) -> None:
    file = tmp_path / "b.toml"
    file.write_text("store = 'fdb'\ncells = 2\ncluster_files = ['shared.cluster']\n")
    shared = settings.load(file, {})
    assert [shared.cluster_file_of(cell) for cell in shared.cell_names] == [tmp_path / "shared.cluster"] * 2
    assert shared.cluster_file_of_registry == tmp_path / "shared.cluster"
    each = settings.load(file, {"cluster_files": "/a,/b", "control_cluster_file": Path("/c")})
    assert [each.cluster_file_of(cell) for cell in each.cell_names] == [Path("/a"), Path("/b")]
    assert each.cluster_file_of_registry == Path("/c")


def test_cluster_files_in_the_environment_have_commas_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BULKHEAD_STORE", "fdb")
    monkeypatch.setenv("BULKHEAD_CELLS", "2")
    monkeypatch.setenv("BULKHEAD_CLUSTER_FILES", "/a,/b")
    monkeypatch.setenv("BULKHEAD_CONTROL_CLUSTER_FILE", "/c")
    assert settings.load(None, {}).cluster_files == (Path("/a"), Path("/b"))


def test_an_error_names_the_place_that_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BULKHEAD_CELLS", "none")
    with pytest.raises(SettingsError) as raised:
        settings.load(None, {})
    assert raised.value.where == "environment BULKHEAD_CELLS"
    with pytest.raises(SettingsError) as raised:
        settings.load(None, {"cells": 1_000})
    assert raised.value.where == "option --cells"


def test_fees_are_set_as_a_table_or_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "b.toml"
    file.write_text("[acquirer_fees]\nbasis_points = 90\nfixed = [1, 2, 3, 4, 5]\n")
    found = settings.load(file, {})
    assert (found.acquirer_fees.basis_points, found.acquirer_fees.fixed) == (90, (1, 2, 3, 4, 5))
    assert found.acquirer_fees.refund_basis_points == 0
    monkeypatch.setenv("BULKHEAD_ACQUIRER_FEES", '{"refund_basis_points": 7}')
    assert settings.load(None, {}).acquirer_fees.refund_basis_points == 7
    # As `up` leaves it for the other commands.
    again = settings.Settings(**json.loads(found.model_dump_json()))
    assert again.model_dump() == found.model_dump()


def test_variables_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BULKHEAD_SERVICE_HOST", "10.0.0.1")  # as Kubernetes makes them for a service "bulkhead"
    assert settings.load(None, {}).cells == 4


def test_ports_of_a_real_acquirer_are_not_ours(tmp_path: Path) -> None:
    found = settings.load(None, {"acquirer_url": "https://bank.example/api/", "acquirer_port": 8080})
    assert not found.starts_simulator
    assert found.acquirer == "https://bank.example/api"


def test_bulkheads_are_switched_off_in_test_installations_only() -> None:
    found = settings.load(None, {"fault_injection": True, "bulkheads_off": "poison,heartbeat"})
    assert found.bulkheads_off == ("poison", "heartbeat")
    with pytest.raises(SettingsError, match="set fault_injection, too"):
        settings.load(None, {"bulkheads_off": "poison"})
    with pytest.raises(SettingsError, match="bulkheads_off"):
        settings.load(None, {"fault_injection": True, "bulkheads_off": "moat"})


def test_acquirers_have_names_and_main_is_the_first() -> None:
    found = settings.load(
        None, {"acquirers": "bank=https://bank.example/,other=http://o", "second_acquirer_port": 8091}
    )
    assert found.acquirer_urls == {
        "main": "http://127.0.0.1:8090",
        "bank": "https://bank.example",
        "other": "http://o",
        "second": "http://127.0.0.1:8091",
    }
    assert settings.Settings(**found.model_dump(mode="json")).acquirer_urls == found.acquirer_urls


def test_routers_are_told_the_advertised_ports_and_the_control_plane_asks_the_doors_own() -> None:
    cells = first_cells(settings.load(None, {"cells": 2, "door_port": 9000}), "now")
    assert [cell.advertised_port for cell in cells] == [cell.door_port for cell in cells] == [9000, 9001]
    found = settings.load(None, {"cells": 2, "door_port": 9000, "door_advertised_port": 9500})
    cells = first_cells(found, "now")
    assert [address.port for address in doors.cell_addresses(cells)] == [9000, 9001]
    told = cells_of_directory(cells)
    assert [(cell.name, cell.port) for cell in told] == [("cell-0", 9500), ("cell-1", 9501)]
