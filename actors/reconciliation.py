"""What a row of the acquirer's settlement file means for the operation that it names. Pure; no store, no clock.

Not to be confused with settlement.py, which asks the acquirer how an operation ended. Here the acquirer pays.

A row is found by its operation's id, which is the operation's key at the acquirer. What was paid is posted also where
it is not what was owed: the money is at the bank, and books that held it back would agree with nobody. The difference
stays on an account of its own until a person has cleared it. What can't be told to belong to an operation that
succeeded, in the same currency and of the same kind, is held: reported, and not posted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

from actors import keyspace
from actors.commands import ReconcileOperations, SettlementRow
from actors.events import OperationReconciled
from actors.ledger import owed
from actors.payment import MONEY_KINDS, Operation, OperationKind, OperationState, Payment
from actors.records import Reconciled
from actors.store import Key

_OPERATION_PREFIX = "op_"


class Verdict(StrEnum):
    """What a row is."""

    MATCHED = "matched"
    DIFFERING = "differing"  # of an operation of ours, with other figures
    EXTRA = "extra"  # of nothing that we know to have succeeded and to be owed


class Reason(StrEnum):
    """Why a row is not matched."""

    # Differing, and posted.
    AMOUNT = "amount"
    FEE = "fee"
    REFERENCE = "reference"
    # Differing, and held.
    KIND = "kind"
    CURRENCY = "currency"
    # Extra, and held.
    OPERATION_UNKNOWN = "operation_unknown"
    OPERATION_OPEN = "operation_open"  # the file proves a charge whose outcome we don't know
    OTHER_ACQUIRER = "other_acquirer"  # the file proves a charge where none was asked for
    OPERATION_FAILED = "operation_failed"  # the file proves a charge that we called failed
    PAID_BEFORE = "paid_before"  # another file's row, with other figures or of another day
    KIND_UNKNOWN = "kind_unknown"  # of a later version: disputes and the like


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one row. `repeated`: it was posted before, by this file or by the same day's."""

    row: SettlementRow
    verdict: Verdict
    reasons: tuple[Reason, ...] = ()
    payment: Payment | None = None
    operation: Operation | None = None
    fee_agreed: int | None = None
    posted: bool = False
    repeated: bool = False


def payment_id_of(row: SettlementRow) -> str | None:
    """Give the id of the payment that a row must be of: a payment and its first operation share their id's ULID."""
    first = row.original_key or row.key
    return f"pay_{first.removeprefix(_OPERATION_PREFIX)}" if first.startswith(_OPERATION_PREFIX) else None


def keys_of(command: ReconcileOperations) -> list[Key]:
    """Give the rows of the store that the comparison looks at."""
    payment_ids = {payment_id_of(row) for row in command.rows}
    keys = [keyspace.payment(payment_id) for payment_id in payment_ids if payment_id is not None]
    return keys + [keyspace.reconciled(row.key) for row in command.rows]


def compare(
    command: ReconcileOperations,
    payment_of: Callable[[str], Payment | None],
    known_of: Callable[[str], Reconciled | None],
) -> list[Finding]:
    """Say what each row is. `payment_of` and `known_of` give what is stored; a key may stand in the rows only once."""
    findings = []
    seen: set[str] = set()
    for row in command.rows:
        payment_id = payment_id_of(row)
        payment = None if payment_id is None else payment_of(payment_id)
        if row.key in seen:
            findings.append(Finding(row, Verdict.EXTRA, (Reason.PAID_BEFORE,)))
            continue
        seen.add(row.key)
        findings.append(_compare_one(command, row, payment, known_of(row.key)))
    return findings


def _compare_one(
    command: ReconcileOperations, row: SettlementRow, payment: Payment | None, known: Reconciled | None
) -> Finding:
    operation = None if payment is None else _operation(payment, row.key)
    if row.kind not in MONEY_KINDS:
        return Finding(row, Verdict.EXTRA, (Reason.KIND_UNKNOWN,), payment, operation)
    if payment is None or operation is None:
        return Finding(row, Verdict.EXTRA, (Reason.OPERATION_UNKNOWN,))
    if payment.acquirer != command.acquirer:
        return Finding(row, Verdict.EXTRA, (Reason.OTHER_ACQUIRER,), payment, operation)
    if operation.state is not OperationState.SUCCEEDED:
        reason = Reason.OPERATION_OPEN if operation.is_open else Reason.OPERATION_FAILED
        return Finding(row, Verdict.EXTRA, (reason,), payment, operation)
    held = tuple(
        reason
        for reason, same in (
            (Reason.KIND, operation.kind == row.kind),
            (Reason.CURRENCY, payment.currency == row.currency),
        )
        if not same
    )
    if held:
        return Finding(row, Verdict.DIFFERING, held, payment, operation)
    if known is not None and (known.settled_on, known.gross, known.fee) != (command.settled_on, row.gross, row.fee):
        return Finding(row, Verdict.EXTRA, (Reason.PAID_BEFORE,), payment, operation)
    if known is None:
        refund = operation.kind is OperationKind.REFUND
        fee_agreed = command.fees.agreed(abs(row.gross), row.currency, refund=refund)
    else:
        fee_agreed = known.fee_agreed  # as it was agreed then
    differing = tuple(
        reason
        for reason, same in (
            (Reason.AMOUNT, row.gross == owed(operation)),
            (Reason.FEE, row.fee == fee_agreed),
            # A person who resolved an operation had no reference to name.
            (Reason.REFERENCE, operation.resolved_by is not None or row.reference == operation.acquirer_reference),
        )
        if not same
    )
    verdict = Verdict.DIFFERING if differing else Verdict.MATCHED
    return Finding(row, verdict, differing, payment, operation, fee_agreed, True, known is not None)


def to_post(
    command: ReconcileOperations, findings: list[Finding], now_ms: int
) -> list[tuple[Payment, OperationReconciled, Reconciled]]:
    """Give the event and the stored row of each finding that is to be posted and was not before."""
    posted = []
    for finding in findings:
        row, payment = finding.row, finding.payment
        if not finding.posted or finding.repeated:
            continue
        assert payment is not None
        assert finding.fee_agreed is not None
        event = OperationReconciled(
            payment.id, row.key, now_ms, command.settled_on, row.gross, row.fee, finding.fee_agreed
        )
        record = Reconciled(
            row.key,
            payment.id,
            command.settled_on,
            row.gross,
            row.fee,
            finding.fee_agreed,
            row.reference,
            command.file,
            now_ms,
        )
        posted.append((payment, event, record))
    return posted


def render(findings: list[Finding]) -> bytes:
    """Give the answer's JSON: how many are matched, and each of the others."""
    others = [_view(finding) for finding in findings if finding.verdict is not Verdict.MATCHED]
    repeated = sum(finding.repeated for finding in findings)
    return orjson.dumps({"matched": len(findings) - len(others), "repeated": repeated, "findings": others})


def _view(finding: Finding) -> dict[str, Any]:
    row, operation = finding.row, finding.operation
    moved = operation is not None and operation.state is OperationState.SUCCEEDED and operation.kind in MONEY_KINDS
    return {
        "key": row.key,
        "verdict": finding.verdict.value,
        "reasons": [reason.value for reason in finding.reasons],
        "posted": finding.posted,
        "payment_id": None if operation is None or finding.payment is None else finding.payment.id,
        "state": None if operation is None else operation.state.value,
        "owed": owed(operation) if operation is not None and moved else None,
        "fee_agreed": finding.fee_agreed,
    }


def _operation(payment: Payment, operation_id: str) -> Operation | None:
    return next((operation for operation in payment.operations if operation.id == operation_id), None)
