"""Keys keep their order as bytes, and what a store is asked is held against FoundationDB's limits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import limits as actor_limits
from actors.errors import StoreLimitError
from actors.store import Check, Clear, Key, Put
from stores import limits, tuple_keys
from stores.requests import encode_commit

parts = st.one_of(st.text(), st.integers(min_value=-(2**80), max_value=2**80), st.binary())
keys = st.lists(parts, max_size=4).map(tuple)


@given(keys)
def test_a_key_comes_back_as_it_was(key: Key) -> None:
    assert tuple_keys.decode(tuple_keys.encode(key)) == key


@given(st.lists(st.integers(), min_size=2, max_size=2), st.text())
def test_numbers_stand_in_their_order(numbers: list[int], name: str) -> None:
    smaller, larger = sorted(numbers)
    assert tuple_keys.encode((name, smaller)) <= tuple_keys.encode((name, larger))


@given(keys, keys.filter(bool))
def test_a_key_stands_before_what_begins_with_it(key: Key, rest: Key) -> None:
    assert tuple_keys.encode(key) < tuple_keys.encode(key + rest)


@pytest.mark.parametrize(
    ("key", "encoded"),
    [
        # From FoundationDB's specification of the tuple layer.
        ((b"foo\x00bar",), b"\x01foo\x00\xffbar\x00"),
        (("FÔO\x00bar",), b"\x02F\xc3\x94O\x00\xffbar\x00"),
        ((0,), b"\x14"),
        ((-5551212,), b"\x11\xabK\x93"),
        (("a", 1), b"\x02a\x00\x15\x01"),
    ],
)
def test_the_encoding_is_foundationdb_s(key: Key, encoded: bytes) -> None:
    assert tuple_keys.encode(key) == encoded


def test_checks_and_clears_count_towards_the_size_of_a_transaction() -> None:
    key = ("k" * 9_000,)
    value_bytes = actor_limits.STORE_VALUE_BYTES_MAX
    fitting = actor_limits.STORE_TRANSACTION_BYTES_MAX // (4 * (9_002 + limits.STORE_PREFIX_BYTES_MAX) + 200)
    encode_commit([], [Clear(key)] * fitting)
    for checks, mutations in (
        ([], [Clear(key)] * (fitting + 1)),
        ([Check(key, None)] * (2 * fitting + 1), []),
        ([Check(key, None)], [Put((number,), bytes(value_bytes)) for number in range(100)]),
    ):
        with pytest.raises(StoreLimitError, match="transaction"):
            encode_commit(checks, mutations)


def test_the_last_mutation_of_a_key_counts() -> None:
    request = encode_commit([], [Put(("a",), b"1"), Clear(("a",)), Clear(("b",)), Put(("b",), b"2")])
    assert request.writes == {tuple_keys.encode(("a",)): None, tuple_keys.encode(("b",)): b"2"}
