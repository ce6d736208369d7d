"""Measures each step that a router takes before the cell, at the worst input found: `python -m bench.edge_steps`.

CPU of this process' thread, the least of several tries, beside the same step of an ordinary payment. What a step
refuses is measured to its refusal.
"""

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Final

import orjson
from rich.console import Console
from rich.table import Table

from cells.api import card_data
from router import directory, keys, limits, models, reading
from router.idempotency import IdempotencyKeys
from router.problems import ProblemError
from router.reading import Head

TRIES: Final = 30
PARTNERS: Final = 1_000
PEPPER: Final = secrets.token_bytes(32)
NOW: Final = datetime.now(UTC)
PAYMENT: Final = {
    "amount": 1_999,
    "currency": "EUR",
    "payment_method": "tok_approve",
    "reference": "order-1001",
    "metadata": {"cart": "6c3e4f9a-1fd1-4a2c-8a33-12a4567f9012"},
}
_ROOM: Final = limits.BODY_BYTES_MAX - 200  # for what stands around it


def main() -> None:
    """Measure and print one table."""
    table = Table("step", "an ordinary payment, ms", "at its worst, ms", "its worst input")
    for name, ordinary, worst in _steps():
        found = max(((_cpu_ms(run), what) for what, run in worst.items()), key=lambda row: row[0])
        table.add_row(name, f"{_cpu_ms(ordinary):.3f}", f"{found[0]:.3f}", found[1])
    Console().print(table)


def _steps() -> Iterator[tuple[str, Callable[[], object], dict[str, Callable[[], object]]]]:
    held, key = _directory()
    good = [b"Bearer " + key.encode()]
    yield (
        "authentication",
        lambda: keys.authenticate(good, held, PEPPER, NOW),
        {
            "a key of nobody": lambda: keys.authenticate([b"Bearer sk_test_nobody_" + b"x" * 43], held, PEPPER, NOW),
            "a head full of key": lambda: keys.authenticate([b"Bearer " + b"x" * 16_000], held, PEPPER, NOW),
        },
    )
    many = [(b"x-%d" % number, b"a" * 50) for number in range(250)]
    yield (
        "headers",
        lambda: _head((b"host", b"a"), (b"content-length", b"10"), (b"idempotency-key", b"one")),
        {"250 of them": lambda: _head(*many)},
    )
    idempotency = IdempotencyKeys(PEPPER)
    yield (
        "idempotency key",
        lambda: idempotency.read(_head((b"idempotency-key", b"order-1001")), "acme"),
        {"16 KB of backslashes": lambda: idempotency.read(_head((b"idempotency-key", b'"' + b"\\\\" * 8_000)), "acme")},
    )
    yield (
        "query string",
        lambda: reading.read_query(models.PaymentsQuery, b"limit=10"),
        {
            "16 KB of parameters": lambda: reading.read_query(models.PaymentsQuery, b"&".join([b"a=1"] * 4_000)),
            "one of 16 KB": lambda: reading.read_query(models.PaymentsQuery, b"reference=" + b"%34%20" * 2_600),
        },
    )
    bodies = _bodies()
    ordinary = orjson.dumps(PAYMENT)
    yield (
        "JSON, with the scan for card data",
        lambda: reading.parse_json(ordinary),
        {what: lambda body=body: reading.parse_json(body) for what, body in bodies.items()},  # type: ignore[misc]
    )
    texts = {what: {"a": text * (_ROOM // len(text.encode()))} for what, text in _TEXTS.items()}
    yield (
        "the scan alone",
        lambda: card_data.find(PAYMENT),
        {what: lambda value=value: card_data.find(value) for what, value in texts.items()},  # type: ignore[misc]
    )
    fields = {"500 fields that are none": {f"f{number}": 1 for number in range(500)}}
    fields["50 long entries of metadata"] = {**PAYMENT, "metadata": {f"{number}": "é" * 500 for number in range(50)}}
    yield (
        "validation",
        lambda: reading.validate_body(models.PaymentRequest, PAYMENT),
        {
            what: lambda value=value: reading.validate_body(models.PaymentRequest, value)  # type: ignore[misc]
            for what, value in fields.items()
        },
    )
    whole = b"a" * limits.BODY_BYTES_MAX
    yield (
        "fingerprint",
        lambda: reading.fingerprint("POST", "/v1/payments", ordinary),
        {"64 KiB": lambda: reading.fingerprint("POST", "/v1/payments", whole)},
    )


_TEXTS: Final = {
    "4 4 4 …": "4 ",
    "444…": "4",
    "4000 4000 …": "4000 ",
    "Arabic digits": "\u0664",
    "a ligature": "\ufdfa",
}


def _bodies() -> dict[str, bytes]:
    return {
        "commas of a list": b"[" + b"1," * (_ROOM // 2) + b"1]",
        "empty lists": b"[" + b"[]," * (_ROOM // 3) + b"1]",
        "brackets": b"[" * _ROOM,
        "nested objects": b'{"":' * 1_000 + b"1" + b"}" * 1_000,
        "names": orjson.dumps({f"{number:x}": 1 for number in range(_ROOM // 9)}),
        "one name, again and again": b"{" + b'"a":1,' * (_ROOM // 6) + b'"a":1}',
        "long floats": b"[" + b"0." + b"123456789" * (_ROOM // 9) + b"]",
        "escapes": b'{"a":"' + b"\\u0041" * (_ROOM // 6) + b'"}',
        **{what: orjson.dumps({"a": text * (_ROOM // len(text.encode()))}) for what, text in _TEXTS.items()},
    }


def _directory() -> tuple[directory.Directory, str]:
    key = f"sk_test_p1_{secrets.token_urlsafe(32)}"
    partners = {
        f"p{number}": {
            "name": f"Partner {number}",
            "status": "active",
            "mode": "test",
            "api_version": "2026-11-22",
            "profile_version": 1,
            "cell": "cell-0",
            "rate_per_second": 50,
            "rate_burst": 100,
            "in_flight_max": 256,
            "created_at": "2026-11-22T10:00:00.000Z",
            "keys": [
                {
                    "id": "key_1",
                    "hash": directory.hash_key(PEPPER, key if number == 1 else f"{key}{number}"),
                    "hint": key[-4:],
                    "created_at": "2026-11-22T10:00:00.000Z",
                    "expires_at": None,
                }
            ],
        }
        for number in range(PARTNERS)
    }
    cells = [{"name": "cell-0", "weight": 1.0, "host": "127.0.0.1", "port": 8101}]
    payload = directory.Payload.model_validate({"cells": cells, "partners": partners})
    return directory.decode(directory.encode(1, payload)), key


def _head(*headers: tuple[bytes, bytes]) -> Head:
    return Head({"raw_path": b"/v1/payments", "query_string": b"", "headers": list(headers)})


def _cpu_ms(run: Callable[[], object]) -> float:
    took_ms = []
    for _ in range(TRIES):
        begun = time.thread_time()
        with contextlib.suppress(ProblemError):
            run()
        took_ms.append((time.thread_time() - begun) * 1e3)
    return min(took_ms)


if __name__ == "__main__":
    main()
