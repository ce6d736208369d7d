"""Frames: whatever way the stream is cut they come out the same, and what is no frame is refused."""

import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cells.api import frames
from cells.api.frames import Decoder, FrameError
from cells.api.limits import FRAME_BYTES_MAX, FRAME_FIELDS_MAX
from tests.sealed_stream import encode

contents = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.text(), st.binary(max_size=300))
frame = st.tuples(st.integers(0, 9), st.lists(contents, max_size=4)).map(lambda parts: [parts[0], *parts[1]])


def announce(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


@given(st.lists(frame, max_size=5), st.data())
def test_any_split_of_the_stream_gives_the_same_frames(sent: list[list[Any]], data: st.DataObject) -> None:
    stream = b"".join(encode(one) for one in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    decoder = Decoder()
    received: list[list[Any]] = []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += decoder.feed(stream[begin:end])
    assert received == sent


def test_a_byte_at_a_time() -> None:
    sent = [[frames.REQUEST, 1, "get_balance", 8_000, "alpha", b"\x00" * 40], [frames.ANSWER, 1, b""]]
    decoder = Decoder()
    received: list[list[Any]] = []
    for byte in b"".join(map(encode, sent)):
        received += decoder.feed(bytes([byte]))
    assert received == sent


@given(st.binary(max_size=200))
def test_garbage_gives_frames_or_frame_error_and_nothing_else(garbage: bytes) -> None:
    try:
        received = Decoder().feed(garbage)
    except FrameError:
        return
    assert all(isinstance(one, list) and isinstance(one[0], int) for one in received)


@given(st.binary(max_size=200))
def test_a_payload_of_garbage_is_refused_or_an_array_with_its_kind(garbage: bytes) -> None:
    try:
        (received,) = Decoder().feed(announce(garbage))
    except FrameError:
        return
    assert isinstance(received[0], int)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",  # never used in msgpack
        msgpack.packb({"kind": 4}),
        msgpack.packb([]),
        msgpack.packb(["4"]),
        msgpack.packb([4]) + b"\x00",  # more than one object
        msgpack.packb([4, "x"])[:-1],
        b"\xdd\xff\xff\xff\xff\x04",  # an array of 2**32 - 1 entries, of which one is there
        b"\x92\x04\x81\x90\x01",  # a map whose key is an array
        b"\x92\x04\xa1\xff",  # a text that is not UTF-8
        b"\x91" * 2_000 + b"\x04",  # nested deeper than any message of ours
        msgpack.packb([4, {"a": 1}]),
        msgpack.packb([4, msgpack.Timestamp(1)]),
        msgpack.packb([4] * (FRAME_FIELDS_MAX + 1)),
    ],
)
def test_what_is_no_frame_is_refused(payload: bytes) -> None:
    with pytest.raises(FrameError):
        Decoder().feed(announce(payload))


def test_an_announced_giant_is_refused_before_it_is_held() -> None:
    decoder = Decoder()
    with pytest.raises(FrameError, match="announces"):
        decoder.feed(struct.pack(">I", FRAME_BYTES_MAX + 1))
    with pytest.raises(FrameError):
        Decoder().feed(b"GET / HTTP/1.1\r\n\r\n")  # read as a length, that is 1.2 GB


def test_the_largest_frame_passes_and_one_byte_more_does_not() -> None:
    envelope = len(msgpack.packb([frames.ANSWER, b"\x00" * 70_000])) - 70_000
    largest = [frames.ANSWER, b"\x00" * (FRAME_BYTES_MAX - envelope)]
    assert Decoder().feed(encode(largest)) == [largest]
    with pytest.raises(FrameError):
        encode([frames.ANSWER, b"\x00" * (FRAME_BYTES_MAX - envelope + 1)])


def test_the_decoder_holds_no_more_than_one_unfinished_frame() -> None:
    decoder = Decoder()
    whole = encode([frames.ANSWER, 1, b"x" * 1_000])
    assert len(decoder.feed(whole * 50 + whole[:10])) == 50
    assert len(decoder._buffer) == 10


def test_a_role_s_key_is_that_role_s_only() -> None:
    secret = b"s" * 32
    assert len({frames.role_key(secret, role) for role in ("router", "control", "door")} | {secret}) == 4


def test_a_frame_of_the_handshake_comes_alone() -> None:
    whole = encode([frames.PROOF, 1])
    decoder = Decoder()
    assert decoder.feed_one(whole[:3]) is None
    assert decoder.feed_one(whole[3:]) == [frames.PROOF, 1]
    for more in (whole, whole[:1]):
        with pytest.raises(FrameError, match="more came"):
            Decoder().feed_one(whole + more)
