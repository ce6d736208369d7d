"""The auditor finds each kind of difference, and nothing where there is none."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from actors import ledger
from actors.bookkeeping import (
    AcquirerDispute,
    AcquirerRecord,
    Books,
    compare_acquirer,
    compare_disputes,
    compare_reconciled,
    compare_records,
)
from actors.events import (
    DisputeClosed,
    DisputeOpened,
    Event,
    OperationApproved,
    OperationChallenged,
    OperationDeclined,
    OperationIntended,
    OperationLost,
    OperationReconciled,
    PartnerChanged,
    PaymentCreated,
    apply,
)
from actors.ledger import Account, Posting
from actors.payment import Payment
from actors.records import JournalEntry, OpenOperation, Reconciled
from actors.rules import Standing

CAPTURED, OPEN, FAILED = "pay_captured", "pay_open", "pay_failed"


def created(payment_id: str, amount: int) -> PaymentCreated:
    return PaymentCreated(payment_id, 1_000, amount, "EUR", "tok_approve", False, None, None, {})


def intended(payment_id: str, operation_id: str, kind: str, amount: int) -> OperationIntended:
    return OperationIntended(payment_id, operation_id, kind, amount, 1_000, None)


def settled(payment_id: str, operation_id: str, gross: int, fee: int = 5) -> OperationReconciled:
    return OperationReconciled(payment_id, operation_id, 1_600, "2026-11-21", gross, fee, 5)


def approved(payment_id: str, operation_id: str) -> OperationApproved:
    return OperationApproved(payment_id, operation_id, 1_500, "ref", None, None)


@dataclass
class Story:
    """A partner's whole book, as it should be; tests spoil it."""

    entries: list[JournalEntry] = field(default_factory=list)
    standing: Standing = field(default_factory=Standing)
    payments: dict[str, Payment] = field(default_factory=dict)
    opens: dict[str, OpenOperation] = field(default_factory=dict)
    statuses: dict[str, set[str]] = field(default_factory=dict)
    records: dict[str, AcquirerRecord] = field(default_factory=dict)
    reconciled: dict[str, Reconciled] = field(default_factory=dict)

    def add(self, *events: Event) -> None:
        postings: list[Posting] = []
        for event in events:
            payment = apply(self.payments.get(event.payment_id), event)
            self.payments[payment.id] = payment
            postings += ledger.postings_of(payment, event)
            if isinstance(event, OperationReconciled):
                self.reconciled[event.operation_id] = Reconciled(
                    event.operation_id, payment.id, event.settled_on, event.gross, event.fee, 5, "ref", "f1", 1_600
                )
        sequence = len(self.entries) + 1
        self.entries.append(JournalEntry(sequence, 1_000, f"c{sequence}", "r", 1, events, tuple(postings)))
        self.standing = replace(
            self.standing, sequence=sequence, balances=ledger.post(self.standing.balances, tuple(postings))
        )

    def differences(self) -> list[str]:
        books = Books()
        books.take(self.entries)
        found = compare_records(books, self.standing, self.payments, self.opens, self.statuses)
        found += compare_reconciled(books, self.reconciled)
        return books.differences + found + compare_acquirer(books, self.records)


@pytest.fixture
def story() -> Story:
    told = Story()
    told.add(created(CAPTURED, 1_000), intended(CAPTURED, "op_1", "purchase", 1_000))
    told.add(approved(CAPTURED, "op_1"))
    told.add(intended(CAPTURED, "re_1", "refund", 300))
    told.add(approved(CAPTURED, "re_1"))
    told.add(created(OPEN, 700), intended(OPEN, "op_2", "authorization", 700))
    told.add(OperationLost(OPEN, "op_2", 1_400, "timeout"))
    told.add(created(FAILED, 50), intended(FAILED, "op_3", "purchase", 50))
    told.add(OperationDeclined(FAILED, "op_3", 1_500, "stolen_card", False, None))
    told.add(settled(CAPTURED, "op_1", 990), settled(CAPTURED, "re_1", -300))
    told.standing = replace(told.standing, open_operations=1)
    told.opens["op_2"] = OpenOperation("op_2", OPEN, None, 1_000)
    told.statuses = {CAPTURED: {"partially_refunded"}, FAILED: {"failed"}}
    told.records = {
        "op_1": AcquirerRecord("op_1", "purchase", 1_000, "EUR", "approved", True),
        "re_1": AcquirerRecord("re_1", "refund", 300, "EUR", "approved", True),
        "op_2": AcquirerRecord("op_2", "authorization", 700, "EUR", "approved", True),  # in doubt here, not wrong
        "op_3": AcquirerRecord("op_3", "purchase", 50, "EUR", "declined", False),
    }
    return told


def test_books_that_agree(story: Story) -> None:
    assert story.differences() == []


def test_an_empty_book_agrees() -> None:
    assert Story().differences() == []


def test_the_journal_may_come_in_pieces(story: Story) -> None:
    whole, pieces = Books(), Books()
    whole.take(story.entries)
    touched = [pieces.take([entry]) for entry in story.entries]
    assert (pieces.payments, pieces.balances, pieces.sequence) == (whole.payments, whole.balances, whole.sequence)
    assert touched[0] == {CAPTURED}
    assert touched[-2:] == [{FAILED}, {CAPTURED}]
    assert pieces.reconciled == whole.reconciled


# Each spoils the book in one way, and names what the auditor must say.


def change_amount(story: Story) -> str:
    story.payments[CAPTURED] = replace(story.payments[CAPTURED], amount=999)
    return f"payment {CAPTURED}: stored is"


def lose_payment(story: Story) -> str:
    del story.payments[FAILED]
    return f"payment {FAILED}: stored is None"


def invent_payment(story: Story) -> str:
    story.payments["pay_invented"] = replace(story.payments[CAPTURED], id="pay_invented")
    return "payment pay_invented: stored is"


def change_balance(story: Story) -> str:
    balances = dict(story.standing.balances)
    balances["EUR", "partner_payable"] -= 1
    story.standing = replace(story.standing, balances=balances)
    return "balances: stored"


def invent_balance(story: Story) -> str:
    story.standing = replace(story.standing, balances=story.standing.balances | {("USD", "partner_payable"): 5})
    return "balances: stored"


def remove_entry(story: Story) -> str:
    del story.entries[2]
    return "journal: entry 4 follows 2"


def remove_last_entry(story: Story) -> str:
    story.entries.pop()
    return "journal: ends at 8, the head says 9"


def repeat_entry(story: Story) -> str:
    story.entries.insert(2, story.entries[1])
    return "journal: entry 2 follows 2"


def change_event(story: Story) -> str:
    entry = story.entries[2]
    story.entries[2] = replace(entry, events=(intended(CAPTURED, "re_1", "refund", 3_000),))
    return "journal: entry 3 posts other than its events say"


def change_event_to_what_does_not_follow(story: Story) -> str:
    story.entries[3] = replace(story.entries[3], events=(approved(CAPTURED, "re_9"),))
    return "journal: entry 4 does not follow: re_9"


def change_event_to_an_unknown_kind(story: Story) -> str:
    story.entries[2] = replace(story.entries[2], events=(intended(CAPTURED, "re_1", "gift", 300),))
    return "journal: entry 3 does not follow"


def drop_intent(story: Story) -> str:
    story.entries[6] = replace(story.entries[6], events=story.entries[6].events[:1])
    return f"payment {FAILED}: the acquirer was never to be asked"


def change_postings(story: Story) -> str:
    entry = story.entries[1]
    debit, credit = entry.postings
    story.entries[1] = replace(entry, postings=(replace(debit, amount=900), credit))
    return "journal: entry 2 does not sum to zero: {'EUR': -100}"


def balance_across_currencies(story: Story) -> str:
    entry = story.entries[1]
    dollars = Posting("USD", Account.PARTNER_PAYABLE, -1_000)
    story.entries[1] = replace(entry, postings=(entry.postings[0], dollars))
    return "journal: entry 2 does not sum to zero: {'EUR': 1000, 'USD': -1000}"


def forget_open(story: Story) -> str:
    story.opens.clear()
    return "open operations: stored and journal differ by ['op_2']"


def invent_open(story: Story) -> str:
    story.opens["op_1"] = OpenOperation("op_1", CAPTURED, None, 1_000)
    return "open operations: stored and journal differ by ['op_1']"


def miscount_open(story: Story) -> str:
    story.standing = replace(story.standing, open_operations=2)
    return "open operations: 2 counted, 1 in the journal"


def lose_status(story: Story) -> str:
    del story.statuses[CAPTURED]
    return f"payment {CAPTURED}: indexed as [], it is partially_refunded"


def change_status(story: Story) -> str:
    story.statuses[FAILED] = {"captured"}
    return f"payment {FAILED}: indexed as ['captured'], it is failed"


def leave_a_stale_status(story: Story) -> str:
    story.statuses[CAPTURED].add("captured")
    return f"payment {CAPTURED}: indexed as ['captured', 'partially_refunded'], it is partially_refunded"


def index_what_is_under_way(story: Story) -> str:
    story.statuses[OPEN] = {"processing"}
    return f"payment {OPEN}: indexed as ['processing'], it is processing"


def index_what_is_not_there(story: Story) -> str:
    story.statuses["pay_nobody"] = {"captured"}
    return "status index names pay_nobody, which does not exist"


def lose_record(story: Story) -> str:
    del story.records["op_1"]
    return "op_1: succeeded here, the acquirer has None"


def uncharge_record(story: Story) -> str:
    story.records["re_1"] = replace(story.records["re_1"], result="declined", charged=False)
    return "re_1: succeeded here, the acquirer has"


def charge_other_amount(story: Story) -> str:
    story.records["op_1"] = replace(story.records["op_1"], amount=1_001)
    return "op_1: purchase of 1000 EUR here, purchase of 1001 EUR at the acquirer"


def charge_other_currency(story: Story) -> str:
    story.records["op_1"] = replace(story.records["op_1"], currency="USD")
    return "op_1: purchase of 1000 EUR here, purchase of 1000 USD at the acquirer"


def charge_what_failed(story: Story) -> str:
    story.records["op_3"] = replace(story.records["op_3"], result="approved", charged=True)
    return "op_3: failed here, performed at the acquirer"


def charge_what_nobody_asked(story: Story) -> str:
    story.records["op_x"] = AcquirerRecord("op_x", "purchase", 10, "EUR", "approved", True)
    return "op_x: performed at the acquirer, unknown here"


def lose_settled_row(story: Story) -> str:
    del story.reconciled["op_1"]
    return "op_1: stored as settled is None, the journal gives"


def invent_settled_row(story: Story) -> str:
    story.reconciled["op_2"] = replace(story.reconciled["op_1"], operation_id="op_2")
    return "op_2: stored as settled is Reconciled"


def change_settled_row(story: Story) -> str:
    story.reconciled["op_1"] = replace(story.reconciled["op_1"], gross=1_000)
    return "op_1: stored as settled is Reconciled"


def settle_twice(story: Story) -> str:
    story.add(settled(CAPTURED, "op_1", 990))
    return "op_1: settled twice"


def settle_what_failed(story: Story) -> str:
    entry = story.entries[-1]
    story.entries[-1] = replace(entry, events=(settled(FAILED, "op_3", 50), entry.events[1]))
    return "journal: entry 9 does not follow: op_3 is failed"


def settle_what_is_open(story: Story) -> str:
    entry = story.entries[-1]
    story.entries[-1] = replace(entry, events=(settled(OPEN, "op_2", 50), entry.events[1]))
    return "journal: entry 9 does not follow: op_2 moved no money"


def post_a_fee_too_much(story: Story) -> str:
    entry = story.entries[-1]
    postings = tuple(
        replace(posting, amount=posting.amount + {Account.ACQUIRER_FEES: 1, Account.CASH_AT_BANK: -1}[posting.account])
        if index < 2
        else posting
        for index, posting in enumerate(entry.postings)
    )
    story.entries[-1] = replace(entry, postings=postings)
    return "journal: entry 9 posts other than its events say"


@pytest.mark.parametrize(
    "spoil",
    [
        change_amount,
        lose_payment,
        invent_payment,
        change_balance,
        invent_balance,
        remove_entry,
        remove_last_entry,
        repeat_entry,
        change_event,
        change_event_to_what_does_not_follow,
        change_event_to_an_unknown_kind,
        drop_intent,
        change_postings,
        balance_across_currencies,
        forget_open,
        invent_open,
        miscount_open,
        lose_status,
        change_status,
        leave_a_stale_status,
        index_what_is_under_way,
        index_what_is_not_there,
        lose_record,
        uncharge_record,
        charge_other_amount,
        charge_other_currency,
        charge_what_failed,
        charge_what_nobody_asked,
        lose_settled_row,
        invent_settled_row,
        change_settled_row,
        settle_twice,
        settle_what_failed,
        settle_what_is_open,
        post_a_fee_too_much,
    ],
)
def test_each_difference_is_found_and_named(story: Story, spoil: Callable[[Story], str]) -> None:
    expected = spoil(story)
    found = story.differences()
    assert any(difference.startswith(expected) for difference in found), found


def test_money_that_does_not_add_up_is_named_though_journal_and_records_agree(story: Story) -> None:
    """More refunded than captured: no rule allows it, so a journal that says so is wrong however well it is kept."""
    story.add(intended(CAPTURED, "re_2", "refund", 800))
    story.add(approved(CAPTURED, "re_2"))
    story.records["re_2"] = AcquirerRecord("re_2", "refund", 800, "EUR", "approved", True)
    (difference,) = [found for found in story.differences() if "refunded <= captured" in found]
    assert difference.startswith(f"payment {CAPTURED}")


def test_what_the_acquirer_declined_or_closed_is_no_difference(story: Story) -> None:
    story.records["op_y"] = AcquirerRecord("op_y", "purchase", 10, "EUR", "closed", False)
    del story.records["op_3"]
    del story.records["op_2"]
    assert story.differences() == []


def test_what_a_person_resolved_is_the_person_s_word(story: Story) -> None:
    story.add(created("pay_old", 20), intended("pay_old", "op_old", "purchase", 20))
    story.add(OperationApproved("pay_old", "op_old", 2_000, "resolved_by_operator", None, "anna"))
    story.statuses["pay_old"] = {"captured"}
    assert story.differences() == []


def test_an_operator_s_change_posts_nothing_and_stands_there_once(story: Story) -> None:
    changed = PartnerChanged("c1", "suspended", 5, {})
    entry = story.entries[-1]
    story.entries.append(replace(entry, sequence=entry.sequence + 1, events=(changed,), postings=()))
    story.standing = replace(story.standing, sequence=entry.sequence + 1)
    assert story.differences() == []
    story.entries.append(replace(story.entries[-1], sequence=entry.sequence + 2))
    story.standing = replace(story.standing, sequence=entry.sequence + 2)
    assert story.differences() == ["c1: an operator's change stands in the journal twice"]


def test_what_waits_for_its_customer_is_no_open_operation(story: Story) -> None:
    story.add(OperationChallenged(OPEN, "op_2", 1_600, "https://b/c", 9_000))
    assert story.differences(), "the open operation is still among the rows"
    del story.opens["op_2"]
    story.standing = replace(story.standing, open_operations=0)
    story.statuses[OPEN] = {"requires_action"}
    assert story.differences() == []


THEIRS = AcquirerDispute("op_1", 700, "EUR", "open")


@pytest.mark.parametrize(
    ("theirs", "won", "agrees"),
    [
        (THEIRS, None, True),
        (replace(THEIRS, status="lost"), None, True),  # its news is on the way
        (replace(THEIRS, status="won"), True, True),
        (replace(THEIRS, status="lost"), False, True),
        (replace(THEIRS, status="lost"), True, False),
        (THEIRS, True, False),
        (replace(THEIRS, amount=701), None, False),
        (replace(THEIRS, key="op_2"), None, False),
        (replace(THEIRS, currency="USD"), None, False),
        (None, None, False),
    ],
)
def test_disputes_are_held_against_the_acquirer_s(
    story: Story, theirs: AcquirerDispute | None, won: bool | None, agrees: bool
) -> None:
    story.add(DisputeOpened(CAPTURED, "op_1", 1_700, "dp_1", 700, "fraudulent", 1_650))
    if won is not None:
        story.add(DisputeClosed(CAPTURED, "op_1", 1_800, "dp_1", 700, won, 1_750))
    books = Books()
    books.take(story.entries)
    assert books.differences == []
    found = compare_disputes(books, {} if theirs is None else {"dp_1": theirs})
    assert (found == []) is agrees
