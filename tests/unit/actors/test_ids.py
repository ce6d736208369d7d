import re

import ulid
from hypothesis import given
from hypothesis import strategies as st

from actors.ids import IdMint, created_range
from tests.unit.actors.virtual_time import START_MS

ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")


def test_a_prefix_says_what_an_id_names() -> None:
    ids = IdMint().ids(START_MS)
    for prefix, identifier in (("pay", ids.payment_id), ("op", ids.operation_id), ("re", ids.refund_id)):
        name, _, ulid = identifier.partition("_")
        assert name == prefix
        assert ULID.fullmatch(ulid)


@given(st.integers(0, (1 << 48) - 1))
def test_an_id_is_written_as_the_library_writes_it(at_ms: int) -> None:
    first, _ = created_range("pay", at_ms, None)
    assert first == f"pay_{ulid.ULID.from_bytes(at_ms.to_bytes(6) + bytes(10))}"
    name = IdMint().ids(at_ms).payment_id.removeprefix("pay_")
    assert str(ulid.ULID.from_str(name)) == name


@given(st.lists(st.integers(START_MS, START_MS + 5), min_size=2, max_size=50))
def test_ids_rise_whatever_time_does(times: list[int]) -> None:
    mint = IdMint()
    made = [mint.ids(at_ms).payment_id for at_ms in times]
    assert made == sorted(set(made))


def test_ids_rise_through_a_millisecond_that_is_full() -> None:
    mint = IdMint()
    made = [mint.ids(START_MS).payment_id for _ in range(0x10000 + 10)]
    assert made == sorted(set(made))
    assert mint.ids(START_MS).payment_id > made[-1]
    assert mint.ids(START_MS + 2).payment_id > made[-1]


@given(st.integers(0, 2**48 - 1), st.integers(0, 2**48 - 1))
def test_a_range_of_time_holds_the_ids_made_in_it(at_ms: int, bound_ms: int) -> None:
    made = IdMint().ids(at_ms).payment_id
    low, high = created_range("pay", bound_ms, None)
    assert (low <= made < high) == (at_ms >= bound_ms)
    low, high = created_range("pay", None, bound_ms)
    assert (low <= made < high) == (at_ms < bound_ms)


def test_a_range_without_bounds_or_with_absurd_ones_is_still_one() -> None:
    made = IdMint().ids(START_MS).payment_id
    low, high = created_range("pay", None, None)
    assert low <= made < high
    low, high = created_range("pay", -5, 2**60)
    assert low <= made < high
