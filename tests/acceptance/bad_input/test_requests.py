"""Every kind of bad request, against a whole gateway, gets the answer that docs/limits-and-errors.md promises.

The table here and the table there have the same rows; a row that stands in one only fails.
"""

import gzip
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
import pytest

from router import limits
from tests.acceptance.bad_input.conftest import Site, exchange

PAGE: Final = Path(__file__).parents[3] / "docs" / "limits-and-errors.md"
PAYMENTS: Final = "/v1/payments"
GOOD: Final[dict[str, Any]] = {"amount": 100, "currency": "EUR", "payment_method": "tok_approve"}
NOBODY_S_PAYMENT: Final = "pay_" + "7" + "Z" * 25


@dataclass(frozen=True)
class Sent:
    """One request as it goes over the wire. `key`: the partner whose key it carries, or the header's own bytes."""

    method: str = "POST"
    path: str | bytes = PAYMENTS
    body: bytes | dict[str, Any] | None = None
    headers: tuple[tuple[str, str | bytes], ...] = ()
    key: str | bytes | None = "alpha"
    content_type: str | None = "application/json"
    version: str = "1.1"
    hosts: int = 1

    def wire(self, keys: dict[str, str]) -> bytes:
        """Give its bytes."""
        path = self.path if isinstance(self.path, bytes) else self.path.encode()
        lines = [b"%s %s HTTP/%s" % (self.method.encode(), path, self.version.encode())]
        lines += [b"Host: bulkhead"] * self.hosts
        lines += [b"Connection: close"]
        if isinstance(self.key, bytes):
            lines.append(b"Authorization: " + self.key)
        elif self.key is not None:
            lines.append(f"Authorization: Bearer {keys[self.key]}".encode())
        body = orjson.dumps(self.body) if isinstance(self.body, dict) else self.body
        names = {name.lower() for name, _ in self.headers}
        if body is not None and "transfer-encoding" not in names:
            lines.append(b"Content-Length: %d" % len(body))
        if body is not None and self.content_type is not None:
            lines.append(b"Content-Type: " + self.content_type.encode())
        for name, value in self.headers:
            lines.append(name.encode() + b": " + (value if isinstance(value, bytes) else value.encode()))
        return b"\r\n".join(lines) + b"\r\n\r\n" + (body or b"")


@dataclass(frozen=True)
class Row:
    """One row of the page: what comes, and what is answered."""

    what: str
    status: int
    code: str
    sent: tuple[Sent, ...]


def pay(**changes: Any) -> Sent:
    """A payment with fields changed; `...` leaves one out."""
    return Sent(body={name: value for name, value in (GOOD | changes).items() if value is not ...})


def raw(body: bytes, **more: Any) -> Sent:
    """A payment whose body is these bytes."""
    return Sent(body=body, **more)


def amount(text: str) -> Sent:
    """A payment with this JSON as its amount."""
    return raw(b'{"amount": %b, "currency": "EUR", "payment_method": "tok_approve"}' % text.encode())


def get(path: str | bytes, **more: Any) -> Sent:
    """A read."""
    return Sent("GET", path, **more)


def of_bytes(text: bytes) -> Sent:
    """A payment whose description is these bytes between quotes."""
    return raw(b'{"amount":1,"currency":"EUR","payment_method":"tok_approve","description":"%b"}' % text)


ROWS: Final = (
    Row(
        "HTTP of another version, or without one `Host`",
        400,
        "request_malformed",
        (
            get(PAYMENTS, hosts=0),
            get(PAYMENTS, hosts=2),
            get(PAYMENTS, version="2.0"),
            get(PAYMENTS, version="0.9"),
            raw(b"0\r\n\r\n", version="1.0", headers=(("Transfer-Encoding", "chunked"),)),
        ),
    ),
    Row(
        "a head of more than 16 KiB",
        431,
        "head_too_large",
        (
            get(PAYMENTS, headers=(("X-Long", "x" * 20_000),)),
            get(PAYMENTS + "?" + "a" * 20_000),
            get("/" + "a" * 20_000),
        ),
    ),
    Row(
        "a path that is none",
        404,
        "not_found",
        (
            get("/"),
            get("/v1"),
            get("/v2/payments"),
            get("/v1/payments/"),
            get("//v1/payments"),
            get("/v1/../v1/payments"),
            get("/v1/payments/%2e%2e/%2e%2e/etc/passwd"),
            get("/v1/payments%00"),
            get("/v1/payments/pay_1/capture/more"),
            get("/%ff%fe"),
            get("/v1/payments/a%2Fb"),
            Sent("POST", "/v1/payments/x/refund"),
        ),
    ),
    Row(
        "a method that the path does not take",
        405,
        "method_not_allowed",
        (
            Sent("DELETE", PAYMENTS),
            Sent("PUT", PAYMENTS, GOOD),
            Sent("PATCH", PAYMENTS, GOOD),
            Sent("TRACE", PAYMENTS),
            Sent("POST", "/v1/balance", {}),
            get("/v1/payments/pay_1/capture"),
        ),
    ),
    Row(
        "no API key, or one that is not good",
        401,
        "unauthorized",
        (
            get(PAYMENTS, key=None),
            get(PAYMENTS, key=b""),
            get(PAYMENTS, key=b"Bearer"),
            get(PAYMENTS, key=b"Bearer "),
            get(PAYMENTS, key=b"Basic YWxwaGE6"),
            get(PAYMENTS, key=b"Bearer sk_test_alpha_" + b"A" * 43),
            get(PAYMENTS, key=b"Bearer sk_live_alpha_" + b"A" * 43),
            get(PAYMENTS, key=b"Bearer sk_test_nobody_" + b"A" * 43),
            get(PAYMENTS, key=b"Bearer " + b"x" * 10_000),
            get(PAYMENTS, key=b"Bearer \xff\xfe\xfd"),
            get(PAYMENTS, key="Bearer sk_test_älpha".encode()),
            Sent(body=b"\xff" * 1_000, key=b"Bearer nobody"),
        ),
    ),
    Row(
        "two `Authorization` headers",
        400,
        "authorization_malformed",
        (get(PAYMENTS, headers=(("Authorization", "Bearer x"),)),),
    ),
    Row(
        "a body that is not `application/json`, or is compressed",
        415,
        "unsupported_media_type",
        (
            Sent(body=GOOD, content_type=None),
            Sent(body=GOOD, content_type="text/plain"),
            Sent(body=GOOD, content_type="application/x-www-form-urlencoded"),
            Sent(body=GOOD, content_type="application/json; charset=utf-16"),
            Sent(body=GOOD, content_type="application/json, text/plain"),
            Sent(body=GOOD, headers=(("Content-Type", "application/json"),)),
            raw(gzip.compress(orjson.dumps(GOOD)), headers=(("Content-Encoding", "gzip"),)),
        ),
    ),
    Row(
        "a body of more than 64 KiB, announced or in chunks",
        413,
        "body_too_large",
        (
            raw(b" " * (limits.BODY_BYTES_MAX + 1)),
            raw(b'{"a":"' + b"x" * 200_000 + b'"}'),
            raw(
                (b"8000\r\n" + b" " * 0x8000 + b"\r\n") * 3 + b"0\r\n\r\n",
                headers=(("Transfer-Encoding", "chunked"),),
            ),
        ),
    ),
    Row(
        "a body that is no JSON (RFC 8259): random bytes, cut off, `NaN`, unpaired surrogates, no UTF-8, nested deeply",
        400,
        "body_invalid",
        (
            raw(b""),
            raw(bytes(range(256))),
            raw(b"\x00" * 100),
            raw(b"{"),
            raw(b'{"amount": 1,}'),
            raw(b"{'amount': 1}"),
            raw(b"{} {}"),
            raw(b"// a comment\n{}"),
            raw(b"\xef\xbb\xbf{}"),
            raw('{"amount":1}'.encode("utf-16")),
            raw(b"<payment/>"),
            amount("NaN"),
            amount("-Infinity"),
            amount("0x10"),
            amount("1_000"),
            amount("01"),
            amount("+1"),
            amount("1" + "0" * 400),  # more than any number of JSON's usual readers
            of_bytes(rb"\ud800"),
            of_bytes(rb"\udc00\ud800"),
            of_bytes(b"\xed\xa0\x80"),
            of_bytes(b"\xff"),
            of_bytes(b"\xc0\xaf"),
            of_bytes(b"\x00"),
            of_bytes(b"a\nb"),
            of_bytes(rb"\x41"),
            raw(b"[" * 30_000 + b"]" * 30_000),
            raw(b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
            raw(b'{"a":' * 500 + b"1" + b"}" * 500),
            raw(b"\x1f\x8b\x08\x00" + bytes(50)),
        ),
    ),
    Row(
        "JSON of other types than asked for, fields that are not known, amounts that are negative, fractional or huge, "
        "control characters, texts too long",
        422,
        "validation_failed",
        (
            raw(b"null"),
            raw(b"[]"),
            raw(b"[" + b"{}," * 10_000 + b"{}]"),
            raw(b'"text"'),
            raw(b"17"),
            raw(b"{}"),
            *(amount(text) for text in ("-1", "1.5", "1.0", "1e2", "-0.0", '"100"', "true", "null", "[]", "{}")),
            *(amount(text) for text in (str(10**12), str(10**30), str(2**64), "1e308")),
            pay(currency=...),
            pay(currency="eur"),
            pay(currency="EURO"),
            pay(currency=978),
            pay(currency=""),
            pay(currency="\u0415UR"),  # a Cyrillic letter
            pay(currency="EUR\n"),
            pay(payment_method="4"),
            pay(payment_method="tok_" + "x" * 300),
            pay(payment_method="tok_a b"),
            pay(payment_method=None),
            pay(capture_method="later"),
            pay(colour="blue"),
            raw(orjson.dumps(GOOD | {f"field_{n}": n for n in range(3_000)})),
            pay(**{"x" * 50_000: 1}),
            pay(reference="a\nb"),
            pay(reference="a\u0000b"),
            pay(reference="\u009b31m"),
            pay(reference="x" * 256),
            pay(description="\u001b[2J"),
            pay(description="x" * 1_001),
            pay(metadata=[]),
            pay(metadata={"a": 1}),
            pay(metadata={"a": None}),
            pay(metadata={"a": {"b": "c"}}),
            pay(metadata={"": "c"}),
            pay(metadata={"k" * 41: "c"}),
            pay(metadata={"a": "v" * 501}),
            pay(metadata={"a": "\u0007"}),
            pay(metadata={f"k{n}": "v" for n in range(51)}),
            Sent(path=f"{PAYMENTS}/{NOBODY_S_PAYMENT}/capture", body={"amount": 0}),
            Sent(path=f"{PAYMENTS}/{NOBODY_S_PAYMENT}/capture", body={"amount": -5}),
            Sent(path=f"{PAYMENTS}/{NOBODY_S_PAYMENT}/void", body={"amount": 5}),
            Sent(path=f"{PAYMENTS}/{NOBODY_S_PAYMENT}/refunds", body={"amount": 1.5}),
            Sent(path=f"{PAYMENTS}/{NOBODY_S_PAYMENT}/refunds", body={"reason": "x" * 256}),
        ),
    ),
    Row(
        "query parameters that are not known, double, or of another form; cursors that are none",
        422,
        "validation_failed",
        tuple(
            get(path)
            for path in (
                f"{PAYMENTS}?colour=blue",
                f"{PAYMENTS}?limit=1&limit=2",
                *(
                    f"{PAYMENTS}?limit={text}"
                    for text in ("0", "101", "-1", "1e1", "1.0", "", "NaN", "٣", "%00", "1" * 500)
                ),
                *(
                    f"{PAYMENTS}?starting_after={text}"
                    for text in ("", "x", "pay_1", "evt_1", "pay_" + "I" * 26, "%F0%9F", "../..")
                ),
                f"{PAYMENTS}?starting_after={NOBODY_S_PAYMENT.lower()}",
                f"{PAYMENTS}?status=paid",
                f"{PAYMENTS}?reference=a%0Ab",
                f"{PAYMENTS}?reference=%ED%A0%80",
                *(
                    f"{PAYMENTS}?created_from={text}"
                    for text in (
                        "now",
                        "2026-13-01T00:00:00Z",
                        "2026-01-01",
                        "99999-01-01T00:00:00Z",
                    )
                ),
                f"{PAYMENTS}?" + "&".join(f"p{n}=1" for n in range(17)),
                f"{PAYMENTS}?" + "&" * 5_000,
                "/v1/events?starting_after=evt_x",
                f"/v1/events?starting_after={NOBODY_S_PAYMENT}",
                "/v1/events?type=NO",
                "/v1/balance?limit=1",
            )
            if path.isascii()
        ),
    ),
    Row(
        "a currency that is none, or has no minor unit",
        422,
        "currency_unknown",
        tuple(pay(currency=name) for name in ("ABC", "XXX", "XAU", "XTS", "DEM", "BTC")),
    ),
    Row(
        "a payment in a currency that the partner's profile does not list (an empty list is all)",
        422,
        "currency_not_accepted",
        tuple(Sent(body=GOOD | {"currency": name}, key="gamma") for name in ("EUR", "JPY")),
    ),
    Row(
        "what looks like a card number, a security code, a PIN or a track (`docs/card-data.md`)",
        422,
        "card_data_refused",
        (
            pay(reference="4242424242424242"),
            pay(description="my card is 4242 4242-4242 4242, thanks"),
            pay(metadata={"card": "5555555555554444"}),
            pay(metadata={"4242424242424242": "x"}),
            pay(**{"4242424242424242": 1}),
            amount("4242424242424242"),
            get(f"{PAYMENTS}?reference=4242424242424242"),
            pay(reference="4242.4242.4242.4242"),
            pay(description="4242424242424242D27121010000"),
            pay(metadata={"cvv": "123"}),
            raw(b'{"a":"' + b"4000 " * 12_000 + b'"}'),
        ),
    ),
    Row(
        "an `Idempotency-Key` that is empty, too long, double, or not of visible ASCII characters",
        400,
        "idempotency_key_invalid",
        (
            *(
                Sent(body=GOOD, headers=(("Idempotency-Key", value),))
                for value in ("", " ", "a b", "x" * 256, '"open', '""', "a\tb", "schlüssel", b"\xff")
            ),
            Sent(body=GOOD, headers=(("Idempotency-Key", "a"), ("Idempotency-Key", "b"))),
        ),
    ),
    Row(
        "a payment's id that is another partner's, or none",
        404,
        "payment_not_found",
        (
            get(f"{PAYMENTS}/{NOBODY_S_PAYMENT}"),
            get(f"{PAYMENTS}/pay_1"),
            get(f"{PAYMENTS}/{'x' * 5_000}"),
            get(f"{PAYMENTS}/%00"),
            get(f"{PAYMENTS}/{NOBODY_S_PAYMENT}%0a"),
            get(f"{PAYMENTS}/..%5c"),
            get(f"{PAYMENTS}/%ED%A0%80"),
            get(f"{PAYMENTS}/<theirs>"),
            Sent(path=f"{PAYMENTS}/<theirs>/capture", body={}),
            Sent(path=f"{PAYMENTS}/<theirs>/void", body={}),
            Sent(path=f"{PAYMENTS}/<theirs>/refunds", body={"amount": 1}),
            Sent(path=f"{PAYMENTS}/{NOBODY_S_PAYMENT}/refunds", body={"amount": 1}),
        ),
    ),
    Row(
        "a refund's id that is another partner's, or none",
        404,
        "refund_not_found",
        (
            get("/v1/refunds/re_1"),
            get("/v1/refunds/re_" + "7" + "Z" * 25),
            get("/v1/refunds/<theirs>"),
            get("/v1/refunds/<their refund>"),
        ),
    ),
    Row(
        "a capture, void or refund that the payment's state does not allow",
        409,
        "payment_state_invalid",
        (
            Sent(path=f"{PAYMENTS}/<mine>/capture", body={}),
            Sent(path=f"{PAYMENTS}/<mine>/void", body={}),
            Sent(path=f"{PAYMENTS}/<mine>/capture"),
        ),
    ),
    Row(
        "more than is left",
        422,
        "amount_too_large",
        (Sent(path=f"{PAYMENTS}/<mine>/refunds", body={"amount": 999_999_999_999}),),
    ),
    Row(
        "another body under a key that was used",
        422,
        "idempotency_key_reused",
        (Sent(body=GOOD | {"amount": 77}, headers=(("Idempotency-Key", "<used>"),)),),
    ),
)


@pytest.fixture(scope="module")
def names(site: Site) -> dict[str, str]:
    """What stands for what in the table: a payment of alpha's, one of beta's with its refund, a used key."""
    mine, theirs = site.pay("alpha"), site.pay("beta")
    refund = site.request("POST", f"{PAYMENTS}/{theirs['id']}/refunds", "beta", json={"amount": 1}).json()
    headers = {"Authorization": f"Bearer {site.keys['alpha']}", "Idempotency-Key": "used-key"}
    assert site._client.post(PAYMENTS, json=GOOD, headers=headers).status_code == 201
    return {"<mine>": mine["id"], "<theirs>": theirs["id"], "<their refund>": refund["id"], "<used>": "used-key"}


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.status} {row.code}" for row in ROWS])
def test_each_bad_request_gets_its_answer(site: Site, names: dict[str, str], row: Row) -> None:
    with site.unharmed():
        for sent in row.sent:
            wire = sent.wire(site.keys)
            for placeholder, value in names.items():
                wire = wire.replace(placeholder.encode(), value.encode())
            told = exchange(site.address, wire)
            head, _, body = told.partition(b"\r\n\r\n")
            shown = wire[:300]
            assert told, f"no answer to {shown!r}"
            assert head.startswith(b"HTTP/1.1 %d " % row.status), (shown, told[:600])
            assert b"content-type: application/problem+json" in head.lower(), shown
            problem = orjson.loads(body) if sent.method != "HEAD" else {}
            assert (problem["status"], problem["code"]) == (row.status, row.code), (shown, problem)
            assert re.fullmatch("req_[0-9A-Z]{26}", problem["request_id"]), problem
            assert len(body) < 8_192, "an answer to bad input is small"


def test_cursors_of_others_show_nothing_of_theirs(site: Site, names: dict[str, str]) -> None:
    for cursor in (names["<theirs>"], NOBODY_S_PAYMENT, "pay_" + "0" * 26):
        page = site.request("GET", PAYMENTS, params={"starting_after": cursor, "limit": 100})
        assert page.status_code == 200
        assert names["<theirs>"] not in page.text
    assert site.request("GET", "/v1/events", params={"starting_after": "evt_" + "9" * 20}).status_code == 200


def test_the_page_and_this_table_have_the_same_rows() -> None:
    told = re.findall(r"^\| (?P<what>.+?) \| (\d{3}) `(\w+)` \|$", PAGE.read_text(), re.MULTILINE)
    assert told == [(row.what, str(row.status), row.code) for row in ROWS]
