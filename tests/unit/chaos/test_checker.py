"""The checker finds each kind of violation in a small history that is right but for that one thing."""

from dataclasses import replace
from typing import Any

import orjson
import pytest

from chaos import checker, limits
from chaos.checker import Fault, Judgement, Role, error_of, finding_json, judge_money
from chaos.history import Call, Outcome
from chaos.offenders import name_of

ACME = "acme"


class World:
    """A partner that paid 1000 and got 400 back, as its client, the books and the acquirer have it."""

    def __init__(self) -> None:
        self.purchase = operation("op_1", "purchase", 1_000)
        self.refund = operation("re_1", "refund", 400)
        self.payment = payment("pay_1", 1_000, "r-1", [self.purchase, self.refund])
        told = {**self.payment, "operations": [self.purchase]}
        body = {"amount": 1_000, "currency": "EUR", "payment_method": "tok_approve", "reference": "r-1"}
        self.create = call("create_payment", "/v1/payments", "k-1", body, 201, told, at_s=0)
        refund = {"id": "re_1", "object": "refund", "payment_id": "pay_1", "amount": 400, "status": "succeeded"}
        self.give_back = call("refund_payment", "/v1/payments/pay_1/refunds", "k-2", {"amount": 400}, 201, refund)
        self.calls = [self.create, self.give_back]
        self.book: list[dict[str, Any]] = [self.payment]
        self.record = [row("op_1", "purchase", 1_000), row("re_1", "refund", 400, original="op_1")]
        self.audit: dict[str, Any] = {
            "ok": True,
            "partners": [{"partner": ACME, "ok": True, "differences": [], "in_doubt": 0}],
            "extra_at_acquirer": [],
        }

    def judge(self) -> Judgement:
        judgement = judge_money(self.calls, {ACME: self.book}, self.record, self.audit)
        for finding in judgement.findings:
            assert finding.offenders or finding.fault is Fault.AUDIT, f"{finding} names no request"
            assert {one.partner for one in finding.offenders} <= {ACME}
        return judgement

    def faults(self) -> set[Fault]:
        return {finding.fault for finding in self.judge().findings}


def operation(operation_id: str, kind: str, amount: int, status: str = "succeeded") -> dict[str, Any]:
    return {"id": operation_id, "type": kind, "amount": amount, "status": status}


def payment(payment_id: str, amount: int, reference: str, operations: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": payment_id,
        "object": "payment",
        "amount": amount,
        "currency": "EUR",
        "payment_method": "tok_approve",
        "reference": reference,
        "status": "captured",
        "operations": operations,
    }


def row(key: str, kind: str, amount: int, *, original: str | None = None, charged: bool = True) -> dict[str, Any]:
    return {
        "key": key,
        "partner": ACME,
        "kind": kind,
        "amount": amount,
        "currency": "EUR",
        "original_key": original,
        "charged": charged,
    }


def call(
    step: str,
    path: str,
    key: str | None,
    body: dict[str, Any],
    status: int | None,
    answer: dict[str, Any],
    *,
    at_s: float = 1,
    took_s: float = 0.01,
    method: str = "POST",
) -> Call:
    return Call(
        run="test",
        partner=ACME,
        scenario="test",
        step=step,
        method=method,
        path=path,
        key=key,
        body=orjson.dumps(body),
        expected=(Outcome(201, "captured"), Outcome(201, "succeeded")),
        usual=True,
        due_s=at_s,
        sent_s=at_s,
        answered_s=None if status is None else at_s + took_s,
        status=status,
        answer=orjson.dumps(answer) if status is not None else b"",
        error="it broke" if status is None else None,
    )


@pytest.fixture
def world() -> World:
    return World()


def test_what_is_right_is_found_right(world: World) -> None:
    judgement = world.judge()
    assert judgement.verdict == "right"
    assert not judgement.findings
    assert not judgement.unknowns


def test_an_acknowledged_payment_that_is_gone_is_lost(world: World) -> None:
    world.book = []
    assert Fault.LOST in world.faults()


def test_an_acknowledged_refund_that_is_gone_is_lost(world: World) -> None:
    world.payment["operations"] = [world.purchase]
    assert Fault.LOST in world.faults()


def test_one_request_that_made_two_payments_is_found(world: World) -> None:
    world.book.append(payment("pay_2", 1_000, "r-1", []))
    assert Fault.TWICE_THERE in world.faults()


def test_one_payment_listed_twice_is_found(world: World) -> None:
    world.book.append(world.payment)
    assert Fault.TWICE_THERE in world.faults()


def test_a_payment_over_another_amount_than_asked_is_found(world: World) -> None:
    world.payment["amount"] = 999
    assert world.faults() == {Fault.ALTERED}


def test_a_success_that_became_a_failure_is_found(world: World) -> None:
    world.payment["operations"] = [{**world.purchase, "status": "failed"}, world.refund]
    assert {Fault.REVERSED, Fault.CHARGED_UNBOOKED} == world.faults()


def test_an_outcome_that_was_open_may_become_final(world: World) -> None:
    told = {**world.payment, "status": "processing", "operations": [{**world.purchase, "status": "pending"}]}
    world.create.status, world.create.answer = 202, orjson.dumps(told)
    assert world.judge().verdict == "right"


def test_a_replay_that_differs_by_one_byte_is_found(world: World) -> None:
    repeat = replace(world.create, sent_s=5, due_s=5, answered_s=5.1, replayed=True, repeat=1)
    world.calls.append(repeat)
    assert world.judge().verdict == "right"
    repeat.answer += b" "
    assert world.faults() == {Fault.REPLAY_DIFFERS}


def test_a_replay_that_is_not_marked_as_one_is_found(world: World) -> None:
    world.calls.append(replace(world.create, sent_s=5, due_s=5, answered_s=5.1, repeat=1))
    assert world.faults() == {Fault.REPLAY_DIFFERS}


def test_another_request_under_a_used_key_is_found(world: World) -> None:
    other = replace(world.create, body=orjson.dumps({**world.create.request(), "amount": 1_001}), sent_s=5)
    other.answered_s = 5.1
    world.calls.append(other)
    assert Fault.KEY_REUSED in world.faults()


@pytest.mark.parametrize(("status", "code"), [(429, "rate_limited"), (503, "acquirer_unavailable")])
def test_a_refused_request_that_made_a_payment_is_found(world: World, status: int, code: str) -> None:
    world.create.status, world.create.answer = status, orjson.dumps({"code": code})
    world.calls, world.record = [world.create], world.record[:1]
    world.payment["operations"] = [world.purchase]
    assert world.faults() == {Fault.REFUSED_YET_DONE}


def test_a_second_charge_over_the_amount_of_one_request_is_found(world: World) -> None:
    world.record.append(row("op_2", "purchase", 1_000))
    assert {Fault.CHARGED_TWICE, Fault.CHARGED_UNBOOKED} == world.faults()


def test_a_second_charge_is_found_even_where_the_books_hide_it(world: World) -> None:
    world.record.append(row("op_2", "purchase", 1_000))
    world.payment["operations"].append(operation("op_2", "purchase", 1_000))
    assert world.faults() == {Fault.CHARGED_TWICE}


def test_a_repeat_does_not_entitle_to_a_second_charge(world: World) -> None:
    world.calls.append(replace(world.create, sent_s=5, answered_s=5.1, replayed=True, repeat=1))
    world.record.append(row("op_2", "purchase", 1_000))
    assert Fault.CHARGED_TWICE in world.faults()


def test_a_second_refund_for_one_request_is_found(world: World) -> None:
    world.record.append(row("re_2", "refund", 400, original="op_1"))
    assert Fault.CHARGED_TWICE in world.faults()


def test_more_given_back_than_paid_is_found(world: World) -> None:
    world.record[1]["amount"] = 1_001
    assert Fault.CHARGED_TOO_MUCH in world.faults()


def test_a_charge_that_nobody_asked_for_is_found(world: World) -> None:
    world.record.append(row("op_9", "purchase", 77))
    assert Fault.CHARGED_UNASKED in world.faults()


def test_a_success_that_the_acquirer_does_not_know_is_found(world: World) -> None:
    world.record[0]["charged"] = False
    assert Fault.NOT_CHARGED in world.faults()


def test_a_difference_in_the_audit_is_found(world: World) -> None:
    world.audit["partners"][0]["differences"] = ["balance EUR: 600 in the journal, 601 kept"]
    world.audit["ok"] = False
    assert world.faults() == {Fault.AUDIT}


def test_an_audits_difference_has_the_requests_of_the_payment_or_operation_that_it_names(world: World) -> None:
    world.audit["partners"][0]["differences"] = [
        "payment pay_1: stored is x, the journal gives y",
        "re_1: settled twice",
        "balances: stored 1, the journal gives 2",
    ]
    world.audit["ok"] = False
    named = [[one.what for one in finding.offenders] for finding in world.judge().findings]
    assert named == [[name_of(world.create), name_of(world.give_back)]] * 2 + [[]]


def test_a_finding_names_its_first_requests_and_says_how_many_there_are(world: World) -> None:
    world.record += [row(f"op_{number}", "purchase", 1_000) for number in range(10, 40)]
    (finding,) = [one for one in world.judge().findings if one.fault is Fault.CHARGED_TWICE]
    assert len(finding.offenders) == limits.FINDING_OFFENDERS_MAX
    assert finding.offenders_count == 1 + 31, "the one that was asked for, and all charges"
    assert str(finding).endswith("; POST /v1/payments under key k-1 (test create_payment) and 31 more")
    told = finding_json(finding, begin_s=-2.0)
    assert told["requests"][0] == {"at_s": 2.0, "partner": ACME, "what": name_of(world.create)}
    assert told["requests"][1] == {"at_s": None, "partner": ACME, "what": "purchase op_1 at the acquirer"}
    assert told["requests_count"] == 32


def test_an_audit_that_is_not_ok_without_a_reason_is_found(world: World) -> None:
    world.audit["ok"] = False
    assert world.faults() == {Fault.AUDIT}


def test_an_operation_that_is_still_open_makes_the_verdict_unknown(world: World) -> None:
    world.calls = [world.create]
    world.payment["operations"] = [{**world.purchase, "status": "unknown"}]
    world.create.answer = orjson.dumps({**world.payment, "status": "processing"})
    world.record = []
    judgement = world.judge()
    assert judgement.verdict == "unknown"


def challenged(world: World) -> None:
    """Let the payment wait for its customer."""
    world.payment["operations"] = [{**world.purchase, "status": "requires_action"}]
    world.create.answer = orjson.dumps({**world.payment, "status": "requires_action"})
    world.calls = [world.create]
    world.record = [{**world.record[0], "charged": False}]


def test_a_payment_that_waits_for_its_customer_may_rest_but_not_be_charged(world: World) -> None:
    challenged(world)
    assert world.judge().verdict == "right"
    world.record[0]["charged"] = True
    assert world.faults() == {Fault.CHARGED_UNBOOKED}


def test_a_confirmation_entitles_to_no_second_charge(world: World) -> None:
    challenged(world)
    told = {**world.payment, "operations": [world.purchase]}
    world.payment["operations"] = [world.purchase]
    world.record[0]["charged"] = True
    world.calls.append(call("confirm_payment", "/v1/payments/pay_1/confirm", "k-3", {}, 200, told))
    assert world.judge().verdict == "right"
    world.record.append(row("op_2", "purchase", 1_000))
    assert Fault.CHARGED_TWICE in world.faults()


@pytest.mark.parametrize("there", [True, False])
def test_a_request_without_any_answer_makes_the_verdict_unknown_whether_done_or_not(
    world: World, *, there: bool
) -> None:
    lost = call("create_payment", "/v1/payments", "k-9", {**world.create.request(), "amount": 5}, None, {})
    lost.body = orjson.dumps({**lost.request(), "reference": "r-9"})
    world.calls.append(lost)
    if there:
        world.book.append(payment("pay_9", 5, "r-9", [operation("op_9", "purchase", 5)]))
        world.record.append(row("op_9", "purchase", 5))
    judgement = world.judge()
    assert judgement.verdict == "unknown"
    assert not judgement.findings


# Single answers.


def problem(status: int, code: str) -> Call:
    return call("create_payment", "/v1/payments", "k", {}, status, {"code": code})


def test_no_answer_and_a_late_one_are_errors() -> None:
    assert error_of(call("create_payment", "/v1/payments", "k", {}, None, {})) == "no answer (it broke)"
    late = World().create
    late.answered_s = late.due_s + limits.CLIENT_DEADLINE_MS / 1_000 + 0.1
    assert (error_of(late) or "").startswith("late")


def test_the_expected_answer_is_no_error() -> None:
    assert error_of(World().create) is None


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (502, "bad_gateway", "not documented"),
        (500, "internal_error", "not due"),
        (503, "partner_unavailable", "not due"),
        (429, "rate_limited", "not due"),
        (404, "payment_not_found", "not documented"),
        (201, "failed", "not due"),
    ],
)
def test_what_a_bystander_should_not_hear_is_an_error(status: int, code: str, said: str) -> None:
    heard = problem(status, code)
    if status == 201:
        heard.answer = orjson.dumps({"object": "payment", "status": code})
    assert (error_of(heard, Role.BYSTANDER, in_trouble=True) or "").startswith(said)
    assert error_of(heard, Role.KILLED, in_trouble=True) is not None


def test_only_who_floods_may_be_told_to_wait_and_only_while_it_floods() -> None:
    limited = problem(429, "rate_limited")
    assert error_of(limited, Role.FLOODING, in_trouble=True) is None
    assert error_of(limited, Role.FLOODING) is not None
    assert error_of(limited, Role.HANGING, in_trouble=True) is not None


def test_only_whose_acquirer_hangs_may_hear_of_it() -> None:
    unavailable = problem(503, "acquirer_unavailable")
    assert error_of(unavailable, Role.HANGING, in_trouble=True) is None
    assert error_of(unavailable, Role.HANGING) is not None
    assert error_of(unavailable, Role.KILLED, in_trouble=True) is not None


def test_an_answer_that_is_no_json_is_not_documented() -> None:
    garbled = World().create
    garbled.answer = b"<html>"
    assert (error_of(garbled) or "").startswith("not documented")


# Latency.


def test_latency_is_by_nearest_rank_of_usual_answered_calls() -> None:
    calls = [call("x", "/", None, {}, 201, {}, took_s=index / 1_000) for index in range(1, 101)]
    slow = call("x", "/", None, {}, 201, {}, took_s=9)
    slow.usual = False
    found = checker.latency([*calls, slow, call("x", "/", None, {}, None, {})])
    assert found.count == 100
    assert found.p50_ms == pytest.approx(50)
    assert found.p99_ms == pytest.approx(99)
    assert found.max_ms == pytest.approx(100)


def test_latency_counts_from_when_a_call_was_due_not_from_when_it_was_sent() -> None:
    late = World().create
    late.due_s, late.sent_s, late.answered_s = 1, 2, 2.01
    assert late.latency_ms == pytest.approx(1_010)


def lasting(p99_ms: float, count: int = 100) -> checker.Latency:
    return checker.Latency(count, p99_ms / 2, p99_ms, p99_ms)


@pytest.mark.parametrize(
    ("calm_ms", "trouble_ms", "within"),
    [(10, 160, True), (10, 161, False), (100, 300, True), (100, 301, False)],
)
def test_the_calm_range_is_three_times_calm_or_150_ms_above_it(calm_ms: float, trouble_ms: float, within: bool) -> None:
    assert checker.within_calm_range(lasting(calm_ms), lasting(trouble_ms)) is within


def test_too_few_calls_tell_nothing() -> None:
    few = lasting(10, limits.LATENCIES_MIN - 1)
    assert checker.within_calm_range(few, lasting(10)) is None
    assert checker.within_calm_range(lasting(10), few) is None


def test_the_tail_of_few_calls_is_their_p95_and_of_many_their_p99() -> None:
    assert checker.Latency(100, 10, 400, 400, 90).tail_ms == 90
    assert checker.Latency(limits.LATENCIES_FOR_P99_MIN, 10, 400, 400, 90).tail_ms == 400
    assert checker.within_calm_range(lasting(20), checker.Latency(100, 10, 400, 400, 90)) is True
    assert checker.within_calm_range(lasting(20), checker.Latency(100, 10, 400, 400, 390)) is False


def whole(status: str, authorized: int, captured: int, refunded: int, *operations: dict[str, Any]) -> dict[str, Any]:
    """Give a payment over 1000 as the API shows it."""
    amounts = {"amount_authorized": authorized, "amount_captured": captured, "amount_refunded": refunded}
    return {**payment("pay_1", 1_000, "r-1", list(operations)), "status": status, **amounts}


PURCHASE = operation("op_1", "purchase", 1_000)
AUTHORIZATION = operation("op_1", "authorization", 1_000)
CAPTURE = operation("op_2", "capture", 600)
REFUND = operation("re_1", "refund", 600)


@pytest.mark.parametrize(
    "possible",
    [
        whole("captured", 1_000, 1_000, 0, PURCHASE),
        whole("processing", 0, 0, 0, {**PURCHASE, "status": "unknown"}),
        whole("failed", 0, 0, 0, {**PURCHASE, "status": "failed"}),
        whole("authorized", 1_000, 0, 0, AUTHORIZATION, {**CAPTURE, "status": "pending"}),
        whole("partially_captured", 1_000, 600, 0, AUTHORIZATION, CAPTURE),
        whole("partially_refunded", 1_000, 600, 600, AUTHORIZATION, CAPTURE, REFUND),
        whole("refunded", 1_000, 600, 600, AUTHORIZATION, CAPTURE, operation("op_3", "void", 400), REFUND),
        whole("canceled", 1_000, 0, 0, AUTHORIZATION, operation("op_3", "void", 1_000)),
    ],
)
def test_a_state_that_follows_from_its_operations_is_right(possible: dict[str, Any]) -> None:
    judgement = Judgement()
    checker._judge_state(judgement, ACME, possible, [])
    assert judgement.findings == []


@pytest.mark.parametrize(
    "impossible",
    [
        whole("captured", 1_000, 1_000, 0, {**PURCHASE, "status": "unknown"}),
        whole("failed", 1_000, 1_000, 0, PURCHASE),
        whole("captured", 1_000, 600, 0, AUTHORIZATION, CAPTURE),
        whole("authorized", 1_000, 600, 0, AUTHORIZATION, CAPTURE),
        whole("partially_captured", 1_000, 1_000, 0, AUTHORIZATION, CAPTURE),
        whole("captured", 1_000, 600, 600, AUTHORIZATION, CAPTURE, REFUND),
        whole("partially_refunded", 1_000, 600, 1_200, AUTHORIZATION, CAPTURE, REFUND, {**REFUND, "id": "re_2"}),
        whole("partially_captured", 1_000, 1_200, 0, AUTHORIZATION, CAPTURE, {**CAPTURE, "id": "op_3"}),
    ],
)
def test_a_state_that_does_not_follow_is_found(world: World, impossible: dict[str, Any]) -> None:
    world.book = [impossible]
    assert Fault.IMPOSSIBLE in world.faults()


@pytest.mark.parametrize(
    ("ends", "is_wrong"),
    [
        (["outcome_unknown", "command_quarantined"], False),
        (["outcome_unknown", "outcome_unknown"], True),
        ([], True),  # no answer at all
    ],
)
def test_a_command_that_orders_a_fault_is_to_be_set_aside_at_last(ends: list[str], is_wrong: bool) -> None:
    attempts = [
        call("create_payment", "/v1/payments", "k-ordered", {"amount": 7}, 503, {"code": word}) for word in ends
    ] or [replace(World().create, key="k-ordered", status=None, answered_s=None, answer=b"")]
    judgement = Judgement(unknowns=["acme: a payment under k-ordered was never answered", "another"])
    checker.judge_ordered(judgement, attempts)
    assert [finding.fault for finding in judgement.findings] == [Fault.NEVER_SET_ASIDE] * is_wrong
    assert all("k-ordered" in one.what for finding in judgement.findings for one in finding.offenders)
    assert judgement.unknowns == ["another"]


def test_a_command_that_orders_a_fault_may_be_done() -> None:
    judgement = Judgement()
    checker.judge_ordered(judgement, [World().create])
    assert judgement.findings == []
