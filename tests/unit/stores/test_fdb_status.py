"""FoundationDB's status as samples: what it says, and nothing of what it leaves out."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores import fdb_status
from stores.health import Sample

# The shape is that of the documentation (mr-status-json-schemas); fields that nobody reads are left out.
STATUS: dict[str, Any] = {
    "client": {
        "cluster_file": {"path": "/etc/foundationdb/fdb.cluster", "up_to_date": True},
        "coordinators": {"coordinators": [{"address": "10.0.4.1:4500", "reachable": True}], "quorum_reachable": True},
        "database_status": {"available": True, "healthy": False},
        "messages": [],
        "timestamp": 1_795_000_000,
    },
    "cluster": {
        "database_available": True,
        "database_lock_state": {"locked": False},
        "fault_tolerance": {
            "max_zone_failures_without_losing_availability": 1,
            "max_zone_failures_without_losing_data": 2,
        },
        "generation": 7,
        "messages": [
            {"name": "client_issues", "description": "Some clients of this cluster have issues.", "issues": []},
            {
                "name": "unreachable_processes",
                "description": "The cluster has some unreachable processes.",
                "unreachable_processes": [{"address": "10.0.4.3:4500"}, {"address": "10.0.4.3:4501"}],
            },
        ],
        "processes": {
            "a0b1": {
                "address": "10.0.4.1:4500",
                "degraded": False,
                "disk": {"free_bytes": 300_000_000_000, "total_bytes": 400_000_000_000},
                "excluded": False,
                "messages": [],
                "roles": [{"role": "storage", "durability_lag": {"seconds": 5.1, "versions": 5_100_000}}],
            },
            "c2d3": {
                "address": "10.0.4.2:4500",
                "degraded": True,
                "disk": {"free_bytes": 50_000_000_000, "total_bytes": 400_000_000_000},
                "excluded": True,
                "messages": [{"name": "io_error", "type": "x", "time": 12_345.1}],
                "roles": [{"role": "log"}],
            },
        },
        "qos": {
            "performance_limited_by": {
                "description": "Storage server performance (storage queue).",
                "name": "storage_server_write_queue_size",
                "reason_id": 2,
                "reason_server_id": "7f8d623d0cb9966e",
            },
            "transactions_per_second_limit": 1_234.5,
            "worst_durability_lag_storage_server": {"seconds": 5.25, "versions": 5_250_000},
            "worst_queue_bytes_log_server": 4_600,
            "worst_queue_bytes_storage_server": 880_000_000,
        },
        "recovery_state": {"active_generations": 1, "description": "Recovery complete.", "name": "fully_recovered"},
    },
}

EXPECTED = {
    ("fdb_reachable",): 1,
    ("fdb_available",): 1,
    ("fdb_cluster_file_current",): 1,
    ("fdb_locked",): 0,
    ("fdb_transactions_per_second_limit",): 1_234.5,
    ("fdb_limited", "storage_server_write_queue_size"): 1,
    ("fdb_storage_queue_bytes_max",): 880_000_000,
    ("fdb_storage_durability_lag_seconds_max",): 5.25,
    ("fdb_log_queue_bytes_max",): 4_600,
    ("fdb_zone_failures_tolerated",): 1,
    ("fdb_generation",): 7,
    ("fdb_recovered", "fully_recovered"): 1,
    ("fdb_processes", "known"): 2,
    ("fdb_processes", "excluded"): 1,
    ("fdb_processes", "degraded"): 1,
    ("fdb_processes", "complaining"): 1,
    ("fdb_processes", "unreachable"): 2,
    ("fdb_free_disk_share_min",): 0.125,
}


def told(status: dict[str, Any]) -> dict[tuple[str, ...], float]:
    """What a status is turned into, by name and label values."""
    samples = fdb_status.samples_of(status)
    found = {(sample.name, *sample.labels.values()): sample.value for sample in samples}
    assert len(found) == len(samples), "no sample comes twice"
    return found


def without(*path: str) -> dict[str, Any]:
    """Give the status without what is at a path."""
    status = copy.deepcopy(STATUS)
    parent: Any = status
    for name in path[:-1]:
        parent = parent[name]
    del parent[path[-1]]
    return status


def test_a_status_gives_its_numbers() -> None:
    assert told(STATUS) == EXPECTED


@pytest.mark.parametrize(
    ("path", "gone"),
    [
        (("client", "database_status"), {("fdb_available",)}),
        (("client", "cluster_file"), {("fdb_cluster_file_current",)}),
        (("cluster", "database_lock_state"), {("fdb_locked",)}),
        (("cluster", "fault_tolerance"), {("fdb_zone_failures_tolerated",)}),
        (("cluster", "recovery_state", "name"), {("fdb_recovered", "fully_recovered")}),
        (("cluster", "messages"), {("fdb_processes", "unreachable")}),
        (("cluster", "qos", "transactions_per_second_limit"), {("fdb_transactions_per_second_limit",)}),
        (
            ("cluster", "processes"),
            {key for key in EXPECTED if key[0] == "fdb_processes" and key[1] != "unreachable"}
            | {("fdb_free_disk_share_min",)},
        ),
        (("cluster",), EXPECTED.keys() - {("fdb_reachable",), ("fdb_available",), ("fdb_cluster_file_current",)}),
    ],
)
def test_what_is_missing_is_not_made_up(path: tuple[str, ...], gone: set[tuple[str, ...]]) -> None:
    assert told(without(*path)) == {key: value for key, value in EXPECTED.items() if key not in gone}


def test_a_process_without_its_disk_hides_no_other() -> None:
    assert told(without("cluster", "processes", "c2d3", "disk"))["fdb_free_disk_share_min",] == 0.75
    status = copy.deepcopy(STATUS)
    status["cluster"]["processes"]["c2d3"]["disk"]["total_bytes"] = 0
    assert told(status)["fdb_free_disk_share_min",] == 0.75


def test_a_cluster_that_is_well_is_not_limited() -> None:
    status = copy.deepcopy(STATUS)
    status["cluster"]["qos"]["performance_limited_by"]["name"] = "workload"
    assert told(status)["fdb_limited", "workload"] == 0


def test_a_cluster_on_its_way_back_says_where_it_is() -> None:
    status = copy.deepcopy(STATUS)
    status["cluster"]["recovery_state"]["name"] = "recruiting_transaction_servers"
    assert told(status)["fdb_recovered", "recruiting_transaction_servers"] == 0


def test_without_a_quorum_of_coordinators_it_is_not_reached() -> None:
    # What the client says when it reaches nobody.
    status = {
        "client": {
            "coordinators": {"coordinators": [{"address": "10.0.4.1:4500", "reachable": False}]}
            | {"quorum_reachable": False},
            "database_status": {"available": False, "healthy": False},
            "messages": [{"name": "quorum_not_reachable", "description": "Unable to reach a quorum of coordinators."}],
        },
        "cluster": {"layers": {"_valid": False}},
    }
    assert told(status) == {("fdb_reachable",): 0, ("fdb_available",): 0}
    assert fdb_status.unreachable() == [Sample("fdb_reachable", fdb_status.unreachable()[0].meaning, 0.0)]


def test_a_text_that_is_no_name_becomes_no_label() -> None:
    for text in ("", "a" * 65, "10.0.4.1:4500", 'a"b', "Über", 3, None, ["workload"]):
        status = copy.deepcopy(STATUS)
        status["cluster"]["qos"]["performance_limited_by"]["name"] = text
        assert not [key for key in told(status) if key[0] == "fdb_limited"]


# Whatever a later version puts in a field's place.
texts = st.text("ab_", max_size=4)
jsons = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict | list):
        items = list(value.items() if isinstance(value, dict) else enumerate(value))
    return [path, *(found for name, inner in items for found in _paths(inner, (*path, name)))]


@given(st.sampled_from([path for path in _paths(STATUS) if path]), jsons)
def test_any_field_may_become_anything(path: tuple[Any, ...], value: Any) -> None:
    status = copy.deepcopy(STATUS)
    parent: Any = status
    for name in path[:-1]:
        parent = parent[name]
    parent[path[-1]] = value
    for sample in fdb_status.samples_of(status):
        assert isinstance(sample.value, float)
