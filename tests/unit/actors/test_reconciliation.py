"""Each kind of row of a settlement file, what it is said to be, and what it posts."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acquirer_simulator import settlements
from actors import ledger, limits
from actors.commands import CommandError, ReconcileOperations, SettlementRow, parse
from actors.events import Event, apply
from actors.fees import FeeSchedule
from actors.ledger import Account
from actors.money import MINOR_UNIT_DIGITS
from actors.payment import Payment
from actors.reconciliation import Finding, Reason, Verdict, compare, keys_of, payment_id_of, render, to_post
from actors.records import Reconciled
from control_plane.settings import AcquirerFees
from tests.unit.actors.story import NOW_MS, Story

FEES = FeeSchedule()
DAY = "2026-11-21"
PURCHASE = SettlementRow("op_1", None, "purchase", "ref", "EUR", 10_000, 175)
REFUND = SettlementRow("re_2", "op_1", "refund", "ref", "EUR", -3_000, 0)


def purchased() -> Story:
    return Story().create(10_000, manual=False).approve()


def command(*rows: SettlementRow, day: str = DAY, file: str = "f1") -> ReconcileOperations:
    return ReconcileOperations(file, day, "ann", FEES, rows)


def look(
    row: SettlementRow, payment: Payment | None, known: Reconciled | None = None, **changes: Any
) -> tuple[Finding, dict[str, int]]:
    """Compare one row; give what it is, and what it posts by account."""
    asked = command(row, **changes)
    (finding,) = compare(asked, lambda _: payment, lambda _: known)
    posted: dict[str, int] = {}
    for of, event, record in to_post(asked, [finding], NOW_MS):
        assert apply(of, event) is of
        assert record.operation_id == event.operation_id == row.key
        balances = ledger.post({}, ledger.postings_of(of, event))  # asserts that they sum to zero
        posted |= {account: amount for (_, account), amount in balances.items()}
    return finding, posted


def known(row: SettlementRow, fee_agreed: int, day: str = DAY, file: str = "f0") -> Reconciled:
    return Reconciled(row.key, "pay_1", day, row.gross, row.fee, fee_agreed, row.reference, file, NOW_MS)


# id, row, what is posted, the verdict and its reasons
CASES: list[tuple[str, SettlementRow, dict[str, int], Verdict, tuple[Reason, ...]]] = [
    (
        "as owed",
        PURCHASE,
        {"cash_at_bank": 9_825, "acquirer_fees": 175, "acquirer_receivable": -10_000},
        Verdict.MATCHED,
        (),
    ),
    (
        "paid short",  # its fee is right for what was paid
        replace(PURCHASE, gross=9_000, fee=160),
        {
            "cash_at_bank": 8_840,
            "acquirer_fees": 160,
            "settlement_differences": 1_000,
            "acquirer_receivable": -10_000,
        },
        Verdict.DIFFERING,
        (Reason.AMOUNT,),
    ),
    (
        "paid over",
        replace(PURCHASE, gross=11_000, fee=190),
        {
            "cash_at_bank": 10_810,
            "acquirer_fees": 190,
            "settlement_differences": -1_000,
            "acquirer_receivable": -10_000,
        },
        Verdict.DIFFERING,
        (Reason.AMOUNT,),
    ),
    (
        "charged more than agreed",
        replace(PURCHASE, fee=200),
        {
            "cash_at_bank": 9_800,
            "acquirer_fees": 175,
            "settlement_differences": 25,
            "acquirer_receivable": -10_000,
        },
        Verdict.DIFFERING,
        (Reason.FEE,),
    ),
    (
        "short and dear",
        replace(PURCHASE, gross=9_000, fee=170),
        {
            "cash_at_bank": 8_830,
            "acquirer_fees": 160,
            "settlement_differences": 1_010,
            "acquirer_receivable": -10_000,
        },
        Verdict.DIFFERING,
        (Reason.AMOUNT, Reason.FEE),
    ),
    (
        "another reference",
        replace(PURCHASE, reference="other"),
        {"cash_at_bank": 9_825, "acquirer_fees": 175, "acquirer_receivable": -10_000},
        Verdict.DIFFERING,
        (Reason.REFERENCE,),
    ),
    ("another currency", replace(PURCHASE, currency="USD"), {}, Verdict.DIFFERING, (Reason.CURRENCY,)),
    ("another kind", replace(PURCHASE, kind="capture"), {}, Verdict.DIFFERING, (Reason.KIND,)),
    ("a kind of a later version", replace(PURCHASE, kind="dispute"), {}, Verdict.EXTRA, (Reason.KIND_UNKNOWN,)),
    ("of another payment", replace(PURCHASE, key="op_9"), {}, Verdict.EXTRA, (Reason.OPERATION_UNKNOWN,)),
]


@pytest.mark.parametrize(
    ("row", "posted", "verdict", "reasons"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_a_row_of_a_purchase(
    row: SettlementRow, posted: dict[str, int], verdict: Verdict, reasons: tuple[Reason, ...]
) -> None:
    finding, found = look(row, purchased().payment)
    assert (finding.verdict, finding.reasons) == (verdict, reasons)
    assert found == posted
    assert finding.posted is bool(posted)


def test_a_capture_and_a_refund_clear_what_they_left_open() -> None:
    story = Story().create(10_000).approve().capture(6_000).approve().refund(3_000).approve()
    capture = SettlementRow("op_2", "op_1", "capture", "ref", "EUR", 6_000, 115)
    refund = SettlementRow("re_3", "op_1", "refund", "ref", "EUR", -3_000, 0)
    assert look(capture, story.payment)[1] == {
        "cash_at_bank": 5_885,
        "acquirer_fees": 115,
        "acquirer_receivable": -6_000,
    }
    assert look(refund, story.payment)[1] == {"cash_at_bank": -3_000, "acquirer_receivable": 3_000}
    short = look(replace(refund, gross=-2_000, fee=10), story.payment)
    assert short[0].reasons == (Reason.AMOUNT, Reason.FEE)
    # A thousand too little was taken back, to our gain; ten were charged that were not agreed.
    assert short[1] == {"cash_at_bank": -2_010, "settlement_differences": -990, "acquirer_receivable": 3_000}


@pytest.mark.parametrize(
    ("story", "reason"),
    [
        (Story().create(10_000, manual=False), Reason.OPERATION_OPEN),
        (Story().create(10_000, manual=False).lose(), Reason.OPERATION_OPEN),
        (Story().create(10_000, manual=False).decline(), Reason.OPERATION_FAILED),
    ],
)
def test_a_charge_that_our_books_do_not_know_is_held_and_told(story: Story, reason: Reason) -> None:
    finding, posted = look(PURCHASE, story.payment)
    assert (finding.verdict, finding.reasons, posted) == (Verdict.EXTRA, (reason,), {})
    assert b'"owed":null' in render([finding])


def test_what_is_no_movement_of_money_is_never_paid_out() -> None:
    finding, posted = look(replace(PURCHASE, kind="capture"), Story().create(10_000).approve().payment)
    assert (finding.reasons, posted) == ((Reason.KIND,), {})


def test_an_unknown_operation() -> None:
    for row in (PURCHASE, replace(PURCHASE, key="whatever"), replace(PURCHASE, original_key="x")):
        finding, posted = look(row, None)
        assert (finding.verdict, finding.reasons, posted) == (Verdict.EXTRA, (Reason.OPERATION_UNKNOWN,), {})


def test_what_a_person_resolved_has_no_reference_to_compare() -> None:
    story = Story().create(10_000, manual=False).lose().resolve(succeeded=True)
    assert look(PURCHASE, story.payment)[0].verdict is Verdict.MATCHED


# Again


def test_the_same_row_again_says_the_same_and_posts_nothing() -> None:
    payment = purchased().payment
    for row, fee_agreed in ((PURCHASE, 175), (replace(PURCHASE, fee=200), 175), (replace(PURCHASE, gross=9_000), 160)):
        first, _ = look(row, payment)
        again, posted = look(row, payment, known(row, fee_agreed))
        assert (again.verdict, again.reasons, again.fee_agreed) == (first.verdict, first.reasons, first.fee_agreed)
        assert (again.posted, again.repeated, posted) == (True, True, {})


def test_what_was_agreed_then_is_what_a_later_look_compares_with() -> None:
    again, _ = look(replace(PURCHASE, fee=120), purchased().payment, known(replace(PURCHASE, fee=120), 120))
    assert again.verdict is Verdict.MATCHED, "the schedule of fees has changed since"


@pytest.mark.parametrize(
    "before",
    [
        known(PURCHASE, 175, day="2026-11-20"),  # the same figures on another day: paid twice
        known(replace(PURCHASE, gross=9_999), 175),
        known(replace(PURCHASE, fee=174), 175),
    ],
)
def test_a_second_payment_of_the_same_operation_is_held(before: Reconciled) -> None:
    finding, posted = look(PURCHASE, purchased().payment, before)
    assert (finding.verdict, finding.reasons, posted) == (Verdict.EXTRA, (Reason.PAID_BEFORE,), {})


def test_a_key_twice_in_one_batch_is_posted_once() -> None:
    payment = purchased().payment
    findings = compare(command(PURCHASE, PURCHASE), lambda _: payment, lambda _: None)
    assert [finding.posted for finding in findings] == [True, False]
    assert len(to_post(command(PURCHASE, PURCHASE), findings, NOW_MS)) == 1


# Where a row's payment is found


def test_a_row_names_its_payment_by_the_first_operation() -> None:
    assert payment_id_of(PURCHASE) == "pay_1"
    assert payment_id_of(REFUND) == "pay_1"
    assert payment_id_of(replace(REFUND, original_key=None)) is None
    assert keys_of(command(PURCHASE, REFUND)) == [
        ("payment", "pay_1"),
        ("reconciled", "op_1"),
        ("reconciled", "re_2"),
    ]


# Sums


@given(
    st.integers(1, 10**12 - 1),
    st.integers(-(10**12), 10**12),
    st.integers(-(10**12), 10**12),
    st.booleans(),
    st.sampled_from(["EUR", "JPY", "KWD", "CLF"]),
)
def test_what_is_posted_sums_to_zero_and_clears_all_that_was_owed(
    amount: int, gross: int, fee: int, refunded: bool, currency: str
) -> None:
    story = Story().create(amount, currency, manual=False).approve()
    row = SettlementRow("op_1", None, "purchase", "ref", currency, gross, fee)
    if refunded:
        story.refund(amount).approve()
        row = replace(row, key=story.last, original_key="op_1", kind="refund")
    finding, posted = look(row, story.payment)
    assert finding.posted
    owed = -amount if refunded else amount
    assert posted[Account.ACQUIRER_RECEIVABLE] == -owed
    assert posted.get(Account.CASH_AT_BANK, 0) == gross - fee, "what the acquirer says to have paid, and nothing else"
    assert not sum(posted.values())
    assert (finding.verdict is Verdict.MATCHED) is (gross == owed and fee == finding.fee_agreed)
    if finding.verdict is Verdict.MATCHED:
        assert Account.SETTLEMENT_DIFFERENCES not in posted


# Fees


@pytest.mark.parametrize(
    ("amount", "currency", "fee"),
    [(10_000, "EUR", 175), (0, "EUR", 25), (33, "EUR", 25), (34, "EUR", 26), (10_000, "JPY", 175), (1_000, "KWD", 265)],
)
def test_a_fee_is_a_part_rounded_half_up_and_a_fixed_amount(amount: int, currency: str, fee: int) -> None:
    assert FEES.agreed(amount, currency, refund=False) == fee
    assert FEES.agreed(amount, currency, refund=True) == 0


@given(st.integers(0, 10**12), st.sampled_from(sorted(MINOR_UNIT_DIGITS)))
def test_what_is_agreed_by_default_is_what_the_simulator_takes(amount: int, currency: str) -> None:
    for kind in ("purchase", "capture", "refund"):
        agreed = FEES.agreed(amount, currency, refund=kind == "refund")
        assert agreed == settlements.fee_of(kind, amount, currency)


def test_the_settings_have_the_same_default() -> None:
    assert AcquirerFees().model_dump() == {name: getattr(FEES, name) for name in FeeSchedule.__dataclass_fields__}


# What the wire carries

ARGUMENTS = {
    "file": "f" * 64,
    "settled_on": DAY,
    "operator": "ann",
    "fees": AcquirerFees().model_dump(mode="json"),
    "rows": [["op_1", None, "purchase", "ref", "EUR", 10_000, 175], ["re_2", "op_1", "refund", "ref", "EUR", -3, 0]],
}


def test_a_batch_is_read_into_its_types() -> None:
    asked = parse("reconcile_operations", ARGUMENTS)
    assert isinstance(asked, ReconcileOperations)
    assert asked.fees == FEES
    assert asked.rows == (PURCHASE, replace(REFUND, gross=-3))


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": []},
        {"rows": None},
        {"rows": [ARGUMENTS["rows"][0]] * (limits.SETTLEMENT_ROWS_MAX + 1)},  # type: ignore[index]
        {"rows": [["op_1", None, "purchase", "ref", "EUR", 10_000]]},
        {"rows": [["op_1", None, "purchase", "ref", "EUR", True, 0]]},
        {"rows": [["op_1", None, "purchase", "ref", "EUR", 1.5, 0]]},
        {"rows": [["op_1", None, "purchase", "ref", "EUR", 10**12, 0]]},
        {"rows": [["op_1", None, "purchase", "ref", "EURO", 1, 0]]},
        {"rows": [["", None, "purchase", "ref", "EUR", 1, 0]]},
        {"rows": [["o" * 65, None, "purchase", "ref", "EUR", 1, 0]]},
        {"rows": [["op_\udc80", None, "purchase", "ref", "EUR", 1, 0]]},
        {"fees": {}},
        {"fees": AcquirerFees().model_dump(mode="json") | {"basis_points": -1}},
        {"fees": AcquirerFees().model_dump(mode="json") | {"fixed": [1, 2]}},
        {"fees": AcquirerFees().model_dump(mode="json") | {"refund_fixed": [0, 0, 0, 0, "0"]}},
        {"file": ""},
        {"more": 1},
    ],
)
def test_other_batches_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(CommandError):
        parse("reconcile_operations", ARGUMENTS | wrong)


def test_a_whole_batch_fits_into_its_journal_entry_by_far() -> None:
    """The longest that a row may be; limits.py rests on it."""
    from actors import codec  # noqa: PLC0415 - nothing else here knows bytes
    from actors.records import JournalEntry  # noqa: PLC0415

    story = Story().create(limits.AMOUNT_MINOR_UNITS_MAX, manual=False).approve()
    row = replace(PURCHASE, gross=-limits.AMOUNT_MINOR_UNITS_MAX, fee=limits.AMOUNT_MINOR_UNITS_MAX)
    asked = command(row)
    ((of, event, _),) = to_post(asked, compare(asked, lambda _: story.payment, lambda _: None), NOW_MS)
    long = replace(event, payment_id="pay_" + "0" * 61, operation_id="o" * limits.SETTLEMENT_KEY_CHARACTERS_MAX)
    events: tuple[Event, ...] = (long,) * limits.SETTLEMENT_ROWS_MAX
    postings = ledger.postings_of(of, event) * limits.SETTLEMENT_ROWS_MAX
    entry = JournalEntry(2**40, NOW_MS, "s" * 400, "r" * 64, 2**40, events, postings)
    assert len(codec.encode_entry(entry)) < limits.SETTLEMENT_ROWS_MAX * limits.SETTLEMENT_ROW_BYTES_MAX
