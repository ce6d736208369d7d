"""Every change of the registry stands in the audit log, chained, in the same commit; and its head beside it."""

import inspect
import re
import socket
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from control_plane import (
    api_keys,
    audit_chain,
    audit_copy,
    audit_head,
    data_folder,
    opening,
    registry_codec,
    registry_keys,
)
from control_plane.audit_chain import Verdict
from control_plane.audit_copy import HeadCopy
from control_plane.errors import FolderError
from control_plane.registry import Registry
from control_plane.registry_draft import Draft
from control_plane.registry_records import Change, Operator, Partner
from stores.contract import Check, Clear, Put
from stores.sqlite_shelf import SqliteShelf
from tests.stand_in_door import Installation

PEPPER = b"p" * 32


def partner(name: str) -> Partner:
    return Partner(name, name, "onboarding", "test", "cell-0", 1, 2, 3, "2026-11-22", 1, "2026-11-22T00:00:00.000Z")


async def verdict(registry: Registry, folder: Path, key: bytes) -> Verdict:
    entries = [(entry, registry.hash_of(entry)) async for entry in registry.audit_log()]
    kept = await registry.kept_head()
    heads = [] if kept is None else [("the store", kept)]
    outside = audit_head.read(folder)
    return audit_chain.verify(entries, heads + ([] if outside is None else [("outside", outside)]), key)


def key_of(installation: Installation) -> bytes:
    return installation.folder.audit_key_file.read_bytes()


async def change_everything(registry: Registry) -> set[str]:
    """Do each kind of write once, so that it changes something; give their names."""
    key = api_keys.make(PEPPER, "test", "acme")
    await registry.begin_onboarding(partner("acme"), "ann")
    await registry.activate("acme", "ann")
    await registry.begin_onboardings([partner("beta")], "ann")
    await registry.admit([("beta", api_keys.make(PEPPER, "test", "beta"), "suspended")], "ann")
    await registry.set_status("acme", "suspended", "ann")
    await registry.set_limits("acme", {"rate_burst": 9}, "ann")
    await registry.set_isolation("acme", "pooled", "ann")
    await registry.set_acquirers("acme", ("main",), "ann")
    await registry.set_currencies("acme", ("EUR",), "ann")
    await registry.raise_profile_version("acme", 50)
    await registry.add_key("acme", key, "ann", others_end_at=datetime.now(UTC))
    await registry.revoke_key("acme", key.id, "ann")
    await registry.note("ann", "noted", None, {})
    operator = Operator("bob", "viewer", "active", "h", "hint", "now")
    await registry.add_operator(operator, "ann")
    await registry.put_operator(replace(operator, status="disabled"), "operator_disabled", "ann")
    await registry.write_cells([replace(registry.cell("cell-1"), weight=2.0)], "ann", "cell_weight", cell="cell-1")
    await registry.write_rows({registry_keys.REBALANCE: None}, "ann", "rebalance_aborted")
    return {
        *("begin_onboarding", "activate", "begin_onboardings", "admit", "set_status", "set_limits", "set_isolation"),
        *(
            "set_acquirers",
            "set_currencies",
            "raise_profile_version",
            "add_key",
            "revoke_key",
            "note",
            "add_operator",
            "put_operator",
            "write_cells",
            "write_rows",
        ),
    }


async def test_every_write_leaves_an_entry_and_the_chain_is_whole(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, registry, _, _ = await installation.control_plane()
    commits: list[Draft] = []
    apply = Draft.apply
    monkeypatch.setattr(Draft, "apply", lambda draft, held: (commits.append(draft), apply(draft, held))[-1])
    done = await change_everything(registry)
    writers = {
        name
        for name, method in inspect.getmembers(Registry, inspect.iscoroutinefunction)
        if not name.startswith("_") and re.search(r"\.writing\(|self\._set\(", inspect.getsource(method))
    }
    by_themselves = {"take_directory_version", "put_move", "forget_notices", "seal"}
    # Tests of moves go through these, and the assertion.
    elsewhere = {"begin_move", "begin_evacuation", "partner_moved", "end_move", "forget_burials"}
    assert done == writers - by_themselves - elsewhere, "each kind of write is tried here"
    assert all(draft.is_noted for draft in commits)
    assert len(commits) == len(done)
    found = await verdict(registry, installation.folder.audit_head_file, key_of(installation))
    assert found.problems == []
    assert found.entries == registry.head.sequence >= len(done)
    assert audit_head.read(installation.folder.audit_head_file) == registry.head


async def test_a_key_is_nowhere_in_it(installation: Installation) -> None:
    _, registry, _, _ = await installation.control_plane()
    await registry.begin_onboarding(partner("acme"), "ann")
    key = api_keys.make(PEPPER, "test", "acme")
    await registry.add_key("acme", key, "ann")
    text = repr([entry async for entry in registry.audit_log()])
    assert key.id in text
    assert key.text not in text
    assert key.hash not in text


@pytest.mark.parametrize("damage", ["changed", "missing", "cut off"])
async def test_who_edits_the_store_is_found_out_also_after_a_new_start(installation: Installation, damage: str) -> None:
    _, registry, _, _ = await installation.control_plane()
    await change_everything(registry)
    last = registry.head.sequence
    await registry.close()
    store = await SqliteShelf(installation.folder.root).open("control")
    await store.acquire(0)
    if damage == "changed":
        (value,) = (await store.read([("change", 4)])).values
        assert value is not None
        assert value.count(b"\xa3ann") == 1
        await store.commit([Check(("change", 4), value)], [Put(("change", 4), value.replace(b"\xa3ann", b"\xa3eve"))])
    elif damage == "missing":
        await store.commit([], [Clear(("change", 4))])
    else:
        (kept,) = (await store.read([("change", last)])).values
        await store.commit([], [Clear(("change", last)), Clear(("head",))])
        assert kept is not None
    await store.close()

    instance = data_folder.require_instance(installation.folder)
    again = await opening.open_registry(installation.settings, installation.folder, instance, first_start=False)
    for _ in range(3):  # the file outside tells on, whatever is written since
        await again.note("ann", "noted", None, {})
    assert (await verdict(again, installation.folder.audit_head_file, key_of(installation))).problems
    await again.close()


async def open_again(installation: Installation) -> Registry:
    instance = data_folder.require_instance(installation.folder)
    return await opening.open_registry(installation.settings, installation.folder, instance, first_start=False)


async def test_a_log_of_before_is_sealed_once_with_its_head(installation: Installation) -> None:
    _, registry, _, _ = await installation.control_plane()
    await change_everything(registry)
    await registry.close()
    await unseal(installation)

    again = await open_again(installation)
    found = await verdict(again, installation.folder.audit_head_file, key_of(installation))
    assert (found.problems, found.sealed_at, found.entries) == ([], 4, 4)
    (entry,) = [one async for one in again.audit_log(after=3)]
    before = [one async for one in again.audit_log()][2]
    assert entry.what == audit_chain.SEALED
    assert entry.detail["old_head"] == f"3:{audit_chain.digest(before, b'')}"
    await again.close()
    third = await open_again(installation)
    assert third.head.sequence == 4, "once is enough"
    await third.close()


async def unseal(installation: Installation) -> None:
    """Make it a log of the version before, of three entries, in a folder that has no key yet."""
    store = await SqliteShelf(installation.folder.root).open("control")
    await store.acquire(0)
    head = audit_chain.Head(0, audit_chain.NOTHING)
    rows: list[Put | Clear] = []
    for number in range(1, 4):
        change = Change(number, "now", "ann", "noted", None, {}, head.hash)
        head = audit_chain.Head(number, audit_chain.digest(change, b""))
        rows.append(Put(registry_keys.change(number), registry_codec.encode_change(change)))
    (after,) = (await store.read([], [registry_keys.changes(3, 1_000)])).ranges
    rows += [Clear(entry.key) for entry in after]
    await store.commit([], [*rows, Put(registry_keys.HEAD, registry_codec.encode_head(head))])
    await store.close()
    audit_head.write(installation.folder.audit_head_file, head)
    for file in installation.folder.secrets.glob("audit.key*"):
        file.unlink()


async def test_who_strips_the_log_to_before_the_seal_is_found_out_after_a_new_start_too(
    installation: Installation,
) -> None:
    _, registry, _, _ = await installation.control_plane()
    await change_everything(registry)
    await registry.close()
    kept = {file: file.read_bytes() for file in installation.folder.secrets.glob("audit.key*")}
    await unseal(installation)
    for file, raw in kept.items():  # what somebody who writes the store and the heads can't reach
        file.write_bytes(raw)
        file.chmod(0o600)

    again = await open_again(installation)
    await again.note("ann", "noted", None, {})
    entries = [(entry, again.hash_of(entry)) async for entry in again.audit_log()]
    seal = audit_head.read(installation.folder.audit_key_file.with_name("audit.key.seal"))
    assert seal is not None
    assert audit_chain.verify(entries, [("the seal", seal)], key_of(installation)).problems
    await again.close()


@pytest.mark.parametrize("wrong", ["gone", "another", "short", "open to others"])
async def test_without_the_key_nothing_is_written(installation: Installation, wrong: str) -> None:
    file = installation.folder.audit_key_file
    if wrong == "gone":
        file.unlink()
    elif wrong == "open to others":
        file.chmod(0o644)
    else:
        file.write_bytes(b"a" * (32 if wrong == "another" else 7))
    with pytest.raises(FolderError):
        await open_again(installation)


@pytest.mark.parametrize("is_gone", [True, False])
async def test_the_seals_head_is_kept_again_where_a_crash_left_none(installation: Installation, is_gone: bool) -> None:
    seal = installation.folder.audit_key_file.with_name("audit.key.seal")
    before = seal.read_bytes()
    if is_gone:
        seal.unlink()
    await (await open_again(installation)).close()
    assert seal.read_bytes() == before


async def test_a_head_is_copied_elsewhere_and_never_put_back(installation: Installation, tmp_path: Path) -> None:
    _, registry, _, _ = await installation.control_plane()
    place = tmp_path / "elsewhere" / "head.json"
    copy = HeadCopy(registry, str(place), "it")
    await copy.work()
    await registry.note("ann", "noted", None, {})
    assert audit_head.read(place) != registry.head
    await copy.work()
    assert audit_head.read(place) == registry.head

    of_more = audit_chain.Head(registry.head.sequence + 1, "a" * 64)
    audit_head.write(place, of_more)
    after_a_start = HeadCopy(registry, str(place), "it")
    for _ in range(2):
        await after_a_start.work()
        await registry.note("ann", "noted", None, {})
    assert audit_head.read(place) == of_more


async def test_a_place_that_is_away_is_tried_again(installation: Installation, tmp_path: Path) -> None:
    _, registry, _, _ = await installation.control_plane()
    (tmp_path / "file").write_text("in the way")
    copy = HeadCopy(registry, str(tmp_path / "file" / "head.json"), "it")
    await copy.work()
    (tmp_path / "file").unlink()
    await copy.work()
    assert audit_head.read(tmp_path / "file" / "head.json") == registry.head


async def test_syslog_is_told_the_head(
    installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, registry, _, _ = await installation.control_plane()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        copy = HeadCopy(registry, "syslog", "it")
        monkeypatch.setattr(audit_copy, "_SYSLOG_SOCKET", str(tmp_path / "log"))
        await copy.work()  # nobody is there: a warning, and no more
        syslog.bind(str(tmp_path / "log"))
        syslog.settimeout(10)
        await copy.work()
        await copy.work()
        assert str(registry.head).encode() in syslog.recv(4_096)
        syslog.setblocking(False)
        with pytest.raises(BlockingIOError):
            syslog.recv(4_096)
