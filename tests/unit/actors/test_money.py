import iso4217
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.money import MINOR_UNIT_DIGITS, format_amount, is_chargeable


@pytest.mark.parametrize(
    ("currency", "digits"), [("EUR", 2), ("USD", 2), ("JPY", 0), ("KRW", 0), ("BHD", 3), ("KWD", 3), ("CLF", 4)]
)
def test_minor_units_are_those_of_the_standard(currency: str, digits: int) -> None:
    assert MINOR_UNIT_DIGITS[currency] == digits
    assert is_chargeable(currency)


@pytest.mark.parametrize("currency", ["XAU", "XTS", "XXX", "XDR", "eur", "EURO", "", "ZZZ"])
def test_what_has_no_minor_unit_is_not_charged(currency: str) -> None:
    assert not is_chargeable(currency)


def test_every_currency_of_the_standard_is_known_or_has_no_minor_unit() -> None:
    without = {currency.code for currency in iso4217.Currency} - set(MINOR_UNIT_DIGITS)
    assert without
    assert all(currency.exponent is None for currency in iso4217.Currency if currency.code in without)


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [
        (1050, "EUR", "10.50 EUR"),
        (1050, "JPY", "1050 JPY"),
        (1050, "BHD", "1.050 BHD"),
        (5, "EUR", "0.05 EUR"),
        (0, "EUR", "0.00 EUR"),
        (-5, "EUR", "-0.05 EUR"),
        (-150, "JPY", "-150 JPY"),
    ],
)
def test_amounts_are_written_as_people_do(amount: int, currency: str, text: str) -> None:
    assert format_amount(amount, currency) == text


@given(st.integers(-(10**12), 10**12), st.sampled_from(sorted(MINOR_UNIT_DIGITS)))
def test_writing_an_amount_loses_nothing(amount: int, currency: str) -> None:
    number, written = format_amount(amount, currency).split(" ")
    assert written == currency
    assert int(number.replace(".", "")) == amount
    assert len(number.partition(".")[2]) == MINOR_UNIT_DIGITS[currency]
