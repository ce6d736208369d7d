from typing import Any

import pytest

from actors import limits
from actors.acquirer import Approved, Declined
from actors.commands import (
    CapturePayment,
    CommandError,
    ConfirmPayment,
    CreatePayment,
    DisputeNotification,
    RecordChange,
    RefundPayment,
    ResolveOperation,
    ResultNotification,
    VoidPayment,
    parse,
)
from actors.payment import DisputeStatus

CREATE = {"amount": 1_000, "currency": "EUR", "payment_method": "tok_approve", "capture_method": "automatic"}
RESULT = {"notification_id": "msg_1", "operation_id": "op_1", "original_id": None}
APPROVED = RESULT | {"result": "approved", "reference": "ref", "expires_ms": None}
DECLINED = RESULT | {"result": "declined", "code": "stolen_card", "retryable": False}
DISPUTE = RESULT | {
    "dispute_id": "dp_1",
    "amount": 5,
    "currency": "EUR",
    "reason": "fraudulent",
    "status": "open",
    "opened_ms": 1,
    "closed_ms": None,
}
CHANGE = {"change_id": "c1", "what": "key_rotated", "at_ms": 5, "detail": {"key_id": "key_1", "n": 2}}
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
        ("confirm_payment", {"payment_id": "pay_1"}, ConfirmPayment("pay_1")),
        ("notify_result", APPROVED, ResultNotification("msg_1", "pay_1", "op_1", Approved("ref"))),
        (
            "notify_result",
            APPROVED | {"operation_id": "re_2", "original_id": "op_1", "expires_ms": 5},
            ResultNotification("msg_1", "pay_1", "re_2", Approved("ref", 5)),
        ),
        (
            "notify_result",
            DECLINED,
            ResultNotification("msg_1", "pay_1", "op_1", Declined("stolen_card", retryable=False)),
        ),
        (
            "notify_dispute",
            DISPUTE,
            DisputeNotification("msg_1", "pay_1", "op_1", "dp_1", 5, "EUR", "fraudulent", DisputeStatus.OPEN, 1, None),
        ),
        (
            "notify_dispute",
            DISPUTE | {"status": "won", "closed_ms": 2},
            DisputeNotification("msg_1", "pay_1", "op_1", "dp_1", 5, "EUR", "fraudulent", DisputeStatus.WON, 1, 2),
        ),
        ("resolve_operation", RESOLVE, ResolveOperation("op_1", False, "ann", "called the bank")),
        ("record_change", CHANGE, RecordChange("c1", "key_rotated", 5, {"key_id": "key_1", "n": 2})),
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
        ("confirm_payment", {}, "payment_id"),
        ("confirm_payment", {"payment_id": "pay_1", "amount": 1}, "amount"),
        ("notify_result", RESULT, "result"),
        ("notify_result", APPROVED | {"notification_id": "m" * 256}, "notification_id"),
        ("notify_result", APPROVED | {"reference": ""}, "reference"),
        ("notify_result", APPROVED | {"expires_ms": limits.ACQUIRER_TIME_MS_MAX}, "expires_ms"),
        ("notify_result", APPROVED | {"code": "x"}, "code"),
        ("notify_result", DECLINED | {"retryable": 1}, "retryable"),
        ("notify_dispute", DISPUTE | {"amount": 0}, "amount"),
        ("notify_dispute", DISPUTE | {"status": "warned"}, "status"),
        ("notify_dispute", DISPUTE | {"status": "won"}, "closed"),
        ("notify_dispute", DISPUTE | {"closed_ms": 5}, "closed"),
        ("notify_dispute", DISPUTE | {"opened_ms": None}, "dispute"),
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
        ("record_change", CHANGE | {"what": "robbed"}, "what"),
        ("record_change", CHANGE | {"change_id": "c" * 65}, "change_id"),
        ("record_change", CHANGE | {"change_id": "\u00e4"}, "ASCII"),
        ("record_change", CHANGE | {"at_ms": 0}, "at_ms"),
        ("record_change", CHANGE | {"detail": None}, "detail"),
        ("record_change", CHANGE | {"detail": {"a": True}}, "detail"),
        ("record_change", CHANGE | {"detail": {1: "a"}}, "detail"),
        ("record_change", CHANGE | {"detail": {"a": "x" * 513}}, "detail"),
        ("record_change", CHANGE | {"detail": dict.fromkeys("abcdefghi", 1)}, "detail"),
    ],
)
def test_what_is_wrong_is_named(method: str, arguments: dict[str, Any], about: str) -> None:
    with pytest.raises(CommandError, match=about):
        parse(method, arguments)
