"""What is signed for one place in Redis is good there, and nowhere else, and for nobody without the pepper."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.signing import SIGNATURE_BYTES, Signer, UnsignedError

PEPPER = b"p" * 32
SIGNER = Signer(PEPPER)


@given(st.text(), st.binary())
def test_what_is_signed_comes_back(place: str, body: bytes) -> None:
    signed = SIGNER.sign(place, body)
    assert len(signed) == SIGNATURE_BYTES + len(body)
    assert Signer(PEPPER).open(place, signed) == body


@given(st.binary(min_size=1, max_size=99), st.data())
def test_a_bit_that_is_changed_is_noticed(body: bytes, data: st.DataObject) -> None:
    signed = bytearray(SIGNER.sign("a", body))
    signed[data.draw(st.integers(0, len(signed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(UnsignedError):
        SIGNER.open("a", bytes(signed))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"body",
        bytes(SIGNATURE_BYTES),
        SIGNER.sign("b", b"body"),
        SIGNER.sign("a", b"body")[:-1],
        SIGNER.sign("a", b"body") + b"x",
        Signer(b"q" * 32).sign("a", b"body"),
    ],
    ids=["nothing", "unsigned", "zeros", "another place", "cut off", "longer", "another pepper"],
)
def test_what_nobody_of_ours_wrote_for_this_place_is_refused(raw: bytes) -> None:
    with pytest.raises(UnsignedError):
        SIGNER.open("a", raw)


def test_place_and_body_can_t_be_shifted() -> None:
    with pytest.raises(UnsignedError):
        SIGNER.open("a", SIGNER.sign("ab", b"c")[:SIGNATURE_BYTES] + b"bc")
