"""The handshake between two ends of a connection, and the sealing of what they send after it. Pure; no sockets.

Both ends prove that they know a role's key (HMAC-SHA-256, RFC 2104) over version, role, both nonces and the client's
ephemeral public key; the server's proof covers its own public key too. From the key of the role and the X25519 exchange
(RFC 7748) each direction gets a key of its own (HKDF-SHA-256, RFC 5869), so who learns a role's key later can't read
what was sent before. Each frame is sealed with AES-256-GCM under its number: one that was changed, left out, repeated,
or is of another connection or direction does not open.
"""

import hmac
import secrets
from collections.abc import Mapping
from typing import Any, Final

import msgpack
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cells.api import frames, limits
from cells.api.frames import FrameError

# Both ends of an installation are started from the same code; another version is refused.
VERSION: Final = 2
# Of a nonce, a public key, a MAC and a key alike.
NONCE_BYTES: Final = 32
_COUNTER_BYTES: Final = 12
_CLIENT: Final = b"bulkhead frames: client"
_SERVER: Final = b"bulkhead frames: server"
_RECORDS: Final = b"bulkhead frames: keys of both directions"
_HINT: Final = "run both from the same version (bulkhead up starts all of an installation anew)"


class SealedFrames:
    """What one end sends and receives after the handshake: each frame sealed, in order."""

    def __init__(self, sending_key: bytes, receiving_key: bytes, bytes_max: int) -> None:
        self._sending = AESGCM(sending_key)
        self._receiving = AESGCM(receiving_key)
        self._sent = 0
        self._received = 0
        self._decoder = frames.Decoder(bytes_max + limits.SEAL_BYTES, self._open)

    def seal(self, payload: bytes) -> bytes:
        """Return a frame's payload as it is sent; each is to be sent, in the order of the calls."""
        number = self._sent
        self._sent = number + 1
        return frames.announce(self._sending.encrypt(number.to_bytes(_COUNTER_BYTES, "big"), payload, None))

    def feed(self, data: bytes) -> list[list[Any]]:
        """Return the frames that are whole. Raises FrameError; the connection is then of no use."""
        return self._decoder.feed(data)

    def _open(self, sealed: bytes) -> bytes:
        number = self._received
        if number >= limits.FRAMES_PER_KEY_MAX:
            raise FrameError(f"a connection carries at most {limits.FRAMES_PER_KEY_MAX} frames each way")
        try:
            payload = self._receiving.decrypt(number.to_bytes(_COUNTER_BYTES, "big"), sealed, None)
        except InvalidTag as error:
            raise FrameError(
                f"frame {number} does not open: it was changed, left out, repeated or put in on its way"
            ) from error
        self._received = number + 1
        return payload


class ClientHandshake:
    """The half of the end that connects and asks."""

    def __init__(self, role: str, key: bytes) -> None:
        self._role = role
        self._key = key
        self._private: X25519PrivateKey | None = None
        self._said: list[Any] = []

    def prove(self, challenge: list[Any]) -> list[Any]:
        """Return the proof that answers a challenge. Raises FrameError."""
        if self._private is not None or len(challenge) != 3 or challenge[0] != frames.CHALLENGE:
            raise FrameError("it is no server of ours, or of another version: " + _HINT)
        _, version, server_nonce = challenge
        if version != VERSION:
            raise FrameError(
                f"the server speaks version {version!r:.20} of the frames, this version {VERSION}: " + _HINT
            )
        _check_bytes("a challenge", server_nonce)
        self._private = X25519PrivateKey.generate()
        public = self._private.public_key().public_bytes_raw()
        client_nonce = secrets.token_bytes(NONCE_BYTES)
        self._said = [VERSION, self._role, server_nonce, client_nonce, public]
        return [frames.PROOF, VERSION, self._role, client_nonce, public, _mac(self._key, _CLIENT, self._said)]

    def finish(self, welcome: list[Any], bytes_max: int) -> SealedFrames:
        """Check the server's proof and return the sealed connection. Raises FrameError."""
        if self._private is None or len(welcome) != 3 or welcome[0] != frames.WELCOME:
            raise FrameError("something else stands where a welcome should")
        _, server_public, mac = welcome
        _check_bytes("a welcome", server_public, mac)
        said = [*self._said, server_public]
        if not hmac.compare_digest(_mac(self._key, _SERVER, said), mac):
            raise FrameError("the server does not know the key of the role: its secret is another one")
        to_server, to_client = _direction_keys(self._key, self._private, server_public, said)
        return SealedFrames(to_server, to_client, bytes_max)


class ServerHandshake:
    """The half of the end that listens and answers. Nothing dear is worked out for a client that has proven nothing."""

    def __init__(self) -> None:
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._said: list[Any] = []

    def challenge(self) -> list[Any]:
        """Return what the client has to answer."""
        return [frames.CHALLENGE, VERSION, self._nonce]

    def check(self, proof: list[Any], keys: Mapping[str, bytes]) -> str:
        """Return the role that a client has proven. Raises FrameError."""
        if proof[0] != frames.PROOF or len(proof) != 6:
            raise FrameError("it is no client of ours, or of another version: " + _HINT)
        _, version, role, client_nonce, client_public, mac = proof
        if version != VERSION:
            raise FrameError(
                f"the client speaks version {version!r:.20} of the frames, this version {VERSION}: " + _HINT
            )
        key = keys.get(role) if isinstance(role, str) else None
        _check_bytes("a proof", client_nonce, client_public, mac)
        said = [VERSION, role, self._nonce, client_nonce, client_public]
        if key is None or not hmac.compare_digest(_mac(key, _CLIENT, said), mac):
            raise FrameError("the client does not know the key of its role")
        self._said = said
        return str(role)

    def welcome(self, key: bytes, bytes_max: int) -> tuple[list[Any], SealedFrames]:
        """Return the server's proof, and the sealed connection to a client that was checked. Raises FrameError."""
        private = X25519PrivateKey.generate()
        public = private.public_key().public_bytes_raw()
        client_public = self._said[-1]
        said = [*self._said, public]
        to_server, to_client = _direction_keys(key, private, client_public, said)
        return [frames.WELCOME, public, _mac(key, _SERVER, said)], SealedFrames(to_client, to_server, bytes_max)


def _mac(key: bytes, side: bytes, said: list[Any]) -> bytes:
    return hmac.digest(key, side + msgpack.packb(said), "sha256")


def _direction_keys(key: bytes, private: X25519PrivateKey, public: bytes, said: list[Any]) -> tuple[bytes, bytes]:
    """Return the keys of what goes to the server and of what goes to the client."""
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise FrameError("a public key is none") from error
    info = _RECORDS + msgpack.packb(said)
    both = HKDF(SHA256(), 2 * NONCE_BYTES, salt=key, info=info).derive(shared)
    return both[:NONCE_BYTES], both[NONCE_BYTES:]


def _check_bytes(what: str, *values: Any) -> None:
    if not all(isinstance(value, bytes) and len(value) == NONCE_BYTES for value in values):
        raise FrameError(f"{what} does not have its types")
