import dataclasses
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors import codec, events
from actors.errors import StoreCorruptError
from actors.events import Event, ExpiryDeferred, OperationApproved, PaymentCreated, apply
from actors.ledger import Account, Posting
from actors.payment import (
    Challenge,
    Dispute,
    DisputeStatus,
    Failure,
    Operation,
    OperationKind,
    OperationState,
    Payment,
)
from actors.records import JournalEntry, Once, OpenOperation, Reconciled
from actors.rules import Standing
from tests.unit.actors.story import NOW_MS, Story

TEXT = st.text(max_size=20)
AMOUNT = st.integers(0, 999_999_999_999)
MONEY = st.integers(-(10**12), 10**12)
INSTANT = st.integers(0, 2**48)
MAYBE = st.none() | TEXT
METADATA = st.dictionaries(TEXT, TEXT, max_size=3)
KEY = st.tuples(st.just("once"), st.sampled_from(["key", "command"]), TEXT)
EVENT: st.SearchStrategy[Event] = st.one_of(
    st.builds(PaymentCreated, TEXT, INSTANT, AMOUNT, TEXT, TEXT, st.booleans(), MAYBE, MAYBE, METADATA),
    st.builds(events.OperationIntended, TEXT, TEXT, st.sampled_from(OperationKind), AMOUNT, INSTANT, MAYBE),
    st.builds(OperationApproved, TEXT, TEXT, INSTANT, TEXT, st.none() | INSTANT, MAYBE),
    st.builds(events.OperationDeclined, TEXT, TEXT, INSTANT, TEXT, st.booleans(), MAYBE),
    st.builds(events.OperationLost, TEXT, TEXT, INSTANT, TEXT),
    st.builds(events.AuthorizationExpired, TEXT, INSTANT, AMOUNT),
    st.builds(ExpiryDeferred, TEXT, INSTANT),
    st.builds(events.OperationChallenged, TEXT, TEXT, INSTANT, TEXT, INSTANT),
    st.builds(events.OperationConfirmed, TEXT, TEXT, INSTANT),
    st.builds(events.OperationWithdrawn, TEXT, TEXT, INSTANT, TEXT),
    st.builds(events.OperationAccepted, TEXT, TEXT, INSTANT),
    st.builds(events.DisputeOpened, TEXT, TEXT, INSTANT, TEXT, AMOUNT, TEXT, INSTANT),
    st.builds(events.DisputeClosed, TEXT, TEXT, INSTANT, TEXT, AMOUNT, st.booleans(), INSTANT),
    st.builds(events.AcquirerContradicted, TEXT, TEXT, INSTANT, TEXT),
    st.builds(events.OperationReconciled, TEXT, TEXT, INSTANT, TEXT, MONEY, MONEY, MONEY),
)
CHANGED = st.builds(events.PartnerChanged, TEXT, TEXT, INSTANT, st.dictionaries(TEXT, TEXT | INSTANT, max_size=3))
POSTING = st.builds(Posting, TEXT, st.sampled_from(Account), st.integers(-(10**12), 10**12))
OPERATION = st.builds(
    Operation,
    TEXT,
    st.sampled_from(OperationKind),
    AMOUNT,
    st.sampled_from(OperationState),
    INSTANT,
    st.none() | INSTANT,
    st.none() | st.builds(Failure, TEXT, st.booleans()),
    MAYBE,
    MAYBE,
    MAYBE,
    st.none() | st.builds(Challenge, TEXT, INSTANT),
    st.integers(0, 9),
    st.sampled_from([None, "canceled", "expired"]),
)
DISPUTE = st.builds(Dispute, TEXT, TEXT, AMOUNT, TEXT, st.sampled_from(DisputeStatus), INSTANT, st.none() | INSTANT)
PAYMENT = st.builds(
    Payment,
    TEXT,
    INSTANT,
    AMOUNT,
    TEXT,
    TEXT,
    st.booleans(),
    MAYBE,
    MAYBE,
    METADATA,
    st.lists(OPERATION, max_size=3).map(tuple),
    st.none() | INSTANT,
    st.none() | INSTANT,
    AMOUNT,
    st.lists(DISPUTE, max_size=2).map(tuple),
)
STANDING = st.builds(
    Standing,
    INSTANT,
    INSTANT,
    INSTANT,
    INSTANT,
    INSTANT,
    st.dictionaries(st.tuples(TEXT, st.sampled_from([a.value for a in Account])), st.integers(-(2**62), 2**62)),
)


@given(
    st.builds(
        JournalEntry,
        INSTANT,
        INSTANT,
        TEXT,
        TEXT,
        INSTANT,
        st.lists(EVENT | CHANGED).map(tuple),
        st.lists(POSTING).map(tuple),
        st.none() | KEY,
    )
)
def test_a_journal_entry_is_read_as_it_was_written(entry: JournalEntry) -> None:
    assert codec.decode_entry(codec.encode_entry(entry)) == entry


@given(PAYMENT)
def test_a_payment_is_read_as_it_was_written(payment: Payment) -> None:
    assert codec.decode_payment(codec.encode_payment(payment)) == payment


@given(STANDING)
def test_a_head_is_read_as_it_was_written(standing: Standing) -> None:
    assert codec.decode_standing(codec.encode_standing(standing)) == standing


@given(st.builds(Once, TEXT, st.binary(), TEXT, TEXT, INSTANT, st.none() | st.just(201), st.binary()))
def test_an_idempotency_record_is_read_as_it_was_written(once: Once) -> None:
    assert codec.decode_once(codec.encode_once(once)) == once


@given(st.builds(OpenOperation, TEXT, TEXT, st.none() | KEY, INSTANT, st.integers(0, 1_000)))
def test_an_open_operation_is_read_as_it_was_written(opened: OpenOperation) -> None:
    assert codec.decode_open(codec.encode_open(opened)) == opened


@given(st.builds(Reconciled, TEXT, TEXT, TEXT, MONEY, MONEY, MONEY, TEXT, TEXT, INSTANT))
def test_a_settled_row_is_read_as_it_was_written(row: Reconciled) -> None:
    assert codec.decode_reconciled(codec.encode_reconciled(row)) == row


def test_an_entry_from_before_settlement_files_is_still_read() -> None:
    fields = [
        1,
        7,
        1_500,
        "acquirer:op_1",
        "",
        1,
        [[3, "pay_1", "op_1", 1_500, "ref", None, None]],
        [["EUR", "acquirer_receivable", 5]],
        None,
    ]
    entry = codec.decode_entry(msgpack.packb(fields))
    assert entry.events == (OperationApproved("pay_1", "op_1", 1_500, "ref", None, None),)
    assert entry.postings == (Posting("EUR", Account.ACQUIRER_RECEIVABLE, 5),)


@given(TEXT)
def test_a_text_is_read_as_it_was_written(text: str) -> None:
    assert codec.decode_text(codec.encode_text(text)) == text


# A payment as it was written before there were challenges and disputes.
VERSION_1 = (
    "9e01a57061795f31cf000001a0c4506c0064a3455552ab746f6b5f617070726f7665c3c0c080919aa46f705f31ad617574686f72697a6174696f"
    "6e64a7756e6b6e6f776ecf000001a0c4506c00c0c0c0c0c0c0c000"
)


def test_payments_of_before_are_read_and_still_written_as_they_were() -> None:
    lost = Story().create().lose().payment
    data = codec.encode_payment(lost)
    assert data.hex() == VERSION_1
    assert codec.decode_payment(bytes.fromhex(VERSION_1)) == lost
    assert msgpack.unpackb(codec.encode_payment(Story().create().challenge().payment))[0] == 2
    disputed = Story().create(manual=False).approve().dispute().payment
    assert msgpack.unpackb(codec.encode_payment(disputed))[0] == 2


def test_a_payment_at_another_acquirer_than_the_main_one_says_so_and_only_it() -> None:
    routed = dataclasses.replace(Story().create().challenge().payment, acquirer="second")
    data = codec.encode_payment(routed)
    assert msgpack.unpackb(data)[0] == codec.PAYMENT_VERSION == 3
    assert codec.decode_payment(data) == routed
    elsewhere = dataclasses.replace(Story().create().lose().payment, acquirer="second")
    assert codec.decode_payment(codec.encode_payment(elsewhere)) == elsewhere


def test_every_event_has_a_tag_of_its_own_for_ever() -> None:
    tags = {kind.__name__: tag for kind, tag in codec._EVENT_TAGS.items()}
    assert tags == {
        "PaymentCreated": 1,
        "OperationIntended": 2,
        "OperationApproved": 3,
        "OperationDeclined": 4,
        "OperationLost": 5,
        "AuthorizationExpired": 6,
        "ExpiryDeferred": 7,
        "OperationChallenged": 8,
        "OperationConfirmed": 9,
        "OperationWithdrawn": 10,
        "OperationAccepted": 11,
        "DisputeOpened": 12,
        "DisputeClosed": 13,
        "AcquirerContradicted": 14,
        "PaymentRouted": 15,
        "PartnerChanged": 16,
        "OperationReconciled": 20,
    }
    assert set(codec._EVENT_TAGS) == {*Event.__args__, events.PartnerChanged}


DECODERS = [
    codec.decode_standing,
    codec.decode_payment,
    codec.decode_once,
    codec.decode_open,
    codec.decode_entry,
    codec.decode_text,
    codec.decode_reconciled,
]
GOOD = {
    codec.decode_standing: codec.encode_standing(Standing(balances={("EUR", "partner_payable"): -5})),
    codec.decode_payment: codec.encode_payment(Story().create().decline().payment),
    codec.decode_once: codec.encode_once(Once("c", b"", "pay_1", "op_1", NOW_MS)),
    codec.decode_open: codec.encode_open(OpenOperation("op_1", "pay_1", ("once", "key", "k"), NOW_MS)),
    codec.decode_entry: codec.encode_entry(
        JournalEntry(
            1, NOW_MS, "c", "r", 1, (ExpiryDeferred("pay_1", 5),), (Posting("EUR", Account.PARTNER_PAYABLE, 5),)
        )
    ),
    codec.decode_text: codec.encode_text("pay_1"),
    codec.decode_reconciled: codec.encode_reconciled(
        Reconciled("op_1", "pay_1", "2026-11-21", 5, 1, 1, "ref", "digest", NOW_MS)
    ),
}


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", b"garbage", msgpack.packb(5), msgpack.packb([]), msgpack.packb({}), msgpack.packb([2] * 20)],
)
def test_what_is_no_record_is_reported_never_guessed_at(decode: Any, data: bytes) -> None:
    with pytest.raises(StoreCorruptError):
        decode(data)


@pytest.mark.parametrize("decode", DECODERS)
def test_a_record_of_another_version_or_length_is_not_read(decode: Any) -> None:
    fields = msgpack.unpackb(GOOD[decode])
    decode(GOOD[decode])
    for wrong in ([codec.VERSION + 1, *fields[1:]], fields[:-1], [*fields, None]):
        with pytest.raises(StoreCorruptError):
            decode(msgpack.packb(wrong))
    with pytest.raises(StoreCorruptError):
        decode(GOOD[decode] + b"\x00")


@pytest.mark.parametrize("decode", [codec.decode_standing, codec.decode_payment, codec.decode_open, codec.decode_entry])
def test_a_field_of_another_shape_is_reported(decode: Any) -> None:
    fields = msgpack.unpackb(GOOD[decode])
    lists = [index for index, value in enumerate(fields) if isinstance(value, list)]
    assert lists
    for index in lists:
        for wrong in (5, [5], [["x"]]):
            data = msgpack.packb([*fields[:index], wrong, *fields[index + 1 :]])
            if decode is codec.decode_open and wrong == [5]:
                continue  # a key's parts may be anything that a store takes
            with pytest.raises(StoreCorruptError):
                decode(data)


ENCODERS = {
    codec.decode_standing: codec.encode_standing,
    codec.decode_payment: codec.encode_payment,
    codec.decode_once: codec.encode_once,
    codec.decode_open: codec.encode_open,
    codec.decode_entry: codec.encode_entry,
    codec.decode_reconciled: codec.encode_reconciled,
    codec.decode_text: codec.encode_text,
    codec.decode_reconciled: codec.encode_reconciled,
}


@pytest.mark.parametrize("decode", DECODERS)
@settings(max_examples=300)
@given(data=st.data())
def test_altered_bytes_are_reported_or_still_a_record_of_its_types(decode: Any, data: st.DataObject) -> None:
    """That no altered byte goes unseen is the store's promise: each row carries a checksum."""
    altered = bytearray(GOOD[decode])
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(altered) - 1))
        altered[position] = data.draw(st.integers(0, 255))
    altered = altered[: data.draw(st.just(len(altered)) | st.integers(0, len(altered)))]
    try:
        record = decode(bytes(altered))
    except StoreCorruptError:
        return
    assert type(record) is type(decode(GOOD[decode]))
    assert decode(ENCODERS[decode](record)) == record


FIELD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=8,
)


@pytest.mark.parametrize("decode", DECODERS)
@settings(max_examples=200)
@given(data=st.data())
def test_fields_of_any_types_are_reported_or_a_record(decode: Any, data: st.DataObject) -> None:
    fields = msgpack.unpackb(GOOD[decode])
    for index in data.draw(st.sets(st.integers(1, len(fields) - 1), min_size=1, max_size=3)):
        fields[index] = data.draw(FIELD)
    try:
        record = decode(msgpack.packb(fields))
    except StoreCorruptError:
        return
    assert decode(ENCODERS[decode](record)) == record


def test_true_is_no_amount() -> None:
    fields = msgpack.unpackb(GOOD[codec.decode_payment])
    fields[3] = True
    with pytest.raises(StoreCorruptError, match=r"Payment\.amount"):
        codec.decode_payment(msgpack.packb(fields))


def test_events_that_do_not_fit_are_bugs() -> None:
    story = Story().create()
    created = PaymentCreated("pay_1", NOW_MS, 1, "EUR", "t", False, None, None, {})
    with pytest.raises(AssertionError, match="created twice"):
        apply(story.payment, created)
    with pytest.raises(AssertionError, match="never created"):
        apply(None, ExpiryDeferred("pay_1", 5))
    with pytest.raises(AssertionError):
        apply(story.payment, ExpiryDeferred("pay_2", 5))
    with pytest.raises(AssertionError, match="no transition"):
        apply(story.approve().payment, OperationApproved("pay_1", "op_1", NOW_MS, "ref", None, None))
