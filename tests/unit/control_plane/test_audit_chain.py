"""The chain of the audit log: whole it says nothing; changed, short, mixed up or cut off it says so."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from control_plane import audit_chain, audit_head
from control_plane.audit_chain import Head
from control_plane.errors import InputFileError
from control_plane.registry_records import Change


def chain(count: int, *, unchained: int = 0) -> list[Change]:
    made: list[Change] = []
    for number in range(1, count + 1):
        previous = audit_chain.digest(made[-1]) if made else audit_chain.NOTHING
        detail = {"rate_burst": [number, number + 1], "name": "Acmé\u2028"}
        made.append(Change(number, "now", "ann", "limits", "acme", detail, "" if number <= unchained else previous))
    return made


def head_of(changes: list[Change]) -> Head:
    return Head(changes[-1].sequence, audit_chain.digest(changes[-1]))


@pytest.mark.parametrize("unchained", [0, 1, 4, 10])
def test_a_whole_log_is_whole(unchained: int) -> None:
    log = chain(10, unchained=unchained)
    heads = [("now", head_of(log)), ("before", head_of(log[:7])), ("at first", Head(0, audit_chain.NOTHING))]
    verdict = audit_chain.verify(log, heads)
    assert verdict.problems == []
    assert (verdict.entries, verdict.unchained, verdict.head) == (10, unchained, head_of(log))


def test_nothing_is_whole() -> None:
    assert audit_chain.verify([], []).problems == []


DAMAGES: dict[str, Callable[[list[Change]], list[Change]]] = {
    "changed": lambda log: [*log[:4], replace(log[4], who="eve"), *log[5:]],
    "detail changed": lambda log: [*log[:4], replace(log[4], detail={"rate_burst": [1, 999]}), *log[5:]],
    "the last one changed": lambda log: [*log[:-1], replace(log[-1], who="eve")],
    "the first one missing": lambda log: log[1:],
    "missing": lambda log: [*log[:4], *log[5:]],
    "missing and numbered anew": lambda log: [*log[:4], *(replace(one, sequence=one.sequence - 1) for one in log[5:])],
    "in another order": lambda log: [*log[:4], log[5], log[4], *log[6:]],
    "twice": lambda log: [*log[:5], *log[4:]],
    "cut off": lambda log: log[:-2],
    "all gone": lambda _: [],
    "unchained again": lambda log: [*log[:5], replace(log[5], previous=""), *log[6:]],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_a_damaged_log_is_not_whole(damage: Callable[[list[Change]], list[Change]]) -> None:
    log = chain(10)
    assert audit_chain.verify(damage(log), [("elsewhere", head_of(log))]).problems


def test_a_log_that_was_made_again_from_the_middle_is_told_by_the_head_alone() -> None:
    log = chain(10)
    other = log[:4]
    for one in log[4:]:
        other.append(replace(one, who="eve", previous=audit_chain.digest(other[-1])))
    assert audit_chain.verify(other, []).problems == []
    assert audit_chain.verify(other, [("elsewhere", head_of(log))]).problems
    assert audit_chain.verify(other, [("elsewhere", head_of(log[:4]))]).problems == []


@pytest.mark.parametrize("text", ["", "7", f"x:{'0' * 64}", f"7:{'0' * 63}", f"7:{'g' * 64}", f"-7:{'0' * 64}"])
def test_what_is_no_head_is_refused(text: str) -> None:
    with pytest.raises(InputFileError):
        audit_head.parse(text, "here")
