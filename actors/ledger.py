"""The chart of accounts, and what each event posts to it. Double entry: an entry's postings sum to zero per currency.

Debits are positive, credits negative. Every partner has its own books.

    acquirer_holds         what acquirers hold on cards for this partner (memorandum, debit)
    open_authorizations    its counterpart: authorized, not captured, not released (memorandum, credit)
    captures_pending       reserved out of open_authorizations by captures under way (credit)
    voids_pending          reserved out of open_authorizations by voids under way (credit)
    acquirer_receivable    captured, owed to us by the acquirer (debit)
    partner_payable        captured less refunded, owed by us to the partner (credit)
    refunds_pending        reserved out of partner_payable by refunds under way (credit)
    cash_at_bank           paid out to us according to the acquirer's settlement files, refunds taken off (debit)
    acquirer_fees          agreed fees that the acquirer kept (debit)
    settlement_differences paid or charged other than owed or agreed, until a person clears it (debit: to our loss)
    disputes_held          taken out of partner_payable by open disputes; a dispute that is won gives it back (credit)
    disputes_withdrawn     taken by the acquirer out of acquirer_receivable for open disputes (debit)
"""

from enum import StrEnum

from actors.events import (
    AuthorizationExpired,
    DisputeClosed,
    DisputeOpened,
    Event,
    OperationApproved,
    OperationDeclined,
    OperationIntended,
    OperationReconciled,
)
from actors.payment import MONEY_KINDS, Operation, OperationKind, Payment
from actors.values import dataclass


class Account(StrEnum):
    """The chart of accounts."""

    ACQUIRER_HOLDS = "acquirer_holds"
    OPEN_AUTHORIZATIONS = "open_authorizations"
    CAPTURES_PENDING = "captures_pending"
    VOIDS_PENDING = "voids_pending"
    ACQUIRER_RECEIVABLE = "acquirer_receivable"
    PARTNER_PAYABLE = "partner_payable"
    REFUNDS_PENDING = "refunds_pending"
    CASH_AT_BANK = "cash_at_bank"
    ACQUIRER_FEES = "acquirer_fees"
    SETTLEMENT_DIFFERENCES = "settlement_differences"
    DISPUTES_HELD = "disputes_held"
    DISPUTES_WITHDRAWN = "disputes_withdrawn"


@dataclass(frozen=True, slots=True)
class Posting:
    """`amount` on `account`: debit positive, credit negative."""

    currency: str
    account: Account
    amount: int


Balances = dict[tuple[str, str], int]

# What an operation reserves when it is intended: from, to.
_RESERVES = {
    OperationKind.CAPTURE: (Account.OPEN_AUTHORIZATIONS, Account.CAPTURES_PENDING),
    OperationKind.VOID: (Account.OPEN_AUTHORIZATIONS, Account.VOIDS_PENDING),
    OperationKind.REFUND: (Account.PARTNER_PAYABLE, Account.REFUNDS_PENDING),
}


def postings_of(payment: Payment, event: Event) -> tuple[Posting, ...]:
    """Give what `event` posts. `payment` is the payment after the event."""
    currency = payment.currency
    match event:
        case OperationIntended():
            kind = OperationKind(event.kind)
            if kind not in _RESERVES or not event.amount:
                return ()
            source, reserve = _RESERVES[kind]
            return _move(currency, source, reserve, event.amount)
        case OperationDeclined():
            operation = payment.operation(event.operation_id)
            if operation.kind not in _RESERVES or not operation.amount:
                return ()
            source, reserve = _RESERVES[operation.kind]
            return _move(currency, reserve, source, operation.amount)
        case OperationApproved():
            operation = payment.operation(event.operation_id)
            return _approved(currency, operation.kind, operation.amount) if operation.amount else ()
        case AuthorizationExpired():
            return _move(currency, Account.OPEN_AUTHORIZATIONS, Account.ACQUIRER_HOLDS, event.amount)
        case OperationReconciled():
            return _reconciled(currency, payment.operation(event.operation_id), event)
        case DisputeOpened() | DisputeClosed():
            return _disputed(currency, event)
        case _:
            return ()


def owed(operation: Operation) -> int:
    """Give what the acquirer owes us for an operation that succeeded; negative for a refund."""
    assert operation.kind in MONEY_KINDS
    return -operation.amount if operation.kind is OperationKind.REFUND else operation.amount


def post(balances: Balances, postings: tuple[Posting, ...]) -> Balances:
    """Give the balances after the postings, which must sum to zero per currency."""
    if not postings:
        return balances
    after = dict(balances)
    sums: dict[str, int] = {}
    for posting in postings:
        key = (posting.currency, posting.account.value)
        after[key] = after.get(key, 0) + posting.amount
        sums[posting.currency] = sums.get(posting.currency, 0) + posting.amount
    assert not any(sums.values()), f"postings do not sum to zero: {postings}"
    return after


def _disputed(currency: str, event: DisputeOpened | DisputeClosed) -> tuple[Posting, ...]:
    match event:
        case DisputeOpened():
            return (
                *_move(currency, Account.PARTNER_PAYABLE, Account.DISPUTES_HELD, event.amount),
                *_move(currency, Account.DISPUTES_WITHDRAWN, Account.ACQUIRER_RECEIVABLE, event.amount),
            )
        case DisputeClosed() if event.won:
            return (
                *_move(currency, Account.DISPUTES_HELD, Account.PARTNER_PAYABLE, event.amount),
                *_move(currency, Account.ACQUIRER_RECEIVABLE, Account.DISPUTES_WITHDRAWN, event.amount),
            )
        case DisputeClosed():
            return _move(currency, Account.DISPUTES_HELD, Account.DISPUTES_WITHDRAWN, event.amount)


def _approved(currency: str, kind: OperationKind, amount: int) -> tuple[Posting, ...]:
    match kind:
        case OperationKind.AUTHORIZATION:
            return _move(currency, Account.ACQUIRER_HOLDS, Account.OPEN_AUTHORIZATIONS, amount)
        case OperationKind.PURCHASE:
            return _move(currency, Account.ACQUIRER_RECEIVABLE, Account.PARTNER_PAYABLE, amount)
        case OperationKind.CAPTURE:
            return (
                *_move(currency, Account.CAPTURES_PENDING, Account.ACQUIRER_HOLDS, amount),
                *_move(currency, Account.ACQUIRER_RECEIVABLE, Account.PARTNER_PAYABLE, amount),
            )
        case OperationKind.VOID:
            return _move(currency, Account.VOIDS_PENDING, Account.ACQUIRER_HOLDS, amount)
        case OperationKind.REFUND:
            return _move(currency, Account.REFUNDS_PENDING, Account.ACQUIRER_RECEIVABLE, amount)
        case OperationKind.VERIFICATION:
            return ()


def _reconciled(currency: str, operation: Operation, event: OperationReconciled) -> tuple[Posting, ...]:
    """Post what was paid, and clear all of what was owed: what lacks between the two is a claim of its own."""
    amount = owed(operation)
    amounts = (
        (Account.CASH_AT_BANK, event.gross - event.fee),
        (Account.ACQUIRER_FEES, event.fee_agreed),
        (Account.SETTLEMENT_DIFFERENCES, amount - event.gross + event.fee - event.fee_agreed),
        (Account.ACQUIRER_RECEIVABLE, -amount),
    )
    return tuple(Posting(currency, account, posted) for account, posted in amounts if posted)


def _move(currency: str, debit: Account, credit: Account, amount: int) -> tuple[Posting, ...]:
    return Posting(currency, debit, amount), Posting(currency, credit, -amount)
