"""When a change counts as in effect: at the first answer by it, and only where no later probe is answered as before."""

from collections.abc import Iterator

import httpx
import pytest

from bench import directory
from bench.directory import Probe, Seen, first_new, row_of
from chaos.installation import GatewayError

PROBE = Probe("GET", "/v1/partner", "sk", lambda status, _: status == 401)


def answering(statuses: Iterator[int]) -> httpx.AsyncClient:
    transport = httpx.MockTransport(lambda _: httpx.Response(next(statuses)))
    return httpx.AsyncClient(transport=transport, base_url="http://router")


def in_turn(*first: int, then: int) -> Iterator[int]:
    yield from first
    while True:
        yield then


async def test_probes_go_on_until_one_is_answered_by_the_change() -> None:
    statuses = in_turn(200, 200, 200, then=401)
    async with answering(statuses) as session:
        assert await first_new(session, PROBE) > 0


async def test_a_router_that_never_goes_by_the_change_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "PROBE_TIMEOUT_S", 0.05)
    async with answering(in_turn(then=200)) as session:
        with pytest.raises(GatewayError, match="as before after"):
            await first_new(session, PROBE)


def test_a_row_has_median_p99_and_max_and_what_came_after_the_answer() -> None:
    seen = [Seen("key revoked", 10.0 + number, float(number), number - 97.5) for number in range(100)]
    row = row_of(200, True, "key revoked", [*seen, Seen("resumed", 999.0, 999.0, 999.0)])
    assert row.count == 100
    assert row.asked_ms == (60.0, 109.0, 109.0)
    assert row.published_ms == (50.0, 99.0, 99.0)
    assert (row.answered_ms_max, row.after_answer) == (1.5, 2)
    assert row_of(200, True, "all of these", [*seen, Seen("resumed", 999.0, 999.0, 999.0)]).asked_ms[2] == 999.0
    assert row_of(200, True, "resumed", [Seen("resumed", 5.0, 4.0, -1.0)]).answered_ms_max == 0.0


@pytest.mark.parametrize("wrong", [["--partners", "200,100"], ["--partners", "x"], ["--rounds", "0"]])
def test_what_can_t_be_measured_is_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        directory._parse(wrong)
