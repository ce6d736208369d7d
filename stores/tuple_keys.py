"""Keys as bytes, in FoundationDB's tuple encoding: bytewise order is the tuples' order. Knows no key by name.

https://github.com/apple/foundationdb/blob/main/design/tuple.md. Texts and counts, which keys are made of, are encoded
here: a commit has a dozen keys, and the library's general way takes several times as long. A test holds the two against
each other. The library's module that is used for the rest needs no client library.
"""

from typing import cast

import fdb.tuple

from actors.store import Key


def encode(key: Key) -> bytes:
    """Encode a tuple of str, int and bytes. Raises UnicodeEncodeError for a str that is no Unicode text."""
    encoded = b""
    for part in key:
        if type(part) is str:
            # A zero byte ends a text, so one inside is escaped.
            encoded += b"\x02" + part.encode().replace(b"\x00", b"\x00\xff") + b"\x00"
        elif type(part) is int and 0 <= part < 1 << 63:
            size = (part.bit_length() + 7) >> 3
            encoded += (0x14 + size).to_bytes() + part.to_bytes(size)
        else:
            return cast("bytes", fdb.tuple.pack(key))
    return encoded


def decode(encoded: bytes) -> Key:
    """Decode what `encode` made."""
    return cast("Key", fdb.tuple.unpack(encoded))
