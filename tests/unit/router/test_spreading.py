"""What comes over the channel of remembered 429s is believed only where a router of this installation told it."""

import pytest

from cells.api.messages import Refusal, RefusalCode, Refused
from router import limits
from router.remembered import RememberedRefusals
from router.signing import Signer
from router.spreading import CHANNEL, DIRECTORY_KEY, News, Spreading, encode

SIGNER = Signer(b"p" * 32)
NEWS = encode(News("other", "acme", 1, Refused(Refusal(RefusalCode.RATE_LIMITED, "Slower.", retry_after_ms=500))))


def hear(raw: object) -> tuple[int, int, bool]:
    remembered = RememberedRefusals()
    spreading = Spreading("redis://nobody", remembered, SIGNER, lambda partner: partner == "acme")
    spreading.take(raw)
    return spreading.heard, spreading.garbage, remembered.recall("acme", 1) is not None


def test_what_another_router_tells_is_remembered() -> None:
    assert hear(SIGNER.sign(CHANNEL, NEWS)) == (1, 0, True)


@pytest.mark.parametrize(
    "raw",
    [
        NEWS,
        Signer(b"q" * 32).sign(CHANNEL, NEWS),
        SIGNER.sign(DIRECTORY_KEY, NEWS),
        SIGNER.sign(CHANNEL, b"x" * (limits.NEWS_BYTES_MAX + 1)),
        b"",
        "text",
        None,
    ],
    ids=["unsigned", "another pepper", "of another place", "too long", "empty", "text", "none"],
)
def test_what_a_stranger_tells_is_counted_and_left(raw: object) -> None:
    assert hear(raw) == (0, 1, False)
