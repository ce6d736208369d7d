"""What the simulator takes for a request, and what it never writes down."""

from typing import Any

import orjson
import pytest

from acquirer_simulator import limits
from acquirer_simulator.requests import (
    REDACTED,
    Fault,
    InvalidRequestError,
    read_count,
    read_fault,
    read_key,
    read_operation,
)
from acquirer_simulator.rules import Operation

GOOD: dict[str, Any] = {
    "partner": "p_1",
    "kind": "authorization",
    "amount": 100,
    "currency": "EUR",
    "payment_method": "tok_approve",
    "original_key": None,
}


def test_an_operation() -> None:
    assert read_operation("k", orjson.dumps(GOOD)) == Operation(
        "k", "p_1", "authorization", 100, "EUR", "tok_approve", None
    )
    capture = read_operation("k", orjson.dumps({**GOOD, "kind": "capture", "original_key": "o"}))
    assert capture.original_key == "o"


@pytest.mark.parametrize(
    "change",
    [
        {"amount": -1},
        {"amount": 1.0},
        {"amount": "1"},
        {"amount": True},
        {"amount": limits.AMOUNT_MINOR_UNITS_MAX + 1},
        {"currency": "eur"},
        {"currency": "EURO"},
        {"currency": None},
        {"kind": "transfer"},
        {"kind": []},
        {"kind": "capture"},
        {"kind": "capture", "original_key": "no spaces"},
        {"original_key": "o"},
        {"partner": "P"},
        {"partner": "p" * 41},
        {"partner": None},
        {"payment_method": None},
        {"payment_method": "x" * 256},
        {"more": 1},
    ],
)
def test_not_an_operation(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        read_operation("k", orjson.dumps({**GOOD, **change}))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"{}", b"\xff"])
def test_not_an_object(body: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        read_operation("k", body)


@pytest.mark.parametrize("key", ["", "a/b", "a b", "é", "k" * 256, "a\n"])
def test_not_a_key(key: str) -> None:
    with pytest.raises(InvalidRequestError):
        read_key(key)


@pytest.mark.parametrize(
    "method", ["4242424242424242", "4242 4242 4242 4242", "tok_4242-4242-4242-4242", "tok_slow_000000000000200"]
)
def test_what_looks_like_a_card_number_is_not_kept(method: str) -> None:
    assert read_operation("k", orjson.dumps({**GOOD, "payment_method": method})).payment_method == REDACTED


def test_faults() -> None:
    assert read_fault(b'{"mode": "hang"}') == Fault("hang", 0)
    assert read_fault(b'{"mode": "refuse", "delay_ms": 5}') == Fault("refuse", 0)
    assert read_fault(b'{"mode": "garbage"}') == Fault("garbage", 0)
    assert read_fault(b'{"mode": "silent"}') == Fault("silent", 0)
    assert read_fault(b'{"mode": "slow", "delay_ms": 5}') == Fault("slow", 5)


@pytest.mark.parametrize(
    "body",
    [b'{"mode": "slow"}', b'{"mode": "slow", "delay_ms": 60001}', b'{"mode": "x"}', b"{}", b'{"mode": "hang", "a": 1}'],
)
def test_not_a_fault(body: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        read_fault(body)


def test_counts() -> None:
    assert read_count("12", "limit", 12) == 12
    for text in ["13", "-1", "", "x", "1" * 19, "²"]:
        with pytest.raises(InvalidRequestError):
            read_count(text, "limit", 12)
