"""Requests: what is taken, what is not, and where it says so. Amounts are integers and nothing that looks like one."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from router import models
from router.limits import actor_limits as bounds
from router.models import CaptureRequest, EventsQuery, PaymentRequest, PaymentsQuery, RefundRequest, VoidRequest

PAYMENT: dict[str, Any] = {"amount": 1250, "currency": "EUR", "payment_method": "tok_approve"}
PAYMENT_ID = "pay_01JD8Z6V3H4K5M6N7P8Q9R0S1T"


def places(model: Any, fields: dict[str, Any]) -> list[tuple[int | str, ...]]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(fields)
    return [error["loc"] for error in caught.value.errors()]


def test_the_least_a_payment_needs() -> None:
    assert PaymentRequest.model_validate(PAYMENT).model_dump() == {
        **PAYMENT,
        "capture_method": "automatic",
        "reference": None,
        "description": None,
        "metadata": {},
    }


def test_all_a_payment_may_have() -> None:
    fields = {
        **PAYMENT,
        "amount": bounds.AMOUNT_MINOR_UNITS_MAX,
        "payment_method": "tok_" + "a" * (bounds.PAYMENT_METHOD_CHARACTERS_MAX - 4),
        "capture_method": "manual",
        "reference": "r" * bounds.REFERENCE_CHARACTERS_MAX,
        "description": "Zeile 1\nZeile 2\t\U0001f4a1",
        "metadata": {
            f"{n:02d}" + "k" * (bounds.METADATA_KEY_CHARACTERS_MAX - 2): "v" * bounds.METADATA_VALUE_CHARACTERS_MAX
            for n in range(bounds.METADATA_ENTRIES_MAX)
        },
    }
    assert PaymentRequest.model_validate(fields).model_dump() == fields


@pytest.mark.parametrize(
    "amount",
    [True, False, 1.0, 12.5, "1250", None, -1, bounds.AMOUNT_MINOR_UNITS_MAX + 1, 1e20, [1], {"value": 1}, "١٢"],
)
def test_an_amount_is_a_whole_json_number(amount: Any) -> None:
    assert places(PaymentRequest, {**PAYMENT, "amount": amount}) == [("amount",)]
    if amount is not None:
        assert places(CaptureRequest, {"amount": amount}) == [("amount",)]
        assert places(RefundRequest, {"amount": amount}) == [("amount",)]


def test_nothing_can_be_captured_or_refunded_by_an_amount_of_0() -> None:
    assert places(CaptureRequest, {"amount": 0}) == [("amount",)]
    assert places(RefundRequest, {"amount": 0}) == [("amount",)]
    assert PaymentRequest.model_validate({**PAYMENT, "amount": 0}).amount == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("currency", "eur"),
        ("currency", "EURO"),
        ("currency", "EUR\n"),
        ("currency", 978),
        ("payment_method", "card"),
        ("payment_method", "tok_"),
        ("payment_method", "tok_a b"),
        ("payment_method", "tok_" + "a" * bounds.PAYMENT_METHOD_CHARACTERS_MAX),
        ("capture_method", "later"),
        ("capture_method", None),
        ("reference", "a\nb"),
        ("reference", "\x00"),
        ("reference", "\x1b[2J"),
        ("reference", "r" * (bounds.REFERENCE_CHARACTERS_MAX + 1)),
        ("reference", 5),
        ("description", "a\x00b"),
        ("description", "d" * (bounds.DESCRIPTION_CHARACTERS_MAX + 1)),
        ("metadata", None),
        ("metadata", []),
        ("metadata", {f"k{n}": "" for n in range(bounds.METADATA_ENTRIES_MAX + 1)}),
    ],
)
def test_each_field_has_its_form(field: str, value: Any) -> None:
    assert places(PaymentRequest, {**PAYMENT, field: value}) == [(field,)]


@pytest.mark.parametrize(
    "metadata",
    [{"": "x"}, {"k\n": "x"}, {"k" * (bounds.METADATA_KEY_CHARACTERS_MAX + 1): "x"}, {"k": 1}, {"k": {}}, {"k": None}],
)
def test_metadata_maps_short_strings_to_strings(metadata: dict[str, Any]) -> None:
    assert [place[0] for place in places(PaymentRequest, {**PAYMENT, "metadata": metadata})] == ["metadata"]


@pytest.mark.parametrize("model", [PaymentRequest, CaptureRequest, VoidRequest, RefundRequest])
def test_a_field_that_is_not_known_is_refused(model: Any) -> None:
    assert ("colour",) in places(model, {"colour": "blue"})


def test_an_empty_body_is_whole_for_the_three() -> None:
    assert CaptureRequest.model_validate({}).model_dump() == {"amount": None}
    assert VoidRequest.model_validate({}).model_dump() == {}
    assert RefundRequest.model_validate({}).model_dump() == {"amount": None, "reason": None}


def test_a_page_of_payments() -> None:
    query = PaymentsQuery.model_validate(
        {
            "limit": "100",
            "starting_after": PAYMENT_ID,
            "status": "captured",
            "reference": "order 5",
            "created_from": "2026-11-22T17:00:00Z",
            "created_before": "2026-11-22T18:00:00.5+01:00",
        }
    )
    assert query.model_dump() == {
        "limit": 100,
        "starting_after": PAYMENT_ID,
        "status": "captured",
        "reference": "order 5",
        "created_from_ms": 1_795_366_800_000,
        "created_before_ms": 1_795_366_800_500,
    }
    assert type(query.model_dump()["status"]) is str
    assert PaymentsQuery.model_validate({}).limit == bounds.PAGE_ROWS_DEFAULT


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("limit", value) for value in ("0", "101", "-1", "1.0", " 5", "+5", "1_0", "", "ten", "٣", "9" * 30)),
        ("starting_after", "pay_1"),
        ("starting_after", PAYMENT_ID.lower()),
        ("starting_after", f"{PAYMENT_ID}\n"),
        ("status", "Captured"),
        ("reference", "a\x00"),
        *(
            (name, value)
            for name in ("created_from", "created_before")
            for value in (
                "2026-11-22",
                "20261122T170000Z",
                "2026-11-22T17:00:00",
                "2026-11-22T17:00:00 01:00",  # a + that was not written as %2B
                "2026-02-30T00:00:00Z",
                "2026-11-22T25:00:00Z",
                "2026-11-22T17:00:60Z",
                "9999-12-31T23:59:59+99:99",
                "2026-W47-7",
                "now",
                "1795366800",
            )
        ),
    ],
)
def test_query_parameters_have_their_form(name: str, value: str) -> None:
    assert places(PaymentsQuery, {name: value}) == [(name,)]


def test_the_wire_s_names_are_no_query_parameters() -> None:
    assert places(PaymentsQuery, {"created_from_ms": "1"}) == [("created_from_ms",)]


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("0001-01-01T00:00:00Z", 0),  # nothing is older than 1970
        ("1969-12-31T23:59:59.9Z", 0),
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t00:00:00z", 0),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1970-01-01T00:00:00.001Z", 1),
        ("1970-01-01T00:00:00.0010Z", 1),
        ("1970-01-01T00:00:00.0000001Z", 1),  # rounded up: nothing of ms 0 is at or after it
        ("1970-01-01T00:00:00.999999999Z", 1_000),
    ],
)
def test_times_become_milliseconds(text: str, ms: int) -> None:
    assert PaymentsQuery.model_validate({"created_from": text}).created_from_ms == ms


@given(st.datetimes(min_value=models._EPOCH.replace(tzinfo=None)))
def test_every_time_since_1970_can_be_asked_for(moment: Any) -> None:
    text = f"{moment.isoformat()}Z"
    found = PaymentsQuery.model_validate({"created_from": text}).created_from_ms
    exact = (moment - models._EPOCH.replace(tzinfo=None)).total_seconds() * 1000
    assert found is not None
    assert abs(found - exact) <= 1


def test_a_page_of_events() -> None:
    query = EventsQuery.model_validate({"starting_after": "evt_" + "0" * 20, "type": "payment.captured"})
    assert query.model_dump() == {"limit": 10, "starting_after": "evt_" + "0" * 20, "type": "payment.captured"}
    assert places(EventsQuery, {"type": "Payment"}) == [("type",)]
    assert places(EventsQuery, {"status": "captured"}) == [("status",)]
