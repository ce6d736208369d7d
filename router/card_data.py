"""Card numbers in text: found, so that they can be refused at the edge (PCI DSS 3.2 to 3.4). Pure.

What is found is never given back: callers learn yes or no and say so without a word of the text.
"""

import re
from typing import Final

from stdnum import luhn

from router import limits

# Separators inside a printed card number: spaces, also unbreakable ones, and dashes.
_SEPARATORS: Final = "[ \u00a0\u2011\u2013-]{0,3}"
# A cheap look first: most texts hold no long run of digits at all.
_LONG_RUN: Final = re.compile("[0-9][0-9 \u00a0\u2011\u2013-]{10}")
# Up to 19 digits from where a group of digits begins, with a first digit that an issuer below has. The look-ahead
# takes nothing, so that a number is found behind other digits too ("order 1 4242 ...").
_CANDIDATE: Final = re.compile(f"(?<![0-9])(?=([2-6](?:{_SEPARATORS}[0-9]){{11,18}})([0-9]?))")
# Random hexadecimal looks like a card number once in 3,000 times (measured), and partners send UUIDs
# with every payment as keys and references. So a UUID and a long hexadecimal token count as one letter; a ULID, too,
# which our own ids are: one in many millions has a card's digits.
_TOKEN: Final = re.compile(
    "(?<![0-9A-Za-z])(?:"
    "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
    "|(?=[0-9]*[a-fA-F])[0-9a-fA-F]{24,}"
    "|(?=[0-9]*[A-HJKMNP-TV-Z])[0-7][0-9A-HJKMNP-TV-Z]{25}"
    ")(?![0-9A-Za-z])"
)

_16_TO_19: Final = frozenset(range(16, 20))
# Issuer -> first digits as (low, high), both of the same length, and the lengths of its numbers (ISO/IEC 7812).
ISSUERS: Final[dict[str, tuple[tuple[tuple[str, str], ...], frozenset[int]]]] = {
    "visa": ((("4", "4"),), frozenset({13, 16, 19})),
    "mastercard": ((("51", "55"), ("2221", "2720")), frozenset({16})),
    "amex": ((("34", "34"), ("37", "37")), frozenset({15})),
    "discover": ((("6011", "6011"), ("644", "649"), ("65", "65")), _16_TO_19),
    "jcb": ((("3528", "3589"),), _16_TO_19),
    "diners": ((("300", "305"), ("3095", "3095"), ("36", "36"), ("38", "39")), frozenset(range(14, 20))),
    "unionpay": ((("62", "62"),), _16_TO_19),
    "maestro": (
        (
            ("5018", "5018"),
            ("5020", "5020"),
            ("5038", "5038"),
            ("5893", "5893"),
            ("6304", "6304"),
            ("6759", "6759"),
            ("6761", "6763"),
        ),
        frozenset(range(12, 20)),
    ),
}


def holds_card_number(text: str) -> bool:
    """Say whether a card number stands in the text: an issuer's first digits, one of its lengths, and Luhn (ISO 7812).

    Digits may be parted by up to three spaces or dashes; the number begins and ends where a group of digits does.
    """
    if _LONG_RUN.search(text) is None or _CANDIDATE.search(text) is None:
        return False
    text = _TOKEN.sub("x", text)
    for count, match in enumerate(_CANDIDATE.finditer(text)):
        if count >= limits.CARD_CANDIDATES_MAX or _begins_with_card_number(match[1], continues=bool(match[2])):
            return True
    return False


def _begins_with_card_number(run: str, *, continues: bool) -> bool:
    """Try each end of a group of digits in the run as the end of a number. `continues`: a digit follows the run."""
    digits = ""
    last = len(run) - 1
    for position, character in enumerate(run):
        if not "0" <= character <= "9":
            continue
        digits += character
        is_end = not continues if position == last else not "0" <= run[position + 1] <= "9"
        if is_end and _is_issued(digits) and luhn.is_valid(digits):
            return True
    return False


def _is_issued(digits: str) -> bool:
    return any(
        len(digits) in lengths and any(low <= digits[: len(low)] <= high for low, high in ranges)
        for ranges, lengths in ISSUERS.values()
    )
