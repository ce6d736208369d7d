"""The listeners' own answers are the router's problems, though `listeners` may not import them."""

import orjson
import pytest

from listeners import refusals
from router.problems import KINDS, EdgeCode, type_of


@pytest.mark.parametrize(
    "refusal", [refusals.TOO_MANY, refusals.HEAD_TOO_LARGE, refusals.HEAD_TOO_SLOW, refusals.MALFORMED]
)
def test_each_is_a_problem_by_the_names_of_the_router(refusal: bytes) -> None:
    head, body = refusal.split(b"\r\n\r\n")
    fields = orjson.loads(body)
    code = EdgeCode(fields["code"])
    assert fields["type"] == type_of(code)
    assert (fields["status"], fields["title"]) == (KINDS[code].status, KINDS[code].title)
    assert head.startswith(b"HTTP/1.1 %d " % KINDS[code].status)
    assert b"content-length: %d\r\n" % len(body) in head
