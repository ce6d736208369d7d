"""Past the bound a bad key is answered without a request made of it, as it would be with one; a good key is served."""

import json
from types import SimpleNamespace

import pytest

from cells.api.log_budget import LogBudget
from router import limits, problems
from router.directory import Directory
from router.guard import Guard
from router.keys import UnauthorizedError
from router.metrics import Metrics
from tests.unit.router.test_keys import ACME, PEPPER, key

ADDRESS = "192.0.2.1"
BAD = f"Bearer {key(secret='x')}".encode()
GOOD = f"Bearer {key()}".encode()
PATH = b"/v1/payments"


def guard(held: Directory | None = ACME) -> Guard:
    return Guard(SimpleNamespace(current=held), PEPPER, Metrics(), LogBudget())


def past_its_bound(held: Directory | None = ACME) -> Guard:
    made = guard(held)
    for _ in range(limits.FAILED_AUTHENTICATIONS_MAX):
        assert made.note(UnauthorizedError("unknown_key", "No."), "req_1", ADDRESS) is None
    return made


def asked(
    made: Guard, value: bytes | None = BAD, path: bytes = PATH, address: str = ADDRESS
) -> dict[str, object] | None:
    headers = [(b"host", b"x")] + ([] if value is None else [(b"authorization", value)])
    found = made.refusal(address, "POST", path, headers)
    if found is None:
        return None
    head, body = found
    assert b"content-length: %d\r\n" % len(body) in head
    return dict(json.loads(body))


def test_within_the_bound_nobody_is_turned_away_here() -> None:
    assert asked(guard()) is None
    assert asked(past_its_bound(), address="192.0.2.2") is None


@pytest.mark.parametrize("value", [BAD, None, b"Basic eA==", b"Bearer x", f"Bearer {key('nobody')}".encode()])
def test_past_it_whoever_has_no_good_key_is(value: bytes | None) -> None:
    told = asked(past_its_bound(), value)
    assert told is not None
    assert told["code"] == "too_many_failed_authentications"


def test_a_good_key_and_what_needs_none_are_served() -> None:
    made = past_its_bound()
    assert asked(made, GOOD) is None
    assert asked(made, path=b"/v1/acquirers/main/notifications") is None, "it is signed"
    assert asked(made, path=b"/readyz") is None
    assert made.refusal(ADDRESS, "POST", PATH, [(b"authorization", BAD)] * 2) is None, "its head can't be read"
    assert asked(past_its_bound(None)) is None, "who may come in is not known yet"


def test_it_says_the_same_as_a_request_would_have_been_told() -> None:
    made = past_its_bound()
    problem = made.note(UnauthorizedError("unknown_key", "No."), "req_1", ADDRESS)
    assert problem is not None
    response = problems.respond(problem, "req_1")
    found = made.refusal(ADDRESS, "POST", PATH, [(b"authorization", BAD)])
    assert found is not None
    head, body = found
    expected, told = json.loads(bytes(response.body)), json.loads(body)
    assert list(told) == list(expected)
    changing = {"request_id", "retry_after_ms"}
    assert {name: told[name] for name in told.keys() - changing} == {
        name: expected[name] for name in expected.keys() - changing
    }
    assert told["request_id"].startswith("req_")
    assert 0 < told["retry_after_ms"] <= limits.FAILED_AUTHENTICATIONS_WINDOW_MS
    lines = dict(line.split(": ") for line in head.decode().split("\r\n")[1:-1])
    assert lines["content-type"] == response.headers["content-type"]
    assert lines["request-id"] == told["request_id"]
    assert int(lines["retry-after"]) in {int(response.headers["retry-after"]), int(response.headers["retry-after"]) - 1}


async def test_each_is_counted() -> None:
    made, metrics = past_its_bound(), Metrics()
    made._metrics = metrics
    for _ in range(3):
        asked(made)
    text = (await metrics.render()).decode()
    assert 'bulkhead_router_requests_total{method="POST",route="turned_away",status="429"} 3.0' in text
    assert "bulkhead_router_failed_authentications_limited_total 3.0" in text
