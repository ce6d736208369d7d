"""What partners see, as JSON: payments, refunds, lists, balances, events. Rendered once, sent on byte for byte.

The newest API version. Older versions are made from it at the router. The shapes are documented by the router's
response models; a test holds the two against each other.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import orjson

from actors import events
from actors.ledger import Account, Balances
from actors.payment import Failure, Operation, OperationKind, Payment
from actors.records import JournalEntry, OpenOperation


def timestamp(at_ms: int | None) -> str | None:
    """Give RFC 3339 in UTC with milliseconds: 2026-11-22T17:10:00.123Z."""
    if at_ms is None:
        return None
    return f"{_second(at_ms // 1_000)}.{at_ms % 1_000:03d}Z"


@lru_cache(maxsize=256)
def _second(at_s: int) -> str:
    """Give all but the fraction; what is under way shares its seconds."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def payment_view(payment: Payment, mode: str) -> dict[str, Any]:
    """Give a payment as partners see it."""
    newest = payment.operations[-1]
    return {
        "id": payment.id,
        "object": "payment",
        "mode": mode,
        "created_at": timestamp(payment.created_ms),
        "amount": payment.amount,
        "currency": payment.currency,
        "status": payment.status.value,
        "capture_method": "manual" if payment.manual_capture else "automatic",
        "payment_method": payment.payment_method,
        "reference": payment.reference,
        "description": payment.description,
        "metadata": payment.metadata,
        "amount_authorized": payment.amount_authorized,
        "amount_capturable": payment.amount_capturable,
        "amount_captured": payment.amount_captured,
        "amount_refunded": payment.amount_refunded,
        "failure": None
        if newest.failure is None
        else {"operation_id": newest.id, **_failure_view(newest.failure, newest.kind)},
        "expires_at": timestamp(payment.expires_ms),
        "operations": [_operation_view(operation) for operation in payment.operations],
    }


def refund_view(payment: Payment, refund: Operation) -> dict[str, Any]:
    """Give a refund as partners see it."""
    return {
        "id": refund.id,
        "object": "refund",
        "payment_id": payment.id,
        "amount": refund.amount,
        "currency": payment.currency,
        "status": refund.state.value,
        "reason": refund.reason,
        "created_at": timestamp(refund.created_ms),
        "settled_at": timestamp(refund.settled_ms),
        "failure": None if refund.failure is None else _failure_view(refund.failure, refund.kind),
    }


def render_payment(payment: Payment, mode: str) -> bytes:
    """Give a payment's JSON."""
    return orjson.dumps(payment_view(payment, mode))


def render_refund(payment: Payment, refund: Operation) -> bytes:
    """Give a refund's JSON."""
    return orjson.dumps(refund_view(payment, refund))


def render_list(
    data: Iterable[dict[str, Any] | orjson.Fragment], *, has_more: bool, next_starting_after: str | None = None
) -> bytes:
    """Give a page's JSON. `next_starting_after`: what the next page is asked for with, where there is more."""
    return orjson.dumps(
        {"object": "list", "data": list(data), "has_more": has_more, "next_starting_after": next_starting_after}
    )


def render_balance(balances: Balances) -> bytes:
    """Give the balances' JSON, one object a currency, in the currencies' order."""
    currencies = sorted({currency for currency, _ in balances})

    def credit(currency: str, account: Account) -> int:
        return -balances.get((currency, account.value), 0)

    rows = [
        {
            "currency": currency,
            "payable": credit(currency, Account.PARTNER_PAYABLE),
            "authorized": credit(currency, Account.OPEN_AUTHORIZATIONS),
            "captures_pending": credit(currency, Account.CAPTURES_PENDING),
            "refunds_pending": credit(currency, Account.REFUNDS_PENDING),
        }
        for currency in currencies
    ]
    return orjson.dumps({"object": "balance", "balances": rows})


def unknown_view(payment: Payment, opened: OpenOperation, now_ms: int, *, needs_person: bool) -> dict[str, Any]:
    """Give an operation whose outcome is unknown, as operators see it."""
    operation = payment.operation(opened.operation_id)
    return {
        "operation_id": operation.id,
        "payment_id": payment.id,
        "kind": operation.kind.value,
        "amount": operation.amount,
        "currency": payment.currency,
        "state": operation.state.value,
        "age_ms": now_ms - opened.first_asked_ms,
        "attempts": opened.attempts,
        "needs_person": needs_person,
    }


def event_id(sequence: int, index: int) -> str:
    """Give an event's id, which rises with the journal."""
    return f"evt_{sequence:016d}{index:04d}"


def event_views(entry: JournalEntry, payments: dict[str, Payment]) -> list[dict[str, Any]]:
    """Give the public events of a journal entry, oldest first. `payments` has those the entry names, as of now."""
    views = []
    for index, event in enumerate(entry.events):
        if isinstance(event, events.OperationReconciled):
            continue
        kind = _event_type(event, payments[event.payment_id])
        if kind is None:
            continue
        payment = payments[event.payment_id]
        data: dict[str, Any] = {"payment_id": payment.id, "currency": payment.currency}
        if not isinstance(event, events.PaymentCreated | events.AuthorizationExpired | events.ExpiryDeferred):
            operation = payment.operation(event.operation_id)
            data |= {"operation_id": operation.id, "amount": operation.amount}
            if isinstance(event, events.OperationDeclined):
                data["failure"] = _failure_view(Failure(event.code, event.retryable), operation.kind)
        elif not isinstance(event, events.ExpiryDeferred):
            data["amount"] = event.amount
        views.append(
            {
                "id": event_id(entry.sequence, index),
                "object": "event",
                "type": kind,
                "created_at": timestamp(entry.at_ms),
                "data": data,
            }
        )
    return views


_APPROVED_TYPES = {
    OperationKind.AUTHORIZATION: "payment.authorized",
    OperationKind.PURCHASE: "payment.captured",
    OperationKind.VERIFICATION: "payment.verified",
    OperationKind.CAPTURE: "payment.captured",
    OperationKind.VOID: "payment.canceled",
    OperationKind.REFUND: "refund.succeeded",
}
_DECLINED_TYPES = {
    OperationKind.AUTHORIZATION: "payment.failed",
    OperationKind.PURCHASE: "payment.failed",
    OperationKind.VERIFICATION: "payment.failed",
    OperationKind.CAPTURE: "payment.capture_failed",
    OperationKind.VOID: "payment.cancel_failed",
    OperationKind.REFUND: "refund.failed",
}


def _event_type(event: events.Event, payment: Payment) -> str | None:
    match event:
        case events.PaymentCreated():
            return "payment.created"
        case events.OperationIntended():
            return "refund.created" if event.kind == OperationKind.REFUND else None
        case events.OperationApproved():
            operation = payment.operation(event.operation_id)
            if operation.kind is OperationKind.VOID and operation.reason is not None:
                return "payment.expired"
            return _APPROVED_TYPES[operation.kind]
        case events.OperationDeclined():
            return _DECLINED_TYPES[payment.operation(event.operation_id).kind]
        case events.OperationLost():
            return "operation.unknown"
        case events.AuthorizationExpired():
            return "payment.expired"
        case events.ExpiryDeferred() | events.OperationReconciled():
            return None


def _operation_view(operation: Operation) -> dict[str, Any]:
    return {
        "id": operation.id,
        "type": operation.kind.value,
        "amount": operation.amount,
        "status": operation.state.value,
        "created_at": timestamp(operation.created_ms),
        "settled_at": timestamp(operation.settled_ms),
        "failure": None if operation.failure is None else _failure_view(operation.failure, operation.kind),
        "reason": operation.reason,
    }


def _failure_view(failure: Failure, kind: OperationKind) -> dict[str, Any]:
    advice = "may go through later" if failure.retryable else "will not go through with this payment method"
    return {
        "code": failure.code,
        "message": f"The {kind.value} failed: {failure.code.replace('_', ' ')}. The same {advice}.",
        "retryable": failure.retryable,
    }
