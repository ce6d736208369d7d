"""ULIDs as text (https://github.com/ulid/spec). Who mints them, from which time, is not here."""

from typing import Final

_DIGITS: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS: Final = tuple(high + low for high in _DIGITS for low in _DIGITS)


def ulid_text(value: int) -> str:
    """Give the 26 characters (Crockford's base 32) of 128 bits; two at a time, since each payment needs some."""
    pairs = []
    for _ in range(13):
        pairs.append(_PAIRS[value & 0x3FF])
        value >>= 10
    return "".join(reversed(pairs))
