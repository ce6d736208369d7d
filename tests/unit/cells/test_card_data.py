"""Card data as people and systems write it is found, and what only looks a little like it is let through."""

import re
import uuid
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from stdnum import luhn

from cells.api import limits
from cells.api.card_data import CardData, Found, find, holds_card_number
from cells.api.issuers import FIRST_DIGITS, ISSUERS

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
    "5019717010103742",
    "2200770239097761",
    "9792020000000001",
]


def _completed(prefix: str, length: int, filling: str) -> str:
    body = (prefix + filling)[: length - 1]
    return body + luhn.calc_check_digit(body)


@st.composite
def card_numbers(draw: st.DrawFn, lengths: frozenset[int] = frozenset(range(14, 20))) -> str:
    """Of 14 digits and more: every tenth one of 12 or 13 digits is an article's number (EAN, UPC) just as well."""
    issuers = sorted(name for name, (_, has) in ISSUERS.items() if has & lengths)
    ranges, has = ISSUERS[draw(st.sampled_from(issuers))]
    low, high = draw(st.sampled_from(ranges))
    prefix = str(draw(st.integers(int(low), int(high))))
    filling = draw(st.text("0123456789", min_size=19, max_size=19))
    return _completed(prefix, draw(st.sampled_from(sorted(has & lengths))), filling)


def _in_groups(number: str, sizes: tuple[int, ...], separator: str) -> str:
    groups = []
    for size in sizes:
        groups.append(number[:size])
        number = number[size:]
    return separator.join([*groups, number] if number else groups)


@pytest.mark.parametrize("number", PUBLISHED)
def test_published_numbers_are_found(number: str) -> None:
    assert holds_card_number(number)
    assert holds_card_number(f"card {number}, please")
    assert holds_card_number(f"tok_{number}")
    assert holds_card_number(f"x{number}y")
    assert holds_card_number(f"{number}abcdefab")


@given(card_numbers())
def test_every_range_and_length_is_found(number: str) -> None:
    assert holds_card_number(number)
    assert re.match(FIRST_DIGITS, number)


@given(
    card_numbers(),
    st.sampled_from([(4, 4, 4, 4), (4, 6), (4, 6, 4), (5, 5, 5), (4, 3, 3, 3), (6, 13), (8, 8)]),
    st.sampled_from(
        [
            " ",
            "-",
            " - ",
            ".",
            "/",
            "\t",
            "  ",
            "_",
            "\u00a0",
            "\u2007",
            "\u200b",
            "\u2011",
            "\u2013",
            "\u2212",
            "\u00b7",
        ]
    ),
)
def test_groups_don_t_hide_a_number(number: str, sizes: tuple[int, ...], separator: str) -> None:
    text = _in_groups(number, sizes, separator)
    assume(text.count(".") != 1)  # a decimal number
    assert holds_card_number(text)


@given(card_numbers(), st.sampled_from([0xFF10, 0x0660, 0x06F0, 0x0966, 0x1D7CE, 0x2080]))
def test_digits_of_other_scripts_and_forms_are_digits(number: str, zero: int) -> None:
    assert holds_card_number("".join(chr(zero + int(digit)) for digit in number))


@given(card_numbers(), st.integers(0, 999_999), st.integers(0, 999_999))
def test_other_numbers_beside_it_don_t_hide_a_number(number: str, before: int, after: int) -> None:
    assert holds_card_number(f"{before} {number} {after}")
    assert holds_card_number(f"{before} {_in_groups(number, (4, 4, 4, 4), ' ')}, {after}")


@given(card_numbers(), st.text(st.characters(exclude_categories=["Nd", "No", "Cs"])), st.text("abcxyz,:\n\"'{}"))
def test_any_text_around_it_doesn_t_hide_a_number(number: str, before: str, after: str) -> None:
    assert holds_card_number(f"{before} #{number}#{after}")


@given(card_numbers())
def test_tracks_are_found(number: str) -> None:
    assert holds_card_number(f"%B{number}^DOE/JOHN^27121010000?")
    assert holds_card_number(f";{number}=27121010000?")
    assert holds_card_number(f"{number}D27121010000F")


@given(card_numbers(), st.integers(0, 9))
def test_a_wrong_check_digit_is_no_card(number: str, digit: int) -> None:
    other = number[:-1] + str(digit)
    assert holds_card_number(other) is (other == number)


@given(card_numbers())
def test_a_number_behind_other_digits_is_out_of_reach(number: str) -> None:
    assert not holds_card_number(f"0{number}{'0' * (20 - len(number))}")
    assert not holds_card_number(f"1{number}") or len(number) < 19


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1732300000000",  # milliseconds since 1970
        "2026-11-22 17:00:00.123456",
        "+49 170 1234567890",
        "+4242424242424",  # Luhn's digit is right, and the plus says telephone
        "0.4242424242424242",
        "4242.424242424242",
        "DE65 4242 4242 4242 4242 00",
        "113-4242424-2424242",  # an order's number of a large shop
        "4006381333931",  # an EAN that begins like a Visa
        "0000000000000000",
        "9999999999999995",
        "411111111111",  # Visa has no 12 digits
        "4242 4242\n4242 4242",  # two lines are two numbers
        "pay_01JD8Z6V3H4K5M6N7P8Q9R0S1T",
    ],
)
def test_other_numbers_are_let_through(text: str) -> None:
    assert not holds_card_number(text)


@given(st.uuids())
def test_no_uuid_is_taken_for_a_card(value: uuid.UUID) -> None:
    assert not holds_card_number(str(value))
    assert not holds_card_number(value.urn.upper().replace("URN:UUID", "urn:uuid"))


def test_an_id_as_a_whole_value_is_no_card() -> None:
    assert not holds_card_number("00000000-0000-0000-0004-242424242424")
    # One that was made: Luhn-valid behind Discover's first digits. Its page could not be read on from.
    assert find({"starting_after": "pay_01M8AS646800013019297261XB"}) is None
    assert not holds_card_number("01M8AS646800013019297261XB")
    assert holds_card_number("see 01M8AS646800013019297261XB")


def test_a_number_in_a_uuid_s_neighbourhood_is_found() -> None:
    assert holds_card_number("6c3e4f9a-1fd1-4a2c-8a33-12a4567f9012 4242424242424242")


@pytest.mark.parametrize(
    ("value", "steps"),
    [
        ({"reference": "4242424242424242"}, ("reference",)),
        ({"metadata": {"a": "b", "note": "4242 4242 4242 4242"}}, ("metadata", "note")),
        ({"lines": ["a", {"note": 4242424242424242}]}, ("lines", 1, "note")),
        ({"note": 4242424242424242.0}, ("note",)),
        ({"note": -4242424242424242}, ("note",)),
        ({"metadata": {"4242424242424242": "b"}}, ("metadata",)),
        ("4242424242424242", ()),
    ],
)
def test_it_is_known_where_a_number_stands(value: Any, steps: tuple[str | int, ...]) -> None:
    assert find(value) == Found(CardData.CARD_NUMBER, steps)


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("cvv", "123", CardData.SECURITY_CODE),
        ("CVV2", "0123", CardData.SECURITY_CODE),
        ("card_cvc", 123, CardData.SECURITY_CODE),
        ("cardCvc", "123", CardData.SECURITY_CODE),
        ("security-code", "999", CardData.SECURITY_CODE),
        ("cvv_result", "M", None),
        ("promotion_code", "123", None),
        ("cid", "123", None),  # a client's or a customer's id more often than American Express's code
        ("pin", "1234", CardData.PIN),
        ("pin_code", "560001", None),  # India's postal codes
        ("pinBlock", "0412AC89ABCDEF67", CardData.PIN),
        ("track2", ";x=1?", CardData.PIN),
        ("Track1Data", "%B1^", CardData.PIN),
        ("track", "12", None),  # a song, a race
        ("tracking", "12", None),
        ("pin", "", None),
        ("cvv" + "x" * limits.CARD_NAME_CHARACTERS_MAX, "123", None),
    ],
)
def test_what_a_field_s_name_tells(name: str, text: Any, kind: CardData | None) -> None:
    found = find({"metadata": {name: text}})
    assert found == (None if kind is None else Found(kind, ("metadata", name)))


def test_a_flood_of_candidates_is_refused_without_looking_at_all_of_them() -> None:
    refused = "4000 " * limits.CARD_CANDIDATES_MAX
    assert holds_card_number(refused)
    assert not holds_card_number(refused[: 5 * 16])
    assert find({"metadata": {str(number): "4000 " * 8 for number in range(50)}}) is not None
    assert find([f"4{number:011}" for number in range(limits.CARD_CANDIDATES_MAX)]) is None
