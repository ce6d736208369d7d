"""Which bytes of an acquirer are an outcome, and that nothing else is."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.acquirer import Accepted, Approved, Challenged, Declined, NeverPerformed
from actors.errors import AcquirerUnknownError
from cells.http_acquirer import read_outcome

APPROVED: dict[str, Any] = {
    "key": "k",
    "result": "approved",
    "reference": "r",
    "code": None,
    "retryable": False,
    "expires_at_ms": None,
}
URL = "https://bank.example/challenges/op_1?a=b#c"
CHALLENGE: dict[str, Any] = {
    **APPROVED,
    "result": "challenge",
    "reference": None,
    "challenge": {"url": URL, "expires_at_ms": 5},
}
DECLINED: dict[str, Any] = {**APPROVED, "result": "declined", "reference": None, "code": "stolen_card"}


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (APPROVED, Approved("r")),
        ({**APPROVED, "expires_at_ms": 5}, Approved("r", 5)),
        ({**APPROVED, "more": 1}, Approved("r")),
        (DECLINED, Declined("stolen_card", retryable=False)),
        ({**DECLINED, "retryable": True}, Declined("stolen_card", retryable=True)),
        ({**APPROVED, "result": "closed", "reference": None}, NeverPerformed()),
        ({**APPROVED, "result": "pending", "reference": None}, Accepted()),
        (CHALLENGE, Challenged(URL, 5)),
        (
            {**CHALLENGE, "challenge": {"url": "http://b/" + "u" * 991, "expires_at_ms": 5}},
            Challenged("http://b/" + "u" * 991, 5),
        ),
    ],
)
def test_outcomes(answer: dict[str, Any], outcome: object) -> None:
    assert read_outcome("k", orjson.dumps(answer)) == outcome


@pytest.mark.parametrize(
    "answer",
    [
        {**APPROVED, "key": "other"},
        {**APPROVED, "key": None},
        {**APPROVED, "result": "requires_action"},
        {**APPROVED, "result": "challenge"},
        {**CHALLENGE, "challenge": {"url": URL}},
        {**CHALLENGE, "challenge": {"url": URL, "expires_at_ms": True}},
        {**CHALLENGE, "challenge": {"url": URL, "expires_at_ms": 0}},
        {**CHALLENGE, "challenge": {"url": "javascript:alert(1)", "expires_at_ms": 5}},
        {**CHALLENGE, "challenge": {"url": "https://b/a b", "expires_at_ms": 5}},
        {**CHALLENGE, "challenge": {"url": "https://b/\n", "expires_at_ms": 5}},
        {**CHALLENGE, "challenge": {"url": 'https://b/"', "expires_at_ms": 5}},
        {**CHALLENGE, "challenge": {"url": "https://b/" + "u" * 991, "expires_at_ms": 5}},
        {**APPROVED, "result": None},
        {**APPROVED, "reference": None},
        {**APPROVED, "reference": ""},
        {**APPROVED, "reference": "r" * 256},
        {**APPROVED, "expires_at_ms": "5"},
        {**APPROVED, "expires_at_ms": 5.0},
        {**APPROVED, "expires_at_ms": True},
        {**APPROVED, "expires_at_ms": -5},
        {**APPROVED, "expires_at_ms": 2**60},
        {**APPROVED, "expires_at_ms": 253_402_300_800_000},  # the year 10000, which no timestamp can say
        {name: value for name, value in APPROVED.items() if name != "expires_at_ms"},
        {**DECLINED, "code": None},
        {**DECLINED, "code": ""},
        {**DECLINED, "retryable": None},
        {**DECLINED, "retryable": 1},
        {},
        [],
        None,
        "approved",
    ],
)
def test_not_outcomes(answer: object) -> None:
    with pytest.raises(AcquirerUnknownError) as caught:
        read_outcome("k", orjson.dumps(answer))
    assert caught.value.kind == "malformed"


@given(st.binary(max_size=200))
def test_bytes_are_never_an_outcome(body: bytes) -> None:
    with pytest.raises(AcquirerUnknownError):
        read_outcome("k", body)


@given(st.integers(0, len(orjson.dumps(DECLINED)) - 1))
def test_a_cut_answer_is_never_an_outcome(length: int) -> None:
    with pytest.raises(AcquirerUnknownError):
        read_outcome("k", orjson.dumps(DECLINED)[:length])
