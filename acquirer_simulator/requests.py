"""Reads what callers send into values, or says what is wrong with it. No HTTP server and no record goes in."""

import re
from datetime import date
from typing import Any, Final, NamedTuple

import orjson

from acquirer_simulator import limits
from acquirer_simulator.rules import Operation
from acquirer_simulator.settlements import MONEY_KINDS, Movement, day_start_ms
from acquirer_simulator.tokens import KINDS, LATER_KINDS

_FIELDS: Final = frozenset({"partner", "kind", "amount", "currency", "payment_method", "original_key"})
_EXTRA_FIELDS: Final = frozenset({"date", "partner", "kind", "amount", "currency", "original_key"})
_KEY: Final = re.compile(rf"[A-Za-z0-9._:~-]{{1,{limits.KEY_CHARACTERS_MAX}}}", re.ASCII)
_PARTNER: Final = re.compile(rf"[a-z0-9_]{{1,{limits.PARTNER_CHARACTERS_MAX}}}", re.ASCII)
_CURRENCY: Final = re.compile(r"[A-Z]{3}", re.ASCII)
_FAULTS_WITHOUT_DELAY: Final = frozenset({"hang", "refuse", "garbage", "silent"})
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_MANY_DIGITS: Final = re.compile(rf"[0-9](?:[ -]?[0-9]){{{limits.DIGITS_IN_A_TOKEN_MAX},}}", re.ASCII)
# What is written down in place of something that looks like a card number (PCI DSS 3.4). No token has this name.
REDACTED: Final = "redacted"


class InvalidRequestError(Exception):
    """The request is not of the documented shape; nothing was performed. The message says what is wrong."""


class Fault(NamedTuple):
    """What is wrong with the acquirer for one partner: `hang`, `refuse`, or `slow` by `delay_ms`.

    `garbage`, `silent`: it does what it is asked, and its answer can't be read, or does not come.
    """

    mode: str
    delay_ms: int


def read_key(key: str) -> str:
    """Return the key if it is one: URL-safe characters, 1 to KEY_CHARACTERS_MAX. Raises InvalidRequestError."""
    if _KEY.fullmatch(key) is None:
        raise InvalidRequestError("the key must be 1 to 255 of A-Z a-z 0-9 . _ : ~ -")
    return key


def read_operation(key: str, body: bytes) -> Operation:
    """Return the operation that `body` (JSON) asks for under `key`. Raises InvalidRequestError.

    A payment method that holds as many digits as a card number does is never kept: REDACTED stands in its place.
    """
    read_key(key)
    fields = _read_object(body)
    if fields.keys() != _FIELDS:
        raise InvalidRequestError(f"the fields must be {', '.join(sorted(_FIELDS))}")
    kind = fields["kind"]
    if not isinstance(kind, str) or kind not in KINDS:
        raise InvalidRequestError(f"kind must be one of {', '.join(sorted(KINDS))}")
    currency = _read_currency(fields["currency"])
    method = fields["payment_method"]
    if not isinstance(method, str) or len(method) > limits.PAYMENT_METHOD_CHARACTERS_MAX:
        raise InvalidRequestError("payment_method must be a token of at most 255 characters")
    if _MANY_DIGITS.search(method) is not None:
        method = REDACTED
    original_key = fields["original_key"]
    if kind in LATER_KINDS:
        if not isinstance(original_key, str):
            raise InvalidRequestError(f"a {kind} needs the original_key of what it is about")
        read_key(original_key)
    elif original_key is not None:
        raise InvalidRequestError(f"a {kind} has no original_key")
    return Operation(
        key,
        read_partner(fields["partner"]),
        kind,
        _read_whole(fields["amount"], "amount", limits.AMOUNT_MINOR_UNITS_MAX),
        currency,
        method,
        original_key,
    )


def read_partner(partner: object) -> str:
    """Return the partner's id if it is one. Raises InvalidRequestError."""
    if not isinstance(partner, str) or _PARTNER.fullmatch(partner) is None:
        raise InvalidRequestError("partner must be 1 to 40 of a-z 0-9 _")
    return partner


def read_fault(body: bytes) -> Fault:
    """Return the fault that `body` (JSON) sets. Raises InvalidRequestError."""
    fields = _read_object(body)
    mode = fields.get("mode")
    if mode in _FAULTS_WITHOUT_DELAY and fields.keys() <= {"mode", "delay_ms"}:
        return Fault(mode, 0)
    if mode == "slow" and fields.keys() == {"mode", "delay_ms"}:
        return Fault(mode, _read_whole(fields["delay_ms"], "delay_ms", limits.DELAY_MS_MAX))
    raise InvalidRequestError("a fault is hang, refuse, garbage, silent, or slow with its delay_ms")


def read_extra(key: str, body: bytes) -> Movement:
    """Return the movement, performed by nobody, that `body` (JSON) adds to a settlement file.

    Raises InvalidRequestError.
    """
    fields = _read_object(body)
    if fields.keys() != _EXTRA_FIELDS:
        raise InvalidRequestError(f"the fields must be {', '.join(sorted(_EXTRA_FIELDS))}")
    kind = fields["kind"]
    if not isinstance(kind, str) or kind not in MONEY_KINDS:
        raise InvalidRequestError(f"kind must be one of {', '.join(sorted(MONEY_KINDS))}")
    original_key = fields["original_key"]
    if original_key is not None:
        read_key(str(original_key))
    return Movement(
        read_partner(fields["partner"]),
        kind,
        read_key(key),
        original_key,
        _read_whole(fields["amount"], "amount", limits.AMOUNT_MINOR_UNITS_MAX),
        _read_currency(fields["currency"]),
        "",
        day_start_ms(read_day(fields["date"])),
    )


def read_day(text: object) -> date:
    """Return the day of a YYYY-MM-DD. Raises InvalidRequestError."""
    try:
        day = date.fromisoformat(text) if isinstance(text, str) and _DAY.fullmatch(text) else None
    except ValueError:
        day = None
    if day is None or day.year < 1970:
        raise InvalidRequestError("a day is written YYYY-MM-DD")
    return day


def read_count(text: str, name: str, largest: int) -> int:
    """Return a whole number from a query, 0 to `largest`. Raises InvalidRequestError."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise InvalidRequestError(f"{name} must be a whole number")
    return _read_whole(int(text), name, largest)


def _read_currency(value: object) -> str:
    if not isinstance(value, str) or _CURRENCY.fullmatch(value) is None:
        raise InvalidRequestError("currency must be three capital letters (ISO 4217)")
    return value


def _read_whole(value: object, name: str, largest: int) -> int:
    if type(value) is not int or not 0 <= value <= largest:  # a bool is no amount
        raise InvalidRequestError(f"{name} must be a whole number from 0 to {largest}")
    return value


def _read_object(body: bytes) -> dict[str, Any]:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError("the body must be JSON") from error
    if not isinstance(fields, dict):
        raise InvalidRequestError("the body must be a JSON object")
    return fields
