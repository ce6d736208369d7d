"""The checker of linearizability takes what a right gateway shows, however calls overlap, and finds planted faults."""

import random
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.history import Call
from chaos.linearizability import judge
from chaos.offenders import name_of

PAY = "/v1/payments/pay_1"


def operation(operation_id: str, kind: str, amount: int, status: str = "succeeded") -> dict[str, Any]:
    return {"id": operation_id, "type": kind, "amount": amount, "status": status}


def payment(*operations: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"object": "payment", "id": "pay_1", "reference": "r", "operations": list(operations), **more}


def refund(operation_id: str, amount: int, status: str = "succeeded") -> dict[str, Any]:
    return {"object": "refund", "id": operation_id, "payment_id": "pay_1", "amount": amount, "status": status}


def call(step: str, sent_s: float, answered_s: float | None, answer: dict[str, Any] | None, **more: Any) -> Call:
    paths = {"create_payment": "/v1/payments", "capture_payment": f"{PAY}/capture", "void_payment": f"{PAY}/void"}
    paths |= {"refund_payment": f"{PAY}/refunds", "confirm_payment": f"{PAY}/confirm"}
    body = {"reference": "r"} if step == "create_payment" else {}
    body |= {"amount": more["amount"]} if "amount" in more else {}
    is_write = step in paths
    return Call(
        run="t",
        partner="acme",
        scenario="s",
        step=step,
        method="POST" if is_write else "GET",
        path=paths.get(step, PAY),
        key=more.get("key", f"{step}-{sent_s}") if is_write else None,
        body=orjson.dumps(body) if body else b"",
        expected=(),
        usual=True,
        due_s=sent_s,
        sent_s=sent_s,
        answered_s=answered_s,
        status=None if answered_s is None else more.get("status", 200),
        answer=b"" if answer is None else orjson.dumps(answer),
        error="lost" if answered_s is None else None,
    )


AUTHORIZED = operation("op_1", "authorization", 100)
PAID = operation("op_1", "purchase", 100)
CREATE = call("create_payment", 0, 1, payment(AUTHORIZED))
CREATE_PAID = call("create_payment", 0, 1, payment(PAID))


def capture(operation_id: str, amount: int, status: str = "succeeded") -> dict[str, Any]:
    return operation(operation_id, "capture", amount, status)


RIGHT: dict[str, list[Call]] = {
    "one after the other": [
        CREATE,
        call("capture_payment", 2, 3, payment(AUTHORIZED, capture("op_2", 100))),
        call("get_payment", 4, 5, payment(AUTHORIZED, capture("op_2", 100))),
    ],
    "a read beside a capture sees either": [
        CREATE,
        call("capture_payment", 2, 6, payment(AUTHORIZED, capture("op_2", 100))),
        call("get_payment", 3, 4, payment(AUTHORIZED, capture("op_2", 100, "pending"))),
        call("get_payment", 2.5, 5, payment(AUTHORIZED)),
    ],
    "two captures of the same amount, one without an answer": [
        CREATE,
        call("capture_payment", 2, None, None, amount=50),
        call("capture_payment", 2.1, 9, payment(AUTHORIZED, capture("a", 50), capture("b", 50)), amount=50),
        call("get_payment", 10, 11, payment(AUTHORIZED, capture("a", 50), capture("b", 50))),
    ],
    "a lost create is found by its reference": [
        call("create_payment", 0, None, None),
        call("list_payments", 5, 6, {"object": "list", "data": [payment(PAID)]}),
    ],
    "unknown, then settled": [
        call("create_payment", 0, 1, payment(operation("op_1", "purchase", 100, "unknown")), status=202),
        call("get_payment", 2, 3, payment(operation("op_1", "purchase", 100, "unknown"))),
        call("get_payment", 4, 5, payment(operation("op_1", "purchase", 100, "failed"))),
    ],
    "a repeat's answer is of the first time": [
        call("create_payment", 0, 1, payment(operation("op_1", "purchase", 100, "pending")), status=202, key="k"),
        call("get_payment", 2, 3, payment(PAID)),
        call("create_payment", 4, 5, payment(operation("op_1", "purchase", 100, "pending")), status=202, key="k"),
    ],
    "a challenge is voided without an operation": [
        call("create_payment", 0, 1, payment(operation("op_1", "purchase", 100, "requires_action"))),
        call("void_payment", 2, 3, payment(operation("op_1", "purchase", 100, "failed"))),
    ],
    "the gateway voids what has come to its end": [
        CREATE,
        call("get_payment", 4, 5, payment(AUTHORIZED, {**operation("v", "void", 100), "reason": "expired"})),
    ],
    "a payment of before the history": [call("get_payment", 4, 5, payment(PAID))],
}

WRONG: dict[str, list[Call]] = {
    "a lost update": [
        CREATE,
        call("capture_payment", 2, 3, payment(AUTHORIZED, capture("op_2", 60)), amount=60),
        call("capture_payment", 4, 5, payment(AUTHORIZED, capture("op_3", 40)), amount=40),
    ],
    "a stale read after an acknowledged change": [
        CREATE,
        call("capture_payment", 2, 3, payment(AUTHORIZED, capture("op_2", 100))),
        call("get_payment", 4, 5, payment(AUTHORIZED)),
    ],
    "a stale read after another read": [
        CREATE,
        call("capture_payment", 2, 9, payment(AUTHORIZED, capture("op_2", 100))),
        call("get_payment", 3, 4, payment(AUTHORIZED, capture("op_2", 100))),
        call("get_payment", 5, 6, payment(AUTHORIZED, capture("op_2", 100, "pending"))),
    ],
    "one capture asked for, two made": [
        CREATE,
        call("capture_payment", 2, 3, payment(AUTHORIZED, capture("op_2", 50)), amount=50),
        call("get_payment", 4, 5, payment(AUTHORIZED, capture("op_2", 50), capture("op_3", 50))),
    ],
    "more captured than authorized": [
        CREATE,
        call("capture_payment", 2, 9, payment(AUTHORIZED, capture("a", 100)), amount=100),
        call("capture_payment", 2.1, 9, payment(AUTHORIZED, capture("a", 100), capture("b", 100)), amount=100),
    ],
    "a success becomes a failure": [
        CREATE_PAID,
        call("get_payment", 2, 3, payment(operation("op_1", "purchase", 100, "failed"))),
    ],
    "a success becomes unknown": [
        CREATE_PAID,
        call("get_payment", 2, 3, payment(operation("op_1", "purchase", 100, "unknown"))),
    ],
    "a failure is resurrected": [
        call("create_payment", 0, 1, payment(operation("op_1", "purchase", 100, "failed"))),
        call("get_payment", 2, 3, payment(PAID)),
    ],
    "a voided payment is captured": [
        CREATE,
        call("void_payment", 2, 3, payment(AUTHORIZED, operation("v", "void", 100))),
        call("capture_payment", 4, 5, payment(AUTHORIZED, operation("v", "void", 100), capture("c", 100))),
    ],
    "an effect before its cause": [
        CREATE,
        call("get_payment", 2, 3, payment(AUTHORIZED, capture("op_2", 100))),
        call("capture_payment", 4, 5, payment(AUTHORIZED, capture("op_2", 100))),
    ],
    "an acknowledged capture is of another amount": [
        CREATE,
        call("capture_payment", 2, 3, payment(AUTHORIZED, capture("op_2", 30)), amount=60),
    ],
    "a refund that others forget": [
        CREATE_PAID,
        call("refund_payment", 2, 3, refund("re_1", 40), amount=40),
        call("get_payment", 4, 5, payment(PAID)),
    ],
    "more refunded than captured": [
        CREATE_PAID,
        call("refund_payment", 2, 9, refund("re_1", 60), amount=60),
        call("refund_payment", 2.1, 9, refund("re_2", 60), amount=60),
        call("get_payment", 10, 11, payment(PAID, operation("re_1", "refund", 60), operation("re_2", "refund", 60))),
    ],
    "amounts that its operations don't make": [call("create_payment", 0, 1, payment(PAID, amount_captured=99))],
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_taken(name: str) -> None:
    judgement = judge(RIGHT[name])
    assert judgement.verdict == "right", judgement.findings
    assert judgement.payments == 1


@pytest.mark.parametrize("name", WRONG)
def test_planted_faults_are_found(name: str) -> None:
    judgement = judge(WRONG[name])
    assert judgement.verdict == "wrong", name
    (found,) = judgement.findings
    assert "pay_1" in str(found)
    named = [one.what for one in found.offenders]
    assert {one.partner for one in found.offenders} == {"acme"}
    assert set(named) >= {name_of(one) for one in WRONG[name] if one.key is not None}, "all writes to the payment"
    assert len(set(named)) == len(named)


def test_past_its_bound_it_says_unknown() -> None:
    assert judge(RIGHT["one after the other"], steps_max=1).verdict == "unknown"


class Model:
    """A right gateway with one payment: calls begin, take effect at one moment and are answered, some never."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.operations = [operation("op_0", "authorization", 100)]
        self.moments: list[tuple[float, Callable[[], None]]] = []
        self.calls: list[Call] = [call("create_payment", 0, 1, payment(*self.operations), status=201)]

    def room(self) -> int:
        return 100 - sum(one["amount"] for one in self.operations[1:] if one["status"] != "failed")

    def capture(self) -> None:
        sent_s = self.dice.uniform(1, 10)
        begun_s = sent_s + self.dice.uniform(0, 2)
        settled_s = begun_s + self.dice.uniform(0, 2)
        amount = self.dice.choice((20, 20, 30))
        made = call("capture_payment", sent_s, None, None, amount=amount, key=f"k{len(self.calls)}")
        self.calls.append(made)
        own = capture(f"op_{len(self.calls)}", amount, "pending")

        def begin() -> None:
            if amount <= self.room():
                self.operations.append(own)

        def settle() -> None:
            if own in self.operations:
                own["status"] = self.dice.choice(("succeeded", "succeeded", "failed"))
                made.answer = orjson.dumps(payment(*self.operations))
                made.status = 200
            else:
                made.status, made.answer = 422, b'{"code":"amount_too_large"}'
            made.answered_s, made.error = settled_s + self.dice.uniform(0, 1), None
            if self.dice.random() < 0.3:
                made.answered_s, made.status, made.answer, made.error = None, None, b"", "lost"

        self.moments += [(begun_s, begin), (settled_s, settle)]

    def read(self) -> None:
        sent_s = self.dice.uniform(1, 14)
        at_s = sent_s + self.dice.uniform(0, 1)
        made = call("get_payment", sent_s, at_s + self.dice.uniform(0, 1), None)
        self.calls.append(made)

        def look() -> None:
            made.answer = orjson.dumps(payment(*self.operations))

        self.moments.append((at_s, look))

    def run(self) -> list[Call]:
        for _ in range(self.dice.randint(1, 5)):
            self.capture()
        for _ in range(self.dice.randint(0, 6)):
            self.read()
        for _, happen in sorted(self.moments, key=lambda moment: moment[0]):
            happen()
        return self.calls


@settings(max_examples=200, deadline=None)
@given(st.integers(min_value=0))
def test_histories_of_a_right_gateway_are_taken(seed: int) -> None:
    calls = Model(random.Random(seed)).run()
    judgement = judge(calls)
    assert judgement.verdict == "right", (judgement.findings, judgement.unknowns)


@settings(max_examples=100, deadline=None)
@given(st.integers(min_value=0), st.sampled_from(["forgets", "turns", "doubles"]))
def test_one_wrong_read_after_it_all_is_found(seed: int, fault: str) -> None:
    model = Model(random.Random(seed))
    calls = model.run()
    shown = [dict(one) for one in model.operations]
    calls.append(call("get_payment", 100, 101, payment(*shown)))
    assert judge(calls).verdict == "right"
    first = {**shown[0], "status": "failed"}
    told = {
        "forgets": payment(operation("op_other", "authorization", 100)),
        "turns": payment(first, *shown[1:]),
        "doubles": payment(*shown, capture("op_unasked", 1)),
    }[fault]
    calls.append(call("get_payment", 102, 103, told))
    assert judge(calls).verdict == "wrong"
