from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from control_plane import data_folder, limits
from control_plane.data_folder import read_directory_key
from control_plane.errors import ControlPlaneError
from control_plane.processes import plan
from control_plane.publishing import Publisher, _Records
from control_plane.registry_records import Key, Partner
from router import directory, directory_file, directory_signature
from router.settings import Settings as RouterSettings
from router.settings import read_directory_key as read_public_key
from tests.stand_in_door import Installation
from tests.unit.control_plane.test_partners import wanted


def read(installation: Installation) -> directory.Directory:
    return installation.directory()


async def test_the_first_directory_has_all_cells_and_no_partner(installation: Installation) -> None:
    _, _, _, publisher = await installation.control_plane()
    assert await publisher.publish() == 1
    assert set(read(installation).cells) == {"cell-0", "cell-1"}
    assert read(installation).partners == {}


async def test_what_routers_are_told_of_a_partner_is_made_anew_where_something_of_it_changed_and_only_there() -> None:
    now = datetime(2026, 11, 26, tzinfo=UTC)
    cells = tuple(directory.Cell(name=f"cell-{number}", weight=1.0, host="h", port=1) for number in range(3))
    partners = [_partner(f"p{number}") for number in range(9)]
    keys = [_key(partner.id, "a") for partner in partners]
    records = _Records()
    before = records.payload(now, cells, partners, keys)
    expired = replace(keys[0], expires_at="2026-11-27T00:00:00+00:00")
    for at, place, of, held, changed in (
        (now, cells, partners, keys, set()),
        (now, cells, [replace(partners[0], rate_per_second=7), *partners[1:]], keys, {"p0"}),
        (now, cells, partners, keys[1:], {"p0"}),
        (now, cells, partners, [*keys, _key("p3", "b")], {"p3"}),
        (now, cells, partners, [replace(keys[0], revoked_at="2026-11-26"), *keys[1:]], {"p0"}),
        (now + timedelta(days=2), cells, partners, [expired, *keys[1:]], {"p0"}),
        (now, cells, [replace(partners[0], status="erasing"), *partners[1:]], keys, {"p0"}),
        (now, cells[:1], partners, keys, {partner.id for partner in partners}),
    ):
        told = records.payload(at, place, of, held)
        assert told == _Records().payload(at, place, of, held)
        same = {name for name, record in told.partners.items() if record is before.partners[name]}
        assert set(before.partners) - same == changed
        before = records.payload(now, cells, partners, keys)


def _partner(partner_id: str) -> Partner:
    return Partner(partner_id, partner_id, "active", "test", "cell-0", 9, 9, 9, "2026-11-22", 1, "2026-11-26T00:00:00Z")


def _key(partner_id: str, digit: str) -> Key:
    return Key(f"key_{partner_id}_{digit}", partner_id, digit * 64, "hint", "2026-11-26T00:00:00Z", None, None)


async def test_nothing_new_is_published_where_nothing_changed(installation: Installation) -> None:
    control, _, _, publisher = await installation.control_plane()
    await control.create(wanted(), "ann")
    version = await publisher.publish()
    before = installation.folder.directory_file.stat()
    assert await publisher.publish() == version
    _, _, _, again = await installation.control_plane()
    assert await again.publish() == version
    assert installation.folder.directory_file.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("damage", ["gone", "cut off"])
async def test_a_lost_file_is_published_again_with_a_newer_version(installation: Installation, damage: str) -> None:
    control, _, _, publisher = await installation.control_plane()
    await control.create(wanted(), "ann")
    version = await publisher.publish()
    if damage == "gone":
        installation.folder.directory_file.unlink()
    else:
        installation.folder.directory_file.write_bytes(installation.folder.directory_file.read_bytes()[:100])
    _, _, _, again = await installation.control_plane()
    assert await again.publish() == version + 1
    assert "acme" in read(installation).partners


async def test_a_file_that_others_damaged_is_published_again_while_running(installation: Installation) -> None:
    control, _, _, publisher = await installation.control_plane()
    await control.create(wanted(), "ann")
    version = await publisher.publish()
    installation.folder.directory_file.write_bytes(b"?")
    assert await publisher.publish() == version + 1
    assert await publisher.publish() == version + 1
    assert "acme" in read(installation).partners


async def test_versions_rise_past_what_routers_hold_also_after_a_restore(installation: Installation) -> None:
    _, registry, _, _ = await installation.control_plane()
    kept = installation.folder.router_folder("router-0")
    key = read_directory_key(installation.folder)
    signed = directory_signature.sign(key, directory.encode(41, directory.Payload()))
    directory_file.write_atomically(kept / "directory.json", signed)
    publisher = Publisher(registry, installation.folder, ["router-0"])
    assert await publisher.publish() == 42


async def test_a_partner_stays_where_its_book_is(installation: Installation) -> None:
    control, registry, _, publisher = await installation.control_plane()
    cell = (await control.create(wanted(), "ann")).partner.cell
    assert read(installation).partners["acme"].cell is None, "the hash says it"
    other = "cell-1" if cell == "cell-0" else "cell-0"
    registry._held.partners["acme"] = replace(registry.partner("acme"), cell=other)
    await publisher.publish()
    assert read(installation).partners["acme"].cell == other
    found = read(installation).cell_of("acme")
    assert found is not None
    assert found.name == other


async def test_a_change_waits_for_routers_and_names_those_that_are_behind(installation: Installation) -> None:
    _, registry, _, _ = await installation.control_plane()
    publisher = Publisher(registry, installation.folder, ["router-0", "router-1"])
    version = await publisher.publish()
    raw = installation.folder.directory_file.read_bytes()
    directory_file.write_atomically(installation.folder.router_folder("router-1") / "directory.json", raw)
    assert await publisher.wait_taken(version) == ["router-0"]
    directory_file.write_atomically(installation.folder.router_folder("router-0") / "directory.json", raw)
    assert await publisher.wait_taken(version) == []


async def test_a_router_s_copy_is_read_once_and_not_while_routers_take_the_next_one(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DIRECTORY_TAKEN_TIMEOUT_MS", 100)
    _, registry, _, _ = await installation.control_plane()
    publisher = Publisher(registry, installation.folder, ["router-0"])
    kept = installation.folder.router_folder("router-0") / "directory.json"
    reads = 0
    real = directory_file.read_bytes

    def read_bytes(path: Path) -> bytes:
        nonlocal reads
        reads += path == kept
        return real(path)

    version = await publisher.publish()
    directory_file.write_atomically(kept, installation.folder.directory_file.read_bytes())
    monkeypatch.setattr(directory_file, "read_bytes", read_bytes)
    assert await publisher.wait_taken(version) == []
    assert await publisher.wait_taken(version + 1) == ["router-0"]
    assert reads == 1
    directory_file.write_atomically(kept, b"?")
    assert await publisher.wait_taken(version) == ["router-0"], "it would not start from that"


async def test_many_partners_spread_over_the_cells(installation: Installation) -> None:
    _, registry, _, _ = await installation.control_plane()
    publisher = Publisher(registry, installation.folder, [])
    cells = [publisher.place(f"partner_{index}") for index in range(1_000)]
    assert 400 < cells.count("cell-0") < 600


async def test_a_version_is_never_used_twice(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    _, registry, _, publisher = await installation.control_plane()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(directory_file, "write_atomically", full)
        with pytest.raises(ControlPlaneError, match=r"No space left.*Routers go on"):
            await publisher.publish()
    assert registry.directory_version() == 1
    assert await publisher.publish() == 2
    assert read(installation).version == 2


async def test_what_a_router_knows_signs_no_directory_that_another_takes(installation: Installation) -> None:
    _, registry, _, publisher = await installation.control_plane()
    version = await publisher.publish()
    folder = installation.folder
    specs = plan(
        installation.settings, folder, data_folder.require_instance(folder), registry.cells(), "1", lambda _: ""
    )
    first, second = (RouterSettings.model_validate(spec.config) for spec in specs if spec.role == "router")
    files = [first.pepper_file, first.directory_key_file, *first.acquirer_key_files.values()]
    files += [first.cell_keys_folder / f"{cell}.router.key" for cell in installation.doors]
    files += [first.redis_secret_file] if first.redis_secret_file is not None else []
    known = [file.read_bytes() for file in files]
    assert folder.directory_key_file.read_bytes() not in known

    async def changed(_: directory.Directory) -> None:
        """Nothing is to be done here."""

    signed_by = read_public_key(second.directory_key_file)
    watcher = directory_file.DirectoryWatcher(second.directory_file, second.data_folder, signed_by, changed)
    await watcher.load()
    good = folder.directory_file.read_bytes()
    body = directory.encode(version + 1, directory.Payload())
    forged = [body, good[: -len(body)] + body, good.partition(b"\n")[0] + b"\n" + body]
    forged += [
        directory_signature.sign(Ed25519PrivateKey.from_private_bytes(sha256(secret).digest()), body)
        for secret in known
    ]
    forged += [directory_signature.sign(Ed25519PrivateKey.from_private_bytes(secret), body) for secret in known]
    for raw in forged:
        await watcher.offer(raw)
        directory_file.write_atomically(folder.directory_file, raw)
        await watcher.poll()
        assert watcher.current is not None
        assert watcher.current.version == version, raw[:40]
    assert watcher.rejected == 2 * len(forged)
    # Its own copy, too: it can't push the numbers of versions up for all.
    directory_file.write_atomically(folder.router_folder(first.name) / "directory.json", forged[-1])
    again = Publisher(registry, folder, [first.name])
    assert await again.publish() == version + 1
    await watcher.poll()
    assert watcher.current is not None
    assert watcher.current.version == version + 1
    assert set(watcher.current.cells) == {"cell-0", "cell-1"}, "what the control plane says"


async def test_a_directory_of_before_there_were_signatures_is_published_again_signed(
    installation: Installation,
) -> None:
    _, registry, _, publisher = await installation.control_plane()
    version = await publisher.publish()
    signed = installation.folder.directory_file.read_bytes()
    directory_file.write_atomically(installation.folder.directory_file, signed.partition(b"\n")[2])
    with pytest.raises(directory.DirectoryError, match="begins with no signature"):
        read(installation)
    with pytest.raises(directory.DirectoryError, match="no JSON object"):
        directory.decode(signed)  # a router of before
    assert await Publisher(registry, installation.folder, []).publish() == version + 1
    assert read(installation).version == version + 1
