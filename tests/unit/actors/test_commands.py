from typing import Any

import pytest

from actors import limits
from actors.commands import (
    CapturePayment,
    CommandError,
    CreatePayment,
    RefundPayment,
    ResolveOperation,
    VoidPayment,
    parse,
)

CREATE = {"amount": 1_000, "currency": "EUR", "payment_method": "tok_approve", "capture_method": "automatic"}
RESOLVE = {"operation_id": "op_1", "outcome": "failed", "operator": "ann", "note": "called the bank"}


@pytest.mark.parametrize(
    ("method", "arguments", "command"),
    [
        ("create_payment", CREATE, CreatePayment(1_000, "EUR", "tok_approve")),
        (
            "create_payment",
            CREATE
            | {
                "capture_method": "manual",
                "reference": "r",
                "description": None,
                "metadata": {"order": "7"},
                "amount": 0,
            },
            CreatePayment(0, "EUR", "tok_approve", True, "r", None, {"order": "7"}),
        ),
        ("create_payment", CREATE | {"metadata": None}, CreatePayment(1_000, "EUR", "tok_approve")),
        ("capture_payment", {"payment_id": "pay_1"}, CapturePayment("pay_1")),
        ("capture_payment", {"payment_id": "pay_1", "amount": None}, CapturePayment("pay_1")),
        ("capture_payment", {"payment_id": "pay_1", "amount": 0}, CapturePayment("pay_1", 0)),
        ("void_payment", {"payment_id": "pay_1"}, VoidPayment("pay_1")),
        ("refund_payment", {"payment_id": "pay_1", "amount": 5, "reason": "late"}, RefundPayment("pay_1", 5, "late")),
        ("resolve_operation", RESOLVE, ResolveOperation("op_1", False, "ann", "called the bank")),
        (
            "resolve_operation",
            RESOLVE | {"outcome": "succeeded"},
            ResolveOperation("op_1", True, "ann", "called the bank"),
        ),
    ],
)
def test_what_is_right_is_read(method: str, arguments: dict[str, Any], command: object) -> None:
    given = dict(arguments)
    assert parse(method, arguments) == command
    assert arguments == given, "the caller's arguments are left alone"


@pytest.mark.parametrize(
    ("method", "arguments", "about"),
    [
        ("delete_payment", {}, "no command"),
        ("create_payment", {}, "amount"),
        ("create_payment", CREATE | {"amount": -1}, "amount"),
        ("create_payment", CREATE | {"amount": True}, "amount"),
        ("create_payment", CREATE | {"amount": 10.0}, "amount"),
        ("create_payment", CREATE | {"amount": "10"}, "amount"),
        ("create_payment", CREATE | {"amount": limits.AMOUNT_MINOR_UNITS_MAX + 1}, "amount"),
        ("create_payment", CREATE | {"currency": "EURO"}, "currency"),
        ("create_payment", CREATE | {"currency": b"EUR"}, "currency"),
        ("create_payment", CREATE | {"payment_method": ""}, "payment_method"),
        ("create_payment", CREATE | {"payment_method": "x" * 256}, "payment_method"),
        ("create_payment", CREATE | {"capture_method": "Manual"}, "capture_method"),
        ("create_payment", CREATE | {"capture_method": None}, "capture_method"),
        ("create_payment", CREATE | {"reference": "x" * 256}, "reference"),
        ("create_payment", CREATE | {"description": 5}, "description"),
        ("create_payment", CREATE | {"metadata": []}, "metadata"),
        ("create_payment", CREATE | {"metadata": {"a": 1}}, "metadata"),
        ("create_payment", CREATE | {"metadata": {"a" * 41: "1"}}, "metadata"),
        ("create_payment", CREATE | {"metadata": {"a": "1" * 501}}, "metadata"),
        ("create_payment", CREATE | {"metadata": {str(n): "" for n in range(51)}}, "metadata"),
        ("create_payment", CREATE | {"security_code": "123"}, "security_code"),
        ("capture_payment", {"amount": 5}, "payment_id"),
        ("capture_payment", {"payment_id": "p" * 65}, "payment_id"),
        ("capture_payment", {"payment_id": "pay_1", "amount": -5}, "amount"),
        ("void_payment", {"payment_id": "pay_1", "amount": 5}, "amount"),
        ("refund_payment", {"payment_id": "pay_1", "reason": "x" * 256}, "reason"),
        ("resolve_operation", RESOLVE | {"outcome": "maybe"}, "outcome"),
        ("resolve_operation", RESOLVE | {"operator": ""}, "operator"),
    ],
)
def test_what_is_wrong_is_named(method: str, arguments: dict[str, Any], about: str) -> None:
    with pytest.raises(CommandError, match=about):
        parse(method, arguments)
