"""Problems: every code has its answer, every 429 and 503 says when to come again."""

import orjson
import pytest

from cells.api.messages import RateState, Refusal, RefusalCode, Refused
from router import problems
from router.endpoints import ENDPOINTS, codes
from router.problems import KINDS, EdgeCode, Problem

ALL = [*RefusalCode, *EdgeCode]


def test_the_table_is_total() -> None:
    assert set(KINDS) == set(ALL)


def test_no_code_stands_for_two_things() -> None:
    assert len({code.value for code in ALL}) == len(ALL)


def test_every_code_is_answered_by_some_endpoint() -> None:
    told = {code for endpoint in ENDPOINTS for code in codes(endpoint)}
    # These two belong to no endpoint, signatures are acquirers'; operations are resolved by operators.
    alone = {EdgeCode.NOT_FOUND, EdgeCode.METHOD_NOT_ALLOWED, EdgeCode.SIGNATURE_INVALID}
    operators = {
        RefusalCode.OPERATION_NOT_FOUND,
        RefusalCode.OPERATION_FINAL,
        RefusalCode.OPERATION_STILL_PURSUED,
    }
    assert told == set(ALL) - alone - operators


@pytest.mark.parametrize("code", ALL)
def test_each_problem_has_what_rfc_9457_asks_for(code: RefusalCode | EdgeCode) -> None:
    response = problems.respond(Problem(code, "Because."), "req_1")
    body = orjson.loads(response.body)
    kind = KINDS[code]
    assert response.status_code == kind.status == body["status"]
    assert 400 <= kind.status <= 599
    assert response.headers["content-type"] == "application/problem+json"
    assert body["type"] == f"urn:bulkhead:problem:{code.value}"
    assert body["code"] == code.value
    assert body["title"] == kind.title
    assert body["detail"] == "Because."
    assert body["request_id"] == "req_1"
    assert ("retry-after" in response.headers) is (kind.status in (429, 503))


@pytest.mark.parametrize(
    ("ms", "seconds"), [(1, "1"), (999, "1"), (1_000, "1"), (1_001, "2"), (30_000, "30"), (0, "1")]
)
def test_retry_after_is_in_whole_seconds_rounded_up(ms: int, seconds: str) -> None:
    response = problems.respond(Problem(RefusalCode.RATE_LIMITED, "x", retry_after_ms=ms), "req_1")
    assert response.headers["retry-after"] == seconds
    assert orjson.loads(response.body)["retry_after_ms"] == ms


def test_a_cell_s_refusal_keeps_all_it_says() -> None:
    refusal = Refusal(RefusalCode.AMOUNT_TOO_LARGE, "Too much.", "/amount", None, {"left": 5})
    response = problems.respond(problems.of_refused(Refused(refusal, RateState(50, 100, 7, 1_860))), "req_1")
    body = orjson.loads(response.body)
    assert body["pointer"] == "/amount"
    assert body["context"] == {"left": 5}
    assert response.headers["ratelimit"] == '"default";r=7;t=2'
    assert response.headers["ratelimit-policy"] == '"default";q=100;w=2'


@pytest.mark.parametrize(
    ("state", "policy", "limit"),
    [
        (RateState(50, 100, 100, 0), '"default";q=100;w=2', '"default";r=100;t=0'),
        (RateState(50, 10, 0, 200), '"default";q=10;w=1', '"default";r=0;t=1'),
        (RateState(3, 10, -1, 3_334), '"default";q=10;w=4', '"default";r=0;t=4'),
    ],
)
def test_rate_headers(state: RateState, policy: str, limit: str) -> None:
    assert problems.rate_headers(state) == {"ratelimit-policy": policy, "ratelimit": limit}
