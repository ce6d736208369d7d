"""Currencies of ISO 4217 and their minor units. Amounts are integers in minor units everywhere; no floats go in.

The table is the `iso4217` package's copy of the standard's list one. Codes without a minor unit (gold, testing
codes, units of account) can't be charged.
"""

from typing import Final

import iso4217

MINOR_UNIT_DIGITS: Final[dict[str, int]] = {
    currency.code: currency.exponent for currency in iso4217.Currency if currency.exponent is not None
}


def is_chargeable(currency: str) -> bool:
    """Say whether `currency` is an ISO 4217 code with a minor unit."""
    return currency in MINOR_UNIT_DIGITS


def format_amount(amount: int, currency: str) -> str:
    """Give an amount as people write it: 1050, "EUR" -> "10.50 EUR"; 1050, "JPY" -> "1050 JPY"."""
    digits = MINOR_UNIT_DIGITS[currency]
    sign = "-" if amount < 0 else ""
    whole, fraction = divmod(abs(amount), 10**digits)
    return f"{sign}{whole}.{fraction:0{digits}d} {currency}" if digits else f"{sign}{whole} {currency}"
