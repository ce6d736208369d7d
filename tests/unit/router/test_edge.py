"""The edge: every answer has its request's id, a bug takes its own request only, and no log repeats what was sent."""

import asyncio
import re

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from structlog.testing import capture_logs

from cells.api.log_budget import LogBudget
from listeners import limits
from router.edge import KEY, BareRoute, Edge
from router.metrics import Metrics

SECRET = "4242424242424242"


def build() -> Edge:
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    app.router.route_class = BareRoute

    async def fine(request: Request) -> Response:
        return Response(request.scope[KEY].request_id)

    async def broken(request: Request) -> Response:
        held = await request.body()
        raise ValueError(f"unexpected {held!r} of {request.headers['authorization']}")

    async def failing(request: Request) -> Response:
        return Response(status_code=503)

    async def ending(request: Request) -> Response:
        raise asyncio.CancelledError

    app.add_api_route("/v1/fine/{id}", fine, methods=["GET"])
    app.add_api_route("/v1/fine/{id}", fine, methods=["POST"])
    app.add_api_route("/v1/broken", broken, methods=["POST"])
    app.add_api_route("/v1/failing", failing, methods=["GET"])
    app.add_api_route("/v1/ending", ending, methods=["POST"])
    return Edge(app, Metrics(), LogBudget())


@pytest.fixture
def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(build()), base_url="http://router")


async def test_every_answer_has_an_id_of_its_own(client: httpx.AsyncClient) -> None:
    answers = [
        await client.request(method, path)
        for method, path in [
            ("GET", "/v1/fine/1"),
            ("HEAD", "/v1/fine/1"),
            ("OPTIONS", "/v1/fine/1"),
            ("PUT", "/v1/fine/1"),
            ("GET", "/nowhere"),
            ("GET", "/v1/failing"),
        ]
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 204, 405, 404, 503]
    ids = [answer.headers["request-id"] for answer in answers]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("req_[0-7][0-9A-HJKMNP-TV-Z]{25}", found) for found in ids)
    assert answers[0].text == ids[0]
    assert answers[4].json()["request_id"] == ids[4]


async def test_the_methods_of_a_path_are_told(client: httpx.AsyncClient) -> None:
    for method in ("OPTIONS", "DELETE"):
        answer = await client.request(method, "/v1/fine/1")
        assert answer.headers["allow"] == "GET, HEAD, OPTIONS, POST"
    answer = await client.head("/v1/broken")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "OPTIONS, POST"


async def test_a_path_that_is_not_there_is_not_repeated(client: httpx.AsyncClient) -> None:
    answer = await client.get(f"/v1/{SECRET}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert SECRET not in answer.text


async def test_a_bug_is_a_500_and_tells_nothing(client: httpx.AsyncClient) -> None:
    with capture_logs() as lines:
        answer = await client.post("/v1/broken", content=SECRET, headers={"authorization": "Bearer sk_test_x"})
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal_error"
    crashed, failed = lines
    assert crashed["event"] == "request_crashed"
    assert crashed["error"] == "ValueError"
    assert crashed["request_id"] == answer.headers["request-id"] == failed["request_id"]
    assert any("in broken" in step for step in crashed["trace"])
    for text in (repr(lines), answer.text):
        assert SECRET not in text
        assert "sk_test" not in text


async def test_a_process_that_ends_says_that_the_outcome_is_unknown(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/ending")
    assert answer.status_code == 503
    assert answer.json()["code"] == "outcome_unknown"
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v1/fine/1", {"x-large": "x" * limits.HEAD_BYTES_MAX}),
        ("/v1/fine/1", {f"x-{n}": "y" for n in range(4_000)}),
        ("/v1/fine/" + "1" * limits.HEAD_BYTES_MAX, {}),
        ("/v1/fine/1?x=" + "1" * limits.HEAD_BYTES_MAX, {}),
    ],
)
async def test_a_head_too_large_is_refused(client: httpx.AsyncClient, path: str, headers: dict[str, str]) -> None:
    answer = await client.get(path, headers=headers)
    assert answer.status_code == 431
    assert answer.json()["code"] == "head_too_large"


async def test_requests_are_counted_by_route_and_never_by_path(client: httpx.AsyncClient) -> None:
    edge = build()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(edge), base_url="http://router") as asking:
        for path in ("/v1/fine/1", "/v1/fine/2", "/nowhere"):
            await asking.get(path)
    text = (await edge._metrics.render()).decode()
    assert 'bulkhead_router_requests_total{method="GET",route="/v1/fine/{id}",status="200"} 2.0' in text
    assert 'route="unmatched",status="404"} 1.0' in text
    assert "nowhere" not in text
