"""Idempotency keys: what is one, and that only a keyed hash of it goes on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import idempotency
from router.idempotency import IdempotencyKeys
from router.problems import EdgeCode, ProblemError
from router.reading import Head

PEPPER = bytes(range(32))
CARD = b"order-4242-4242-4242-4242"


def head(*headers: tuple[bytes, bytes]) -> Head:
    return Head({"raw_path": b"/v1/payments", "query_string": b"", "headers": list(headers)})


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (b"abc", "abc"),
        (b" abc\t", "abc"),
        (b'"abc"', "abc"),
        (b'"a\\"b\\\\c"', 'a"b\\c'),
        (b"8e03978e-40d5-43dd-bc93-6894a57f9324", "8e03978e-40d5-43dd-bc93-6894a57f9324"),
        (b"x" * 255, "x" * 255),
        (b'"' + b"x" * 255 + b'"', "x" * 255),
        (b"!~", "!~"),
    ],
)
def test_a_key_is_taken_bare_or_quoted(value: bytes, key: str) -> None:
    assert idempotency.parse(head((b"idempotency-key", value))) == key


def test_a_key_may_be_left_out() -> None:
    assert idempotency.parse(head()) is None


@pytest.mark.parametrize(
    "values",
    [
        [b""],
        [b"  "],
        [b'""'],
        [b"a b"],
        [b'"a b"'],
        [b'"abc'],
        [b'"a"b"'],
        [b'"abc";p=1'],
        [b"x" * 256],
        [b"\xc3\xa9"],
        [b"a\x00b"],
        [b"a\x7fb"],
        [b"a", b"a"],
    ],
)
def test_any_other_key_is_a_bad_request(values: list[bytes]) -> None:
    with pytest.raises(ProblemError) as caught:
        idempotency.parse(head(*((b"idempotency-key", value) for value in values)))
    assert caught.value.problem.code is EdgeCode.IDEMPOTENCY_KEY_INVALID
    assert caught.value.problem.errors[0]["header"] == "Idempotency-Key"


@given(st.binary(max_size=300))
def test_no_key_breaks_it(value: bytes) -> None:
    status = 200
    try:
        key = idempotency.parse(head((b"idempotency-key", value)))
    except ProblemError as error:
        status = error.problem.kind.status
    assert status in (200, 400)
    if status == 200:
        assert key is not None
        assert 1 <= len(key) <= 255
        assert key.isascii()
        assert key.isprintable()


def test_a_key_goes_on_as_a_hash_of_its_partner_s_own() -> None:
    keys = IdempotencyKeys(PEPPER)
    hashed = keys.read(head((b"idempotency-key", CARD)), "acme")
    assert hashed is not None
    assert len(bytes.fromhex(hashed)) == 32
    assert keys.read(head((b"idempotency-key", b'"' + CARD + b'"')), "acme") == hashed
    others = {
        keys.read(head((b"idempotency-key", CARD)), "globex"),
        keys.read(head((b"idempotency-key", CARD + b"1")), "acme"),
        IdempotencyKeys(bytes(32)).read(head((b"idempotency-key", CARD)), "acme"),
    }
    assert len(others) == 3
    assert hashed not in others


def test_no_key_has_no_hash() -> None:
    assert IdempotencyKeys(PEPPER).read(head(), "acme") is None
