"""Card data in what a client sends: found, so that it can be refused unlogged (PCI DSS 4.0.1, 3.3 to 3.5). Pure.

What it is for: honest mistakes, card data as people and systems write it. Found are card numbers as a whole group of
digits or in groups as they are printed, in digits of any script, between letters, on tracks; and security codes, PINs,
PIN blocks and tracks by the names of their fields. Out of its reach is who hides: a number in words, in hexadecimal,
cut in two fields, or behind another digit. docs/card-data.md lists what passes and what is refused, with figures.

What is found is never repeated: callers learn where it stands.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final

from stdnum import ean, iban, luhn

from cells.api import limits
from cells.api.issuers import FIRST_DIGITS, is_issued

_DIGITS_MIN: Final = 12
_DIGITS_MAX: Final = 19
# Between digits: blanks and tabs, dashes, dots, slashes, underscores. Lines end a number.
_BETWEEN: Final = r"[ \t._/\\-]"
# Where a card's number may begin, with as many digits behind it as it needs: at a group that begins with an issuer's
# first digits. The search passes quickly over other text.
_START: Final = re.compile(f"(?:{FIRST_DIGITS})[0-9](?=(?:{_BETWEEN}{{0,3}}+[0-9]){{{_DIGITS_MIN - 4}}})")
_TELEPHONE: Final = re.compile(f"[+](?:[0-9]{_BETWEEN}{{0,3}}+){{0,20}}")
_GROUP: Final = re.compile("[0-9]+")
_GROUP_BEHIND: Final = re.compile(f"{_BETWEEN}{{0,3}}([0-9]+)")
# Exempt as a whole value only, as an IBAN is: a UUID, and a ULID, which our own ids are.
_ID: Final = re.compile(
    "(?:urn:uuid:)?[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|(?:[a-z]{2,4}_)?[0-7][0-9A-HJKMNP-TV-Z]{25}"
)
# An international telephone number has at most 15 digits (ITU-T E.164).
_TELEPHONE_DIGITS_MAX: Final = 15
# How numbers are printed: 4-4-4-4 and 4-4-4-4-3, 4-6-5, 4-6-4, 4-3-3-3, 6-13, 8-8, and 5-5-5 where they are typed.
_FIRST_GROUP_DIGITS: Final = frozenset({4, 6, 8})
_GROUP_DIGITS_MIN: Final = 3
_EQUAL_DIGITS: Final = 5
_DECIMAL: Final = re.compile("[0-9]+[.][0-9]+")

_CODE: Final = re.compile(r"\s*[0-9]{3,4}\s*")
_PIN: Final = re.compile(r"\s*[0-9]{4,12}\s*")
_ANYTHING: Final = re.compile(r"\s*\S.*", re.DOTALL)
_WITH_DIGIT: Final = re.compile(r"[^0-9]*[0-9].*", re.DOTALL)
_WORD: Final = re.compile("[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_CODE_WORDS: Final = frozenset({"cvv", "cvc", "csc", "cav", "cvn", "cvd"})
_CODE_NAMES: Final = (
    "securitycode",
    "verificationcode",
    "verificationvalue",
    "verificationnumber",
    "cardcode",
    "cardcid",
    "amexcid",
)
_PIN_NAMES: Final = frozenset({"pin", "cardpin", "pinnumber", "pinvalue"})
_SECRET_NAMES: Final = frozenset({"pinblock", "encryptedpinblock", "magstripe", "magneticstripe", "magstripedata"})
_TRACK: Final = re.compile("(?:full|card)?track[123]?(?:data|equivalent)?[123]?")
_NOT_A_TRACK: Final = frozenset({"track"})  # a song, a race, a parcel


# What is not seen: zero-width characters, soft hyphens, marks of direction, variation selectors.
_UNSEEN: Final = "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5" + "".join(
    chr(code)
    for low, high in (
        (0x180B, 0x180F),
        (0x200B, 0x200F),
        (0x202A, 0x202E),
        (0x2060, 0x206F),
        (0xFE00, 0xFE0F),
        (0xFEFF, 0xFEFF),
    )
    for code in range(low, high + 1)
)
_DASHES: Final = "\u00b7\u2022\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"
_POINTS: Final = "\u2024\uff0e"


def _plain() -> dict[int, str | None]:
    """Return how text is written in ASCII: digits of all scripts, blanks and dashes, without what is not seen."""
    plain: dict[int, str | None] = {}
    for code in range(0x80, 0x20000):
        character = chr(code)
        if (digit := unicodedata.digit(character, None)) is not None:
            plain[code] = str(digit)
        elif unicodedata.category(character) == "Zs":
            plain[code] = " "
    return (
        plain
        | dict.fromkeys(map(ord, _DASHES), "-")
        | dict.fromkeys(map(ord, _POINTS), ".")
        | dict.fromkeys(map(ord, _UNSEEN))
    )


_PLAIN: Final = _plain()


class CardData(StrEnum):
    """What was found."""

    CARD_NUMBER = "a card number"
    SECURITY_CODE = "a card's security code"
    PIN = "a PIN, a PIN block or a track"


@dataclass(frozen=True, slots=True)
class Found:
    """What stands where: `steps` lead to the field, or to what holds the field whose own name is a card number."""

    kind: CardData
    steps: tuple[str | int, ...]


def find(value: Any) -> Found | None:
    """Find card data in a JSON value, in names, texts and numbers; None where there is none.

    Its cost is linear in the text. Past CARD_CANDIDATES_MAX groups of digits that begin like a card's number the value
    is taken for card data.
    """
    left = _Budget(limits.CARD_CANDIDATES_MAX)
    for steps, name, one in _walk(value):
        if name is not None and holds_card_number(name, left):
            return Found(CardData.CARD_NUMBER, steps[:-1])
        if isinstance(one, str):
            text = one
        elif isinstance(one, int | float) and not isinstance(one, bool):
            text = _written(one)
        else:
            continue
        kind = None if name is None else _of_name(name, text)
        if kind is None and holds_card_number(text, left):
            kind = CardData.CARD_NUMBER
        if kind is not None:
            return Found(kind, steps)
    return None


class _Budget:
    """How many groups of digits may still be tried."""

    __slots__ = ("candidates",)

    def __init__(self, candidates: int) -> None:
        self.candidates = candidates

    def take(self) -> bool:
        """Use one up; return whether there was one."""
        self.candidates -= 1
        return self.candidates >= 0


def holds_card_number(text: str, left: _Budget | None = None) -> bool:
    """Check whether a card number stands in the text: an issuer's first digits, a length of its, the check digit."""
    if len(text) < _DIGITS_MIN:
        return False
    if not text.isascii():
        text = text.translate(_PLAIN)
    left = _Budget(limits.CARD_CANDIDATES_MAX) if left is None else left
    for start in _START.finditer(text):
        begin = start.start()
        if _is_fraction(text, begin):
            continue
        if not left.take():
            return True
        for number, end in _candidates(text, begin):
            if not left.take():
                return True
            if luhn.is_valid(number) and not _is_exempt(number, text, begin, end):
                return True
    return False


def _is_exempt(number: str, text: str, begin: int, end: int) -> bool:
    """Check whether a number with a card's form is something else: an article, a decimal, a telephone, a whole id."""
    # GS1's check digit: cards of 12 and 13 digits are next to extinct, EAN and UPC stand in every order.
    if len(number) in {12, 13} and ean.is_valid(number):
        return True
    if _DECIMAL.fullmatch(text, begin, end) is not None or _is_telephone(text, begin):
        return True
    return _ID.fullmatch(text) is not None or bool(iban.is_valid(text))


def _candidates(text: str, begin: int) -> Iterator[tuple[str, int]]:
    """Yield each number that begins there and that an issuer may have issued, and its end: that of a group."""
    digits = ""
    size = 0  # of the first group
    is_printed = True
    end = begin
    while (group := _GROUP_BEHIND.match(text, end)) is not None:
        end = group.end()
        length = len(digits) + len(group[1])
        if length > _DIGITS_MAX or not is_printed:
            return
        digits += group[1]
        if length >= _DIGITS_MIN and is_issued(digits):
            yield digits, end
        # As a further group comes, this one is no longer the last.
        size = size or length
        is_printed = len(group[1]) == size == _EQUAL_DIGITS or (
            size in _FIRST_GROUP_DIGITS and len(group[1]) >= _GROUP_DIGITS_MIN
        )


def _is_fraction(text: str, begin: int) -> bool:
    """Check whether a group is what stands behind the point of a decimal number: digits, a point, digits, no point."""
    if begin < 2 or text[begin - 1] != "." or not text[begin - 2].isdigit():
        return False
    group = _GROUP.match(text, begin)
    return group is not None and text[group.end() : group.end() + 1] != "."


def _is_telephone(text: str, begin: int) -> bool:
    """Check whether what stands there is part of an international telephone number: a plus and at most 15 digits."""
    plus = text.rfind("+", max(0, begin - limits.CARD_NAME_CHARACTERS_MAX), begin)
    if plus < 0:
        return False
    run = _TELEPHONE.match(text, plus)
    return run is not None and run.end() > begin and sum(map(str.isdigit, run[0])) <= _TELEPHONE_DIGITS_MAX


def _written(number: float) -> str:
    """Write a JSON number as the digits that it has before its point."""
    if isinstance(number, int):
        return str(abs(number))
    return str(int(abs(number))) if number == number // 1 and abs(number) < 10**_DIGITS_MAX else ""


def _of_name(name: str, text: str) -> CardData | None:
    """Look at a field by its name: nothing else shows what PCI DSS 3.3.1 forbids to store."""
    named = _named(name) if len(name) <= limits.CARD_NAME_CHARACTERS_MAX else None
    return named[0] if named is not None and named[1].fullmatch(text) is not None else None


@lru_cache(maxsize=limits.CARD_NAMES_REMEMBERED_MAX)
def _named(name: str) -> tuple[CardData, re.Pattern[str]] | None:
    """Return what a field of this name holds, if its text has that form; None for a name that says nothing."""
    words = [word.lower() for word in _WORD.findall(name)]
    whole = "".join(words)
    if not _CODE_WORDS.isdisjoint(words) or whole in _CODE_WORDS or whole.endswith(_CODE_NAMES):
        return CardData.SECURITY_CODE, _CODE
    if whole in _PIN_NAMES:
        return CardData.PIN, _PIN
    if whole in _SECRET_NAMES:
        return CardData.PIN, _ANYTHING
    if whole not in _NOT_A_TRACK and _TRACK.fullmatch(whole) is not None:
        return CardData.PIN, _WITH_DIGIT
    return None


def _walk(value: Any) -> Iterator[tuple[tuple[str | int, ...], str | None, Any]]:
    """Yield each value with the steps to it, and its name where it has one. Not by recursion: nesting is a client's."""
    waiting: list[tuple[tuple[str | int, ...], str | None, Any]] = [((), None, value)]
    while waiting:
        steps, name, one = waiting.pop()
        yield steps, name, one
        if isinstance(one, dict):
            waiting += [((*steps, key), key, inner) for key, inner in one.items()]
        elif isinstance(one, list):
            waiting += [((*steps, index), None, inner) for index, inner in enumerate(one)]
