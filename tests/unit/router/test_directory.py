"""The directory: what is altered or older is never taken, and a partner's cell moves only when it must."""

import hashlib
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import directory
from router.directory import Cell, DirectoryError, Payload

CREATED = "2026-11-22T17:00:00Z"
PARTNER: dict[str, Any] = {
    "name": "Acme",
    "status": "active",
    "mode": "test",
    "api_version": "2026-11-22",
    "profile_version": 1,
    "cell": None,
    "rate_per_second": 50,
    "rate_burst": 100,
    "in_flight_max": 256,
    "created_at": CREATED,
    "keys": [{"id": "key_1", "hash": "0" * 64, "hint": "abcd", "created_at": CREATED, "expires_at": None}],
}


def cells(number: int, weight: float = 1.0) -> list[Cell]:
    return [Cell(name=f"cell-{n}", weight=weight, host="127.0.0.1", port=8100 + n) for n in range(number)]


def payload(**changes: Any) -> Payload:
    fields = {
        "cells": [{"name": "cell-0", "weight": 1.0, "host": "127.0.0.1", "port": 8101}],
        "partners": {"acme": PARTNER},
        **changes,
    }
    return Payload.model_validate(fields)


def partners(number: int) -> list[str]:
    return [f"partner_{n:08x}" for n in range(number)]


GOLDEN = {
    "acme": "cell-1",
    "globex": "cell-1",
    "initech": "cell-2",
    "umbrella": "cell-0",
    "partner_0badcafe": "cell-0",
}
GOLDEN_OF_1000 = "7c8184db9954d53e462d6c1c579cb30c77754717c33bd836aaf084ab7ad70886"


def test_where_partners_belong_never_changes() -> None:
    # Another hash would leave every partner's book in a cell that no longer serves it.
    four = cells(4)
    assert {name: directory.rendezvous(name, four) for name in GOLDEN} == GOLDEN
    digest = hashlib.sha256("".join(str(directory.rendezvous(name, four)) for name in partners(1_000)).encode())
    assert digest.hexdigest() == GOLDEN_OF_1000


@pytest.mark.parametrize("number", [1, 2, 4, 8])
def test_a_new_cell_takes_its_share_and_nothing_else_moves(number: int) -> None:
    names = partners(4_000)
    before = {name: directory.rendezvous(name, cells(number)) for name in names}
    after = {name: directory.rendezvous(name, cells(number + 1)) for name in names}
    moved = [name for name in names if before[name] != after[name]]
    assert {after[name] for name in moved} == {f"cell-{number}"}
    assert len(moved) == pytest.approx(len(names) / (number + 1), rel=0.15)


def test_a_cell_that_goes_moves_only_its_own() -> None:
    names = partners(2_000)
    four = cells(4)
    for name in names:
        home = directory.rendezvous(name, four)
        left = directory.rendezvous(name, four[:3])
        assert home in (left, "cell-3")


def test_weights_are_kept() -> None:
    heavy = [*cells(2), Cell(name="cell-2", weight=2.0, host="h", port=1)]
    chosen = [directory.rendezvous(name, heavy) for name in partners(8_000)]
    assert chosen.count("cell-2") == pytest.approx(4_000, rel=0.06)
    assert chosen.count("cell-0") == pytest.approx(2_000, rel=0.1)


@given(st.permutations(cells(6)), st.text("abcdefghijklmnopqrstuvwxyz0123456789_", min_size=1, max_size=40))
def test_the_order_of_cells_means_nothing(order: list[Cell], partner_id: str) -> None:
    assert directory.rendezvous(partner_id, order) == directory.rendezvous(partner_id, cells(6))


def test_a_cell_without_weight_gets_nobody() -> None:
    drained = [*cells(1), Cell(name="cell-1", weight=0, host="h", port=1)]
    assert {directory.rendezvous(name, drained) for name in partners(200)} == {"cell-0"}
    assert directory.rendezvous("acme", []) is None
    assert directory.rendezvous("acme", cells(3, weight=0)) is None


def test_an_override_wins() -> None:
    both = [{"name": f"cell-{n}", "weight": 1.0, "host": "h", "port": 1} for n in range(2)]
    hashed = directory.rendezvous("acme", payload(cells=both).cells)
    other = "cell-0" if hashed == "cell-1" else "cell-1"
    held = directory.decode(directory.encode(1, payload(cells=both, partners={"acme": {**PARTNER, "cell": other}})))
    for _ in range(2):
        home = held.cell_of("acme")
        assert home is not None
        assert home.name == other


def test_an_override_to_a_cell_that_is_not_there_takes_only_its_partner_out() -> None:
    both = {"acme": {**PARTNER, "cell": "cell-9"}, "globex": PARTNER}
    held = directory.decode(directory.encode(1, payload(partners=both)))
    assert held.cell_of("acme") is None
    assert held.cell_of("globex") is not None
    assert held.cell_of("nobody") is not None


def test_it_comes_back_as_it_was_written() -> None:
    written = payload()
    held = directory.decode(directory.encode(7, written))
    assert held.version == 7
    assert held.payload == written


def test_fields_of_a_newer_control_plane_are_left_out() -> None:
    document = orjson.loads(directory.encode(1, payload()))
    document["payload"]["partners"]["acme"]["colour"] = "blue"
    canonical = json.dumps(document["payload"], sort_keys=True, separators=(",", ":"))
    document["checksum"] = hashlib.sha256(canonical.encode()).hexdigest()
    assert directory.decode(orjson.dumps(document)).payload == payload()


@given(st.data())
def test_no_altered_byte_gets_through(data: st.DataObject) -> None:
    raw = directory.encode(3, payload())
    position = data.draw(st.integers(0, len(raw) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda value: value != raw[position]))
    altered = raw[:position] + bytes([other]) + raw[position + 1 :]
    try:
        held = directory.decode(altered)
    except DirectoryError:
        return
    # The version stands outside the checksum; all else was found out.
    assert held.payload == payload()


_RECORDS = st.dictionaries(
    st.sampled_from(["acme", "globex", "initech"]),
    st.sampled_from(
        [PARTNER, {**PARTNER, "profile_version": 9}, {**PARTNER, "keys": []}, {"status": "gone"}, None, []]
    ),
)


@given(_RECORDS, _RECORDS)
def test_what_was_read_before_changes_nothing_of_what_is_read(before: dict[str, Any], after: dict[str, Any]) -> None:
    try:
        held = directory.decode(_signed(before))
    except DirectoryError:
        held = None
    try:
        expected = directory.decode(_signed(after)).payload
    except DirectoryError:
        with pytest.raises(DirectoryError):
            directory.decode(_signed(after), held)
        return
    found = directory.decode(_signed(after), held)
    assert found.payload == expected
    for name in before if held is not None else ():
        if after.get(name) == before[name]:
            assert held is not None
            assert found.partners[name] is held.partners[name], "it is not read twice"


def _signed(records: dict[str, Any]) -> bytes:
    fields = {"cells": [], "partners": records}
    return orjson.dumps({"version": 1, "checksum": directory._checksum(fields), "payload": fields})


@given(st.binary(max_size=300))
def test_garbage_is_refused(raw: bytes) -> None:
    with pytest.raises(DirectoryError):
        directory.decode(raw)


def test_the_version_alone_is_believed_as_the_whole_is() -> None:
    raw = directory.encode(7, payload())
    assert directory.decode_version(raw) == directory.decode(raw).version == 7
    for damaged in (raw[:-9], raw.replace(b"8101", b"8102"), b"?"):
        with pytest.raises(DirectoryError):
            directory.decode_version(damaged)


@pytest.mark.parametrize("raw", [b"[]", b"null", b'{"version":1}', b'{"version":true,"checksum":"","payload":{}}'])
def test_other_json_is_refused(raw: bytes) -> None:
    with pytest.raises(DirectoryError):
        directory.decode(raw)


def test_one_nested_deeper_than_it_can_be_written_is_refused() -> None:
    deep = b"[" * 600 + b"]" * 600
    with pytest.raises(DirectoryError, match="deeply"):
        directory.decode(b'{"version":1,"checksum":"x","payload":%b}' % deep)
    with pytest.raises(DirectoryError):
        directory.decode(b"[" * 100_000)


def test_a_directory_cut_off_is_refused() -> None:
    raw = directory.encode(3, payload())
    for length in range(0, len(raw), 7):
        with pytest.raises(DirectoryError):
            directory.decode(raw[:length])


@pytest.mark.parametrize(
    "change",
    [
        {"status": "gone"},
        {"mode": "prod"},
        {"rate_per_second": 0},
        {"api_version": "newest"},
        {"created_at": "yesterday"},
        {"keys": [{**PARTNER["keys"][0], "hash": "short"}]},
    ],
)
def test_other_types_are_refused_under_a_right_checksum(change: dict[str, Any]) -> None:
    document = orjson.loads(directory.encode(1, payload()))
    document["payload"]["partners"]["acme"] |= change
    canonical = orjson.dumps(document["payload"], option=orjson.OPT_SORT_KEYS)
    document["checksum"] = hashlib.sha256(canonical).hexdigest()
    with pytest.raises(DirectoryError, match=r"partners\.acme"):
        directory.decode(orjson.dumps(document))


SECRET = "A" * 42 + "_"


@pytest.mark.parametrize(
    ("key", "named"),
    [
        (f"sk_test_acme_{SECRET}", ("test", "acme")),
        (f"sk_live_partner_1_a_{SECRET}", ("live", "partner_1_a")),
        (f"sk_test___{SECRET}", ("test", "_")),
        (f"sk_prod_acme_{SECRET}", None),
        (f"sk_test_Acme_{SECRET}", None),
        (f"sk_test_acme_{SECRET}\n", None),
        ("sk_test_acme_short", None),
        (f"sk_test_{'a' * 41}_{SECRET}", None),
        (f"sk_test_acme_{'=' * 43}", None),
        ("", None),
    ],
)
def test_a_key_names_its_partner(key: str, named: tuple[str, str] | None) -> None:
    assert directory.parse_key(key) == named


def test_a_key_is_kept_as_its_keyed_hash() -> None:
    # Golden: RFC 4231, test case 2.
    assert directory.hash_key(b"Jefe", "what do ya want for nothing?") == (
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )
