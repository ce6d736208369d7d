"""Keys as bytes, in FoundationDB's tuple encoding: bytewise order is the tuples' order. Knows no key by name.

https://github.com/apple/foundationdb/blob/main/design/tuple.md; the module used needs no client library.
"""

from typing import cast

import fdb.tuple

from actors.store import Key


def encode(key: Key) -> bytes:
    """Encode a tuple of str, int and bytes. Raises UnicodeEncodeError for a str that is no Unicode text."""
    return cast("bytes", fdb.tuple.pack(key))


def decode(encoded: bytes) -> Key:
    """Decode what `encode` made."""
    return cast("Key", fdb.tuple.unpack(encoded))
