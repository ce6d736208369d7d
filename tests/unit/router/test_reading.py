"""Reading a request: all that can be wrong with it ends in a 4xx, and no problem repeats what was sent."""

import asyncio
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from listeners.shares import Shares
from router import limits, reading
from router.models import NoQuery, PaymentRequest, PaymentsQuery
from router.problems import EdgeCode, ProblemError
from router.reading import Head


def head(*headers: tuple[bytes, bytes]) -> Head:
    return Head({"raw_path": b"/v1/payments", "query_string": b"", "headers": list(headers)})


def body_in(*parts: bytes) -> reading.Receive:
    messages = [
        {"type": "http.request", "body": part, "more_body": number < len(parts)}
        for number, part in enumerate(parts, start=1)
    ]

    async def receive() -> Any:
        return messages.pop(0)

    return receive


async def read(head: Head, receive: reading.Receive, shares: Shares | None = None) -> bytes:
    return await reading.read_body(head, receive, Shares(1, 1) if shares is None else shares, "acme")


def code_of(error: pytest.ExceptionInfo[ProblemError]) -> EdgeCode:
    code = error.value.problem.code
    assert isinstance(code, EdgeCode)
    return code


# Bodies.


async def test_a_body_in_parts_is_put_together() -> None:
    assert await read(head((b"content-length", b"4")), body_in(b"ab", b"", b"cd")) == b"abcd"


async def test_a_body_that_is_awaited_takes_a_place_of_its_sender_and_one_that_is_there_takes_none() -> None:
    shares = Shares(1, 1)
    place = shares.place("acme")
    assert place is not None
    with pytest.raises(ProblemError) as caught:
        await read(head((b"content-length", b"4")), body_in(b"ab", b"cd"), shares)
    assert code_of(caught) is EdgeCode.TOO_MANY_SLOW_BODIES
    assert await read(head((b"content-length", b"4")), Whole(b"abcd").receive, shares) == b"abcd"
    place.give_back()
    assert await read(head((b"content-length", b"4")), body_in(b"ab", b"cd"), shares) == b"abcd"
    assert shares.taken == 0


class Whole:
    """As uvicorn's cycle is where head and body came together."""

    more_body = False

    def __init__(self, body: bytes) -> None:
        self._receive = body_in(body)

    async def receive(self) -> Any:
        return await self._receive()


async def test_a_body_announced_too_large_is_not_read() -> None:
    async def receive() -> Any:
        raise AssertionError("it was read")

    too_large = str(limits.BODY_BYTES_MAX + 1).encode()
    with pytest.raises(ProblemError) as caught:
        await read(head((b"content-length", too_large)), receive)
    assert code_of(caught) is EdgeCode.BODY_TOO_LARGE


async def test_a_chunked_body_too_large_is_not_read_on() -> None:
    parts = [b"x" * limits.BODY_BYTES_MAX, b"y"]

    async def receive() -> Any:
        return {"type": "http.request", "body": parts.pop(0), "more_body": True}

    with pytest.raises(ProblemError) as caught:
        await read(head((b"transfer-encoding", b"chunked")), receive)
    assert code_of(caught) is EdgeCode.BODY_TOO_LARGE
    assert parts == []


async def test_a_body_of_the_largest_size_is_taken() -> None:
    whole = b"x" * limits.BODY_BYTES_MAX
    assert await read(head((b"content-length", str(len(whole)).encode())), body_in(whole)) == whole


async def test_a_body_that_does_not_come_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_TIMEOUT_MS", 10)

    async def receive() -> Any:
        await asyncio.Event().wait()

    with pytest.raises(ProblemError) as caught:
        await read(head((b"content-length", b"4")), receive)
    assert code_of(caught) is EdgeCode.BODY_TIMEOUT


async def test_a_body_cut_off_is_a_bad_request() -> None:
    async def receive() -> Any:
        return {"type": "http.disconnect"}

    with pytest.raises(ProblemError) as caught:
        await read(head((b"content-length", b"4")), receive)
    assert code_of(caught) is EdgeCode.BODY_INVALID


# Content types.


@pytest.mark.parametrize(
    "value",
    [
        b"application/json",
        b"Application/JSON",
        b"application/json; charset=utf-8",
        b'application/json;charset="UTF-8"',
        b" application/json ",
    ],
)
def test_json_is_taken(value: bytes) -> None:
    reading.check_content_type(head((b"content-type", value)))


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"content-type", b"text/plain")],
        [(b"content-type", b"application/json; charset=latin-1")],
        [(b"content-type", b"application/jsonx")],
        [(b"content-type", b"application/x-www-form-urlencoded")],
        [(b"content-type", b"application/json"), (b"content-type", b"application/json")],
        [(b"content-type", b"application/json"), (b"content-encoding", b"gzip")],
        [(b"content-type", b"\xff\xfe")],
    ],
)
def test_anything_else_is_not(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(ProblemError) as caught:
        reading.check_content_type(head(*headers))
    assert code_of(caught) is EdgeCode.UNSUPPORTED_MEDIA_TYPE


@pytest.mark.parametrize(
    ("headers", "announces", "is_too_large"),
    [
        ([], False, False),
        ([(b"content-length", b"0")], False, False),
        ([(b"content-length", b"00")], False, False),
        ([(b"content-length", b"65536")], True, False),
        ([(b"content-length", b"65537")], True, True),
        ([(b"content-length", b"9" * 400)], True, True),
        ([(b"transfer-encoding", b"chunked")], True, False),
    ],
)
def test_what_a_head_announces(headers: list[tuple[bytes, bytes]], *, announces: bool, is_too_large: bool) -> None:
    assert head(*headers).announces_body is announces
    assert head(*headers).is_body_too_large is is_too_large


# JSON.


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"{'a':1}",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":1,}',
        b'{"a":"\\ud800"}',
        b'{"a":"\xff"}',
        b'\xef\xbb\xbf{"a":1}',
        '{"a":1}'.encode("utf-16"),
        b'{"a":"\x00"}',
        b"[" * 5_000 + b"]" * 5_000,
        b'{"a":' * 300 + b"1" + b"}" * 300,
        b"\x00" * 100,
    ],
)
def test_what_is_no_json_is_a_bad_request(raw: bytes) -> None:
    with pytest.raises(ProblemError) as caught:
        reading.parse_json(raw)
    assert code_of(caught) is EdgeCode.BODY_INVALID


@pytest.mark.parametrize("raw", [b"[]", b"null", b"5", b'"text"', b"true"])
def test_what_is_no_object_is_refused(raw: bytes) -> None:
    with pytest.raises(ProblemError) as caught:
        reading.parse_json(raw)
    assert code_of(caught) is EdgeCode.VALIDATION_FAILED


@given(st.binary(max_size=200))
def test_no_bytes_break_it(raw: bytes) -> None:
    status = 200
    try:
        parsed, canonical = reading.parse_json(raw)
    except ProblemError as error:
        status = error.problem.kind.status
    assert status in (200, 400, 422)
    if status == 200:
        assert orjson.loads(canonical) == parsed


@pytest.mark.parametrize(
    "raw",
    [
        b'{"description":"4242 4242 4242 4242"}',
        b'{"4242424242424242":1}',
        b'{"metadata":{"4242-4242-4242-4242":"x"}}',
        b'{"amount":4242424242424242}',
        b'{"amount":4242424242424242.0}',
        b'{"deep":[[{"er":["\\u0034242424242424242"]}]]}',
        b'["4242424242424242"]',
        b'"4242424242424242"',
        b'{"colour":"tok_4242424242424242"}',
        '{"a":"4242\u00a04242\u00a04242\u00a04242"}'.encode(),
    ],
)
def test_a_card_number_anywhere_ends_it_unrepeated(raw: bytes) -> None:
    with pytest.raises(ProblemError) as caught:
        reading.parse_json(raw)
    assert code_of(caught) is EdgeCode.CARD_DATA_REFUSED
    assert "4242" not in repr(caught.value.problem)
    assert caught.value.__cause__ is None


def test_canonical_bytes_tell_bodies_apart_by_meaning() -> None:
    same = [b'{"a":1,"b":{"c":"\\u00e9","d":2}}', '{ "b": {"d":2, "c":"é"},\n"a":1 }'.encode()]
    assert len({reading.parse_json(raw)[1] for raw in same}) == 1
    other = [b'{"a":1}', b'{"a":2}', b'{"a":"1"}', b'{"a":1.0}', b'{"b":1}', b'{"a":1,"b":null}', b"{}"]
    assert len({reading.parse_json(raw)[1] for raw in other}) == len(other)


def test_a_fingerprint_is_of_method_path_and_body() -> None:
    prints = {
        reading.fingerprint(method, path, body)
        for method in ("POST", "PUT")
        for path in ("/v1/payments/a/capture", "/v1/payments/b/capture")
        for body in (b"{}", b'{"amount":1}')
    }
    assert len(prints) == 8
    # Golden: an idempotency key's first request may have come through an older router.
    assert reading.fingerprint("POST", "/v1/payments", b'{"amount":1}').hex() == (
        "5800105f383758c8d91b8aeb63cbb4bde2e8cda0265dd71f167c7dececab96ed"
    )


# What is wrong, and where.


def invalid(fields: dict[str, Any]) -> Any:
    with pytest.raises(ProblemError) as caught:
        reading.validate_body(PaymentRequest, fields)
    assert code_of(caught) is EdgeCode.VALIDATION_FAILED
    return caught.value.problem


def test_every_error_is_listed_with_its_pointer() -> None:
    problem = invalid({"amount": "secret-5", "currency": "EUR", "metadata": {"a/b~c": 5}, "colour": "secret-blue"})
    assert [error["pointer"] for error in problem.errors] == [
        "/amount",
        "/payment_method",
        "/metadata/a~1b~0c",
        "/colour",
    ]
    assert problem.pointer == "/amount"
    assert "secret" not in repr(problem)


def test_a_bad_name_in_metadata_is_pointed_at() -> None:
    problem = invalid({"amount": 1, "currency": "EUR", "payment_method": "tok_a", "metadata": {"k" * 41: "x"}})
    assert problem.pointer == "/metadata/" + "k" * 41


def test_a_flood_of_errors_is_cut() -> None:
    problem = invalid({f"field_{n}": 1 for n in range(5_000)} | {"n" * 5_000: 1})
    assert len(problem.errors) == limits.PROBLEM_ERRORS_MAX
    assert "5004 of its parts" in problem.detail
    long = invalid({"n" * 5_000: 1, "amount": 1, "currency": "EUR", "payment_method": "tok_a"})
    assert len(long.pointer) <= limits.PROBLEM_POINTER_CHARACTERS_MAX + 3


# Query strings.


@pytest.mark.parametrize(
    ("raw", "parameter"),
    [
        (b"colour=blue", "colour"),
        (b"limit=5&limit=6", "limit"),
        (b"limit=", "limit"),
        (b"limit", "limit"),
        (b"status=x", "status"),
        (b"created_from=2026-11-22T17:00:00+01:00", "created_from"),
        (b"a" * 3_000 + b"=1", "a" * limits.PROBLEM_POINTER_CHARACTERS_MAX + "..."),
    ],
)
def test_a_wrong_parameter_is_named(raw: bytes, parameter: str) -> None:
    with pytest.raises(ProblemError) as caught:
        reading.read_query(PaymentsQuery, raw)
    assert code_of(caught) is EdgeCode.VALIDATION_FAILED
    assert [error["parameter"] for error in caught.value.problem.errors] == [parameter]


@pytest.mark.parametrize(
    "raw",
    [b"reference=%ff", b"reference=\xff", b"&".join(b"a%d=1" % n for n in range(limits.QUERY_PARAMETERS_MAX + 1))],
)
def test_an_unreadable_query_string_is_refused(raw: bytes) -> None:
    with pytest.raises(ProblemError) as caught:
        reading.read_query(PaymentsQuery, raw)
    assert code_of(caught) is EdgeCode.VALIDATION_FAILED


@pytest.mark.parametrize(
    "raw", [b"reference=4242424242424242", b"reference=4242+4242+4242+4242", b"4242%2D4242%2D4242%2D4242=1"]
)
def test_a_card_number_in_a_query_string_is_refused(raw: bytes) -> None:
    with pytest.raises(ProblemError) as caught:
        reading.read_query(PaymentsQuery, raw)
    assert code_of(caught) is EdgeCode.CARD_DATA_REFUSED
    assert "4242" not in repr(caught.value.problem)


@given(st.binary(max_size=100))
def test_no_query_string_breaks_it(raw: bytes) -> None:
    status = 200
    try:
        reading.read_query(PaymentsQuery, raw)
    except ProblemError as error:
        status = error.problem.kind.status
    assert status in (200, 422)


def test_where_nothing_can_be_asked_nothing_is_taken() -> None:
    assert reading.read_query(NoQuery, b"") == NoQuery()
    with pytest.raises(ProblemError):
        reading.read_query(NoQuery, b"x=1")
