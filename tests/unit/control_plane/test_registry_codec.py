"""Rows of the registry: what was written is read again, and all else is reported."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import pytest

from control_plane import registry_codec, registry_keys
from control_plane.move_record import Burial, Move
from control_plane.notices import Notice
from control_plane.registry_records import IMPORTED, Cell, Change, Key, Origin, Owner, Partner, Rebalance, RebalanceStep
from stores import tuple_keys
from stores.contract import Entry, StoreCorruptError

PARTNER = Partner("acme", "Acmé", "active", "live", "cell-3", 1, 2, 3, "2026-11-22", 4, "2026-11-22T00:00:00.000Z")
CELL = Cell("cell-3", 3, "draining", 0.0, "127.0.0.1", 8104, 8104, 8204, 8304, "", "2026-11-22T00:00:00.000Z")
KEY = Key("key_1", "acme", "ab" * 32, "wxyz", "2026-11-22T00:00:00.000Z", "2026-11-23T00:00:00.000Z", None)
MOVE = Move("move_1", "acme", "cell-0", "cell-1", "t", "sealing", 1, "ann", "now", "", 80, 9, "copy", 1_800_000_000_000)
CHANGE = Change(
    7, "2026-11-22T00:00:00.000Z", "ann@host", "noted", None, {"a": [1, None, {"b": "\u2028"}], "n": 10**30}
)


def test_what_was_written_is_read_again() -> None:
    partner = Entry(registry_keys.partner("acme"), registry_codec.encode_partner(PARTNER))
    key = Entry(registry_keys.key("acme", "key_1"), registry_codec.encode_key(KEY))
    owner, origin = Owner("t", "pid 1 on host", "now"), Origin(IMPORTED, "now")
    assert registry_codec.decode_partner(partner) == PARTNER
    assert registry_codec.decode_key(key) == KEY
    cell = Entry(registry_keys.cell("cell-3"), registry_codec.encode_cell(CELL))
    assert registry_codec.decode_cell(cell) == CELL
    chained = replace(CHANGE, previous="0" * 64)
    keyed = replace(chained, keyed=True)
    for change in (CHANGE, chained, keyed, replace(keyed, origin="uid 0")):
        assert registry_codec.decode_change(registry_codec.encode_change(change)) == change
    assert registry_codec.decode_owner(registry_codec.encode_owner(owner)) == owner
    assert registry_codec.decode_origin(registry_codec.encode_origin(origin)) == origin
    assert registry_codec.decode_directory_version(registry_codec.encode_directory_version(9)) == 9


def test_what_is_not_there_is_none() -> None:
    assert registry_codec.decode_owner(None) is None
    assert registry_codec.decode_origin(None) is None
    assert registry_codec.decode_directory_version(None) == 0


BURIAL = Burial("acme", "cell-0", "move_1", "cell-1", "t", "move_0", ("cell-2",))
MOVE = Move("move_1", "acme", "cell-0", "cell-1", "t", "copying", 1, "ann", "now", passed_over=(("cell-2", "move_0"),))
NOTICE = Notice("acme", 7, "chg_1", "key_rotated", 5, {"key_id": "key_1", "n": 2})
DECODERS: list[tuple[str, Callable[[bytes], Any], bytes]] = [
    (
        "notice",
        lambda value: registry_codec.decode_notice(Entry(registry_keys.notice("acme", 7), value)),
        registry_codec.encode_notice(NOTICE),
    ),
    (
        "partner",
        lambda value: registry_codec.decode_partner(Entry(registry_keys.partner("acme"), value)),
        registry_codec.encode_partner(PARTNER),
    ),
    (
        "key",
        lambda value: registry_codec.decode_key(Entry(registry_keys.key("acme", "key_1"), value)),
        registry_codec.encode_key(KEY),
    ),
    (
        "cell",
        lambda value: registry_codec.decode_cell(Entry(registry_keys.cell("cell-3"), value)),
        registry_codec.encode_cell(CELL),
    ),
    (
        "step",
        lambda value: registry_codec.decode_rebalance_step(Entry(registry_keys.rebalance_step("acme"), value)),
        registry_codec.encode_rebalance_step(RebalanceStep("r", "acme", "cell-0", "cell-1", 9, "moving")),
    ),
    (
        "move",
        lambda value: registry_codec.decode_move(Entry(registry_keys.move("acme"), value)),
        registry_codec.encode_move(MOVE),
    ),
    (
        "burial",
        lambda value: registry_codec.decode_burial(Entry(registry_keys.burial("cell-0", "acme"), value)),
        registry_codec.encode_burial(BURIAL),
    ),
    (
        "move",
        lambda value: registry_codec.decode_move(Entry(registry_keys.move("acme"), value)),
        registry_codec.encode_move(MOVE),
    ),
    (
        "rebalance",
        registry_codec.decode_rebalance,
        registry_codec.encode_rebalance(Rebalance("r", "hash", "running", "ann", "now", None, "", 2, 600, 250)),
    ),
    ("change", registry_codec.decode_change, registry_codec.encode_change(CHANGE)),
    ("directory", registry_codec.decode_directory_version, registry_codec.encode_directory_version(1)),
    ("owner", registry_codec.decode_owner, registry_codec.encode_owner(Owner("t", "n", "s"))),
    ("origin", registry_codec.decode_origin, registry_codec.encode_origin(Origin(IMPORTED, "now"))),
]


@pytest.mark.parametrize(("decode", "good"), [row[1:] for row in DECODERS], ids=[row[0] for row in DECODERS])
def test_all_else_is_reported(decode: Callable[[bytes], Any], good: bytes) -> None:
    fields = msgpack.unpackb(good)
    wrong: list[Any] = [
        [99, *fields[1:]],
        fields[:-1],
        [*fields, None],
        {"version": 1},
        *([*fields[:index], {}, *fields[index + 1 :]] for index in range(1, len(fields))),
    ]
    for bad in (b"", b"\xc1", good[:-1], good + b"\x00", *map(msgpack.packb, wrong)):
        with pytest.raises(StoreCorruptError):
            decode(bad)


def test_a_partner_of_before_isolation_is_dedicated_with_the_acquirer_of_all() -> None:
    fields = msgpack.unpackb(registry_codec.encode_partner(PARTNER))
    old = msgpack.packb([1, *fields[1:12]])
    partner = registry_codec.decode_partner(Entry(registry_keys.partner("acme"), old))
    assert (partner.isolation, partner.acquirers) == ("dedicated", ())


def test_moves_and_burials_of_before_anybody_was_passed_over() -> None:
    fields = msgpack.unpackb(registry_codec.encode_move(MOVE))
    move = registry_codec.decode_move(Entry(registry_keys.move("acme"), msgpack.packb([1, *fields[1:14]])))
    assert move == replace(MOVE, quiesced_at_ms=None, passed_over=())
    fields = msgpack.unpackb(registry_codec.encode_burial(BURIAL))
    burial = registry_codec.decode_burial(
        Entry(registry_keys.burial("cell-0", "acme"), msgpack.packb([1, *fields[1:6]]))
    )
    assert burial == replace(BURIAL, arrival_id="", sources=())


def test_a_partner_of_before_currencies_takes_all() -> None:
    fields = msgpack.unpackb(registry_codec.encode_partner(replace(PARTNER, acquirers=("main",))))
    old = msgpack.packb([2, *fields[1:14]])
    partner = registry_codec.decode_partner(Entry(registry_keys.partner("acme"), old))
    assert (partner.acquirers, partner.currencies) == (("main",), ())


@pytest.mark.parametrize(("pause_ms", "told"), [(-1, None), (0, 0), (80, 80)])
def test_a_move_of_before_unknown_pauses_is_read(pause_ms: int, told: int | None) -> None:
    fields = msgpack.unpackb(registry_codec.encode_move(replace(MOVE, pause_ms=pause_ms)))
    move = registry_codec.decode_move(Entry(registry_keys.move("acme"), msgpack.packb([1, *fields[1:14]])))
    assert move == replace(MOVE, pause_ms=told, quiesced_at_ms=None, passed_over=())


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (1, "other"),
        (3, "gone"),
        (4, "prod"),
        (6, True),
        (6, 1.0),
        (2, None),
        (11, 5),
        (12, "alone"),
        (13, "main"),
        (13, ["main", 5]),
        (14, "EUR"),
        (14, [None]),
        (0, True),
    ],
)
def test_a_partner_that_can_not_be_is_reported(index: int, value: object) -> None:
    fields = msgpack.unpackb(registry_codec.encode_partner(PARTNER))
    fields[index] = value
    with pytest.raises(StoreCorruptError):
        registry_codec.decode_partner(Entry(registry_keys.partner("acme"), msgpack.packb(fields)))


@pytest.mark.parametrize(
    ("index", "value"), [(1, "key_2"), (2, "beta"), (6, "soon"), (6, "2026-11-22T00:00:00"), (6, 5), (7, False)]
)
def test_a_key_that_can_not_be_is_reported(index: int, value: object) -> None:
    fields = msgpack.unpackb(registry_codec.encode_key(KEY))
    fields[index] = value
    with pytest.raises(StoreCorruptError):
        registry_codec.decode_key(Entry(registry_keys.key("acme", "key_1"), msgpack.packb(fields)))


@pytest.mark.parametrize("detail", ["[]", "{", "[" * 100_000, "5"])
def test_a_change_whose_detail_is_none_is_reported(detail: str) -> None:
    with pytest.raises(StoreCorruptError):
        registry_codec.decode_change(msgpack.packb([1, 1, "at", "who", "what", None, detail]))


def test_ranges_hold_their_own_rows_only() -> None:
    def within(key: Any, asked: Any) -> bool:
        return tuple_keys.encode(asked.begin) <= tuple_keys.encode(key) < tuple_keys.encode(asked.end)

    partner, key = registry_keys.partner("acme"), registry_keys.key("acme", "key_1")
    assert within(partner, registry_keys.partners(None, 1))
    assert within(key, registry_keys.keys(None, 1))
    for other in (registry_keys.key_hash("ab"), registry_keys.OWNER, registry_keys.change(1)):
        assert not within(other, registry_keys.keys(None, 1))
        assert not within(other, registry_keys.partners(None, 1))
    assert not within(partner, registry_keys.partners(partner, 1)), "the next page begins behind the last row"
    assert within(registry_keys.partner("acme_"), registry_keys.partners(partner, 1))
    assert not within(key, registry_keys.keys(key, 1))
    assert within(registry_keys.key("acme", "key_10"), registry_keys.keys(key, 1))
    assert not within(registry_keys.change_of("acme", 1), registry_keys.newest_change())
    assert not within(registry_keys.change_of("acme2", 1), registry_keys.newest_changes_of("acme", 5))
