"""Every change of the registry stands in the audit log, chained, in the same commit; and its head beside it."""

import inspect
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from control_plane import api_keys, audit_chain, audit_head, data_folder, opening, registry_keys
from control_plane.audit_chain import Verdict
from control_plane.registry import Registry
from control_plane.registry_draft import Draft
from control_plane.registry_records import Operator, Partner
from stores.contract import Check, Clear, Put
from stores.sqlite_shelf import SqliteShelf
from tests.stand_in_door import Installation

PEPPER = b"p" * 32


def partner(name: str) -> Partner:
    return Partner(name, name, "onboarding", "test", "cell-0", 1, 2, 3, "2026-11-22", 1, "2026-11-22T00:00:00.000Z")


async def verdict(registry: Registry, folder: Path | None = None) -> Verdict:
    entries = [entry async for entry in registry.audit_log()]
    kept = await registry.kept_head()
    heads = [] if kept is None else [("the store", kept)]
    outside = None if folder is None else audit_head.read(folder)
    return audit_chain.verify(entries, heads + ([] if outside is None else [("outside", outside)]))


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
    by_themselves = {"take_directory_version", "put_move", "forget_notices"}
    # Tests of moves go through these, and the assertion.
    elsewhere = {"begin_move", "begin_evacuation", "partner_moved", "end_move", "forget_burials"}
    assert done == writers - by_themselves - elsewhere, "each kind of write is tried here"
    assert all(draft.is_noted for draft in commits)
    assert len(commits) == len(done)
    found = await verdict(registry, installation.folder.audit_head_file)
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
    assert (await verdict(again, installation.folder.audit_head_file)).problems
    await again.close()
