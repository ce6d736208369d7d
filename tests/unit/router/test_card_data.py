"""Card numbers are found wherever they stand, and what only looks a little like one is let through."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stdnum import luhn

from router import limits
from router.card_data import ISSUERS, holds_card_number

# Published test numbers of the schemes; nobody's cards.
PUBLISHED = [
    "4242424242424242",
    "4000056655665556",
    "4222222222222",
    "5555555555554444",
    "2223003122003222",
    "378282246310005",
    "371449635398431",
    "6011111111111117",
    "6011000990139424",
    "3056930009020004",
    "36227206271667",
    "3566002020360505",
    "6200000000000005",
    "6759649826438453",
]


def _completed(prefix: str, length: int, filling: str) -> str:
    body = (prefix + filling)[: length - 1]
    return body + luhn.calc_check_digit(body)


@st.composite
def card_numbers(draw: st.DrawFn) -> str:
    ranges, lengths = ISSUERS[draw(st.sampled_from(sorted(ISSUERS)))]
    low, high = draw(st.sampled_from(ranges))
    prefix = str(draw(st.integers(int(low), int(high))))
    filling = draw(st.text("0123456789", min_size=19, max_size=19))
    return _completed(prefix, draw(st.sampled_from(sorted(lengths))), filling)


@pytest.mark.parametrize("number", PUBLISHED)
def test_published_numbers_are_found(number: str) -> None:
    assert holds_card_number(number)
    assert holds_card_number(f"card {number}, please")
    assert holds_card_number(f"tok_{number}")
    assert holds_card_number(f"x{number}y")


@given(card_numbers())
def test_every_range_and_length_is_found(number: str) -> None:
    assert holds_card_number(number)


@given(card_numbers(), st.data())
def test_separators_don_t_hide_a_number(number: str, data: st.DataObject) -> None:
    separators = st.sampled_from(["", " ", "-", " - ", "\u00a0", "\u2011", "\u2013", "  "])
    text = number[0] + "".join(data.draw(separators) + digit for digit in number[1:])
    assert holds_card_number(text)


@given(card_numbers(), st.integers(0, 999_999), st.integers(0, 999_999))
def test_other_numbers_beside_it_don_t_hide_a_number(number: str, before: int, after: int) -> None:
    assert holds_card_number(f"{before} {number} {after}")


@given(card_numbers(), st.text(st.characters(exclude_categories=["Nd", "Cs"])), st.text("abcxyz.,:/\n\"'{}"))
def test_any_text_around_it_doesn_t_hide_a_number(number: str, before: str, after: str) -> None:
    # Not a hexadecimal token of 24 characters: there digits mean nothing, see below.
    assert holds_card_number(f"{before} #{number}#{after}")


@given(card_numbers(), st.integers(0, 9))
def test_a_wrong_check_digit_is_no_card(number: str, digit: int) -> None:
    other = number[:-1] + str(digit)
    assert holds_card_number(other) is (other == number)


@given(card_numbers())
def test_a_longer_run_of_digits_is_no_card(number: str) -> None:
    run = f"0{number}{'0' * (20 - len(number))}"
    assert len(run) > 19
    assert not holds_card_number(run)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1732300000000",  # milliseconds since 1970
        "2026-11-22 17:00:00.123456",
        "+49 170 1234567890",
        "0000000000000000",
        "9999999999999995",
        "411111111111",  # Visa has no 12 digits
        "4242.4242.4242.4242",  # a dot parts what belongs to no card
        "pay_01JD8Z6V3H4K5M6N7P8Q9R0S1T",
    ],
)
def test_other_numbers_are_let_through(text: str) -> None:
    assert not holds_card_number(text)


@given(st.uuids())
def test_no_uuid_is_taken_for_a_card(value: uuid.UUID) -> None:
    assert not holds_card_number(str(value))
    assert not holds_card_number(str(value).upper())


@given(st.binary(min_size=32, max_size=32))
def test_no_digest_is_taken_for_a_card(value: bytes) -> None:
    text = "f" + value.hex()[1:]
    assert not holds_card_number(text)


def test_no_id_of_ours_is_taken_for_a_card() -> None:
    # One that was made: Luhn-valid behind Discover's first digits. Its page could not be read on from.
    assert not holds_card_number("starting_after=pay_01M8AS646800013019297261XB")
    assert holds_card_number("646800013019297261")
    assert not holds_card_number("op_01M8AS646800013019297261XB, 01M8AS646800013019297261XB")


@pytest.mark.parametrize("text", ["01M8AS 646800013019297261", "9646800013019297261AS 646800013019297261"])
def test_what_is_no_whole_ulid_hides_no_card(text: str) -> None:
    assert holds_card_number(text)


def test_a_number_in_a_uuid_s_neighbourhood_is_found() -> None:
    assert holds_card_number("6c3e4f9a-1fd1-4a2c-8a33-12a4567f9012 4242424242424242")


def test_a_uuid_of_digits_that_are_a_card_is_let_through() -> None:
    assert not holds_card_number("00000000-0000-0000-0004-242424242424")


def test_a_flood_of_candidates_is_refused_without_looking_at_all_of_them() -> None:
    assert holds_card_number("4 " * (limits.CARD_CANDIDATES_MAX + 40))
