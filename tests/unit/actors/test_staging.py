"""What a batch builds on: drafts over drafts over what is committed."""

import pytest

from actors import codec, keyspace, limits
from actors.acquirer import Approved
from actors.answers import Answer
from actors.commands import CreatePayment
from actors.events import Event, PaymentCreated
from actors.records import Once, OpenOperation
from actors.rules import Decision, Standing, decide, expire, settle
from actors.staging import Draft, State, TooLargeError, outcome_answer
from actors.store import Clear, Key, Put
from tests.unit.actors.story import NOW_MS, PROFILE, Story, ids

ONCE_KEY: Key = ("once", "key", "k")


def intend(draft: Draft, number: int = 1, *, manual: bool = True, reference: str | None = None) -> None:
    """Have a draft hold a payment whose first operation is open."""
    command = CreatePayment(100, "EUR", "tok", manual, reference)
    decision = decide(PROFILE, draft.standing, None, command, NOW_MS, ids(number))
    assert isinstance(decision, Decision)
    events: tuple[Event, ...] = decision.events
    draft.record(events, payment_id="pay_1", now_ms=NOW_MS, cause="c", request_id="r", epoch=3, once_key=ONCE_KEY)
    draft.put_once(ONCE_KEY, Once("c", b"f", "pay_1", f"op_{number}", NOW_MS))


def record(draft: Draft, *events: Event) -> None:
    draft.record(events, payment_id="pay_1", now_ms=NOW_MS, cause="c", request_id="r", epoch=3)


def test_an_intent_is_written_whole() -> None:
    draft = Draft(State(Standing()))
    intend(draft, reference="order 7")
    rows = {mutation.key: mutation for mutation in draft.mutations()}
    assert set(rows) == {
        keyspace.HEAD,
        keyspace.payment("pay_1"),
        keyspace.open_operation("op_1"),
        keyspace.journal(1),
        keyspace.reference("order 7", "pay_1"),
        ONCE_KEY,
    }
    assert all(isinstance(row, Put) for row in rows.values())
    assert draft.standing.open_operations == 1
    assert draft.open("op_1") == OpenOperation("op_1", "pay_1", ONCE_KEY, NOW_MS)


def test_an_outcome_clears_what_was_open_and_plans_the_end() -> None:
    state = State(Standing())
    below = Draft(state)
    intend(below)
    below.adopt()
    draft = Draft(state)
    payment = draft.payment("pay_1")
    assert payment is not None
    record(draft, *settle(PROFILE, payment, "op_1", Approved("ref"), NOW_MS))
    due_ms = NOW_MS + limits.AUTHORIZATION_VALIDITY_MS
    assert draft.due_ms == due_ms
    rows = {mutation.key: isinstance(mutation, Clear) for mutation in draft.mutations()}
    assert rows == {
        keyspace.HEAD: False,
        keyspace.payment("pay_1"): False,
        keyspace.open_operation("op_1"): True,
        keyspace.journal(2): False,
        keyspace.status("authorized", "pay_1"): False,
        keyspace.due(due_ms, "pay_1"): False,
    }
    draft.adopt()
    assert not state.opens
    assert state.standing.open_operations == 0
    ending = Draft(state)
    payment = ending.payment("pay_1")
    assert payment is not None
    record(ending, *expire(payment, due_ms, ids(2)))
    assert ending.writes[keyspace.due(due_ms, "pay_1")] is None
    assert ending.due_ms is None, "while the void is open nothing is due"


def test_a_draft_that_is_not_merged_leaves_no_trace() -> None:
    state = State(Standing())
    whole = Draft(state)
    draft = Draft(whole)
    intend(draft)
    assert whole.payment("pay_1") is None
    assert whole.once(ONCE_KEY) is None
    assert whole.open("op_1") is None
    assert not whole.writes
    assert whole.standing is state.standing


def test_a_draft_sees_what_was_merged_below_it() -> None:
    whole = Draft(State(Standing()))
    first = Draft(whole)
    intend(first)
    first.merge()
    second = Draft(whole)
    assert second.payment("pay_1") == first.payment("pay_1")
    assert second.once(ONCE_KEY) == first.once(ONCE_KEY)
    assert second.open("op_1") == first.open("op_1")
    assert second.standing.sequence == 1


def test_the_first_answer_is_kept_and_told_ever_after() -> None:
    state = State(Standing())
    draft = Draft(state)
    intend(draft)
    assert draft.answer(ONCE_KEY, Answer(202, b"first")) == Answer(202, b"first")
    assert draft.answer(ONCE_KEY, Answer(201, b"second")) == Answer(202, b"first")
    written = draft.writes[ONCE_KEY]
    assert written is not None
    assert codec.decode_once(written).body == b"first"


def test_an_answer_whose_record_is_past_its_retention_is_told_and_not_kept() -> None:
    draft = Draft(State(Standing()))
    assert draft.answer(ONCE_KEY, Answer(201, b"body")) == Answer(201, b"body")
    assert not draft.writes


def test_records_looked_at_are_forgotten_but_for_those_whose_answer_is_to_come() -> None:
    state = State(Standing())
    answered, waiting, absent = (("once", "key", name) for name in ("answered", "waiting", "absent"))
    state.take_once(answered, Once("c1", b"", "pay_1", "op_1", NOW_MS, 201, b"{}"))
    state.take_once(waiting, Once("c2", b"", "pay_1", "op_2", NOW_MS))
    state.take_once(absent, None)
    state.forget_answered()
    assert list(state.onces) == [waiting]


def test_what_a_store_does_not_take_is_too_large_here() -> None:
    draft = Draft(State(Standing()))
    large = PaymentCreated("pay_1", NOW_MS, 1, "EUR", "t", False, None, "x" * limits.STORE_VALUE_BYTES_MAX, {})
    with pytest.raises(TooLargeError, match="bytes"):
        record(draft, large)


def test_the_estimate_of_a_size_counts_what_is_written() -> None:
    draft = Draft(State(Standing()))
    before = draft.size_bytes()
    intend(draft)
    assert draft.size_bytes() > before + sum(len(value or b"") for value in draft.writes.values())


@pytest.mark.parametrize(
    ("story", "operation_id", "status", "kind"),
    [
        (Story().create(), "op_1", 202, "payment"),
        (Story().create().lose(), "op_1", 202, "payment"),
        (Story().create().approve(), "op_1", 201, "payment"),
        (Story().create().decline(), "op_1", 201, "payment"),
        (Story().create().approve().capture(), "op_2", 202, "payment"),
        (Story().create().approve().capture().approve(), "op_2", 200, "payment"),
        (Story().create().approve().void().decline(), "op_2", 200, "payment"),
        (Story().create(manual=False).approve().refund(), "re_2", 202, "refund"),
        (Story().create(manual=False).approve().refund().approve(), "re_2", 201, "refund"),
        (Story().create(manual=False).approve().refund().decline(), "re_2", 201, "refund"),
    ],
)
def test_the_answer_to_a_command(story: Story, operation_id: str, status: int, kind: str) -> None:
    answer = outcome_answer(story.payment, operation_id, "test")
    assert answer.status == status
    assert f'"object":"{kind}"'.encode() in answer.body
