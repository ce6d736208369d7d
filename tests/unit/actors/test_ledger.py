import pytest

from actors.ledger import Account, Posting, post
from tests.unit.actors.story import DAY_MS, Story

HOLDS, OPEN = Account.ACQUIRER_HOLDS, Account.OPEN_AUTHORIZATIONS
CAPTURES, VOIDS = Account.CAPTURES_PENDING, Account.VOIDS_PENDING
RECEIVABLE, PAYABLE, REFUNDS = Account.ACQUIRER_RECEIVABLE, Account.PARTNER_PAYABLE, Account.REFUNDS_PENDING

STORIES = [
    (Story().create(), {}),
    (Story().create().decline(), {}),
    (Story().create(0).approve(), {}),
    (Story().create().approve(), {HOLDS: 100, OPEN: -100}),
    (Story().create(manual=False), {}),
    (Story().create(manual=False).approve(), {RECEIVABLE: 100, PAYABLE: -100}),
    (Story().create().approve().capture(30), {HOLDS: 100, OPEN: -70, CAPTURES: -30}),
    (Story().create().approve().capture(30).lose(), {HOLDS: 100, OPEN: -70, CAPTURES: -30}),
    (Story().create().approve().capture(30).decline(), {HOLDS: 100, OPEN: -100}),
    (Story().create().approve().capture(30).approve(), {HOLDS: 70, OPEN: -70, RECEIVABLE: 30, PAYABLE: -30}),
    (Story().create().approve().void(), {HOLDS: 100, VOIDS: -100}),
    (Story().create().approve().void().decline(), {HOLDS: 100, OPEN: -100}),
    (Story().create().approve().void().approve(), {}),
    (Story().create().approve().void().decline("authorization_voided"), {}),
    (Story().create(manual=False).approve().refund(40), {RECEIVABLE: 100, PAYABLE: -60, REFUNDS: -40}),
    (Story().create(manual=False).approve().refund(40).decline(), {RECEIVABLE: 100, PAYABLE: -100}),
    (Story().create(manual=False).approve().refund(40).approve(), {RECEIVABLE: 60, PAYABLE: -60}),
    (Story().create().approve().later(8 * DAY_MS).expire(), {HOLDS: 100, VOIDS: -100}),
    (Story().create().approve().later(8 * DAY_MS).expire().approve(), {}),
    (Story().create().approve().capture(30).decline("authorization_expired"), {}),
    (Story().create().lose().resolve(succeeded=True), {HOLDS: 100, OPEN: -100}),
    (Story().create(manual=False).lose().resolve(succeeded=False), {}),
]


@pytest.mark.parametrize(("story", "balances"), STORIES)
def test_what_a_history_posts(story: Story, balances: dict[Account, int]) -> None:
    posted = {(currency, account): amount for (currency, account), amount in story.balances.items() if amount}
    assert posted == {("EUR", account.value): amount for account, amount in balances.items()}


def test_currencies_are_kept_apart() -> None:
    balances = post({}, (Posting("EUR", RECEIVABLE, 5), Posting("EUR", PAYABLE, -5)))
    balances = post(balances, (Posting("JPY", RECEIVABLE, 7), Posting("JPY", PAYABLE, -7)))
    assert balances == {
        ("EUR", "acquirer_receivable"): 5,
        ("EUR", "partner_payable"): -5,
        ("JPY", "acquirer_receivable"): 7,
        ("JPY", "partner_payable"): -7,
    }


@pytest.mark.parametrize(
    "postings",
    [
        (Posting("EUR", HOLDS, 5),),
        (Posting("EUR", HOLDS, 5), Posting("EUR", OPEN, -4)),
        (Posting("EUR", HOLDS, 5), Posting("USD", OPEN, -5)),
    ],
)
def test_what_does_not_sum_to_zero_in_each_currency_is_a_bug(postings: tuple[Posting, ...]) -> None:
    with pytest.raises(AssertionError, match="sum to zero"):
        post({}, postings)


def test_posting_leaves_the_balances_it_was_given_alone() -> None:
    before = {("EUR", "acquirer_holds"): 5, ("EUR", "open_authorizations"): -5}
    given = dict(before)
    post(before, (Posting("EUR", HOLDS, 5), Posting("EUR", OPEN, -5)))
    assert before == given
