"""Which users an installation has, and that nobody else has them; without the rights, why all runs as one."""

import os
from pathlib import Path

import pytest

from control_plane import limits, users
from control_plane.cell_rules import first_cells
from control_plane.data_folder import DataFolder, Instance
from control_plane.errors import RefusedError
from control_plane.processes import ProcessSpec, plan
from control_plane.settings import Settings
from control_plane.users import Users

INSTANCE = Instance("0123456789abcdef", "5eed" * 8, 3, "sqlite", "2026-11-22T00:00:00.000Z")
OTHER_ID = "fedcba9876543210"


def planned(folder: Path, **fields: object) -> dict[str, ProcessSpec]:
    settings = Settings(data_folder=folder, cells=3, routers=2, second_acquirer_port=8091, **fields)  # type: ignore[arg-type]
    specs = plan(settings, DataFolder(folder), INSTANCE, first_cells(settings, "now"), "1", lambda _: "d")
    return {spec.name: Users(5_000).dressed(spec) for spec in specs}


def test_each_cell_and_each_other_role_has_a_user_of_its_own(tmp_path: Path) -> None:
    by_user: dict[int | None, set[str]] = {}
    for name, spec in planned(tmp_path).items():
        by_user.setdefault(spec.uid, set()).add(name)
    assert by_user == {
        5_000: {"router-0", "router-1"},
        5_001: {"redis"},
        5_002: {"acquirer"},
        5_003: {"acquirer-second"},
        **{5_016 + slot: {f"cell-{slot}.ray", f"cell-{slot}.door"} for slot in range(3)},
    }


def test_no_process_owns_or_reads_what_belongs_to_another_user(tmp_path: Path) -> None:
    specs = planned(tmp_path)
    owners: dict[Path, set[int | None]] = {}
    readers: dict[Path, set[int | None]] = {}
    for spec in specs.values():
        for path in spec.owns:
            owners.setdefault(path, set()).add(spec.uid)
        for path in spec.reads:
            readers.setdefault(path, set()).add(spec.uid)
    assert all(len(uids) == 1 for uids in owners.values()), owners
    assert not any(path.is_relative_to(owned) for path in readers for owned in owners)
    shared = {path.name: uids for path, uids in readers.items() if len(uids) > 1}
    assert shared == {  # both ends of a connection have them
        "redis.key": {5_000, 5_001},
        "acquirer.notifications.key": {5_000, 5_002},
        "acquirer.second.notifications.key": {5_000, 5_003},
    }
    assert DataFolder(tmp_path).operator_key_file not in readers


def test_who_runs_as_another_user_is_not_adopted(tmp_path: Path) -> None:
    spec = planned(tmp_path)["cell-0.door"]
    assert len({Users(first).dressed(spec).fingerprint for first in (None, 5_000, 6_000)}) == 3


def test_two_installations_have_blocks_of_their_own() -> None:
    first, second = users.default_first_uid(INSTANCE.id), users.default_first_uid(OTHER_ID)
    assert abs(first - second) >= limits.USERS_MAX
    assert all(limits.FIRST_UID_MIN <= uid <= limits.UID_MAX - limits.USERS_MAX for uid in (first, second))
    assert users.default_first_uid("f" * 16) + limits.USERS_MAX <= limits.UID_MAX


def test_nobody_else_may_have_a_user_of_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "_HANDED_OUT", (tmp_path / "subuid",))
    (tmp_path / "subuid").write_text("damaged\nann:700000:65536\n")
    assert users.owner_in(1_900_000_000, 1_900_002_048) is None
    found = users.owner_in(os.geteuid(), os.geteuid() + 1)
    assert found is not None
    assert found.startswith(f"{os.geteuid()} is user ")
    assert (
        users.owner_in(765_535, 800_000) == f"{tmp_path / 'subuid'} hands 700000 and the 65536 from there on to 'ann'"
    )
    assert users.owner_in(765_536, 800_000) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused: others run all as one user")
def test_a_block_with_an_owner_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "_HANDED_OUT", (tmp_path / "subuid",))
    (tmp_path / "subuid").write_text("ann:700000:65536\n")
    with pytest.raises(RefusedError, match=r"700000 to 702047 are to be this installation's: .* 'ann'"):
        users.find(Settings(data_folder=tmp_path, first_uid=700_000), DataFolder(tmp_path), INSTANCE)


def test_why_all_run_as_one_user_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def why(first_uid: int | None = None) -> str:
        found = users.find(Settings(data_folder=tmp_path, first_uid=first_uid), DataFolder(tmp_path), INSTANCE)
        assert found.first_uid is None
        return found.why_one

    assert why(0) == "first_uid is 0 in the settings"
    monkeypatch.setattr(os, "geteuid", lambda: 1_000)
    assert why() == "`bulkhead up` does not run as root"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(users, "_STATUS", tmp_path / "status")
    (tmp_path / "status").write_text("Name:\tpython\nCapEff:\t00000000a80425fb\n")  # a container's usual ones
    assert why() == "root lacks CAP_SYS_PTRACE here"
    (tmp_path / "status").write_text("CapEff:\t000001ffffffffff\n")
    monkeypatch.setattr(users, "_MAP", tmp_path / "map")
    (tmp_path / "map").write_text("         0       1000          1\n         1     100000      65536\n")
    assert why(1_900_000_000) == "the users 1900000000 to 1900002047 don't exist in this user namespace"
