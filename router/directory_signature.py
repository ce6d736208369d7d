"""The signature of a directory (Ed25519, RFC 8032): who holds the public key can check one, and sign none. Pure.

Its file is a line of text with the signature, then the directory as `directory.encode` wrote it. The signature is
checked before anything of the directory is read.
"""

from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from router.directory import DirectoryError

_MARK: Final = b"bulkhead-directory-1 "
_LINE_BYTES: Final = len(_MARK) + 2 * 64 + 1


def sign(key: Ed25519PrivateKey, body: bytes) -> bytes:
    """Return what a directory's file holds."""
    return _MARK + key.sign(_MARK + body).hex().encode() + b"\n" + body


def check(key: Ed25519PublicKey, raw: bytes) -> bytes:
    """Return the directory whose signature is right. Raises DirectoryError."""
    line, body = raw[:_LINE_BYTES], raw[_LINE_BYTES:]
    if not line.startswith(_MARK) or not line.endswith(b"\n"):
        raise DirectoryError(
            "it begins with no signature: it is none of this version's directories (`bulkhead up` publishes one)"
        )
    try:
        key.verify(bytes.fromhex(line[len(_MARK) :].decode("ascii")), _MARK + body)
    except (ValueError, InvalidSignature) as error:
        raise DirectoryError(
            "its signature is not that of this installation's control plane: it was changed, or somebody else wrote it"
        ) from error
    return body
