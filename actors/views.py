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
from actors.payment import Challenge, Dispute, Failure, Operation, OperationKind, OperationState, Payment
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
        "amount_disputed": payment.amount_disputed,
        "next_action": _next_action_view(payment.first),
        "dispute": _dispute_view(payment.disputes[-1]) if payment.disputes else None,
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


def render_acknowledgement() -> bytes:
    """Give the JSON that tells an acquirer that its notification is taken: the same each time."""
    return b'{"object":"acknowledgement","taken":true}'


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
            "disputes_held": credit(currency, Account.DISPUTES_HELD),
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
        "acquirer": payment.acquirer,
        "needs_person": needs_person,
    }


def event_id(sequence: int, index: int) -> str:
    """Give an event's id, which rises with the journal."""
    return f"evt_{sequence:016d}{index:04d}"


def event_views(entry: JournalEntry, payments: dict[str, Payment]) -> list[dict[str, Any]]:
    """Give the public events of a journal entry, oldest first. `payments` has those the entry names, as of now."""
    views = []
    for index, event in enumerate(entry.events):
        if isinstance(event, events.OperationReconciled | events.PaymentRouted):
            continue
        if isinstance(event, events.PartnerChanged):
            changed = {"changed_at": timestamp(event.at_ms), "by": "operator", **event.detail}
            views.append(_event_view(entry, index, f"partner.{event.what}", changed))
            continue
        kind = _event_type(event, payments[event.payment_id])
        if kind is None:
            continue
        payment = payments[event.payment_id]
        data: dict[str, Any] = {"payment_id": payment.id, "currency": payment.currency}
        if not isinstance(event, events.PaymentCreated | events.AuthorizationExpired | events.ExpiryDeferred):
            operation = payment.operation(event.operation_id)
            data |= {"operation_id": operation.id, "amount": operation.amount}
            match event:
                case events.OperationDeclined():
                    data["failure"] = _failure_view(Failure(event.code, event.retryable), operation.kind)
                case events.OperationChallenged():
                    data["next_action"] = _redirect_view(Challenge(event.url, event.expires_ms))
                case events.DisputeOpened() | events.DisputeClosed():
                    data |= {"dispute_id": event.dispute_id, "amount": event.amount}
                case events.AcquirerContradicted():
                    data["claim"] = event.claim
        elif not isinstance(event, events.ExpiryDeferred):
            data["amount"] = event.amount
        views.append(_event_view(entry, index, kind, data))
    return views + _resolved_views(entry)


def _resolved_views(entry: JournalEntry) -> list[dict[str, Any]]:
    """Give, behind an entry's events, that it was a person who said what became of an operation."""
    return [
        _event_view(
            entry,
            index,
            "operation.resolved_by_operator",
            {
                "payment_id": event.payment_id,
                "operation_id": event.operation_id,
                "outcome": "succeeded" if isinstance(event, events.OperationApproved) else "failed",
                "by": "operator",
            },
        )
        for index, event in enumerate(entry.events, start=len(entry.events))
        if isinstance(event, events.OperationApproved | events.OperationDeclined) and event.resolved_by is not None
    ]


def _event_view(entry: JournalEntry, index: int, kind: str, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": event_id(entry.sequence, index),
        "object": "event",
        "type": kind,
        "created_at": timestamp(entry.at_ms),
        "data": data,
    }


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


def _event_type(  # noqa: C901, PLR0911, PLR0912 - one case per event
    event: events.Event, payment: Payment
) -> str | None:
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
            if event.code == payment.operation(event.operation_id).withdrawn:
                return "payment.canceled"
            return _DECLINED_TYPES[payment.operation(event.operation_id).kind]
        case events.OperationLost():
            return "operation.unknown"
        case events.AuthorizationExpired():
            return "payment.expired"
        case (
            events.ExpiryDeferred()
            | events.OperationReconciled()
            | events.OperationWithdrawn()
            | events.PaymentRouted()
        ):
            return None
        case events.OperationChallenged():
            return "payment.requires_action"
        case events.OperationConfirmed():
            return "payment.confirmed"
        case events.OperationAccepted():
            return "operation.accepted"
        case events.DisputeOpened():
            return "dispute.opened"
        case events.DisputeClosed():
            return "dispute.won" if event.won else "dispute.lost"
        case events.AcquirerContradicted():
            return "operation.contradicted"


def _next_action_view(first: Operation) -> dict[str, Any] | None:
    if first.state is not OperationState.REQUIRES_ACTION or first.challenge is None:
        return None
    return _redirect_view(first.challenge)


def _redirect_view(challenge: Challenge) -> dict[str, Any]:
    return {
        "type": "redirect_to_url",
        "redirect_to_url": {"url": challenge.url},
        "expires_at": timestamp(challenge.expires_ms),
    }


def _dispute_view(dispute: Dispute) -> dict[str, Any]:
    return {
        "id": dispute.id,
        "operation_id": dispute.operation_id,
        "amount": dispute.amount,
        "reason": dispute.reason,
        "status": dispute.status.value,
        "opened_at": timestamp(dispute.opened_ms),
        "closed_at": timestamp(dispute.closed_ms),
    }


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
