"""Partners' keys that failed, from routers' folders into the audit log; nothing in a folder is believed or followed."""

import json
import os
from pathlib import Path

from control_plane import limits
from control_plane.access import AccessLog
from control_plane.failed_keys import FailedKeysOfRouters, take
from control_plane.registry_records import PARTNER_KEY_FAILED, Partner
from router.failed_keys import FOLDER, FailedKeys
from tests.stand_in_door import Installation

SPAN = {"since": "2026-12-01T00:00:00.000Z", "until": "2026-12-01T00:00:09.000Z"}
ACME = Partner("acme", "Acme", "onboarding", "test", "cell-0", 1, 2, 3, "2026-11-22", 1, SPAN["since"])


def leave(folder: Path, name: str, *rows: list[object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(json.dumps({**SPAN, "rows": rows}))
    return file


async def test_what_routers_counted_is_in_the_audit_log_once(installation: Installation) -> None:
    _, registry, *_ = await installation.control_plane()
    await registry.begin_onboarding(ACME, "ann")
    accesses = AccessLog(registry)
    taker = FailedKeysOfRouters(installation.folder, ["router-0", "router-1"], accesses)
    for router in ("router-0", "router-1"):
        failed = FailedKeys()
        for _ in range(3):
            failed.note("192.0.2.1", "acme", "unknown_key")
        failed.note("192.0.2.1", "nobody_here", "unknown_key")
        await failed.keep(installation.folder.router_folder(router) / FOLDER)
    for _ in range(2):
        await taker.work()
        await accesses.work()
    found = [entry async for entry in registry.audit_log() if entry.what == PARTNER_KEY_FAILED]
    assert [(entry.who, entry.partner_id, entry.origin, entry.detail["times"]) for entry in found] == [
        ("nobody", "acme", "192.0.2.1", 6),
        ("nobody", None, "192.0.2.1", 2),
    ]
    assert {"from", "until"} < found[0].detail.keys()
    assert not list(installation.folder.root.glob(f"routers/*/{FOLDER}/*"))


async def test_a_hostile_routers_folder_is_neither_followed_nor_waited_for(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / FOLDER, tmp_path / "elsewhere.json"
    elsewhere.write_text("{}")
    good = leave(folder, "7.json", ["192.0.2.1", None, "no_key", 1])
    (folder / "1.json").symlink_to(elsewhere)
    os.mkfifo(folder / "2.json")
    (folder / "3.json").mkdir()
    (folder / "4.json").write_bytes(b"x" * (limits.FAILED_KEYS_FILE_BYTES_MAX + 1))
    leave(folder, "5.json", ["192.0.2.1", None, "<script>", 1])
    leave(folder, "6.json", *[["192.0.2.1", None, "no_key", 1]] * 1_000)
    (folder / "notes.txt").write_text("mine")
    assert [counted.rows for counted in take(tmp_path)] == [[("192.0.2.1", None, "no_key", 1)]]
    assert sorted(path.name for path in folder.iterdir()) == ["3.json", "notes.txt"]
    assert (good.exists(), elsewhere.read_text()) == (False, "{}")

    real = tmp_path / "real"
    file = leave(real, "1.json", ["192.0.2.1", None, "no_key", 1])
    router = tmp_path / "router"
    router.mkdir()
    (router / FOLDER).symlink_to(real)
    assert list(take(router)) == []
    assert file.exists()
    assert list(take(tmp_path / "nowhere")) == []
