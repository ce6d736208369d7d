"""Keys as bytes: ours and the library's are the same, and the bytes' order is the order of the tuples."""

import fdb.tuple
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores import tuple_keys

_PARTS = (
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.binary(max_size=20)
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([0, 1, 255, 256, 2**32, 2**63, 2**64 - 1, 2**64, "", "\x00", "a\x00", "\x00\xff", "\U0010ffff"])
)
_KEYS = st.lists(_PARTS, max_size=5).map(tuple)


@given(_KEYS)
def test_is_what_the_library_makes(key: tuple[str | int | bytes, ...]) -> None:
    assert tuple_keys.encode(key) == fdb.tuple.pack(key)
    assert tuple_keys.decode(tuple_keys.encode(key)) == key


@given(st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 2**63)), max_size=20))
def test_bytes_stand_in_the_order_of_the_tuples(keys: list[tuple[str, int]]) -> None:
    in_order = sorted(keys, key=lambda key: (key[0].encode(), key[1]))
    assert sorted(keys, key=tuple_keys.encode) == in_order


def test_a_lone_surrogate_is_no_text() -> None:
    with pytest.raises(UnicodeEncodeError):
        tuple_keys.encode(("payment", "\ud800"))
