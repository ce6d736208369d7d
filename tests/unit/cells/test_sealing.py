"""What one end seals only the other opens, once and in order; what a relay changes or repeats does not open."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cells.api import frames, limits
from cells.api.frames import FrameError
from cells.api.sealing import NONCE_BYTES, VERSION, ClientHandshake, SealedFrames, ServerHandshake

KEY = b"k" * 32
KEYS = {"router": KEY, "control": b"c" * 32}


def shake_hands(role: str = "router", key: bytes = KEY) -> tuple[SealedFrames, SealedFrames]:
    """Return both ends of a connection: the client's, the server's."""
    client, server = ClientHandshake(role, key), ServerHandshake()
    assert server.check(client.prove(server.challenge()), KEYS) == role
    welcome, of_server = server.welcome(key, limits.FRAME_BYTES_MAX)
    return client.finish(welcome, limits.FRAME_BYTES_MAX), of_server


def sealed(end: SealedFrames, *bodies: bytes) -> list[bytes]:
    return [end.seal(frames.pack([frames.ANSWER, 1, body])) for body in bodies]


def test_both_ends_read_each_other_in_order() -> None:
    client, server = shake_hands()
    for one, other in ((client, server), (server, client)):
        sent = sealed(one, b"a", b"b", b"c")
        assert [body for _, _, body in other.feed(b"".join(sent))] == [b"a", b"b", b"c"]
        assert b"secret words" not in sealed(one, b"secret words")[0]


@given(st.data())
def test_a_changed_bit_ends_it(data: st.DataObject) -> None:
    client, server = shake_hands()
    (whole,) = sealed(client, b"a payment of 100 EUR")
    position = data.draw(st.integers(4, len(whole) - 1))
    changed = bytearray(whole)
    changed[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(FrameError, match="frame 0 does not open"):
        server.feed(bytes(changed))


@pytest.mark.parametrize(
    "tamper",
    [
        lambda one, two, three: [one, one],
        lambda one, two, three: [two],
        lambda one, two, three: [one, three],
        lambda one, two, three: [one[:4] + two[4:]],
        lambda one, two, three: [one, b"\x00\x00\x00\x05hello"],
        lambda one, two, three: [b"\x00\x00\x00\x00"],
    ],
    ids=["replayed", "first dropped", "dropped", "swapped", "put in", "empty"],
)
def test_what_a_relay_does_ends_it(tamper: Callable[..., list[bytes]]) -> None:
    client, server = shake_hands()
    with pytest.raises(FrameError):
        server.feed(b"".join(tamper(*sealed(client, b"one", b"two", b"one"))))


def test_what_one_end_sealed_opens_neither_at_itself_nor_on_another_connection() -> None:
    client, server = shake_hands()
    other_client, other_server = shake_hands()
    for receiver in (client, other_client, other_server):
        with pytest.raises(FrameError):
            receiver.feed(sealed(client, b"x")[0])
    assert server is not other_server


def test_a_key_is_used_for_so_many_frames_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FRAMES_PER_KEY_MAX", 2)
    client, server = shake_hands()
    sent = sealed(client, b"1", b"2", b"3")
    server.feed(sent[0] + sent[1])
    with pytest.raises(FrameError, match="at most 2 frames"):
        server.feed(sent[2])


def test_a_role_is_proven_by_its_own_key_only() -> None:
    for role, key in (("control", KEY), ("door", KEY), ("router", b"x" * 32)):
        server = ServerHandshake()
        with pytest.raises(FrameError, match="does not know the key of its role"):
            server.check(ClientHandshake(role, key).prove(server.challenge()), KEYS)


@pytest.mark.parametrize(
    "change",
    [
        {1: VERSION + 1},
        {2: "control"},
        {3: b"n" * NONCE_BYTES},
        {4: b"p" * NONCE_BYTES},
        {5: b"m" * NONCE_BYTES},
        {5: "text"},
        {2: ["router"]},
    ],
    ids=str,
)
def test_a_relay_can_change_nothing_of_a_proof(change: dict[int, Any]) -> None:
    server = ServerHandshake()
    proof = ClientHandshake("router", KEY).prove(server.challenge())
    with pytest.raises(FrameError):
        server.check([change.get(index, value) for index, value in enumerate(proof)], KEYS)


@pytest.mark.parametrize("position", [1, 2])
def test_a_relay_can_change_nothing_of_a_welcome(position: int) -> None:
    client, server = ClientHandshake("router", KEY), ServerHandshake()
    server.check(client.prove(server.challenge()), KEYS)
    welcome, _ = server.welcome(KEY, limits.FRAME_BYTES_MAX)
    welcome[position] = bytes(32)
    with pytest.raises(FrameError):
        client.finish(welcome, limits.FRAME_BYTES_MAX)


def test_a_client_proves_itself_once() -> None:
    client = ClientHandshake("router", KEY)
    client.prove(ServerHandshake().challenge())
    with pytest.raises(FrameError):
        client.prove(ServerHandshake().challenge())
