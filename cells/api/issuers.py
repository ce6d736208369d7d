"""Card issuers as data: which first digits (ISO/IEC 7812) go with which lengths of a card number.

Each range is (low, high), both of the same length. Left out: UATP (15 digits behind a 1) and GPN (1946), because time
stamps look like them, and schemes that ended (Solo, Switch, Laser). Co-branded numbers stand under the scheme that they
begin like.
"""

from typing import Final

_16: Final = frozenset({16})
_16_TO_19: Final = frozenset(range(16, 20))
_12_TO_19: Final = frozenset(range(12, 20))

Ranges = tuple[tuple[str, str], ...]

ISSUERS: Final[dict[str, tuple[Ranges, frozenset[int]]]] = {
    "visa": ((("4", "4"),), frozenset({13, 16, 19})),
    "mastercard": ((("51", "55"), ("2221", "2720")), _16),
    "amex": ((("34", "34"), ("37", "37")), frozenset({15})),
    "discover": ((("6011", "6011"), ("644", "649"), ("65", "65")), _16_TO_19),
    "jcb": ((("3528", "3589"),), _16_TO_19),
    "diners": ((("300", "305"), ("3095", "3095"), ("36", "36"), ("38", "39")), frozenset(range(14, 20))),
    "unionpay": ((("62", "62"), ("81", "81")), _16_TO_19),
    "maestro": (
        (
            ("5018", "5018"),
            ("5020", "5020"),
            ("5038", "5038"),
            ("5893", "5893"),
            ("6304", "6304"),
            ("6703", "6703"),
            ("6759", "6759"),
            ("6761", "6763"),
        ),
        _12_TO_19,
    ),
    "dankort": ((("5019", "5019"),), _16),
    "mir": ((("2200", "2204"),), _16_TO_19),
    "troy": ((("9792", "9792"),), _16),
    "rupay": ((("508", "508"), ("353", "353"), ("356", "356"), ("60", "60"), ("82", "82")), _16),
    "elo": (
        (("506699", "506778"), ("509", "509"), ("627780", "627780"), ("636297", "636297"), ("636368", "636368")),
        _16,
    ),
    "verve": ((("506099", "506198"), ("507865", "507964")), frozenset({16, 18, 19})),
    "meeza": ((("5078", "5078"),), _16),
    "mada": ((("968201", "968211"), ("588845", "588851")), _16),
    "napas": ((("9704", "9704"),), frozenset({16, 19})),
    "uzcard": ((("8600", "8600"), ("5614", "5614")), _16),
    "humo": ((("9860", "9860"),), _16),
    "boric": ((("2205", "2205"),), _16),
    "interpayment": ((("636", "636"),), _16_TO_19),
    "instapayment": ((("637", "639"),), _16),
}


def _by_prefix() -> dict[str, frozenset[int]]:
    found: dict[str, frozenset[int]] = {}
    for ranges, lengths in ISSUERS.values():
        for low, high in ranges:
            for prefix in range(int(low), int(high) + 1):
                found[str(prefix)] = found.get(str(prefix), frozenset()) | lengths
    return found


def _first_digits() -> str:
    """Return a regular expression of the first three digits that issuers have, where a group of digits begins."""
    thirds: dict[str, dict[str, str]] = {}
    for three in map("{:03}".format, range(1_000)):
        if any(three.startswith(prefix) or prefix.startswith(three) for prefix in _LENGTHS):
            second = thirds.setdefault(three[0], {})
            second[three[1]] = second.get(three[1], "") + three[2]
    begins_group = "(?<![0-9].)"
    return "|".join(
        f"{first}{begins_group}(?:{'|'.join(f'{second}[{third}]' for second, third in by_second.items())})"
        for first, by_second in thirds.items()
    )


_LENGTHS: Final = _by_prefix()
_PREFIX_DIGITS: Final = tuple(sorted({len(prefix) for prefix in _LENGTHS}))

FIRST_DIGITS: Final = _first_digits()


def is_issued(digits: str) -> bool:
    """Check whether an issuer has numbers of this length with these first digits."""
    return any(len(digits) in _LENGTHS.get(digits[:count], ()) for count in _PREFIX_DIGITS)
